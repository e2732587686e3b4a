"""Comparison of two groups of numbers by t-tests: difference, interval, p value."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from runner.sweep.report.significance import CONFIDENCE, Mean
from runner.sweep.report.student_t import compute_cdf, compute_noncentral_sf, compute_quantile

POWER = 0.8  # with which a difference of the size that was seen is to be shown


MOST_NEEDED = 100_000  # numbers a group; more are as good as none


TESTS = {
    "paired": "paired t-test, two-sided (Student, Biometrika 6, 1908, 1-25)",
    "welch": "Welch's t-test, two-sided (B. L. Welch, Biometrika 34, 1947, 28-35)",
}


@dataclass(frozen=True)
class Comparison:
    """Comparison of the means of A and B.

    Attributes:
        test: `paired`: over the differences of pairs; `welch`: of two groups, whose noise may differ.
        a: mean of A; of pairs over their first numbers.
        b: mean of B.
        difference: A minus B.
        interval: the 95% interval of the difference; None where the noise is not known.
        p: two-sided; None where the noise is not known. Without any noise 1 for equal means, else 0.
        variances: of the differences of pairs, or of the two groups; empty where they are not known.
        alpha: p value below which A is called better.
    """

    test: Literal["paired", "welch"]
    a: Mean
    b: Mean
    difference: float
    interval: tuple[float, float] | None
    p: float | None
    variances: tuple[float, ...]
    alpha: float

    def is_better(self, sign: int) -> bool:
        """Return whether A is better at `alpha`; `sign` is 1 where more is better, else -1."""
        return self.p is not None and self.p < self.alpha and sign * self.difference > 0

    @cached_property
    def needed(self) -> int | None:
        """Numbers a group, or pairs, that would show a difference of this size; None where not known."""
        return find_needed(self.difference, self.variances, self.alpha) if self.variances else None


def compare_numbers(a: Sequence[float], b: Sequence[float], *, paired: bool, alpha: float) -> Comparison:
    """Compare two groups of at least one finite number each; pairs stand in the same order."""
    one, other = Mean.of(a), Mean.of(b)
    if paired:
        assert len(a) == len(b)
        noise = Mean.of([x - y for x, y in zip(a, b, strict=True)])
        difference, is_known, is_noisy = noise.value, noise.n > 1, noise.std > 0
    else:
        difference, is_known = one.value - other.value, min(one.n, other.n) > 1
        is_noisy = max(one.std, other.std) > 0
    test: Literal["paired", "welch"] = "paired" if paired else "welch"
    if not is_known:
        return Comparison(test, one, other, difference, None, None, (), alpha)
    variances = (noise.std**2,) if paired else (one.std**2, other.std**2)
    if not is_noisy:
        p = float(difference == 0)
        return Comparison(test, one, other, difference, (difference, difference), p, variances, alpha)
    interval, p = _run_test(a, b, paired=paired)
    return Comparison(test, one, other, difference, interval, p, variances, alpha)


def _run_test(a: Sequence[float], b: Sequence[float], *, paired: bool) -> tuple[tuple[float, float], float]:
    """Return the interval of the difference and the p value, of noisy groups of two numbers or more."""
    scale = max(map(abs, [*a, *b]))
    scale = scale if scale > 1e100 or scale < 1e-100 else 1.0  # a diverged loss of 1e200 has a square too
    x, y = [value / scale for value in a], [value / scale for value in b]
    if paired:
        noise = Mean.of([one - other for one, other in zip(x, y, strict=True)])
        difference, error, freedom = noise.value, noise.std / math.sqrt(noise.n), float(noise.n - 1)
    else:
        one, other = Mean.of(x), Mean.of(y)
        shares = one.std**2 / one.n, other.std**2 / other.n
        difference, error = one.value - other.value, math.sqrt(sum(shares))
        freedom = sum(shares) ** 2 / (shares[0] ** 2 / (one.n - 1) + shares[1] ** 2 / (other.n - 1))
    half = compute_quantile((1 + CONFIDENCE) / 2, freedom) * error
    p = 2 * compute_cdf(-abs(difference) / error, freedom)
    return ((difference - half) * scale, (difference + half) * scale), p


def find_needed(difference: float, variances: Sequence[float], alpha: float) -> int | None:
    """Find the least number a group with which the test shows such a difference at `alpha` with power 0.8.

    By the noncentral t distribution: of pairs with one variance, else of two groups with their own.
    """
    if not any(variances):
        return 2 if difference else None
    if difference == 0 or not all(map(math.isfinite, (difference, *variances))):
        return None
    least, most = 1, 2
    while _compute_power(most, difference, variances, alpha) < POWER:
        least, most = most, 2 * most
        if most > MOST_NEEDED:
            return None
    while most - least > 1:
        middle = (least + most) // 2
        if _compute_power(middle, difference, variances, alpha) < POWER:
            least = middle
        else:
            most = middle
    return most


def _compute_power(n: int, difference: float, variances: Sequence[float], alpha: float) -> float:
    """Compute the probability that n numbers a group show the difference, in its direction."""
    greatest = max(variances)
    shares = [variance / greatest for variance in variances]
    freedom = (n - 1) * sum(shares) ** 2 / sum(share**2 for share in shares)
    shift = abs(difference) / math.sqrt(greatest) * math.sqrt(n / sum(shares))
    power = compute_noncentral_sf(critical := compute_quantile(1 - alpha / 2, freedom), freedom, shift)
    return power if math.isfinite(power) else float(shift > critical)


def describe_mean(mean: Mean) -> dict[str, Any]:
    """Describe a mean as plain data: n, mean, std, 95% interval."""
    interval = None if mean.n < 2 else [mean.value - mean.half, mean.value + mean.half]
    return {"n": mean.n, "mean": mean.value, "std": None if mean.n < 2 else mean.std, "interval": interval}
