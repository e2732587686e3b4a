"""Progress of training for components: what a parameter named `progress` gets."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any


@dataclass
class Moment:
    """Epoch and step at which something happens; the run's own progress has the same fields."""

    epoch: int = 0
    step: int = 0
    batch: int = 0
    left_out: list[list[int]] = field(default_factory=list)


class TrainingProgress:
    """Live view of the progress of training; it always has the numbers of now.

    In a step, a loss, a model or a hook these are those of the run. In a dataset, a sampler or a transform they are
    those of the batch that the sample is for, in any worker process: in an evaluation, those of the run.

    Attributes:
        folder: the run directory.
    """

    def __init__(self, folder: Path = Path()) -> None:
        self.at: Any = Moment()
        self.folder = folder
        self.lengths: tuple[int, int] | None = None

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 0 on: as many are done."""
        return int(self.at.epoch)

    @property
    def step(self) -> int:
        """Number of the optimizer step, from 0 on: as many are done."""
        return int(self.at.step)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; 0 where the dataset has no length."""
        return self._read_lengths()[0]

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run, as `train.duration` says."""
        return self._read_lengths()[1]

    def _read_lengths(self) -> tuple[int, int]:
        if self.lengths is None:
            message = (
                "the length of an epoch is known once all data is built: ask `progress` for it when it is used, "
                "not in the constructor"
            )
            raise RuntimeError(message)
        return self.lengths

    def __copy__(self) -> "TrainingProgress":
        return self

    def __deepcopy__(self, memo: Any) -> "TrainingProgress":
        return self  # a copy of a model that holds it goes on with time

    def __repr__(self) -> str:
        return "TrainingProgress()"  # its numbers change: it is no part of a hash


def wants_progress(parameter: inspect.Parameter) -> bool:
    """Return whether a parameter is named `progress` and has no other default than None.

    A `progress=True`, as torchvision's models have for their progress bar, is something else.
    """
    variadic = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.name == "progress" and not variadic and parameter.default in (inspect.Parameter.empty, None)


def _is_module(made: Any) -> bool:
    from torch import nn

    return isinstance(made, nn.Module)


def _find_signature(call: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(call.forward if _is_module(call) else call)
    except (TypeError, ValueError):
        return None


class ProgressBinding:
    """Callable whose calls get the progress of training; in all else it is the one that it calls."""

    def __init__(self, call: Callable[..., Any], progress: TrainingProgress, signature: inspect.Signature) -> None:
        self.call, self.progress = call, progress
        kept = [parameter for name, parameter in signature.parameters.items() if name != "progress"]
        self.__signature__ = signature.replace(parameters=kept)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.call(*args, progress=self.progress, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "call" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.call, name)


def bind_progress(made: Any, progress: TrainingProgress) -> tuple[Any, bool]:
    """Bind the progress to the calls of an object (a module: its `forward`) that ask for it.

    Returns:
        The object, or what is to be called in its place; and whether its calls asked for the progress.
    """
    bound = isinstance(made, partial) and "progress" in made.keywords
    signature = None if bound or not callable(made) or isinstance(made, type) else _find_signature(made)
    if signature is None or not any(map(wants_progress, signature.parameters.values())):
        return made, False
    if _is_module(made):
        made.register_forward_pre_hook(lambda _, args, named: (args, {"progress": progress} | named), with_kwargs=True)
        return made, True
    return ProgressBinding(made, progress, signature), True
