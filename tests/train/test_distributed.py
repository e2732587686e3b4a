"""Several processes train what one trains: the same batches, the same numbers, and one of them alone writes."""

import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from runner.config.schema import Config, Device
from runner.experiment.builders.run import uses_data_parallel
from runner.experiment.preflight import preflight
from runner.train.checkpoint import Checkpoints
from runner.train.steps import supervised
from tests.experiment.crash.project import HARD, differences, ending, events, write
from tests.support import read_metrics, read_result, write_files

ROOT = Path(__file__).parents[2]
PARTS = '''
import os
import signal

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

RANK = int(os.environ.get("RANK", 0))


class Points(Dataset):
    def __init__(self, count, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.points = torch.randn(count, 5, generator=generator)
        self.labels = (self.points.sum(1) > 0).long() + (self.points[:, 0] > 0).long()

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return self.points[index], self.labels[index]


class Flowing(IterableDataset):
    def __init__(self, count):
        self.points = Points(count)

    def __iter__(self):
        return (self.points[index] for index in range(len(self.points)))


class Uneven:
    """Batches of 7 and of 3 in turn."""

    def __init__(self, length):
        self.length = length

    def __iter__(self):
        order, first, size = torch.randperm(self.length).tolist(), 0, 7
        while first < self.length:
            yield order[first : first + size]
            first, size = first + size, 10 - size

    def __len__(self):
        return sum(1 for _ in self)


def noise(point):
    return point + 0.1 * torch.randn(5)


def mix(batch):
    share = torch.rand(())
    return share * batch[0] + (1 - share) * batch[0].roll(1, 0), batch[1]


class Net(nn.Module):
    def __init__(self, norm=False, blocks=2):
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.norm = nn.BatchNorm1d(7) if norm else nn.Identity()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(7, 7), nn.Tanh()) for _ in range(blocks))
        self.last = nn.Linear(7, 3)

    def forward(self, x):
        x = torch.tanh(self.norm(self.first(x)))
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


class Sometimes(Net):
    """Uses its blocks in every other step of training only."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, x):
        x = torch.tanh(self.first(x))
        self.count += self.training
        for block in self.blocks if self.count % 2 else ():
            x = x + block(x)
        return self.last(x)


class Seen:
    """A metric that depends on the order of what it sees."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.value = torch.zeros((), dtype=torch.float64)

    def update(self, output, target):
        for number in (output.double().sum(1) + target).round(decimals=4):
            self.value = 0.9 * self.value + number

    def compute(self):
        return self.value


def unweighted(batch, model, loss):
    output = model(batch[0])
    parts = [loss(*some) for some in zip(output.tensor_split(2), batch[1].tensor_split(2))]
    return {"loss": sum(parts) / 2, "output": output, "target": batch[1], "size": len(batch[1])}


def fielded(batch, model, loss):
    output = model(batch[0])
    right = (output.argmax(1) == batch[1]).float().mean()
    return {"loss": loss(output, batch[1]), "target": batch[1], "output": output, "size": len(batch[1])} | {
        "right": right, "three": 3, "rows": output.detach()
    }


def paired(batch, model, loss, update):
    """Two losses, each for an optimizer of its own; the second one is asked for in every other batch."""
    output = model(batch[0])
    update("last", loss(output, batch[1]), retain_graph=True)
    update("rest", model.first(batch[0]).square().mean())
    return {"loss": loss(output, batch[1]), "output": output, "target": batch[1], "size": len(batch[1])}


def counted(batch, model, loss, kind="mean"):
    """Outputs by name, samples that count once, twice or three times, and no loss in an evaluation."""
    scores, weights = model(batch[0]), batch[1] + 1
    total, size = (nn.functional.cross_entropy(scores, batch[1], reduction="none") * weights).sum(), weights.sum()
    parts = {"scores": scores, "all": [scores, {"first": scores[:, 0]}]}
    found = {"output": parts, "target": {"labels": batch[1], "first": batch[0][:, 0]}, "size": size, "loss_is": kind}
    found |= {"share": {"value": total / size, "weight": size}, "artifacts": {"note": "a text"}}
    return found | ({"loss": total / size if kind == "mean" else total} if model.training else {})


def look(model):
    return {"total": sum(parameter.double().sum() for parameter in model.parameters())}


class Ending:
    """A step in which one rank comes to its end."""

    def __init__(self, rank, at, how):
        self.rank, self.at, self.how, self.count = rank, at, how, 0

    def __call__(self, batch, model, loss):
        self.count += model.training
        if self.count == self.at and self.rank == RANK and model.training:
            if self.how == "error":
                raise ValueError("a number that is none of ours")
            os.kill(os.getpid(), getattr(signal, self.how))
        output = model(batch[0])
        return {"loss": loss(output, batch[1]), "output": output, "target": batch[1], "size": len(batch[1])}
'''
CONF = {
    "experiment/points.yaml": """
# @package _global_
defaults: [override /dataset: points, override /transform: none, override /model: points, override /optimizer: sgd]
name: points
loader: {eval: {batch_size: 10}}
metrics: {seen: {_target_: pieces.Seen}, accuracy: {_target_: runner.train.metrics.Accuracy}}
optimizer: {lr: 0.1, weight_decay: 0.01}
train: {duration: 2ep, objective: val/loss, mode: min}
log: {every: 3st, model_table: false, progress: false}
device: {type: cpu}
""",
    "dataset/points.yaml": """
train: {_target_: pieces.Points, count: 37}
val: {_target_: pieces.Points, count: 25, seed: 1}
sample: [{shape: [5], dtype: float32}, {shape: [], dtype: int64}]
""",
    "model/points.yaml": "_target_: pieces.Net",
    "step/unweighted.yaml": "_target_: pieces.unweighted",
    "step/fielded.yaml": "_target_: pieces.fielded",
    "step/paired.yaml": "_target_: pieces.paired",
    "step/counted.yaml": "_target_: pieces.counted",
    "optimizer/paired.yaml": """
_target_: runner.train.optimizer_step.several_optimizers.Optimizers
last: {_target_: torch.optim.SGD, match: 'last.*', lr: 0.1, momentum: 0.9}
rest: {_target_: torch.optim.SGD, match: null, lr: 0.1, weight_decay: 0.01}
""",
    "step/ending.yaml": "{_target_: pieces.Ending, rank: 1, at: 3, how: error}",
}
POINTS = "experiment=points"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """`fleet(2, "seed=1")`: the command in the project by two ranks; their statuses, and what they printed."""
    folder = tmp_path_factory.mktemp("ranks")
    write(folder)
    write_files(folder, {"pieces.py": PARTS} | {f"conf/{name}": text for name, text in CONF.items()})
    command = [sys.executable, "-m", "tests.train.fleet"]
    server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout.readline() == "ready\n"

    def run(world, *argv, kill=None, where=folder):
        order = {"argv": argv, "world": world, "folder": str(where), "log": str(folder / "said"), "kill": kill}
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        statuses = json.loads(server.stdout.readline())
        return statuses, [(folder / f"said{rank}").read_text() for rank in range(max(1, world))]

    run.folder = folder
    yield run
    server.communicate()


NAMES = (f"n{number}" for number in itertools.count())


def trained(fleet, world, *argv, status=0):
    """The run directory of a command."""
    name = next(NAMES)
    statuses, said = fleet(world, *argv, f"name={name}")
    assert statuses == [status] * max(1, world), said
    assert said[1:] == [""] * (world - 1) * (world > 0), "only rank 0 prints"
    return next((fleet.folder / "outputs" / name).iterdir())


def relative(one, other):
    """The greatest difference of two models' tensors, relative to their norms."""
    models = [torch.load(run / "checkpoints" / "last.pt", weights_only=True)["model"] for run in (one, other)]
    assert list(models[0]) == list(models[1])
    pairs = [(a.double(), models[1][name].double()) for name, a in models[0].items()]
    return max(float((a - b).norm() / b.norm().clamp_min(1e-9)) for a, b in pairs)


def result(run):
    return read_result(run)


# ---- the same numbers


@pytest.fixture(scope="module")
def alone(fleet):
    """`alone(6, "…")`: the run of one process with batches of so many, made once."""
    made = {}

    def run(batch_size, *argv):
        key = (batch_size, *argv)
        if key not in made:
            made[key] = trained(fleet, 0, POINTS, f"loader.batch_size={batch_size}", *argv)
        return made[key]

    return run


DDP = "device.parallel=ddp"
PARTED = (
    "metrics.seen={_target_: pieces.Seen, output: scores, target: labels}",
    "metrics.accuracy={_target_: runner.train.metrics.Accuracy, output: all.0, target: labels}",
    "+metrics.error={_target_: runner.train.metrics.MeanSquaredError, output: all.1.first, target: first, every: 1ep}",
    "+metrics.perplexity={of: share, as: exp}",
    "+actions.look={_target_: pieces.look, every: 4st}",
    "train.objective=val/perplexity",
)
RHYTHM = ("train.evaluate_every=5st", "train.checkpoint_every=5st")
WAYS = {
    "gathered": (),
    "sample by sample": ("loader.in_memory=false",),
    "workers": ("loader.num_workers=1",),
    "augmented": ("+transform.train.noise={_target_: pieces.noise}",),
    "mixed": ("+transform.batch.mix={_target_: pieces.mix}",),
    "a stream": ("dataset.train={_target_: pieces.Flowing, count: 37}", "train.duration=10st", *RHYTHM),
    "batches of a sampler": ("loader.batch_sampler={_target_: pieces.Uneven, length: 37}", "loader.shuffle=false"),
    "without the last": ("loader.drop_last=true",),
    "accumulated": ("train.accumulate=2",),
    "clipped and averaged": ("train.clip_norm=0.1", "train.ema=0.9"),
    "class weights": ("dataset.class_weights=[1,5,0.2]",),
    "a class ignored": ("loss.ignore_index=1", "loader.drop_last=true"),  # else one batch has nothing else: NaN
    "a function": ("loss={_target_: torch.nn.functional.cross_entropy, ignore_index: 0}",),
    "a sum": ("loss.reduction=sum", "optimizer.lr=0.01"),
    "updates by name": ("step=paired", "optimizer=paired", "train.clip_norm=0.1"),
    "updates accumulated": ("step=paired", "optimizer=paired", "train.accumulate=2"),
    "counted": ("step=counted", *PARTED),
    "tested with the best": (
        "+dataset.test={_target_: pieces.Points, count: 11, seed: 2}",
        "train.test_with=best",
        "train.mode=max",  # so that the first epoch, whose loss is the largest, is the best
    ),
    "counted and summed": ("step=counted", "+step.kind=sum", "optimizer.lr=0.01", *PARTED),
    "counted and accumulated": ("step=counted", "train.accumulate=2", *PARTED),
    "looked into": (
        "step=fielded",
        "log.gradient_norm=true",
        "log.histograms=3st",
        "log.graph=true",
        "log.images=4",
        "log.confusion_matrix=true",
        "log.embeddings=8",
    ),
}


def compare(fleet, alone, world, batch_size, *argv):
    one, many = (
        alone(world * batch_size, *argv),
        trained(fleet, world, POINTS, DDP, f"loader.batch_size={batch_size}", *argv),
    )
    assert relative(many, one) < 1e-6
    lines = [read_metrics(run) for run in (one, many)]
    assert [line.keys() for line in lines[0]] == [line.keys() for line in lines[1]]
    for line, other in zip(*lines, strict=True):
        assert {name: float(value) for name, value in line.items()} == pytest.approx(other, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("world", "batch_size"), [(2, 4), (3, 2)])
def test_several_processes_train_what_one_trains(fleet, alone, world, batch_size):
    """The last batch of 37 samples has 5 for two ranks, and 1 for three of which two then have none."""
    compare(fleet, alone, world, batch_size)


@pytest.mark.parametrize("way", ["sample by sample", "a sum", "class weights", "counted", "looked into"])
def test_batches_are_those_of_one_process(fleet, alone, way):
    compare(fleet, alone, 2, 3, *WAYS[way])


@pytest.mark.exhaustive
@pytest.mark.parametrize(("world", "batch_size"), [(2, 3), (3, 2), (4, 1)])
@pytest.mark.parametrize("way", list(WAYS))
def test_batches_are_those_of_one_process_in_every_way(fleet, alone, world, batch_size, way):
    compare(fleet, alone, world, batch_size, *WAYS[way])


FSDP = "device.parallel=fsdp"
NORMED = ("model.norm=true", "device.sync_batchnorm=true")


@pytest.mark.parametrize(("way", "samples", "limit"), [(DDP, 41, 1e-6), (FSDP, 38, 1e-5)])
def test_a_normalised_model_trains_as_in_one_process(fleet, alone, way, samples, limit):
    """Batch norm over three processes, of which one has none of a last batch of two; two values amplify rounding."""
    argv = ("model.norm=true", f"dataset.train.count={samples}", "++optimizer.momentum=0.9")
    one = alone(12, *argv)
    many = trained(fleet, 3, POINTS, way, "loader.batch_size=4", "device.sync_batchnorm=true", *argv)

    assert relative(many, one) < limit


def test_a_sharded_checkpoint_is_that_of_one_process(fleet, alone):
    """Names, types, shapes and values of model and optimizer; one process evaluates it."""
    argv = ("optimizer=adamw", "optimizer.lr=0.01", "train.ema=0.9", "train.clip_norm=1")
    runs = alone(8, *argv), trained(fleet, 2, POINTS, FSDP, "loader.batch_size=4", *argv)
    one, many = [torch.load(run / "checkpoints" / "last.pt", weights_only=True) for run in runs]

    for part in ("model", "optimizer", "ema"):
        assert alike(one[part], many[part], part) == []
    assert fleet(0, "evaluate", str(runs[1]))[0] == [0]


def alike(one, other, at):
    """Where two states differ in type or shape, or in value by more than 1e-5."""
    if isinstance(one, torch.Tensor):
        same = type(one) is type(other) and one.dtype == other.dtype and one.shape == other.shape
        return [] if same and torch.allclose(one, other, rtol=1e-5, atol=1e-7) else [at]
    if isinstance(one, dict):
        found = [at] if list(one) != list(other) else []
        return found or [d for name in one for d in alike(one[name], other[name], f"{at}.{name}")]
    return [] if one == other else [at]


def test_the_plain_mean_would_differ(fleet, alone):
    """What the comparison above can see: a last batch in which each of two ranks counts alike, not each sample."""
    plain = alone(8, "step=unweighted")

    assert relative(plain, alone(8)) > 1e-3


def test_one_process_evaluates_a_checkpoint_to_the_same_bits(fleet):
    run = trained(fleet, 2, POINTS, DDP)
    statuses, said = fleet(0, "evaluate", str(run), "--json")

    assert statuses == [0], said
    assert json.loads(said[0].splitlines()[-1])["metrics"] == result(run)["metrics"]


# ---- what not every step trains

SOMETIMES = "model._target_=pieces.Sometimes"
THAWING = ("freeze.params=['blocks.*']", "freeze.until=4st")


@pytest.mark.parametrize("way", [DDP, pytest.param(FSDP, marks=pytest.mark.exhaustive)])
def test_frozen_parameters_thaw_as_in_one_process(fleet, alone, way):
    many = trained(fleet, 2, POINTS, way, "loader.batch_size=4", *THAWING)

    assert relative(many, alone(8, *THAWING)) < 1e-6
    assert relative(many, alone(8)) > 1e-3


def test_parameters_that_a_step_leaves_out_need_the_key(fleet, alone):
    """Every other step uses the blocks: DDP says so, and the remedy is the key's name."""
    argv, key = (POINTS, DDP, "loader.batch_size=4", SOMETIMES), "device.find_unused_parameters=true"
    statuses, said = fleet(2, *argv, f"name={(name := next(NAMES))}", key)  # torch warns on each rank
    refused, why = fleet(2, *argv, f"name={next(NAMES)}")

    assert statuses == [0, 0], said
    assert relative(next((fleet.folder / "outputs" / name).iterdir()), alone(8, SOMETIMES)) < 1e-6
    assert refused == [1, 1]
    assert "device.find_unused_parameters=true" in why[0]


# ---- resume


@pytest.fixture(scope="module")
def whole(fleet):
    return trained(fleet, 2, HARD, DDP, "loader.batch_size=6")


@pytest.mark.parametrize(("step", "rank"), [(2, 1), pytest.param(7, 0, marks=pytest.mark.exhaustive)])
def test_a_signal_to_one_rank_stops_all_and_a_resume_is_exact(fleet, whole, step, rank):
    """Dropout, batch norm, random transforms, an accumulated metric: every rank goes on with its own streams."""
    name = next(NAMES)
    statuses, said = fleet(2, HARD, DDP, "loader.batch_size=6", f"name={name}", kill=[rank, step, "SIGTERM"])
    run = next((fleet.folder / "outputs" / name).iterdir())
    assert statuses == [75, 75], said
    assert result(run)["steps"] == step
    assert "continue with" in said[0]
    statuses, said = fleet(2, "resume", str(run))

    assert statuses == [0, 0], said
    assert differences(ending(whole), ending(run)) == []
    assert events(whole) == events(run)


@pytest.mark.parametrize("step", [2, 7])
@pytest.mark.exhaustive
def test_a_sharded_run_resumes_exactly(fleet, step):
    name, argv = next(NAMES), (HARD, FSDP, "loader.batch_size=6", "train.ema=0.9")
    whole = trained(fleet, 2, *argv)
    statuses, said = fleet(2, *argv, f"name={name}", kill=[1, step, "SIGTERM"])
    run = next((fleet.folder / "outputs" / name).iterdir())
    assert statuses == [75, 75], said
    assert fleet(2, "resume", str(run))[0] == [0, 0]

    assert differences(ending(whole), ending(run)) == []


def test_another_number_of_processes_is_refused_unless_inexact(fleet):
    name = next(NAMES)
    fleet(2, HARD, DDP, "loader.batch_size=6", f"name={name}", kill=[1, 7, "SIGTERM"])
    run = next((fleet.folder / "outputs" / name).iterdir())
    refused, said = fleet(3, "resume", str(run))
    statuses, _ = fleet(3, "resume", str(run), "--inexact")

    assert refused[0] == 2
    assert "processes must be as it was for the steps so far (2), but is 3" in said[0]
    assert statuses == [0, 0, 0]
    assert result(run)["inexact"] == [7]


# ---- one of them fails


@pytest.mark.parametrize("rank", [1, 0])
def test_a_killed_rank_ends_all_and_is_named_and_nothing_is_lost(fleet, whole, rank):
    """Killed in step 7, after the checkpoint of step 5, which is whole: a resume ends as if nothing had been."""
    name = next(NAMES)
    statuses, said = fleet(2, HARD, DDP, "loader.batch_size=6", f"name={name}", kill=[rank, 7, "SIGKILL"])
    run = next((fleet.folder / "outputs" / name).iterdir())
    assert sorted(statuses) == [-9, 1], said
    error = result(run)["error"]
    assert error.startswith(f"rank {rank} (process ")
    assert error in said[1 - rank]
    assert Checkpoints(run / "checkpoints").load()["progress"]["step"] == 5
    statuses, said = fleet(2, "resume", str(run))

    assert statuses == [0, 0], said
    assert differences(ending(whole), ending(run)) == []


def test_an_error_in_one_rank_ends_all_and_is_named(fleet):
    name = next(NAMES)
    statuses, said = fleet(2, POINTS, DDP, "loader.batch_size=4", "step=ending", f"name={name}")
    run = next((fleet.folder / "outputs" / name).iterdir())

    assert statuses == [1, 1]
    assert result(run)["error"] == "rank 1 failed: ValueError: a number that is none of ours"
    assert "Traceback" not in said[0] + said[1]


# ---- as it is typed

PAGE = ROOT / "docs" / "cookbook" / "guides" / "processes.md"
LINES = [line for line in PAGE.read_text().splitlines() if line.startswith("torchrun ")]


def test_the_lines_of_the_page(fleet, tmp_path):
    assert len(LINES) == 3
    for line in LINES:
        words = shlex.split(line, comments=True)
        runs = sorted((tmp_path / "outputs" / "digits_cnn").glob("*"))
        argv = [str(runs[0]) if word == "RUN" else word for word in words[5:]]
        assert words[:5] == ["torchrun", "--nproc-per-node", "2", "-m", "runner"]
        statuses, said = fleet(2, *argv, where=tmp_path)

        assert statuses == [0, 0], said


def test_torchrun_itself_stops_all_and_says_with_what_to_go_on(tmp_path):
    """SIGTERM to torchrun, as a cluster sends it: it ends with 1, its ranks with 75; `result.json` says the rest."""
    argv = [
        "device.parallel=ddp",
        "device=cpu",
        "train.duration=100000st",
        "loader.batch_size=32",
        f"run={tmp_path}/run",
    ]
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "runner", *argv]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        while process.poll() is None and not (tmp_path / "run" / "checkpoints" / "last.pt").exists():
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()

    assert process.returncode == 1, err
    assert "torchrun --nproc-per-node 2 -m runner resume" in out
    assert result(tmp_path / "run")["status"] == "interrupted"
    assert result(tmp_path / "run")["signal"] == "SIGTERM"


def test_data_parallel_saves_what_one_device_would(runner, monkeypatch):
    """Without GPUs torch's wrapper passes on to the model; what is seen is that no name or number changes."""
    monkeypatch.setattr(preflight, "check_device", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    argv = ("train.duration=2st", "device.type=auto")
    wrapped, bare = [runner(*argv, f"device.parallel={how}").folder for how in ("data_parallel", "none")]

    assert relative(wrapped, bare) == 0


# ---- refused, with the line to type


REFUSED = {
    "without torchrun": (0, (DDP,), "torchrun --nproc-per-node 2 -m runner device.parallel=ddp"),
    "a resume without it": (0, ("resume", "RUN"), "torchrun --nproc-per-node 2 -m runner resume RUN"),
    "without parallel": (2, (), "its 2 processes would train 2 copies"),
    "a sweep": (2, ("-m", DDP, "seed=0,1"), "`python -m runner -m …`"),
    "a sweep of such jobs": (0, ("-m", DDP, "seed=0,1"), "needs jobs of several processes"),
    "a verb": (2, ("check",), "start it without torchrun"),
    "one process, synchronised": (0, ("device.sync_batchnorm=true",), "has no effect in one process"),
    "unused without ddp": (0, ("device.find_unused_parameters=true",), "has no effect without device.parallel=ddp"),
    "one GPU by name": (0, ("check", DDP, "device.type=cuda:1"), "each process takes that of its rank"),
    "a fault": (0, ("check", DDP, "train.on_fault=skip"), "one process alone can look for a fault"),
    "bad samples": (0, ("check", DDP, "loader.bad_samples=skip"), "they count a batch before it is read"),
    "data_parallel on a CPU": (0, ("device.parallel=data_parallel",), "must be auto or cuda"),
    "data_parallel on nothing": (0, ("device.parallel=data_parallel", "device.type=auto"), "torch sees 0 CUDA devices"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_is_refused_with_the_remedy(runner, fleet, whole, monkeypatch, case):
    world, argv, wanted = REFUSED[case]
    if world:
        names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "TORCHELASTIC_RUN_ID")
        for name in (*names, "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            monkeypatch.setenv(name, "0" if name in names else str(world))
    if "RUN" in argv:
        argv, wanted = ("resume", str(whole), "--trust", str(whole.parents[2])), wanted.replace("RUN", str(whole))
    else:
        argv = (*argv, *(["device.type=cpu"] if not any("device.type" in word for word in argv) else []))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ran = runner(*argv)

    assert ran.status == 2
    assert wanted in ran.out + ran.err
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("parallel", "device", "kind", "gpus", "splits"),
    [
        ("auto", "cuda", "auto", 2, True),
        ("auto", "cuda", "auto", 1, False),
        ("auto", "cuda", "cuda:1", 2, False),
        ("auto", "cpu", "auto", 0, False),
        ("data_parallel", "cuda", "cuda", 2, True),
        ("none", "cuda", "auto", 2, False),
    ],
)
def test_auto_splits_batches_where_there_are_several_gpus(monkeypatch, parallel, device, kind, gpus, splits):
    """And not where one GPU is named, where there is one, or none."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    config = Config(model={}, optimizer={}, loss={}, device=Device(type=kind, parallel=parallel))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])

    assert splits == uses_data_parallel(config, torch.device(device), supervised, optimizer)
