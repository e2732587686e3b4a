"""Places and comments of the schema's fields, read from its source files."""

import ast
import io
import tokenize
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from runner.config import schema


@dataclass(frozen=True)
class FieldNote:
    """Place (`schema/train.py:112`) and comment of a field of the schema; the comment may be empty."""

    where: str
    comment: str


@cache
def read_field_notes() -> dict[tuple[str, str], FieldNote]:
    """Map (class, field) to the place and the comment in the schema."""
    folder = Path(schema.__file__).parent
    notes: dict[tuple[str, str], FieldNote] = {}
    for file in sorted(folder.glob("*.py")):
        notes |= _read_file(file, f"{folder.name}/{file.name}")
    return notes


def _read_file(file: Path, shown: str) -> dict[tuple[str, str], FieldNote]:
    text = file.read_text(encoding="utf-8")
    comments: dict[int, tuple[str, bool]] = {}  # line → text, and whether it stands alone
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# "), not token.line[: token.start[1]].strip()
    notes = {}
    for owner in ast.parse(text).body:
        for statement in owner.body if isinstance(owner, ast.ClassDef) else ():
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                first, last = statement.lineno, statement.end_lineno or statement.lineno
                above = first
                while comments.get(above - 1, ("", False))[1]:
                    above -= 1
                said = [comments[line][0] for line in range(above, last + 1) if line in comments]
                key = str(getattr(owner, "name", "")), statement.target.id
                notes[key] = FieldNote(f"{shown}:{first}", " ".join(said))
    return notes
