"""YAML file with the line of every node, read as OmegaConf reads it, within size limits."""

import os
import re
import shlex
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import GrammarParseError
from omegaconf.grammar_parser import parse

from runner.core import safe_io
from runner.core.errors import Mistake

MAX_NODES = 20_000  # aliases counted as often as they are used: 212 bytes of nested aliases make 10^9 nodes


MAX_BYTES = 1_000_000


MAX_DEPTH = 100


MAX_DIGITS = 400  # of a number: Python refuses to write an integer of more than 4,300 digits


MAX_INTERPOLATED = 20_000  # characters of a text with `${`: OmegaConf's grammar takes 0.1 ms a character


RECORDED = 5  # times these limits for a recorded config, into which several files were composed


_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq", "merge")}


_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}


_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml reads 5 times faster


class _LineLoader(_Base):  # type: ignore[misc]
    """YAML loader with OmegaConf's scalars (`1e-3` is a number); the keys `on` and `off` stay texts."""

    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:bool" and key.value.lower() in {"on", "off", "yes", "no", "y", "n"}:
                key.tag = "tag:yaml.org,2002:str"
            if key.tag == "tag:yaml.org,2002:str":
                if key.value in seen:
                    message = f"`{key.value}` is already set in line {seen[key.value].start_mark.line + 1}"
                    raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
                seen[key.value] = key
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


class _PlainLoader(_LineLoader):
    """YAML loader with YAML's own scalars, for `config.yaml`: `1e-3` is a text."""

    yaml_implicit_resolvers = _Base.yaml_implicit_resolvers


@dataclass
class Document:
    """One YAML file: plain data (`{}` if unreadable), nodes with their lines, and its mistake.

    `items` has the data of a file that is a list.
    """

    path: Path
    text: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    items: list[Any] = field(default_factory=list)
    root: yaml.Node | None = None
    mistake: Mistake | None = None


def load(path: Path, *, items: bool = False) -> Document:
    """Load a file that holds a mapping, or a list (`items`); an error becomes the `mistake`."""
    try:
        stat = path.stat()
    except OSError as error:
        return Document(path, mistake=_make_read_mistake(path, error))
    return _load(path, stat.st_mtime_ns, stat.st_size, items)


def load_record(path: Path, *, plain: bool = False) -> Document:
    """Load the config of a run directory, which is no link; an error in it becomes the `mistake`.

    Args:
        path: of the file.
        plain: whether it is read as YAML alone has it (`config.yaml`), not as OmegaConf reads what people write.

    Raises:
        OSError: it cannot be read, is a link, or is no regular file.
    """
    with safe_io.open_read(path) as file:
        stat = os.fstat(file.fileno())
    loader = _PlainLoader if plain else _LineLoader
    return _load(path, stat.st_mtime_ns, stat.st_size, items=False, times=RECORDED, loader_type=loader)


@lru_cache(maxsize=1024)
def _load(
    path: Path, _changed: int, size: int, items: bool, times: int = 1, loader_type: Any = _LineLoader
) -> Document:
    document = Document(path)
    try:
        if size > MAX_BYTES * times:
            message = f"is larger than {MAX_BYTES * times:,} bytes"
            raise _RefusedDocument(message)
        document.text = _read_text(path)
        _measure_depth(document.text)
        loader = loader_type(document.text)
        try:
            root = loader.get_single_node()
            _check_node_count(root, MAX_NODES * times)
            data: Any = None if root is None else loader.construct_document(root)
        finally:
            loader.dispose()
        if not isinstance(data, (list if items else dict) | None):
            message = f"must be a {'list of mappings' if items else 'mapping'} of keys to values"
            raise _RefusedDocument(message)
        document.root = root
        has_interpolations = loader_type is _LineLoader
        if items:
            document.items = list(data or ())
        else:
            document.data = dict(data or {})
        for place, error in list(_remove_unreadable(document.items or document.data, ())) if has_interpolations else ():
            found = find(root, place)
            rule = f"has an interpolation that cannot be read: {error}"
            document.mistake = document.mistake or Mistake(
                ".".join(map(str, place)), rule, where=f"{path}:{found[0] if found else 1}", kind="syntax"
            )
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        said_where = getattr(error, "context", None)
        context = f" {said_where}" if said_where else ""
        line = mark.line + 1 if mark else 1
        said = document.text.splitlines()[line - 1 : line]
        remedy = (
            "inside of `{ }` and `[ ]` quote it: '${…}'" if said and re.search(r"[{\[,].*[^'\"]\$\{", said[0]) else ""
        )
        document.mistake = Mistake(
            str(path),
            f"cannot be read as YAML: {problem}{context}",
            where=f"{path}:{line}",
            remedy=remedy,
            kind="syntax",
        )
    except UnicodeDecodeError as error:
        line, utf16 = error.object[: error.start].count(b"\n") + 1, error.object[:2] in (b"\xff\xfe", b"\xfe\xff")
        remedy = f"{'it is UTF-16: ' if utf16 else ''}save it as UTF-8"
        document.mistake = Mistake(
            str(path), "must be UTF-8 text", where=f"{path}:{line}", remedy=remedy, kind="syntax"
        )
    except OSError as error:
        document.mistake = _make_read_mistake(path, error)
    except _RefusedDocument as error:
        document.mistake = Mistake(str(path), str(error), where=f"{path}:1", kind="syntax")
    except (ValueError, OverflowError) as error:  # a scalar that YAML's constructor cannot make
        document.mistake = Mistake(str(path), f"cannot be read as YAML: {error}", where=f"{path}:1", kind="syntax")
    return document


def parse_plain_text(text: str) -> Any:
    """Parse a part of a recorded config as YAML alone has it, within the limits of a whole one.

    Raises:
        ValueError: it cannot be read, or exceeds a limit.
    """
    try:
        _measure_depth(text)
        loader = _PlainLoader(text)
        try:
            root = loader.get_single_node()
            _check_node_count(root, MAX_NODES * RECORDED)
            return None if root is None else loader.construct_document(root)
        finally:
            loader.dispose()
    except (yaml.YAMLError, OverflowError) as error:
        raise ValueError(str(error)) from error


def _make_read_mistake(path: Path, error: OSError) -> Mistake:
    remedy = f"see `ls -l {shlex.quote(str(path))}`"
    return Mistake(
        str(path), f"cannot be read: {error.strerror or error}", where=f"{path}:1", remedy=remedy, kind="file"
    )


class _RefusedDocument(ValueError):
    pass


def _read_text(path: Path) -> str:
    """Read the text of a regular file, also through a link: a config group may be one."""
    data = safe_io.read_bytes(path.resolve())
    return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")  # Windows writes a byte order mark


def _remove_unreadable(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Null every text whose `${…}` OmegaConf's grammar rejects; yield its path and the error."""
    if isinstance(value, dict | list):
        for name, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
            for place, error in _remove_unreadable(inner, (*path, name)):
                if place == (*path, name):
                    value[name] = None
                yield place, error
    elif isinstance(value, str) and "${" in value:
        if len(value) > MAX_INTERPOLATED:
            yield path, f"it has more than {MAX_INTERPOLATED:,} characters"
            return
        try:
            parse(value)
        except GrammarParseError as error:
            yield path, str(error).splitlines()[0]
        except RecursionError:
            yield path, "it is nested too deeply"


def _measure_depth(text: str) -> None:
    depth = 0
    nested = (
        sum(map(text.count, "[{-?")) > MAX_DEPTH or "\n" + " " * MAX_DEPTH in text
    )  # else there is nothing to measure
    for event in yaml.parse(text, _LineLoader) if nested else ():
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            message = f"is nested deeper than {MAX_DEPTH}"
            raise _RefusedDocument(message)


def _check_node_count(root: yaml.Node | None, limit: int) -> None:
    if _count_nodes(root, {}, set()) > limit:
        message = f"has more than {limit:,} nodes with its aliases written out"
        raise _RefusedDocument(message)


def _list_children(node: yaml.Node | None) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _count_nodes(node: yaml.Node | None, known: dict[int, int], above: set[int]) -> int:
    if id(node) in above:
        message = "contains an alias of a node that it is inside of"
        raise _RefusedDocument(message)
    if node is not None and node.tag not in _PLAIN_TAGS:
        raise yaml.constructor.ConstructorError(None, None, f"the tag {node.tag!r} is not taken", node.start_mark)
    if node is not None and node.tag in _NUMBERS and len(node.value) > MAX_DIGITS:
        message = f"a number has more than {MAX_DIGITS} digits"
        raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
    if id(node) not in known:
        inside = above | {id(node)}
        known[id(node)] = 1 + sum(_count_nodes(child, known, inside) for child in _list_children(node))
    return known[id(node)]


def find(node: yaml.Node | None, path: tuple[str | int, ...]) -> tuple[int, yaml.Node] | None:
    """Return the 1-based line and the node of `path` below `node`; None where it is not set.

    The line of a mapping's entry is that of its key, of a list's element that of the element.
    """
    if node is None:
        return None
    line = node.start_mark.line + 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            entry = _find_entry(node, str(part))
            if entry is None:
                return None
            line, node = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return None
    return line, node


def _find_entry(node: yaml.MappingNode, name: str) -> tuple[yaml.Node, yaml.Node] | None:
    entries, merged = _index_entries(node)
    if name in entries:
        return entries[name]
    return next((entry for inner in merged if (entry := _find_entry(inner, name))), None)


def _index_entries(node: yaml.MappingNode) -> tuple[dict[str, tuple[yaml.Node, yaml.Node]], list[yaml.MappingNode]]:
    """Return the entries of a mapping by key, and the mappings merged into it; both are kept with it."""
    known: tuple[dict[str, tuple[yaml.Node, yaml.Node]], list[yaml.MappingNode]] | None = vars(node).get("_index")
    if known is None:
        merges = [value for key, value in node.value if key.tag == "tag:yaml.org,2002:merge"]
        listed = [one for value in merges for one in (value.value if isinstance(value, yaml.SequenceNode) else [value])]
        entries = {
            key.value: (key, value)
            for key, value in node.value
            if isinstance(key.value, str) and key.tag != "tag:yaml.org,2002:merge"
        }
        known = entries, [one for one in listed if isinstance(one, yaml.MappingNode)]
        vars(node)["_index"] = known
    return known
