"""Why a run failed, in the words of the preflight: the key, what the batch holds, what to change, and the user's line.

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
from runner.config.check.rules.rule import SUPERVISED
from runner.config.schema import Config
from runner.core.errors import ConfigError, Mistake, RunError, Stopped, describe_error, find_own_line
from runner.core.safe_io import read_json
from runner.experiment.preflight.report import Preflight
from runner.experiment.record import provenance
from runner.train import evaluation, loop, remedies
from runner.train.optimizer_step import base
from runner.train.optimizer_step.accumulated import Accumulating
from runner.train.state import Run
from runner.train.steps import supervised

Blame = Callable[[list[Mistake]], list[Mistake]]  # gives each the place that set its key


_BACKWARDS = {kind.backward.__code__ for kind in (base.Update, base.Recipe)}


@dataclass
class Scene:
    """What the frames of a traceback say: the part that raised, the batch, and what was made of it."""

    stage: str = ""  # the key of the part; empty where none of them raised
    module: str = ""  # the innermost module of the model
    split: str = "train"
    batch: Any = None
    known: bool = False  # whether there was a batch
    output: Any = None
    target: Any = None


def words(error: Exception, run: Run | None, config: Config, found: Preflight | None, blame: Blame | None) -> str:
    """What ended a run in one paragraph: a mistake where its parts refused a batch, else the error with its line."""
    text = _said(error)
    if isinstance(error, RunError | ConfigError):
        return text
    mistake = None if run is None else diagnose(error, run, config, found)
    if mistake is None:
        line = find_own_line(error)
        return f"{text} ({line})" if line else text
    return in_one_line(mistake, blame)


def in_one_line(mistake: Mistake, blame: Blame | None = None) -> str:
    """A mistake as a sentence, with the user's own line, with what set its key, and with its remedy as another."""
    (placed,) = [mistake] if blame is None else blame([replace(mistake, where="")])
    where = "; named by ".join(filter(None, dict.fromkeys([mistake.where, placed.where])))
    return str(replace(mistake, where=where, remedy="")).replace("\n", " ") + f". {mistake.remedy}" * bool(
        mistake.remedy
    )


@contextmanager
def of_a_record(folder: Path) -> Iterator[None]:
    """Turn what a recorded config meets, whose code is another or gone by now, into words.

    Raises:
        ConfigError: a name leads nowhere any more.
        RunError: a part refuses its arguments, or what was saved of it; which modules have changed is said, too.
    """
    try:
        yield
    except (ConfigError, Stopped):
        raise
    except TargetError as error:
        rule = f"cannot be built from its record: {error.rule}{changed_modules(folder)}"
        raise ConfigError([Mistake("RUN", rule, str(folder), error.where, error.remedy)]) from error
    except Exception as error:
        text = str(error) if isinstance(error, RunError) else describe_error(error)
        raise RunError(f"{folder}: {text}{changed_modules(folder)}".replace("\n", " ")) from error


def changed_modules(folder: Path) -> str:
    """Which modules of the project are other than a run recorded, in words; empty where none is known."""
    try:
        before = read_json(folder / "provenance.json")["modules"]["files"]
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    now = provenance.modules(Path.cwd())["files"]
    other = [name for name, digest in before.items() if name in now and now[name] != digest]
    return f" (changed since the run: {', '.join(other[:4])}{' …' * (len(other) > 4)})" if other else ""


def _said(error: Exception) -> str:
    """`ValueError: …`, also of one that cannot say what it is; the bytes of a file name that are no UTF-8 spelt out."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  of somebody's `__str__`
        text = f"{type(error).__name__}, which has no text"
    return text.encode(errors="backslashreplace").decode()


def diagnose(error: Exception, run: Run, config: Config, found: Preflight | None) -> Mistake | None:
    """The mistake behind an error that model, loss, step or a metric raised; None where it was none of them."""
    scene = look_at(error, run)
    if not scene.stage:
        return None
    said, where = _said(error), find_own_line(error)
    which = f"a batch of {scene.split}" if scene.split != "train" else f"the batch of step {run.progress.step + 1:,}"
    holds = f" ({remedies.contents(scene.batch)})" if scene.known else ""
    if config.step["_target_"] == SUPERVISED and isinstance(scene.batch, Tensor):
        rule = f"needs an input and a target, and {which} is {remedies.contents(scene.batch)}: {said}"
        return Mistake("step", rule, where=where, remedy=remedies.for_members(scene.batch))
    if mistake := _other_than_stated(scene, found, said):
        return mistake
    if scene.stage in ("step.input", "step.target"):
        rule = f"must name members of a batch, and {which} has others{holds}: {said}"
        return Mistake(scene.stage, rule, remedy=remedies.for_members(scene.batch))
    if scene.stage == "model":
        inside = f" in `{scene.module}`" * bool(scene.module)
        remedy = remedies.for_model(run.model, _inputs(config, scene.batch), scene.batch, error) if scene.known else ""
        return Mistake("model", f"refuses {which}{holds}{inside}: {said}", where=where, remedy=remedy)
    given = f"output {remedies.spell(scene.output)}{remedies.values(scene.output)}, "
    given += f"target {remedies.spell(scene.target)}{remedies.values(scene.target)}"
    if scene.stage.startswith("metrics."):
        remedy = remedies.for_output(scene.output)
        if not remedy and isinstance(error, TypeError):
            remedy = "its `update(output, target)` gets both in this order, unnamed"
        rule = f"refuses what the step gives of {scene.split} ({given}): {said}"
        return Mistake(scene.stage, rule, where=where, remedy=remedy)
    if scene.output is None:
        spreads = isinstance(error, UserWarning)  # torch's, of broadcasting: the loop makes no other an error
        remedy = "give both one shape: `x.squeeze(-1)` takes a last dimension of one away" if spreads else ""
        return Mistake(scene.stage, f"refuses {which}{holds}: {said}", where=where, remedy=remedy)
    remedy = remedies.for_loss(scene.output, scene.target, error)
    return Mistake(scene.stage, f"refuses {which} ({given}): {said}", where=where, remedy=remedy)


def look_at(error: Exception, run: Run) -> Scene:
    """Read the frames of an error's traceback from the loop inwards."""
    scene = Scene()
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = {id(module): name for name, module in run.model.named_modules()}
    modules[id(run.update.net)] = ""
    metrics = {id(metric): name for of_split in run.metrics.values() for name, metric in of_split.items()}
    for frame in frames:
        code, local = frame.f_code, frame.f_locals
        if code is loop.fit.__code__ and "batch" in local:
            scene.batch, scene.known = local["batch"], True
            scene.batch = scene.batch[0] if run.accumulate > 1 and isinstance(scene.batch, list) else scene.batch
        elif code is evaluation.outcomes.__code__ and "batch" in local:
            scene.split, scene.batch, scene.known = local["name"], local["batch"], True
        elif code is evaluation.evaluate.__code__:
            scene.split = local["name"]
        elif code is Accumulating.backward.__code__ and "micro_batch" in local:
            scene.batch, scene.known = local["micro_batch"], True
        owner = local.get("self")
        if not scene.stage and id(owner) in metrics:
            scene.stage = f"metrics.{metrics[id(owner)]}"
        if id(owner) in modules and scene.stage in ("", "model"):
            scene.stage, scene.module = "model", modules[id(owner)] or scene.module
        elif not scene.stage and (owner is run.loss or code in _codes(run.loss)):
            scene.stage = "loss" if run.loss is not None else ""
        for name, value in _made_in(frame):
            setattr(scene, name, value)
    scene.stage = scene.stage or _by_the_last(frames, run, metrics)
    return scene


def _codes(function: Any) -> tuple[CodeType, ...]:
    while isinstance(function, partial):
        function = function.func
    code = getattr(function, "__code__", None)
    return () if code is None or isinstance(function, nn.Module) else (code,)


def _made_in(frame: FrameType) -> Iterator[tuple[str, Any]]:
    """Output and target, where a frame of the step or of the loop has them."""
    local = frame.f_locals
    if frame.f_code is supervised.__code__:
        yield from (("output", local.get("main", local.get("made"))), ("target", local.get("wanted")))
    elif frame.f_code in (*_BACKWARDS, evaluation.evaluate.__code__, Accumulating.note.__code__):
        outcome = local.get("outcome")
        if isinstance(outcome, Mapping):
            yield from (("output", outcome.get("output")), ("target", outcome.get("target")))


def _by_the_last(frames: Sequence[FrameType], run: Run, metrics: Mapping[int, str]) -> str:
    """Whose call raised without a frame of its own, as torch's functions do, and a wrong number of arguments."""
    last = frames[-1]
    if last.f_code is supervised.__code__:
        local = last.f_locals
        if "made" not in local:
            return "step.input"
        return "step.target" if "wanted" not in local else "loss"
    callers = (loop.fit.__code__, evaluation.evaluate.__code__, loop.log_line.__code__, Accumulating.note.__code__)
    if last.f_code in callers and id(last.f_locals.get("metric")) in metrics:
        return f"metrics.{metrics[id(last.f_locals['metric'])]}"
    if any(frame.f_code in _codes(run.step) or frame.f_locals.get("self") is run.step for frame in frames):
        return "step"
    return "loss" if any(frame.f_code in _BACKWARDS for frame in frames) and run.loss is not None else ""


def _inputs(config: Config, batch: Any) -> Any:
    place = config.step.get("input", 0)
    try:
        if isinstance(place, Mapping):
            return {name: batch[member] for name, member in place.items()}
        return [batch[member] for member in place] if isinstance(place, list) else batch[place]
    except (LookupError, TypeError):
        return batch


def _other_than_stated(scene: Scene, found: Preflight | None, said: str) -> Mistake | None:
    """A batch of training whose members are not those that `dataset.sample`, transformed, has."""
    if found is None or not scene.known or scene.split != "train":
        return None
    stated, real = _members(found.batch), _members(scene.batch)
    for place, member in stated.items():
        other = real.get(place)
        if isinstance(member, Tensor) and isinstance(other, Tensor) and _one(member) != _one(other):
            rule = (
                f"states another sample than the dataset gives: member {place} is {_one(member)} after the transforms"
            )
            rule += f", and that of the dataset {_one(other)}: {said}"
            return Mistake("dataset.sample", rule, remedy=f"state the real one: {remedies.contents(scene.batch)}")
    return None


def _members(batch: Any) -> dict[Any, Any]:
    if isinstance(batch, Mapping):
        return dict(batch)
    return dict(enumerate(batch)) if isinstance(batch, list | tuple) else {}


def _one(member: Tensor) -> str:
    return f"{list(member.shape[1:])} {str(member.dtype).removeprefix('torch.')}"
