"""Data parallelism: model wrappers, loss weights per rank, and training metrics over all ranks.

`nn.DataParallel` splits each batch in one process. Under DistributedDataParallel and FSDP2 each process has its part of
each batch; what it adds to the gradient is weighted by its share, so that their mean is the gradient of the batch.
"""

import gc
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from runner.core.errors import RunError
from runner.core.trees import iterate_tensors
from runner.data.sharding import ShardedBatches
from runner.model.freeze import FrozenParameters
from runner.train.accumulators import get_accumulators, set_accumulators
from runner.train.distributed.process_group import ProcessGroup
from runner.train.distributed.sync_batchnorm import synchronize_batch_norms
from runner.train.loss_weights import compute_divisor, is_summed, read_kind
from runner.train.metric_inputs import MetricInput
from runner.train.optimizer_step.named_updates import StepWithUpdates
from runner.train.single_process import FULL_TENSORS, FullTensors, SingleProcess
from runner.train.state import Losses, Run
from runner.train.step_outputs import NO_NUMBERS, RESERVED, StepOutputs, as_number, compute_mean, is_weighted

POOL_BYTES = 64 * 2**20  # of outputs kept by a process before the training metrics of all processes see them


def wrap_data_parallel(module: nn.Module) -> nn.Module:
    """Wrap the module for all CUDA devices: batches are split, outputs gathered on the first."""
    return DataParallel(module)


def wrap_distributed(module: Any, device: torch.device, *, find_unused: bool = False) -> Any:
    """Wrap a module to average gradients over processes; return one without trainable ones as is."""
    if not isinstance(module, nn.Module) or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    devices = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what the user did not ask for
        return DistributedDataParallel(
            module, device_ids=devices, find_unused_parameters=find_unused, gradient_as_bucket_view=True
        )


def shard_model(
    parallel: str, team: SingleProcess, frozen: FrozenParameters, model: nn.Module, loss: Any
) -> FullTensors:
    """Shard model and loss in place if `parallel` is fsdp, before the optimizer; return the layout."""
    if parallel != "fsdp" or not isinstance(team, ProcessGroup):
        return FULL_TENSORS
    from runner.train.distributed.fsdp import ShardedTensors, shard  # a second that only those pay who want it

    device = next(model.parameters()).device
    shard(model, device)
    if isinstance(loss, nn.Module) and next(loss.parameters(), None) is not None:
        shard(loss, device)
    now = dict(model.named_parameters())
    frozen.params = {name: now[name] for name in frozen.params}  # others than before
    return ShardedTensors()


def share(run: Run, team: ProcessGroup, find_unused: bool, sync_batchnorm: bool) -> None:
    """Make a run's step, losses and training metrics those of all processes together."""
    suppress_metric_sync(run.metrics["eval"])
    suppress_metric_sync(run.metrics["train"])
    by_name = run.update if isinstance(run.update, StepWithUpdates) else None
    if run.layout is FULL_TENSORS and by_name is None:
        run.wrap = ModelWrapper(run, find_unused=find_unused)
        run.wrap()
        run.update.loss = wrap_distributed(run.loss, run.device, find_unused=find_unused)
    if team.world == 1:
        return
    split: Any = run.splits["train"]
    if sync_batchnorm:
        synchronize_batch_norms(run.model, lambda: split.last[0] > 0)
    if by_name is not None:
        by_name.step = WeightedUpdates(by_name, split, team, run.losses.reserved)
        by_name.measure, by_name.average = split.count_coming, team.average_gradients
    else:
        run.update.step = WeightedStep(run.update.step, run.loss, split, team, run.losses.reserved)
    run.losses = SharedLosses(team, run.losses.reserved, sums=run.losses.sums)
    run.metrics["train"] = pool_metrics(run.inputs["train"], split, team)


class ModelWrapper:
    """Wrapper of a run's model, renewed after a change of its trainable parameters."""

    def __init__(self, run: Run, *, find_unused: bool) -> None:
        self.run, self.find_unused = run, find_unused
        self.trained: list[str] | None = None

    def __call__(self) -> None:
        trained = [name for name, parameter in self.run.model.named_parameters() if parameter.requires_grad]
        if trained == self.trained:
            return
        self.trained = trained
        self.run.update.net = self.run.model
        gc.collect()  # the hooks of the old one go with it
        self.run.update.net = wrap_distributed(self.run.model, self.run.device, find_unused=self.find_unused)


class WeightedStep:
    """Step whose loss is weighted by this rank's share; its size is that of the whole batch.

    The mean over the processes of what it gives is the loss of the whole batch; so is that of the gradients. A share is
    one of samples, or, where a classification loss divides by something else, of that (see `compute_divisor`), or,
    where the step gives `loss_is`, of what its `size` counts.

    Args:
        step: the step of one process.
        loss: its loss: a mean over samples, unless its `reduction` says that it is their sum.
        split: which knows what of its last batch counts.
        team: the processes.
        reserved: fields of an outcome that are no numbers to log.
    """

    def __init__(
        self,
        step: Callable[..., Mapping[str, Any]],
        loss: Any,
        split: ShardedBatches,
        team: ProcessGroup,
        reserved: frozenset[str] = RESERVED,
    ) -> None:
        self.step, self.loss, self.split, self.team, self.total = step, loss, split, team, is_summed(loss)
        self.reserved = reserved | NO_NUMBERS

    def __call__(self, batch: Any, net: nn.Module, loss: Callable[..., Any]) -> Mapping[str, Any]:
        if not torch.is_grad_enabled():  # an evaluation, of whole batches
            return self.step(batch, net, self.loss)
        own, whole = self.split.counts(batch)
        try:
            outcome = self.step(batch, net, loss)
        except RuntimeError as error:
            if "finished reduction in the prior iteration" not in str(error):
                raise
            message = "a step left out parameters that train: set device.find_unused_parameters=true, or freeze them"
            raise RunError(message) from error
        share = self.team.world * own / whole
        fields = {name: weigh(outcome[name], share) for name in outcome.keys() - self.reserved}
        if "loss_is" in outcome:
            return {**outcome, **fields, **weigh_by_size(self.team, outcome, own)}
        return {**outcome, **fields, "loss": self._weighted(outcome, own, share), "size": whole}

    def _weighted(self, outcome: Mapping[str, Any], own: int, share: float) -> Tensor:
        loss: Tensor = outcome["loss"]
        if self.total:
            return loss * (self.team.world * float(own > 0))
        mass = compute_divisor(self.loss, outcome.get("target"))
        if mass is None:
            return loss if share == 1 else loss * share
        mass = mass * float(own > 0)
        weight = self.team.world * mass / self.team.total(mass)
        return torch.where(mass > 0, loss * weight, torch.zeros_like(loss))  # where it has nothing its mean is NaN


def weigh_by_size(team: ProcessGroup, outcome: Mapping[str, Any], own: int) -> dict[str, Tensor]:
    """Weigh a loss by what its size counts, which the processes add up; return loss and size."""
    loss: Tensor = outcome["loss"]
    size = torch.as_tensor(outcome.get("size", 1), dtype=torch.float64).to(loss.device) * float(own > 0)
    whole = team.total(size)
    weight = torch.full_like(whole, float(own > 0)) if read_kind(outcome, sums=False) else size / whole
    weighted = loss * (team.world * weight).to(loss.dtype)
    return {"loss": torch.where(weight > 0, weighted, torch.zeros_like(loss)), "size": whole}


class WeightedUpdates:
    """Step with updates whose losses are weighted by this rank's share of the samples.

    No wrapper stands around the model: an update averages the gradients itself, those of its own parameters alone.
    """

    def __init__(
        self,
        update: StepWithUpdates,
        split: ShardedBatches,
        team: ProcessGroup,
        reserved: frozenset[str] = RESERVED,
    ) -> None:
        self.update, self.step, self.split, self.team = update, update.step, split, team
        self.reserved = reserved | NO_NUMBERS

    def __call__(self, batch: Any, net: nn.Module, loss: Any, **given: Any) -> Mapping[str, Any]:
        if not torch.is_grad_enabled():  # an evaluation, of whole batches
            return self.step(batch, net, loss, **given)
        own, whole = self.split.counts(batch)
        self.team.level(net)  # as DistributedDataParallel does before a forward
        share = self.team.world * (float(own > 0) if self.update.sums else own / whole)
        self.update.share = share
        outcome = self.step(batch, net, loss, **given)
        fields = {name: weigh(outcome[name], share) for name in outcome.keys() - self.reserved}
        if "loss_is" in outcome:
            return {**outcome, **fields, **weigh_by_size(self.team, {**outcome, "loss": outcome["loss"].detach()}, own)}
        return {**outcome, **fields, "loss": outcome["loss"] * share, "size": whole}


def weigh(value: Any, weight: float) -> Any:
    """Return a number, or a tensor's mean, times `weight`; any other value unchanged.

    One with a weight of its own keeps it, or has none where this process has no sample.
    """
    if is_weighted(value):
        mean = torch.as_tensor(value["value"]).detach().double().mean()
        return {"value": mean, "weight": torch.as_tensor(value["weight"]).detach() * float(weight > 0)}
    if isinstance(value, Tensor) and value.numel() and not value.is_complex():
        return value.detach().float().mean() * weight
    return torch.tensor(float(value) * weight) if isinstance(value, Real) else value


class SharedStepOutputs(StepOutputs):
    """Step outputs averaged over the ranks, by their own weights if any; strings are rank 0's.

    A number that not every process says in every step is left out.
    """

    def __init__(self, team: ProcessGroup, reserved: frozenset[str] = RESERVED) -> None:
        super().__init__(reserved)
        self.team = team
        self.weighted: set[str] = set()

    def add(self, outcome: Mapping[str, Any], size: Tensor | float) -> None:
        super().add(outcome, size)
        self.weighted |= {name for name in outcome.keys() - self.reserved if is_weighted(outcome[name])}

    def read(self) -> dict[str, list[float]]:
        new = {
            name: [
                (float(value), float(weight) if name in self.weighted else 1.0)
                for value, weight in zip(values, self.sizes[name], strict=True)
                if isinstance(value, Tensor)
            ]
            for name, values in self.waiting.items()
        }
        told = self.team.every(new)
        for name in list(self.waiting):
            parts = [part.get(name, []) for part in told]
            if len({len(part) for part in parts}) > 1:
                del self.waiting[name], self.sizes[name]
                continue
            before = [value for value in self.waiting[name] if not isinstance(value, Tensor)]
            members = [[*zip(*pairs, strict=True)] for pairs in zip(*parts, strict=True)]
            self.waiting[name] = [*before, *(compute_mean(*pair) for pair in members)]
            sizes = [as_number(size) for size in self.sizes[name]]
            if name in self.weighted:
                sizes[len(before) :] = [sum(weights) for _, weights in members]
            self.sizes[name] = sizes
        return self.waiting  # type: ignore[return-value]  # floats by now


class SharedLosses(Losses):
    """Losses averaged over the ranks, read by one collective."""

    def __init__(self, team: ProcessGroup, reserved: frozenset[str] = RESERVED, *, sums: bool = False) -> None:
        super().__init__(reserved, sums=sums)
        self.team, self.fields = team, SharedStepOutputs(team, reserved)

    def read(self) -> list[float]:
        if self.on_device:
            self.values += self.team.mean(torch.stack(self.on_device).double().tolist())
            self.on_device.clear()
        return self.values


class MetricPool:
    """Outputs and targets for training metrics, kept until all ranks exchange them in batch order.

    The metrics of a pool get the same parts of an outcome.
    """

    def __init__(self, metrics: Mapping[str, Any], split: ShardedBatches, team: ProcessGroup) -> None:
        self.metrics, self.split, self.team = dict(metrics), split, team
        self.waiting: list[tuple[bool, tuple[Any, ...]]] = []
        self.room: int | None = None  # steps

    def add(self, *given: Any) -> None:
        """Keep a step's output and target; each rank calls it equally often."""
        self.waiting.append((self.split.last[0] > 0, given))
        if self.room is None:
            size = sum(value.nbytes for value in iterate_tensors(given))
            self.room = max(1, POOL_BYTES // max(1, *self.team.every(size)))
        if len(self.waiting) >= self.room:
            self.drain()

    def drain(self) -> None:
        """Exchange the kept outputs and update the metrics; each rank calls it at the same step."""
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return
        for seen in zip(*self.team.gather(waiting), strict=True):
            parts = [given for counts, given in seen if counts]
            given = [_concatenate(members) for members in zip(*parts, strict=True)]
            for metric in self.metrics.values():
                metric.update(*given)


def _concatenate(parts: Any) -> Any:
    """Concatenate the parts of a batch."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts) if first.dim() else torch.stack(parts).mean(0)
    if isinstance(first, Mapping):
        return {name: _concatenate([part[name] for part in parts]) for name in first}
    if isinstance(first, list) and first and isinstance(first[0], Tensor | Mapping | list):
        return [_concatenate(members) for members in zip(*parts, strict=True)]
    return [member for part in parts for member in part] if isinstance(first, list) else first


class PooledMetric:
    """Training metric over all ranks; the first metric of a pool collects the outputs for all."""

    def __init__(self, name: str, pool: MetricPool) -> None:
        self.metric, self.pool = pool.metrics[name], pool
        self.takes = next(iter(pool.metrics)) == name

    def update(self, *given: Any) -> None:
        if self.takes:
            self.pool.add(*given)

    def compute(self) -> Any:
        self.pool.drain()
        return self.metric.compute()

    def reset(self) -> None:
        self.pool.drain()
        self.metric.reset()

    def state_dict(self) -> dict[str, Any]:
        self.pool.drain()
        return get_accumulators(self.metric)

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        device = next((value.device for value in vars(self.metric).values() if isinstance(value, Tensor)), None)
        set_accumulators(self.metric, saved, device or torch.device("cpu"))


def pool_metrics(inputs: Sequence[MetricInput], split: ShardedBatches, team: ProcessGroup) -> dict[str, Any]:
    """Pool the training metrics, so that each sees the samples of all processes; return them by name."""
    alike: dict[Any, dict[str, Any]] = {}
    for one in inputs:
        alike.setdefault((one.output, one.target, one.alone, one.every), {})[one.name] = one.metric
    pools = [MetricPool(metrics, split, team) for metrics in alike.values()]
    for one in inputs:
        one.metric = next(PooledMetric(one.name, pool) for pool in pools if one.name in pool.metrics)
    return {one.name: one.metric for one in inputs}


def suppress_metric_sync(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """Turn off the metrics' own synchronization (torchmetrics): each rank has seen every sample."""
    for metric in metrics.values():
        for module in metric.modules() if isinstance(metric, nn.Module) else ():
            if hasattr(module, "sync_on_compute"):
                vars(module).update(sync_on_compute=False, _to_sync=False)  # copied where it is constructed
    return metrics
