"""A dataset that gives whole batches (`loader.batch_size: null`): as they are, in every way, resumed exactly."""

import itertools

import pytest
import torch

from tests.experiment.scripts.harness import read_losses
from tests.experiment.test_progress import run, stop_at
from tests.support import install_project, read_result

PARTS = '''
import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, SequentialSampler, get_worker_info


def make(number, tokens=8):
    """Batches of different sizes: of about as many tokens each."""
    generator = torch.Generator().manual_seed(number)
    length = 1 + number % 4
    inputs = torch.randn(tokens // length, length, generator=generator)
    return {"inputs": inputs.mean(1, keepdim=True), "targets": np.ones(len(inputs), np.float32)}


class Buckets(Dataset):
    def __init__(self, count=10):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return make(index)


class Flow(IterableDataset):
    def __init__(self, count=10):
        self.count = count

    def __iter__(self):
        info = get_worker_info()
        for number in range(0 if info is None else info.id, self.count, 1 if info is None else info.num_workers):
            yield make(number)


SEEN = []


def step(batch, model, loss):
    assert isinstance(batch["targets"], torch.Tensor)
    SEEN.append(tuple(batch["inputs"].shape))
    value = (model(batch["inputs"])[:, 0] - batch["targets"]).square().mean()
    return {"loss": value, "size": len(batch["inputs"])}


def double(batch):
    return {**batch, "inputs": 2 * batch["inputs"]}
'''
EXPERIMENT = """
# @package _global_
defaults:
  - override /dataset: null
  - override /model: null
  - override /step: null
  - override /metrics: none
  - override /loss: none
name: whole
dataset: {train: {_target_: batch_parts.Buckets}, val: {_target_: batch_parts.Buckets, count: 3}}
loader: {batch_size: null}
model: {_target_: torch.nn.Linear, in_features: 1, out_features: 1}
step: {_target_: batch_parts.step}
optimizer: {lr: 0.01, momentum: 0.9}
train: {duration: 3ep}
device: {type: cpu}
log: {every: 1st, progress: false, tensorboard: false, model_table: false}
"""
VERB = ("experiment=whole",)
STEPS = ("train.duration=30st", "train.evaluate_every=10st", "train.checkpoint_every=10st", "loader.shuffle=false")
FLOW = ("dataset.train._target_=batch_parts.Flow", *STEPS)


@pytest.fixture
def parts(tmp_path):
    with install_project(tmp_path, "batch_parts", PARTS, {"experiment/whole.yaml": EXPERIMENT}) as module:
        yield module


def by_hand(parts, order, steps=30):
    """The losses of a plain loop over these batches."""
    from runner.core import rng

    with rng.stream(rng.derive_key(0, "model")):
        model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for number in itertools.islice(order, steps):
        batch = parts.make(number)
        loss = (model(batch["inputs"])[:, 0] - torch.from_numpy(batch["targets"])).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("more", [("loader.shuffle=false",), FLOW])
def test_batches_come_as_the_dataset_gives_them_and_a_resume_goes_on(parts, monkeypatch, more):
    whole = run(*more, verb=VERB)
    expected = by_hand(parts, itertools.cycle(range(10)))
    stopped = stop_at(17, monkeypatch, *more, verb=VERB)
    run(verb=("resume", str(stopped)))

    assert expected == read_losses(whole) == read_losses(stopped)
    assert read_result(whole)["weights_sha256"] == read_result(stopped)["weights_sha256"]


def test_the_order_of_map_style_batches_is_that_of_the_epoch(parts):
    from runner.data.samples import EpochOrder, Stream

    order = EpochOrder(10, Stream(0, "train"), shuffle=True)
    assert by_hand(parts, [int(number) for epoch in range(3) for number in order(epoch)]) == read_losses(run(verb=VERB))


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("more", [("loader.shuffle=false",), FLOW])
def test_workers_give_the_same_batches(parts, more):
    assert by_hand(parts, itertools.cycle(range(10))) == read_losses(run(*more, "loader.num_workers=2", verb=VERB))


def test_transforms_of_batches_sampler_and_accumulation_go_with_it(parts):
    run("transform.batch={twice: {_target_: batch_parts.double}}", "train.accumulate=2", verb=VERB)
    run("loader.shuffle=false", "loader.sampler={_target_: batch_parts.SequentialSampler}", verb=VERB)

    assert len(parts.SEEN) > 60


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["loader.drop_last=true"], "loader.drop_last"),
        (["loader.batch_sampler={_target_: torch.utils.data.BatchSampler}"], "loader.batch_sampler"),
        (["loader.collate_fn={_target_: torch.utils.data.default_collate}"], "loader.collate_fn"),
        (["loader.in_memory=true"], "loader.in_memory"),
        (["loader.bad_samples=skip"], "loader.bad_samples"),
        (["loader.eval.batch_size=4"], "loader.eval.batch_size"),
        (["transform.train={a: {_target_: batch_parts.double}}"], "transform.train.a"),
        ([*FLOW, "loader.shuffle=true"], "loader.shuffle"),
        ([*FLOW, "loader.sampler={_target_: batch_parts.SequentialSampler}"], "loader.sampler"),
    ],
)
def test_what_needs_single_samples_is_refused_by_name(parts, capsys, overrides, key):
    run(*overrides, verb=VERB, status=2)
    said = capsys.readouterr().err
    assert f"{key} needs single samples" in said or f"{key} has no effect" in said, said
