"""Measured mixtures of two configs: a mean each, one noise for all, intervals and significance."""

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

from runner.sweep.report.student_t import compute_quantile

CONFIDENCE = 0.95


Mixture = frozenset[int]  # the settings that are taken from B; all others are those of A


@dataclass(frozen=True)
class RunRequest:
    """Run to be done: a mixture, and which of its replicates."""

    mixture: Mixture
    replicate: int


@dataclass(frozen=True)
class Effect:
    """DifferingSetting of two means, and half the width of its 95% interval (NaN without replicates)."""

    value: float
    half: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval holds 0."""
        return not abs(self.value) > self.half

    def as_json(self) -> dict[str, float | list[float]]:
        """Return plain data for `--json`."""
        return {"value": self.value, "interval": [self.value - self.half, self.value + self.half]}


@dataclass
class Measured:
    """Values of the metric by mixture and replicate; None where a mixture has none.

    A mixture that cannot be built, or whose run fails, is unresolved: its values are None.
    """

    values: dict[Mixture, dict[int, float | None]] = field(default_factory=dict)

    def add(self, request: RunRequest, value: float | None) -> None:
        """Add what became of a run."""
        self.values.setdefault(request.mixture, {})[request.replicate] = value

    def get_numbers(self, mixture: Mixture) -> list[float]:
        """Return the values of a mixture that has some."""
        return [value for value in self.values.get(mixture, {}).values() if value is not None]

    def is_unresolved(self, mixture: Mixture) -> bool:
        """Return whether a mixture was tried and has no value."""
        return bool(self.values.get(mixture)) and not self.get_numbers(mixture)

    def compute_mean(self, mixture: Mixture) -> float:
        """Return the mean of a mixture with values."""
        return statistics.fmean(self.get_numbers(mixture))

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the noise: replicates beyond the first of each mixture."""
        return sum(max(0, len(self.get_numbers(mixture)) - 1) for mixture in self.values)

    @property
    def noise(self) -> float:
        """Standard deviation of one run, pooled over all mixtures with replicates; NaN without any."""
        squares = [
            (value - self.compute_mean(mixture)) ** 2
            for mixture in self.values
            if len(self.get_numbers(mixture)) > 1
            for value in self.get_numbers(mixture)
        ]
        return math.sqrt(math.fsum(squares) / self.freedom) if self.freedom else math.nan

    def compute_half(self, *mixtures: Mixture) -> float:
        """Compute half the 95% interval of a sum or difference of means: t(0.975) * noise * sqrt(sum of 1/n)."""
        if not self.freedom:
            return math.nan
        scale = math.sqrt(math.fsum(1 / len(self.get_numbers(mixture)) for mixture in mixtures))
        return self.compute_quantile((1 + CONFIDENCE) / 2) * self.noise * scale

    def compute_quantile(self, probability: float) -> float:
        """Compute a quantile of Student's t with the noise's degrees of freedom."""
        return compute_quantile(probability, self.freedom)

    def compare(self, low: Mixture, high: Mixture) -> Effect:
        """Return what taking the settings of `high` instead of those of `low` changes."""
        return Effect(self.compute_mean(high) - self.compute_mean(low), self.compute_half(low, high))

    def list_next(self, mixture: Mixture, count: int) -> Iterator[RunRequest]:
        """Yield the requests that a mixture still needs to have `count` replicates."""
        known = self.values.get(mixture, {})
        for replicate in range(count):
            if replicate not in known:
                yield RunRequest(mixture, replicate)
