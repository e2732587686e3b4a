"""Student's t distribution, central and noncentral, so that a report needs no SciPy (about 100 MB)."""

import math
from functools import cache
from typing import Any

TINY = 1e-300
NODES = 400  # of the quadrature of the noncentral distribution


def compute_cdf(t: float, freedom: float) -> float:
    """Compute the probability of at most `t`; relative error below 1e-12, in the lower tail too.

    By the incomplete beta function (Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.1).
    """
    if math.isnan(t) or math.isnan(freedom):
        return math.nan
    if math.isinf(t):
        return float(t > 0)
    square, half = t * t, freedom / 2
    if math.isinf(square):
        return float(t > 0)
    x, log_x, log_y = freedom / (freedom + square), -math.log1p(square / freedom), -math.inf
    if square:
        log_y = math.log(square / freedom) + log_x  # of 1 - x
    if x > (half + 1) / (half + 2.5):  # t is small: no tail to lose, and here the other fraction converges
        front = math.exp(half * log_x + log_y / 2 - _compute_log_beta(half))
        return 0.5 + math.copysign(front * _compute_fraction(0.5, half, square / (freedom + square)) / 2, t)
    tail = math.exp(half * log_x + log_y / 2 - _compute_log_beta(half)) * _compute_fraction(half, 0.5, x) / 2
    return 1 - tail if t > 0 else tail


@cache
def compute_quantile(probability: float, freedom: float) -> float:
    """Compute the t that has `probability` below it, by bisection; relative error below 1e-12."""
    if not 0 < probability < 1 or math.isnan(freedom):
        return math.nan
    if probability == 0.5:
        return 0.0
    tail = min(probability, 1 - probability)
    low, high = 0.0, 1.0
    while compute_cdf(-high, freedom) > tail:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        if compute_cdf(-middle, freedom) > tail:
            low = middle
        else:
            high = middle
    return math.copysign(high, probability - 0.5)


def compute_noncentral_sf(t: float, freedom: float, shift: float) -> float:
    """Compute the probability of more than `t` > 0 for the noncentral t distribution; error below 1e-9.

    Of `freedom` >= 1: the mean of P(Z > t s - shift) over s = sqrt(chi² / freedom), by Gauss-Legendre quadrature
    over sqrt(s).
    """
    import numpy as np

    nodes, weights = _get_nodes()
    spread = 10 / math.sqrt(freedom)
    low, high = math.sqrt(max(0.0, 1 - spread)), math.sqrt(1 + spread)
    root = (high - low) / 2 * nodes + (high + low) / 2
    s = root * root
    log_density = (
        math.log(2) + freedom / 2 * math.log(freedom / 2) - math.lgamma(freedom / 2) - freedom / 2 * s * s
        + (freedom - 1) * np.log(s)
    )  # fmt: skip
    tails = [0.5 * math.erfc((t * one - shift) / math.sqrt(2)) for one in s]
    return float(np.sum(weights * np.exp(log_density) * 2 * root * tails) * (high - low) / 2)


@cache
def _get_nodes() -> Any:
    import numpy as np

    return np.polynomial.legendre.leggauss(NODES)


def _compute_log_beta(a: float) -> float:
    """Compute log B(a, 1/2); of a large number by the series of a ratio of gammas."""
    if a < 20:
        return math.lgamma(a) + math.lgamma(0.5) - math.lgamma(a + 0.5)
    ratio = math.log(a) / 2 - 1 / (8 * a) + 1 / (192 * a**3) - 1 / (640 * a**5) + 17 / (14336 * a**7)
    return math.lgamma(0.5) - ratio


def _compute_fraction(a: float, b: float, x: float) -> float:
    """Compute I_x(a, b) B(a, b) / (x^a (1 - x)^b) by its continued fraction (ibid., 26.5.8; Lentz)."""
    d = 1 / _keep_off_zero(1 - (a + b) * x / (a + 1))
    c, fraction = 1.0, d
    for m in range(1, 10_000):
        for part in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _keep_off_zero(1 + part * d)
            c = _keep_off_zero(1 + part / c)
            fraction *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return fraction / a


def _keep_off_zero(value: float) -> float:
    return value if abs(value) > TINY else TINY
