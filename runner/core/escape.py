"""Text of strangers for a terminal, a line, a cell of a CSV, a shell: what would be obeyed is spelt out."""

import re
import shlex
from collections.abc import Iterable

CELL = 32_000  # characters of a CSV's cell: spreadsheets take 32,767


# C0 but tab and line feed, DEL, C1, line separators, marks that turn the direction of writing, lone surrogates.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def printable(text: object) -> str:
    r"""Spell out every control character of a text but tabs and line feeds: ESC becomes `\x1b`."""
    said = text if isinstance(text, str) else str(text)
    if said.isascii() and said.isprintable():  # nearly always
        return said
    return _OBEYED.sub(_spelt, said)


def one_line(text: object) -> str:
    """Spell out tabs and line feeds too, so that a text cannot begin a line of its own."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def strict_json(text: str) -> str:
    """Spell out control characters that JSON allows in its strings."""
    return text if text.isascii() and "\x7f" not in text else _OBEYED.sub(lambda c: f"\\u{ord(c[0]):04x}", text)


def _spelt(character: re.Match[str]) -> str:
    number = ord(character[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def csv_cell(text: str) -> str:
    """Keep a text from being a formula of a spreadsheet, and within the length that it takes."""
    said = printable(text)
    said = said if len(said) <= CELL else said[: CELL - 1] + "…"
    return f"'{said}" if said.startswith(_FORMULA) and not _NUMBER.fullmatch(said) else said


def shell_word(text: str) -> str:
    """Quote one word for a POSIX shell; control characters are written as `$'…'`."""
    if printable(text) == text and "\n" not in text and "\t" not in text:
        return shlex.quote(text)
    quoted = text.encode("utf-8", "surrogateescape" if _only_escaped(text) else "replace").decode("latin-1")
    return "$'" + "".join(_ansi(c) for c in quoted) + "'"


def _only_escaped(text: str) -> bool:
    return not any("\ud800" <= c < "\udc80" or "\udcff" < c <= "\udfff" for c in text)


def _ansi(character: str) -> str:
    if character in "'\\":
        return f"\\{character}"
    return character if " " <= character <= "~" else f"\\x{ord(character):02x}"


def shell_line(words: Iterable[str]) -> str:
    """Join words to a line that a shell reads as these words."""
    return " ".join(map(shell_word, words))
