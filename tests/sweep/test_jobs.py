"""Which jobs run: after how they ended before, `sweep.retry`, `sweep.rerun` and the code; and what directories say."""

import json
import signal
from pathlib import Path

import pytest

from runner.sweep.interfaces import Proposal
from runner.sweep.jobs import SweepPlan
from runner.sweep.ledger import JobRecord, Ledger
from runner.sweep.outcome import read_outcome
from runner.sweep.reconcile import decide, mark, reconcile
from runner.sweep.space import request

ENDINGS = {
    "completed": ("completed", ""),
    "pruned": ("pruned", ""),
    "stopped": ("interrupted", ""),
    "waiting": ("waiting", ""),
    **{
        cause: ("failed", cause)
        for cause in ("exception", "non-finite", "exit", "crash", "killed", "memory", "timeout", "lost", "disk")
    },
}
TO_DO = {"stopped", "waiting"}
OF_THE_MACHINE = {"killed", "memory", "timeout", "lost", "disk"}
OF_THE_JOB = {"exception", "non-finite", "exit", "crash"}


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path) as opened:
        yield opened


def plan_of(*arguments):
    return SweepPlan(request.make_request(["seed=0,1", *arguments], Path.cwd()), [], ())


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        ((), TO_DO | OF_THE_MACHINE),
        (("sweep.retry=all",), TO_DO | OF_THE_MACHINE | OF_THE_JOB),
        (("sweep.retry=none",), TO_DO),
        (("sweep.rerun=changed",), TO_DO | OF_THE_MACHINE | {"completed", "pruned"}),
    ],
)
def test_what_runs_again(ledger, arguments, runs):
    ledger.remember_modules("old", {"runner.train.loop": "0" * 64})
    rows = [JobRecord(name, 0, [], name, status=s, cause=c, code="old") for name, (s, c) in ENDINGS.items()]
    decided = decide(rows, ledger, plan_of(*arguments))

    assert decided.run.keys() == runs
    assert decided.other_code.keys() == {"completed", "pruned"} - runs
    assert all(differs == ["runner.train.loop"] for differs in decided.other_code.values())


def test_rows_say_what_is_asked_for_now_and_with_which_arguments(ledger):
    """The learning rate was shared by all jobs, and is swept now."""
    plan = plan_of("optimizer.lr=0.1,0.2")
    asked = [plan.ask(Proposal(point.own))[0] for point in plan.sweep.points()]
    before = [JobRecord(one.id, i, ["seed=0"], str(i), values={"seed": 0}, active=False) for i, one in enumerate(asked)]
    ledger.add([*before, JobRecord("other", 9, ["seed=2"], "9")])
    mark(ledger, rows := ledger.jobs(), asked)

    assert rows == ledger.jobs()
    assert [row.overrides for row in rows] == [*(list(one.point.overrides) for one in asked), ["seed=2"]]
    assert [row.values for row in rows[:2]] == [{"seed": 0, "optimizer.lr": 0.1}, {"seed": 0, "optimizer.lr": 0.2}]
    assert [row.active for row in rows] == [True] * len(asked) + [False]


def test_the_same_code_is_not_changed(ledger):
    from runner.experiment.record.provenance import hash_modules

    ledger.remember_modules("same", hash_modules(Path.cwd())["files"])
    decided = decide(
        [JobRecord("a", 0, [], "a", status="completed", code="same")], ledger, plan_of("sweep.rerun=changed")
    )

    assert ({}, {}) == (decided.run, decided.other_code)


def put(folder, **result):
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text("{}")
    (folder / "result.json").write_text(json.dumps({"metrics": {"val/loss": 1.5}, "objective": 1.5, **result}))


@pytest.mark.parametrize(
    ("result", "status", "known", "stopped", "expected"),
    [
        ({"status": "completed"}, 0, "", False, ("completed", "")),
        ({"status": "completed"}, -signal.SIGSEGV, "", False, ("completed", "")),
        ({"status": "completed"}, 0, "timeout", False, ("completed", "")),
        ({"status": "interrupted"}, 75, "", True, ("interrupted", "")),
        ({"status": "interrupted"}, 75, "timeout", False, ("failed", "timeout")),
        ({"status": "failed", "error": "ValueError: x"}, 1, "", False, ("failed", "exception")),
        ({"status": "failed", "error": "Fault: x", "fault": {}}, 1, "", False, ("failed", "non-finite")),
        ({"status": "failed", "error": "MemoryError: "}, 1, "", False, ("failed", "memory")),
        ({"status": "failed", "error": "OutOfMemoryError: CUDA"}, 1, "", False, ("failed", "memory")),
        ({"status": "failed", "error": "SaveError: a.pt (No space left on device)"}, 1, "", False, ("failed", "disk")),
        ({"status": "failed", "error": "OSError: [Errno 122] Disk quota exceeded"}, 1, "", False, ("failed", "disk")),
        ({"status": "failed", "error": "OSError: [Errno 5] Input/output error"}, 1, "", False, ("failed", "disk")),
        (None, 74, "", False, ("failed", "disk")),
        (None, 74, "timeout", False, ("failed", "timeout")),
        ({"status": "failed", "error": "ValueError: an earlier attempt"}, -9, "", False, ("failed", "killed")),
        (None, -signal.SIGKILL, "", False, ("failed", "killed")),
        (None, -signal.SIGKILL, "memory", False, ("failed", "memory")),
        (None, -signal.SIGKILL, "", True, ("interrupted", "")),
        (None, -signal.SIGSEGV, "", False, ("failed", "crash")),
        (None, -signal.SIGABRT, "", False, ("failed", "crash")),
        (None, -40, "", False, ("failed", "killed")),
        (None, -signal.SIGTERM, "", True, ("interrupted", "")),
        (None, 0, "", False, ("failed", "exit")),
        (None, 3, "", False, ("failed", "exit")),
        (None, None, "lost", False, ("failed", "lost")),
        (None, None, "", False, ("interrupted", "")),
    ],
)
def test_how_a_job_ended(tmp_path, result, status, known, stopped, expected):
    if result is not None:
        put(tmp_path, **result)
    columns = read_outcome(tmp_path, status, known, stopped=stopped)

    assert expected == (columns["status"], columns["cause"])
    assert bool(columns["error"]) == (expected[0] == "failed")


def test_a_result_that_somebody_cut_down_says_what_it_says(tmp_path):
    (tmp_path / "result.json").write_text('{"status": "completed"}')
    columns = read_outcome(tmp_path, None)

    assert ("completed", None, {}) == (columns["status"], columns["objective"], columns["metrics"])


def test_the_ledger_learns_from_the_directories_what_it_missed(tmp_path, ledger):
    put(tmp_path / "done", status="completed")
    put(tmp_path / "by_hand", status="completed")
    put(tmp_path / "wrong", status="failed", error="ValueError: x")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "config.yaml").write_text("{}")
    before = {"done": "running", "by_hand": "failed", "wrong": "running", "cut": "running", "not_begun": "running"}
    before |= {"deleted": "completed", "stays": "waiting"}
    ledger.add(JobRecord(name, i, [], name, status=status) for i, (name, status) in enumerate(before.items()))
    after = {row.id: row.status for row in reconcile(ledger, tmp_path)}

    assert after == {
        "done": "completed",
        "by_hand": "completed",
        "wrong": "failed",
        "cut": "interrupted",
        "not_begun": "waiting",
        "deleted": "waiting",
        "stays": "waiting",
    }
    assert after == {row.id: row.status for row in ledger.jobs()}
