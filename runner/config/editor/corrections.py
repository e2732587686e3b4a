"""Corrections of mistakes whose remedy is sure: edits of a file's text, or of a command line.

Sure is a typing error with one nearest name, another tool's name for a key, an old name of a component, and a number
in quotes. Never a guess among several. The text is edited at its place; comments, order and quotes stay.
"""

import difflib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from runner.config.arguments import quote_for_shell
from runner.config.check.components import OLD_ARGUMENTS
from runner.config.check.imports import OLD_NAMES, TargetError, import_object
from runner.config.check.signature import inspect_parameters
from runner.config.composed import Composed
from runner.config.key_help import list_key_help, list_keys_below
from runner.config.origins import as_path
from runner.config.parsing import index_schema_keys
from runner.config.suggestions import compute_distance, translate_name
from runner.core.errors import Mistake
from runner.core.files import write_text
from runner.core.jsonc import find_line_ending
from runner.core.paths import find_our_conf
from runner.core.safe_io import read_bytes


@dataclass(frozen=True)
class Correction:
    """Correction of one mistake: `before` becomes `after` at a place."""

    key: str
    where: str
    before: str
    after: str


@dataclass(frozen=True)
class _TextEdit:
    start: int
    end: int
    text: str


def find_sure_name(mistake: Mistake, composed: Composed | None, trust: Sequence[str] = ()) -> str:
    """Return what a mistake's wrong name or value surely means; empty where that is a guess.

    Args:
        mistake: of the report.
        composed: the composition that has it, which knows the targets of components.
        trust: patterns of trusted names.
    """
    right = mistake.suggestion
    if not right or right == "???" or mistake.remedy.startswith("the default is"):
        return ""
    if mistake.kind in ("unknown-key", "unknown-argument"):
        return right if _is_sure_key(mistake, composed, trust) else ""
    if mistake.kind in ("unknown-target", "slot", "untrusted"):
        wrong = str(mistake.value)
        if OLD_NAMES.get(wrong) == right:
            return right
        module = wrong.rpartition(".")[0]
        same = right.rpartition(".")[0] == module
        inside = vars(sys.modules[module]) if same and module in sys.modules else ()
        near = _is_only_near(wrong, right, [f"{module}.{name}" for name in inside])
        return right if near and mistake.kind != "slot" else ""
    if mistake.kind == "unknown-option":
        if "=" in right:  # a whole argument in the place of a flag
            return right
        wrong = _find_wrong_option(mistake)
        return right if wrong and _is_only_near(wrong, right, re.findall(r"[\w.+/-]+", mistake.rule)) else ""
    value = mistake.value
    if isinstance(value, str) and value.strip() == right and _is_number(right):
        return right  # a number in quotes
    known = re.findall(r"[\w.+/-]+", mistake.rule)
    return right if isinstance(value, str) and right in known and _is_only_near(value, right, known) else ""


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text) is not None


def _find_wrong_option(mistake: Mistake) -> str:
    named = re.search(r"has no option `([^`]+)`", mistake.rule)
    return named[1] if named else mistake.key if mistake.key != mistake.suggestion else ""


def _is_sure_key(mistake: Mistake, composed: Composed | None, trust: Sequence[str]) -> bool:
    wrong, right = mistake.key, mistake.suggestion
    last, right_last = wrong.rpartition(".")[2], right.rpartition(".")[2]
    if right in (translate_name(wrong), translate_name(last) if "." not in wrong else ""):
        return True
    if wrong.rpartition(".")[0] != right.rpartition(".")[0]:  # a key that has this name in one place only
        return mistake.kind == "unknown-key" and index_schema_keys().get(last, ()) == (right,)
    if OLD_ARGUMENTS.get(last) == right_last:
        return True
    return _is_only_near(last, right_last, _list_siblings(wrong, composed, trust))


def _list_siblings(key: str, composed: Composed | None, trust: Sequence[str]) -> list[str]:
    """List the names that may stand in a key's place: keys of the runner, and arguments of the component."""
    outer = key.rpartition(".")[0]
    below = list_keys_below(outer) if outer else list_key_help()
    names = [known.key.split(".")[-1] for known in below if known.key.count(".") == key.count(".")]
    node: Any = composed.config if composed is not None else None
    for part in as_path(outer) if outer else ():
        node = node.get(part) if isinstance(node, Mapping) else None
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if isinstance(target, str):
        try:
            takes = inspect_parameters(import_object(target, trust))
        except (TargetError, ImportError):
            takes = None
        names += list(takes.named) if takes is not None else []
    return names


def _is_only_near(wrong: str, right: str, known: Sequence[str]) -> bool:
    """Return whether a name is one typing error (two in a long one) from another, and from no further one.

    Every digit is taken as meant: `resnet20` and `L2Loss` are names of their own.
    """
    if re.findall(r"\d", wrong) != re.findall(r"\d", right):
        return False
    limit = 1 if len(wrong) < 8 else 2
    distance = compute_distance(wrong.lower(), right.lower(), limit)
    others = [name for name in {*known} if name not in (right, wrong)]
    return distance <= limit and all(compute_distance(wrong.lower(), name.lower(), limit) > distance for name in others)


# ---- files


class CorrectedFile:
    """Text of a config file, and the corrections of it."""

    def __init__(self, path: Path) -> None:
        """Read a file.

        Raises:
            OSError: it cannot be read, or is no regular file.
            ValueError: it is not the user's own: outside of the working directory, or shipped with the runner.
        """
        self.path = path
        _refuse_foreign(path)
        self.before = read_bytes(path).decode("utf-8")
        self.text = self.before
        self.corrections: list[Correction] = []

    def correct(self, mistake: Mistake, line: int, right: str) -> bool:
        """Correct a mistake of a line; return whether its place was found, and no other could be meant."""
        try:
            root = yaml.compose(self.text, Loader=yaml.SafeLoader)
        except yaml.YAMLError:
            return False
        edits = _plan(self.text, root, mistake, line, right)
        if not edits:
            return False
        text = self.text
        for edit in sorted(edits, key=lambda one: -one.start):
            text = text[: edit.start] + edit.text + text[edit.end :]
        if not _is_yaml(text) or text == self.text:
            return False
        before = self.text[edits[0].start : edits[0].end].strip()
        self.corrections.append(Correction(mistake.key, f"{self.path}:{line}", before, right))
        self.text = text
        return True

    def format_diff(self) -> str:
        """Format what changes, as `diff -u` does."""
        before, after = (text.splitlines(keepends=True) for text in (self.before, self.text))
        return "".join(difflib.unified_diff(before, after, str(self.path), str(self.path), n=1))

    def write(self) -> None:
        """Write the file, unless another program has changed it since it was read.

        Raises:
            OSError: it cannot be written, or was changed.
        """
        if read_bytes(self.path).decode("utf-8") != self.before:
            message = "it was changed meanwhile"
            raise OSError(message)
        mode = self.path.stat().st_mode
        write_text(self.path, self.text)
        self.path.chmod(mode & 0o7777)
        self.before = self.text


def _refuse_foreign(path: Path) -> None:
    real, here = path.resolve(), Path.cwd().resolve()
    inside = real.is_relative_to(here)
    installed = {"site-packages", "dist-packages"} & {*real.parts}
    shipped = real.is_relative_to(find_our_conf().resolve()) and not find_our_conf().resolve().is_relative_to(here)
    if not inside or installed or shipped or path.is_symlink():
        message = "it is not a file of this project's own"
        raise ValueError(message)


def _is_yaml(text: str) -> bool:
    try:
        yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return False
    return True


_Entry = tuple[tuple[str, ...], yaml.Node, yaml.Node, yaml.MappingNode]


def _list_entries(
    node: yaml.Node | None, path: tuple[str, ...] = (), seen: frozenset[int] = frozenset()
) -> Iterator[_Entry]:
    """Yield each key of a document with its path, its node, its value's node and the mapping that has it."""
    if node is None or id(node) in seen:
        return
    seen = seen | {id(node)}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield (*path, key.value), key, value, node
                yield from _list_entries(value, (*path, key.value), seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, inner in enumerate(node.value):
            yield from _list_entries(inner, (*path, str(index)), seen)


def _plan(text: str, root: yaml.Node | None, mistake: Mistake, line: int, right: str) -> list[_TextEdit]:
    """Plan the edits that correct a mistake of a line; empty where its place is not clear."""
    if mistake.kind == "unknown-option":
        return _plan_option(text, root, mistake, line, right)
    path = tuple(mistake.key.split("."))
    found = {
        id(key): (at, key, value, owner)
        for at, key, value, owner in _list_entries(root)
        if key.start_mark.line + 1 == line and path[-len(at) :] == at
    }
    if len(found) > 1:  # the longest path says which one
        longest = max(len(entry[0]) for entry in found.values())
        found = {name: entry for name, entry in found.items() if len(entry[0]) == longest}
    if len(found) != 1:
        return []
    at, key, value, owner = next(iter(found.values()))
    if mistake.kind not in ("unknown-key", "unknown-argument"):
        there = _is_written(text, value, str(mistake.value))
        return [_rewrite(text, value, right, plain=_is_number(right))] if there else []
    names = right.split(".")
    if names[:-1] == list(path[:-1]):
        taken = [other.value for other, _ in owner.value if other is not key]
        return [] if names[-1] in taken else _plan_rename(text, key, value, names[-1])
    return _plan_move(text, root, (at, key, value, owner), path, names)


def _is_written(text: str, node: yaml.Node, value: str) -> bool:
    """Return whether a node is this value as it stands: no interpolation, anchor or alias that becomes it."""
    return text[node.start_mark.index : node.end_mark.index] in (value, f"'{value}'", f'"{value}"')


def _rewrite(text: str, node: yaml.Node, right: str, *, plain: bool = False) -> _TextEdit:
    start, end = node.start_mark.index, node.end_mark.index
    quote = text[start] if text[start] in "'\"" and not plain else ""
    return _TextEdit(start, end, f"{quote}{right}{quote}")


def _plan_option(text: str, root: yaml.Node | None, mistake: Mistake, line: int, right: str) -> list[_TextEdit]:
    """Plan the correction of a defaults list: the option of a group, or the name of the group."""
    listed = next((value for at, _, value, _ in _list_entries(root) if at == ("defaults",)), None)
    found: list[_TextEdit] = []
    for at, key, value, _ in _list_entries(listed):
        if key.start_mark.line + 1 != line or not at:
            continue
        group = re.split(r"[ /]", key.value.partition("@")[0])[-1]
        if group == mistake.key and f"`{getattr(value, 'value', '')}`" in mistake.rule:
            found.append(_rewrite(text, value, right))
        elif group == mistake.key and "has no option" not in mistake.rule:
            start = key.start_mark.index + text[key.start_mark.index : key.end_mark.index].rindex(group)
            found.append(_TextEdit(start, start + len(group), right))
    return found if len(found) == 1 else []


_UNITS = (("epoch", "ep"), ("step", "st"), ("iter", "st"))


def _find_unit(wrong: str) -> str:
    return next((unit for word, unit in _UNITS if word in wrong.rpartition(".")[2]), "")


def _is_duration(name: str) -> bool:
    return re.search(r"(^|[._])(duration|every)$", name) is not None


def _add_unit(written: str, wrong: str) -> str:
    """Return a duration with the unit that its wrong name says; empty where that is not clear."""
    unit = _find_unit(wrong)
    if re.fullmatch(r"\d+(\.\d+)?", written) and unit:
        return written + unit
    return written if re.fullmatch(r"[\d.]+(ep|st)|null", written) else ""


def _plan_rename(text: str, key: yaml.Node, value: yaml.Node, name: str) -> list[_TextEdit]:
    """Plan another name for a key that stays in its mapping."""
    renamed = _rewrite(text, key, name)
    if not _is_duration(name) or not _find_unit(key.value):
        return [renamed]
    start, end = value.start_mark.index, value.end_mark.index
    made = _add_unit(text[start:end], key.value) if start >= key.end_mark.index else ""
    return [renamed, _TextEdit(start, end, made)] if made else []


def _plan_move(
    text: str, root: yaml.Node | None, entry: _Entry, path: tuple[str, ...], names: Sequence[str]
) -> list[_TextEdit]:
    """Plan the move of an entry on a line of its own to another mapping, made where it is missing."""
    at, key, value, owner = entry
    start = text.rfind("\n", 0, key.start_mark.index) + 1
    end = text.find("\n", value.end_mark.index)
    end = len(text) if end < 0 else end
    alone = not text[start : key.start_mark.index].strip() and not owner.flow_style
    rest = text[value.end_mark.index : end].strip()
    if at != path or not isinstance(value, yaml.ScalarNode) or not alone or value.end_mark.line != key.start_mark.line:
        return []
    written = text[value.start_mark.index : value.end_mark.index]
    if _is_duration(names[-1]):
        written = _add_unit(written, path[-1])
    if not written or (len(path) > 1 and len(owner.value) == 1):  # the mapping that it leaves would be null
        return []
    newline = find_line_ending(text)
    said = f"{names[-1]}: {written}"
    gone = _TextEdit(start, min(end + 1, len(text)), "")
    if len(names) == 1:
        return []
    into = next((v for p, _, v, _ in _list_entries(root) if list(p) == list(names[:-1])), None)
    if into is None:
        if len(names) != 2 or len(path) != 1:
            return []
        comment = f"  {rest}" if rest else ""
        return [replace(gone, text=f"{names[0]}:{newline}  {said}{comment}{newline}")]
    if not isinstance(into, yaml.MappingNode) or names[-1] in [other.value for other, _ in into.value]:
        return []
    if into.flow_style:
        inside = into.start_mark.index + 1
        return [] if rest else [gone, _TextEdit(inside, inside, f"{said}, " if into.value else said)]
    first = into.value[0][0].start_mark
    line = text.rfind("\n", 0, first.index) + 1
    margin = text[line : first.index]
    shown = f"{margin}{said}{f'  {rest}' if rest else ''}{newline}"
    return [gone, _TextEdit(line, line, shown)] if not margin.strip() else []


# ---- command lines


def correct_argument(words: Sequence[str], mistake: Mistake, right: str) -> list[str] | None:
    """Return a command line with the mistake of one argument corrected; None where it is not clear how."""
    named = re.match(r"argument `(.*?)`(?: \(|$|,)", mistake.where)
    if named is None:
        return None
    wrong = named[1]
    pair = wrong.split(" ", 1)
    if wrong in words:
        first, count = list(words).index(wrong), 1
    elif len(pair) == 2 and any([*words[i : i + 2]] == pair for i in range(len(words))):
        first, count = next(i for i in range(len(words)) if [*words[i : i + 2]] == pair), 2
    else:  # of a sweep the place is that of a point's argument
        of_key = [word for word in words if word.partition("=")[0].lstrip("+~") == mistake.key and "=" in word]
        if len(of_key) != 1 or mistake.kind not in ("unknown-key", "unknown-argument"):
            return None
        wrong, first, count = of_key[0], list(words).index(of_key[0]), 1
    key, equals, value = wrong.partition("=")
    prefix = re.match(r"[+~]*", key)[0] if equals else ""  # type: ignore[index]
    if "=" in right:
        made = right
    elif mistake.kind in ("unknown-key", "unknown-argument") or (
        mistake.kind == "unknown-option" and "has no option" not in mistake.rule
    ):
        if not equals or key.lstrip("+~") != mistake.key:
            return None
        made = f"{prefix}{right}={value}"
        if _is_duration(right):
            value = _add_units(value, mistake.key)
            made = f"{prefix}{right}={value}" if value else ""
    else:
        if not equals or key.lstrip("+~") != mistake.key or "${" in value:
            return None
        made = f"{key}={right}"
    return [*words[:first], made, *words[first + count :]] if made else None


def _add_units(value: str, wrong: str) -> str:
    """Return durations with the unit that the wrong key says; empty where that is not clear."""
    if not re.fullmatch(r"\d+(\.\d+)?", value) and not _find_unit(wrong):
        return value
    each = [_add_unit(one, wrong) for one in value.split(",")]
    return ",".join(each) if all(each) else ""


def format_command(words: Sequence[str], *, multirun: bool) -> str:
    """Format the command line of a run or a sweep with these arguments."""
    return " ".join(["python -m runner", *(["-m"] if multirun else []), *map(quote_for_shell, words)])


def split_place(where: str) -> tuple[Path, int] | None:
    """Return the file and line of a mistake's place; None for an argument or a default of the runner's."""
    match = re.match(r"(?P<file>[^:`]+\.ya?ml):(?P<line>\d+)", where)
    return (Path(os.path.normpath(match["file"])), int(match["line"])) if match else None
