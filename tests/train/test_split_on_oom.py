"""Out of memory, made on the CPU by a model that has room for so many samples: what is said, and batches in parts."""

import sys

import pytest
import torch
from torch import nn

from runner.core import rng
from runner.core.trees import count_samples
from runner.train.metric_inputs import MetricInput
from runner.train.metrics import Accuracy
from runner.train.oom import describe_peak, is_out_of_memory, suggest_remedies
from runner.train.optimizer_step.accumulated import AccumulatedStep
from runner.train.optimizer_step.split_on_oom import OomSplitStep, cut
from runner.train.steps import supervised
from tests.support import read_result

ROOM = '''
import torch
from torch import nn


class Room(nn.Module):
    """Has room for so many samples while it trains; the error comes in the forward, or in the backward."""

    def __init__(self, most=8, late=False):
        super().__init__()
        self.most, self.late, self.seen = most, late, []
        self.first, self.norm, self.dropout = nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.last = nn.Linear(8, 10)

    def forward(self, x):
        hidden = self.dropout(torch.relu(self.norm(self.first(x.flatten(1)))))
        if self.training and len(x) > self.most:
            if not self.late:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            hidden.register_hook(self.full)
        self.seen.append(len(x))
        return self.last(hidden)

    def full(self, _):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
'''


@pytest.fixture
def rooms(tmp_path, monkeypatch):
    (tmp_path / "rooms.py").write_text(ROOM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("rooms", None)
    import rooms

    yield rooms
    sys.modules.pop("rooms", None)


def result(tmp_path):
    return read_result(next((tmp_path / "outputs" / "run").glob("*/result.json")).parent)


def command(*argv):
    from runner.__main__ import main

    return main(["model=room", "experiment=null", "device=cpu", "dataset.limit=128", "train.duration=2ep", *argv])


@pytest.fixture
def room(rooms, tmp_path):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "room.yaml").write_text("{_target_: rooms.Room, most: 20}")
    return tmp_path


def test_the_error_says_batch_size_what_to_change_and_the_peak(room, capsys):
    assert command() == 1
    error = result(room)["error"]

    assert "out of memory in the step after step 0 with loader.batch_size=64; the peak of this process was" in error
    assert "loader.batch_size=32 train.accumulate=2 makes the same steps of smaller batches" in error
    assert all(remedy in error for remedy in ("train.split_on_oom=true", "device.precision=bf16"))
    log = next(room.glob("outputs/run/*/log.txt")).read_text()
    assert [False, True] == ["Traceback" in text for text in (capsys.readouterr().err, log)]


@pytest.mark.parametrize("late", ["false", "true"])
def test_a_batch_is_computed_in_parts_and_the_run_goes_on(room, late):
    """Of 64 samples in four parts of 16; said once, kept, and in the checkpoint."""
    assert command("train.split_on_oom=true", f"+model.late={late}") == 0
    folder = next(room.glob("outputs/run/*"))
    saved = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)

    assert saved["progress"]["parts"] == 4
    assert result(room)["steps"] == 4
    text = (folder / "log.txt").read_text()
    assert [text.count(f"computed in {parts} parts") for parts in (2, 4, 8)] == [1, 1, 0]


def test_the_accumulated_batch_that_it_recommends_makes_steps_of_the_same_size(room):
    assert command("loader.batch_size=16", "train.accumulate=4") == 0
    assert result(room)["steps"] == 4


def test_one_sample_that_does_not_fit_ends_the_run(room):
    assert command("train.split_on_oom=true", "model.most=0") == 1
    assert "train.split_on_oom" not in result(room)["error"]


def made(rooms, kind, most, late=False, **settings):
    torch.manual_seed(0)
    model = rooms.Room(most, late)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    update = kind(
        model, nn.CrossEntropyLoss(), supervised, optimizer, metrics=[MetricInput("accuracy", Accuracy())], **settings
    )
    batches = [(torch.randn(size, 1, 8, 8), torch.randint(10, (size,))) for size in (16, 16, 10)]
    rng.seed_all(1)
    return update, batches


@pytest.mark.parametrize("late", [False, True])
def test_a_batch_that_failed_first_has_the_bits_of_one_that_was_cut_at_once(rooms, late):
    """Dropout drew the same, and the statistics of the norm saw nothing of the failed attempts."""
    failed, batches = made(rooms, OomSplitStep, 4, late, model=None)
    failed.model, failed.warn = failed.net, lambda _: None
    outcomes = [failed(batch) for batch in batches]
    cut_at_once, batches = made(rooms, OomSplitStep, 1000, model=None)
    cut_at_once.model, cut_at_once.parts = cut_at_once.net, 4
    expected = [cut_at_once(batch) for batch in batches]

    assert failed.parts == 4
    assert all(
        torch.equal(a, b)
        for a, b in zip(failed.net.state_dict().values(), cut_at_once.net.state_dict().values(), strict=True)
    )
    assert [outcome["loss"] for outcome in expected] == [outcome["loss"] for outcome in outcomes]
    assert failed.metrics[0].compute() == cut_at_once.metrics[0].compute()


def test_equal_parts_are_those_of_accumulation(rooms):
    """To the bit, in groups of two batches as well."""
    split, batches = made(rooms, OomSplitStep, 4, model=None, count=2)
    split.model, split.warn = split.net, lambda _: None
    split(batches[:2])
    by_hand, batches = made(rooms, AccumulatedStep, 1000, count=8)
    by_hand([part for batch in batches[:2] for part in cut(batch, 4)])

    assert all(torch.equal(a, b) for a, b in zip(split.net.parameters(), by_hand.net.parameters(), strict=True))


def test_a_checkpoint_keeps_the_parts_whatever_the_kind_of_step(rooms):
    """A step that does not split saves one part, and takes no notice of those of another."""
    split, whole = made(rooms, OomSplitStep, 4, model=None)[0], made(rooms, AccumulatedStep, 4)[0]
    split.load_state_dict({"parts": 4})
    whole.load_state_dict(split.state_dict())

    assert ({"parts": 4}, {"parts": 1}) == (split.state_dict(), whole.state_dict())


def test_a_batch_is_cut_wherever_its_samples_are():
    batch = {
        "x": torch.arange(5),
        "names": ["a", "b", "c", "d", "e"],
        "pair": (torch.ones(5, 2), torch.tensor(3.0)),
        "n": 5,
    }
    parts = cut(batch, 2)

    assert count_samples(batch) == 5
    assert [(part["x"].tolist(), part["names"], part["pair"][0].shape[0], part["n"]) for part in parts] == [
        ([0, 1], ["a", "b"], 2, 5),
        ([2, 3, 4], ["c", "d", "e"], 3, 5),
    ]
    assert len(cut(batch, 8)) == 5


def test_what_is_out_of_memory_and_what_is_not():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60)

    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_what_is_said_of_it_has_the_peak_and_the_remedies_that_are_left():
    assert "GiB" in describe_peak(torch.device("cpu"))
    assert "one sample is too much" in suggest_remedies(1, 1, "bf16", evaluating=False, splits=True)
    assert "loader.eval.batch_size=64" in suggest_remedies(128, 1, "fp32", evaluating=True, splits=False)
