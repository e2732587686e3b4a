"""`python -m runner check --fix [-m] [--json] [overrides]`: correct what is sure, then check again.

Files of the project are changed in their text; of a command line the corrected one is printed. What is a guess, and
what stands in a file that is not the project's own, is left to you.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from runner.config.compose import compose
from runner.config.composed import Composed
from runner.config.editor.corrections import (
    CorrectedFile,
    Correction,
    correct_argument,
    find_sure_name,
    split_place,
)
from runner.core.errors import ConfigError, Mistake

MOST_ROUNDS = 8  # a correction may uncover further mistakes; each round corrects at least one


@dataclass
class Fixes:
    """Corrections that were made, and mistakes that are left.

    Attributes:
        corrections: in the order in which they were made.
        diff: of all files, as `diff -u` writes it.
        words: the command line's arguments, corrected.
        refused: why a sure correction was not made: the place and the reason.
        left: mistakes that are left.
    """

    words: list[str]
    corrections: list[Correction] = field(default_factory=list)
    diff: str = ""
    refused: list[str] = field(default_factory=list)
    left: list[Mistake] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """Return plain data for `--json`."""
        return {"fixed": [asdict(one) for one in self.corrections], "diff": self.diff, "refused": self.refused}


def fix(words: Sequence[str], trust: Sequence[str], check: Callable[[Sequence[str]], list[Mistake]]) -> Fixes:
    """Correct what is sure until nothing is, and return what was done.

    Args:
        words: the command line's arguments.
        trust: patterns of trusted names.
        check: returns the mistakes of a command line.
    """
    made = Fixes(list(words))
    for _ in range(MOST_ROUNDS):
        made.left = check(made.words)
        before = len(made.corrections)
        if made.left:
            _correct(made, trust)
        if len(made.corrections) == before:
            break
    return made


def _correct(made: Fixes, trust: Sequence[str]) -> None:
    composed = _try_to_compose(made.words)
    files: dict[str, CorrectedFile | None] = {}
    for mistake in made.left:
        right = find_sure_name(mistake, composed, trust)
        if right and (place := split_place(mistake.where)) is not None:
            _correct_file(made, files, place, mistake, right)
        elif right and (changed := correct_argument(made.words, mistake, right)) is not None:
            made.corrections.append(Correction(mistake.key, mistake.where, *_find_changed(made.words, changed)))
            made.words = changed
    for file in files.values():
        if file is not None and file.corrections:
            diff = file.format_diff()
            try:
                file.write()
            except OSError as error:
                made.refused.append(f"{file.path}: {error}")
                continue
            made.corrections += file.corrections
            made.diff += diff


def _correct_file(
    made: Fixes, files: dict[str, CorrectedFile | None], place: tuple[Path, int], mistake: Mistake, right: str
) -> None:
    path, line = place
    if str(path) not in files:
        try:
            files[str(path)] = CorrectedFile(path)
        except (OSError, ValueError) as error:
            files[str(path)] = None
            made.refused.append(f"{path}: {error}")
    file = files[str(path)]
    if file is not None and file.text.count("\n") == file.before.count("\n"):  # its lines are as they were checked
        file.correct(mistake, line, right)


def _try_to_compose(words: Sequence[str]) -> Composed | None:
    try:
        return compose(words)
    except ConfigError:
        return None


def _find_changed(before: Sequence[str], after: Sequence[str]) -> tuple[str, str]:
    start = next(i for i, word in enumerate(after) if i >= len(before) or before[i] != word)
    end = len(before) - (len(after) - start - 1)
    return " ".join(before[start:end]), after[start]
