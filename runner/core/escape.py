"""Escape untrusted text for a terminal, a line, a CSV cell or a shell."""

import re
import shlex
from collections.abc import Iterable

LONGEST_NAME = 100  # characters of a class in pictures, tables and tags: a cell of a table may be a name


CELL = 32_000  # characters of a CSV's cell: spreadsheets take 32,767


# C0 but tab and line feed, DEL, C1, line separators, marks that turn the direction of writing, lone surrogates.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def make_printable(text: object) -> str:
    r"""Spell out every control character of a text but tabs and line feeds: ESC becomes `\x1b`."""
    said = text if isinstance(text, str) else str(text)
    if said.isascii() and said.isprintable():  # nearly always
        return said
    return _OBEYED.sub(_spell_out, said)


def escape_line(text: object) -> str:
    """Escape control characters, tabs and line feeds, so that a text stays on one line."""
    return make_printable(text).replace("\n", "\\n").replace("\t", "\\t")


def cut_name(text: object) -> str:
    """Escape a name from a file of data, such as a class's, and cut it to LONGEST_NAME characters."""
    said = escape_line(text)
    return said if len(said) <= LONGEST_NAME else said[: LONGEST_NAME - 1] + "…"


def escape_json(text: str) -> str:
    """Escape control characters that JSON allows in its strings."""
    return text if text.isascii() and "\x7f" not in text else _OBEYED.sub(lambda c: f"\\u{ord(c[0]):04x}", text)


def _spell_out(character: re.Match[str]) -> str:
    number = ord(character[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def escape_csv_cell(text: str) -> str:
    """Escape a text for a CSV cell: no spreadsheet formula, at most CELL characters."""
    said = make_printable(text)
    said = said if len(said) <= CELL else said[: CELL - 1] + "…"
    return f"'{said}" if said.startswith(_FORMULA) and not _NUMBER.fullmatch(said) else said


def quote_shell_word(text: str) -> str:
    """Quote one word for a POSIX shell; control characters are written as `$'…'`."""
    if make_printable(text) == text and "\n" not in text and "\t" not in text:
        return shlex.quote(text)
    quoted = text.encode("utf-8", "surrogateescape" if _has_only_escaped(text) else "replace").decode("latin-1")
    return "$'" + "".join(_escape_ansi(c) for c in quoted) + "'"


def _has_only_escaped(text: str) -> bool:
    return not any("\ud800" <= c < "\udc80" or "\udcff" < c <= "\udfff" for c in text)


def _escape_ansi(character: str) -> str:
    if character in "'\\":
        return f"\\{character}"
    return character if " " <= character <= "~" else f"\\x{ord(character):02x}"


def join_shell_words(words: Iterable[str]) -> str:
    """Join words to a line that a shell splits into the same words."""
    return " ".join(map(quote_shell_word, words))
