"""End of a run: the last evaluation, and the result."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, cast

from runner.core.exit_status import EXIT_DONE, EXIT_INTERRUPTED, EXIT_STOPPED
from runner.experiment.record.result import get_last_values, hash_weights
from runner.train import evaluation, pauses
from runner.train.actions import keep_modules
from runner.train.checkpoint import ReadOnlyCheckpoints
from runner.train.state import Run, StopReason
from runner.train.state_dict import put_weights


@contextmanager
def choose_test_weights(run: Run, test_with: str) -> Iterator[dict[str, Any]]:
    """Put the weights of the best checkpoint into the model for the test, if it is to be done with these.

    Its value says which they are, for the result. Afterwards everything is as it was.
    """
    best = run.progress.best
    if test_with == "last" or best is None:
        yield {"test_with": {"checkpoint": "last", "step": run.progress.step}} if test_with == "best" else {}
        return
    run.checkpoints.wait()
    run.team.same(None)  # until the first process has saved
    saved = ReadOnlyCheckpoints(run.checkpoints.folder, mode=run.checkpoints.mode).load("best")
    if saved["progress"]["step"] != best["step"]:
        run.log.say(
            f"train.test_with: no checkpoint of step {best['step']:,}, the best one, so the test is of the last"
        )
        yield {"test_with": {"checkpoint": "last", "step": run.progress.step}}
        return
    average, parts = run.average, [cast("Any", part) for part in (run.loss, run.step) if hasattr(part, "state_dict")]
    states = [deepcopy(part.state_dict()) for part in parts]
    with keep_modules([run.model]):
        try:
            put_weights(run, saved)
            yield {"test_with": {"checkpoint": "best", "step": best["step"]}}
        finally:
            run.average = average
            for part, state in zip(parts, states, strict=True):
                part.load_state_dict(state)


def finish(run: Run, result: dict[str, Any], test_with: str = "last") -> int:
    """Evaluate the last weights where still due and fill in the result; return the exit status."""
    progress = run.progress
    if not run.stop.reason:
        if progress.step == run.rhythm.first_step:
            pauses.evaluate_and_compare(run, {})
            pauses.save(run)
            pauses.wait_for_checkpoint(run)
        if "test" in run.splits:
            with choose_test_weights(run, test_with) as chosen:
                test = evaluation.evaluate_and_show(run, "test")
            if test is not None:
                result |= chosen
                progress.last |= test
                run.log.evaluated(progress.step, progress.epoch, test)
    result["best"] = progress.best and {"step": progress.best["step"], "metrics": progress.best["metrics"]}
    result["weights_sha256"] = hash_weights(run.layout.whole(run.model.state_dict()))
    if run.scaler is not None:
        result["steps_skipped"] = run.scaler.skipped
        run.log.say(f"fp16's scaler skipped {run.scaler.skipped:,} of {progress.step:,} steps (infinite gradients)")
    if run.average is not None:
        result["ema_sha256"] = hash_weights(run.layout.whole(run.average.state_dict()))
    if run.stop.reason is StopReason.PRUNED:
        result["status"] = "pruned"
        result |= get_last_values(run)
        return EXIT_DONE
    if run.stop.reason:
        result["status"] = "interrupted"
        result["signal"] = signal.Signals(run.stop.signal).name
        return EXIT_INTERRUPTED if run.stop.signal == signal.SIGINT else EXIT_STOPPED
    result["status"] = "completed"
    if run.stop.ended:
        result["stopped"] = run.stop.ended
        run.log.say(f"training ended after step {progress.step:,} of {run.rhythm.total_steps:,}: {run.stop.ended}")
    say_unknown(run)
    say_not_averaged(run)
    result |= get_last_values(run)
    result["train"] = {name: value for name, value in progress.last.items() if name.startswith("train/")}
    return EXIT_DONE


def say_not_averaged(run: Run) -> None:
    """Log that an average of the weights had no update, because the run ended before the first."""
    if run.average is not None and run.progress.step and not run.average.updates:
        said = f"the first update is after step {run.average.first:,}, and there were {run.progress.step:,}"
        run.log.say(f"train.average: nothing was averaged: {said}")


def say_unknown(run: Run) -> None:
    """Log that the objective or a derived number had no value, if a run that trained never had one."""
    if run.progress.step and run.objective.name not in run.progress.last:
        known = evaluation.list_numbers(run.progress.last)
        run.log.say(f"train.objective: {run.objective.name} was never said, so nothing was compared; there are {known}")
    seen = {name.partition("/")[2] for name in run.progress.last}
    for number in run.derived if run.progress.step else ():
        if number.name not in seen:
            sources = ", ".join(f"`{source}`" for source in number.sources.values())
            run.log.say(f"metrics.{number.name} has no value: no split has all of {sources}")
