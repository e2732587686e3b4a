"""The controller alone, with jobs that are done as soon as they are begun."""

import json
import time
from pathlib import Path

import pytest

from runner.config import sweep
from runner.sweep.board import Tally, board_for
from runner.sweep.controller import Controller, Stop
from runner.sweep.ledger import Ledger, Row
from runner.sweep.multirun import Listed
from runner.sweep.plan import Plan, adopt
from runner.sweep.protocols import Event, Point


class Instant:
    """An executor with two slots that only writes results."""

    def __init__(self):
        self.events, self.most = [], 0

    def has_room(self, job):
        return len(self.events) < 2

    def start(self, job):
        (Path(job.folder) / "result.json").write_text(
            json.dumps({"status": "completed", "metrics": {}, "objective": float(job.config["seed"])})
        )
        self.events.append(Event("ended", job.id, exit=0))
        self.most = max(self.most, len(self.events))

    def wait(self, seconds):
        events, self.events = self.events, []
        return events


@pytest.fixture
def seconds_of(tmp_path, monkeypatch):
    """The processor's seconds of a sweep of so many jobs, and its rows."""

    def run(count):
        folder = tmp_path / str(count)
        folder.mkdir()
        monkeypatch.chdir(folder)
        begun = time.process_time()
        plan = Plan(sweep.plan([f"seed=range(0,{count})"], folder), [], ())
        plan.folder.mkdir(parents=True)
        with Ledger(plan.folder) as ledger, (folder / "said").open("w") as said:
            asked = [plan.ask(Point(point.own))[0] for point in plan.sweep.points()]
            adopt(ledger, plan.folder, asked, plan)
            board = board_for(Tally(ledger.jobs(), count, "val/loss", "min"), said)
            executor = Instant()
            controller = Controller(plan, ledger, Listed([]), executor, board, Stop())
            for one in asked:
                controller.add(one, "never")
            controller.run()
            assert executor.most == 2
            return time.process_time() - begun, ledger.jobs()

    return run


@pytest.mark.exhaustive  # compares times
def test_jobs_cost_the_controller_the_same_whether_they_are_many_or_few(seconds_of):
    few, _ = seconds_of(50)
    many, rows = seconds_of(400)

    assert [row.objective for row in rows] == list(range(400))
    assert {(row.status, row.attempt) for row in rows} == {("completed", 1)}
    assert many / 400 < 1.5 * few / 50


def test_what_is_left_is_told_by_how_fast_jobs_have_ended():
    rows = [Row(str(number), number, [], str(number)) for number in range(4)]
    tally = Tally(rows, 4, "val/loss", "min")
    assert tally.left() is None
    tally._begun -= 10
    for row, status in zip(rows, ("failed", "completed"), strict=False):
        for now in ("running", status):
            row.status = now
            tally.update(row)

    assert tally.left() == pytest.approx(10, rel=0.01)
    assert tally.line() == "1 of 4 done, 0 running, 1 failed"
