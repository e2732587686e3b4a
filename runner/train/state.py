"""Live objects of a run, its progress, its clock and its stop request; changes of its schedule."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from runner.core.device import read_compile_seconds
from runner.core.durations import Duration
from runner.data.interfaces import Split
from runner.log.logger import Logger, NoLogger
from runner.model.freeze import FrozenParameters
from runner.model.pretrained.plan import LoadPlan
from runner.train.checkpoint import Checkpoints
from runner.train.fitting import FittedParts
from runner.train.loss_weights import read_kind
from runner.train.lr_schedule import (
    ConstantLR,
    LRSchedule,
    SeveralSchedules,
    put_rates_and_momenta,
    read_rates_and_momenta,
    set_rate,
    trace_rates,
)
from runner.train.metric_inputs import DerivedNumber
from runner.train.monitor import Monitor
from runner.train.optimizer_step.base import OptimizerStep
from runner.train.optimizer_step.named_updates import GradScalers
from runner.train.optimizer_step.precision import GradScaler
from runner.train.single_process import FULL_TENSORS, SINGLE_PROCESS, FullTensors, SingleProcess
from runner.train.step_outputs import RESERVED, StepOutputs, as_number, compute_mean
from runner.train.trace import NoTrace
from runner.train.weight_average import WeightAverage

PLAIN_SIZES = frozenset({int, float})


class Losses:
    """Losses and step outputs since the last log line: kept on the device, read at once.

    Attributes:
        reserved: fields of an outcome that are no numbers to log.
        sums: whether the loss of a step is a sum over its samples; an outcome's own `loss_is` decides.
    """

    def __init__(self, reserved: frozenset[str] = RESERVED, *, sums: bool = False) -> None:
        self.on_device: list[Tensor] = []
        self.values: list[float] = []
        self.sizes: list[Any] = []  # samples, or what else a step counts: a number, or a tensor until it is read
        self.reserved, self.sums = reserved, sums
        self.fields = StepOutputs(reserved)
        self.cleared = 0

    @property
    def count(self) -> int:
        """Count the losses so far, those that were dropped among them."""
        return self.cleared + len(self.sizes)

    def add(self, outcome: Mapping[str, Any]) -> None:
        """Add the loss of a step, without waiting for the device."""
        self.on_device.append(outcome["loss"].detach())
        self.sizes.append(outcome.get("size", 1))
        if not self.reserved.issuperset(outcome):
            self.sums = read_kind(outcome, sums=self.sums)
            self.fields.add(outcome, self.sizes[-1])

    def add_many(self, losses: Tensor, sizes: Sequence[Any]) -> None:
        """Add the losses [steps] of several steps, and the size of each."""
        self.on_device.append(losses)
        self.sizes += sizes

    def read(self) -> list[float]:
        """Return the losses, with one wait for the device."""
        if self.on_device:
            self.values += torch.cat([losses.reshape(-1) for losses in self.on_device]).double().tolist()
            self.on_device.clear()
        return self.values

    @staticmethod
    def read_together(losses: Sequence["Losses"]) -> None:
        """Read the losses of several runs of one device, with one wait for it."""
        waiting = [loss.reshape(-1) for one in losses for loss in one.on_device]
        values = torch.cat(waiting).double().tolist() if waiting else []
        start = 0
        for one in losses:
            count = sum(loss.numel() for loss in one.on_device)
            one.values += values[start : start + count]
            one.on_device.clear()
            start += count

    def read_sizes(self) -> list[float]:
        """Return the sizes as plain numbers, with a wait for the device where a step gives tensors."""
        if not PLAIN_SIZES.issuperset(map(type, self.sizes)):
            self.sizes = [as_number(size) for size in self.sizes]
        return self.sizes

    def mean(self) -> float:
        """Return the mean over samples; NaN without losses."""
        return compute_mean(self.read(), self.read_sizes(), sums=self.sums)

    def clear(self) -> None:
        """Drop all losses and step outputs."""
        self.cleared += len(self.sizes)
        self.on_device.clear()
        self.values.clear()
        self.sizes.clear()
        self.fields.clear()


@dataclass
class Progress:
    """Progress of a run; checkpoints hold all of it."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # batches done of this epoch
    best: dict[str, Any] | None = None  # step, objective, metrics
    last: dict[str, Any] = field(default_factory=dict)  # the last value of each metric, and of the step's own fields
    evaluated_at: int | None = None
    evaluation_pending: bool = False
    acted_at: int = 0  # the step up to which actions were called
    stale: int = 0  # evaluations since the best
    seconds: float = 0.0  # of wall time, where `train.max_time` counts them
    seconds_training: float = 0.0  # where `train.max_time_counts` is `training`
    # What faults made it leave out: epoch, batch, and whether it counts as a step (1) or not (0).
    left_out: list[list[int]] = field(default_factory=list)


class NoBudget:
    """Null budget of training time: unlimited."""

    is_armed = True
    used = 0.0

    def arm(self) -> None: ...

    def start(self) -> None: ...

    def pause(self) -> None: ...


@dataclass
class Clock:
    """Seconds that a run spent on training, evaluating and saving."""

    training: float = 0.0
    evaluating: float = 0.0
    saving: float = 0.0
    started: float | None = None
    first_epoch: tuple[int, float] | None = None  # step and seconds of training at its end: warm-up is not speed
    compiled_before: float = field(default_factory=read_compile_seconds)  # by earlier runs of this process
    budget: NoBudget = field(default_factory=NoBudget)  # of `train.max_time_counts=training`

    @property
    def seconds(self) -> float:
        """Seconds of training until now."""
        return self.training + (0.0 if self.started is None else time.perf_counter() - self.started)

    def start(self) -> None:
        """Start or resume the training clock."""
        self.started = time.perf_counter()
        self.budget.start()

    def pause(self) -> None:
        """Pause the training clock."""
        if self.started is not None:
            self.training += time.perf_counter() - self.started
            self.started = None
            self.budget.pause()


class StopReason(IntEnum):
    """Reasons to stop a run before it is done, to be continued.

    Where several processes have different reasons, the largest holds.
    """

    NONE = 0
    SIGNAL = 1
    PRUNED = 2  # the sweep wants no more of this run


@dataclass
class StopRequest:
    """Stop request from a signal handler, from the sweep (`PRUNED`) or from training itself.

    The step under way ends first.
    """

    reason: StopReason = StopReason.NONE
    signal: int = 0  # its number, where that is the reason
    ended: str = ""  # why training is done before its duration: `train.early_stop` or `train.max_time`, in words
    deadline: float | None = None  # `time.perf_counter()` at which `train.max_time` is used up
    asked: bool = False  # the one thing that the loop looks at
    timer: threading.Timer | None = None
    shared: bool = False  # several processes train, and agree first; till then one knows these three for itself:
    wanted: StopReason = StopReason.NONE
    came: int = 0  # the number of the last signal
    late: str = ""  # why time is up

    def on_signal(self, number: int) -> None:
        """Record a signal's number, or PRUNED."""
        self.came = number
        self._ask(StopReason.SIGNAL)

    def on_pruned(self) -> None:
        """Take note that the sweep wants no more of this run."""
        self._ask(StopReason.PRUNED)

    def _ask(self, reason: StopReason) -> None:
        self.wanted = reason
        if not self.shared:
            self.leave(reason, self.came)

    def leave(self, reason: StopReason, signal: int = 0) -> None:
        """Request a save and a stop; the run can be resumed."""
        self.reason, self.signal = reason, signal
        self.asked = True

    def on_time(self, why: str) -> None:
        """Record that the time is up."""
        self.late = why
        if not self.shared:
            self.end(why)

    def end(self, why: str) -> None:
        """Request a last evaluation, a save and the end of training."""
        self.ended = self.ended or why
        self.asked = True

    def end_at(self, deadline: float, why: str) -> None:
        """Request the end at a `time.perf_counter()` value, unless the `with` block exits before."""
        self.deadline = deadline
        self.end_in(deadline - time.perf_counter(), why)

    def end_in(self, seconds: float, why: str) -> None:
        """Request the end after so many seconds, unless `cancel` or the end of the `with` block comes before."""
        self.timer = threading.Timer(seconds, self.on_time, [why])
        self.timer.daemon = True
        self.timer.start()

    def cancel(self) -> None:
        """Drop a request for the end at some time."""
        if self.timer is not None:
            self.timer.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


@dataclass(frozen=True)
class Threshold:
    """Value of a metric at which training is done: below one bound, or above another."""

    name: str
    below: float | None = None
    above: float | None = None

    def describe(self, value: float) -> str:
        """Describe that a value is beyond a bound; empty if it is not."""
        if self.below is not None and value < self.below:
            return f"{self.name} is {value:.6g}, below {self.below:g}"
        if self.above is not None and value > self.above:
            return f"{self.name} is {value:.6g}, above {self.above:g}"
        return ""


@dataclass(frozen=True)
class Rhythm:
    """Lengths of a run, and when it logs, evaluates, saves and stops."""

    total_steps: int
    steps_per_epoch: int  # 0 where the dataset does not know
    log_every: Duration
    evaluate_every: Duration | None
    checkpoint_every: Duration | None
    first_step: int = 0  # where training begins: not at 0 where it goes on with that of another script
    accumulate: int = 1  # batches of the loader in an optimizer step
    log_means: bool = True  # whether a line of training has means since the last one, or the values at its step
    evaluate_at_start: bool = False
    early_stop: int | None = None  # evaluations without a better objective after which training is done
    stop_when: tuple[Threshold, ...] = ()  # values at which training is done
    max_seconds: float | None = None  # over all resumes
    max_time_counts: str = "all"  # whether these are of wall time, or of training alone
    own_rhythms: tuple[Duration, ...] = ()  # of training metrics that have one of their own
    check_finite: str = "loss"
    on_save_error: str = "stop"


@dataclass(frozen=True)
class Objective:
    """Value that the best checkpoint has, and the splits that training evaluates."""

    name: str
    mode: str  # min or max
    evaluated: tuple[str, ...] = ("val",)


@dataclass
class Session:
    """Bookkeeping of this process, which no checkpoint holds."""

    started_at: int = 0  # the step at which this process began
    paused_at: int = 0  # the step after which logging, evaluating and saving were last looked at
    logged: tuple[int, float] = (0, 0.0)  # step and time of the last log line
    sampler_state: Any = None  # as it was when the epoch under way began
    infinite_buffers: tuple[str, ...] = ()  # not finite from the start, so on purpose
    evaluated: dict[str, dict[str, Any]] = field(default_factory=dict)  # values of a split, computed beforehand
    streams: dict[str, Any] | None = None  # generator states that a save holds; None for those of this process
    finite_at: int = -1  # the step after which all tensors are known to be finite


@dataclass
class Run:
    """Live objects of a run, complete when it is built; `start` gives it a stop request and a log."""

    # ---- where it comes from, and where it is recorded
    folder: Path
    seed: int
    config: dict[str, Any]
    checkpoints: Checkpoints
    # ---- what trains
    device: torch.device
    model: nn.Module
    loss: Any  # called with output and target; None where the step needs none
    step: Callable[..., Mapping[str, Any]]
    optimizer: torch.optim.Optimizer
    update: OptimizerStep  # one optimizer step
    schedule: ConstantLR
    splits: dict[str, Split]  # train, val, test
    metrics: dict[str, dict[str, Any]]  # train and eval → name → metric
    inputs: dict[str, list[Any]]  # train and eval → what each metric takes of an outcome, see `metric_inputs`
    looks: Monitor
    # ---- when, and for what
    rhythm: Rhythm
    objective: Objective
    # ---- what may be there
    derived: tuple[DerivedNumber, ...] = ()  # numbers computed from metrics
    actions: Sequence[Any] = ()  # see `train/actions.py`
    datasets: Mapping[str, Any] = field(default_factory=dict)  # raw samples by split, for the actions
    average: WeightAverage | None = None  # of the weights
    views: Any = None  # of an evaluation's input, whose outputs are averaged
    scaler: GradScaler | GradScalers | None = None  # of fp16's gradients
    pretrained: LoadPlan | None = None  # what was loaded
    frozen: FrozenParameters = field(default_factory=FrozenParameters)
    names: Mapping[str, Any] = field(default_factory=dict)  # of classes and input columns, where the data knows them
    fitted: FittedParts = field(default_factory=FittedParts)  # of the data, to the training split
    trace: NoTrace = field(default_factory=NoTrace)
    rehearse: Callable[[Any], object] | None = None  # is shown the first batch before anything is learnt from it
    # ---- the processes that train together
    team: SingleProcess = SINGLE_PROCESS
    layout: FullTensors = FULL_TENSORS  # how their tensors lie
    wrap: Callable[[], object] = lambda: None  # renews what wraps the model, where other parameters train than before
    # ---- where it stands
    progress: Progress = field(default_factory=Progress)
    losses: Losses = field(default_factory=Losses)
    clock: Clock = field(default_factory=Clock)
    session: Session = field(default_factory=Session)
    stop: StopRequest = field(default_factory=StopRequest)
    log: Logger | NoLogger = field(default_factory=NoLogger)  # opened when the step to begin at is known

    def start(self, stop: StopRequest, log: Logger) -> None:
        """Take the stop request and the open log of this process, once, before training."""
        self.stop, self.log = stop, log
        self.checkpoints.warn = self.update.warn = log.alert


@dataclass(frozen=True)
class PlannedSchedule:
    """Plan of a schedule for a step: rates at each step up to it, its state and group settings there."""

    rates: list[list[float]]
    state: dict[str, Any]
    settings: list[dict[str, Any]]


def plan_schedule(run: Run, step: int) -> PlannedSchedule:
    """Plan the schedule of a built, not yet restored run up to `step`."""
    rates = trace_rates(run.schedule, run.optimizer, 0, step, run.rhythm.steps_per_epoch)
    return PlannedSchedule(rates, deepcopy(run.schedule.state_dict()), read_rates_and_momenta(run.optimizer))


def follow(run: Run, plan: PlannedSchedule) -> None:
    """Set the schedule to its plan for this step, whatever the rates were."""
    run.schedule.load_state_dict(plan.state)
    put_rates_and_momenta(run.optimizer, plan.settings)


def hold(run: Run, plan: PlannedSchedule) -> None:
    """Keep the rates constant; replace a rate of 0 by the last non-zero rate before it."""
    for place, group in enumerate(run.optimizer.param_groups):
        if not float(group["lr"]):
            set_rate(group, next((rates[place] for rates in reversed(plan.rates) if rates[place]), 0.0))
    run.schedule = ConstantLR()


def forecast(run: Run) -> list[list[float]]:
    """Return each group's rates from this step to the last; empty if a metric decides them."""
    schedule = run.schedule
    if not isinstance(schedule, LRSchedule | SeveralSchedules) or schedule.monitor is not None:
        now = [float(group["lr"]) for group in run.optimizer.param_groups]
        return [now] if schedule.monitor is None else []
    state_now, settings = deepcopy(schedule.state_dict()), read_rates_and_momenta(run.optimizer)
    rates = trace_rates(schedule, run.optimizer, run.progress.step, run.rhythm.total_steps, run.rhythm.steps_per_epoch)
    schedule.load_state_dict(state_now)
    put_rates_and_momenta(run.optimizer, settings)
    return rates
