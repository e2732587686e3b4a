"""Answers shared by the jobs of a stack, which are opened within a second and ask the same questions."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Answer = TypeVar("Answer")

_OPEN: list[dict[Hashable, Any]] = []  # the answers of each scope, the innermost last


@contextmanager
def share_answers() -> Iterator[None]:
    """Remember the answers of `ask_once` until the end of the `with` block."""
    _OPEN.append({})
    try:
        yield
    finally:
        _OPEN.pop()


def is_known(question: Hashable) -> bool:
    """Return whether `ask_once` has an answer already."""
    return bool(_OPEN) and question in _OPEN[-1]


def ask_once(question: Hashable, ask: Callable[[], Answer]) -> Answer:
    """Return the answer to a question; inside of `share_answers` it is asked once. Errors are not kept."""
    if not _OPEN:
        return ask()
    answers = _OPEN[-1]
    if question not in answers:
        answers[question] = ask()
    answer: Answer = answers[question]
    return answer
