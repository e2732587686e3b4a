"""Actions: functions of the user's own that are called at a rhythm, and leave training as it was."""

import inspect
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runner.core import device as devices
from runner.core import rng
from runner.core.durations import Duration, compute_next_due
from runner.core.errors import RunError, describe_error
from runner.data.interfaces import Split
from runner.log.artifacts import collect_artifacts, place_artifact, write_artifacts
from runner.train.state import Run


@dataclass(frozen=True)
class Action:
    """Action of a run.

    Attributes:
        name: its key in the config.
        call: the user's function; each of its arguments is given by name, see `collect_arguments`.
        every: its rhythm; at the end it is called too. None: at the end only.
        must_succeed: whether its error ends the run; otherwise the log says it.
    """

    name: str
    call: Callable[..., Any]
    every: Duration | None = None
    must_succeed: bool = True


class EvaluationBatches:
    """Batches of a split as evaluations get them: on the device, with the transforms of `transform.eval`."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __iter__(self) -> Iterator[Any]:
        return self.split.batches(0)


def find_due_actions(run: Run, *, at_end: bool) -> list[Action]:
    """Find the actions that are due at this step and were not called yet."""
    done, step = run.progress.acted_at, run.progress.step
    due = []
    for action in run.actions if done < step else ():
        then = compute_next_due(action.every, done, run.rhythm.steps_per_epoch)
        if at_end or (then is not None and then <= step):
            due.append(action)
    return due


def call_due_actions(run: Run, *, at_end: bool) -> None:
    """Call the actions that are due, in the order of the config, in the first of several processes.

    A run that stops, or has an evaluation to do again, calls them when it goes on.
    """
    if run.stop.reason or run.progress.evaluation_pending:
        return
    due = find_due_actions(run, at_end=at_end)
    if not due:
        run.progress.acted_at = run.progress.step
        return
    run.clock.pause()
    begun = time.perf_counter()
    for action in due if run.team.rank == 0 else ():
        call_action(run, action)
    run.progress.acted_at = run.progress.step
    devices.synchronize(run.device)
    run.clock.evaluating += time.perf_counter() - begun
    run.clock.start()


def call_action(run: Run, action: Action) -> None:
    """Call an action and keep what it returns.

    Raises:
        RunError: it failed, or returned what cannot be kept, unless `on_error` is go_on.
    """
    step = run.progress.step
    try:
        with prepare_for_action(run, action.name):
            collected = collect_artifacts(action.name, action.call(**collect_arguments(run, action)))
        write_artifacts(run.folder, run.log, step, collected)
    except Exception as error:
        said = f"actions.{action.name} failed after step {step:,}: {describe_error(error)}"
        if action.must_succeed or isinstance(error, OSError):
            raise RunError(said) from error
        run.log.say(f"{said}. The run goes on (on_error: go_on)")
        return
    if collected.numbers:
        run.progress.last |= collected.numbers
        run.log.evaluated(step, run.progress.epoch, collected.numbers)


def keep_outcome_artifacts(run: Run, split: str, artifacts: Any) -> None:
    """Write the artifacts that a step of training gave, as those of an action.

    Raises:
        RunError: something else is in them.
    """
    if artifacts is None or run.team.rank:
        return
    with prepare_for_action(run, split):
        collected = collect_artifacts(split, artifacts)
    write_artifacts(run.folder, run.log, run.progress.step, collected)


def collect_arguments(run: Run, action: Action) -> dict[str, Any]:
    """Collect the arguments that an action's signature names."""
    progress, splits = run.progress, {name: split for name, split in run.splits.items() if name != "train"}
    known: dict[str, Callable[[], Any]] = {
        "model": lambda: run.model,
        "loss": lambda: run.loss,
        "device": lambda: run.device,
        "step": lambda: progress.step,
        "epoch": lambda: progress.epoch,
        "splits": lambda: {name: EvaluationBatches(split) for name, split in splits.items()},
        "datasets": lambda: dict(run.datasets),
        "metrics": lambda: dict(progress.last),
        "run_dir": lambda: run.folder,
        "folder": lambda: _make_folder(run, action),
        "seed": lambda: rng.derive_key(run.seed, "action", action.name, progress.step),
        "generator": lambda: torch.Generator().manual_seed(
            rng.derive_key(run.seed, "action", action.name, progress.step)
        ),
    }
    return {name: known[name]() for name in list_arguments(action.call) if name in known}


def list_arguments(call: Callable[..., Any]) -> list[str]:
    """List the names of a function's arguments that are not bound yet."""
    bound = getattr(call, "keywords", None) or {}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(call).parameters.values()
    return [one.name for one in parameters if one.kind in kinds and one.name not in bound]


def _make_folder(run: Run, action: Action) -> Path:
    """Make the folder of an action's artifacts, for files that it writes itself."""
    folder = place_artifact(run.folder, collect_artifacts(action.name, "").artifacts[0], 0).parent
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def prepare_for_action(run: Run, name: str) -> Iterator[None]:
    """Put the model in eval mode with its averaged weights, and draw from the action's own stream.

    Afterwards everything is as it was: weights, buffers, gradients, modes and generators.
    """
    owners = [owner for owner in (run.model, run.loss, run.step) if isinstance(owner, nn.Module)]
    with nullcontext() if run.average is None else run.average.in_model(), keep_modules(owners):
        run.model.eval()
        with torch.no_grad(), rng.stream(rng.derive_key(run.seed, "action", name, run.progress.step)):
            yield


@contextmanager
def keep_modules(owners: list[nn.Module]) -> Iterator[None]:
    """Restore the weights, buffers, gradients and modes of modules on exit."""
    modules = [module for owner in owners for module in owner.modules()]
    held = [(module, module.training, {**module._parameters}, {**module._buffers}) for module in modules]  # noqa: SLF001
    tensors = [tensor for owner in owners for tensor in (*owner.parameters(), *owner.buffers())]
    gradients = [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    kept = [(tensor, tensor.detach().to("cpu", copy=True)) for tensor in (*tensors, *gradients)]
    settings = [(tensor, tensor.requires_grad, tensor.grad) for tensor in tensors if tensor.is_leaf]
    try:
        yield
    finally:
        for module, mode, parameters, buffers in held:
            module.training = mode
            module._parameters.update(parameters)  # noqa: SLF001
            module._buffers.update(buffers)  # noqa: SLF001
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)
        for tensor, wanted, gradient in settings:
            tensor.requires_grad_(wanted)
            tensor.grad = gradient


def list_unknown_arguments(call: Callable[..., Any], known: Collection[str]) -> list[str]:
    """List the arguments without a default that nothing gives."""
    bound = getattr(call, "keywords", None) or {}
    return [
        name
        for name, one in inspect.signature(call).parameters.items()
        if name not in known
        and name not in bound
        and one.default is inspect.Parameter.empty
        and one.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]
