"""Diagnosis of a failed run: the config key, the batch's contents, the remedy, the user's line.

The error itself says where it came from: its traceback passes through the model, the loss, a metric or the step.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from torch import Tensor, nn

from runner.config.check.imports import TargetError
from runner.config.schema import Config
from runner.core.errors import ConfigError, Mistake, RunError, describe_error, find_own_line
from runner.experiment.preflight.report import Preflight
from runner.experiment.record import provenance
from runner.experiment.record.recorded_run import RecordedRun
from runner.experiment.record.result import format_error
from runner.train import evaluation, loop, remedies
from runner.train.metric_inputs import MetricInput
from runner.train.optimizer_step import base
from runner.train.optimizer_step.accumulated import AccumulatedStep
from runner.train.state import Run
from runner.train.steps import needs_input_and_target, supervised

Blame = Callable[[list[Mistake]], list[Mistake]]  # gives each the place that set its key


_BACKWARDS = {kind.backward.__code__ for kind in (base.OptimizerStep, base.OptimizerStepWithHooks)}


@dataclass
class FailureContext:
    """Context of a failure, read from its traceback: the part that raised, batch, output and target."""

    stage: str = ""  # the key of the part; empty where none of them raised
    module: str = ""  # the innermost module of the model
    split: str = "train"
    batch: Any = None
    known: bool = False  # whether there was a batch
    output: Any = None
    target: Any = None


def explain_failure(
    error: Exception, run: Run | None, config: Config, found: Preflight | None, blame: Blame | None
) -> str:
    """Explain the end of a run in one paragraph: a mistake if a part refused a batch, else the error."""
    if isinstance(error, RunError | ConfigError):
        return str(error).encode(errors="backslashreplace").decode()
    text = format_error(error)
    mistake = None if run is None else diagnose(error, run, config, found)
    if mistake is None:
        line = find_own_line(error)
        return f"{text} ({line})" if line else text
    return format_mistake(mistake, blame)


def format_mistake(mistake: Mistake, blame: Blame | None = None) -> str:
    """Format a mistake as one line: the sentence, the user's line, the place of its key, the remedy."""
    (placed,) = [mistake] if blame is None else blame([replace(mistake, where="")])
    where = "; named by ".join(filter(None, dict.fromkeys([mistake.where, placed.where])))
    return str(replace(mistake, where=where, remedy="")).replace("\n", " ") + f". {mistake.remedy}" * bool(
        mistake.remedy
    )


@contextmanager
def convert_record_errors(folder: Path) -> Iterator[None]:
    """Convert errors of a recorded config, whose code may have changed, to ConfigError or RunError.

    Raises:
        ConfigError: a name leads nowhere any more.
        RunError: a part refuses its arguments, or what was saved of it; which modules have changed is said, too.
    """
    try:
        yield
    except ConfigError:
        raise
    except TargetError as error:
        rule = f"cannot be built from its record: {error.rule}{describe_changed_modules(folder)}"
        raise ConfigError([Mistake("RUN", rule, str(folder), error.where, error.remedy, kind="record")]) from error
    except Exception as error:
        text = str(error) if isinstance(error, RunError) else describe_error(error)
        raise RunError(f"{folder}: {text}{describe_changed_modules(folder)}".replace("\n", " ")) from error


def describe_changed_modules(folder: Path) -> str:
    """Describe the project's modules that changed since a run; empty if none is known."""
    try:
        before = RecordedRun(folder).read_part("provenance.json")["modules"]["files"]
    except (LookupError, TypeError):
        return ""
    now = provenance.hash_modules(Path.cwd())["files"]
    other = [name for name, digest in before.items() if name in now and now[name] != digest]
    return f" (changed since the run: {', '.join(other[:4])}{' …' * (len(other) > 4)})" if other else ""


def diagnose(error: Exception, run: Run, config: Config, found: Preflight | None) -> Mistake | None:
    """Return the mistake behind an error of model, loss, step or a metric; None for other errors."""
    scene = read_traceback(error, run)
    if not scene.stage:
        return None
    said, where = format_error(error), find_own_line(error)
    which = f"a batch of {scene.split}" if scene.split != "train" else f"the batch of step {run.progress.step + 1:,}"
    holds = f" ({remedies.describe_batch(scene.batch)})" if scene.known else ""
    if needs_input_and_target(run.step) and isinstance(scene.batch, Tensor):
        rule = f"needs an input and a target, and {which} is {remedies.describe_batch(scene.batch)}: {said}"
        return Mistake("step", rule, where=where, remedy=remedies.suggest_members(scene.batch), kind="refused")
    if mistake := _check_stated_sample(scene, found, said):
        return mistake
    if scene.stage in ("step.input", "step.target"):
        rule = f"must name members of a batch, and {which} has others{holds}: {said}"
        return Mistake(scene.stage, rule, remedy=remedies.suggest_members(scene.batch), kind="refused")
    if scene.stage == "model":
        inside = f" in `{scene.module}`" * bool(scene.module)
        remedy = (
            remedies.suggest_for_model(run.model, _get_inputs(config, scene.batch), scene.batch, error)
            if scene.known
            else ""
        )
        return Mistake("model", f"refuses {which}{holds}{inside}: {said}", where=where, remedy=remedy, kind="refused")
    given = f"output {remedies.spell(scene.output)}{remedies.describe_range(scene.output)}, "
    given += f"target {remedies.spell(scene.target)}{remedies.describe_range(scene.target)}"
    if scene.stage.startswith("metrics."):
        remedy = remedies.suggest_output(scene.output)
        if not remedy and isinstance(error, TypeError):
            remedy = "its `update(output, target)` gets both in this order, unnamed"
        rule = f"refuses what the step gives of {scene.split} ({given}): {said}"
        return Mistake(scene.stage, rule, where=where, remedy=remedy, kind="refused")
    if scene.output is None:
        spreads = isinstance(error, UserWarning)  # torch's, of broadcasting: the loop makes no other an error
        remedy = "give both one shape: `x.squeeze(-1)` takes a last dimension of one away" if spreads else ""
        return Mistake(scene.stage, f"refuses {which}{holds}: {said}", where=where, remedy=remedy, kind="refused")
    remedy = remedies.suggest_for_loss(scene.output, scene.target, error)
    return Mistake(scene.stage, f"refuses {which} ({given}): {said}", where=where, remedy=remedy, kind="refused")


def read_traceback(error: Exception, run: Run) -> FailureContext:
    """Read the context of a failure from its traceback's frames, from the loop inwards."""
    scene = FailureContext()
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = {id(module): name for name, module in run.model.named_modules()}
    modules[id(run.update.net)] = ""
    metrics = {id(metric): name for of_split in run.metrics.values() for name, metric in of_split.items()}
    metrics |= {id(one): one.name for of_split in run.inputs.values() for one in of_split}
    for frame in frames:
        code, local = frame.f_code, frame.f_locals
        if code is loop.fit.__code__ and "batch" in local:
            scene.batch, scene.known = local["batch"], True
            scene.batch = scene.batch[0] if run.rhythm.accumulate > 1 and isinstance(scene.batch, list) else scene.batch
        elif code is evaluation.evaluate_batches.__code__ and "batch" in local:
            scene.split, scene.batch, scene.known = local["name"], local["batch"], True
        elif code is evaluation.evaluate.__code__:
            scene.split = local["name"]
        elif code is AccumulatedStep.backward.__code__ and "micro_batch" in local:
            scene.batch, scene.known = local["micro_batch"], True
        owner = local.get("self")
        if not scene.stage and id(owner) in metrics:
            scene.stage = f"metrics.{metrics[id(owner)]}"
        if id(owner) in modules and scene.stage in ("", "model"):
            scene.stage, scene.module = "model", modules[id(owner)] or scene.module
        elif not scene.stage and (owner is run.loss or code in _get_code_objects(run.loss)):
            scene.stage = "loss" if run.loss is not None else ""
        for name, value in _read_outputs(frame):
            setattr(scene, name, value)
    scene.stage = scene.stage or _infer_stage(frames, run)
    return scene


def _get_code_objects(function: Any) -> tuple[CodeType, ...]:
    while isinstance(function, partial):
        function = function.func
    code = getattr(function, "__code__", None)
    return () if code is None or isinstance(function, nn.Module) else (code,)


def _read_outputs(frame: FrameType) -> Iterator[tuple[str, Any]]:
    """Yield output and target from a frame of the step or of the loop."""
    local = frame.f_locals
    if frame.f_code is supervised.__code__:
        yield from (("output", local.get("main", local.get("made"))), ("target", local.get("wanted")))
    elif frame.f_code is MetricInput.__call__.__code__ and "given" in local:
        yield from zip(("output", "target"), local["given"], strict=False)
    elif frame.f_code in (*_BACKWARDS, evaluation.evaluate.__code__, AccumulatedStep.note.__code__):
        outcome = local.get("outcome")
        if isinstance(outcome, Mapping):
            yield from (("output", outcome.get("output")), ("target", outcome.get("target")))


def _infer_stage(frames: Sequence[FrameType], run: Run) -> str:
    """Infer the part that raised without a Python frame of its own, as torch's functions do."""
    last = frames[-1]
    if last.f_code is supervised.__code__:
        local = last.f_locals
        if "made" not in local:
            return "step.input"
        return "step.target" if "wanted" not in local else "loss"
    if any(frame.f_code in _get_code_objects(run.step) or frame.f_locals.get("self") is run.step for frame in frames):
        return "step"
    return "loss" if any(frame.f_code in _BACKWARDS for frame in frames) and run.loss is not None else ""


def _get_inputs(config: Config, batch: Any) -> Any:
    place = config.step.get("input", 0)
    try:
        if isinstance(place, Mapping):
            return {name: batch[member] for name, member in place.items()}
        return [batch[member] for member in place] if isinstance(place, list) else batch[place]
    except (LookupError, TypeError):
        return batch


def _check_stated_sample(scene: FailureContext, found: Preflight | None, said: str) -> Mistake | None:
    """Return a mistake if a training batch has other members than the transformed `dataset.sample`."""
    if found is None or not scene.known or scene.split != "train":
        return None
    stated, real = _as_mapping(found.batch), _as_mapping(scene.batch)
    for place, member in stated.items():
        other = real.get(place)
        if isinstance(member, Tensor) and isinstance(other, Tensor) and _format_member(member) != _format_member(other):
            here, there = _format_member(member), _format_member(other)
            rule = f"states another sample than the dataset gives: member {place} is {here} after the transforms"
            rule += f", and that of the dataset {there}: {said}"
            return Mistake("dataset.sample", rule, remedy=f"state the real one: {remedies.describe_batch(scene.batch)}")
    return None


def _as_mapping(batch: Any) -> dict[Any, Any]:
    if isinstance(batch, Mapping):
        return dict(batch)
    return dict(enumerate(batch)) if isinstance(batch, list | tuple) else {}


def _format_member(member: Tensor) -> str:
    return f"{list(member.shape[1:])} {str(member.dtype).removeprefix('torch.')}"
