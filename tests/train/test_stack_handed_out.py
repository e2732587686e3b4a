"""What a stack keeps until a pause reaches each job as it would alone: outputs, metrics, settings, the last state."""

from typing import Any

import pytest
import torch

from runner.train import pauses
from runner.train.checkpoint import Checkpoints
from tests.support import read_metrics
from tests.train.test_vectorized import parts, read_losses, train_alone, train_as_one  # noqa: F401  a fixture

PARTS = """
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from runner.train.metrics import Accuracy


class Net(nn.Module):
    def __init__(self, sizes=None):
        super().__init__()
        self.lin, self.drop, self.scale = nn.Linear(64, 10), nn.Dropout(0.3), nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return self.lin(self.drop(x.flatten(1))) * self.scale.exp()


def step(batch, model, loss, input=0, target=1):
    x, y = batch
    output = model(x)
    made = {"loss": loss(output, y), "output": output, "target": y, "size": len(y), "scale": model.scale}
    return made | ({"odd": float(len(y))} if len(y) < 64 else {})


class BatchMean(Accuracy):
    def reset(self):
        super().reset()
        self.each = []

    def update(self, output, target):
        self.each.append((output.argmax(1) == target).float().mean())

    def compute(self):
        return float(torch.stack(self.each).mean())

    def state_dict(self):
        return {"each": [float(one) for one in self.each]}

    def load_state_dict(self, state):
        self.each = [torch.tensor(one) for one in state["each"]]


class Drawing(BatchMean):
    def update(self, output, target):
        rows = torch.randint(0, len(target), (len(target),))
        super().update(output[rows], target[rows])


class TableLR(LRScheduler):
    def __init__(self, optimizer, last_epoch=-1):
        self.table = {(0, 20): 1.0, (20, 10**9): 0.1}
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        factor = next(one for (low, high), one in self.table.items() if low <= self.last_epoch < high)
        return [factor * rate for rate in self.base_lrs]
"""
BASE = (
    "experiment=digits_mlp",
    "model={_target_: handed_out.Net}",
    "device.type=cpu",
    "dataset.limit=300",
    "train.duration=24st",
    "log.every=8st",
    "log.tensorboard=false",
)


@pytest.fixture
def own(parts):  # noqa: F811
    """A project with a model, a step, metrics and a schedule of one's own."""
    (parts / "handed_out.py").write_text(PARTS)
    (parts / "conf/scheduler").mkdir()
    (parts / "conf/scheduler/table.yaml").write_text("_target_: handed_out.TableLR\n")
    return parts


def read_both(points: list[list[str]], *overrides: str) -> list[tuple[list[Any], list[Any]]]:
    """Train points alone and as one; return the events of each job, times and rates apart."""
    alone = train_alone(points, (*BASE, *overrides))
    jobs = train_as_one(points, (*BASE, *overrides))
    assert [(job.status, job.apart) for job in jobs] == [(0, "")] * len(points)
    return [(read_metrics(one), read_metrics(job.task.folder)) for one, job in zip(alone, jobs, strict=True)]


CASES = {
    "fields of a step, one of the model's own": ("step={_target_: handed_out.step}",),
    "a metric derived from ours looks at each batch": ("metrics={accuracy: {_target_: handed_out.BatchMean}}",),
    "schedules with settings of their own": (),
    "a schedule of one's own, with a table": ("scheduler=table",),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_handed_out_is_that_of_the_job_alone(case, own):
    """Every number of every line, within rounding."""
    points = [["seed=1"], ["seed=2", "optimizer.lr=0.05"], ["seed=3"]]
    if not CASES[case]:
        points = [["scheduler=cosine"], ["scheduler=one_cycle"], ["scheduler=cosine", "seed=2"]]
    for alone, together in read_both(points, *CASES[case]):
        assert [event.keys() for event in together] == [event.keys() for event in alone]
        for one, other in zip(alone, together, strict=True):
            assert other == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_a_metric_that_draws_keeps_jobs_apart(own):
    """It would draw from a generator that is nobody's."""
    jobs = train_as_one([["seed=1"], ["seed=2"]], (*BASE, "metrics={accuracy: {_target_: handed_out.Drawing}}"))

    assert all("draws from torch's generator" in job.apart for job in jobs)


def test_a_label_out_of_range_is_no_infinite_loss(own, monkeypatch):
    """Classes are filled up to the lanes of a CPU; a label among those is refused, as torch refuses it."""
    output, target = torch.zeros(3, 4, 10), torch.tensor([[1, 2, 3, 12]] * 3)
    from runner.train.vectorized.jobs_tensor import DirectCall
    from runner.train.vectorized.vmap_rules import StackedCrossEntropy

    with pytest.raises(IndexError):
        StackedCrossEntropy.vmap(DirectCall(3), (0, 0, None), output, target, (-100, "mean", 0.0))


def test_who_is_asked_to_stop_while_others_act_saves_this_step(own, monkeypatch):
    """The first job has acted when the signal comes; its last checkpoint is of the step at which all stop."""
    act, seen = pauses.run_due_actions, []

    def stop_in_the_second(run: Any) -> int:
        due = act(run)
        seen.append(run.seed)
        if run.progress.step == 12 and run.seed == 2 and not run.stop.asked:
            for job in members:
                job.end("a test asks")
        return due

    members: list[Any] = []
    begin = pauses.begin
    monkeypatch.setattr(pauses, "begin", lambda run: members.append(run.stop) or begin(run))
    monkeypatch.setattr(pauses, "run_due_actions", stop_in_the_second)
    rhythm = ("log.every=4st", "train.evaluate_every=null", "train.checkpoint_every=20st")
    jobs = train_as_one([["seed=1"], ["seed=2"], ["seed=3"]], (*BASE, *rhythm))

    places = [Checkpoints(job.task.folder / "checkpoints").entries()[-1].step for job in jobs]
    assert places == [12, 12, 12]
    assert all(read_losses(job.task.folder) for job in jobs)
