"""Streams depend on their names alone."""

import random

import numpy as np
import torch

from runner.core import rng


def draw() -> tuple[float, float, float]:
    """One number of each global generator."""
    return float(torch.rand(1)), float(np.random.rand()), random.random()


def test_key_tells_names_apart() -> None:
    """Keys of different names differ, also where the names' texts run together alike."""
    names = [("a", 1), ("a1",), ("a", "1"), (1, "a"), ("a", 1, 0), ()]

    assert len(names) == len({rng.derive_key(0, *name) for name in names})
    assert all(0 <= rng.derive_key(seed, "x") < 2**63 for seed in range(100))


def test_stream_leaves_the_global_generators_alone() -> None:
    """What is drawn inside a stream changes nothing outside, and is the same each time."""
    rng.seed_all(1)
    expected = [draw(), draw()]
    rng.seed_all(1)
    first = draw()
    with rng.stream(5):
        inside = draw()
    with rng.stream(5):
        again = draw()

    assert expected == [first, draw()]
    assert inside == again


def test_state_round_trip() -> None:
    """A saved state gives the same numbers again, and is made of what a checkpoint can hold."""
    rng.seed_all(3)
    random.gauss(0, 1)  # leaves a second number behind, which is part of the state
    np.random.randn()
    saved = rng.get_state()
    expected = [draw(), random.gauss(0, 1), float(np.random.randn())]
    rng.seed_all(4)
    rng.set_state(saved)

    assert expected == [draw(), random.gauss(0, 1), float(np.random.randn())]


def test_uniforms_depend_on_the_index_alone() -> None:
    """A sample's numbers are the same in any company."""
    indices = np.array([7, 3, 1000, 0])
    together = rng.draw_uniforms(11, indices, 3)
    alone = torch.cat([rng.draw_uniforms(11, indices[i : i + 1], 3) for i in range(4)])

    assert torch.equal(together, alone)
    assert not torch.equal(together, rng.draw_uniforms(12, indices, 3))


def test_uniforms_are_uniform() -> None:
    """Mean, variance and the correlation of neighbours are those of a uniform distribution, to four standard errors."""
    numbers = rng.draw_uniforms(0, np.arange(100_000), 2).double()

    assert 0 <= numbers.min()
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 4 * (1 / 12 / 200_000) ** 0.5
    assert abs(numbers.var() - 1 / 12) < 0.001
    assert torch.corrcoef(numbers.T)[0, 1].abs() < 4 / 100_000**0.5
    assert torch.corrcoef(torch.stack([numbers[1:, 0], numbers[:-1, 0]]))[0, 1].abs() < 4 / 100_000**0.5


def test_permutation_is_one_and_golden() -> None:
    """Every index once; and the very same order on every platform, or old runs could not be repeated."""
    assert sorted(rng.draw_permutation(9, 1000)) == list(range(1000))
    assert rng.draw_permutation(rng.derive_key(0, 0, "order"), 10).tolist() == [8, 0, 2, 3, 7, 4, 6, 9, 1, 5]
