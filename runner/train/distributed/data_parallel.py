"""One model on several devices: the wrapper that a step calls, a rank's part in the loss, metrics of all ranks.

`nn.DataParallel` splits each batch in one process. Under DistributedDataParallel and FSDP2 each process has its part of
each batch; what it adds to the gradient is weighted by its share, so that their mean is the gradient of the batch.
"""

import gc
import warnings
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from runner.core.errors import RunError
from runner.data.sharding import Shared
from runner.model.freeze import Frozen
from runner.train import metrics as metric_state
from runner.train.distributed.process_group import Team
from runner.train.distributed.sync_batchnorm import synchronise
from runner.train.optimizer_step.accumulated import sums
from runner.train.single_process import WHOLE, Alone, Whole
from runner.train.state import Losses, Run
from runner.train.step_outputs import KNOWN, Fields

POOL_BYTES = 64 * 2**20  # of outputs kept by a process before the training metrics of all processes see them


def data_parallel(module: nn.Module) -> nn.Module:
    """The module on all CUDA devices: batches are split, outputs gathered on the first."""
    return DataParallel(module)


def replicated(module: Any, device: torch.device, *, find_unused: bool = False) -> Any:
    """A module (a model or a loss) whose gradients are averaged over the processes; one without any as it is."""
    if not isinstance(module, nn.Module) or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    devices = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what the user did not ask for
        return DistributedDataParallel(
            module, device_ids=devices, find_unused_parameters=find_unused, gradient_as_bucket_view=True
        )


def spread(parallel: str, team: Alone, frozen: Frozen, model: nn.Module, loss: Any) -> Whole:
    """Shard model and loss in place, before the optimizer is made, where `parallel` is fsdp; how tensors lie now."""
    if parallel != "fsdp" or not isinstance(team, Team):
        return WHOLE
    from runner.train.distributed.fsdp import Sharded, shard  # a second that only those pay who want it

    device = next(model.parameters()).device
    shard(model, device)
    if isinstance(loss, nn.Module) and next(loss.parameters(), None) is not None:
        shard(loss, device)
    now = dict(model.named_parameters())
    frozen.params = {name: now[name] for name in frozen.params}  # others than before
    return Sharded()


def share(run: Run, team: Team, find_unused: bool, sync_batchnorm: bool) -> None:
    """Let a run's update, losses and training metrics be those of all processes together."""
    local(run.metrics["eval"])
    local(run.metrics["train"])
    if run.layout is WHOLE:
        run.wrap = Wrap(run, find_unused=find_unused)
        run.wrap()
        run.update.loss = replicated(run.loss, run.device, find_unused=find_unused)
    if team.world == 1:
        return
    split: Any = run.splits["train"]
    if sync_batchnorm:
        synchronise(run.model, lambda: split.last[0] > 0)
    run.update.step = WeightedStep(run.update.step, run.loss, split, team)
    run.losses = SharedLosses(team)
    run.metrics["train"] = pooled(run.metrics["train"], split, team)
    if run.update.metrics:
        run.update.metrics = list(run.metrics["train"].values())


class Wrap:
    """Wraps the model of a run anew where other parameters train than before: the wrapper averages what did then."""

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
        self.run.update.net = replicated(self.run.model, self.run.device, find_unused=self.find_unused)


class WeightedStep:
    """A step whose loss counts by this process's share of the batch, and says the size of the whole batch.

    The mean over the processes of what it gives is the loss of the whole batch; so is that of the gradients. A share is
    one of samples, or, where a classification loss divides by something else, of that (see `divisor`).

    Args:
        step: the step of one process.
        loss: its loss: a mean over samples, unless its `reduction` says that it is their sum.
        split: which knows what of its last batch counts.
        team: the processes.
    """

    def __init__(self, step: Callable[..., Mapping[str, Any]], loss: Any, split: Shared, team: Team) -> None:
        self.step, self.loss, self.split, self.team, self.total = step, loss, split, team, sums(loss)

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
        fields = {name: weighted(outcome[name], share) for name in outcome.keys() - KNOWN}
        return {**outcome, **fields, "loss": self._weighted(outcome, own, share), "size": whole}

    def _weighted(self, outcome: Mapping[str, Any], own: int, share: float) -> Tensor:
        loss: Tensor = outcome["loss"]
        if self.total:
            return loss * (self.team.world * float(own > 0))
        mass = divisor(self.loss, outcome.get("target"))
        if mass is None:
            return loss if share == 1 else loss * share
        mass = mass * float(own > 0)
        weight = self.team.world * mass / self.team.total(mass)
        return torch.where(mass > 0, loss * weight, torch.zeros_like(loss))  # where it has nothing its mean is NaN


def divisor(loss: Any, target: Any) -> Tensor | None:
    """What cross entropy of class indices divides its sum by; None where that is the number of samples.

    That is so unless classes have weights, or an index is ignored, which is looked for where it is set or a sample has
    several targets.
    """
    function = getattr(loss, "func", loss)
    if not isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) and function not in (F.cross_entropy, F.nll_loss):
        return None
    settings = getattr(loss, "keywords", None) or vars(loss)
    weight, ignored = getattr(loss, "weight", settings.get("weight")), settings.get("ignore_index", -100)
    if not isinstance(target, Tensor) or target.is_floating_point():
        return None
    if weight is None and ignored < 0 and target.dim() < 2:
        return None
    kept = target != ignored
    mass: Tensor = kept.float() if weight is None else weight[target.where(kept, 0)] * kept
    return mass.sum()


def weighted(value: Any, weight: float) -> Any:
    """A number, or the mean of a tensor, times `weight`; anything else as it is."""
    if isinstance(value, Tensor) and value.numel() and not value.is_complex():
        return value.detach().float().mean() * weight
    return torch.tensor(float(value) * weight) if isinstance(value, Real) else value


class SharedFields(Fields):
    """A step's own numbers, of which each process has its part; a word is that of rank 0.

    A number that not every process says in every step is left out.
    """

    def __init__(self, team: Team) -> None:
        super().__init__()
        self.team = team

    def read(self) -> dict[str, list[float]]:
        new = {name: [float(v) for v in values if isinstance(v, Tensor)] for name, values in self.waiting.items()}
        told = self.team.every(new)
        for name in list(self.waiting):
            parts = [part.get(name, []) for part in told]
            if len({len(part) for part in parts}) > 1:
                del self.waiting[name], self.sizes[name]
                continue
            before = [value for value in self.waiting[name] if not isinstance(value, Tensor)]
            self.waiting[name] = [*before, *(sum(values) / self.team.world for values in zip(*parts, strict=True))]
        return self.waiting  # type: ignore[return-value]  # floats by now


class SharedLosses(Losses):
    """Losses of which each process has its part: read together, by one collective."""

    def __init__(self, team: Team) -> None:
        super().__init__()
        self.team, self.fields = team, SharedFields(team)

    def read(self) -> list[float]:
        if self.on_device:
            self.values += self.team.mean(torch.stack(self.on_device).double().tolist())
            self.on_device.clear()
        return self.values


class Pool:
    """What the training metrics are to see, until all processes hand it over, in the order of one process."""

    def __init__(self, metrics: Mapping[str, Any], split: Shared, team: Team) -> None:
        self.metrics, self.split, self.team = dict(metrics), split, team
        self.waiting: list[tuple[bool, Tensor, Tensor]] = []
        self.room: int | None = None  # steps

    def add(self, output: Any, target: Any) -> None:
        """Keep what a step gave; each process calls it as often."""
        self.waiting.append((self.split.last[0] > 0, output, target))
        if self.room is None:
            size = sum(value.nbytes for value in (output, target) if isinstance(value, Tensor))
            self.room = max(1, POOL_BYTES // max(1, *self.team.every(size)))
        if len(self.waiting) >= self.room:
            self.drain()

    def drain(self) -> None:
        """Let the metrics see it; each process calls it at the same step."""
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return
        for seen in zip(*self.team.gather(waiting), strict=True):
            parts = [(output, target) for counts, output, target in seen if counts]
            output, target = (_joined(members) for members in zip(*parts, strict=True))
            for metric in self.metrics.values():
                metric.update(output, target)


def _joined(parts: Any) -> Any:
    """The batch whose parts these are."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts) if first.dim() else torch.stack(parts).mean(0)
    if isinstance(first, Mapping):
        return {name: _joined([part[name] for part in parts]) for name in first}
    if isinstance(first, list) and first and isinstance(first[0], Tensor | Mapping | list):
        return [_joined(members) for members in zip(*parts, strict=True)]
    return [member for part in parts for member in part] if isinstance(first, list) else first


class Pooled:
    """A training metric that sees what all processes saw. The first of them takes what a step gives, for all."""

    def __init__(self, name: str, pool: Pool) -> None:
        self.metric, self.pool = pool.metrics[name], pool
        self.takes = next(iter(pool.metrics)) == name

    def update(self, output: Any, target: Any) -> None:
        if self.takes:
            self.pool.add(output, target)

    def compute(self) -> Any:
        self.pool.drain()
        return self.metric.compute()

    def reset(self) -> None:
        self.pool.drain()
        self.metric.reset()

    def state_dict(self) -> dict[str, Any]:
        self.pool.drain()
        return metric_state.accumulators(self.metric)

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        device = next((value.device for value in vars(self.metric).values() if isinstance(value, Tensor)), None)
        metric_state.set_accumulators(self.metric, saved, device or torch.device("cpu"))


def pooled(metrics: Mapping[str, Any], split: Shared, team: Team) -> dict[str, Any]:
    """The training metrics, each of them seeing what one process would have seen."""
    pool = Pool(metrics, split, team)
    return {name: Pooled(name, pool) for name in metrics}


def local(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """The metrics, those of torchmetrics not summing over processes themselves: each process has seen everything."""
    for metric in metrics.values():
        for module in metric.modules() if isinstance(metric, nn.Module) else ():
            if hasattr(module, "sync_on_compute"):
                vars(module).update(sync_on_compute=False, _to_sync=False)  # copied where it is constructed
    return metrics
