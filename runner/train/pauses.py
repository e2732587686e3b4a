"""Pauses of training: what is done between optimizer steps when it is due. Log, evaluate, save.

Each function is of one run, whatever takes its steps. An action waits for the device; nothing else here does.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

from runner.core import device as devices
from runner.core import rng
from runner.core.durations import Duration, compute_next_due
from runner.core.errors import RunError
from runner.model.freeze import freeze_at
from runner.train.actions import call_due_actions, find_due_actions, keep_outcome_artifacts
from runner.train.bn_statistics import update_statistics
from runner.train.checkpoint import SaveError
from runner.train.evaluation import (
    add,
    add_derived,
    evaluate_and_show,
    flatten_metric,
    has_own_rhythm,
    list_due_metrics,
    list_numbers,
    read_objective,
)
from runner.train.finite import NonFiniteError, collect_tensors, find_infinite_buffers, find_non_finite, name_of
from runner.train.state import Run
from runner.train.state_dict import collect_state, copy_sampler_state


def begin(run: Run) -> int:
    """Prepare training from `run.progress` on; return the step of the first pause."""
    progress = run.progress
    if progress.step == run.rhythm.first_step:
        progress.acted_at = progress.step
        rng.seed_all(rng.derive_key(run.seed, "train", *run.team.stream))
    run.session.infinite_buffers = find_infinite_buffers(run.model)
    run.model.train()
    freeze_if_due(run)
    run.clock.start()
    run.session.started_at = progress.step
    run.session.paused_at = progress.step - progress.evaluation_pending
    run.session.logged = (progress.step, time.perf_counter())
    run.looks.begin(progress.step, sum(run.losses.read_sizes()), run.clock.seconds)
    run.trace.begin(run)
    if run.rhythm.evaluate_at_start and progress.step == run.rhythm.first_step and progress.evaluated_at is None:
        progress.evaluation_pending = True
    stop_at_value(run)
    if progress.evaluation_pending or find_due_actions(run, at_end=progress.step >= run.rhythm.total_steps):
        due = run_due_actions(run)
    else:
        arm_hooks(run)
        due = find_next_due_step(run)
    stop_where_stale(run)
    return due


def finish(run: Run) -> None:
    """Run the actions that are still due and wait for the pending checkpoint."""
    run.looks.end(run.log)
    if run.progress.step > run.session.paused_at and not run.stop.reason:  # the last steps were left out
        run_due_actions(run)
    run.clock.pause()
    wait_for_checkpoint(run)


def iterate_batches(run: Run) -> Iterator[Any]:
    """Iterate over the rest of the epoch, without the batches that are left out after a NaN."""
    progress = run.progress
    run.session.sampler_state = copy_sampler_state(run)  # an epoch under way is drawn again from here
    coming: Iterator[Any] = run.splits["train"].batches(progress.epoch, progress.batch * run.rhythm.accumulate)
    if run.rehearse is not None:
        coming = rehearse_first_batch(run, coming)
    if run.rhythm.accumulate > 1:
        coming = group_batches(coming, run.rhythm.accumulate)
    left_out = {batch: counts for epoch, batch, counts in progress.left_out if epoch == progress.epoch}
    return _skip_left_out(left_out, coming, run) if left_out else coming


def _skip_left_out(left_out: Mapping[int, int], coming: Iterator[Any], run: Run) -> Iterator[Any]:
    for batch in coming:
        if run.progress.batch not in left_out:
            yield batch
            continue
        if left_out[run.progress.batch]:  # a step without an update
            run.progress.step += 1
            run.schedule.step()
        run.progress.batch += 1


def rehearse_first_batch(run: Run, coming: Iterator[Any]) -> Iterator[Any]:
    """Pass the first batch to `run.rehearse` before training on it; return all batches."""
    rehearse, run.rehearse = run.rehearse, None
    first = list(islice(coming, 1))
    for batch in first:
        if rehearse is not None:
            rehearse(batch)
    return chain(first, coming)


def group_batches(batches: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Group batches into lists of `size`; the last list may be shorter."""
    while group := list(islice(batches, size)):
        yield group


def end_epoch(run: Run) -> None:
    """Advance to the next epoch."""
    run.progress.epoch += 1
    run.progress.batch = 0
    run.schedule.epoch()
    if run.clock.first_epoch is None:
        devices.synchronize(run.device)
        run.clock.pause()
        run.clock.first_epoch = (run.progress.step, run.clock.training)
        run.clock.start()


def arm_hooks(run: Run) -> None:
    """Get ready to look into the step that comes now, if it is time for that."""
    if run.progress.step < run.rhythm.total_steps:
        run.looks.open(run.progress.step, run.rhythm.steps_per_epoch)


def find_next_due_step(run: Run) -> int:
    """Return the step at which to pause next."""
    rhythm = run.rhythm
    if rhythm.check_finite == "every_step":
        return run.progress.step + 1
    rhythms = (rhythm.log_every, rhythm.evaluate_every, rhythm.checkpoint_every, *rhythm.own_rhythms)
    rhythms += tuple(action.every for action in run.actions)
    due = [compute_next_due(every, run.progress.step, rhythm.steps_per_epoch) for every in rhythms]
    due += [step for step in run.frozen.changes if step > run.progress.step][:1]
    if not rhythm.log_means:  # a line is of its own step: what came before is forgotten at the step before
        due += [max(step - 1, run.progress.step + 1) for step in list_coming_lines(run)]
    if not run.clock.budget.is_armed:
        due.append(run.session.started_at + 1)
    due += [run.team.due, *run.looks.pauses(run.progress.step, rhythm.steps_per_epoch)]
    return min([rhythm.total_steps, *[step for step in due if step is not None]])


def freeze_if_due(run: Run) -> None:
    """Freeze and unfreeze the parameters whose time it is (`freeze.from`, `freeze.until`)."""
    if run.frozen.changes and freeze_at(run.model, run.frozen, run.progress.step):
        run.wrap()


def _is_due(run: Run, every: Duration | None) -> bool:
    due = compute_next_due(every, run.session.paused_at, run.rhythm.steps_per_epoch)
    return due is not None and due <= run.progress.step


def will_evaluate(run: Run) -> bool:
    """Return whether an evaluation is due at this pause, and it is not that of the end."""
    progress = run.progress
    ends = progress.step >= run.rhythm.total_steps or run.stop.asked
    return not ends and progress.evaluated_at != progress.step and _is_due(run, run.rhythm.evaluate_every)


def uses_training_metric(run: Run) -> bool:
    """Return whether evaluations compare a training metric, which a log line computes."""
    return any(name.startswith("train/") for name in (run.objective.name, run.schedule.monitor or ""))


def _is_asked(run: Run) -> bool:
    """Return whether an evaluation that compares a training metric is due."""
    return uses_training_metric(run) and _is_due(run, run.rhythm.evaluate_every)


def run_due_actions(run: Run) -> int:
    """Log, evaluate and save, if due after this step; return the step of the next pause."""
    run.team.agree(run.progress.step)
    if not run.clock.budget.is_armed and run.progress.step > run.session.started_at:
        devices.synchronize(run.device)
        run.clock.budget.arm()
    progress, at_end = run.progress, run.progress.step >= run.rhythm.total_steps or bool(run.stop.ended)
    seen = run.looks.close(progress.step, run.log)
    if run.rhythm.check_finite == "every_step":
        check_losses(run)
        check_state(run)
    ends = at_end and (run.rhythm.log_means or progress.step >= run.rhythm.total_steps)
    said: Mapping[str, Any] = progress.last if progress.evaluation_pending else {}
    if run.losses.sizes and (ends or _is_due(run, run.rhythm.log_every) or _is_asked(run)):
        said = log_line(run, seen)
        stop_at_value(run)
        at_end = at_end or bool(run.stop.ended)
    said = {**said, **log_own_rhythms(run, at_end=at_end)}
    improved = False
    if progress.evaluation_pending or at_end or _is_due(run, run.rhythm.evaluate_every):
        improved = evaluate_and_compare(run, said)
        stop_at_value(run)
    stop_where_stale(run)
    if not run.rhythm.log_means and progress.step + 1 in list_coming_lines(run):
        forget(run)
    if run.stop.ended and not at_end:
        at_end = True
        if run.losses.sizes and run.rhythm.log_means and not _is_due(run, run.rhythm.log_every):
            log_line(run, seen)
    stopping = bool(run.stop.reason)
    call_due_actions(run, at_end=at_end)
    saves = run.rhythm.checkpoint_every is not None and (improved or _is_due(run, run.rhythm.checkpoint_every))
    if at_end or stopping or saves:
        save(run)
    freeze_if_due(run)
    run.session.paused_at = progress.step
    arm_hooks(run)
    return find_next_due_step(run)


def list_coming_lines(run: Run) -> list[int]:
    """List the next steps at which a training log line is due, one for each reason."""
    rhythm = run.rhythm
    asked = rhythm.evaluate_every if uses_training_metric(run) else None
    due = [compute_next_due(every, run.progress.step, rhythm.steps_per_epoch) for every in (rhythm.log_every, asked)]
    return [step for step in (*due, rhythm.total_steps) if step is not None]


def forget(run: Run) -> None:
    """Reset losses and training metrics for the next log line, after the check for non-finite losses."""
    check_losses(run)
    run.trace.flush(run)
    reset_line(run)


def reset_line(run: Run) -> None:
    """Reset the losses and training metrics of the next log line."""
    for metric in run.inputs["train"]:
        if metric.every is None:
            metric.reset()
    run.losses.clear()


def log_own_rhythms(run: Run, *, at_end: bool) -> dict[str, Any]:
    """Log the training metrics whose own rhythm is due, at the end all of them; return the values."""
    progress, logged = run.progress, dict[str, Any]()
    for metric in run.inputs["train"]:
        due = _is_due(run, metric.every)
        if metric.every is not None and metric.updated and (due or at_end):
            add(logged, flatten_metric(f"train/{metric.name}", metric.compute()))
            if due:
                metric.reset()
    if logged:
        add_derived(run, "train", logged)
        progress.last |= logged
        run.log.scalars(progress.step, progress.epoch, logged)
        stop_at_value(run)
    return logged


def log_line(run: Run, seen: dict[str, float]) -> dict[str, Any]:
    """Read the losses since the last log line (one wait for the device), check and log them.

    Returns:
        What the line says of training.

    Raises:
        NonFiniteError: a loss is not finite.
        RunError: a name has two values.
    """
    progress = run.progress
    check_losses(run)
    fields = run.losses.fields
    words = {f"train/{name}": word for name, word in fields.words.items()}
    logged: dict[str, Any] = {f"train/{name}": value for name, value in fields.means().items()}
    add(logged, {name: word for name, word in words.items() if word != progress.last.get(name)})  # where it changes
    add(logged, {"train/loss": run.losses.mean()})
    for metric in run.inputs["train"]:
        if metric.updated and metric.every is None:
            add(logged, flatten_metric(f"train/{metric.name}", metric.compute()))
    add_derived(run, "train", logged)
    keep_outcome_artifacts(run, "train", fields.artifacts)
    run.trace.log(run)
    rest = seen | run.looks.scalars(progress.step, sum(run.losses.read_sizes()), run.clock.seconds)
    if _is_due(run, run.rhythm.log_every):  # else it is the last line; a run that is prolonged goes on with what it has
        reset_line(run)
    progress.last |= logged
    now = time.perf_counter()
    speed = (progress.step - run.session.logged[0]) / (now - run.session.logged[1])
    run.session.logged = (progress.step, now)
    rates = {f"lr/{group.get('name', i)}": float(group["lr"]) for i, group in enumerate(run.optimizer.param_groups)}
    if len(rates) == 1:
        rates = {"lr": rates.popitem()[1]}
    run.log.scalars(progress.step, progress.epoch, logged | rates | rest, steps_per_second=speed)
    return logged


def check_losses(run: Run) -> None:
    """Raise NonFiniteError at the first non-finite loss, unless `train.check_finite` is off."""
    if run.rhythm.check_finite == "off":
        return
    values = run.losses.read()
    for offset, value in enumerate(values, start=1) if not all(map(math.isfinite, values)) else ():
        if not math.isfinite(value):
            step = run.progress.step - len(values) + offset
            raise NonFiniteError(f"the loss became {name_of(value)} at step {step}", step)
    if run.scaler is not None and run.scaler.exhausted:
        raise NonFiniteError("gradients are not finite, however little fp16's scaler scales them", run.progress.step)


def check_state(run: Run) -> None:
    """Raise NonFiniteError if a parameter, buffer or optimizer state is not finite (unless off)."""
    if run.rhythm.check_finite == "off" or run.session.finite_at == run.progress.step:
        return
    tensors = collect_tensors(run.model, run.optimizer, run.session.infinite_buffers, run.loss)
    here = dict(zip(tensors, run.layout.here(list(tensors.values())), strict=True))
    bad = run.team.union(find_non_finite(here))
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise NonFiniteError(f"at step {run.progress.step} {bad[0]}{more} is not finite", run.progress.step)


def evaluate_and_compare(run: Run, said: Mapping[str, Any]) -> bool:
    """Evaluate the splits; return whether the objective is the best so far.

    `said` holds what the log line of this step says of training: an older value of the objective does not count.
    """
    progress = run.progress
    progress.evaluation_pending = False
    run.clock.pause()
    begun, evaluated = time.perf_counter(), dict[str, float]()
    due = _is_due(run, run.rhythm.evaluate_every)  # else it is the end; a run that is prolonged never had it
    if run.objective.evaluated and progress.evaluated_at != progress.step:
        values: dict[str, float] | None = {}
        metrics = list_due_metrics(run)
        for name in run.objective.evaluated:
            part = evaluate_and_show(run, name, metrics)
            values = None if values is None or part is None else values | part
        if values is None:
            progress.evaluation_pending = True
        else:
            progress.last |= values
            evaluated = values
            progress.evaluated_at = progress.step
            run.log.evaluated(progress.step, progress.epoch, values)
        devices.synchronize(run.device)
    run.clock.evaluating += time.perf_counter() - begun
    run.clock.start()
    if progress.evaluation_pending:
        return False
    fresh = {name: value for name, value in progress.last.items() if not name.startswith("train/")}
    known = {name: fresh[name] for name in fresh if name in evaluated or not has_own_rhythm(run, name)} | dict(said)
    if due:
        follow_metric(run, known)
    value, best = read_objective(run), progress.best
    if run.objective.name not in known:
        return False
    better = best is None or (value < best["objective"] if run.objective.mode == "min" else value > best["objective"])
    if math.isfinite(value) and better:
        progress.best = {"step": progress.step, "objective": value, "metrics": dict(progress.last)}
        progress.stale = 0
        return True
    progress.stale += due
    return False


def follow_metric(run: Run, known: Mapping[str, Any]) -> None:
    """Pass the monitored metric to the schedule, unless training has not logged a new value.

    Raises:
        RunError: an evaluation does not say it, or it is a word.
    """
    name = run.schedule.monitor
    waits = name is not None and (name.startswith("train/") or has_own_rhythm(run, name))
    if name is not None and (name in known or not waits):
        if isinstance(known.get(name, ""), str):
            raise RunError(f"scheduler.monitor: {name} is none of the numbers there are: {list_numbers(known)}")
        run.schedule.evaluated(dict(known))


def stop_where_stale(run: Run) -> None:
    """End training after `train.early_stop` evaluations without a better objective."""
    progress = run.progress
    if (
        run.rhythm.early_stop is not None
        and progress.stale >= run.rhythm.early_stop
        and progress.step < run.rhythm.total_steps
    ):
        best = progress.best
        since = f"{best['objective']:.6g} at step {best['step']:,}" if best else "it was never a finite number"
        run.stop.end(
            f"train.early_stop: {run.objective.name} has not become better in {progress.stale} evaluations ({since})"
        )


def stop_at_value(run: Run) -> None:
    """End training where a metric is beyond a bound of `train.stop_when`.

    Raises:
        RunError: an evaluation does not say it, or it is a word.
    """
    last = run.progress.last
    for threshold in run.rhythm.stop_when if run.progress.step < run.rhythm.total_steps else ():
        value = last.get(threshold.name)
        evaluated = (
            run.progress.evaluated_at is not None
            and threshold.name.partition("/")[0] in run.objective.evaluated
            and not has_own_rhythm(run, threshold.name)
        )
        if isinstance(value, str) or (value is None and evaluated):
            raise RunError(f"train.stop_when: {threshold.name} is none of the numbers there are: {list_numbers(last)}")
        if value is not None and (said := threshold.describe(value)):
            run.stop.end(f"train.stop_when: {said}")


def save(run: Run) -> None:
    """Commit a checkpoint of the current state, if all of it is finite.

    Raises:
        NonFiniteError: something is not; no checkpoint is written.
        SaveError: the disk refused, and `train.on_save_error` is `stop`.
    """
    run.clock.pause()
    begun = time.perf_counter()
    check_losses(run)
    check_state(run)
    if run.checkpoints.syncs_log:
        run.log.sync()  # what the checkpoint says was logged must be on the disk before it
    if run.stop.deadline is not None and run.rhythm.max_seconds is not None:
        run.progress.seconds = run.rhythm.max_seconds - (run.stop.deadline - time.perf_counter())
    run.progress.seconds_training = max(run.progress.seconds_training, run.clock.budget.used)
    best = run.progress.best
    metric = best["objective"] if best is not None and best["step"] == run.progress.step else None
    if run.checkpoints.takes(metric):
        update_statistics(run)
        state = collect_state(run)
        run.trace.save(run, state)
        with handle_save_error(run):
            run.checkpoints.save(state, run.progress.step, metric, background=True)
    run.clock.saving += time.perf_counter() - begun
    run.clock.start()


def wait_for_checkpoint(run: Run) -> None:
    """Wait for the pending checkpoint."""
    begun = time.perf_counter()
    with handle_save_error(run):
        run.checkpoints.wait()
    run.clock.saving += time.perf_counter() - begun


@contextmanager
def handle_save_error(run: Run) -> Iterator[None]:
    """Raise or log a failed save, as `train.on_save_error` says."""
    try:
        yield
    except SaveError as error:
        if run.rhythm.on_save_error == "stop":
            raise
        run.log.alert(f"{error}. The run goes on (train.on_save_error=go_on)")
