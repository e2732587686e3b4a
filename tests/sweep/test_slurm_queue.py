"""What is made of SLURM's words."""

import subprocess

import pytest

from runner.sweep.executors import slurm_queue
from runner.sweep.executors.slurm_queue import Slurm


@pytest.fixture
def told(monkeypatch):
    """What squeue and sacct say from now on: lines, or an exception; and every look is a new one."""
    answers = {"squeue": [], "sacct": []}

    def said(program, *_words):
        answer = answers[program]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(slurm_queue, "_run_command", said)
    monkeypatch.setattr(slurm_queue, "LOOK_SECONDS", -1)
    return answers


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "REQUEUE_HOLD", "SPECIAL_EXIT"])
def test_what_may_run_again_is_not_over(state, told):
    told["squeue"] = [f"7 {state}"]
    watch = Slurm()
    assert watch.may_run("7")
    assert [False] * 3 == [watch.is_over("7", ["7"]) for _ in range(3)]


@pytest.mark.parametrize(
    ("state", "cause"),
    [("PREEMPTED", "lost"), ("NODE_FAIL", "lost"), ("TIMEOUT", "timeout"), ("OUT_OF_MEMORY", "memory")],
)
def test_what_two_looks_agree_on_is_over(state, cause, told):
    told["squeue"] = [f"7 {state}", "8 RUNNING"]
    watch = Slurm()
    assert [False, True] == [watch.is_over("7", ["7", "8"]) for _ in range(2)]
    told["squeue"] = ["8 RUNNING"]  # forgotten minutes later
    assert ((state, cause), False) == (watch.ending("7"), watch.is_over("8", ["7", "8"]))


def test_a_job_that_is_queued_again_between_two_looks_is_not_over(told):
    watch = Slurm()
    found = []
    for state in ("NODE_FAIL", "PENDING", "NODE_FAIL", "RUNNING"):
        told["squeue"] = [f"7 {state}"]
        found.append(watch.is_over("7", ["7"]))
    assert [False] * 4 == found


@pytest.mark.parametrize("error", [subprocess.TimeoutExpired("squeue", 60), OSError("gone")])
def test_slurm_that_does_not_answer_ends_no_job(error, told):
    told["squeue"] = error
    watch = Slurm()
    assert [True, False, False] == [watch.may_run("7"), watch.is_over("7", ["7"]), watch.is_over("7", ["7"])]


@pytest.mark.parametrize(
    ("accounted", "expected"),
    [(["CANCELLED by 1000"], ("CANCELLED", "killed")), ([], ("UNKNOWN", "lost")), (OSError(), ("UNKNOWN", "lost"))],
)
def test_of_a_job_that_squeue_has_forgotten_sacct_is_asked(accounted, expected, told):
    told["squeue"] = subprocess.CalledProcessError(1, "squeue", "", "slurm_load_jobs error: Invalid job id specified")
    told["sacct"] = accounted
    watch = Slurm()
    assert [False, True] == [watch.is_over("7", ["7"]) for _ in range(2)]
    assert (False, expected) == (watch.may_run("7"), watch.ending("7"))
