"""Point file (`sweep.points=FILE`): one mapping of keys to values per job, each with its line."""

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override, Quote, QuotedString

from runner.config import document
from runner.config.suggestions import find_nearest, format_suggestion
from runner.core import safe_io
from runner.core.errors import Kind, Mistake
from runner.core.escape import escape_line

# A key of a config or of a group (with its package), as Hydra takes it.
_KEY = r"(?a)\+{0,2}[A-Za-z_][\w\-/]*(\.[\w\-]+)*(@[\w.\-]+)?"


_WORD = r"[A-Za-z_][\w./+\-]*"  # a text that needs no quotes, unless it is one of these


_NO_WORDS = {"null", "true", "false", "nan", "inf"}


MAX_KEYS = 1_000  # of one point


MAX_KEY = 200  # characters of a key


MAX_VALUE = 20_000  # characters of a value: Hydra's grammar takes 1 µs to 1 ms for each


@dataclass(frozen=True)
class PointRow:
    """Point of a file: key and argument of each setting, and its `file:line`."""

    where: str
    arguments: tuple[tuple[str, str], ...]


def read(path: Path, name: str, where: str) -> tuple[list[PointRow], list[Mistake]]:
    """Read the points of a file; return them and the mistakes of the file.

    Args:
        path: a list of mappings in YAML, a CSV table with the keys in its first line, or one JSON object a line.
        name: how the file was named.
        where: who named it.
    """
    readers: dict[str, Callable[[Path, str, _PointRows], None]] = {
        ".yaml": _read_yaml, ".yml": _read_yaml, ".csv": _read_csv, ".jsonl": _read_jsonl,
    }  # fmt: skip
    if path.suffix.lower() not in readers or not path.is_file():
        is_known = path.suffix.lower() in readers
        rule = "must be an existing file" if is_known else f"must be a file that ends in {', '.join(readers)}"
        beside = [file.name for file in path.parent.glob("*") if file.suffix.lower() in readers and file.is_file()]
        near = find_nearest(path.name, beside)
        right = str(Path(name).with_name(near)) if near else ""
        return [], [Mistake("sweep.points", rule, name, where, format_suggestion(right), right, kind="file")]
    rows = _PointRows(name)
    try:
        if path.stat().st_size > safe_io.MAX_BYTES:
            return [], [Mistake("sweep.points", f"must be at most {safe_io.MAX_BYTES:,} bytes", name, where)]
        readers[path.suffix.lower()](path, name, rows)
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        rows.wrong("must be UTF-8 text", line, kind="syntax")
    except OSError as error:
        return [], [Mistake("sweep.points", f"cannot be read: {error.strerror}", name, where, kind="file")]
    if not rows.rows and not rows.mistakes:
        rows.wrong("has no point in it", 1, kind="missing")
    return rows.rows, rows.mistakes


class _PointRows:
    """Points read so far, and the mistakes found."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: list[PointRow] = []
        self.mistakes: list[Mistake] = []

    def wrong(self, rule: str, line: int, key: str = "", kind: Kind = "value") -> None:
        self.mistakes.append(Mistake(key or self.name, rule, where=f"{self.name}:{line}", kind=kind))

    def add(self, arguments: list[tuple[str, str]], line: int) -> None:
        if len(arguments) > MAX_KEYS:
            self.wrong(f"has a point of more than {MAX_KEYS:,} keys", line)
            return
        for key, text in arguments:
            if len(key) > MAX_KEY or len(text) > len(key) + 1 + MAX_VALUE:
                what, most = ("key", MAX_KEY) if len(key) > MAX_KEY else ("value", MAX_VALUE)
                self.wrong(f"has a {what} of more than {most:,} characters", line, escape_line(key[:MAX_KEY]))
                return
        bad = [key for key, _ in arguments if not re.fullmatch(_KEY, key)]
        for key in bad:
            self.wrong("is not a key", line, repr(key), kind="syntax")
        if not arguments:
            self.wrong("has a point that sets no key", line, kind="missing")
        twice = [key for key, number in Counter(key.lstrip("+") for key, _ in arguments).items() if number > 1]
        for key in twice:
            self.wrong("is set twice by one point", line, key, kind="conflict")
        if arguments and not bad and not twice:
            self.rows.append(PointRow(f"{self.name}:{line}", tuple(arguments)))


def _read_yaml(path: Path, _name: str, rows: _PointRows) -> None:
    loaded = document.load(path, items=True)
    if loaded.mistake is not None:
        line = int(loaded.mistake.where.rpartition(":")[2])
        rows.wrong(loaded.mistake.rule, line, loaded.mistake.key.replace(str(path), rows.name), loaded.mistake.kind)
        return
    for index, item in enumerate(loaded.items):
        found = document.find(loaded.root, (index,))
        line = found[0] if found else 1
        if isinstance(item, dict):
            rows.add(list(_flatten(item)), line)
        else:
            rows.wrong("has a point that is no mapping of keys to values", line, kind="type")


def _read_jsonl(path: Path, _name: str, rows: _PointRows) -> None:
    with path.open(encoding="utf-8-sig") as file:
        for line, said in enumerate(file, 1):
            if not said.strip():
                continue
            try:
                safe_io.check_nesting(said)
                item = json.loads(said, object_pairs_hook=_refuse_duplicates)
            except (ValueError, RecursionError) as error:
                problem = f"column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else error
                rows.wrong(f"cannot be read as JSON: {problem}", line, kind="syntax")
                continue
            if isinstance(item, dict):
                rows.add(list(_flatten(item)), line)
            else:
                rows.wrong("has a point that is no object of keys and values", line, kind="type")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen = dict(pairs)
    if len(seen) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"`{next(name for name in names if names.count(name) > 1)}` is given twice")
    return seen


def _read_csv(path: Path, _name: str, rows: _PointRows) -> None:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, skipinitialspace=True, strict=True)
        header: list[str] = []
        line = 1
        try:
            for cells in reader:
                if not header and cells:
                    header = [cell.strip() for cell in cells]
                    if not _check_header(header, line, rows):
                        return
                elif len(cells) > len(header) or (cells and len(cells) < len(header)):
                    rows.wrong(f"has {len(cells)} cells where the first line has {len(header)}", line, kind="syntax")
                elif cells:
                    pairs = zip(header, map(str.strip, cells), strict=True)
                    rows.add([(key, f"{key}={_quote_cell(cell)}") for key, cell in pairs if cell], line)
                line = reader.line_num + 1
        except csv.Error as error:
            rows.wrong(f"cannot be read as CSV: {error}", reader.line_num, kind="syntax")


def _check_header(header: list[str], line: int, rows: _PointRows) -> bool:
    if len(header) > MAX_KEYS:
        rows.wrong(f"has a point of more than {MAX_KEYS:,} keys", line)
        return False
    before, bare = len(rows.mistakes), [key.lstrip("+") for key in header]
    for key in dict.fromkeys(header):
        if not re.fullmatch(_KEY, key):
            rows.wrong(
                "is not a key; the first line has the keys, with commas between them", line, repr(key), kind="syntax"
            )
    for key in dict.fromkeys(bare):
        if bare.count(key) > 1:
            rows.wrong("stands twice in the first line", line, key, kind="conflict")
    return len(rows.mistakes) == before


def _quote_cell(cell: str) -> str:
    """Quote a CSV cell as a typed value; a cell that Hydra would take for several is one string."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if re.fullmatch(r"[\w.+\-]+", cell, re.ASCII):
        return cell
    try:
        override = OverridesParser.create().parse_override(f"key={cell}")
    except HydraException:
        return format_value(cell)
    return format_value(cell) if override.is_sweep_override() else cell


def _flatten(item: dict[Any, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield the arguments of a nested mapping, whose keys may be dotted."""
    for name, value in item.items():
        key = f"{above}{name}"
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{key}.")
        else:
            yield key, f"{key}={format_value(value)}"


def format_value(value: Any) -> str:
    """Format a plain value in Hydra's grammar."""
    if isinstance(value, str):
        plain = re.fullmatch(_WORD, value, re.ASCII) and value.lower() not in _NO_WORDS
        return value if plain else QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, list):
        return f"[{','.join(map(format_value, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{format_value(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, float) and not math.isfinite(value):
        return {True: "inf", False: "-inf"}[value > 0] if not math.isnan(value) else "nan"
    return str(Override._get_value_element_as_str(value))  # noqa: SLF001  Hydra's own way to write a value
