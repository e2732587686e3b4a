"""Delimited text (CSV, TSV) as spreadsheets and other programs write it: a header, and rows with their line numbers."""

import codecs
import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

ENDINGS = (".csv", ".tsv", ".tab", ".txt")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SNIFFED = 50  # rows from which the separator is told
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
NO_TEXT = {
    b"PK\x03\x04": "a workbook or another zip archive: save it as CSV",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"\xd0\xcf\x11\xe0": "a workbook of an old Excel: save it as CSV",
    b"PAR1": "Parquet: name it .parquet",
}
Row = tuple[int, list[str]]


class Delimited:
    """A header and rows of text, read as they are asked for.

    The encoding is that of a byte order mark, else UTF-8, else Windows-1252; the separator is the one by which the
    first rows have the fields of the header. Blank rows are left out, and so are lines of comment (`#`).

    Attributes:
        names: the header, without blanks around the names.
        separator: between fields.
        comments: lines before the header.

    Raises:
        ValueError: the file is no text, or has no header.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.encoding = path, encoding_of(path)
        with self._open() as file:
            said, self.comments, first = _preamble(file)
            lines = [first, *islice(file, SNIFFED)] if first else []
        self.separator = said or separator_of(lines)
        self.names = [name.strip() for name in next(self._reader(lines), [])]
        if not any(self.names):
            raise ValueError(f"{path} is empty: a table has a header and rows")
        self.titled = self._title()

    def rows(self) -> Iterator[Row]:
        """The rows below the header, each with its line.

        Raises:
            ValueError: a row has more or fewer fields than the header, or quotes are not closed.
        """
        with self._open() as file:
            for _ in islice(file, self.comments):
                pass
            reader, before = self._reader(file), self.comments
            if not self.titled:  # else the header is the last of the comments
                next(reader)
            width = len(self.names)
            while True:
                try:
                    row = next(reader, None)
                except csv.Error as error:
                    raise ValueError(f"{self.path}:{before + reader.line_num} cannot be read: {error}") from error
                if row is None:
                    return
                if not any(map(str.strip, row)) or (row[0].startswith("#") and len(row) != width):
                    continue
                if len(row) != width:
                    raise ValueError(self._ragged(before + reader.line_num, row))
                yield before + reader.line_num, row

    def _open(self) -> TextIO:
        return self.path.open(newline="", encoding=self.encoding)

    def _reader(self, lines: Iterable[str]) -> Any:
        return csv.reader(lines, delimiter=self.separator, skipinitialspace=self.separator != "\t")

    def _title(self) -> bool:
        """Whether the header is the last line of comment, as NumPy writes it: the line after it is numbers already."""
        if not self.comments or not any(map(is_number, self.names)):
            return False
        with self._open() as file:
            last = list(islice(file, self.comments))[-1].lstrip("#").strip()
        names = [name.strip() for name in next(self._reader([last]), [])]
        if len(names) != len(self.names) or any(map(is_number, names)):
            return False
        self.names = names
        return True

    def _ragged(self, line: int, row: Sequence[str]) -> str:
        said = f"{self.path}:{line} has {len(row)} fields, the header {len(self.names)}"
        if self.separator == "," and len(row) > len(self.names):
            said += " (a comma within a field needs quotes around it, or semicolons between the fields)"
        return said


def is_number(text: str) -> bool:
    """Whether a cell is a number, written with a decimal point or comma."""
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True


def encoding_of(path: Path) -> str:
    """The encoding of a text file.

    Raises:
        ValueError: it is no text.
    """
    with path.open("rb") as file:
        head = file.read(4096)
        for magic, what in NO_TEXT.items():
            if head.startswith(magic):
                raise ValueError(f"{path} is no text but {what}")
        for mark, encoding in MARKS.items():
            if head.startswith(mark):
                return encoding
        if b"\0" in head:  # of ASCII in UTF-16 every second byte is 0
            zeros = [head[start::2].count(0) for start in (0, 1)]
            if max(zeros) < len(head) // 4:
                raise ValueError(f"{path} is no text: it has bytes that are 0")
            return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            decoder.decode(head)
            while block := file.read(2**20):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "cp1252" if _fits(path, "cp1252") else "latin-1"
    return "utf-8"


def _fits(path: Path, encoding: str) -> bool:
    try:
        with path.open(encoding=encoding, newline="") as file:
            while file.read(2**20):
                pass
    except UnicodeDecodeError:
        return False
    return True


def _preamble(file: TextIO) -> tuple[str, int, str]:
    """The separator that Excel's `sep=` names, the number of lines before the header, and the header's line."""
    separator, count = "", 0
    for line in file:
        named = re.fullmatch(r'"?sep=(.)"?\s*', line, re.IGNORECASE)
        if named is None and line.strip(" \t\r\n,;|") and not line.startswith("#"):
            return separator, count, line
        separator = named[1] if named else separator
        count += 1
    return separator, count, ""


def separator_of(lines: Sequence[str]) -> str:
    """The separator by which the first lines have equally many fields, several, and the most of these."""
    best, most = ",", (False, 1)
    for separator in SEPARATORS:
        try:
            rows = [row for row in csv.reader(lines, delimiter=separator) if any(map(str.strip, row))]
        except csv.Error:
            continue
        rows = [row for row in rows if not row[0].startswith("#")] or rows
        if not rows or len(rows[0]) < 2:
            continue
        found = (all(len(row) == len(rows[0]) for row in rows), len(rows[0]))
        if found > most:
            best, most = separator, found
    return best
