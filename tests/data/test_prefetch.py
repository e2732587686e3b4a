"""Batches one ahead on their way to a GPU; with stand-ins for its streams, since these tests run without one."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from runner.data.prefetch import prefetch_to_device
from runner.data.samples import Placement


class Device:
    """A placement, a stream and an event that write down what is asked of them."""

    device = torch.device("cuda")

    def __init__(self) -> None:
        self.log: list[str] = []

    def put(self, batch: Any) -> Any:
        self.log.append(f"copy {batch[0]}")
        return batch

    def record_event(self) -> str:
        return f"event {len(self.log)}"

    def wait_event(self, event: str) -> None:
        self.log.append(f"wait for {event}")


@pytest.mark.parametrize("count", [0, 1, 4])
def test_the_next_batch_is_copied_while_one_is_trained_on(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each comes once and in order, after its own copy and no other."""
    device: Any = Device()
    monkeypatch.setattr("torch.cuda.Stream", lambda _: device)
    monkeypatch.setattr("torch.cuda.stream", lambda _: nullcontext())
    monkeypatch.setattr("torch.cuda.current_stream", lambda: device)
    trained = []
    for batch in prefetch_to_device(([number] for number in range(count)), device):
        device.log.append(f"train {batch[0]}")
        trained.append(batch[0])

    assert list(range(count)) == trained
    if count == 4:
        expected = ["copy 0", "copy 1", "wait for event 1", "train 0", "copy 2", "wait for event 2", "train 1"]
        assert expected == device.log[:7]


def test_on_a_cpu_nothing_is_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches are put where they go, and that is all."""
    placement = Placement(torch.device("cpu"))

    assert type(prefetch_to_device([], placement)) is map
    assert [[1, 2]] == list(prefetch_to_device([(1, 2)], placement))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_batches_are_the_same() -> None:
    """Many batches through one stream, each read by the other at once."""
    placement = Placement(torch.device("cuda"))
    batches = [(torch.full((1 << 20,), float(number)).pin_memory(), {"a": torch.arange(3)}) for number in range(50)]
    sums = [images.sum() + members["a"].sum() for images, members in prefetch_to_device(batches, placement)]

    assert [number * 2.0**20 + 3 for number in range(50)] == [float(total) for total in sums]
