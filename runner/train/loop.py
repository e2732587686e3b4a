"""Training loop: batch, step, backward, optimizer; and, when due, log, evaluate, save.

Nothing here waits for the device but a log line, an evaluation and a save.
"""

from runner.core.errors import RunError
from runner.train.pauses import begin, end_epoch, finish, iterate_batches, run_due_actions
from runner.train.state import Run


def fit(run: Run) -> None:
    """Train from `run.progress` to the end, or until a signal asks to stop."""
    progress, update, losses, stop = run.progress, run.update, run.losses, run.stop
    rhythm = run.rhythm
    takes = [] if update.metrics else run.inputs["train"]
    due = begin(run)
    while progress.step < rhythm.total_steps and not stop.asked:
        begun_at = (progress.step, progress.epoch)
        for batch in run.trace.watch(run.looks.batches(iterate_batches(run), run.log), run):
            outcome = update(batch)
            run.schedule.step()
            losses.add(outcome)
            for take in takes:
                take(outcome)
            progress.step += 1
            progress.batch += 1
            if progress.batch == rhythm.steps_per_epoch:
                end_epoch(run)
            if progress.step >= due or stop.asked:
                due = run_due_actions(run)
                if progress.step >= rhythm.total_steps or stop.asked:
                    break
        else:  # the end of the data; of unknown length where the epoch has not ended yet
            if progress.batch:
                end_epoch(run)
        if (progress.step, progress.epoch) == begun_at and not stop.asked:
            message = "an epoch of the train split has no batch (fewer samples than loader.batch_size with drop_last?)"
            raise RunError(message)
    finish(run)
