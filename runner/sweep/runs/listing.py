"""List of runs: those below a folder that a filter selects, sorted, with the columns asked for."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.core.errors import ConfigError, Mistake
from runner.sweep.runs.address import ROOT, AddressKind, find_address, find_named_folder
from runner.sweep.runs.filters import Test, find_name, parse_filter
from runner.sweep.runs.index import RunTable, find_root, read_table
from runner.sweep.runs.reading import RunRow

JOB_ALONE: tuple[AddressKind, ...] = ("job",)


@dataclass(frozen=True)
class RunList:
    """Runs that a command line selects.

    Attributes:
        rows: in order.
        tables: table of each root that was looked through.
        filters: as given.
        folders: that were given; empty for all of `outputs`.
        show: further columns that were asked for.
    """

    rows: list[RunRow]
    tables: list[RunTable]
    filters: list[str]
    folders: list[Path]
    show: list[str]

    @property
    def notes(self) -> list[str]:
        """Return what was passed over, in words."""
        return [note for table in self.tables for note in table.found.notes]


def select_runs(words: Sequence[str], *, show: Sequence[str] = (), sort: Sequence[str] = ()) -> RunList:
    """Select the runs that words name: folders, jobs `SWEEP:12`, and filters that must all hold.

    Args:
        words: of the command line; without a folder or a job all runs below `outputs`.
        show: names of further columns, separated by commas.
        sort: names to sort by, separated by commas; with `-` before it from the greatest on.

    Raises:
        ConfigError: a filter or a name is wrong, or a folder does not exist.
    """
    folders, filters = split_words(words)
    given = [path for folder in folders for path in folder] or [ROOT]
    tables = [read_table(root) for root in dict.fromkeys(map(find_root, given))]
    names = None
    if any(table.rows for table in tables):
        names = set[str]().union(*(table.list_names() for table in tables))
    tests = [parse_words_as_filter(text, names) for text in filters]
    shown = [name for text in show for name in split_names(text)]
    for name in shown:
        find_name(name, names, where=f"argument `--show {name}`", of="--show")
    rows = [row for table in tables for row in table.rows if not folders or is_below(row.folder, given)]
    rows = [row for row in rows if all(test(row) for test in tests)]
    for key in reversed([key for text in sort for key in split_names(text)]):
        name = key.removeprefix("-")
        find_name(name, names, where=f"argument `--sort {key}`", of="--sort")
        rows = sort_rows(rows, name, reverse=key.startswith("-"))
    return RunList(rows, tables, filters, [*given] if folders else [], list(dict.fromkeys(shown)))


def split_words(words: Sequence[str]) -> tuple[list[list[Path]], list[str]]:
    """Split words into folders, of jobs several at once, and filters. Raises ConfigError."""
    folders, filters = [], []
    for word in words:
        if is_folder(word):
            folders.append([Path(word)])
        elif ":" in word and not any(sign in word for sign in "=<>~'\" "):
            folders.append(list(find_address(word, JOB_ALONE).runs))
        elif folder := find_named_folder(word):
            folders.append([folder])
        else:
            filters.append(word)
    return folders, filters


def is_folder(word: str) -> bool:
    """Return whether a word is the path of a folder; a filter may be longer than a path can be."""
    try:
        return Path(word).is_dir()
    except OSError:
        return False


def parse_words_as_filter(text: str, names: set[str] | None) -> Test:
    """Parse a filter; refuse a word that is neither a folder nor a name. Raises ConfigError."""
    is_path = "/" in text and not any(sign in text for sign in "=<>~'\"() ")
    if is_path and names is not None and text not in names:
        rule = "is neither a folder nor a name that a run has"
        where, remedy = f"argument `{text}`", "`python -m runner ls` lists the runs"
        raise ConfigError([Mistake(text, rule, where=where, remedy=remedy, kind="file")])
    return parse_filter(text, names)


def split_names(text: str) -> list[str]:
    """Split names at commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def is_below(folder: Path, given: Sequence[Path]) -> bool:
    """Return whether a run directory is one of the folders, or lies below one."""
    return any(folder == one or one in folder.parents for one in given) or any(
        folder.resolve().is_relative_to(one.resolve()) for one in given
    )


def sort_rows(rows: list[RunRow], name: str, *, reverse: bool) -> list[RunRow]:
    """Sort by a value, numbers before texts; runs without the value come last."""
    known = [(row, value) for row in rows if not is_missing(value := row.get(name))]
    missing = [row for row in rows if is_missing(row.get(name))]
    numbers = [pair for pair in known if isinstance(pair[1], int | float)]
    others = [(row, str(value)) for row, value in known if not isinstance(value, int | float)]
    get: Callable[[tuple[RunRow, Any]], Any] = lambda pair: pair[1]  # noqa: E731  the second of a pair
    ordered = [row for row, _ in sorted(numbers, key=get, reverse=reverse)]
    return [*ordered, *(row for row, _ in sorted(others, key=get, reverse=reverse)), *missing]


def is_missing(value: Any) -> bool:
    """Return whether a value cannot be sorted: null, or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))
