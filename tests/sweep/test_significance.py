"""Means of replicates and the test between them, against SciPy's own."""

import math

import numpy as np
import pytest
from scipy import stats

from runner.sweep.report.significance import Mean, compute_welch_p


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_the_interval_is_students(n, seed):
    numbers = np.random.default_rng(seed + n).normal(3, 2, n)
    mean = Mean.of(list(numbers))
    low, high = stats.t.interval(0.95, n - 1, loc=numbers.mean(), scale=stats.sem(numbers))

    assert pytest.approx((low, high)) == (mean.value - mean.half, mean.value + mean.half)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 7), (5, 5), (20, 4)])
def test_the_test_is_welchs(n, m, seed):
    generator = np.random.default_rng(seed + n * m)
    a, b = generator.normal(0, 1, n), generator.normal(0.7, 3, m)

    assert pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue) == compute_welch_p(
        Mean.of(list(a)), Mean.of(list(b))
    )


def test_the_interval_holds_the_mean_in_19_of_20_cases(seed):
    generator = np.random.default_rng(seed)
    means = [Mean.of(list(generator.normal(0, 1, 4))) for _ in range(2000)]

    assert 0.93 < sum(abs(mean.value) <= mean.half for mean in means) / 2000 < 0.97


def test_a_single_number_says_nothing_about_noise():
    one, two = Mean.of([1.0]), Mean.of([1.0, 2.0])

    assert math.isnan(one.half)
    assert compute_welch_p(one, two) is None


def test_means_without_noise_are_the_same_or_are_not():
    assert 1 == compute_welch_p(Mean.of([1.0, 1.0]), Mean.of([1.0, 1.0]))
    assert 0 == compute_welch_p(Mean.of([1.0, 1.0]), Mean.of([1.1, 1.1]))


@pytest.mark.parametrize("scale", [1e-300, 1e-3, 1e250])
def test_the_test_does_not_depend_on_the_scale(scale):
    """A diverged loss overflows when it is squared."""
    a, b = [1.0, 2.0, 4.0], [3.0, 5.0]
    scaled = [Mean.of([scale * x for x in numbers]) for numbers in (a, b)]

    assert pytest.approx(compute_welch_p(Mean.of(a), Mean.of(b))) == compute_welch_p(*scaled)
