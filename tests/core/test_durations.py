"""Durations and rhythms."""

import pytest

from runner.core.durations import Duration, compute_next_due, is_duration


@pytest.mark.parametrize(
    ("text", "steps"),
    [("5ep", 50), ("0.5ep", 5), ("9.9ep", 99), ("500st", 500), ("0st", 0), ("0ep", 0), ("0.04ep", 0)],
)
def test_duration_in_steps(text: str, steps: int) -> None:
    """Epochs count ten steps here; steps are steps."""
    assert steps == Duration.parse(text).steps(10)


@pytest.mark.parametrize("text", ["5", "ep", "5 ep", "-1ep", "1.5st", "5epochs", "", "٣ep!"])
def test_no_duration(text: str) -> None:
    """Anything else is refused."""
    assert not is_duration(text)
    with pytest.raises(ValueError, match="epochs"):
        Duration.parse(text)


def test_rhythm_does_not_drift() -> None:
    """Every 0.3 epochs of ten steps is due at 3, 6, 9, 12, …; every 0.25 of ten at the nearest steps."""
    due, found = 0, []
    while due < 30:
        due = compute_next_due(Duration.parse("0.25ep"), due, 10) or 0
        found.append(due)

    assert [2, 5, 8, 10, 12, 15, 18, 20, 22, 25, 28, 30] == found


def test_rhythm_from_anywhere() -> None:
    """What is due next does not depend on where one asks from."""
    every = Duration.parse("7st")

    assert [compute_next_due(every, step, 10) for step in (0, 1, 6, 7, 13, 14)] == [7, 7, 7, 14, 14, 21]
    assert compute_next_due(None, 3, 10) is None
    with pytest.raises(ValueError, match="longer than 0"):
        compute_next_due(Duration.parse("0st"), 0, 10)
