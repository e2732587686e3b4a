"""Verdicts of a sweep: one trial for all jobs that are alike, written down and followed."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from runner.config.schema import Sweep
from runner.core.exit_status import EXIT_APART, EXIT_DONE
from runner.sweep.console import Console, SweepProgress, make_console
from runner.sweep.controller import Controller, SweepStop
from runner.sweep.interfaces import Event, Proposal
from runner.sweep.jobs import SweepPlan
from runner.sweep.ledger import Ledger
from runner.sweep.reconcile import adopt
from runner.sweep.report.results import gather
from runner.sweep.report.table import as_json, format_report
from runner.sweep.search.grid import Grid
from runner.sweep.space import request
from runner.sweep.stacks import StackPlan
from runner.sweep.verdicts import OFF, Verdict, read_verdicts


class TryingExecutor:
    """An executor with two slots, whose first stack says at its third look what its trial has found."""

    gpus = 0

    def __init__(self, as_one, most=99):
        self.as_one, self.most, self.started, self.looks, self.running = as_one, most, [], 0, []

    def has_room(self, job):
        return len(self.running) < 2

    def start(self, job):
        self.started.append((self.looks, len(job.members) or 1, job.timed))
        self.running.append(job)

    def wait(self, seconds):
        self.looks += 1
        if len(self.started) > self.most:
            raise TimeoutError  # the controller is gone
        first = self.running[0] if self.running else None
        if first is not None and first.timed and self.looks < 3:
            return []
        if first is not None and first.timed:
            self.running[0] = replace(first, timed=False, members=first.members if self.as_one else first.members[:1])
            exit_status = EXIT_DONE if self.as_one else EXIT_APART
            return [Event("tried", first.id, exit=exit_status, error="why", member=first.members[0]["id"])]
        ended, self.running = self.running, []
        for job in ended:
            for one in job.members or [{"folder": job.folder}]:
                words = {"status": "completed", "metrics": {}, "objective": 1.0}
                (Path(one["folder"]) / "result.json").write_text(json.dumps(words))
        return [Event("ended", job.id, exit=0) for job in ended]


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Run, or continue, a sweep of so many jobs with an executor; return what was said and the rows."""
    monkeypatch.chdir(tmp_path)

    def run(executor, jobs, *overrides):
        line = [f"seed=range(0,{jobs})", "sweep.slots=2", "device.type=cpu", *overrides]
        plan = SweepPlan(request.make_request(line, tmp_path), [], ())
        plan.folder.mkdir(parents=True, exist_ok=True)
        with Ledger(plan.folder) as ledger, (tmp_path / "said").open("w") as said:
            asked = [plan.ask(Proposal(point.own))[0] for point in plan.sweep.points()]
            adopt(ledger, plan.folder, asked, plan)
            new = [one.id for one in asked if one.id not in {row.id for row in ledger.jobs()}]
            ledger.add([plan.row(one, number) for number, one in enumerate(asked) if one.id in new])
            board = make_console(SweepProgress(ledger.jobs(), jobs, "val/loss", "min"), Console(said))
            controller = Controller(plan, ledger, Grid([]), executor, board, SweepStop())
            done = {row.id for row in ledger.jobs() if row.status == "completed"}
            for one in asked:
                controller.add(one, None if one.id in done else "never")
            with suppress(TimeoutError):
                controller.run()
            rows, settings = ledger.jobs(), ledger.settings()
        lines = [line for line in (tmp_path / "said").read_text().splitlines() if line.startswith("vectorize")]
        return plan, lines, rows, settings

    return run


def test_jobs_that_are_alike_wait_for_one_trial_and_take_its_verdict_over(sweep):
    """The second stack starts when the first has passed, without a look at the clock; ledger and report know."""
    executor = TryingExecutor(as_one=True)
    plan, lines, rows, settings = sweep(executor, 8)
    report = gather(plan.folder)

    assert executor.started == [(0, 4, True), (3, 4, False)]
    assert lines == ["vectorize: 8 jobs train as one model: why (sweep.vectorize=off: a process each)"]
    assert [(v.as_one, v.why, v.by, v.jobs) for v in read_verdicts(settings).values()] == [
        (True, "why", "auto", [*range(4)])
    ]
    assert {row.attempt for row in rows} == {1}
    assert as_json(report)["stacked"] == [*range(4)]
    assert "4 of 8 trained as one model with others: equal to rounding to a job alone" in format_report(report)


def test_a_refusal_frees_the_others_at_once_and_holds_for_the_same_line_again(sweep):
    """The first job goes on in its process; the others were not touched, and no further stack is tried, also later."""
    executor, later = TryingExecutor(as_one=False, most=3), TryingExecutor(as_one=True)
    _, first, _, settings = sweep(executor, 8)
    _, again, rows, _ = sweep(later, 8)

    assert executor.started[:3] == [(0, 4, True), (3, 1, False), (4, 1, False)]
    assert [verdict.jobs for verdict in read_verdicts(settings).values()] == [[]]
    assert {(members, timed) for _, members, timed in later.started} == {(1, False)}
    assert [*first, *again] == [
        "vectorize: 8 jobs train alone: why",
        "vectorize: 6 jobs train alone, as this sweep has decided before: why (sweep.vectorize=on tries again)",
    ]
    assert [row.status for row in rows] == ["completed"] * 8


def test_a_sweep_goes_on_as_it_began_also_with_few_jobs_left(sweep):
    """Four more seeds would not be tried by themselves; they follow the verdict, but with `off`."""
    sweep(TryingExecutor(as_one=True), 8)
    more = TryingExecutor(as_one=False)
    _, lines, *_ = sweep(more, 12)
    off = TryingExecutor(as_one=True)
    _, silent, *_ = sweep(off, 16, "sweep.vectorize=off")

    assert more.started == [(0, 2, False), (0, 2, False)]
    assert lines == [f"vectorize: 4 jobs train as one model, as this sweep has decided before: why ({OFF})"]
    assert ({members for _, members, _ in off.started}, silent) == ({1}, [])


def test_a_verdict_of_a_stranger_is_no_verdict(sweep):
    """The ledger may come from somebody else: what is there must be of its kind."""
    plan, *_ = sweep(TryingExecutor(as_one=True), 4, "sweep.vectorize=off")
    with Ledger(plan.folder) as ledger:
        ledger.set(stacks={"x": {"as_one": "yes"}})
        with pytest.raises(ValueError, match="`stacks` of the sweep"):
            ledger.settings()


def test_gpus_have_a_stack_each(sweep):
    """Also with `device.type=auto`; a GPU that is named takes all."""
    config = sweep(TryingExecutor(as_one=True), 1)[0].base
    plan = StackPlan(Sweep(), gpus=8)
    counts = []
    for device in ("auto", "cuda", "cuda:3"):
        config.device.type = device
        counts.append(plan.count_slots(config))

    assert counts == [8, 8, 1]


def test_what_on_refused_is_tried_again():
    """`on` is typed on purpose: after a change of the model the same line is a new question."""
    plan = StackPlan(Sweep(vectorize="on"))
    plan.recall({"a": Verdict(False, by="on"), "b": Verdict(True, by="on", fits=3), "c": Verdict(False, by="auto")})

    assert (plan.alone, plan.fitting, plan.recalled) == (set(), {"b": 3}, {"b"})
