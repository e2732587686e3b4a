"""Replay and difference of runs that were trained in a stack: within rounding, and no further."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from runner.config.check.check import Check, to_resolved_data
from runner.config.compose import compose
from runner.log.trace_file import read_trace, read_trace_lines
from runner.sweep.executors.stack_attempt import run_stack_attempt
from runner.sweep.interfaces import JobSpec
from tests.support import Ran

LINE = ("experiment=digits_mlp", "device.type=cpu", "dataset.limit=200", "train.duration=12st", "log.every=5st")
RATES = (0.1, 0.05)


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two jobs of one stack, with a seed and a learning rate each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("runner.train.vectorized.allocator.keep_freed_memory", lambda: False)
    members = []
    for seed, rate in enumerate(RATES):
        composed = compose([*LINE, f"optimizer.lr={rate}", f"seed={seed}"])
        folder = tmp_path / f"{rate}"
        folder.mkdir()
        config = to_resolved_data(Check(composed, ()).config)
        members.append(JobSpec(f"{rate}", str(folder), composed.unresolved_yaml, config, ["-m"]))
    stack = JobSpec("stack 0", members[0].folder, "", {}, [], members=[asdict(one) for one in members])
    assert run_stack_attempt(stack) == (0, "")
    return [Path(one.folder) for one in members]


def test_a_job_of_a_stack_replays_within_rounding(jobs: list[Path], runner: Callable[..., Ran]) -> None:
    """All twelve steps, also from a record file; in words, and with the tolerance for programs."""
    runner("record", str(jobs[0]), "--to", "job.record.json")
    answers = [json.loads(runner("replay", str(what), "--json").out) for what in (jobs[0], "job.record.json")]

    assert [(one["same"], one["last"], one["within"]) for one in answers] == [(True, 12, 1e-4)] * 2
    assert "Steps 1 to 12 agree within 0.0001 of each loss" in answers[0]["answer"]


def test_another_rate_is_found_at_the_step_that_it_moves(jobs: list[Path], runner: Callable[..., Ran]) -> None:
    """The config says another one than the stack had: rounding is no excuse for a hundredth of it."""
    config = yaml.safe_load((jobs[1] / "config.yaml").read_text())
    config["optimizer"]["lr"] = RATES[1] * 1.01
    (jobs[1] / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    ran = runner("replay", str(jobs[1]), "--json")
    answer = json.loads(ran.out)

    assert (ran.status, answer["same"], answer["step"], answer["phase"]) == (1, False, 1, "optimizer"), answer
    assert "optimizer.lr was 0.05, is 0.0505" in answer["answer"]


def test_a_loss_beyond_rounding_is_the_first_difference(jobs: list[Path], runner: Callable[..., Ran]) -> None:
    """A record whose loss of step 7 is off by a thousandth, of a run in a stack."""
    runner("record", str(jobs[0]), "--to", "job.record.json")
    record = json.loads(Path("job.record.json").read_text())
    line = next(line for line in record["trace"] if line["step"] == 10)
    from runner.log.trace_file import pack_losses, unpack

    losses = unpack(line["loss"])
    line["loss"] = pack_losses([loss * 1.001 if place == 1 else loss for place, loss in enumerate(losses)])
    Path("job.record.json").write_text(json.dumps(record))
    answer = json.loads(runner("replay", "job.record.json", "--json").out)

    assert (answer["step"], answer["phase"]) == (7, "forward"), answer
    assert "agree within rounding" in answer["answer"]


def test_the_traces_of_two_jobs_can_be_compared(jobs: list[Path], runner: Callable[..., Ran]) -> None:
    """Every step has its loss, order and settings; the jobs differ from the first step on."""
    found = json.loads(runner("diff", *map(str, jobs), "--json").out)
    trace = read_trace(read_trace_lines(jobs[0]))

    assert (found["losses"]["steps"], found["losses"]["first"]) == (12, 1)
    assert [sorted(facts.hashes) for facts in trace.steps.values()] == [["order"]] * 12
    assert trace.steps[12].settings["lr"] != trace.steps[1].settings["lr"]
    assert trace.stacked_after == 0
