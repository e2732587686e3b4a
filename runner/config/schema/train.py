"""Keys of training: `scheduler`, several optimizers, `device`, `train` and derived metrics."""

from dataclasses import dataclass
from typing import Any, Literal

from runner.config.schema.fields import Duration, Pattern, make_field
from runner.config.schema.model import ParamGroup
from runner.core import durations

PROCESSES = ("ddp", "fsdp")  # the values of `device.parallel` that train with several processes


@dataclass
class Scheduler:
    """The runner's own scheduler keys, and `arguments`; without `_target_` the rate is constant."""

    # Class of `torch.optim.lr_scheduler`, or of your own. null: the learning rate stays as it is.
    _target_: str | None = None
    # When the schedule takes a step: after each optimizer step, or after each epoch.
    interval: Literal["step", "epoch"] = "step"
    # Time over which the rate grows linearly, from nearly 0 to the schedule's first rate: `1ep`.
    warmup: Duration | None = None
    # Metric that ReduceLROnPlateau watches: `val/loss`.
    monitor: str | None = None
    # Length of the run that the schedule was written for, where the run trains for longer. null: `train.duration`.
    planned_for: Duration | None = None
    # Argument of the class. A duration such as `30ep` becomes a number of the schedule's own steps.
    arguments: dict[str, Any] = make_field({}, rest=True)


@dataclass
class MemberOptimizer:
    """One of several optimizers: what it takes, its groups and schedule, and its own arguments."""

    # Pattern of its parameters' names, or a list of them. null: all that no other optimizer takes.
    match: Pattern | list[Pattern] | None
    # Take only tensors of at least so many dimensions. 2: matrices.
    min_dims: int | None = make_field(None, at_least=0)
    # Take only tensors of at most so many dimensions. 1: biases and the weights of norms.
    max_dims: int | None = make_field(None, at_least=0)
    # Groups of its own parameters, as `param_groups`.
    param_groups: dict[str, ParamGroup | None] = make_field({})
    # Schedule of its own. null: as `scheduler` says for all of them.
    scheduler: Scheduler | None = make_field(None, slot="scheduler")
    # Argument of the optimizer's class.
    arguments: dict[str, Any] = make_field({}, rest=True)


@dataclass
class Device:
    # Device that trains: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for the best that this machine has.
    type: str = make_field("auto", regex=r"auto|cpu|mps|cuda(:\d+)?")
    # CPU threads of this process. Their number changes the last bits of the weights, so it is part of the experiment.
    threads: int = make_field(1, at_least=1)
    # Number type of the weights themselves and of the model's input. Normalisation stays in fp32.
    weights: Literal["fp32", "bf16", "fp16"] = "fp32"
    # Number type of the computation. bf16, fp16: mixed precision by autocast, fp16 with a gradient scaler; tf32: faster
    # matrix products on NVIDIA GPUs.
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    # Compile the model with `torch.compile`: true, or one of its modes.
    compile: bool | Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = False
    # Not available: `device.compile: reduce-overhead` captures CUDA graphs.
    cuda_graphs: bool = make_field(
        False, unbuilt="must be false: not built yet (device.compile=reduce-overhead has torch.compile capture them)"
    )
    # Order of an image batch in memory. channels_last: faster for convolutions on most GPUs.
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    # What an operator does that may give other bits each time: strict refuses it, warn names it once, off says nothing.
    deterministic: Literal["strict", "warn", "off"] = "warn"
    # How to use several GPUs or processes. data_parallel: the GPUs of one process; auto: the same where there are
    # several; ddp and fsdp: several processes, started by torchrun.
    parallel: Literal["none", "auto", "data_parallel", "ddp", "fsdp"] = "none"
    # Batch norm computes its statistics of the whole batch, over all processes.
    sync_batchnorm: bool = False
    # With ddp: the model does not use all of its parameters in every step.
    find_unused_parameters: bool = False


@dataclass
class Average:
    """Average of the weights, which evaluations use and checkpoints hold beside the raw weights."""

    # Kind of average. ema: exponential moving average; mean: of the weights at each update (SWA); lookahead: slow
    # weights, which are copied back into the model.
    kind: Literal["ema", "mean", "lookahead"] = "ema"
    # Time of the first update: `5ep`. null: after `every`.
    from_: Duration | None = make_field(None, alias="from", may_be_zero=True)
    # Time between two updates. null: 1st for ema, 1ep for mean, 5st for lookahead.
    every: Duration | None = None
    # Share that the average keeps of itself at each update, for ema and lookahead: `0.999`.
    decay: float | None = make_field(None, above=0, below=1)
    # Let the decay grow during training: it is multiplied by (steps done / all steps) to this power. 0: constant.
    decay_power: float = make_field(0.0, at_least=0)
    # Compute batch norm's statistics for the averaged weights before each use, by a pass over the training data.
    update_bn: bool = False


@dataclass
class StopWhen:
    """Value of a metric at which training is done."""

    # Training is done when the metric is below this value.
    below: float | None = None
    # Training is done when the metric is above this value.
    above: float | None = None


@dataclass
class Train:
    # How long to train: epochs (`5ep`, `0.5ep`) or optimizer steps (`500st`). `0st` builds, evaluates and saves only.
    duration: Duration = make_field(Duration("10ep"), may_be_zero=True)
    # Batches in one optimizer step, for a larger batch than memory allows. Every `st` counts optimizer steps.
    accumulate: int = make_field(1, at_least=1)
    # Compute a batch that does not fit into the GPU's memory in parts, with the same random numbers.
    split_on_oom: bool = False
    # Scale the gradients down where their norm, over all parameters together, is larger than this.
    clip_norm: float | None = make_field(None, above=0)
    # Limit each element of the gradients to this size; before `clip_norm` where both are given.
    clip_value: float | None = make_field(None, above=0)
    # Decay of an exponential moving average of the weights, which evaluations then use: `0.999`.
    ema: float | None = make_field(None, above=0, below=1)
    # Time between two updates of `ema`.
    ema_every: Duration = Duration("1st")
    # Average of the weights of another kind, or from a time on, in place of `ema`.
    average: Average | None = None
    # Time between two evaluations: `1ep`, `500st`. null: at the end only.
    evaluate_every: Duration | None = Duration("1ep")
    # Time between two checkpoints: `1ep`, `500st`. null: at the end only.
    checkpoint_every: Duration | None = Duration("1ep")
    # Newest checkpoints to keep, besides the best.
    keep: int = make_field(3, at_least=1)
    # Evaluate once before the first step, too.
    evaluate_at_start: bool = False
    # Stop after so many evaluations without a better objective. null: never.
    early_stop: int | None = make_field(None, at_least=1)
    # Values at which training is done, by metric: `{train/loss: {below: 0.01}}`. A metric of `train/` is looked at on
    # each line of the log, any other at an evaluation.
    stop_when: dict[str, StopWhen | None] = make_field({})
    # Metric that chooses the best checkpoint and the best job of a sweep: `val/accuracy`. null: `val/loss` where there
    # is validation data, else `train/loss`.
    objective: str | None = None
    # Whether a smaller or a larger objective is better. null: smaller for a loss, larger for anything else.
    mode: Literal["min", "max"] | None = None
    # Weights that the test data is evaluated with: those of the end, or those of the best checkpoint.
    test_with: Literal["last", "best"] = "last"
    # Wall time after which the run is done, over all of its resumes: `1h30m`. null: no limit.
    max_time: str | None = make_field(None, regex=durations.TIME, like="1h30m")
    # Which time `max_time` counts. training: only seconds of the loop; not start-up, a process's first step, compiling,
    # evaluating and saving.
    max_time_counts: Literal["all", "training"] = "all"
    # When to look for a NaN or an infinite number. loss: in the loss, on each line of the log and before each save;
    # every_step: in the loss and the gradients of every step; off: never.
    check_finite: Literal["loss", "off", "every_step"] = make_field("loss")
    # Have each backward name the operator and the line that made a NaN (torch.autograd); about half as fast.
    detect_anomaly: bool = False
    # What a NaN does: stop ends the run; skip leaves out the update of that step, rollback its batch, both after going
    # back to the last checkpoint.
    on_fault: Literal["stop", "skip", "rollback"] = "stop"
    # How often `on_fault: skip` or `rollback` helps before the run stops after all.
    max_faults: int = make_field(3, at_least=1)
    # What a full disk does: end the run, or train on without checkpoints.
    on_save_error: Literal["stop", "go_on"] = "stop"


@dataclass
class Derived:
    """Number computed from means of its split: `{of: loss, as: exp}` is the perplexity."""

    # Metric that it is computed from, without its split: `loss`. Several: a mapping from their names in `as` to them.
    of: str | dict[str, str] = make_field()
    # Function (exp, sqrt, psnr, bits, …) or expression of it: `1 - x`.
    function: str = make_field(alias="as")
