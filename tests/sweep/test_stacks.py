"""Stacks of a sweep: which jobs they have, what becomes of them, and how they go on."""

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from runner.config.check.check import Check, to_resolved_data
from runner.config.compose import compose
from runner.config.schema import Config, Sweep
from runner.core.exit_status import EXIT_APART, EXIT_DONE, EXIT_STOPPED
from runner.sweep.executors.attempt import run_attempt
from runner.sweep.executors.stack_attempt import run_stack_attempt
from runner.sweep.interfaces import JobSpec
from runner.sweep.stacks import StackPlan, describe_fitting, read_fitting
from runner.train.vectorized.loop import StackTraining
from tests.support import read_result, write_files

COMMON = (
    "experiment=digits_mlp",
    "device.type=cpu",
    "dataset.limit=200",
    "train.duration=12st",
    "train.checkpoint_every=4st",
)


def make_config(*overrides: str) -> Config:
    """Compose and check a config."""
    return Check(compose([*COMMON, *overrides]), ()).config


def make_plan(points: list[list[str]], **settings: Any) -> StackPlan:
    """Make the plan of some jobs, numbered from 0."""
    plan = StackPlan(Sweep(**{"slots": 2, "vectorize": "auto"} | settings))
    for number, point in enumerate(points):
        plan.add(str(number), make_config("train.duration=60st", *point))
    return plan


def choose_all(plan: StackPlan, jobs: int, place: tuple[int, str] = (0, "")) -> list[int]:
    """Return the sizes of all stacks, one after the other."""
    waiting, sizes = [str(number) for number in range(jobs)], []
    while waiting:
        chosen = plan.choose(waiting, lambda _: place)
        waiting = [job for job in waiting if job not in chosen]
        sizes.append(len(chosen))
    return sizes


ALIKE = [
    ["seed=1"],
    ["optimizer.lr=0.3", "scheduler=none"],
    ["train.duration=20st", "train.ema=0.9"],
    ["init=xavier", "loss.label_smoothing=0.1"],
    ["train.clip_norm=1"],
    ["optimizer.weight_decay=0.1", "optimizer.momentum=0.5"],
    ["train.early_stop=2"],
    ["log.every=3st"],
]


def test_jobs_that_differ_in_what_a_dimension_carries_are_in_one_group():
    """Eight of them fill two slots; the last stack has what is left."""
    plan = make_plan(ALIKE)

    assert choose_all(plan, len(ALIKE)) == [4, 4]
    assert [*plan.describe()] == [
        "vectorize: 8 jobs train as one model, 4 in each of 2 processes, where that is faster"
    ]


def test_other_structures_are_other_groups():
    """Width, batch size and the kind of the optimizer are of the whole stack."""
    others = [["model.sizes=[64,32,10]"], ["loader.batch_size=32"], ["optimizer=adam"], ["loader.drop_last=true"]]
    plan = make_plan([["seed=1"], *others], vectorize="on")

    assert len(set(plan.keys.values())) == 5
    assert choose_all(plan, 5) == [1] * 5


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("optimizer=lbfgs", "optimizer"),
        ("device.compile=true", "device.compile"),
        ("log.gradient_norm=true", "log.gradient_norm"),
        ("train.detect_anomaly=true", "train.detect_anomaly"),
        ("loader.bad_samples=skip", "loader.bad_samples"),
        ("train.max_time=1h", "train.max_time"),
    ],
)
def test_a_job_that_joins_none_is_shown_with_its_key(override, key):
    """One line for all jobs of one reason."""
    plan = make_plan([[override, f"seed={seed}"] for seed in range(3)])

    assert [line.split(": ")[:3] for line in plan.describe()] == [["vectorize", "3 jobs alone", key]]


def test_few_jobs_are_not_tried_unless_asked():
    """`auto` wants four a slot, `on` two, `off` none."""
    points = [[f"seed={seed}"] for seed in range(6)]

    assert [choose_all(make_plan(points, vectorize=how), 6) for how in ("auto", "on", "off")] == [
        [1] * 6,
        [3, 3],
        [1] * 6,
    ]


def test_jobs_without_an_end_go_on_in_halves_and_then_alone():
    """The one that ends its process is alone after a few tries; one that cannot be mapped, at once."""
    plan = make_plan([[f"seed={seed}"] for seed in range(8)])
    jobs = [str(number) for number in range(8)]
    sizes = [choose_all(plan, 8)]
    for left in (jobs, jobs[:4], jobs[:2]):
        plan.part(left, alone=False)
        sizes.append(choose_all(plan, 8))

    assert sizes == [[4, 4], [4, 4], [2, 2, 4], [1, 1, 2, 4]]


def test_a_later_batch_fills_stacks_of_its_own_and_knows_what_cannot_be_mapped():
    """Three jobs were few; the next eight are not, until their group is found to be slower as one."""
    plan = make_plan([[f"seed={seed}"] for seed in range(3)])
    sizes = [choose_all(plan, 3)]
    for number in range(3, 11):
        plan.add(str(number), make_config("train.duration=60st", f"seed={number}"))
    sizes.append([len(plan.choose([str(number) for number in range(3, 11)], lambda _: (0, "")))])
    plan.part(["3", "4"], alone=True)
    plan.add("11", make_config("seed=11"))
    sizes.append([len(plan.choose(["11", "5"], lambda _: (0, "")))])

    assert sizes == [[1, 1, 1], [4], [1]]


def test_jobs_that_the_memory_does_not_hold_go_on_in_equal_stacks_that_fit():
    """Also those that come later, and not only those that were refused."""
    plan = make_plan([[f"seed={seed}"] for seed in range(4)], slots=1)
    plan.part(["0", "1"], alone=False, fits=read_fitting(describe_fitting("memory: 4 jobs hold 3 GiB", 3)))
    sizes = choose_all(plan, 4)
    plan.add("4", make_config("seed=4"))

    assert (sizes, plan.most["4"]) == ([2, 2], 3)


def test_jobs_of_one_stack_go_on_together():
    """Whoever was together stays together, whatever the slots."""
    plan = make_plan([[f"seed={seed}"] for seed in range(8)])
    places = {str(number): (4, "0 1 2 3 4 5" if number < 6 else "6 7") for number in range(8)}
    first = plan.choose([*places], places.__getitem__)

    assert first == ["0", "1", "2", "3", "4", "5"]


# ---- attempts


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory, in a process that keeps its allocator."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("runner.train.vectorized.allocator.keep_freed_memory", lambda: False)
    return tmp_path


def make_spec(name: str, *points: list[str]) -> JobSpec:
    """Make the specification of a stack of points, with directories."""
    members = []
    for number, point in enumerate(points):
        composed = compose([*COMMON, *point])
        place = Path(f"{name}_{number}").absolute()
        place.mkdir(exist_ok=True)
        config = to_resolved_data(Check(composed, ()).config)
        members.append(asdict(JobSpec(str(number), str(place), composed.unresolved_yaml, config, ["-m"])))
    return JobSpec("stack 0", members[0]["folder"], "", {}, [], members=members)


POINTS = (["seed=1"], ["seed=2", "optimizer.lr=0.05"], ["seed=3"])


def read_hashes(name: str) -> list[str]:
    """Read the hashes of the final weights."""
    return [read_result(Path(f"{name}_{number}"))["weights_sha256"] for number in range(len(POINTS))]


def test_a_stack_gives_the_same_again_also_when_it_was_stopped(folder, monkeypatch):
    """Stopped after some steps and continued, the weights are those of the undisturbed stack, to the bit."""
    assert run_stack_attempt(make_spec("whole", *POINTS)) == (EXIT_DONE, "")
    take = StackTraining.take_step

    def stop(training: StackTraining) -> None:
        if training.members[0].run.progress.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        take(training)

    monkeypatch.setattr(StackTraining, "take_step", stop)
    assert run_stack_attempt(make_spec("cut", *POINTS))[0] == EXIT_STOPPED
    monkeypatch.setattr(StackTraining, "take_step", take)
    assert [read_result(Path(f"cut_{number}"))["status"] for number in range(3)] == ["interrupted"] * 3
    assert run_stack_attempt(make_spec("cut", *POINTS)) == (EXIT_DONE, "")

    assert read_hashes("cut") == read_hashes("whole")


def test_a_stack_that_does_not_fit_is_split_before_it_trains(folder, monkeypatch):
    """By `sweep.memory`, of which the process holds all but 2.5 MiB already; the jobs have no result."""
    monkeypatch.setattr("runner.sweep.executors.memory_limit.measure_resident", lambda *_: 2**30 - 5 * 2**19)
    spec = asdict(make_spec("large", *POINTS))
    status, reason = run_stack_attempt(JobSpec(**{**spec, "memory": 1.0}))

    assert (status, read_fitting(reason)) == (EXIT_APART, 2), reason
    assert reason.startswith("memory: 3 jobs would hold about ")
    assert not Path("large_0/result.json").exists()


def try_timed(name: str, *shared: str, **settings: Any) -> tuple[int, list[dict[str, Any]]]:
    """Run a stack that is timed; return its exit status, and what it has told of its trial."""
    told: list[dict[str, Any]] = []
    points = [[*point, *shared] for point in POINTS]
    spec = JobSpec(**{**asdict(make_spec(name, *points)), "timed": True, **settings})
    status, said = run_stack_attempt(spec, lambda **verdict: told.append(verdict))
    assert said == ""
    return status, told


def test_a_few_steps_are_not_timed(folder):
    """They could not make up for it; the reason says how many there are. The first job trains on alone, at once."""
    status, told = try_timed("short")

    assert (status, [(one["as_one"], one["member"]) for one in told]) == (EXIT_DONE, [(False, "0")])
    assert told[0]["why"] == "sweep.vectorize: 12 steps are too few to try whether they are faster as one"
    assert [Path(f"short_{number}/config.yaml").exists() for number in range(3)] == [True, False, False]


@pytest.mark.parametrize("in_memory", ["true", "false"])
def test_a_slower_stack_leaves_its_first_job_alone_with_the_bits_of_a_job_alone(folder, monkeypatch, in_memory):
    """Both times are in the reason; nothing of the trial stays, and the other jobs are not touched."""
    times = iter([0.1, 1.0])  # of one job, then of all of them
    monkeypatch.setattr("runner.train.vectorized.trial.LEAST_STEPS", 1)
    monkeypatch.setattr("runner.train.vectorized.trial.measure", lambda *_: next(times))
    how = f"loader.in_memory={in_memory}"
    status, told = try_timed("slow", how)
    spec = JobSpec(**make_spec("alone", [*POINTS[0], how]).members[0])
    assert run_attempt(spec) == EXIT_DONE

    assert (status, told) == (
        EXIT_DONE,
        [
            {
                "as_one": False,
                "why": "sweep.vectorize: 3 of them take 1e+03 ms a step as one, 300 ms one after the other",
                "member": "0",
            }
        ],
    )
    assert read_result(Path("slow_0"))["weights_sha256"] == read_result(Path("alone_0"))["weights_sha256"]
    assert [*Path("slow_1").iterdir()] == []
    assert "stacks" not in json.loads(Path("slow_0/provenance.json").read_text())


def test_a_faster_stack_is_told_once_and_then_recorded(folder, monkeypatch):
    """The times first; the jobs say in which stack they train, and how to switch it off."""
    monkeypatch.setattr("runner.train.vectorized.trial.LEAST_STEPS", 1)
    monkeypatch.setattr("runner.train.vectorized.trial.compare_times", lambda *_: (0.1, 0.1))
    monkeypatch.setattr("runner.train.vectorized.trial.MOST_SPENT", 0)
    status, told = try_timed("fast")

    assert (status, [one["why"] for one in told]) == (
        EXIT_DONE,
        ["3 of them take 100 ms a step as one, 300 ms one after the other", ""],
    )
    (entry,) = json.loads(Path("fast_1/provenance.json").read_text())["stacks"]
    assert (entry["step"], {*entry["jobs"]}) == (0, {"fast_0", "fast_1", "fast_2"})
    assert entry["jobs"][entry["row"]] == "fast_1"
    assert entry["off"].startswith("sweep.vectorize=off ")


def test_a_stack_that_might_take_longer_than_an_attempt_may_is_left(folder, monkeypatch):
    """`sweep.timeout` is of each attempt, also that of a stack."""
    monkeypatch.setattr("runner.train.vectorized.trial.LEAST_STEPS", 1)
    monkeypatch.setattr("runner.train.vectorized.trial.compare_times", lambda *_: (1.0, 1.0))
    _, told = try_timed("late", timeout=20.0)

    assert told[0]["why"].startswith("sweep.timeout: 3 of them take 1e+03 ms a step as one")


# ---- what `check -m` tries

OWN = """
import random

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, kind="plain", scale=1.0, p=0.1):
        super().__init__()
        self.kind, self.scale, self.drop = kind, scale, nn.Dropout(p)
        self.first = nn.utils.spectral_norm(nn.Linear(64, 8)) if kind == "spectral" else nn.Linear(64, 8)
        self.inner = nn.Sequential(Branch()) if kind == "branch" else nn.LSTM(8, 8) if kind == "lstm" else nn.Identity()
        self.last = nn.Linear(8, 10)

    def forward(self, x):
        x = self.inner(self.drop(self.first(x.flatten(1))))
        x = self.last(x[0] if self.kind == "lstm" else x)
        return x * (random.random() if self.kind == "draws" else self.scale if self.kind == "scaled" else 1)


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x
"""
TRIED = {
    "plain": ("jobs train as one model\n", "+model.p=0.1,0.5"),
    "branch": ("jobs alone: model: `inner.0` (Branch) cannot be mapped over jobs", "seed=0,1"),
    "lstm": ("jobs alone: model: `inner` (LSTM) cannot be mapped over jobs", "seed=0,1"),
    "draws": ("jobs alone: model: its step draws from Python's generator", "seed=0,1"),
    "scaled": (
        "jobs alone: model: `model` (Net) cannot be mapped over jobs (PerJobNumberError",
        "+model.scale=1.0,2.0",
    ),
    "spectral": ("jobs alone: model: `first` computes its weights by itself", "seed=0,1"),
}


@pytest.mark.parametrize("kind", TRIED)
def test_a_check_tries_two_jobs_as_one_on_a_made_up_batch(kind, folder, runner, monkeypatch):
    """It names the module and why, touches no data, and writes nothing."""
    said, swept = TRIED[kind]
    write_files(folder, {"own.py": OWN, "conf/model/own.yaml": "_target_: own.Net\n"})
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    line = ("experiment=null", "model=own", f"+model.kind={kind}", swept, "sweep.slots=1")
    ran = runner("check", "-m", *line, "sweep.vectorize=on", "device.type=cpu")

    assert ran.out.startswith("vectorize: 2 " + said), ran.out
    assert ran.status == 0
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["own.py", "own.yaml"]


def test_a_check_is_silent_where_nobody_asked_and_nothing_is_tried(runner):
    """Few jobs, few steps, a launcher of Hydra; `sweep.vectorize=auto` says why."""
    line = ("check", "-m", "experiment=digits_mlp", "device.type=cpu", "sweep.slots=1")
    silent = [["sweep.seeds=2"], ["sweep.seeds=8", "train.duration=5st"], ["sweep.seeds=8", "hydra/launcher=basic"]]

    assert [runner(*line, *words).out for words in silent] == ["No mistakes.\n"] * 3
    assert [runner(*line, *words, "sweep.vectorize=auto").out.splitlines()[0] for words in silent] == [
        "vectorize: 2 jobs alone: fewer than 4 of one architecture for a slot",
        "vectorize: 8 jobs alone: train.duration: fewer than 50 steps",
        "vectorize: all jobs alone: hydra/launcher: its jobs run one by one",
    ]


UNTRIED = (
    "vectorize: whether torch can map the model is not known before the first batch: "
    "without data there is no batch to try"
)


def test_a_check_says_what_only_the_first_batch_shows(runner):
    """The dataset states no sample, so that no batch can be made up."""
    line = ("experiment=digits_mlp", "dataset.sample=null", "sweep.seeds=2", "sweep.slots=1", "sweep.vectorize=on")
    plan = runner("check", "-m", *line).out.splitlines()

    assert plan[:2] == [
        "vectorize: 2 jobs train as one model",
        UNTRIED,
    ]
