"""Docstrings: the first sentence, and the text of each argument, in Google's and in NumPy's style."""

import itertools
import re
from collections.abc import Sequence

LONGEST = 300  # characters of a text that an editor shows

_SECTION = re.compile(r"^(Args|Arguments|Parameters|Attributes|Keyword Args|Keyword Arguments):?$")
_ARGUMENT = re.compile(
    r"^\*{0,2}`{0,2}(?P<names>\w+(?:,\s*\w+)*)`{0,2}\s*(?:\((?:[^()]|\([^()]*\))*\))?\s*:\s*(?P<text>.*)$"
)
_NUMPY = re.compile(r"^(?P<names>\w+(?:,\s*\w+)*)\s*(?::.*)?$")


def read_summary(docstring: str | None) -> str:
    """Return the first paragraph of a docstring on one line, shortened; empty without one."""
    lines = (docstring or "").strip().splitlines()
    first: list[str] = []
    for line in lines:
        if not line.strip() and first:
            break
        first.append(line.strip())
    return trim_text(" ".join(first))


def read_arguments(docstring: str | None) -> dict[str, str]:
    """Map the arguments that a docstring describes to their text."""
    lines = (docstring or "").expandtabs().splitlines()
    found: dict[str, str] = {}
    for index, line in enumerate(lines):
        if _SECTION.match(line.strip()):
            underlined = index + 1 < len(lines) and re.fullmatch(r"\s*-{3,}\s*", lines[index + 1])
            body = lines[index + 1 + bool(underlined) :]
            indent = len(line) - len(line.lstrip())
            for name, text in _read_section(body, indent, numpy=bool(underlined)).items():
                found.setdefault(name, text)
    return found


def _read_section(lines: Sequence[str], outer: int, *, numpy: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    base: int | None = None
    names: list[str] = []
    for line, after in itertools.pairwise([*lines, ""]):
        text = line.strip()
        if not text:
            continue
        if numpy and re.fullmatch(r"\s*-{3,}\s*", after):
            break
        indent = len(line) - len(line.lstrip())
        if (indent < outer or (indent == outer and not numpy)) or (base is not None and indent < base):
            break
        base = indent if base is None else base
        match = (_NUMPY if numpy else _ARGUMENT).match(text) if indent == base else None
        if match:
            names = re.split(r",\s*", match["names"])
            said = "" if numpy else match["text"]
            for name in names:
                found[name] = said
        elif numpy and indent == base:
            break
        else:
            for name in names:
                found[name] = f"{found[name]} {text}".strip()
    return {name: trim_text(text) for name, text in found.items()}


def trim_text(text: str) -> str:
    """Return a text without reStructuredText's roles, at most `LONGEST` characters long."""
    text = re.sub(r":\w+(?::\w+)*:`~?\.?([^`<]*?)(?:\s*<[^`>]*>)?`", r"`\1`", text).replace("``", "`")
    text = re.sub(r"\s+", " ", text).strip()
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rsplit(" ", 1)[0] + "…"
