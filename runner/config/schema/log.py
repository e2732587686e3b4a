"""Keys of `log`: what a run tells while it trains."""

from dataclasses import dataclass
from typing import Literal

from runner.config.schema.fields import Component, Duration, Pattern, make_field

Statistic = Literal["mean", "std", "abs_max", "zeros"]


@dataclass
class LogHook:
    """Statistics of outputs (`forward`) and gradients (`backward`) of modules chosen as in `init`.

    A component in the place of statistics is a function of the user's own whose values are logged:
    `forward(module, inputs, output)`, `backward(module, gradient)`.
    """

    # Type of the modules, or a list of types: `torch.nn.Conv2d`. Subclasses count. null: any.
    module: str | list[str] | None = None
    # Name of the modules in the model: `fc`, or a pattern such as `layer\d\..*`. null: any.
    name: Pattern | None = None
    # Statistics of the modules' outputs, or a function of your own `fn(module, inputs, output)`.
    forward: list[Statistic] | Component = make_field([], slot="hook")
    # Statistics of the gradients of the outputs, or a function of your own `fn(module, gradient)`.
    backward: list[Statistic] | Component = make_field([], slot="gradient_hook")
    # Allow it to find no module. Else that is an error.
    optional: bool = False


@dataclass
class Profile:
    """Profiler schedule in steps (wait, warm up, trace; repeated) and options of `torch.profiler`."""

    # Steps to let pass before each trace.
    wait: int = make_field(1, at_least=0)
    # Steps to trace and throw away, while the profiler warms up.
    warmup: int = make_field(1, at_least=0)
    # Steps in each trace.
    active: int = make_field(3, at_least=1)
    # Number of traces.
    repeat: int = make_field(1, at_least=1)
    # Record the shapes of each operator's inputs.
    record_shapes: bool = False
    # Record how much memory each operator allocates and frees.
    profile_memory: bool = False
    # Record the file and line of each operator; slower.
    with_stack: bool = False


@dataclass
class Log:
    # Time between two lines of the log: `50st`, `1ep`.
    every: Duration = Duration("50st")
    # A line of training has the means since the last line. false: the values at its own step.
    mean: bool = True
    # Write event files for TensorBoard (`tensorboard --logdir outputs`).
    tensorboard: bool = True
    # Show a progress bar, where a terminal or a notebook can.
    progress: bool = True
    # Write `trace.jsonl`: bits and hashes of what each step computed, for `replay` and `record`.
    trace: bool = True
    # Print a table of the model's layers at the start.
    model_table: bool = True
    # Settings in TensorBoard's table of runs: true for every key, or patterns of the keys.
    hparams: bool | list[Pattern] = True
    # Log the norm of the gradients before clipping, of all parameters and of each group.
    gradient_norm: bool = False
    # Statistics of modules to log on each line, by a name of your own.
    hooks: dict[str, LogHook | None] = make_field({})
    # Time between two histograms of weights and gradients: `1ep`. null: none.
    histograms: Duration | None = None
    # Write the model's graph for TensorBoard, once.
    graph: bool = False
    # Samples of each evaluation to show beside what the model predicted for them.
    images: int = make_field(0, at_least=0)
    # Log a confusion matrix of each evaluation.
    confusion_matrix: bool = False
    # Log precision-recall curves of each evaluation.
    pr_curves: bool = False
    # Samples of each evaluation whose last features go to TensorBoard's projector.
    embeddings: int = make_field(0, at_least=0)
    # Log steps and samples per second.
    throughput: bool = False
    # Log the share of the time that training waited for data.
    data_wait: bool = False
    # Log the most memory in use since the last line: of the GPU, else of the process.
    memory: bool = False
    # Log the model FLOPs utilization: the share of the device's peak speed that the model's FLOPs are.
    mfu: bool = False
    # Peak speed of the device in FLOP/s for `mfu`, where it is not a known one.
    peak_flops: float | None = make_field(None, above=0)
    # Trace some steps with `torch.profiler`: `{}` for the defaults. null: none.
    profile: Profile | None = None
    # Other trackers (W&B, MLflow, Trackio, your own), by a name of your own: objects with `scalars(step, values)`.
    # Each gets steps, config and pictures in a process of its own; `timeout`: seconds that the end waits for it (30).
    to: dict[str, Component | None] = make_field({}, slot="tracker")
