"""A run that a sweep may stop: when it is asked, what it leaves, and that being asked changes nothing."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.config.compose import compose
from runner.experiment.examine import examine
from runner.experiment.record.continuation import plan_continuation
from runner.experiment.record.recorded import load_recorded_config
from runner.experiment.run import Outcome, launch, train
from runner.experiment.run_log import Judge
from tests.support import read_metrics

SHORT = ("train.duration=4ep", "dataset.limit=200", "device=cpu", "log=quiet")  # 16 steps, 4 values of val/accuracy
Begin = Callable[..., Outcome]


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Begin:
    """A run in a folder of its own, judged."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, judge: Judge | None, *more: str) -> Outcome:
        composed = compose([*SHORT, *more])
        folder = tmp_path / name
        folder.mkdir()
        return train(examine(composed, ()), composed, [], (), folder, judge=judge)

    return run


def go_on(folder: Path, judge: Judge | None = None) -> Outcome:
    """What `resume` does, judged."""
    config, unresolved = load_recorded_config(folder, [])
    again = plan_continuation(folder, config, unresolved)
    return launch(config, folder, unresolved=unresolved, command=[], again=again, judge=judge)


def test_a_run_is_pruned_at_the_very_step_of_the_value_that_was_judged(begin: Begin) -> None:
    asked = []

    def judge(count: int, value: float) -> bool:
        asked.append((count, value))
        return count == 2

    ended = begin("pruned", judge)

    assert (ended.status, ended.result["status"], ended.result["steps"]) == (0, "pruned", 8)
    assert [(number, line["val/accuracy"]) for number, line in enumerate(read_metrics(ended.folder)[:2], 1)] == asked
    assert ended.result["objective"] == asked[-1][1] == ended.result["metrics"]["val/accuracy"]
    assert (ended.folder / "checkpoints" / "last.pt").resolve().name == "step_00000008.pt"


def test_a_pruned_run_goes_on_to_the_bits_of_one_that_never_was(begin: Begin) -> None:
    whole = begin("whole", None)
    pruned = begin("pruned", lambda count, _: count == 3)
    ended = go_on(pruned.folder)

    assert (whole.result["weights_sha256"], whole.result["metrics"], "completed") == (
        ended.result["weights_sha256"],
        ended.result["metrics"],
        ended.result["status"],
    )
    assert read_metrics(whole.folder) == read_metrics(pruned.folder)


def test_a_judge_that_lets_it_live_changes_no_bit_and_is_not_asked_at_the_end(begin: Begin) -> None:
    asked: list[int] = []
    judged = begin("judged", lambda count, _: bool(asked.append(count)))
    assert begin("alone", None).result["weights_sha256"] == judged.result["weights_sha256"]
    assert asked == [1, 2, 3]


def test_values_are_counted_through_a_resume(begin: Begin) -> None:
    """After an interruption the next value has the next number, and none is judged as another."""
    asked: list[tuple[int, float]] = []

    def judge(count: int, value: float) -> bool:
        asked.append((count, value))
        if len(asked) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    ended = begin("interrupted", judge)
    assert ended.result["status"] == "interrupted"
    go_on(ended.folder, judge)
    assert [(i + 1, line["val/accuracy"]) for i, line in enumerate(read_metrics(ended.folder)[:3])] == asked


def test_a_training_metric_is_judged_at_its_log_lines_and_at_evaluations(begin: Begin) -> None:
    ended = begin("loss", lambda count, _: count == 3, "log.every=3st", "train.objective=train/loss", "train.mode=min")
    assert (ended.result["status"], ended.result["steps"]) == ("pruned", 6)  # after steps 3, 4 and 6
