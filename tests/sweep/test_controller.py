"""The controller alone, with jobs that are done as soon as they are begun."""

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from runner.sweep.console import Console, SweepProgress, make_console
from runner.sweep.controller import Controller, SweepStop, catch_stop_signals
from runner.sweep.interfaces import Event, Proposal
from runner.sweep.jobs import SweepPlan
from runner.sweep.ledger import JobRecord, Ledger
from runner.sweep.reconcile import adopt
from runner.sweep.search.grid import Grid
from runner.sweep.space import request


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
        plan = SweepPlan(request.make_request([f"seed=range(0,{count})"], folder), [], ())
        plan.folder.mkdir(parents=True)
        with Ledger(plan.folder) as ledger, (folder / "said").open("w") as said:
            asked = [plan.ask(Proposal(point.own))[0] for point in plan.sweep.points()]
            adopt(ledger, plan.folder, asked, plan)
            board = make_console(SweepProgress(ledger.jobs(), count, "val/loss", "min"), Console(said))
            executor = Instant()
            controller = Controller(plan, ledger, Grid([]), executor, board, SweepStop())
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


@pytest.mark.parametrize(
    ("sent", "noted"),
    [
        ("TERM TERM USR1", "TERM"),
        ("INT INT", "INT INT"),
        ("TERM INT", "TERM INT"),
        ("INT TERM", "INT"),
    ],
)
def test_only_a_ctrl_c_means_more_the_second_time(sent, noted):
    """What stops jobs at once is the second of the signals that were noted."""
    stop = SweepStop(noted=True)
    with catch_stop_signals(stop):
        for name in sent.split():
            os.kill(os.getpid(), getattr(signal, f"SIG{name}"))

    assert [getattr(signal, f"SIG{name}") for name in noted.split()] == stop.signals


class Chosen(Grid):
    """A source that makes its points one by one."""

    known = False


def test_a_point_whose_directory_outlived_its_row_keeps_number_and_result(tmp_path, monkeypatch):
    """The ledger of a search was lost."""
    monkeypatch.chdir(tmp_path)
    plan = SweepPlan(request.make_request(["seed=range(0,3)"], tmp_path), [], ())
    points = [Proposal(point.own) for point in plan.sweep.points()]
    folder = plan.folder / f"5_{plan.ask(points[1])[0].id[:8]}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    (folder / "result.json").write_text('{"status": "completed", "metrics": {}, "objective": 9.0}')
    with Ledger(plan.folder) as ledger, (tmp_path / "said").open("w") as said:
        board = make_console(SweepProgress([], 3, "val/loss", "min"), Console(said))
        Controller(plan, ledger, Chosen(points), Instant(), board, SweepStop()).run()
        rows = {row.values["seed"]: (row.number, row.objective, row.attempt) for row in ledger.jobs()}

    assert rows == {0: (6, 0.0, 1), 1: (5, 9.0, 0), 2: (7, 2.0, 1)}


class InstantStack(Instant):
    """An executor that only writes the results of the members of a stack."""

    def start(self, job):
        for member in job.members:
            text = json.dumps({"status": "completed", "metrics": {}, "objective": 0.0})
            (Path(member["folder"]) / "result.json").write_text(text)
        self.events.append(Event("ended", job.id, exit=0))


class Reader:
    """A console that reads the ledger at each end of a job, as a program that listens does."""

    def __init__(self, folder):
        self.folder, self.seen = folder, []

    def ended(self, row):
        with Ledger(self.folder, read_only=True) as ledger:
            self.seen.append([row.status for row in ledger.jobs()])

    def __getattr__(self, name):
        return lambda *_: None


def test_ends_of_a_stack_are_told_once_all_of_them_are_in_the_ledger(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["experiment=digits_mlp", "device=cpu", "seed=0,1,2", "sweep.vectorize=on", "sweep.slots=1"]
    plan = SweepPlan(request.make_request(line, tmp_path), [], ())
    plan.folder.mkdir(parents=True)
    board = Reader(plan.folder)
    with Ledger(plan.folder) as ledger:
        asked = [plan.ask(Proposal(point.own))[0] for point in plan.sweep.points()]
        adopt(ledger, plan.folder, asked, plan)
        controller = Controller(plan, ledger, Grid([]), InstantStack(), board, SweepStop())
        for one in asked:
            controller.add(one, "never")
        controller.run()

    assert [["completed"] * 3] * 3 == board.seen


class FailsSecond(Instant):
    """An executor whose job of seed 1 fails, and whose others end when they are asked to stop."""

    def __init__(self):
        super().__init__()
        self.stopped, self.running = [], []

    def has_room(self, job):
        return len(self.running) < 2

    def start(self, job):
        self.running.append(job)
        if job.config["seed"] == 1:
            (Path(job.folder) / "result.json").write_text(json.dumps({"status": "failed", "error": "on purpose"}))
            self.events.append(Event("ended", job.id, exit=1))

    def stop(self, job):
        self.stopped.append(job)
        self.events.append(Event("ended", job, exit=75))

    def wait(self, seconds):
        events = super().wait(seconds)
        if not events:  # the others run for ever
            raise TimeoutError
        self.running.pop()
        return events


@pytest.mark.parametrize(
    ("setting", "statuses"),
    [
        ("sweep.fail_fast=true", ["interrupted", "failed", "waiting", "waiting"]),
        ("sweep.fail_fast=false", ["running", "failed", "running", "waiting"]),
    ],
)
def test_fail_fast_stops_the_sweep_at_its_first_failure(tmp_path, monkeypatch, setting, statuses):
    """The running job is asked to save, the others stay waiting."""
    monkeypatch.chdir(tmp_path)
    plan = SweepPlan(request.make_request(["seed=range(0,4)", setting], tmp_path), [], ())
    plan.folder.mkdir(parents=True)
    executor = FailsSecond()
    with Ledger(plan.folder) as ledger, (tmp_path / "said").open("w") as said:
        asked = [plan.ask(Proposal(point.own))[0] for point in plan.sweep.points()]
        adopt(ledger, plan.folder, asked, plan)
        board = make_console(SweepProgress(ledger.jobs(), 4, "val/loss", "min"), Console(said))
        controller = Controller(plan, ledger, Grid([]), executor, board, SweepStop())
        for one in asked:
            controller.add(one, "never")
        with suppress(TimeoutError):
            controller.run()
        found = [row.status for row in ledger.jobs()]

    assert (found, len(executor.stopped)) == (statuses, setting.endswith("true"))


def test_what_is_left_is_told_by_how_fast_jobs_have_ended():
    rows = [JobRecord(str(number), number, [], str(number)) for number in range(4)]
    tally = SweepProgress(rows, 4, "val/loss", "min")
    assert tally.left() is None
    tally._begun -= 10
    for row, status in zip(rows, ("failed", "completed"), strict=False):
        for now in ("running", status):
            row.status = now
            tally.update(row)

    assert tally.left() == pytest.approx(10, rel=0.01)
    assert tally.line() == "1 of 4 done, 0 running, 1 failed"


class StackOfTwo(Instant):
    """An executor whose stack goes on until the ledger knows the end of its first job, then of the second."""

    def __init__(self, ledger):
        super().__init__()
        self.ledger, self.stack, self.looks, self.told = ledger, None, 0, False

    def has_room(self, job):
        return self.stack is None

    def start(self, job):
        self.stack = job
        self.write(0)

    def write(self, number):
        words = {"status": "completed", "metrics": {}, "objective": 1.0}
        (Path(self.stack.members[number]["folder"]) / "result.json").write_text(json.dumps(words))

    def wait(self, seconds):
        self.looks += 1
        assert self.looks < 500, "the end of the first job was never seen"
        time.sleep(0.01)
        done = sum(row.status == "completed" for row in self.ledger.jobs())
        if done == 1:
            self.write(1)
        if done < 2:
            return []
        self.told = True  # its process has closed its logs
        return [Event("ended", self.stack.id, exit=0)]


def test_a_job_that_leaves_its_stack_early_is_in_the_ledger_and_the_stack_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("runner.sweep.controller.LOOK_SECONDS", 0.0)
    plan = SweepPlan(request.make_request(["seed=0,1", "sweep.vectorize=on", "sweep.slots=1"], tmp_path), [], ())
    plan.folder.mkdir(parents=True)
    with Ledger(plan.folder) as ledger, (tmp_path / "said").open("w") as said:
        asked = [plan.ask(Proposal(point.own))[0] for point in plan.sweep.points()]
        adopt(ledger, plan.folder, asked, plan)
        board = make_console(SweepProgress(ledger.jobs(), 2, "val/loss", "min"), Console(said))
        executor = StackOfTwo(ledger)
        controller = Controller(plan, ledger, Grid([]), executor, board, SweepStop())
        for one in asked:
            controller.add(one, "never")
        controller.run()
        rows = ledger.jobs()

    assert [(row.status, row.objective, row.attempt) for row in rows] == [("completed", 1.0, 1)] * 2
    assert executor.told, "its process was not waited for"


class FailingStack(StackOfTwo):
    """An executor whose stack goes on with its second job after the first has failed, until it is asked to stop."""

    def write(self, number):
        words = {"status": "failed", "cause": "exception", "error": "on purpose"}
        (Path(self.stack.members[number]["folder"]) / "result.json").write_text(json.dumps(words))

    def stop(self, job):
        self.told = job == self.stack.id

    def wait(self, seconds):
        self.looks += 1
        assert self.looks < 100, "the failure was not seen while the other job trained on"
        return [Event("ended", self.stack.id, exit=75)] if self.told else []


def test_a_failure_in_a_stack_stops_the_sweep_at_once_where_that_is_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("runner.sweep.controller.LOOK_SECONDS", 0.0)
    line = ["seed=0,1", "sweep.vectorize=on", "sweep.slots=1", "sweep.fail_fast=true"]
    plan = SweepPlan(request.make_request(line, tmp_path), [], ())
    plan.folder.mkdir(parents=True)
    with Ledger(plan.folder) as ledger, (tmp_path / "said").open("w") as said:
        asked = [plan.ask(Proposal(point.own))[0] for point in plan.sweep.points()]
        adopt(ledger, plan.folder, asked, plan)
        board = make_console(SweepProgress(ledger.jobs(), 2, "val/loss", "min"), Console(said))
        controller = Controller(plan, ledger, Grid([]), FailingStack(ledger), board, SweepStop())
        for one in asked:
            controller.add(one, "never")
        controller.run()
        rows = ledger.jobs()

    assert [(row.status, row.cause) for row in rows] == [("failed", "exception"), ("interrupted", "")]
