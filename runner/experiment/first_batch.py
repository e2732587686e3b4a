"""First batch of a run: mistakes that only real data shows, found before the first step."""

from collections.abc import Callable
from typing import Any

from torch import nn

from runner.config.check.rules.train import find_too_long
from runner.config.schema import Config
from runner.core.errors import Mistake, RunError
from runner.experiment import diagnosis
from runner.experiment.builders import train as train_builder
from runner.experiment.builders.instantiate import Trust
from runner.experiment.preflight.preflight import find_late_mistakes
from runner.experiment.preflight.report import Preflight
from runner.experiment.preflight.step import watch_step
from runner.model.meta import copy_to_meta, to_meta
from runner.train.optimizer_step.closure import is_custom_step
from runner.train.state import Run
from runner.train.steps import needs_input_and_target


def try_the_first_batch(
    run: Run, config: Config, found: Preflight | None, trust: Trust, blame: diagnosis.Blame
) -> None:
    """Find mistakes that only real data shows, before the first step.

    That is a batch of one sample at the end of an epoch, which batch norm cannot train on, and, where the dataset
    states no sample, a metric that does not fit what the model gives. A step of one's own is watched in its first call:
    nothing is computed twice that may keep a state.

    Raises:
        RunError: a made-up batch is known, and the model refuses one sample of it.
    """
    if run.team.world > 1 or config.device.compile or is_custom_step(run.step) or not run.rhythm.total_steps:
        return

    def told(mistakes: list[Mistake]) -> None:
        if mistakes:
            raise RunError("; ".join(diagnosis.format_mistake(mistake, blame) for mistake in mistakes))

    if not needs_input_and_target(run.step):
        if found is None or found.batch is None or found.left_open:
            _watch_first_step(run, told)
        return
    rest = compute_smallest_batch(run, config) == 1
    if found is not None and found.batch is not None and found.model is not None and not found.left_open:
        told(
            find_late_mistakes(
                config, found.model, run.loss, found.batch, trust, rest=rest, size=run.splits["train"].size
            )
        )
    else:
        size = run.splits["train"].size
        run.rehearse = lambda batch: told(
            find_late_mistakes(
                config, copy_to_meta(run.model), run.loss, to_meta(batch), trust, rest=rest, size=size, metrics=True
            )
        )


def _watch_first_step(run: Run, told: Callable[[list[Mistake]], None]) -> None:
    """Let the first call of the step show whether it compares every output with every target."""
    update, step = run.update, run.update.step

    def watched(batch: Any, net: nn.Module, loss: Any) -> Any:
        update.step = step
        outcome, mistake = watch_step(lambda: step(batch, net, loss), net, batch)
        told([mistake] if mistake is not None else [])
        return outcome

    update.step = watched


def compute_smallest_batch(run: Run, config: Config) -> int:
    """Compute the samples in the smallest training batch of an epoch; 0 if the config does not say it."""
    size, whole = run.splits["train"].size, config.loader.batch_size
    if whole is None or config.loader.batch_sampler is not None or not size:
        return 0
    return whole if config.loader.drop_last else size % whole or whole


def check_lengths(config: Config, run: Run, *, debugging: bool) -> list[Mistake]:
    """Check durations against the run's steps; a `debug` run may be too short on purpose."""
    outlived = train_builder.find_short_schedule(run.schedule, run.rhythm.total_steps, run.rhythm.steps_per_epoch)
    if debugging or run.rhythm.total_steps == 0:
        return outlived
    return [*(finding.mistake for finding in find_too_long(config, run.rhythm.steps_per_epoch)), *outlived]
