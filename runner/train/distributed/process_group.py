"""Process group: messages through torchrun's store, detection of dead ranks, and collectives."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from runner.core.errors import RunError
from runner.train.distributed.environment import RankPlace
from runner.train.single_process import SingleProcess
from runner.train.state import StopReason
from runner.train.step_outputs import is_weighted

AGREE_SECONDS = 1.0  # between two looks at whether a process was asked to stop: one small collective each


TIMEOUT = timedelta(minutes=10)  # of a collective; every rank evaluates and only the saves are one rank's work


SHARED = (
    "loss",
    "loss_is",
    "output",
    "target",
    "size",
)  # of what a step says of a batch; further numbers are shared too


NUMBERS = (Tensor, bool, int, float)


POLL_SECONDS = 0.05


BLAME_SECONDS = 5.0  # to learn which process failed first, when a collective did


GRACE_SECONDS = 15.0  # for a rank that another's end has left waiting in a kernel


class ProcessGroup(SingleProcess):
    """Process group of the processes that torchrun started, seen from one of them.

    `stop` is told what the processes agreed about signals: all of them end after the same step.

    Messages that need no other rank at this moment go through torchrun's own store, so they work before the collectives
    do and after a rank has died.
    """

    def __init__(self, place: RankPlace, stop: Any) -> None:
        self.place, self.stop = place, stop
        self.rank, self.world, self.local_rank = place.rank, place.world, place.local_rank
        self.stream = (place.rank,) if place.rank else ()
        self.group_store, self.store = _open_store("group", place), _open_store("runner", place)
        self.turns = 0
        self.heard = 0
        self.over = False
        self.due = 1
        self.agreed = (0, time.perf_counter())
        self.store.set(f"process/{self.rank}", json.dumps([socket.gethostname(), os.getpid()]))

    # ---- through the store

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a message of rank 0 to the other ranks."""
        self.heard += 1
        self.store.set(f"message/{self.heard}", json.dumps(message))

    def hear(self) -> Any:
        """Receive the next message of rank 0."""
        self.heard += 1
        return json.loads(self._wait(f"message/{self.heard}"))

    def _wait(self, key: str) -> bytes:
        """Wait for a key of the store and return its value.

        Raises:
            RunError: a process that was to write it is gone.
        """
        looked = time.monotonic()
        while not self.store.check([key]):
            time.sleep(POLL_SECONDS)
            if time.monotonic() - looked > 1:
                looked = time.monotonic()
                if culprit := self.culprit():
                    raise RunError(culprit)
        value: bytes = self.store.get(key)
        return value

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """Run the block in rank 0 first, then once per machine (own files), then in all other ranks."""
        self.turns += 1
        turn, place = f"turn/{self.turns}", self.place
        if self.rank:
            self._wait(f"{turn}/first" if place.local_rank == 0 else f"{turn}/{place.machine}")
        yield
        if self.rank == 0:
            self.store.set(f"{turn}/first", "")
        if place.local_rank == 0:
            self.store.set(f"{turn}/{place.machine}", "")

    def failed(self, error: BaseException) -> None:
        """Tell the other ranks of this rank's own error."""
        if not is_lost(error):
            text = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
            self.store.set(f"failed/{self.rank}", text)

    def culprit(self) -> str:
        """Describe another process that failed or is gone; return "" if none did."""
        others = [rank for rank in range(self.world) if rank != self.rank]
        for rank in others:
            if self.store.check([f"failed/{rank}"]):
                return f"rank {rank} failed: {self.store.get(f'failed/{rank}').decode()}"
        for rank in others:
            if self.store.check([f"process/{rank}"]) and not self.store.check([f"ended/{rank}"]):
                host, process = json.loads(self.store.get(f"process/{rank}"))
                if host == socket.gethostname() and not _is_alive(process):
                    return f"rank {rank} (process {process}) was killed, or ended without a word"
        return ""

    def blame(self, error: BaseException) -> str:
        """Name the rank whose end made a collective fail here; return "" for an error of this rank's own."""
        if not is_lost(error):
            return ""
        until = time.monotonic() + BLAME_SECONDS
        while time.monotonic() < until:
            if culprit := self.culprit():
                return culprit
            time.sleep(POLL_SECONDS)
        return "another process cannot be reached any more, and left no word"

    def watch(self, lost: Callable[[str], None]) -> None:
        """Call `lost` from a thread after another rank failed or died.

        Rank 0 ends its process there (`give_up` in experiment/run.py). The others end by the error of their next
        collective (experiment/worker_rank.py).
        """
        threading.Thread(target=self._watch, args=(lost,), name="watch", daemon=True).start()

    def _watch(self, lost: Callable[[str], None]) -> None:
        while not self.over:
            time.sleep(1)
            if culprit := self.culprit():
                time.sleep(GRACE_SECONDS)
                if not self.over:
                    lost(culprit)
                return

    def end(self) -> None:
        """Wait for the other processes' ends: torchrun kills them once one has ended badly."""
        self.over = True
        self.store.set(f"ended/{self.rank}", "")
        until = time.monotonic() + BLAME_SECONDS
        keys = [f"ended/{rank}" for rank in range(self.world)]
        with contextlib.suppress(RuntimeError):  # the store ends with the process that holds it
            while time.monotonic() < until and not self.store.check(keys) and not self.culprit():
                time.sleep(POLL_SECONDS)

    # ---- collectives

    def start(self, device: torch.device) -> None:
        """Initialize the collectives: gloo for tensors on the CPU, NCCL for tensors on a GPU."""
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if not dist.is_initialized():
            dist.init_process_group(
                backend, store=self.group_store, rank=self.rank, world_size=self.world, timeout=TIMEOUT
            )

    def agree(self, step: int) -> None:
        """Exchange received signals at the step that is due, and set the next such step."""
        if self.due is None or step < self.due:
            return
        since, then = self.agreed
        now = time.perf_counter()
        rate = (step - since) / max(now - then, 1e-9)
        stop = self.stop
        told = torch.tensor([float(stop.wanted), float(stop.came), float(bool(stop.late)), rate], dtype=torch.float64)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        reason, signal, late, rate = told.tolist()
        if reason:
            stop.leave(StopReason(int(reason)), int(signal))
        if late:
            stop.end(stop.late or "the time of another process is up")
        self.agreed = (step, now)
        self.due = step + max(1, int(rate * AGREE_SECONDS))

    def same(self, value: Any) -> Any:
        return self.every(value)[0]

    def union(self, names: list[str]) -> list[str]:
        return list(dict.fromkeys(name for some in self.every(names) for name in some))

    def mean(self, values: list[float]) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return (total / self.world).tolist()

    def every(self, value: Any) -> list[Any]:
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        return [json.loads(bytes(part.tolist())) for part in self._pooled(text)]

    def _pooled(self, tensor: Tensor) -> list[Tensor]:
        """Gather the 1-d tensor of each rank, whatever its length."""
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(lengths, torch.tensor([len(tensor)]))
        counts = [int(length) for length in lengths]
        padded = tensor.new_zeros(max(counts))
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return [part[:count] for part, count in zip(parts, counts, strict=True)]

    def total(self, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average gradients over the processes; one that some process lacks is zero there."""
        there = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8)
        dist.all_reduce(there, dist.ReduceOp.MAX)
        kinds: dict[Any, list[Tensor]] = {}
        for parameter, used in zip(parameters, there.tolist(), strict=True):
            if used and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                kinds.setdefault((parameter.grad.device, parameter.grad.dtype), []).append(parameter.grad)
        for gradients in kinds.values():
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            dist.all_reduce(flat)
            flat /= self.world
            parts = flat.split([gradient.numel() for gradient in gradients])
            torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])

    def gather(self, value: Any) -> list[Any]:
        tensors: list[Tensor] = []
        plans = self.every(_describe_tensors(value, tensors))
        device = tensors[0].device if tensors else torch.device("cpu")
        # A column of one row counts as contiguous, and has the stride of its matrix: it has no view as bytes.
        whole = [t.detach().to(device).clone(memory_format=torch.contiguous_format) for t in tensors if t.numel()]
        raw = [t.reshape(-1).view(torch.uint8) for t in whole]
        parts = self._pooled(torch.cat(raw) if raw else torch.empty(0, dtype=torch.uint8, device=device))
        return [_rebuild(plan, _MessageReader(part)) for plan, part in zip(plans, parts, strict=True)]

    def level(self, module: nn.Module) -> None:
        for buffer in module.buffers():
            dense = buffer.contiguous()
            dist.broadcast(dense, 0)
            if dense is not buffer:
                buffer.copy_(dense)

    def number(self, turn: int) -> int:
        return turn * self.world + self.rank

    def outcomes(
        self, outcomes: Iterable[Mapping[str, Any]], split: Any, fields: frozenset[str] = frozenset()
    ) -> Iterator[Mapping[str, Any]]:
        if self.world == 1:
            yield from outcomes
            return
        for outcome in outcomes:
            shared = {
                name: value
                for name, value in outcome.items()
                if name in fields or name in SHARED or isinstance(value, NUMBERS) or is_weighted(value)
            }
            asked = [int(self.stop.wanted), self.stop.came]
            told = {"outcome": shared, "counts": split.count_next()[0] > 0, "asked": asked}
            parts = self.gather(told)
            reason, signal = (max(values) for values in zip(*(part["asked"] for part in parts), strict=True))
            if reason:
                self.stop.leave(StopReason(reason), signal)
            for part in parts:
                if part["counts"]:
                    yield part["outcome"]


def _open_store(prefix: str, place: RankPlace) -> Any:
    store, _, _ = next(dist.rendezvous("env://", rank=place.rank, world_size=place.world))  # type: ignore[attr-defined]
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]


def dismiss(place: RankPlace, status: int) -> None:
    """Send the other processes an exit status, unless they already have a message."""
    store = _open_store("runner", place)
    if not store.check(["message/1"]):
        store.set("message/1", json.dumps({"exit": status}))


def is_lost(error: BaseException) -> bool:
    """Return whether an error says that another process could not be reached."""
    lost = ("gloo", "NCCL", "Connection closed by peer", "Connection reset", "Broken pipe", "TCPStore")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and not isinstance(error, RunError) and any(word in str(error) for word in lost)
    )


def _is_alive(process: int) -> bool:
    """Return whether a process of this machine runs; a zombie does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return True


# ---- tensors in containers, as plain data and bytes


def _describe_tensors(value: Any, tensors: list[Tensor]) -> Any:
    """Return plain data from which `_rebuild` makes the value; append its tensors to `tensors`."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
    if isinstance(value, Mapping):
        return {
            "mapping": [
                [_describe_tensors(name, tensors), _describe_tensors(member, tensors)] for name, member in value.items()
            ]
        }
    if isinstance(value, list | tuple):
        return {"list": [_describe_tensors(member, tensors) for member in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise RunError(f"what a step returns must be tensors and plain data, to be shared, but it has {type(value)}")


def _rebuild(plan: Any, reader: "_MessageReader") -> Any:
    if not isinstance(plan, dict):
        return plan
    if "tensor" in plan:
        return reader.tensor(getattr(torch, plan["tensor"]), plan["shape"])
    if "mapping" in plan:
        return {_rebuild(name, reader): _rebuild(member, reader) for name, member in plan["mapping"]}
    return [_rebuild(member, reader) for member in plan["list"]]


class _MessageReader:
    """Reader of consecutive tensors from bytes."""

    def __init__(self, raw: Tensor) -> None:
        self.raw, self.at = raw, 0

    def tensor(self, dtype: torch.dtype, shape: list[int]) -> Tensor:
        size = dtype.itemsize
        for length in shape:
            size *= length
        part = self.raw[self.at : self.at + size]
        self.at += size
        return part.clone().view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype, device=part.device)
