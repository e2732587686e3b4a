"""Interval of a mean of replicates (Student's t), and difference of two means (Welch's test)."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from runner.sweep.report.student_t import compute_cdf, compute_quantile

CONFIDENCE = 0.95


ALPHA = 1 - CONFIDENCE


SAID = "Welch's t-test against the best, two-sided, p >= 0.05 (B. L. Welch, Biometrika 34, 1947, 28-35), one by one"


@dataclass(frozen=True)
class Mean:
    """Mean of `n` numbers and their sample standard deviation (n - 1), NaN for a single number."""

    n: int
    value: float
    std: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> "Mean":
        """Compute the mean of at least one number."""
        std = statistics.stdev(numbers) if len(numbers) > 1 else math.nan
        return cls(len(numbers), statistics.fmean(numbers), std)

    @property
    def half(self) -> float:
        """Half the width of the 95% interval of the mean, for normal noise: t(0.975, n - 1) * std / sqrt(n).

        Student, "The probable error of a mean", Biometrika 6 (1908), 1-25. NaN of one number.
        """
        if self.n < 2:
            return math.nan
        return compute_quantile(1 - ALPHA / 2, self.n - 1) * self.std / math.sqrt(self.n)


def compute_welch_p(a: Mean, b: Mean) -> float | None:
    """Compute the two-sided p-value of Welch's t-test that two means have the same expectation.

    Degrees of freedom after Welch and Satterthwaite. None where one of them is of a single number: nothing is known
    about its noise. Two without any noise are the same (1) or are not (0).
    """
    if a.n < 2 or b.n < 2:
        return None
    scale = max(a.std, b.std)
    if scale == 0:
        return float(a.value == b.value)
    va, vb = (a.std / scale) ** 2 / a.n, (b.std / scale) ** 2 / b.n  # a diverged loss of 1e200 has a square too
    freedom = (va + vb) ** 2 / (va**2 / (a.n - 1) + vb**2 / (b.n - 1))
    return 2 * compute_cdf(-abs(a.value / scale - b.value / scale) / math.sqrt(va + vb), freedom)
