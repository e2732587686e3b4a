"""Time for components: `progress`, durations as arguments, `set_epoch`, transforms of a certain time.

The samples say which epoch and step they were drawn for; the step compares that with where the run is.
"""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runner.train import loop
from tests.support import install_project, read_metrics, read_result

PARTS = '''
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, Sampler, TensorDataset


TOLD = []


class Timed(Dataset):
    """Samples that say epoch and step, by `progress` and by `set_epoch`."""

    def __init__(self, progress, count=22):
        self.progress, self.count, self.epoch = progress, count, -1

    def set_epoch(self, epoch):
        self.epoch, self.draw = epoch, torch.rand(1).item()

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        now = self.progress.epoch, self.progress.step, self.epoch
        return torch.tensor([index / 22, self.draw]), torch.tensor(now), index


class Flow(IterableDataset):
    def __init__(self, progress, count=22):
        self.progress, self.count, self.epoch = progress, count, -1

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        first, each = (0, 1) if info is None else (info.id, info.num_workers)
        for index in range(first, self.count, each):
            now = self.progress.epoch, self.progress.step, self.epoch
            yield torch.tensor([index / 22, 0.5]), torch.tensor(now), 0


class Plain(TensorDataset):
    def __init__(self, count=22):
        inputs = torch.arange(count * 12).view(count, 3, 2, 2) / (count * 12)
        super().__init__(inputs, torch.zeros(count, 3, dtype=torch.long))


class Wrapped(Dataset):
    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset[index]


class Shrinking(Timed):
    def __len__(self):
        return self.count - max(self.epoch, 0)


class Order(Sampler):
    def __init__(self, data_source, progress, until: int = 3):
        self.data_source, self.progress, self.until = data_source, progress, until
        TOLD.append(until)

    def __len__(self):
        return len(self.data_source)

    def __iter__(self):
        assert self.progress.step == 6 * self.progress.epoch
        return iter(torch.randperm(len(self.data_source)).roll(self.progress.epoch + self.until).tolist())


class Write:
    """A batched transform: epoch and step into the image."""

    draws = 1

    def __init__(self, progress):
        self.progress = progress

    def batched(self, images, uniforms):
        now = torch.tensor([self.progress.epoch, self.progress.step, self.progress.epoch])
        return images.new_zeros(images.shape) + now.view(3, 1, 1) + 0 * uniforms[0, 0]

    def __call__(self, image):
        return self.batched(image[None], torch.rand(1, 1))[0]


def stamp(image, progress):
    return torch.zeros(3, 2, 2) + torch.tensor([progress.epoch, progress.step, progress.epoch]).view(3, 1, 1)


def grow(image, progress):
    side = 2 + progress.epoch
    return nn.functional.interpolate(image[None], (side, side))[0]


def mark(batch, progress):
    batch[1] = batch[1] + 0
    batch[1][:, 1:2] = progress.step
    return batch


def check(sample, progress):
    assert sample[1].tolist() == [progress.epoch, progress.step, progress.epoch]
    return sample


class Scale:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, image):
        return image * self.factor


class Net(nn.Module):
    def __init__(self, warm: int = 0, name: str = "", bare=0, word="x", inner=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        TOLD.append((warm, name, bare, word, inner))

    def forward(self, x):
        return x.flatten(1).mean(1) * self.weight


class Loss(nn.Module):
    def forward(self, output, target, progress):
        return (output * (1 + progress.step)).mean()


SEEN = []


def step(batch, model, loss, progress):
    """The time of the samples is that of the step; `place` is where they say it."""
    SEEN.append((model.training, progress.epoch, progress.step, progress.steps_per_epoch, progress.total_steps))
    now = torch.tensor([progress.epoch, progress.step, progress.epoch])
    said = batch[1]
    if batch[0].dim() == 4 and batch[0].shape[-1] == 2 and batch[0].shape[0]:
        said = batch[0][:, :, 0, 0].round().long()
    if said.any() or progress.step:
        assert torch.equal(said, now.expand(len(said), 3)), (said, now)
    value = loss(model(batch[0]), None)
    return {"loss": value, "output": batch[0], "target": batch[1], "size": len(batch[0])}


def plain(batch, model, loss, progress):
    SEEN.append((tuple(batch[0].shape), batch[0].double().sum().item(), progress.folder))
    return {"loss": model(batch[0]).mean(), "shape": float(batch[0].shape[-1]), "size": len(batch[0])}


class Critic:
    """Several updates of one part for each of the other."""

    def __call__(self, batch, model, loss, optimizer, progress):
        value = model(batch[0]).mean() * (5 if progress.step % 3 == 2 else 1)
        if optimizer is not None:
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        return {"loss": value, "own": float(progress.step % 3 == 2), "size": len(batch[0])}
'''
EXPERIMENT = """
# @package _global_
defaults:
  - override /dataset: null
  - override /model: null
  - override /step: null
  - override /metrics: none
name: timed
model: {_target_: timed_parts.Net}
dataset: {train: {_target_: timed_parts.Timed}, val: {_target_: timed_parts.Timed, count: 5}}
step: {_target_: timed_parts.step}
loss: {_target_: timed_parts.Loss}
optimizer: {lr: 0.001, momentum: 0.9}
loader: {batch_size: 4}
train: {duration: 3ep}
device: {type: cpu}
log: {every: 1st, progress: false, tensorboard: false, model_table: false}
"""
ROOT = Path(__file__).parents[2]
# Of whole tensors; its transforms and its step tell the time.
MEMORY = ("dataset.train._target_=timed_parts.Plain", "dataset.val=null")
SHAPES = (*MEMORY, "step._target_=timed_parts.plain", "loss=none")


@pytest.fixture
def parts(tmp_path):
    with install_project(tmp_path, "timed_parts", PARTS, {"experiment/timed.yaml": EXPERIMENT}) as module:
        yield module


def run(*overrides, status=0, verb=("experiment=timed",)):
    from runner.__main__ import main

    before = set(Path("outputs").glob("*/*"))
    assert main([*verb, *overrides]) == status
    made = set(Path("outputs").glob("*/*")) - before
    return next(iter(made), None)


def stop_at(step, monkeypatch, *overrides, **more):
    """A run that a signal ends after so many steps."""
    batches = loop.iterate_batches

    def counted(run):
        for batch in batches(run):
            if run.progress.step + 1 == step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(loop, "iterate_batches", counted)
        return run(*overrides, status=75, **more)


SPAWNED = ("transform.on=sample", "transform.train={same: {_target_: timed_parts.check}}")
WAYS = {
    "in this process": (),
    "by workers": ("loader.num_workers=2",),
    "by workers that stay": ("loader.num_workers=2", "loader.persistent_workers=true"),
    "by spawned workers": ("loader.num_workers=1", "loader.multiprocessing_context=spawn", *SPAWNED),
    "accumulated": ("train.accumulate=2", "loader.batch_size=2"),
    "a sampler": ("loader.shuffle=false", "loader.sampler={_target_: timed_parts.Order, until: 1ep}"),
    "wrapped": ("dataset.train={_target_: timed_parts.Wrapped, dataset: {_target_: timed_parts.Timed}}",),
    "split off": (
        "dataset={train: null, val: null, val_fraction: 0.2, source: {_target_: timed_parts.Timed, count: 26}}",
    ),
    "streamed": (
        *("dataset.train._target_=timed_parts.Flow", "train.duration=18st"),
        *("train.evaluate_every=6st", "train.checkpoint_every=6st"),
    ),
    "streamed by workers": (
        *("dataset.train._target_=timed_parts.Flow", "train.duration=18st", "loader.num_workers=2"),
        *("train.evaluate_every=6st", "train.checkpoint_every=6st", "dataset.train.count=24"),
    ),
    "batched": (*MEMORY, "transform.train={write: {_target_: timed_parts.Write}}"),
    "one by one": (*MEMORY, "transform.train={write: {_target_: timed_parts.stamp}}"),
    "batched sample by sample": (
        *MEMORY,
        "transform.train={write: {_target_: timed_parts.Write}}",
        "loader.in_memory=false",
    ),
}
EVERY_DAY = ("in this process", "a sampler", "batched", "one by one", "streamed")
FORKS = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@FORKS
@pytest.mark.parametrize(
    "name", [name if name in EVERY_DAY else pytest.param(name, marks=pytest.mark.exhaustive) for name in WAYS]
)
def test_a_sample_is_drawn_at_the_time_of_its_step(parts, monkeypatch, name):
    """In every way to make batches, and the same to the bit after a stop in an epoch and at its edge."""
    whole = run(*WAYS[name])
    assert read_result(whole)["steps"] == 18
    for step in (8, 12):
        stopped = stop_at(step, monkeypatch, *WAYS[name])
        run(verb=("resume", str(stopped)))
        assert read_result(whole)["weights_sha256"] == read_result(stopped)["weights_sha256"]


def test_the_step_sees_where_the_run_is(parts):
    folder = run()
    training = [seen[1:] for seen in parts.SEEN if seen[0]][-18:]
    assert training == [(step // 6, step, 6, 18) for step in range(18)]
    assert [seen[1:3] for seen in parts.SEEN if not seen[0]][-3:] == [(1, 6), (2, 12), (3, 18)]
    assert read_result(folder)["status"] == "completed"


@pytest.mark.parametrize("way", [(), ("loader.in_memory=false",)])
def test_images_grow_by_epoch(parts, way):
    """What follows such a transform is made for the new size: flips of the right width."""
    flips = "flip: {_target_: torchvision.transforms.v2.RandomHorizontalFlip, p: 1.0}"
    run(*SHAPES, *way, f"transform.train={{grow: {{_target_: timed_parts.grow}}, {flips}}}")
    shapes = [seen[0] for seen in parts.SEEN[-18:]]
    assert [shape[2:] for shape in shapes] == [(2 + step // 6,) * 2 for step in range(18)]


def test_a_transform_is_on_from_a_time_until_another(parts, tmp_path):
    """In memory, sample by sample and of whole batches: the pixels of each step tell."""
    scale = "{_target_: timed_parts.Scale, factor: 0, _from_: 1.5ep, _until_: 2ep}"
    seen = {}
    for name, more in {
        "memory": f"transform.train={{off: {scale}}}",
        "sample": f"transform.train={{off: {scale}}}",
        "flip": "transform.train={off: {_target_: torchvision.transforms.v2.Normalize, mean: [0], std: [1e30], "
        "_from_: 9st, _until_: 12st}}",
    }.items():
        run(*SHAPES, more, "loader.shuffle=false", f"loader.in_memory={str(name != 'sample').lower()}")
        seen[name] = [step for step, (_, total, _) in enumerate(parts.SEEN[-18:]) if total < 1e-20]

    assert list(seen.values()) == [[9, 10, 11]] * 3


def test_a_duration_is_a_number_of_steps_where_a_number_is_wanted(parts):
    net = "{_target_: timed_parts.Net, warm: 1.5ep, name: 1ep, bare: [1ep, {at: 7st}], word: 2ep, inner: null}"
    run(f"model={net}", "train.duration=1st")

    assert parts.TOLD[-1] == (9, "1ep", [6, {"at": 7}], "2ep", None)


def test_a_duration_in_the_data_waits_for_the_length_of_an_epoch(parts):
    """The sampler's argument stands for 6 steps, though only the data tells how many an epoch has."""
    run("loader.shuffle=false", "loader.sampler={_target_: timed_parts.Order, until: 1ep}", "train.duration=1st")

    assert 6 in parts.TOLD


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("dataset.train._target_=timed_parts.Flow", "dataset.train.count=2ep"), "must be in steps (`500st`)"),
        (("dataset.train._target_=timed_parts.Shrinking",), "Shrinking has 21 samples in epoch 1, and had 22 at first"),
        (("+loader.in_memory=true",), "the dataset looks at the progress of training"),
    ],
)
def test_what_no_time_can_be_told_of_ends_the_run_with_words(parts, capsys, overrides, said):
    run(*overrides, "train.evaluate_every=6st", "train.checkpoint_every=6st", "train.duration=18st", status=1)
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.warm=1epoch", "model.warm must be an integer"),
        ("model.name=3", "model.name must be a text"),
        ("+model._from_=1ep", "model._from_ is for a transform"),
        (
            "transform.train={a: {_target_: timed_parts.Scale, factor: 1, _from_: 3}}",
            "a._from_ must be",
        ),
        ("transform.train={a: {_target_: timed_parts.Scale, factor: 1, _form_: 3ep}}", "did you mean"),
    ],
)
def test_a_mistake_about_time_is_named(parts, capsys, override, said):
    run(override, status=2)
    assert said in " ".join(capsys.readouterr().err.split())


def test_one_part_is_trained_every_third_step(parts, monkeypatch):
    """`n_critic`, by a step that counts with `progress`; the same after a stop."""
    overrides = (*SHAPES, "step._target_=timed_parts.Critic")
    whole = run(*overrides)
    stopped = stop_at(8, monkeypatch, *overrides)
    run(verb=("resume", str(stopped)))

    own = [line["train/own"] for line in read_metrics(whole) if "train/own" in line]
    assert own == list(itertools.islice(itertools.cycle([0.0, 0.0, 1.0]), 18))
    assert read_result(whole)["weights_sha256"] == read_result(stopped)["weights_sha256"]
    assert torch.load(whole / "checkpoints" / "last.pt", weights_only=True)["progress"]["step"] == 18


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["in this process", "a sampler", "batched", "streamed", "accumulated"])
def test_two_processes_draw_their_samples_at_the_time_of_the_step(parts, tmp_path, name):
    """Each rank's step compares: the ranks end well, and have seen every step."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "runner"]
    options = {"cwd": tmp_path, "capture_output": True, "text": True}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    words = ["experiment=timed", "device.parallel=ddp", "loader.batch_size=2", *WAYS[name]]
    words += ["loader.batch_size=1"] if name == "accumulated" else []
    ran = subprocess.run([*command, *words], check=False, env=environment, **options)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (folder,) = Path("outputs/timed").iterdir()
    assert read_result(folder)["steps"] == 18
