"""Trace of a run: results of each step, collected without waiting for the device.

Two hooks cost something in each step: one that sees the batch before the step, and one that takes a probe of weights
and gradients before the update (4 µs on a CPU). All else is done with a log line or a checkpoint, where the losses are
read anyway.
"""

import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.core import rng
from runner.core.digests import (
    get_bytes,
    hash_batch,
    hash_generators,
    hash_parts,
    hash_rows,
    hash_saved_generators,
    hash_tensor,
    hash_tree,
)
from runner.core.durations import compute_next_due
from runner.core.layouts import is_strided
from runner.core.trees import iterate_tensors, map_tensors
from runner.data.interfaces import PlanKind
from runner.data.order_trace import OrderTrace
from runner.log.trace_file import pack_config, pack_hashes, pack_losses, pack_setting
from runner.train.optimizer_step.several_optimizers import get_members

if TYPE_CHECKING:
    from runner.train.state import Run

MOST_PROBED = 8  # weights of which a probe has one number each


SMALL = 64  # numbers of a tensor that is probed whole


PROBED_BYTES = 1 << 20  # of a batch's member on the CPU that is hashed in each step; of a larger one its sum


MOST_NAMED = 5_000  # tensors whose initial values have a hash each


class NoTrace:
    """Null trace of a run that writes none, or of a process that writes nothing."""

    def begin(self, run: "Run") -> None:
        """Begin at the run's step."""

    def watch(self, coming: Iterator[Any], run: "Run") -> Iterator[Any]:
        """Pass batches on, each seen before its step."""
        return coming

    def flush(self, run: "Run") -> None:
        """Write the facts of the steps since the last line."""

    def log(self, run: "Run") -> None:
        """Write the facts of the steps since the last line, and the batch of this step."""

    def save(self, run: "Run", state: Mapping[str, Any]) -> None:
        """Write the facts of the steps since the last line, and hashes of a checkpoint's state."""


class Trace(NoTrace):
    """Trace of a run under way: facts of its steps since the last line that was written."""

    kind: Mapping[str, Any] = {}  # what its beginning says of the training to come

    def __init__(self) -> None:
        self.step, self.place, self.seen, self.due = 0, (0, 0), 0, 0
        self.order: OrderTrace | None = None
        self.batch: tuple[int, Any] = (-1, None)  # the step that a log line is due after, and its batch
        self.settings: list[list[Any]] = []
        self.names: list[tuple[int, str]] = []  # group and name of each setting
        self.probe = WeightProbe()
        self.data: list[Any] | None = None  # a probe of each batch, where no fingerprint covers all samples

    # ---- the step under way

    def watch(self, coming: Iterator[Any], run: "Run") -> Iterator[Any]:
        """Pass batches on, each seen before its step."""
        progress, settings, names = run.progress, self.settings, self.names
        for batch in coming:
            groups = run.optimizer.param_groups
            settings.append([groups[group][name] for group, name in names])
            if self.data is not None:
                self.data.append([take_data_probe(tensor) for tensor in iterate_tensors(batch)])
            if progress.step + 1 == self.due:
                self.take(run, batch)
            yield batch

    def take(self, run: "Run", batch: Any) -> None:
        """Keep the batch of a step, as the model gets it: digested, or on its way from the device."""
        members = join_micro_batches(batch, grouped=run.rhythm.accumulate > 1)
        if run.device.type != "cpu":
            self.batch = (run.progress.step + 1, map_tensors(lambda one: one.to("cpu", non_blocking=True), members))
        else:
            self.batch = (run.progress.step + 1, hash_batch(members))

    # ---- what is written

    def begin(self, run: "Run") -> None:
        """Begin at the run's step: write config, weights, optimizer and generators that training begins with."""
        progress, split = run.progress, run.splits["train"]
        self.step, self.place, self.seen = progress.step, (progress.epoch, progress.batch), run.losses.count
        self.order = OrderTrace(split)
        self.names = _list_settings(run.optimizer)
        self.settings.clear()
        per_sample = split.plan.kind in (PlanKind.PER_SAMPLE, PlanKind.WHOLE_BATCHES, PlanKind.STREAMED)
        self.data = [] if per_sample else None
        self.probe.hang(run)
        weights = run.layout.whole(run.model.state_dict())
        facts: dict[str, Any] = {"config": pack_config(run.config), "weights": hash_tree(weights)}
        facts |= {"optimizer": hash_tree(run.layout.whole(run.optimizer.state_dict())["state"])}
        facts |= {"generators": hash_saved_generators(rng.get_state()), **self.kind}
        if progress.step == run.rhythm.first_step and len(weights) <= MOST_NAMED:
            tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
            facts["tensors"] = {
                name: f"{hash_tensor(value):08x}" for name, value in tensors.items() if is_strided(value)
            }
        self._plan(run)
        run.log.trace({"step": progress.step, "begin": facts})

    def flush(self, run: "Run") -> None:
        """Write the facts of the steps since the last line."""
        if facts := self.collect(run):
            run.log.trace({"step": run.progress.step} | facts)

    def log(self, run: "Run") -> None:
        """Write the facts of the steps since the last line, and the batch of this step."""
        facts = self.collect(run)
        step, batch = self.batch
        if step == run.progress.step:
            facts["batch"] = batch if run.device.type == "cpu" else hash_batch(batch)
            facts["drawn"] = self.hash_drawn(run)  # before the evaluation of this step; a checkpoint comes after it
            self.batch = (-1, None)
        self._plan(run)
        if facts:
            run.log.trace({"step": run.progress.step} | facts)

    def hash_drawn(self, run: "Run") -> dict[str, str]:
        """Hash the states of the generators that a step draws from."""
        return hash_generators()

    def save(self, run: "Run", state: Mapping[str, Any]) -> None:
        """Write the facts of the steps since the last line, and hashes of a checkpoint's state."""
        parts = {"weights": state["model"], "optimizer": state["optimizer"]["state"], "ema": state["ema"]}
        facts: dict[str, Any] = {"generators": hash_saved_generators(state["rng"]), **hash_parts(parts)}
        run.log.trace({"step": run.progress.step} | self.collect(run) | facts)

    def collect(self, run: "Run") -> dict[str, Any]:
        """Collect the packed facts of the steps since the last line; empty without a step."""
        progress = run.progress
        new = run.losses.count - self.seen
        losses = run.losses.read()[-new:] if new else []
        steps = progress.step - self.step
        begun, self.seen, self.step = self.place, run.losses.count, progress.step
        self.place = (progress.epoch, progress.batch)
        settings, data = list(self.settings), self.data
        self.settings.clear()
        probes = self.probe.read()
        if self.data is not None:
            data, self.data = self.data, []
        if not losses or len(losses) != steps:  # a batch that a fault left out has no loss
            return {}
        facts: dict[str, Any] = {"loss": pack_losses(losses)}
        order = self._hash_order(run, begun)
        facts |= {"order": pack_hashes(order)} if order is not None and len(order) == steps else {}
        facts |= {name: pack_hashes(hashes) for name, hashes in probes.items() if len(hashes) == steps}
        if data is not None and len(data) == steps:
            facts["data_probe"] = pack_hashes([_hash_probe(members) for members in data])
        if len(settings) == steps:
            facts["settings"] = self._pack_settings(run, settings)
        return facts

    def _plan(self, run: "Run") -> None:
        """Set the step whose batch the next log line needs."""
        rhythm, step = run.rhythm, run.progress.step
        due = compute_next_due(rhythm.log_every, step, rhythm.steps_per_epoch)
        self.due = min(due or rhythm.total_steps, rhythm.total_steps)

    def _hash_order(self, run: "Run", begun: tuple[int, int]) -> list[int] | None:
        """Hash the indices of each step from `begun` (epoch, step of the epoch) to where the run stands."""
        progress, each = run.progress, run.rhythm.steps_per_epoch
        if self.order is None or not each or not self.order.is_known:
            return None
        hashes: list[int] = []
        for epoch in range(begun[0], progress.epoch + 1):
            start = begun[1] if epoch == begun[0] else 0
            stop = progress.batch if epoch == progress.epoch else each
            found = self.order.hash_steps(epoch, start, stop, run.rhythm.accumulate) if stop > start else []
            if found is None:
                return None
            hashes += found
        self.order.forget(progress.epoch)
        return hashes

    def _pack_settings(self, run: "Run", rows: list[list[Any]]) -> dict[str, Any]:
        packed: dict[str, Any] = {}
        groups = run.optimizer.param_groups
        for (group, name), column in zip(self.names, zip(*rows, strict=True), strict=True):
            label = f"{groups[group].get('name', group)}.{name}" if len(groups) > 1 else name
            if isinstance(column[0], tuple):
                packed |= {
                    f"{label}.{place}": pack_setting(part) for place, part in enumerate(zip(*column, strict=True))
                }
            else:
                packed[label] = pack_setting([float(value) for value in column])
        return packed


class WeightProbe:
    """Probe of a step: a few weights and a gradient before each update, hashed when the losses are read.

    On a CPU the weights are read in place, and of the gradient a reference is kept: an operator of torch takes longer.
    """

    def __init__(self) -> None:
        self.views: list[Any] = []
        self.parameter: Tensor | None = None  # near the input: its gradient has come through all the model
        self.is_small = False
        self.on_cpu = True
        self.kept: list[tuple[Any, Tensor | None]] = []
        self.members: tuple[Any, ...] = ()
        self.unhook: Any = None

    def hang(self, run: "Run") -> None:
        """Choose weights of a run's optimizer, and take a probe before each of its updates."""
        if self.unhook is not None:
            self.unhook()
            self.unhook = None
        self.kept = []
        first = next(iter(get_members(run.optimizer).values()))
        self.members = (run.optimizer, first)
        found = [p for group in first.param_groups for p in group["params"] if _is_plain(p, run.device)]
        if not found:
            return
        self.on_cpu = run.device.type == "cpu"
        views = [
            _take_first_number(parameter) for parameter in found[:: max(1, len(found) // MOST_PROBED)][:MOST_PROBED]
        ]
        self.views = [memoryview(get_bytes(view)).cast("B") for view in views] if self.on_cpu else views
        small = [p for p in found if p.dim() == 1 and p.numel() <= SMALL and p.requires_grad]
        self.is_small = bool(small)
        self.parameter = next(iter([*small, *(p for p in found if p.requires_grad)]), None)
        self.unhook = run.update.watch(self.look)

    def look(self, optimizer: Optimizer) -> None:
        """Take a probe, with the gradients there and not used yet."""
        if optimizer not in self.members:  # another one of several, as a GAN has
            return
        gradient = None if self.parameter is None else self.parameter.grad
        if gradient is not None and not self.is_small:
            gradient = _take_first_number(gradient).clone() if gradient.layout is torch.strided else None
        self.kept.append((b"".join(self.views) if self.on_cpu else torch.cat(self.views), gradient))

    def read(self) -> dict[str, list[int]]:
        """Return hashes of the probes since the last call; after the losses, so without a wait."""
        kept, self.kept = self.kept, []
        weights = [zlib.crc32(one) if isinstance(one, bytes) else hash_tensor(one) for one, _ in kept]
        gradients = [one for _, one in kept if one is not None]
        if len({id(one) for one in gradients}) < len(kept):  # a user's step that fills its gradients with zeros
            return {"weights_probe": weights}
        return {"weights_probe": weights, "gradient_probe": hash_rows(gradients)}


def _list_settings(optimizer: Optimizer) -> list[tuple[int, str]]:
    """List the numbers among the settings of an optimizer's groups: number of the group and name."""
    return [
        (number, name)
        for number, group in enumerate(optimizer.param_groups)
        for name, value in group.items()
        if (type(value) in (int, float) and name != "initial_lr")
        or (isinstance(value, tuple) and bool(value) and all(type(part) in (int, float) for part in value))
    ]


def _is_plain(parameter: Tensor, device: torch.device) -> bool:
    plain = type(parameter) in (nn.Parameter, Tensor) and is_strided(parameter) and parameter.numel() > 0
    return plain and parameter.is_floating_point() and parameter.device.type == device.type


def _take_first_number(tensor: Tensor) -> Tensor:
    """View the first number of a tensor, whatever its strides are."""
    return tensor.detach().as_strided((1,), (1,), tensor.storage_offset())


def take_data_probe(tensor: Tensor) -> Any:
    """Hash a member of a batch on the CPU; of a large one, or one on a device, give the sum, unread."""
    if not is_strided(tensor):
        return 0
    if tensor.is_complex():
        return take_data_probe(torch.view_as_real(tensor.resolve_conj()))
    if tensor.device.type == "cpu" and tensor.nbytes <= PROBED_BYTES:
        return hash_tensor(tensor)
    return tensor.sum(dtype=torch.float64 if tensor.is_floating_point() else None)


def _hash_probe(members: list[Any]) -> int:
    numbers = [torch.as_tensor(member, dtype=torch.float64).cpu() for member in members]
    return hash_tensor(torch.stack(numbers)) if numbers else 0


def join_micro_batches(batch: Any, *, grouped: bool) -> Any:
    """Return the members of a batch; those of several micro-batches stand in lists."""
    if not grouped or not batch:
        return batch
    if isinstance(batch[0], Mapping):
        return {name: [one[name] for one in batch] for name in batch[0]}
    return [list(members) for members in zip(*batch, strict=False)] if isinstance(batch[0], list | tuple) else batch
