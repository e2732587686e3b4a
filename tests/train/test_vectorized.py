"""Jobs in one stack against the same jobs alone: batches and initial weights to the bit, losses within rounding."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from runner.config.check.check import Check
from runner.config.compose import compose
from runner.experiment.record.stacked import SWITCH
from runner.experiment.run import RunTask, launch_task
from runner.experiment.stack import StackJob, train_stack
from runner.train import evaluation, pauses
from runner.train.vectorized.per_job import PerJobNumber, PerJobNumberError
from runner.train.vectorized.stack import put_tensors
from runner.train.vectorized.vmap_rules import StackRules
from tests.support import read_metrics, read_result, write_files

PARTS = """
import random

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, p=0.2, tied=False, drawn=False, eps=1e-5, counts=False):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4, eps=eps), nn.Dropout(p)
        self.first, self.last = nn.Linear(64, 16), nn.Linear(16, 10)
        self.square = nn.Linear(16, 16)
        self.again = self.square if tied else nn.Identity()
        self.drawn, self.counts, self.seen = drawn, counts, {"steps": 0}

    def forward(self, x):
        self.seen["steps"] += self.counts and self.training
        x = nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        x = self.again(self.square(torch.relu(self.first(self.drop(x.flatten(1))))))
        return self.last(x) * (random.random() if self.drawn else 1 + self.seen["steps"] / 10)
"""
COUNTED = """
import dataclasses


@dataclasses.dataclass(frozen=True)
class FixedStep:
    factor: float = 2.0

    def __call__(self, batch, model, loss):
        output = model(batch[0])
        return {"loss": loss(output, batch[1]) * self.factor, "output": output, "target": batch[1]}


class CountedStep:
    def __init__(self, **given):
        self.count = 0

    def __call__(self, batch, model, loss):
        self.count += 1
        output = model(batch[0])
        return {"loss": loss(output, batch[1]) * self.count, "output": output, "target": batch[1]}
"""
COMMON = (
    "experiment=null",
    "device.type=cpu",
    "log.every=1st",
    "log.tensorboard=false",
    "train.objective=val/loss",
    "dataset.limit=300",
)
BASE = (
    *COMMON,
    "model=net",
    "train.duration=30st",
    "train.evaluate_every=10st",
    "train.checkpoint_every=10st",
)


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A project with a model of convolution, batch norm, pooling and dropout."""
    write_files(tmp_path, {"parts.py": PARTS, "conf/model/net.yaml": "_target_: parts.Net\n"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def make_tasks(kind: str, points: list[list[str]], base: tuple[str, ...] = BASE) -> list[RunTask]:
    """Make the tasks of some points, each with a directory."""
    tasks = []
    for number, point in enumerate(points):
        composed = compose([*base, *point])
        config = Check(composed, ()).config
        folder = Path(f"{kind}_{number}")
        folder.mkdir()
        tasks.append(RunTask(config, folder, composed.unresolved_yaml, ["python", "-m", "runner"]))
    return tasks


def train_alone(points: list[list[str]], base: tuple[str, ...] = BASE) -> list[Path]:
    """Train points one after the other; return their directories."""
    tasks = make_tasks("alone", points, base)
    with contextlib.redirect_stdout(io.StringIO()):
        assert [launch_task(task).status for task in tasks] == [0] * len(tasks)
    return [task.folder for task in tasks]


def train_as_one(points: list[list[str]], base: tuple[str, ...] = BASE, kind: str = "stack") -> list[StackJob]:
    """Train points as one stack; return its jobs."""
    jobs = [StackJob(task, io.StringIO()) for task in make_tasks(kind, points, base)]
    train_stack(jobs)
    return jobs


def read_losses(folder: Path) -> list[float]:
    """Read the loss of each step."""
    return [event["train/loss"] for event in read_metrics(folder) if "train/loss" in event]


def compare(points: list[list[str]], base: tuple[str, ...] = BASE) -> list[StackJob]:
    """Train points both ways; all losses and metrics are within 1e-4."""
    alone, jobs = train_alone(points, base), train_as_one(points, base)
    assert [(job.status, job.apart) for job in jobs] == [(0, "")] * len(jobs)
    for folder, job in zip(alone, jobs, strict=True):
        assert read_losses(job.task.folder) == pytest.approx(read_losses(folder), rel=1e-4)
        assert read_result(job.task.folder)["metrics"] == pytest.approx(
            read_result(folder)["metrics"], rel=1e-3, abs=0.01
        )
    return jobs


CASES = {
    "settings of SGD": [
        ["seed=1", "optimizer.lr=0.1"],
        ["seed=2", "optimizer.lr=0.01", "optimizer.weight_decay=0.01", "scheduler=cosine"],
        ["optimizer.momentum=0", "train.clip_norm=0.5", "train.ema=0.9"],
        ["optimizer.nesterov=true", "train.duration=20st", "scheduler=cosine", "train.clip_value=0.01"],
    ],
    "AdamW, label smoothing, dropout": [
        ["optimizer=adamw", "loss.label_smoothing=0.1", "model.p=0.5"],
        ["optimizer=adamw", "loss.label_smoothing=0.0", "model.p=0.0", "optimizer.betas=[0.5,0.9]"],
        ["optimizer=adamw", "loss.label_smoothing=0.3", "model.p=0.2", "seed=3", "init=xavier"],
    ],
    "accumulation": [["train.accumulate=3", "seed=1"], ["train.accumulate=3", "optimizer.lr=0.01"]],
    "accumulation, an ignored class": [
        ["train.accumulate=3", "+loss.ignore_index=3", "seed=1"],
        ["train.accumulate=3", "+loss.ignore_index=3", "optimizer.lr=0.01"],
    ],
    "groups, frozen parts, tied weights": [
        [
            "model.tied=true",
            "param_groups=no_decay",
            "freeze.params=['conv\\..*']",
            "freeze.until=7st",
            "optimizer.lr=0.1",
        ],
        ["model.tied=true", "param_groups=no_decay", "freeze.params=['conv\\..*']", "freeze.until=7st", "seed=4"],
    ],
    "autocast": [["device.precision=bf16"], ["device.precision=bf16", "seed=2"]],
    "augmentation, channels_last": [
        ["transform=shift", "device.memory_format=channels_last", "seed=5"],
        ["transform=shift", "device.memory_format=channels_last", "train.early_stop=1", "optimizer.lr=0.0"],
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_a_job_in_a_stack_learns_what_it_learns_alone(parts, case):
    """Losses within 1e-4 relative, step by step; final metrics alike."""
    if case == "autocast":
        alone, jobs = train_alone(CASES[case]), train_as_one(CASES[case])
        for folder, job in zip(alone, jobs, strict=True):
            assert read_losses(job.task.folder) == pytest.approx(read_losses(folder), rel=0.05)
        return
    compare(CASES[case])


def test_batches_and_initial_weights_are_those_of_the_job_alone(parts, monkeypatch):
    """Indices, pixels and the weights of step 0 are equal to the bit."""
    seen: dict[str, list[Any]] = {}
    iterate, begin = pauses.iterate_batches, pauses.begin

    def watch(run: Any) -> Any:
        for batch in iterate(run):
            seen.setdefault(run.folder.name, []).extend(member.clone() for member in batch)
            yield batch

    def look(run: Any) -> int:
        seen.setdefault(run.folder.name, []).extend(value.clone() for value in run.model.state_dict().values())
        return begin(run)

    monkeypatch.setattr(pauses, "iterate_batches", watch)
    monkeypatch.setattr(pauses, "begin", look)
    monkeypatch.setattr("runner.train.loop.iterate_batches", watch)
    monkeypatch.setattr("runner.train.loop.begin", look)
    points = [["seed=1", "transform=shift"], ["seed=2", "transform=shift"], ["seed=1", "init=kaiming"]]
    train_alone(points)
    train_as_one(points)

    for number in range(len(points)):
        ours, theirs = seen[f"stack_{number}"], seen[f"alone_{number}"]
        assert len(ours) == len(theirs)
        assert all(torch.equal(one, two) for one, two in zip(ours, theirs, strict=True))


def test_a_job_that_leaves_changes_nothing_for_the_others(parts):
    """One is done early, one becomes infinite: the third has the losses that it has with two that stay."""
    stays = ["seed=3", "model.p=0.3"]
    train_as_one([["seed=1", "model.p=0.3"], ["seed=2", "model.p=0.3"], stays], kind="whole")
    jobs = train_as_one(
        [["seed=1", "train.duration=9st", "model.p=0.3"], ["seed=2", "optimizer.lr=1e30", "model.p=0.3"], stays]
    )

    assert [job.status for job in jobs] == [0, 1, 0]
    assert "Infinity" in read_result(jobs[1].task.folder)["error"]
    assert read_losses(jobs[2].task.folder) == pytest.approx(read_losses(Path("whole_2")), rel=1e-5)


def test_a_job_that_fails_is_named_as_alone(parts):
    """The error, its cause and its step are those of the job alone."""
    bad = ["optimizer.lr=1e30", "seed=2"]
    (task,) = make_tasks("alone", [bad])
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        launch_task(task)
    jobs = train_as_one([["seed=1"], bad])
    ours, theirs = read_result(jobs[1].task.folder), read_result(task.folder)

    assert (ours["status"], ours["cause"], ours["error"]) == (theirs["status"], theirs["cause"], theirs["error"])


def test_a_checkpoint_is_an_ordinary_one(parts):
    """It opens without this package, and holds one job, with the states of that job's own generators."""
    jobs = train_as_one([["seed=1"], ["seed=2"]])
    folder = jobs[1].task.folder
    saved = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)

    assert saved["model"]["first.weight"].shape == (16, 64)
    assert (folder / "checkpoints" / "last.pt").stat().st_size < 60_000
    assert saved["optimizer"]["state"][0]["momentum_buffer"].shape == saved["model"]["conv.weight"].shape
    files = [file for job in jobs for file in sorted((job.task.folder / "checkpoints").glob("step_*.pt"))]
    states = {torch.load(file, weights_only=True)["rng"]["torch"].numpy().tobytes() for file in files}
    assert (6, 6) == (len(files), len(states)), "of dropout, which each job draws at each step"
    record = json.loads((folder / "provenance.json").read_text())["stacks"]
    assert record == [{"step": 0, "row": 1, "jobs": ["stack_0", "stack_1"], "off": SWITCH}]


def test_a_step_that_draws_is_left_alone(parts):
    """Python's generator would give all jobs one number, and each alone its own."""
    jobs = train_as_one([["model.drawn=true"], ["model.drawn=true", "seed=1"]])

    assert {job.apart for job in jobs} == {
        "model: its step draws from Python's generator, of which each job has one of its own"
    }
    assert [job.status for job in jobs] == [None, None]


def test_a_model_that_counts_its_steps_is_left_alone(parts):
    """The model of a stack would count what its trial takes, and those of the jobs nothing."""
    jobs = train_as_one([["model.counts=true"], ["model.counts=true", "seed=1"]])

    assert {job.apart for job in jobs} == {
        "model: its step changes `seen` of the model (Net), which a stack has once and each job for itself"
    }


def test_a_step_of_the_user_that_counts_is_put_back(parts):
    """It is no copy: what the trial has counted would be missing to the job that trains on alone."""
    (parts / "counted.py").write_text(COUNTED)
    jobs = train_as_one([["step._target_=counted.CountedStep", f"seed={seed}"] for seed in range(2)])

    assert {job.apart.partition(",")[0] for job in jobs} == {"model: its step changes `count` of the step"}
    assert [job.run.step.count for job in jobs] == [0, 0]


def test_a_step_of_the_user_that_holds_constants_is_a_step_of_a_stack(parts):
    """Also one that nobody may write to."""
    (parts / "counted.py").write_text(COUNTED)
    compare([["step._target_=counted.FixedStep", "~step.input", "~step.target", seed] for seed in ("seed=1", "seed=2")])


def test_a_number_that_no_rule_takes_is_no_number_of_a_stack(parts):
    """The epsilon of batch norm differs: the step refuses, and no job trains with that of another."""
    jobs = train_as_one([["model.eps=1e-5"], ["model.eps=1e-3"]])

    assert ["norm" in job.apart for job in jobs] == [True, True]


# ---- the rules of vmap


def map_stack(module: nn.Module, jobs: int, call: Callable[..., Any], *inputs: Any, **settings: Any) -> Any:
    """Call a function of copies of a module, each with weights of its own, by the rules; return all results."""
    names = [name for name, _ in module.named_parameters()]
    slots = [(owner._parameters, key, name) for name in names for owner, key in [find_owner(module, name)]]
    rules = StackRules([torch.Generator().manual_seed(seed) for seed in range(jobs)], **settings)
    generator = torch.Generator().manual_seed(7)
    weights = {name: torch.randn(jobs, *value.shape, generator=generator) for name, value in module.named_parameters()}

    def compute(tensors: dict[str, Any], job: Any, given: Any) -> Any:
        rules.job = job
        with rules, put_tensors(slots, tensors):
            return call(module, *given)

    shared = tuple(None if isinstance(value, Shared) else 0 for value in inputs)
    given = tuple(value.tensor if isinstance(value, Shared) else value for value in inputs)
    made = torch.vmap(compute, in_dims=(0, 0, shared), randomness="error")(weights, torch.arange(jobs), given)
    alone = []
    for job in range(jobs):
        torch.default_generator.manual_seed(job)
        own = {name: weights[name][job] for name in names}
        with put_tensors(slots, own):
            alone.append(
                call(module, *[one if dim is None else one[job] for one, dim in zip(given, shared, strict=True)])
            )
    return made, torch.stack(alone)


class Shared:
    """Tensor that all jobs have."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor


def find_owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that has a parameter, and its name there."""
    path, _, key = name.rpartition(".")
    return module.get_submodule(path), key


RULES: dict[str, Any] = {
    "convolution": (nn.Conv2d(4, 6, 3, padding=1, groups=2), lambda m, x: m(x), (torch.randn(3, 2, 4, 5, 5),)),
    "strided, dilated": (nn.Conv2d(4, 6, 3, 2, "valid", 2), lambda m, x: m(x), (torch.randn(3, 2, 4, 9, 9),)),
    "1d": (nn.Conv1d(4, 6, 3, bias=False), lambda m, x: m(x), (torch.randn(3, 2, 4, 9),)),
    "3d": (nn.Conv3d(2, 3, 2), lambda m, x: m(x), (torch.randn(3, 2, 2, 4, 4, 4),)),
    "shared images": (nn.Conv2d(4, 6, 3), lambda m, x: m(x), (Shared(torch.randn(2, 4, 5, 5)),)),
    "shared, grouped": (nn.Conv2d(4, 6, 3, groups=2), lambda m, x: m(x), (Shared(torch.randn(2, 4, 5, 5)),)),
    "one image": (nn.Conv2d(4, 6, 3), lambda m, x: m(x), (torch.randn(3, 4, 5, 5),)),
    "pooling": (nn.Conv2d(1, 2, 3), lambda m, x: F.max_pool2d(m(x), 2), (torch.randn(3, 2, 1, 8, 8),)),
    "mean": (nn.Conv2d(1, 2, 3), lambda m, x: F.adaptive_avg_pool2d(m(x), 1), (torch.randn(3, 2, 1, 8, 8),)),
    "linear": (nn.Linear(5, 4), lambda m, x: m(x), (torch.randn(3, 2, 7, 5),)),
    "linear, shared": (nn.Linear(5, 4), lambda m, x: torch.relu(m(x)), (Shared(torch.randn(6, 5)),)),
    "dropout": (nn.Linear(5, 4), lambda m, x: F.dropout(m(x), 0.4), (torch.randn(3, 6, 5),)),
    "dropout, shared": (nn.Linear(5, 4), lambda m, x: m(F.dropout(x, 0.4)), (Shared(torch.randn(6, 5)),)),
    "channels": (nn.Conv2d(1, 4, 3), lambda m, x: F.dropout2d(m(x), 0.4), (torch.randn(3, 6, 1, 5, 5),)),
    "loss": (nn.Linear(5, 4), lambda m, x: F.cross_entropy(m(x), torch.tensor([0, 1, -100])), (torch.randn(3, 3, 5),)),
    "loss, sum": (
        nn.Linear(5, 4),
        lambda m, x: F.cross_entropy(m(x), torch.tensor([0, 1, 2]), reduction="sum", label_smoothing=0.1),
        (torch.randn(3, 3, 5),),
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_gives_what_each_job_gives_alone(rule):
    """Also the masks of dropout, drawn from a generator of the job: equal seeds give equal masks."""
    module, call, inputs = RULES[rule]
    made, alone = map_stack(module, 3, call, *inputs)

    torch.testing.assert_close(made, alone, rtol=1e-5, atol=1e-5)


def test_a_number_per_job_is_never_taken_for_one():
    """Arithmetic, comparison and conversion raise; what reads the float itself gets NaN."""
    number = PerJobNumber([0.1, 0.2])
    uses: list[Callable[[], Any]] = [
        lambda: number * 2,
        lambda: 1 - number,
        lambda: number < 1,
        lambda: bool(number),
        lambda: f"{number}",
    ]
    refused = 0
    for use in uses:
        with pytest.raises(PerJobNumberError):
            use()
        refused += 1

    assert refused == len(uses)
    assert torch.tensor(1.0).mul(float.__float__(number)).isnan()


_ = evaluation


def test_the_trackers_of_all_jobs_are_told_the_end_before_any_is_waited_for(parts, monkeypatch):
    """One of them hangs: its job has ended all the same, and says so when the time of all is over."""
    said: list[str] = []

    class Hanging:
        timeout = 0.2

        def __init__(self, name: str) -> None:
            self.name, self.alert, self.is_ended = name, lambda _: None, False

        def send(self, message: dict[str, Any]) -> None:
            said.append(f"{self.name} {message['end']}") if "end" in message else None

        def register(self, poll: Any) -> None: ...

        def exchange(self) -> None:
            said.append("exchange")

        def close(self, until: float) -> None:
            self.alert(f"{self.name} is not done")

    monkeypatch.setattr("runner.experiment.builders.log.start_trackers", lambda run, *_: (Hanging(run.folder.name),))
    jobs = train_as_one([["seed=1"], ["seed=2"]], (*BASE, "train.duration=2st", "train.evaluate_every=null"))

    assert ["stack_0 completed", "stack_1 completed", "exchange", "exchange"] == said[:4]
    assert all(f"{job.task.folder} is not done" in (job.task.folder / "log.txt").read_text() for job in jobs)
