"""Answers that the jobs of a stack share."""

from itertools import count

import pytest

from runner.core.shared_answers import ask_once, is_known, share_answers


def test_a_question_is_asked_once_inside_and_each_time_outside() -> None:
    """Nothing is remembered before, after, or from one scope to the next."""
    numbers = count()

    def ask() -> int:
        return ask_once("number", lambda: next(numbers))

    before = [ask(), ask()]
    with share_answers():
        inside = [is_known("number"), ask(), ask(), is_known("number"), is_known("other")]
    with share_answers():
        again = ask()

    assert ([0, 1], [False, 2, 2, True, False], 3, 4) == (before, inside, again, ask())


def test_an_error_is_no_answer() -> None:
    """What could not be said is asked again."""
    with share_answers():
        with pytest.raises(ZeroDivisionError):
            ask_once("number", lambda: 1 // 0)
        assert ask_once("number", lambda: 1) == 1
