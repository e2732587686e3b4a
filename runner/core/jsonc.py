"""JSON with comments, as editors keep settings: change members; all other text stays as it is.

What is inserted has the line endings of the text.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

_SPACE = re.compile(r"(?:\s+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_ATOM = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|true|false|null")


@dataclass
class JsonNode:
    """Value in a text of JSON, with its place.

    Attributes:
        start, end: where its characters are.
        members: of an object, by name.
        keys: where the name of each member begins.
    """

    start: int
    end: int = 0
    members: dict[str, "JsonNode"] | None = None
    keys: dict[str, int] = field(default_factory=dict)


def parse(text: str) -> JsonNode:
    """Parse JSON that may have comments and trailing commas.

    Raises:
        ValueError: it is not that, with the line.
    """
    node, place = _parse_value(text, _skip(text, 0), 0)
    if _skip(text, place) != len(text):
        raise _make_error(text, place)
    return node


def _skip(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place


def _make_error(text: str, place: int) -> ValueError:
    return ValueError(f"line {text.count(chr(10), 0, place) + 1} is no JSON")


def _parse_value(text: str, place: int, depth: int) -> tuple[JsonNode, int]:
    letter = text[place : place + 1]
    if letter in ("{", "[") and letter:
        return _parse_container(text, place, depth)
    match = _STRING.match(text, place) or _ATOM.match(text, place)
    if match is None or depth > 100:
        raise _make_error(text, place)
    return JsonNode(place, match.end()), match.end()


def _parse_container(text: str, start: int, depth: int) -> tuple[JsonNode, int]:
    is_object = text[start] == "{"
    node = JsonNode(start, members={} if is_object else None)
    place = _skip(text, start + 1)
    while text[place : place + 1] != ("}" if is_object else "]"):
        begin, name = place, ""
        if is_object:
            match = _STRING.match(text, place)
            colon = _skip(text, match.end()) if match else place
            if match is None or text[colon : colon + 1] != ":":
                raise _make_error(text, place)
            name, place = json.loads(match.group()), _skip(text, colon + 1)
        inner, place = _parse_value(text, place, depth + 1)
        if node.members is not None:
            node.members[name], node.keys[name] = inner, begin
        place = _skip(text, place)
        if text[place : place + 1] == ",":
            place = _skip(text, place + 1)
        elif text[place : place + 1] not in ("}", "]"):
            raise _make_error(text, place)
    node.end = place + 1
    return node, node.end


def set_members(text: str, path: tuple[str, ...], members: dict[str, Any], stale: str = "") -> str:
    """Set members of the object at a path, which is made where it is missing; return the new text.

    Comments, order and all other members stay as they are.

    Args:
        text: JSON with comments; blank for a new file.
        path: names of the objects inside of each other.
        members: by name, the new value.
        stale: members of the object whose names begin so, and are not among the new ones, are removed.

    Raises:
        ValueError: the text is no JSON, or something on the path is no object.
    """
    text = text if text[_skip(text, 0) :] else text + "{\n}\n".replace("\n", find_line_ending(text))
    for depth in range(len(path) + 1):
        owner = _find(parse(text), path[:depth])
        if owner is None:
            text = _insert(text, path[: depth - 1], path[depth - 1], {})
            owner = _find(parse(text), path[:depth])
        if owner is None or owner.members is None:
            message = f"`{'.'.join(path[:depth])}` is no object"
            raise ValueError(message)
    assert owner is not None
    assert owner.members is not None
    for name in [name for name in owner.members if stale and name.startswith(stale) and name not in members]:
        text = _remove(text, path, name)
    for name, value in members.items():
        owner = _find(parse(text), path)
        assert owner is not None
        assert owner.members is not None
        old = owner.members.get(name)
        if old is None:
            text = _insert(text, path, name, value)
        elif _read(text[old.start : old.end]) != value:
            made = _format(value, 4 * (len(path) + 1)).replace("\n", find_line_ending(text))
            text = text[: old.start] + made + text[old.end :]
    return text


def find_line_ending(text: str) -> str:
    """Find out how the lines of a text end: as on Windows (CR LF), or with LF."""
    return "\r\n" if "\r\n" in text else "\n"


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # with comments
        return None


def _find(node: JsonNode, path: tuple[str, ...]) -> JsonNode | None:
    for name in path:
        inner = (node.members or {}).get(name)
        if inner is None:
            return None
        node = inner
    return node


def _format(value: Any, indent: int) -> str:
    return json.dumps(value, indent=4, ensure_ascii=False).replace("\n", "\n" + " " * indent) if value else "{\n}"


def _insert(text: str, path: tuple[str, ...], name: str, value: Any) -> str:
    """Insert a member at the end of an object."""
    owner = _find(parse(text), path)
    if owner is None or owner.members is None:
        message = f"`{'.'.join(path)}` is no object"
        raise ValueError(message)
    margin = " " * 4 * (len(path) + 1)
    shown = f"{json.dumps(name)}: {_format(value, len(margin)).replace('{' + chr(10) + '}', '{}')}"
    added = f"\n{margin}{shown}\n{margin[4:]}".replace("\n", find_line_ending(text))
    close = owner.end - 1
    last = max((inner.end for inner in owner.members.values()), default=None)
    if last is None:
        before = text[owner.start + 1 : close].rstrip()
        return f"{text[: owner.start + 1]}{before}{added}{text[close:]}"
    after = text[last:close]
    has_comma = after[_skip(after, 0) :].startswith(",")
    return f"{text[:last]}{'' if has_comma else ','}{after.rstrip()}{added}{text[close:]}"


def _remove(text: str, path: tuple[str, ...], name: str) -> str:
    """Remove a member with its comma; comments stay."""
    owner = _find(parse(text), path)
    assert owner is not None
    assert owner.members is not None
    start, end = owner.keys[name], owner.members[name].end
    comma = _skip(text, end)
    if text[comma : comma + 1] == ",":
        end = comma + 1
    else:
        before = max((inner.end for inner in owner.members.values() if inner.end < start), default=None)
        comma = _skip(text, before) if before is not None else start
        if text[comma : comma + 1] == ",":
            text, start, end = text[:comma] + text[comma + 1 :], start - 1, end - 1
    line = text.rfind("\n", 0, start) + 1
    after = re.compile(r"\r?\n|\Z").match(text, end)
    if not text[line:start].strip() and after:
        start, end = line, after.end()
    return text[:start] + text[end:]
