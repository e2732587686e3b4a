"""End of a run: the last evaluation, and the result."""

import signal
from typing import Any

from runner.core.exit_status import EXIT_DONE, EXIT_INTERRUPTED, EXIT_STOPPED
from runner.experiment.record.result import get_last_values, hash_weights
from runner.train import evaluation, pauses
from runner.train.state import Run, StopReason


def finish(run: Run, result: dict[str, Any]) -> int:
    """Evaluate the last weights where still due and fill in the result; return the exit status."""
    progress = run.progress
    if not run.stop.reason:
        if progress.step == run.rhythm.first_step:
            pauses.evaluate_and_compare(run, {})
            pauses.save(run)
            pauses.wait_for_checkpoint(run)
        if "test" in run.splits:
            test = evaluation.evaluate_and_show(run, "test")
            if test is not None:
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
    """Log that the objective had no value, if a run that trained never had one."""
    if run.progress.step and run.objective.name not in run.progress.last:
        known = evaluation.list_numbers(run.progress.last)
        run.log.say(f"train.objective: {run.objective.name} was never said, so nothing was compared; there are {known}")
