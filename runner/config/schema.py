"""Schema of every key that the runner reads: type, rule and the only definition of its default.

A component (a `_target_` with its own arguments) has no schema here: the callable's own signature is its schema.
This module is plain Python (no torch, no OmegaConf); `runner.config.check` interprets it.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, NewType

from runner.core import durations

PROCESSES = ("ddp", "fsdp")  # the values of `device.parallel` that train with several processes


# A mapping with a `_target_` (a dotted path) and the arguments of that callable; `slot` in the metadata says what fits.
Component = NewType("Component", dict[str, Any])


# `5ep` (epochs, fractions allowed) or `500st` (optimizer steps).
Duration = NewType("Duration", str)


# A regular expression, matched with `re.fullmatch`.
Pattern = NewType("Pattern", str)


def make_field(default: Any = dataclasses.MISSING, **rules: Any) -> Any:
    """Make a schema field with its rules.

    Rules: `at_least`, `at_most`, `above`, `below` (numbers, inclusive or strict); `slot` (what a component must be);
    `regex` (what a string must fullmatch) and `like` (an example, said instead of it); `unbuilt` (a key of the contract
    whose feature does not exist yet: any value but the default is refused by name); `alias` (the key's name in YAML
    where it is a Python keyword); `may_be_zero` (a duration may be 0); `rest` (the field that takes every key the class
    does not name). A mutable default is copied for each instance.
    """
    if isinstance(default, dict | list):
        value = default
        return field(default_factory=value.copy, metadata=rules)
    if dataclasses.is_dataclass(default) and isinstance(default, type):
        return field(default_factory=default, metadata=rules)
    return field(default=default, metadata=rules)


@dataclass
class Sample:
    """Member of a sample: tensor or array (`shape`, `dtype`) or PIL image (`mode`, `size`: width, height)."""

    shape: list[int] | None = None
    dtype: str | None = None
    mode: str | None = None
    size: list[int] | None = None


@dataclass
class Download:
    """File that the data needs from the net; an existing one is neither fetched nor overwritten."""

    url: str | list[str] = make_field(regex="https?://[!-.0-~]+/[!-~]+")  # of several each is a mirror of the others
    sha256: str = make_field(regex="[0-9a-f]{64}")
    to: str = make_field()  # the file, in a folder below the working directory
    size: int | None = make_field(None, at_least=1)  # bytes; more are not taken
    unpack: str | None = None  # the folder (of a lone .gz: the file) that it becomes; where that is there, all is done
    members_limit: int = make_field(2_000_000, at_least=1)  # files and folders in the archive
    size_limit: float = make_field(1024.0, above=0)  # GiB of all of them
    ratio_limit: float = make_field(200.0, at_least=1)  # times the archive's own size


@dataclass
class Dataset:
    downloads: dict[str, Download | None] = make_field({})  # by name, in order; before the datasets are built
    train: Component | None = make_field(None, slot="dataset")
    val: Component | None = make_field(None, slot="dataset")
    test: Component | None = make_field(None, slot="dataset")
    steps_per_epoch: int | None = make_field(None, at_least=1)  # of a step that needs no data: its batches are None
    evaluate: dict[str, Component | None] = make_field(
        {}, slot="dataset"
    )  # more to validate on, by name: `<name>/accuracy`
    source: Component | None = make_field(None, slot="dataset")  # one dataset to be split by the fractions below
    val_fraction: float = make_field(0.0, at_least=0, below=1)
    test_fraction: float = make_field(0.0, at_least=0, below=1)
    split_seed: int = make_field(0, at_least=0)  # of its own, so that a sweep over `seed` never changes the test set
    stratify: bool = False  # keep the class proportions of `source` in each split
    folds: int | None = make_field(None, at_least=2)  # what the fractions leave of `source`, in so many equal parts
    fold: int | None = make_field(None, at_least=0)  # the one of them that is `val`
    classes: int | None = make_field(
        None, at_least=1
    )  # a class index that is not below is an error before the loss sees it
    class_weights: Literal["balanced"] | list[float] | None = None  # the loss's `weight`: given, or from class counts
    # The input (the target is then a class index), or every member by position or by name.
    sample: Sample | list[Sample] | dict[str, Sample] | None = None
    limit: int | None = make_field(None, at_least=1)  # at most so many samples of each split, for debugging


@dataclass
class Transform:
    on: Literal["input", "target", "sample"] = "input"
    train: dict[str, Component | None] = make_field({}, slot="transform")  # by name, in order; null removes one
    eval: dict[str, Component | None] = make_field({}, slot="transform")
    # of an evaluation's batch: a function of the model's input that gives inputs, or pairs of a weight and an input;
    # the model's outputs for them are averaged
    views: Component | None = make_field(None, slot="views")
    batch: dict[str, Component | None] = make_field({}, slot="transform")  # of whole training batches: MixUp, CutMix


@dataclass
class EvalLoader:
    """Loader settings of validation and test; null means the value of training."""

    batch_size: int | None = make_field(256, at_least=1)
    num_workers: int | None = make_field(None, at_least=0)


@dataclass
class Loader:
    # Per process. null: every sample of the dataset is a whole batch already, of all processes together.
    batch_size: int | None = make_field(64, at_least=1)
    num_workers: int = make_field(0, at_least=0)
    in_memory: bool | Literal["auto"] = "auto"
    in_memory_limit: float = make_field(4.0, above=0)  # GiB; `auto` goes through the DataLoader beyond it
    shuffle: bool = True
    drop_last: bool = False
    pin_memory: bool | Literal["auto"] = "auto"  # auto: where batches go to a CUDA device
    pin_memory_device: str = make_field("", unbuilt="is deprecated by PyTorch: batches are pinned for `device.type`")
    sampler: Component | None = make_field(None, slot="sampler")
    batch_sampler: Component | None = make_field(None, slot="sampler")
    collate_fn: Component | None = make_field(None, slot="function")
    worker_init_fn: Component | None = make_field(None, slot="function")
    multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None
    prefetch_factor: int | None = make_field(None, at_least=1)
    persistent_workers: bool = False
    # Batches as they come would depend on which worker is faster, and no two runs would have the same.
    in_order: bool = make_field(
        True, unbuilt="must be true: the order of batches must not depend on the workers' speed"
    )
    timeout: float = make_field(60, at_least=0)  # seconds to wait for a worker's batch; 0 waits for ever
    bad_samples: Literal["error", "skip"] = "error"  # skip: leave them out and list them in bad_samples.jsonl
    bad_samples_limit: int = make_field(100, at_least=1)  # a split with more of them ends the run all the same
    eval: EvalLoader = make_field(EvalLoader)


@dataclass
class InitRule:
    """Initialization of tensors in modules chosen by type (subclasses count) and name pattern.

    Every further key names a parameter or buffer of the module: a number fills it, a component is called with it.
    """

    module: str | list[str] | None = None
    name: Pattern | None = None
    last: bool = False  # of the chosen modules that share a parent, only the last one (the norm that ends a block)
    optional: bool = False
    tensors: dict[str, float | int | Component | None] = make_field({}, rest=True, slot="init")


@dataclass
class Init:
    rules: dict[str, InitRule | None] = make_field({})  # ordered, first match wins for each tensor
    # a whole `fn(module)` handed to `model.apply`; `fn(module, batch)` also gets a batch of training samples
    apply: Component | None = make_field(None, slot="module_function")
    samples: int = make_field(1024, at_least=1)  # in that batch: the first ones, through the transforms of evaluation


@dataclass
class Rename:
    from_: str = make_field(alias="from")
    to: str = make_field()


@dataclass
class Expect:
    loaded: float | int | None = make_field(None, at_least=0)
    missing: list[Pattern] = make_field([])


ShapeMismatch = Literal["error", "skip", "slice", "sum", "repeat", "interpolate"]


@dataclass
class Pretrained:
    strategy: Literal["none", "full", "filtered", "layers", "partial"] = "none"
    path: str | None = None
    key: str | None = None
    strip_prefix: str | None = None
    add_prefix: str | None = None
    rename: list[Rename] = make_field([])
    include: list[Pattern] = make_field([".*"])
    exclude: list[Pattern] = make_field([])
    layers: list[str] | dict[str, str] = make_field([])
    # For every tensor, or by pattern; `error` where no pattern matches.
    shape_mismatch: ShapeMismatch | dict[Pattern, ShapeMismatch] = "error"
    sha256: str | None = make_field(None, regex="[0-9a-f]{64}")
    expect: Expect = make_field(Expect)
    optional: bool = False
    optimizer: bool | str = False  # whether to take the optimizer's state too, or its key in the file
    # Epochs that the file's training has done: this one begins after them, and counts duration, schedule and log on.
    epoch: int | None = make_field(None, at_least=0)


@dataclass
class FreezeSet:
    """Further parameters that are frozen, with times of their own."""

    params: list[Pattern] = make_field()
    from_: Duration | None = make_field(None, alias="from")
    until: Duration | None = None


@dataclass
class Freeze:
    params: list[Pattern] = make_field([])
    norm_stats: bool = False
    from_: Duration | None = make_field(None, alias="from")  # they train before this time
    until: Duration | None = None  # they train from this time on
    sets: dict[str, FreezeSet | None] = make_field({})  # further parameters, by name, each set with times of its own


@dataclass
class ParamGroup:
    """Parameters chosen by name pattern, with optimizer settings of their own (`settings`)."""

    match: Pattern | list[Pattern]
    lr_mult: float | None = make_field(None, at_least=0)
    layer_decay: float | None = make_field(
        None, above=0
    )  # one group a layer, its rate so much that of the layer after it
    max_dims: int | None = make_field(
        None, at_least=0
    )  # only tensors of at most so many dimensions; 1: biases and norms
    optional: bool = False
    settings: dict[str, Any] = make_field({}, rest=True)


@dataclass
class Scheduler:
    """The runner's own scheduler keys, and `arguments`; without `_target_` the rate is constant."""

    _target_: str | None = None
    interval: Literal["step", "epoch"] = "step"
    warmup: Duration | None = None  # linear, from nearly 0 to the schedule's first rate
    monitor: str | None = None  # a metric's name, for ReduceLROnPlateau
    # The length of the run that the durations below were written for, where it trains for longer; null: train.duration.
    planned_for: Duration | None = None
    arguments: dict[str, Any] = make_field({}, rest=True)  # those of `_target_`


@dataclass
class MemberOptimizer:
    """One of several optimizers: what it takes, its groups and schedule, and its own arguments."""

    match: Pattern | list[Pattern] | None  # of the names of its parameters; null: all that no other optimizer takes
    min_dims: int | None = make_field(None, at_least=0)  # only tensors of at least so many dimensions; 2: matrices
    max_dims: int | None = make_field(None, at_least=0)
    param_groups: dict[str, ParamGroup | None] = make_field({})  # of its own parameters alone
    scheduler: Scheduler | None = make_field(None, slot="scheduler")  # null: as `scheduler` says for all of them
    arguments: dict[str, Any] = make_field({}, rest=True)


@dataclass
class Device:
    type: str = make_field("auto", regex=r"auto|cpu|mps|cuda(:\d+)?")
    threads: int = make_field(1, at_least=1)  # CPU threads of this process; their number changes weights bitwise
    # of the weights themselves and of the model's input; normalisation stays in fp32
    weights: Literal["fp32", "bf16", "fp16"] = "fp32"
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"  # bf16 and fp16: autocast; fp16 with a GradScaler
    compile: bool | Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = False
    cuda_graphs: bool = make_field(
        False, unbuilt="must be false: not built yet (device.compile=reduce-overhead has torch.compile capture them)"
    )
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    deterministic: Literal["strict", "warn", "off"] = "warn"
    # data_parallel: over the GPUs of one process; auto: that where there are several; ddp and fsdp: under torchrun
    parallel: Literal["none", "auto", "data_parallel", "ddp", "fsdp"] = "none"
    sync_batchnorm: bool = False  # statistics of the whole batch, over all processes
    find_unused_parameters: bool = False  # of ddp, for a model that does not use all of them in every step


@dataclass
class Average:
    """Average of the weights, which evaluations use and checkpoints hold beside the raw weights."""

    # mean: of the weights at each update (SWA); lookahead: slow weights, which are copied back into the model
    kind: Literal["ema", "mean", "lookahead"] = "ema"
    from_: Duration | None = make_field(None, alias="from", may_be_zero=True)  # the first update; null: after `every`
    every: Duration | None = None  # between two updates; null: 1st for ema, 1ep for mean, 5st for lookahead
    decay: float | None = make_field(None, above=0, below=1)  # of ema and lookahead: what the average keeps of itself
    decay_power: float = make_field(0.0, at_least=0)  # decay x (steps done / all steps) ^ this; 0: constant
    # compute batch norm's statistics for the averaged weights, by a pass over the training data before each use
    update_bn: bool = False


@dataclass
class StopWhen:
    """Value of a metric at which training is done."""

    below: float | None = None
    above: float | None = None


@dataclass
class Train:
    duration: Duration = make_field(Duration("10ep"), may_be_zero=True)
    accumulate: int = make_field(
        1, at_least=1
    )  # batches of the loader in an optimizer step; all steps are optimizer steps
    split_on_oom: bool = False  # compute a batch that does not fit in parts, with the same generators
    clip_norm: float | None = make_field(None, above=0)  # of all gradients together
    clip_value: float | None = make_field(None, above=0)  # of each element; before `clip_norm` where both are given
    ema: float | None = make_field(
        None, above=0, below=1
    )  # decay of an average of the weights, which evaluations then use
    ema_every: Duration = Duration("1st")  # between two updates of it
    average: Average | None = None  # another one, or from a time on: in place of `ema`
    evaluate_every: Duration | None = Duration("1ep")  # null: at the end only
    checkpoint_every: Duration | None = Duration("1ep")  # null: at the end only
    keep: int = make_field(3, at_least=1)  # newest checkpoints to keep, besides the best
    evaluate_at_start: bool = False
    early_stop: int | None = make_field(
        None, at_least=1
    )  # evaluations without a better objective after which it is done
    # metric → value at which it is done: `train/…` at a line of the log, others at an evaluation
    stop_when: dict[str, StopWhen | None] = make_field({})
    objective: str | None = (
        None  # a metric, `<split>/<name>`; null: val/loss where there is a val split, else train/loss
    )
    mode: Literal["min", "max"] | None = None  # null: min for a loss, max otherwise
    test_with: Literal["last", "best"] = "last"  # the weights that the test split is evaluated with
    max_time: str | None = make_field(
        None, regex=durations.TIME, like="1h30m"
    )  # of wall time over all resumes, then it is done
    # training: only seconds of the loop; not start-up, a process's first step, compiling, evaluating, saving
    max_time_counts: Literal["all", "training"] = "all"
    check_finite: Literal["loss", "off", "every_step"] = make_field("loss")
    detect_anomaly: bool = False  # every backward checks its operators for NaN (torch.autograd); about half as fast
    on_fault: Literal["stop", "skip", "rollback"] = "stop"  # the others go back to the last checkpoint first
    max_faults: int = make_field(3, at_least=1)  # how often `skip` and `rollback` help before the run stops after all
    on_save_error: Literal["stop", "go_on"] = "stop"  # a full disk: end the run, or train on without checkpoints


Statistic = Literal["mean", "std", "abs_max", "zeros"]


@dataclass
class LogHook:
    """Statistics of outputs (`forward`) and gradients (`backward`) of modules chosen as in `init`.

    A component in the place of statistics is a function of the user's own whose values are logged:
    `forward(module, inputs, output)`, `backward(module, gradient)`.
    """

    module: str | list[str] | None = None  # a type; subclasses count
    name: Pattern | None = None  # of the module
    forward: list[Statistic] | Component = make_field([], slot="hook")
    backward: list[Statistic] | Component = make_field([], slot="gradient_hook")
    optional: bool = False


@dataclass
class Profile:
    """Profiler schedule in steps (wait, warm up, trace; repeated) and options of `torch.profiler`."""

    wait: int = make_field(1, at_least=0)
    warmup: int = make_field(1, at_least=0)
    active: int = make_field(3, at_least=1)
    repeat: int = make_field(1, at_least=1)
    record_shapes: bool = False
    profile_memory: bool = False
    with_stack: bool = False


@dataclass
class Log:
    every: Duration = Duration("50st")
    mean: bool = True  # of training: a line has the means since the last one; false: the values at its step
    tensorboard: bool = True
    progress: bool = True
    trace: bool = True  # trace.jsonl: bits and hashes of what each step computed, for `replay` and `record`
    model_table: bool = True
    hparams: bool | list[Pattern] = True  # TensorBoard's table of runs: every key, or those that match
    gradient_norm: bool = False  # of each logged step, before clipping; of each parameter group
    hooks: dict[str, LogHook | None] = make_field({})  # in each logged step, and only then
    histograms: Duration | None = None  # rhythm of histograms of weights and gradients
    graph: bool = False  # the model's, once
    images: int = make_field(0, at_least=0)  # samples of each evaluation shown with what was predicted
    confusion_matrix: bool = False  # of each evaluation
    pr_curves: bool = False  # of each evaluation
    embeddings: int = make_field(
        0, at_least=0
    )  # samples of each evaluation whose last features TensorBoard's projector gets
    throughput: bool = False  # steps and samples per second
    data_wait: bool = False  # share of the time that training waited for data
    memory: bool = False  # the most in use since the last line: of the GPU, else of the process
    mfu: bool = False  # share of the device's peak that the model's FLOPs are
    peak_flops: float | None = make_field(None, above=0)  # of the device, in FLOP/s, where it is not a known one
    profile: Profile | None = None


@dataclass
class Search:
    """Optuna search: `sampler` switches it on and chooses each point from the results so far."""

    sampler: Component | None = make_field(None, slot="search_sampler")
    pruner: Component | None = make_field(
        None, slot="pruner"
    )  # its steps: the 1st, 2nd, … logged value of the objective
    trials: int = make_field(20, at_least=1)  # finished ones of earlier invocations count
    batch: int = make_field(1, at_least=1)  # points asked for at once; the next ones when all of these have ended
    objectives: dict[str, Literal["min", "max"]] = make_field({})  # two or more metrics instead of `train.objective`


@dataclass
class Sweep:
    # The sweep's folder; auto: a hash of the config without the swept keys, and of their names.
    id: str = make_field("auto", regex=r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,199}")
    seeds: int | None = make_field(None, at_least=1)  # so many jobs of each point, with `seed`, `seed` + 1, …
    points: str | None = None  # a YAML, CSV or JSON-lines file of points; each is combined with the other axes
    zip: list[str] | list[list[str]] = make_field([])  # swept keys that change together, or several such lists
    random: int | None = make_field(None, at_least=1)  # so many points drawn from the axes, instead of all combinations
    random_seed: int = make_field(0, at_least=0)
    slots: int | Literal["auto"] = make_field(
        "auto", at_least=1
    )  # jobs at a time; auto: as many as cores and GPUs allow
    processes: int = make_field(1, at_least=1)  # of each job, with device.parallel: ddp or fsdp; it takes as many slots
    vectorize: Literal["auto", "on", "off"] = "off"  # train jobs of one architecture as one model; auto: where faster
    timeout: float | None = make_field(None, above=0)  # seconds for one attempt of a job
    memory: float | None = make_field(None, above=0)  # GiB that a job's processes may hold together
    retry: Literal["machine", "all", "none"] = "machine"  # failed jobs to try again: only what the machine did, ...
    rerun: Literal["none", "changed"] = "none"  # finished jobs to run again: none, those whose code has changed
    fail_fast: bool = False  # stop the sweep at its first failed job; the same line goes on later
    search: Search = make_field(Search)


@dataclass
class Derived:
    """Number computed from means of its split: `{of: loss, as: exp}` is the perplexity."""

    of: str | dict[str, str] = make_field()  # a metric without its split (`loss`); several by their names in `as`
    function: str = make_field(alias="as")  # a function (exp, sqrt, psnr, bits, …) or an expression: `1 - x`


@dataclass
class OnEvent:
    """Command of yours that is run at the end of a run or a sweep, with JSON on its input.

    It counts from the command line only, or with `--trust on_event`; never from a file alone.
    """

    command: str | list[str] | None = None  # a text is given to the shell; a list is a program and its arguments
    # ended: a run completed or stopped; failed: a run failed; sweep_done: a sweep is over. A sweep's jobs run nothing.
    events: list[Literal["ended", "failed", "sweep_done"]] = make_field(["ended", "failed", "sweep_done"])
    timeout: float = make_field(30, above=0)  # seconds, then it is killed


@dataclass
class Config:
    model: Component = make_field(slot="model")
    optimizer: Component = make_field(slot="optimizer")
    loss: Component | None = make_field(slot="loss")  # null: the step needs none
    name: str = make_field("run", regex=r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,199}")
    seed: int = make_field(0, at_least=0)
    run: str | None = make_field(
        None, regex=r".*\S.*", like="outputs/digits_cnn/RUN"
    )  # an existing run directory: continue it
    dataset: Dataset = make_field(Dataset)
    transform: Transform = make_field(Transform)
    loader: Loader = make_field(Loader)
    step: Component = make_field({"_target_": "runner.train.steps.supervised"}, slot="step")
    init: Init = make_field(Init)
    pretrained: Pretrained = make_field(Pretrained)
    freeze: Freeze = make_field(Freeze)
    param_groups: dict[str, ParamGroup | None] = make_field({})
    scheduler: Scheduler = make_field(Scheduler, slot="scheduler")
    # By name: a component, or a number derived from others (`of`, `as`). Beside its arguments a component may have
    # `on` (train, eval; both), `output` and `target` (which of a step's; `target: null` for none) and `every` (`1ep`).
    metrics: dict[str, Derived | Component | None] = make_field({}, slot="metric")
    # By name: what is called at its rhythm (`every`, else 1ep; null: at the end) and returns pictures, texts, files, …
    actions: dict[str, Component | None] = make_field({}, slot="action")
    device: Device = make_field(Device)
    train: Train = make_field(Train)
    log: Log = make_field(Log)
    sweep: Sweep = make_field(Sweep)
    on_event: OnEvent = make_field(OnEvent)
