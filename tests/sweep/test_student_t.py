"""Student's t distribution against SciPy's."""

import random

import pytest
from scipy import special, stats

from runner.sweep.report.student_t import compute_cdf, compute_noncentral_sf, compute_quantile


@pytest.fixture
def draw(seed):
    return random.Random(seed)


def draw_freedom(draw):
    return draw.choice([draw.randint(1, 50), 10 ** draw.uniform(0, 5)])


def test_probabilities_are_those_of_scipy(draw):
    """From the middle to tails of 1e-200, whose digits count as well."""
    cases = [(draw_freedom(draw), draw.choice([-1, 1]) * 10 ** draw.uniform(-4, 3)) for _ in range(300)]
    expected = [pytest.approx(float(special.stdtr(n, t)), rel=1e-10, abs=1e-300) for n, t in cases]
    assert [compute_cdf(t, n) for n, t in cases] == expected


def test_quantiles_are_those_of_scipy(draw):
    cases = [(draw_freedom(draw), draw.choice([0.975, 0.995, 0.05, draw.random()])) for _ in range(50)]
    expected = [pytest.approx(float(special.stdtrit(n, p)), rel=1e-10, abs=1e-10) for n, p in cases]
    assert [compute_quantile(p, n) for n, p in cases] == expected


def test_the_power_of_a_test_is_that_of_scipy(draw):
    cases = [(draw.choice([1, 1.5, draw_freedom(draw)]), draw.uniform(0, 8), draw.uniform(0.1, 20)) for _ in range(50)]
    expected = [pytest.approx(float(stats.nct.sf(t, n, shift)), abs=1e-8) for n, shift, t in cases]
    assert [compute_noncentral_sf(t, n, shift) for n, shift, t in cases] == expected
