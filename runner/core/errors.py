"""Errors by cause: the user's request (exit status 2), or what only data or a device can show (1)."""

import errno
import os
import sysconfig
import traceback
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal

from runner.core.escape import make_printable
from runner.core.paths import PACKAGE


class _Absent(Enum):
    ABSENT = "absent"


ABSENT: Final = _Absent.ABSENT  # a mistake about something that has no value


Kind = Literal[
    "unknown-key",
    "unknown-argument",
    "unknown-option",
    "unknown-target",
    "untrusted",
    "missing",
    "type",
    "value",
    "slot",
    "conflict",
    "no-effect",
    "no-match",
    "syntax",
    "composition",
    "interpolation",
    "file",
    "record",
    "refused",
    "unavailable",
]


KINDS: Final[dict[Kind, str]] = {  # programs read these codes (`--json`): a code that was released keeps its meaning
    "unknown-key": "the runner knows no such key",
    "unknown-argument": "the component takes no such argument",
    "unknown-option": "there is no such verb, `--option`, config group or option of a group",
    "unknown-target": "a `_target_` names nothing that can be imported",
    "untrusted": "a name that is imported only with `--trust`",
    "missing": "a key, argument or value must be given",
    "type": "the value has the wrong type: a text instead of a number",
    "value": "the value is of the right type, but out of range or no choice",
    "slot": "the component is of another kind than its key takes",
    "conflict": "two keys contradict each other",
    "no-effect": "the setting changes nothing as long as another one stays as it is",
    "no-match": "a pattern or name matches nothing in the model, the sample or the file of weights",
    "syntax": "a file, an argument or a pattern cannot be read",
    "composition": "Hydra cannot compose the files or apply the argument",
    "interpolation": "a `${…}` cannot be followed",
    "file": "a file or folder is missing, unreadable, or in the way",
    "record": "it differs from what the run or the sweep was recorded with",
    "refused": "the component, or the model, refused it when it was tried",
    "unavailable": "a device, a package or a feature that is not here",
}


@dataclass(frozen=True)
class Mistake:
    """One mistake in a report.

    Attributes:
        key: the full key, `train.duration`.
        rule: what must hold, in words: `must be at least 1`.
        value: what it is; `ABSENT` where there is nothing.
        where: `conf/experiment/mine.yaml:7`, ``argument `train.epocs=3` ``, `schema/train.py:112`; more in brackets.
        remedy: what to do: ``did you mean `train.duration`?`` or the lines to paste.
        suggestion: the nearest right name or value alone, for programs; empty where there is none.
        kind: code of the rule, for programs: one of `KINDS`.
    """

    key: str
    rule: str
    value: object = ABSENT
    where: str = ""
    remedy: str = ""
    suggestion: str = ""
    kind: Kind = "value"

    def __str__(self) -> str:
        value = "" if self.value is ABSENT else f", but is {as_text(self.value)}"
        where = f": {self.where}" if self.where else ""
        remedy = f"\n{self.remedy}" if self.remedy else ""
        return make_printable(f"{self.key} {self.rule}{value}{where}{remedy}").replace("\n", "\n   ")

    def as_json(self) -> dict[str, Any]:
        """Return plain data for `--json`; a missing value is left out."""
        plain = asdict(self)
        if self.value is ABSENT:
            del plain["value"]
        elif not isinstance(self.value, str | int | float | bool | list | dict | None):
            plain["value"] = str(self.value)
        return plain


def as_text(value: object, limit: int = 120) -> str:
    """Format a value as YAML would, cut to `limit` characters."""
    text = {None: "null", True: "true", False: "false"}.get(value) if isinstance(value, bool | None) else None
    text = text or repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def format_mistakes(mistakes: list[Mistake], start: int = 1) -> str:
    """Format the numbered lines of a report, without its count."""
    return "\n".join(f"{number}. {mistake}" for number, mistake in enumerate(mistakes, start))


def format_count(count: int) -> str:
    """Format the last line of a report: the number of mistakes."""
    return f"{count} mistake{'s' * (count != 1)}."


class ConfigError(ValueError):
    """Error in the request or the config; nothing was created. Exit status 2.

    `str()` is the numbered report with one count at its end.
    """

    def __init__(self, mistakes: list[Mistake]) -> None:
        self.mistakes = mistakes
        super().__init__(f"{format_mistakes(mistakes)}\n{format_count(len(mistakes))}")


def find_own_line(error: BaseException) -> str:
    """Return `file:line` of the last user code in an error's traceback; empty where there is none.

    It is relative to the working directory where it lies below that. Installed packages, the standard library and this
    package are not the user's own.
    """
    others = (f"{PACKAGE}{os.sep}", f"{sysconfig.get_path('stdlib')}{os.sep}", "<")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(others) and "site-packages" not in frame.filename:
            return f"{frame.filename.removeprefix(f'{Path.cwd()}{os.sep}')}:{frame.lineno}"
    return ""


def describe_error(error: BaseException) -> str:
    """Format an error and the line of user code in its traceback: `KeyError: 'x' (dsets.py:12)`."""
    line = find_own_line(error)
    return f"{type(error).__name__}: {error}{f' ({line})' * bool(line)}"


class RunError(RuntimeError):
    """Error that only a download, the data or a device can show, in one paragraph. Exit status 1."""


def explain_os_error(error: OSError) -> str:
    """Explain which file the system refused, why, and how to resolve it."""
    path = None if error.filename is None else Path(os.fsdecode(error.filename))
    why = error.strerror or str(error)
    if path is None:
        return f"the system refuses a file: {why}"
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ELOOP):
        for place in (*reversed(path.parents), path):
            if place.is_symlink() and not place.exists():
                target = place.readlink()
                return f"{place} is a link to {target}, which is not there: mount or make that, or {ELSEWHERE}"
            if place.exists() and not place.is_dir() and (place != path or error.errno == errno.EEXIST):
                return f"{place} is a file where a folder must be ({why}): rename it, or {ELSEWHERE}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path} cannot be written ({why}): make room, or {ELSEWHERE}"
    if error.errno == errno.EROFS or (error.errno in (errno.EACCES, errno.EPERM) and not path.exists()):
        return f"{path} cannot be made or written ({why}): get the right to, or {ELSEWHERE}"
    if error.errno in (errno.EACCES, errno.EPERM):
        if not os.access(path, os.R_OK):
            return f"{path} cannot be read ({why}): get the right to read it (`chmod u+r`, or ask its owner)"
        return f"{path} cannot be written ({why}): get the right to, or {ELSEWHERE}"
    return f"{path} cannot be used ({why})"


ELSEWHERE = "use another working directory, or for one run a folder elsewhere (`run=DIR`)"
