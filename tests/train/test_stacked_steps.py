"""Steps of a stack without torch.vmap, evaluations of all jobs at once, and saves that are held in memory."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch.nn import functional as F

from runner.core.durations import Duration
from runner.train import pauses
from runner.train.checkpoint import Checkpoints, SaveError
from runner.train.state import Run
from runner.train.vectorized import held_saves
from runner.train.vectorized.evaluation import StackEvaluation
from runner.train.vectorized.held_saves import HeldCheckpoints, SaveClock
from runner.train.vectorized.jobs_tensor import JobsTensor, NoRuleError
from runner.train.vectorized.per_job import PerJobNumber, PerJobNumberError
from runner.train.vectorized.vmap_rules import StackRules
from tests.support import read_metrics
from tests.train.test_vectorized import parts, train_alone, train_as_one  # noqa: F401  a fixture, and what it needs

JOBS, SIZE = 3, 4
RULES = StackRules([torch.Generator() for _ in range(JOBS)])


def wrap(*shape: int, place: int = 0) -> JobsTensor:
    """Make a tensor of all jobs; `place` is where it keeps them."""
    stacked = torch.randn(JOBS, *shape, generator=torch.Generator().manual_seed(len(shape) + place))
    return JobsTensor(stacked.movedim(0, place).contiguous(), place, RULES)


CALLS: dict[str, tuple[Any, ...]] = {
    "relu": (F.relu, (SIZE, 5)),
    "tanh of a sum": (lambda x, y: torch.tanh(x + 2 * y), (SIZE, 5), (SIZE, 5)),
    "product of unequal dimensions": (lambda x, y: x * y, (SIZE, 3, 5), (5,)),
    "quotient of a number": (lambda x: 1 / (1 + x * x), (SIZE, 5)),
    "flatten": (lambda x: x.flatten(1), (SIZE, 2, 3, 5)),
    "view": (lambda x: x.view(x.shape[0], -1), (SIZE, 2, 3, 5)),
    "reshape": (lambda x: x.reshape(len(x), 3, 2), (SIZE, 6)),
    "mean of images": (lambda x: x.mean((2, 3)), (SIZE, 2, 3, 5)),
    "sum of all": (lambda x: x.sum(), (SIZE, 5)),
    "sum of the last, kept": (lambda x: x.sum(-1, keepdim=True), (SIZE, 5)),
    "linear": (F.linear, (SIZE, 5), (2, 5), (2,)),
    "linear without a bias": (F.linear, (SIZE, 5), (2, 5)),
    "convolution": (lambda x, w, b: F.conv2d(x, w, b, padding=1), (SIZE, 2, 5, 5), (3, 2, 3, 3), (3,)),
    "pooling": (lambda x: F.max_pool2d(x, 2), (SIZE, 2, 6, 6)),
    "batch norm": (lambda x: F.batch_norm(x, None, None, training=True), (SIZE, 2, 3, 3)),
}


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", CALLS)
def test_an_operator_on_all_jobs_is_that_of_each(name, place):
    """The values and the gradients of each job, wherever the first tensor keeps the jobs."""
    call, *shapes = CALLS[name]
    given = [wrap(*shape, place=place if number == 0 else 0) for number, shape in enumerate(shapes)]
    for tensor in given:
        tensor.stacked.requires_grad_()
    made = call(*given)
    made.get_in_front().square().sum().backward()
    for row in range(JOBS):
        own = [tensor.get_in_front()[row].detach().requires_grad_() for tensor in given]
        alone = call(*own)
        alone.square().sum().backward()
        assert made.shape == alone.shape
        torch.testing.assert_close(made.get_in_front()[row], alone)
        for tensor, single in zip(given, own, strict=True):
            grad = tensor.stacked.grad
            assert grad is not None
            torch.testing.assert_close(grad.select(tensor.place, row), single.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "call",
    [bool, float, lambda x: [*x], lambda x: x[0], lambda x: x.cumsum(0), torch.rand_like, repr],
)
def test_what_has_no_rule_is_an_error(call):
    """Nothing is guessed: a look into the numbers, an index, an operator that is not on the list, a draw."""
    with pytest.raises(NoRuleError):
        call(wrap(SIZE))


@pytest.mark.parametrize("call", [lambda x, p: x / p, lambda x, p: x * p, F.leaky_relu])
def test_a_number_of_each_job_is_no_number_for_a_rule_of_all(call):
    """Its own value is NaN, which no operator may take."""
    with pytest.raises(PerJobNumberError):
        call(wrap(SIZE), PerJobNumber([0.1, 0.2, 0.3]))


def test_pauses_that_save_nothing_do_not_put_off_a_writing(monkeypatch):
    """Each pause for a log line looks at the clock; only a writing starts it anew."""
    now = [0.0]
    monkeypatch.setattr(held_saves, "LEAST_SECONDS", 1.0)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(held_saves, "LEAST_SECONDS", 1.0)
    clock, held = SaveClock(), []
    for second in (0.5, 1.2, 1.4, 1.6, 2.1, 2.7):
        now[0] = second
        clock.decide()
        held.append(clock.holds)
        if second in (1.6, 2.7):  # saves
            clock.begin()

    assert held == [True, False, False, False, True, False]


def test_what_was_held_is_written_although_a_writing_before_failed(tmp_path):
    """The error comes once, to whoever waits; no state is lost by it."""
    saves = object.__new__(HeldCheckpoints)
    vars(saves).update(vars(Checkpoints(tmp_path, keep=3)))
    vars(saves).update(clock=SaveClock(), log=SimpleNamespace(sync=lambda: None), config={}, is_large=False)
    vars(saves).update(held=[], _writing=None, background_bytes=0)
    store, failed = saves._store, []

    def fail_once(entry: Any, state: Any) -> Any:
        if not failed:
            failed.append(entry.step)
            raise SaveError("no space")
        return store(entry, state)

    saves._store = fail_once
    state = {"model": {"w": torch.zeros(2)}, "config": {}}
    saves.save(state, 1, None)
    with pytest.raises(SaveError):
        saves.save(state, 2, None)
    saves.wait()

    assert (failed, [entry.step for entry in Checkpoints(tmp_path).entries()]) == ([1], [2])


@pytest.mark.parametrize(("total", "written"), [(100, [2, 4]), (6, [2, 3, 4])])
def test_a_writing_leaves_out_what_lies_between(tmp_path, total, written):
    """The best state and the last one are written; those between too where the job may end with them."""
    run = SimpleNamespace(
        checkpoints=Checkpoints(tmp_path, keep=3),
        log=SimpleNamespace(sync=lambda: None),
        config={},
        stop=SimpleNamespace(asked=False),
        progress=SimpleNamespace(step=0),
        rhythm=SimpleNamespace(checkpoint_every=Duration(1, "st"), steps_per_epoch=0, total_steps=total),
    )
    saves = HeldCheckpoints(cast("Run", run), SaveClock())
    for step, metric in ((1, 2.0), (2, 1.0), (3, None), (4, None)):
        saves.clock.holds, run.progress.step = step < 4, step
        saves.save({"model": {"w": torch.full((2,), step)}, "config": {}}, step, metric)
    saves.wait()

    assert [entry.step for entry in Checkpoints(tmp_path).entries()] == written
    assert Checkpoints(tmp_path).load("best")["model"]["w"].tolist() == [2, 2]


def test_what_reaches_a_kernel_past_the_rules_is_an_error():
    """A function of one's own calls the kernels with tensors that have no numbers."""

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, x: Any) -> Any:
            with torch._C.DisableTorchFunctionSubclass():
                return x * 2

        @staticmethod
        def backward(_ctx: Any, *grads: Any) -> Any:
            return grads[0] * 2

    with pytest.raises(NoRuleError):
        Double.apply(wrap(SIZE))


POINTS = [["seed=1"], ["seed=2", "optimizer.lr=0.02"], ["seed=3"], ["seed=4"]]
MLP = ("experiment=digits_mlp", "device.type=cpu", "dataset.limit=200", "train.duration=24st", "log.tensorboard=false")
RHYTHM = ("train.evaluate_every=4st", "train.checkpoint_every=4st", "log.every=4st")


def list_kept(folder: Path) -> list[int]:
    """List the steps of the checkpoints of a run."""
    return [entry.step for entry in Checkpoints(folder / "checkpoints").entries()]


def test_held_saves_end_in_the_same_checkpoints_and_evaluations(parts, monkeypatch):  # noqa: F811
    """The steps that are kept, and the metrics of every evaluation, are those of the jobs alone."""
    computed = []
    compute = StackEvaluation._compute
    monkeypatch.setattr(StackEvaluation, "_compute", lambda self, name: computed.append(name) or compute(self, name))
    alone = train_alone(POINTS, (*MLP, *RHYTHM))
    folders = [job.task.folder for job in train_as_one(POINTS, (*MLP, *RHYTHM))]

    assert [list_kept(folder) for folder in folders] == [list_kept(folder) for folder in alone]
    assert computed == ["val"] * 5  # the sixth is that of the end
    for folder, single in zip(folders, alone, strict=True):
        for event, other in zip(read_metrics(folder), read_metrics(single), strict=True):
            assert event == pytest.approx(other, rel=1e-4, abs=1e-6)


@pytest.mark.exhaustive
def test_a_writing_writes_the_state_of_its_pause(parts, monkeypatch):  # noqa: F811
    """While the stack trains on, files appear, and each holds the step that it names."""
    monkeypatch.setattr(held_saves, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(held_saves, "LEAST_RATIO", 0.0)
    monkeypatch.setattr(pauses, "will_evaluate", lambda _: False)
    seen: list[list[int]] = []
    decide = SaveClock.decide

    def look(clock: SaveClock) -> None:
        clock.writers.submit(time.sleep, 0).result()
        seen.append(list_kept(Path("stack_0")) if Path("stack_0/checkpoints/manifest.json").exists() else [])
        decide(clock)

    monkeypatch.setattr(SaveClock, "decide", look)
    train_as_one(POINTS, (*MLP, *RHYTHM))
    saved = torch.load("stack_0/checkpoints/last.pt", weights_only=True)

    assert max(map(max, filter(None, seen))) >= 12
    assert saved["progress"]["step"] == saved["scheduler"]["taken"] == 24


@pytest.mark.exhaustive
def test_a_model_whose_evaluation_draws_is_evaluated_by_each_job(parts):  # noqa: F811
    """Its dropout stays on: each job's numbers are those of the job alone."""
    text = (parts / "parts.py").read_text().replace("self.drop(x.flatten(1))", "nn.functional.dropout(x.flatten(1))")
    (parts / "parts.py").write_text(text)
    alone, jobs = train_alone(POINTS[:2]), train_as_one(POINTS[:2])

    for folder, job in zip(alone, jobs, strict=True):
        values = [
            [e["val/loss"] for e in read_metrics(place) if "val/loss" in e] for place in (folder, job.task.folder)
        ]
        assert values[0] == pytest.approx(values[1], rel=1e-3)
