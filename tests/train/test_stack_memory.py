"""Memory of a stack, counted before it is built."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from runner.train.vectorized import memory
from runner.train.vectorized.memory import LiveBytes, TooLargeError, refuse_large_step

FLOATS = 1000


def step(width: int) -> None:
    """Take a forward and a backward of an exponential of so many weights."""
    weight = nn.Parameter(torch.ones(width))
    (weight * 2).exp().sum().backward()


def test_the_most_bytes_of_a_step_are_counted_and_nothing_stays():
    """The result of exp and its gradient are there at once, of four bytes a number, and the loss and its gradient."""
    with LiveBytes() as live:
        step(FLOATS)

    assert live.live == 0
    assert live.most == pytest.approx(3 * 4 * FLOATS, abs=16)


def test_a_step_that_does_not_fit_says_how_many_do(monkeypatch):
    """Ten bytes a job by the estimate of 1.5 times 10, and 100 free: six of ten jobs."""
    monkeypatch.setattr(memory, "measure_step", lambda *_: 10)
    run = SimpleNamespace(splits={"train": None}, device=torch.device("cpu"))
    with pytest.raises(TooLargeError, match=r"10 jobs would hold about .* are free") as raised:
        refuse_large_step(run, None, 10, lambda _: 100)
    refuse_large_step(run, None, 6, lambda _: 100)

    assert raised.value.fits == 6
