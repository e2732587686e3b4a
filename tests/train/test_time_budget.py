"""Budget of training time: seconds of the loop after the first step, through pauses, compilations and resumes."""

import time
from pathlib import Path

import pytest
import torch

from runner.train import time_budget
from runner.train.state import StopRequest
from runner.train.time_budget import TIME_IS_UP, TrainingBudget
from tests.support import read_result


class Hand:
    """A clock that is set by hand, and the seconds of each timer that was started."""

    def __init__(self, monkeypatch):
        self.now, self.timers, self.stop = 100.0, [], StopRequest()
        monkeypatch.setattr(time_budget.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(self.stop, "end_in", lambda seconds, why: self.timers.append((round(seconds, 6), why)))


def test_only_seconds_of_the_loop_after_the_first_step_count(monkeypatch):
    """Neither the first step, nor a pause, nor a compilation; what is left is what the timer is set to."""
    hand = Hand(monkeypatch)
    budget = TrainingBudget(hand.stop, 10.0, 2.0, watches_compiler=False)
    for act, seconds in (
        (budget.start, 50),  # the first step
        (budget.arm, 3),
        (budget.pause, 40),  # an evaluation
        (budget.start, 1),
        (lambda: budget._note_compilation(begins=True), 30),
        (lambda: budget._note_compilation(begins=False), 0.5),
        (budget.pause, 20),
    ):
        act()
        hand.now += seconds
    assert budget.used == pytest.approx(2 + 3 + 1 + 0.5)
    assert hand.timers == [(8.0, TIME_IS_UP), (5.0, TIME_IS_UP), (4.0, TIME_IS_UP)]


def test_a_compilation_during_an_evaluation_starts_no_clock(monkeypatch):
    """The end of a compilation counts nothing while the clock is paused."""
    hand = Hand(monkeypatch)
    budget = TrainingBudget(hand.stop, 10.0, 0.0, watches_compiler=False)
    budget.start()
    budget.arm()
    budget.pause()
    budget._note_compilation(begins=True)
    budget._note_compilation(begins=False)
    hand.now += 7
    assert (budget.used, len(hand.timers)) == (0.0, 1)


SLOW = ("experiment=digits_mlp", "device=cpu", "log=quiet", "train.max_time=1s", "train.max_time_counts=training")


def test_setting_what_counts_without_a_limit_has_no_effect(runner):
    ran = runner("check", "train.max_time_counts=training")
    assert ran.status == 2
    assert "train.max_time_counts has no effect without `train.max_time`" in ran.out


@pytest.mark.exhaustive  # three seconds of sleep
def test_a_run_trains_for_its_time_whatever_its_first_step_and_its_evaluations_take(runner, monkeypatch):
    """A first step and evaluations that sleep leave training its second; a resume goes on where it stood."""
    from runner.train import pauses

    step, evaluate, seen = torch.optim.SGD.step, pauses.evaluate_and_show, []

    def sleep_first(self, *args, **kwargs):
        time.sleep(0.02 if seen else 1.0)
        seen.append(1)
        return step(self, *args, **kwargs)

    def sleep(*args):
        time.sleep(0.3)
        return evaluate(*args)

    monkeypatch.setattr(torch.optim.SGD, "step", sleep_first)
    monkeypatch.setattr(pauses, "evaluate_and_show", sleep)
    ran = runner(*SLOW, "train.duration=1000ep")
    result = read_result(ran.folder)
    saved = torch.load(Path(ran.folder) / "checkpoints" / "last.pt", weights_only=True)

    assert (ran.status, result["stopped"]) == (0, "train.max_time is used up")
    assert 30 < result["steps"] < 52
    assert saved["progress"]["seconds_training"] == pytest.approx(1.0, abs=0.15)
    seen.clear()
    assert runner("resume", str(ran.folder), "train.max_time=2s").status == 0
    assert result["steps"] + 25 < read_result(ran.folder)["steps"] < result["steps"] + 52
