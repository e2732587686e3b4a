"""Root of the schema: each group of keys, and those that belong to no group."""

from dataclasses import dataclass
from typing import Literal

from runner.config.schema.data import Dataset, Loader, Transform
from runner.config.schema.fields import Component, make_field
from runner.config.schema.log import Log
from runner.config.schema.model import Freeze, Init, ParamGroup, Pretrained
from runner.config.schema.sweep import Sweep
from runner.config.schema.train import Derived, Device, Scheduler, Train


@dataclass
class OnEvent:
    """Command of yours that is run at the end of a run or a sweep, with JSON on its input.

    It counts from the command line only, or with `--trust on_event`; never from a file alone.
    """

    # Command to run: a text for the shell, or a list of a program and its arguments.
    command: str | list[str] | None = None
    # When to run it. ended: a run completed or stopped; failed: a run failed; sweep_done: a sweep is over. The jobs of
    # a sweep run nothing.
    events: list[Literal["ended", "failed", "sweep_done"]] = make_field(["ended", "failed", "sweep_done"])
    # Seconds that it may take before it is killed.
    timeout: float = make_field(30, above=0)


@dataclass
class Config:
    # Model: your `torch.nn.Module` class and its arguments.
    model: Component = make_field(slot="model")
    # Optimizer: a class of `torch.optim`, or your own, and its arguments.
    optimizer: Component = make_field(slot="optimizer")
    # Loss: a class such as `torch.nn.CrossEntropyLoss` or a function `loss(output, target)`. null: the step needs none.
    loss: Component | None = make_field(slot="loss")
    # Name of the experiment, and of the folder below `outputs` that its runs go to.
    name: str = make_field("run", regex=r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,199}")
    # Seed of all random numbers. The same seed gives the same run.
    seed: int = make_field(0, at_least=0)
    # Folder of the run: an empty one begins there, one with a run in it goes on. null: a new folder below `outputs`.
    run: str | None = make_field(None, regex=r".*\S.*", like="outputs/digits_cnn/RUN")
    # Data to train, validate and test with.
    dataset: Dataset = make_field(Dataset)
    # Transforms of the data: preprocessing and augmentation.
    transform: Transform = make_field(Transform)
    # How batches are made of the data: PyTorch's DataLoader and its settings.
    loader: Loader = make_field(Loader)
    # Function that computes the loss of a batch: `step(batch, model, loss)`. The default calls the model with the input
    # and the loss with its output and the target.
    step: Component = make_field({"_target_": "runner.train.steps.supervised"}, slot="step")
    # How the weights of the model begin.
    init: Init = make_field(Init)
    # Weights of an earlier training to begin with.
    pretrained: Pretrained = make_field(Pretrained)
    # Parameters that do not train.
    freeze: Freeze = make_field(Freeze)
    # Groups of parameters with settings of the optimizer of their own, by a name of your own, in order.
    param_groups: dict[str, ParamGroup | None] = make_field({})
    # How the learning rate changes during training.
    scheduler: Scheduler = make_field(Scheduler, slot="scheduler")
    # Metrics, by a name of your own: a component, or a number derived from others (`of`, `as`). Beside its arguments a
    # component may have `on` (train, eval; both), `output` and `target` (which of a step's; `target: null` for none)
    # and `every` (`1ep`).
    metrics: dict[str, Derived | Component | None] = make_field({}, slot="metric")
    # Functions of your own to call at a rhythm, by a name of your own: `every`, else 1ep; null: at the end. They return
    # pictures, texts, files and so on, which are kept.
    actions: dict[str, Component | None] = make_field({}, slot="action")
    # Device to train on, and how it computes.
    device: Device = make_field(Device)
    # How long to train, when to evaluate and save, and when to stop.
    train: Train = make_field(Train)
    # What a run writes and shows while it trains.
    log: Log = make_field(Log)
    # Settings of a sweep: many runs of one command line (`-m`).
    sweep: Sweep = make_field(Sweep)
    # Command of yours to run at the end of a run or a sweep, with JSON on its input. It counts from the command line
    # only, or with `--trust on_event`; never from a file alone.
    on_event: OnEvent = make_field(OnEvent)
