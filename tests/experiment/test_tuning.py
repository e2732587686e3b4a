"""The finders try settings on the real thing, and leave no trace."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from runner.experiment.tuning import batch_size, lr_range_test
from tests.support import list_files
from tests.train.test_schedules import Loop, train  # noqa: F401  a fixture

QUIET = ("log=quiet", "device=cpu")


def test_the_rates_grow_by_one_factor_and_groups_keep_their_ratios(
    train: Callable[..., Any],  # noqa: F811
    runner: Callable[..., Any],
) -> None:
    """Losses are bitwise those of the loop by hand with these rates, whatever schedule the config has."""
    train("{}")  # writes the experiment
    ran = runner("find", "lr", "experiment=scheduled", "--from=1e-3", "--to=0.5", "--steps", "20", "--json")
    found = json.loads(ran.out)
    loop = Loop()
    rates = [1e-3 * 500 ** (step / 19) for step in range(20)]
    left = iter(rates)

    def follow() -> None:
        rate = next(left, 0.0)
        for group, share in zip(loop.optimizer.param_groups, (0.01 / 0.1, 0.1 / 0.1), strict=True):
            group["lr"] = rate * share

    follow()
    for _ in range(4):
        for _ in loop.epoch():
            follow()

    assert ran.status == 0
    assert rates == pytest.approx(found["rates"])
    assert loop.losses == found["losses"]


def test_nothing_is_left_but_the_picture(runner: Callable[..., Any]) -> None:
    """No run directory; a run afterwards has the weights of one before; random numbers go on as they were."""
    before = runner("train.duration=3st", *QUIET).result["weights_sha256"]
    known, state = list_files(), torch.get_rng_state()
    ran = runner("find", "lr", "--steps=40", *QUIET)

    assert {"outputs/find/digits_cnn/lr.svg"} == list_files() - known
    assert torch.equal(state, torch.get_rng_state())
    assert "optimizer.lr=" in ran.out
    assert before == runner("train.duration=3st", *QUIET).result["weights_sha256"]


def test_the_suggested_rate_trains(runner: Callable[..., Any]) -> None:
    """It is within a factor of five of the shipped recipe's; 150 steps with it get far below half of the first loss."""
    found = json.loads(runner("find", "lr", "--json", *QUIET).out)
    ran = runner(f"optimizer.lr={found['suggestion']}", "train.duration=150st", "scheduler=none", *QUIET)

    assert 0.04 < found["suggestion"] < 1
    assert ran.result["metrics"]["val/loss"] < found["losses"][0] / 2


def valley() -> tuple[list[float], list[float]]:
    """Losses over the logarithm of the rate: a logistic fall around 0.01, the least loss later, then divergence."""
    rates = [10 ** (-4 + place / 50) for place in range(250)]
    losses = [2 - 1 / (1 + math.exp(-6 * (math.log10(rate) + 2))) + max(0, math.log10(rate)) * 100 for rate in rates]
    return rates, losses


def test_the_valley_and_its_middle() -> None:
    rates, losses = valley()
    test = lr_range_test.evaluate_losses(rates, losses, diverged=False)

    assert test.steepest == pytest.approx(1e-2, rel=0.05)
    assert test.begins == pytest.approx(10 ** (-2 - math.log(9) / 6), rel=0.1)
    assert test.lowest is not None
    assert 0.3 < test.lowest < 1.5
    assert test.suggestion == pytest.approx(math.sqrt(test.begins * test.lowest))


def test_a_loss_that_has_grown_a_lot_has_diverged() -> None:
    _, losses = valley()

    assert not any(lr_range_test.has_diverged(losses[:stop]) for stop in range(1, 200))
    assert lr_range_test.has_diverged(losses)


def test_a_step_without_data(runner: Callable[..., Any]) -> None:
    """A rate is found for it; there is no batch to size. Of several optimizers each rate is named."""
    found = json.loads(runner("find", "lr", "experiment=minimise", "--json", *QUIET).out)
    sized = runner("find", "batch_size", "experiment=minimise", *QUIET)
    several = runner("find", "lr", "experiment=digits_gan", *QUIET)

    assert 1e-3 < found["suggestion"] < 1
    assert (1, 0) == (sized.status, several.status)
    assert "no data" in sized.err
    assert "optimizer.generator.lr=" in several.out
    assert "optimizer.discriminator.lr=" in several.out


def test_losses_that_never_fall(runner: Callable[..., Any]) -> None:
    """There is no suggestion, and the exit status is 1."""
    test = lr_range_test.evaluate_losses([1.0, 2.0, 3.0, 4.0], [1.0, 1.1, 1.2, 1.3], diverged=False)
    ran = runner("find", "lr", "--from=1e4", "--to=1e9", "--steps=20", *QUIET)

    assert test.suggestion is None
    assert ran.status == 1
    assert "no suggestion" in ran.out


@pytest.mark.parametrize("start", [1, 7, 64, 500])
@pytest.mark.parametrize("limit", [0, 1, 5, 63, 64, 100, 1000, 4097])
def test_doubling_and_halving(start: int, limit: int) -> None:
    """Exact below 64, within a 32nd above; one that fits and one that does not, or the most that there is."""
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= limit

    low, high = batch_size.search_largest(fits, start, lambda: 3000)

    if limit >= 3000:
        assert (low, high) == (3000, None)
    else:
        assert high is not None
        assert low <= limit < high
        assert high - low <= max(1, low // 32)
    assert len(tried) == len(set(tried)) <= 24


def test_a_batch_is_tried_in_a_process_of_its_own(runner: Callable[..., Any]) -> None:
    """Its peak and speed are measured; as many samples as there are at most; nothing is created."""
    found = json.loads(runner("find", "batch_size", "dataset.limit=3", "--memory=64GiB", "--json", *QUIET).out)

    assert (3, None) == (found["batch_size"], found["too_large"])
    assert 1 == len(found["trials"])
    assert found["trials"][0]["peak"] > 2**20
    assert not list_files()


@pytest.mark.exhaustive  # ten trials of seconds
def test_the_largest_batch_within_a_limit_of_memory(runner: Callable[..., Any]) -> None:
    """What fits was measured below the limit, what does not above it, each in a process of its own."""
    known = list_files()
    wide = ("experiment=synthetic", "model.width=64", "dataset.train.num_samples=256", "loader.batch_size=16", "--json")
    first = json.loads(runner("find", "batch_size", "--max=16", *wide, *QUIET).out)
    limit = first["trials"][0]["peak"] + 60 * 2**20
    found = json.loads(runner("find", "batch_size", f"--memory={limit}B", *wide, *QUIET).out)
    trials = {trial["batch_size"]: trial for trial in found["trials"]}

    assert (16, None) == (first["batch_size"], first["too_large"])
    assert 16 < found["batch_size"] < found["too_large"] < 256
    assert trials[found["batch_size"]]["peak"] <= limit
    assert not trials[found["too_large"]]["fits"]
    assert known == list_files()


def test_a_limit_that_nothing_fits_in(runner: Callable[..., Any]) -> None:
    """It is said, with exit status 1."""
    ran = runner("find", "batch_size", "loader.batch_size=1", "--memory=1MB", *QUIET)

    assert ran.status == 1
    assert "not even one sample fits" in ran.out


def test_out_of_memory_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an answer, not an error; another error stays one. (The GPU is played by its error.)"""
    errors: dict[int, Exception] = {8: torch.OutOfMemoryError("CUDA out of memory."), 4: RuntimeError("shapes differ")}

    def two_steps(_config: Any, size: int, _trust: Any) -> batch_size.Trial:
        if size in errors:
            raise errors[size]
        return batch_size.Trial(size, fits=True, seconds=1.0)

    monkeypatch.setattr(batch_size, "run_two_steps", two_steps)
    for name in ("reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 123)
    config: Any = None
    cuda = torch.device("cuda")

    assert batch_size.Trial(2, fits=True, peak=123, seconds=1.0) == batch_size.try_on_gpu(config, 2, cuda, ())
    assert batch_size.Trial(8, fits=False, problem="out of memory") == batch_size.try_on_gpu(config, 8, cuda, ())
    with pytest.raises(RuntimeError, match="shapes differ"):
        batch_size.try_on_gpu(config, 4, cuda, ())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("lr", "--from=2", "--to=1"), "--from must be below --to"),
        (("lr", "--from=x"), "--from must be a number above 0"),
        (("lr", "--steps=3"), "--steps must be at least 20"),
        (("batch_size", "--memory=much"), "--memory must be a size"),
        (("batch_size", "--max=-1"), "--max must be a whole number"),
        (("momentum",), "find must be followed by lr or batch_size"),
        ((), "find needs a subject: lr or batch_size"),
        (("lr", "optimizer.lr=fast"), "optimizer.lr must be a number"),
    ],
)
def test_a_wrong_request(arguments: tuple[str, ...], said: str, runner: Callable[..., Any]) -> None:
    """Exit status 2; nothing is created."""
    ran = runner("find", *arguments)

    assert ran.status == 2
    assert said in ran.err
    assert not list_files()


@pytest.mark.exhaustive
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_largest_batch_of_a_gpu(runner: Callable[..., Any]) -> None:
    """Found by running out of its memory."""
    with_gpu = ("experiment=synthetic", "dataset.train.num_samples=4000000", "device=cuda", "--json")
    found = json.loads(runner("find", "batch_size", *with_gpu).out)

    assert found["too_large"] is not None
    assert any(trial["problem"] == "out of memory" for trial in found["trials"])
