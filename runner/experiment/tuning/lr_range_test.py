"""Learning-rate range test (Smith 2017): the loss under a rate that grows step by step."""

import dataclasses
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from runner.config.schema import Config
from runner.core.chart import Line, Panel, render_svg
from runner.core.errors import RunError
from runner.experiment.builders.instantiate import Trust
from runner.experiment.tuning.trial_run import iterate_batches, open_trial_run
from runner.train.lr_schedule import set_rate
from runner.train.optimizer_step.several_optimizers import get_members

SMOOTHED = 20  # the mean of a point and its neighbours covers one so many of all points


DIVERGED = 3  # a loss so many times farther above the least one than that is below the first one


@dataclasses.dataclass
class LRRangeTest:
    """Result of a learning-rate range test: losses under a growing rate, and the suggested rate."""

    rates: list[float]  # of `optimizer.lr`; the groups keep their ratios to it
    losses: list[float]
    smoothed: list[float]
    suggestion: float | None  # halfway between the next two, on the logarithmic scale; None where no loss falls
    begins: float | None  # where the smoothed loss has made a tenth of its fall
    lowest: float | None  # where it is least
    steepest: float | None  # where it falls fastest
    diverged: bool  # whether it rose so far that the test ended there
    keys: dict[str, float] = dataclasses.field(default_factory=dict)  # of several optimizers: key → its share of a rate


def run_lr_range_test(config: Config, low: float, high: float, steps: int, trust: Trust = ()) -> LRRangeTest:
    """Train with a rate growing by one factor a step, `low` to `high`, until the loss diverges.

    The learning-rate range test of Smith (Cyclical Learning Rates for Training Neural Networks, 2017, section 3.3),
    with the exponential growth of Howard and Gugger (fastai, 2020), whose smoothing lags behind the rate: a mean over
    neighbours on both sides takes its place. The suggestion lies in the middle of the valley, as that of fastai's
    `valley` (2021): the steepest fall is often close to divergence (the small CNN on digits, 150 steps at one rate:
    validation loss 2.3 with the steepest fall's 0.33, 0.27 with 0.1).

    Raises:
        RunError: the data cannot be had, a batch is refused, or the optimizer has no rate.
    """
    rates: list[float] = []
    losses: list[float] = []
    diverged = False
    with open_trial_run(config, steps, trust) as run:
        base = run.optimizer.defaults.get("lr")
        members = get_members(run.optimizer)
        if base is None and len(members) > 1:  # the first of several; the others keep their ratios to it
            base = next(iter(members.values())).defaults.get("lr")
        if not base:
            raise RunError(f"optimizer.lr: {type(run.optimizer).__name__} has no rate of its own to try others for")
        shares = [float(group["lr"]) / float(base) for group in run.optimizer.param_groups]
        for step, batch in enumerate(islice(iterate_batches(run), steps)):
            rate = low * (high / low) ** (step / (steps - 1))
            for group, share in zip(run.optimizer.param_groups, shares, strict=True):
                set_rate(group, rate * share)
            loss = run.update(batch)["loss"].item()
            if not math.isfinite(loss):
                diverged = True
                break
            rates.append(rate)
            losses.append(loss)
            if diverged := has_diverged(losses):
                break
    keys = {f"optimizer.{name}.lr": one.defaults["lr"] / base for name, one in members.items() if name}
    return dataclasses.replace(evaluate_losses(rates, losses, diverged=diverged), keys=keys)


def has_diverged(losses: Sequence[float]) -> bool:
    """Return whether the last few losses' mean is far above the least mean; one outlier is ignored."""
    span = max(1, len(losses) // SMOOTHED)
    means = smooth(losses)
    least = min(means)
    return sum(losses[-span:]) / span > least + DIVERGED * max(abs(least), abs(means[0] - least))


def smooth(values: Sequence[float]) -> list[float]:
    """Compute the mean of each value and its neighbours, as many on both sides."""
    reach = max(1, len(values) // SMOOTHED)
    spans = [min(reach, place, len(values) - 1 - place) for place in range(len(values))]
    return [math.fsum(values[i - s : i + s + 1]) / (2 * s + 1) for i, s in enumerate(spans)]


def evaluate_losses(rates: list[float], losses: list[float], *, diverged: bool) -> LRRangeTest:
    """Find the rates where the loss begins to fall, falls fastest and is least; suggest the middle."""
    smoothed = smooth(losses)
    end = min(range(len(smoothed)), key=smoothed.__getitem__, default=0)
    falls = [smoothed[i - 1] - smoothed[i + 1] for i in range(1, end)]  # the rates are equally far apart
    if not falls or max(falls) <= 0:
        return LRRangeTest(rates, losses, smoothed, None, None, None, None, diverged)
    tenth = smoothed[0] - (smoothed[0] - smoothed[end]) / 10
    start = next(i for i in range(end, -1, -1) if i == 0 or smoothed[i - 1] >= tenth)
    steepest = 1 + max(range(len(falls)), key=falls.__getitem__)
    middle = math.sqrt(rates[start] * rates[end])
    return LRRangeTest(rates, losses, smoothed, middle, rates[start], rates[end], rates[steepest], diverged)


def describe_test(test: LRRangeTest) -> list[str]:
    """Describe the range test: the steps tried, the fall of the loss, the suggestion and its rule."""
    end = "where the loss diverged" if test.diverged else "the end of the range"
    tried = f"{len(test.rates)} steps, from {test.rates[0]:.3g} to {test.rates[-1]:.3g}, {end}" if test.rates else end
    if test.suggestion is None:
        return [tried, "no suggestion: the loss does not fall anywhere in this range"]
    keys = test.keys or {"optimizer.lr": 1.0}
    settings = " ".join(f"{key}={test.suggestion * share:.2g}" for key, share in keys.items())
    return [
        tried,
        f"the smoothed loss falls from {test.begins:.2g} on, fastest at {test.steepest:.2g}, to {test.lowest:.2g}",
        f"{settings}  (halfway from its beginning to its end, on the logarithmic scale)",
    ]


def draw_test(test: LRRangeTest, file: Path) -> None:
    """Plot the losses and the smoothed losses over the learning rate, with the suggestion."""
    mark = None if test.suggestion is None else (test.suggestion, f"{test.suggestion:.2g}")
    first, least = max(test.smoothed[:1], default=0.0), min(test.smoothed, default=0.0)
    ceiling = first + (first - least) / 2 + abs(first) / 20  # what lies above is only divergence
    courses = [
        [(r, v) for r, v in zip(test.rates, values, strict=True) if v <= ceiling]
        for values in (test.losses, test.smoothed)
    ]
    lines = [Line("", courses[0], faint=True), Line("training loss, smoothed", courses[1])]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(render_svg([Panel("learning-rate range test", lines, "optimizer.lr", log_x=True, mark=mark)]))
