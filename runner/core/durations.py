"""Durations and rhythms: `5ep` (epochs) and `500st` (optimizer steps), converted to steps once."""

import math
import re
from dataclasses import dataclass
from functools import lru_cache

TIME = r"(?=.)(\d+d)?(\d+h)?(\d+m)?(\d+s)?"  # `1h30m`


_DURATION = re.compile(r"(\d+(?:\.\d+)?)ep|(\d+)st")


@dataclass(frozen=True)
class Duration:
    """Span of training in epochs or in optimizer steps."""

    amount: float
    unit: str  # "ep" or "st"

    @classmethod
    def parse(cls, text: str) -> "Duration":
        """Read `5ep`, `9.9ep` or `500st`.

        Raises:
            ValueError: the text is none of these.
        """
        match = _DURATION.fullmatch(text)
        if match is None:
            message = f"must be epochs (`5ep`, `0.5ep`) or optimizer steps (`500st`), but is {text!r}"
            raise ValueError(message)
        epochs, steps = match.groups()
        return cls(float(epochs), "ep") if steps is None else cls(int(steps), "st")

    def steps(self, steps_per_epoch: int) -> int:
        """Return the span in optimizer steps, rounded to the nearest."""
        return int(self.amount) if self.unit == "st" else round(self.amount * steps_per_epoch)

    def reaches(self, other: "Duration", steps_per_epoch: int | None = None) -> bool:
        """Return whether the span is at least `other`; False where only the epoch length would tell."""
        if self.unit == other.unit:
            return self.amount >= other.amount
        return steps_per_epoch is not None and self.steps(steps_per_epoch) >= other.steps(steps_per_epoch)

    def epochs(self, steps_per_epoch: int) -> int:
        """Return the span in whole epochs, rounded up: an epoch that is cut short counts."""
        return math.ceil(self.amount if self.unit == "ep" else self.amount / steps_per_epoch)


def is_duration(value: object) -> bool:
    """Return whether a value is written as a duration."""
    return isinstance(value, str) and _DURATION.fullmatch(value) is not None


def parse_seconds(text: str) -> int:
    """Parse `1h30m` (days, hours, minutes, seconds, in this order) to seconds."""
    units = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([dhms])", text))


@lru_cache(1024)  # the jobs of a stack ask the same questions, each run several times at a pause
def compute_next_due(every: Duration | None, step: int, steps_per_epoch: int) -> int | None:
    """Return the first step after `step` at which a rhythm is due; None where it never is.

    The k-th time is round(k * every), so that `0.3ep` does not drift. Raises ValueError for a rhythm of 0.
    """
    if every is None:
        return None
    period = every.amount * (steps_per_epoch if every.unit == "ep" else 1)
    if period <= 0:
        message = "a rhythm must be longer than 0"
        raise ValueError(message)
    count = max(1, math.floor(step / period))
    while (due := max(1, round(count * period))) <= step:
        count += 1
    return due
