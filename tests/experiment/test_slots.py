"""Components of a user in every slot: what they draw, remember, and how long they are."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

PARTS = """
import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

DRAWN = {}  # slot → what its constructor drew


def draw(slot):
    DRAWN.setdefault(slot, []).append((torch.rand(()).item(), float(np.random.rand()), random.random()))
    return DRAWN[slot][-1][0]


class Points(Dataset):
    def __init__(self, count, seed=0, slot="dataset"):
        self.noise = draw(slot)
        generator = torch.Generator().manual_seed(seed)
        self.points = torch.randn(count, 4, generator=generator)
        self.labels = torch.randint(3, (count,), generator=generator)

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return self.points[index] + self.noise, self.labels[index]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.noise = draw("model")
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x)


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.noise = draw("loss")
        self.scale = nn.Parameter(torch.randn(3))

    def forward(self, output, target):
        return nn.functional.cross_entropy(output * (1 + self.scale), target)


class Step:
    def __init__(self):
        self.noise = draw("step")

    def __call__(self, batch, model, loss):
        output = model(batch[0] * (1 + self.noise))
        return {"loss": loss(output, batch[1]), "output": output, "target": batch[1], "size": len(batch[1])}


class Metric:
    def __init__(self):
        self.noise, self.total = draw("metric"), 0.0

    def reset(self):
        self.total = 0.0

    def update(self, output, target):
        self.total += float(output.sum()) * self.noise

    def compute(self):
        return self.total


class Shift:
    def __init__(self, slot):
        self.noise = draw(slot)

    def __call__(self, value):
        return value + self.noise


class Mix:
    def __init__(self):
        self.noise = draw("batch")

    def __call__(self, batch):
        return [batch[0] * (1 + self.noise), batch[1]]


class Sampler:
    def __init__(self, data_source):
        draw("sampler")
        self.order = torch.randperm(len(data_source)).tolist()

    def __len__(self):
        return len(self.order)

    def __iter__(self):
        return iter(self.order)


class Collate:
    def __init__(self):
        self.noise = draw("collate")

    def __call__(self, samples):
        return [torch.stack([x + self.noise for x, _ in samples]), torch.tensor([y for _, y in samples])]


class Optimizer(torch.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr=lr * (1 + draw("optimizer")))


class Scheduler(torch.optim.lr_scheduler.LambdaLR):
    def __init__(self, optimizer):
        noise = draw("scheduler")
        super().__init__(optimizer, lambda step: 1 + noise)


class Init:
    def __init__(self):
        self.noise = draw("init")

    def __call__(self, module):
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.bias, self.noise)


class Hook:
    def __init__(self):
        self.noise = draw("hook")

    def __call__(self, module, inputs, output):
        return {"noise": self.noise}
"""
EXPERIMENT = """
# @package _global_
defaults:
  - override /dataset: null
  - override /model: null
  - override /step: null
  - override /optimizer: null
  - override /metrics: null
name: slots
step: {_target_: parts.Step}
dataset: {train: {_target_: parts.Points, count: 22}, val: {_target_: parts.Points, count: 8, seed: 1, slot: val}}
transform: {train: {shift: {_target_: parts.Shift, slot: train}}, eval: {shift: {_target_: parts.Shift, slot: eval}}}
loader: {batch_size: 8}
model: {_target_: parts.Net}
loss: {_target_: parts.Loss}
metrics: {own: {_target_: parts.Metric}}
optimizer: {_target_: torch.optim.SGD, lr: 0.1}
train: {duration: 2ep, objective: val/loss, mode: min, checkpoint_every: 1st}
log: {every: 1st, tensorboard: false, progress: false}
device: {type: cpu}
"""
REST = [
    "loader.sampler._target_=parts.Sampler",
    "loader.collate_fn._target_=parts.Collate",
    "transform.batch.mix._target_=parts.Mix",
    "optimizer._target_=parts.Optimizer",
    "scheduler._target_=parts.Scheduler",
    "init.apply._target_=parts.Init",
    "log.hooks.own={name: head, forward: {_target_: parts.Hook}}",
]


@pytest.fixture
def slots(tmp_path, monkeypatch, capsys):
    """`slots("seed=1")`: a command in a project with a component of its own in every slot, in this process."""
    from runner.__main__ import main

    (tmp_path / "parts.py").write_text(PARTS)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "slots.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("parts", None)
    runs = iter(range(1000))

    def run(*argv, status=0):
        verb = [word for word in argv if "=" not in word]
        rest = [word for word in argv if "=" in word]
        capsys.readouterr()
        torch.manual_seed(next(runs))  # another process has other generators
        np.random.seed(next(runs))
        found = main([*verb, "experiment=slots", *rest])
        said = capsys.readouterr()
        assert found == status, said.out + said.err
        return said.out + said.err

    yield run
    sys.modules.pop("parts", None)


def newest():
    return max(Path("outputs", "slots").iterdir(), key=lambda path: path.stat().st_ctime_ns)


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_every_slot_draws_from_a_stream_of_the_seed_and_its_name(slots):
    """Twice the same, whatever the process drew before; another seed gives others, and a slot less changes none."""
    drawn, weights = [], []
    for argv in ([], [], ["seed=1"], ["loss._target_=torch.nn.CrossEntropyLoss"]):
        slots(*REST, *argv)
        import parts

        drawn.append({slot: draws[-1] for slot, draws in parts.DRAWN.items()})
        weights.append(result(newest())["weights_sha256"])
        parts.DRAWN.clear()
    first, again, other, without = drawn

    assert len(first) == 15
    assert (again, weights[1]) == (first, weights[0])
    assert [slot for slot in first if first[slot] == other[slot]] == []
    assert without == {slot: draws for slot, draws in first.items() if slot != "loss"}
    assert [slot for slot in first if list(first.values()).count(first[slot]) > 1] == ["train", "eval"]  # of one name


NO_SHIFT = [
    "transform.train.shift=null",
    "transform.eval.shift=null",
    "dataset.val=null",
    "metrics.own=null",
    "train.objective=null",
    "train.mode=null",
]
SPARSE = '''
from pathlib import Path


class Graphs(Dataset):
    """A sparse adjacency, also nested, beside an object, an array of objects and a label."""

    def __init__(self, count=12, labels="labels.txt"):
        self.labels = [int(word) for word in Path(labels).read_text().split()]
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        dense = torch.eye(4) * (1 + index)
        return {"plain": dense.to_sparse(), "graph": (dense.to_sparse(), [dense.to_sparse()]), "x": dense[0],
                "more": Box(torch.tensor([float(index)])), "words": np.array(["a", None], dtype=object),
                "file": Handle(), "y": self.labels[index]}


class Box:
    def __init__(self, corner):
        self.corner = corner


class Handle:
    __slots__ = ()


def join(samples):
    return [torch.stack([s["plain"] for s in samples]), torch.stack([s["x"] for s in samples]),
            torch.tensor([s["y"] for s in samples])]


class GraphNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, graph, x):
        assert graph.is_sparse
        return self.head((graph.to_dense() @ x[..., None])[..., 0])
'''


def test_sparse_tensors_in_samples_train_and_swapped_labels_are_refused(slots):
    """The fingerprint is of what the samples hold, and says what it leaves out."""
    with Path("parts.py").open("a") as file:
        file.write(SPARSE)
    labels = Path("labels.txt")
    labels.write_text("0 1 2 " * 4)
    graphs = [
        "dataset={train: {_target_: parts.Graphs, count: 12}}",
        "step={_target_: runner.train.steps.supervised, input: [0, 1], target: 2}",
        "model._target_=parts.GraphNet",
        *NO_SHIFT,
        "loader={collate_fn: {_target_: parts.join}, batch_size: 4}",
        "loss._target_=torch.nn.CrossEntropyLoss",
    ]
    slots(*graphs)
    folder = newest()
    record = json.loads((folder / "provenance.json").read_text())["data"]["train"]
    (folder / "result.json").unlink()
    again = slots(*graphs)
    other = json.loads((newest() / "provenance.json").read_text())["data"]["train"]

    assert record["left_out"] == ["`sample['file']`, whose Handle cannot be hashed"]
    assert "train: the fingerprint leaves out: `sample['file']`, whose Handle cannot be hashed" in again
    assert (other, result(newest())["steps"]) == (record, 6)

    labels.write_text("1 2 0 " * 4)
    from runner.__main__ import main

    assert main(["resume", str(folder), "train.duration=3ep"]) == 2


def test_the_default_collate_names_the_sparse_tensor_that_it_cannot_join(slots):
    with Path("parts.py").open("a") as file:
        file.write(SPARSE)
    Path("labels.txt").write_text("0 1 2 " * 4)
    said = slots("dataset={train: {_target_: parts.Graphs, count: 12}}", *NO_SHIFT, status=1)

    assert (
        "member 'plain' is a sparse_coo tensor, which the default collate cannot join: give a `loader.collate_fn`"
        in said
    )


MORE = '''


class Wide(nn.Module):
    """Takes what a transform makes of a sample."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(x)


class Twice:
    def __call__(self, value):
        return torch.cat([value, value])


class Degrees(Metric):
    """Has a `to` of its own."""

    to = "celsius"


class Converting(Metric):
    def to(self, unit):
        raise TypeError(unit)


class Movable(Metric):
    def to(self, device):
        self.noise = float(device.type == "cpu")


class Text(Metric):
    state_dict = "of what is counted"
'''


def add_more():
    with Path("parts.py").open("a") as file:
        file.write(MORE)


def test_transform_eval_is_needed_only_where_something_is_evaluated(slots):
    """What training's transform makes is all that the model gets, unless there is a split to evaluate."""
    add_more()
    wide = [
        "dataset.sample=[{shape: [4], dtype: float32}, {shape: [], dtype: int64}]",
        "model._target_=parts.Wide",
        "transform.train={shift: null, twice: {_target_: parts.Twice}}",
        "transform.eval.shift=null",
    ]
    slots("check", *wide, *NO_SHIFT[2:])
    said = slots("check", *wide, status=2)
    alone = slots("check", *wide, *NO_SHIFT[2:], "dataset.test={_target_: parts.Points, count: 4}", status=2)

    assert "refuses a batch of two samples (0: [2, 4]" in said
    assert "refuses a batch of two samples (0: [2, 4]" in alone


def test_a_warmup_needs_no_schedule(slots):
    slots("scheduler.warmup=4st")
    lines = [json.loads(line) for line in (newest() / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr/default"] for line in lines if "lr/default" in line]

    assert [round(rate, 9) for rate in rates] == [0.05, 0.075, 0.1, 0.1, 0.1, 0.1]
    assert "scheduler.interval has no effect without a scheduler" in slots(
        "check", "scheduler.interval=epoch", status=2
    )


@pytest.mark.parametrize("kind", ["Degrees", "Converting", "Movable", "Text"])
def test_an_attribute_of_a_metric_that_has_the_name_of_a_method_is_its_own(slots, kind):
    add_more()
    slots(f"metrics.own._target_=parts.{kind}")

    assert result(newest())["status"] == "completed"
    assert (result(newest())["metrics"]["val/own"] == 0.0) is False


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["debug=noop", "train.duration=8st"], "train.duration must be 0st with debug=noop, which trains nothing"),
        (["debug=anomaly", "train.detect_anomaly=false"], "train.detect_anomaly must be true with debug=anomaly"),
        (["debug=one_batch", "dataset.limit=null"], "dataset.limit must be 64 with debug=one_batch"),
        (["debug=overfit", "dataset.limit=null"], "dataset.limit must be 64 with debug=overfit"),
        (["debug=profiler", "log.profile=null"], "log.profile must be {} with debug=profiler"),
    ],
)
def test_an_argument_that_takes_away_what_debug_is_for_is_refused(slots, argv, said):
    assert said in slots(*argv, status=2)
    assert not Path("outputs").exists()


SAMPLERS = '''
from torch.utils.data import TensorDataset


class Whole(TensorDataset):
    def __init__(self, count):
        generator = torch.Generator().manual_seed(0)
        super().__init__(torch.randn(count, 4, generator=generator), torch.randint(3, (count,), generator=generator))


class Curriculum:
    """Gives more, or fewer, samples in each epoch."""

    def __init__(self, data_source, more, batches=None, late=1):
        self.count, self.more, self.batches, self.late, self.epoch = len(data_source), more, batches, late, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 16 + self.more * max(0, self.epoch - self.late + 1)

    def __iter__(self):
        indices = [i % self.count for i in range(len(self))]
        size = self.batches
        return iter([indices[i : i + size] for i in range(0, len(indices), size)] if size else indices)
'''


@pytest.mark.parametrize(
    ("kind", "name", "size", "more"),
    [
        ("Whole", "sampler", "null", 8),
        ("Whole", "sampler", "null", -1),
        ("Points", "sampler", "null", 1),
        ("Points", "sampler", "null", -8),
        ("Points", "batch_sampler", 4, 1),
        ("Points", "batch_sampler", 4, -8),
    ],
)
def test_a_sampler_whose_length_changes_by_epoch_is_refused(slots, kind, name, size, more):
    """In memory and sample by sample, at the epoch of the change, before a step of it."""
    with Path("parts.py").open("a") as file:
        file.write(SAMPLERS)
    sampler = f"loader.{name}={{_target_: parts.Curriculum, more: {more}, batches: {size}}}"
    said = slots(f"dataset.train._target_=parts.{kind}", *NO_SHIFT, sampler, "train.duration=4ep", status=1)
    unit, first, now = ("batches", 4, (16 + more + 3) // 4) if size == 4 else ("samples", 16, 16 + more)
    plan = "gathered from memory" if kind == "Whole" else "sample by sample"

    assert f"train: 22 samples, {plan}" in said
    assert f"loader.{name} gives {now} {unit} in epoch 1, and gave {first} at first" in said
    assert result(newest())["steps"] == (4 if size == 4 else 2)


def test_a_sampler_whose_length_changes_is_refused_by_a_resume_too(slots):
    with Path("parts.py").open("a") as file:
        file.write(SAMPLERS)
    from runner.__main__ import main

    sampler = "loader.sampler={_target_: parts.Curriculum, more: 8, batches: null, late: 2}"
    slots("dataset.train._target_=parts.Whole", *NO_SHIFT, sampler, "train.duration=2ep")

    assert main(["resume", str(newest()), "train.duration=4ep"]) == 1
    assert "gives 24 samples in epoch 2, and gave 16 at first" in result(newest())["error"]
    assert result(newest())["steps"] == 4


def read_values(folder, name):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


@pytest.mark.parametrize("name", ["train/loss", "val/loss"])
def test_a_value_ends_the_run_evaluated_and_saved_and_a_resume_goes_on(slots, name):
    from runner.__main__ import main

    slots("train.evaluate_every=2st")
    values = read_values(newest(), name)
    (_, before), (first, value) = list(values.items())[:2]
    side, bound = "below" if value < before else "above", (value + before) / 2
    until = f"train.stop_when={{{name}: {{{side}: {bound}}}}}"
    slots("train.evaluate_every=2st", "train.duration=3ep", until)
    folder = newest()
    (folder / "result.json").rename("before.json")  # as a kill after the last save leaves it
    assert main(["resume", str(folder)]) == 0
    ended = json.loads(Path("before.json").read_text())

    said = f"train.stop_when: {name} is {value:.6g}, {side} {bound:g}"
    saved = (folder / "checkpoints" / "last.pt").resolve().name
    assert (ended["status"], ended["steps"], ended["stopped"]) == ("completed", first, said)
    assert (read_values(folder, "val/loss")[first], saved) == (ended["metrics"]["val/loss"], f"step_{first:08d}.pt")
    assert (result(folder)["steps"], result(folder)["weights_sha256"]) == (first, ended["weights_sha256"])

    assert main(["resume", str(folder), f"train.stop_when={{{name}: null}}", "train.duration=3ep"]) == 0
    slots("train.evaluate_every=2st", "train.duration=3ep")
    assert result(folder)["weights_sha256"] == result(newest())["weights_sha256"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["train.stop_when={train/los: {below: 1}}"], "train.stop_when.train/los must be one of"),
        (["train.stop_when={test/loss: {below: 1}}"], "train.stop_when.test/loss must be one of"),
        (["train.stop_when={train/loss: {}}"], "train.stop_when.train/loss must have `below`, `above`, or both"),
        (["train.stop_when={train/loss: {under: 1}}"], "train.stop_when.train/loss.under is not a key"),
        (["train.stop_when={val/loss: {above: 1}}", "train.evaluate_every=null"], "val/loss has no effect while"),
    ],
)
def test_a_value_that_nothing_has_is_refused(slots, argv, said):
    supervised = ["step._target_=runner.train.steps.supervised"]
    assert said in slots("check", *supervised, *argv, status=2)
