"""Every key the runner itself reads: its type, its default, its rule. The defaults are here and nowhere else.

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


def rule(default: Any = dataclasses.MISSING, **rules: Any) -> Any:
    """A schema field with its rules.

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
    """One raw sample's member: a tensor or array (`shape`, `dtype`) or a PIL image (`mode`, `size`: width, height)."""

    shape: list[int] | None = None
    dtype: str | None = None
    mode: str | None = None
    size: list[int] | None = None


@dataclass
class Download:
    """A file that the data needs from the net. What is there already is not fetched again, and never written over."""

    url: str | list[str] = rule(regex="https?://[^/]+/.+")  # of several each is a mirror of the others
    sha256: str = rule(regex="[0-9a-f]{64}")
    to: str = rule()  # the file, in a folder below the working directory
    size: int | None = rule(None, at_least=1)  # bytes; more are not taken
    unpack: str | None = None  # the folder (of a lone .gz: the file) that it becomes; where that is there, all is done
    members_limit: int = rule(2_000_000, at_least=1)  # files and folders in the archive
    size_limit: float = rule(1024.0, above=0)  # GiB of all of them
    ratio_limit: float = rule(200.0, at_least=1)  # times the archive's own size


@dataclass
class Dataset:
    downloads: dict[str, Download | None] = rule({})  # by name, in order; before the datasets are built
    train: Component | None = rule(None, slot="dataset")
    val: Component | None = rule(None, slot="dataset")
    test: Component | None = rule(None, slot="dataset")
    steps_per_epoch: int | None = rule(None, at_least=1)  # of a step that needs no data: its batches are None
    evaluate: dict[str, Component | None] = rule({}, slot="dataset")  # more to validate on, by name: `<name>/accuracy`
    source: Component | None = rule(None, slot="dataset")  # one dataset to be split by the fractions below
    val_fraction: float = rule(0.0, at_least=0, below=1)
    test_fraction: float = rule(0.0, at_least=0, below=1)
    split_seed: int = rule(0, at_least=0)  # of its own, so that a sweep over `seed` never changes the test set
    stratify: bool = False  # keep the class proportions of `source` in each split
    folds: int | None = rule(None, at_least=2)  # what the fractions leave of `source`, in so many equal parts
    fold: int | None = rule(None, at_least=0)  # the one of them that is `val`
    classes: int | None = rule(None, at_least=1)  # a class index that is not below is an error before the loss sees it
    class_weights: Literal["balanced"] | list[float] | None = None  # the loss's `weight`: given, or from class counts
    # The input (the target is then a class index), or every member by position or by name.
    sample: Sample | list[Sample] | dict[str, Sample] | None = None
    limit: int | None = rule(None, at_least=1)  # at most so many samples of each split, for debugging


@dataclass
class Transform:
    on: Literal["input", "target", "sample"] = "input"
    train: dict[str, Component | None] = rule({}, slot="transform")  # by name, in order; null removes one
    eval: dict[str, Component | None] = rule({}, slot="transform")
    batch: dict[str, Component | None] = rule({}, slot="transform")  # of whole training batches: MixUp, CutMix


@dataclass
class EvalLoader:
    """What validation and test do otherwise than training; null means the same."""

    batch_size: int | None = rule(256, at_least=1)
    num_workers: int | None = rule(None, at_least=0)


@dataclass
class Loader:
    batch_size: int = rule(64, at_least=1)  # per process
    num_workers: int = rule(0, at_least=0)
    in_memory: bool | Literal["auto"] = "auto"
    in_memory_limit: float = rule(4.0, above=0)  # GiB; `auto` goes through the DataLoader beyond it
    shuffle: bool = True
    drop_last: bool = False
    pin_memory: bool | Literal["auto"] = "auto"  # auto: where batches go to a CUDA device
    pin_memory_device: str = rule("", unbuilt="is deprecated by PyTorch: batches are pinned for `device.type`")
    sampler: Component | None = rule(None, slot="sampler")
    batch_sampler: Component | None = rule(None, slot="sampler")
    collate_fn: Component | None = rule(None, slot="function")
    worker_init_fn: Component | None = rule(None, slot="function")
    multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None
    prefetch_factor: int | None = rule(None, at_least=1)
    persistent_workers: bool = False
    # Batches as they come would depend on which worker is faster, and no two runs would have the same.
    in_order: bool = rule(True, unbuilt="must be true: the order of batches must not depend on the workers' speed")
    timeout: float = rule(60, at_least=0)  # seconds to wait for a worker's batch; 0 waits for ever
    bad_samples: Literal["error", "skip"] = "error"  # skip: leave them out and list them in bad_samples.jsonl
    bad_samples_limit: int = rule(100, at_least=1)  # a split with more of them ends the run all the same
    eval: EvalLoader = rule(EvalLoader)


@dataclass
class InitRule:
    """What happens to tensors of the modules that `module` (a type; subclasses count) and `name` (a pattern) choose.

    Every further key names a parameter or buffer of the module: a number fills it, a component is called with it.
    """

    module: str | list[str] | None = None
    name: Pattern | None = None
    last: bool = False  # of the chosen modules that share a parent, only the last one (the norm that ends a block)
    optional: bool = False
    tensors: dict[str, float | int | Component | None] = rule({}, rest=True, slot="init")


@dataclass
class Init:
    rules: dict[str, InitRule | None] = rule({})  # ordered, first match wins for each tensor
    apply: Component | None = rule(None, slot="module_function")  # a whole `fn(module)` handed to `model.apply`


@dataclass
class Rename:
    from_: str = rule(alias="from")
    to: str = rule()


@dataclass
class Expect:
    loaded: float | int | None = rule(None, at_least=0)
    missing: list[Pattern] = rule([])


ShapeMismatch = Literal["error", "skip", "slice", "sum", "repeat", "interpolate"]


@dataclass
class Pretrained:
    strategy: Literal["none", "full", "filtered", "layers", "partial"] = "none"
    path: str | None = None
    key: str | None = None
    strip_prefix: str | None = None
    add_prefix: str | None = None
    rename: list[Rename] = rule([])
    include: list[Pattern] = rule([".*"])
    exclude: list[Pattern] = rule([])
    layers: list[str] | dict[str, str] = rule([])
    # For every tensor, or by pattern; `error` where no pattern matches.
    shape_mismatch: ShapeMismatch | dict[Pattern, ShapeMismatch] = "error"
    sha256: str | None = rule(None, regex="[0-9a-f]{64}")
    expect: Expect = rule(Expect)
    optional: bool = False
    optimizer: bool | str = False  # whether to take the optimizer's state too, or its key in the file
    # Epochs that the file's training has done: this one begins after them, and counts duration, schedule and log on.
    epoch: int | None = rule(None, at_least=0)


@dataclass
class Freeze:
    params: list[Pattern] = rule([])
    norm_stats: bool = False
    until: Duration | None = None


@dataclass
class ParamGroup:
    """Parameters whose names match, with settings of the optimizer of their own (`settings`: every further key)."""

    match: Pattern | list[Pattern]
    lr_mult: float | None = rule(None, at_least=0)
    layer_decay: float | None = rule(None, above=0)  # one group a layer, its rate so much that of the layer after it
    max_dims: int | None = rule(None, at_least=0)  # only tensors of at most so many dimensions; 1: biases and norms
    optional: bool = False
    settings: dict[str, Any] = rule({}, rest=True)


@dataclass
class Scheduler:
    """The runner's own keys of a scheduler; the rest goes to `_target_`. Without `_target_` the rate stays as it is."""

    _target_: str | None = None
    interval: Literal["step", "epoch"] = "step"
    warmup: Duration | None = None  # linear, from nearly 0 to the schedule's first rate
    monitor: str | None = None  # a metric's name, for ReduceLROnPlateau
    # The length of the run that the durations below were written for, where it trains for longer; null: train.duration.
    planned_for: Duration | None = None
    arguments: dict[str, Any] = rule({}, rest=True)  # those of `_target_`


@dataclass
class Device:
    type: str = rule("auto", regex=r"auto|cpu|mps|cuda(:\d+)?")
    threads: int = rule(1, at_least=1)  # CPU threads of this process; their number changes weights bitwise
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"  # bf16 and fp16: autocast; fp16 with a GradScaler
    compile: bool | Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = False
    cuda_graphs: bool = rule(
        False, unbuilt="must be false: not built yet (device.compile=reduce-overhead has torch.compile capture them)"
    )
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    deterministic: Literal["strict", "warn", "off"] = "warn"
    # data_parallel: over the GPUs of one process; auto: that where there are several; ddp and fsdp: under torchrun
    parallel: Literal["none", "auto", "data_parallel", "ddp", "fsdp"] = "none"
    sync_batchnorm: bool = False  # statistics of the whole batch, over all processes
    find_unused_parameters: bool = False  # of ddp, for a model that does not use all of them in every step


@dataclass
class Train:
    duration: Duration = rule(Duration("10ep"), may_be_zero=True)
    accumulate: int = rule(1, at_least=1)  # batches of the loader in an optimizer step; all steps are optimizer steps
    split_on_oom: bool = False  # compute a batch that does not fit in parts, with the same generators
    clip_norm: float | None = rule(None, above=0)  # of all gradients together
    clip_value: float | None = rule(None, above=0)  # of each element; before `clip_norm` where both are given
    ema: float | None = rule(None, above=0, below=1)  # decay of an average of the weights, which evaluations then use
    ema_every: Duration = Duration("1st")  # between two updates of it
    evaluate_every: Duration | None = Duration("1ep")  # null: at the end only
    checkpoint_every: Duration | None = Duration("1ep")  # null: at the end only
    keep: int = rule(3, at_least=1)  # newest checkpoints to keep, besides the best
    evaluate_at_start: bool = False
    early_stop: int | None = rule(None, at_least=1)  # evaluations without a better objective after which it is done
    objective: str | None = (
        None  # a metric, `<split>/<name>`; null: val/loss where there is a val split, else train/loss
    )
    mode: Literal["min", "max"] | None = None  # null: min for a loss, max otherwise
    max_time: str | None = rule(
        None, regex=durations.TIME, like="1h30m"
    )  # of wall time over all resumes, then it is done
    check_finite: Literal["loss", "off", "every_step"] = rule("loss")
    detect_anomaly: bool = False  # every backward checks its operators for NaN (torch.autograd); about half as fast
    on_fault: Literal["stop", "skip", "rollback"] = "stop"  # the others go back to the last checkpoint first
    max_faults: int = rule(3, at_least=1)  # how often `skip` and `rollback` help before the run stops after all
    on_save_error: Literal["stop", "go_on"] = "stop"  # a full disk: end the run, or train on without checkpoints


Statistic = Literal["mean", "std", "abs_max", "zeros"]


@dataclass
class LogHook:
    """Statistics of the outputs (`forward`) and of their gradients (`backward`) of modules, chosen as in `init`.

    A component in the place of statistics is a function of the user's own whose values are logged:
    `forward(module, inputs, output)`, `backward(module, gradient)`.
    """

    module: str | list[str] | None = None  # a type; subclasses count
    name: Pattern | None = None  # of the module
    forward: list[Statistic] | Component = rule([], slot="hook")
    backward: list[Statistic] | Component = rule([], slot="gradient_hook")
    optional: bool = False


@dataclass
class Profile:
    """Steps to wait, to warm up, and to trace, so many times over; `torch.profiler.schedule` and its profiler's own."""

    wait: int = rule(1, at_least=0)
    warmup: int = rule(1, at_least=0)
    active: int = rule(3, at_least=1)
    repeat: int = rule(1, at_least=1)
    record_shapes: bool = False
    profile_memory: bool = False
    with_stack: bool = False


@dataclass
class Log:
    every: Duration = Duration("50st")
    mean: bool = True  # of training: a line has the means since the last one; false: the values at its step
    tensorboard: bool = True
    progress: bool = True
    model_table: bool = True
    hparams: bool | list[Pattern] = True  # TensorBoard's table of runs: every key, or those that match
    gradient_norm: bool = False  # of each logged step, before clipping; of each parameter group
    hooks: dict[str, LogHook | None] = rule({})  # in each logged step, and only then
    histograms: Duration | None = None  # rhythm of histograms of weights and gradients
    graph: bool = False  # the model's, once
    images: int = rule(0, at_least=0)  # samples of each evaluation shown with what was predicted
    confusion_matrix: bool = False  # of each evaluation
    pr_curves: bool = False  # of each evaluation
    embeddings: int = rule(0, at_least=0)  # samples of each evaluation whose last features TensorBoard's projector gets
    throughput: bool = False  # steps and samples per second
    data_wait: bool = False  # share of the time that training waited for data
    memory: bool = False  # the most in use since the last line: of the GPU, else of the process
    mfu: bool = False  # share of the device's peak that the model's FLOPs are
    peak_flops: float | None = rule(None, above=0)  # of the device, in FLOP/s, where it is not a known one
    profile: Profile | None = None


@dataclass
class Search:
    """Points that a sampler of Optuna chooses, each from what is known by then; `sampler` switches it on."""

    sampler: Component | None = rule(None, slot="search_sampler")
    pruner: Component | None = rule(None, slot="pruner")  # its steps: the 1st, 2nd, … logged value of the objective
    trials: int = rule(20, at_least=1)  # finished ones of earlier invocations count
    objectives: dict[str, Literal["min", "max"]] = rule({})  # two or more metrics instead of `train.objective`


@dataclass
class Sweep:
    # The sweep's folder; auto: a hash of the config without the swept keys, and of their names.
    id: str = rule("auto", regex=r"[A-Za-z0-9][A-Za-z0-9._+=-]*")
    seeds: int | None = rule(None, at_least=1)  # so many jobs of each point, with `seed`, `seed` + 1, …
    points: str | None = None  # a YAML, CSV or JSON-lines file of points; each is combined with the other axes
    zip: list[str] | list[list[str]] = rule([])  # swept keys that change together, or several such lists
    random: int | None = rule(None, at_least=1)  # so many points drawn from the axes, instead of all combinations
    random_seed: int = rule(0, at_least=0)
    slots: int | Literal["auto"] = rule("auto", at_least=1)  # jobs at a time; auto: as many as cores and GPUs allow
    processes: int = rule(1, at_least=1)  # of each job, with device.parallel: ddp or fsdp; it takes as many slots
    timeout: float | None = rule(None, above=0)  # seconds for one attempt of a job
    memory: float | None = rule(None, above=0)  # GiB that a job's processes may hold together
    retry: Literal["machine", "all", "none"] = "machine"  # failed jobs to try again: only what the machine did, ...
    rerun: Literal["none", "changed"] = "none"  # finished jobs to run again: none, those whose code has changed
    search: Search = rule(Search)


@dataclass
class SubmititLauncher:
    """`hydra.launcher` of `hydra/launcher=submitit_slurm` and `submitit_local`: the keys of Hydra's own of that name.

    A job is one task on one node. What is null is left to the queue, cores and GPUs to what the job itself asks for.
    """

    timeout_min: int = rule(60, at_least=1)  # of the queue; a job that has not ended by then saves and is queued again
    cpus_per_task: int | None = rule(None, at_least=1)
    gpus_per_node: int | None = rule(None, at_least=0)
    mem_gb: float | None = rule(None, above=0)
    name: str = "runner"
    stderr_to_stdout: bool = False
    array_parallelism: int = rule(16, at_least=1)  # jobs in the queue at a time; a search chooses one when one ends
    partition: str | None = None
    qos: str | None = None
    comment: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gres: str | None = None
    account: str | None = None
    cpus_per_gpu: int | None = rule(None, at_least=1)
    gpus_per_task: int | None = rule(None, at_least=1)
    mem_per_gpu: str | None = None
    mem_per_cpu: str | None = None
    signal_delay_s: int = rule(120, at_least=1)  # between the signal to save and the end of its time
    max_num_timeout: int = rule(100, at_least=0)  # how often it is queued again
    additional_parameters: dict[str, Any] = rule({})  # of sbatch
    setup: list[str] = rule([])  # lines of shell before the job: `module load …`


@dataclass
class RayOptions:
    init: dict[str, Any] = rule({})  # arguments of ray.init; `address: auto` or `ray://…` names a cluster that runs
    remote: dict[str, Any] = rule({})  # options of each task; num_cpus and num_gpus are those that the job asks for


@dataclass
class RayLauncher:
    """`hydra.launcher` of `hydra/launcher=ray`: the keys of Hydra's own of that name."""

    ray: RayOptions = rule(RayOptions)


@dataclass
class Config:
    model: Component = rule(slot="model")
    optimizer: Component = rule(slot="optimizer")
    loss: Component | None = rule(slot="loss")  # null: the step needs none
    name: str = rule("run", regex=r"[A-Za-z0-9][A-Za-z0-9._+=-]*")
    seed: int = rule(0, at_least=0)
    run: str | None = rule(
        None, regex=r".*\S.*", like="outputs/digits_cnn/RUN"
    )  # an existing run directory: continue it
    dataset: Dataset = rule(Dataset)
    transform: Transform = rule(Transform)
    loader: Loader = rule(Loader)
    step: Component = rule({"_target_": "runner.train.steps.supervised"}, slot="step")
    init: Init = rule(Init)
    pretrained: Pretrained = rule(Pretrained)
    freeze: Freeze = rule(Freeze)
    param_groups: dict[str, ParamGroup | None] = rule({})
    scheduler: Scheduler = rule(Scheduler, slot="scheduler")
    metrics: dict[str, Component | None] = rule({}, slot="metric")
    device: Device = rule(Device)
    train: Train = rule(Train)
    log: Log = rule(Log)
    sweep: Sweep = rule(Sweep)
