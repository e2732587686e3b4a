"""Trained model of a recorded run: its weights in eval mode, built without the run's data."""

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runner.config.check.imports import import_object
from runner.config.check.rules.train import find_direction
from runner.config.schema import Config, Sample
from runner.core import device as devices
from runner.core.errors import ConfigError, Mistake, RunError
from runner.core.escape import make_printable, quote_shell_word
from runner.data.interfaces import Place
from runner.data.raw_inputs import RawSample
from runner.data.samples import Pipeline
from runner.experiment import diagnosis
from runner.experiment.builders import data as data_builder
from runner.experiment.builders import model as model_builder
from runner.experiment.builders.instantiate import Trust
from runner.experiment.builders.lending import Loan, lend, lend_stand_ins
from runner.experiment.evaluate import find_checkpoint
from runner.experiment.record.recorded_run import RecordedRun
from runner.model.weight_dtype import convert_weights
from runner.train.checkpoint import Checkpoints
from runner.train.optimizer_step.precision import DTYPES
from runner.train.state_dict import choose_weights, compare_model
from runner.train.steps import get_output


@dataclass(frozen=True)
class StepInputs:
    """Call of the model by a step: which members of a batch it gets, and which of its outputs counts.

    Attributes:
        places: of the members, in the order of the model's arguments.
        arguments: names of the arguments; empty where they are positional.
        output: index, key or field of the output that the loss gets; None for all of it.
    """

    places: tuple[Place, ...]
    arguments: tuple[str, ...] = ()
    output: Place | None = None

    def call(self, model: Any, members: Sequence[Any]) -> Any:
        """Return the model's output for the members in their order."""
        if self.arguments:
            return model(**dict(zip(self.arguments, members, strict=True)))
        return model(*members)

    def select(self, made: Any) -> Any:
        """Return the part of the output that the loss gets."""
        return made if self.output is None or isinstance(made, Tensor) else get_output(made, self.output)


@dataclass(frozen=True)
class TrainedModel:
    """Model of a run with the weights of a checkpoint, in eval mode, on its device.

    Attributes:
        folder: the run directory.
        config: the run's config.
        model: plain, without any wrapper.
        device: where it is; the CPU where the run's own device is not here.
        step: optimizer steps that the weights have taken.
        weights: `ema` for an average, else `raw`.
        names: `classes` by index and `inputs` (columns), as far as the run has recorded them.
        notes: what is not as it was in training.
        learnt: state of what was fitted to the training split, by key.
    """

    folder: Path
    config: Config
    model: nn.Module
    device: torch.device
    step: int
    weights: str
    names: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    learnt: Mapping[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        """Names of the classes by index; empty where none are known."""
        known = self.names.get("classes")
        return [str(name) for name in known] if isinstance(known, list) else []

    def autocast(self) -> AbstractContextManager[Any]:
        """Open the mixed precision that the run was evaluated in."""
        precision = self.config.device.precision
        if precision not in DTYPES or devices.explain_cannot_compute(self.device, precision):
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[precision])


def load_trained_model(
    folder: Path,
    config: Config,
    trust: Trust = (),
    *,
    checkpoint: str = "last",
    weights: str = "",
    verb: str = "predict",
) -> TrainedModel:
    """Build the model of a run and load a checkpoint's weights into it; the run's data is not needed.

    Args:
        folder: the run directory.
        config: its checked config.
        trust: patterns of trusted names.
        checkpoint: `last`, `best`, a path, or a file in the run's folder.
        weights: `raw` or `ema`; empty for those that training evaluated.
        verb: of the command, for the remedy.

    Raises:
        ConfigError: there is no such checkpoint, or it has no such weights.
        RunError: the checkpoint or the model cannot be had.
    """
    file = find_checkpoint(folder, checkpoint, verb)
    notes: list[str] = []
    device = choose_device(config, notes)
    with diagnosis.convert_record_errors(folder):
        devices.set_up(device, config.device.threads, config.device.deterministic, config.device.precision)
        mode = config.train.mode or find_direction(config, config.train.objective or "val/loss")
        checkpoints = Checkpoints(folder / "checkpoints", mode=mode, warn=print_note)
        require_checkpoints(folder, checkpoints, file)
        saved = checkpoints.load(file)
        chosen = choose_weights(saved, weights)
        model = convert_weights(model_builder.make_model(config, trust), DTYPES.get(config.device.weights))
        compare_model(model, chosen)
        model.load_state_dict(chosen)
        image_format = torch.channels_last if config.device.memory_format == "channels_last" else None
        model = model.to(device).eval().requires_grad_(requires_grad=False)
        if image_format is not None:
            model = model.to(memory_format=image_format)
        precision = config.device.precision
        if precision != "fp32" and (why := devices.explain_cannot_compute(device, precision)):
            notes.append(f"the run computed in {precision}, and here it is fp32: {why}")
        return TrainedModel(
            folder,
            config,
            model,
            device,
            saved["progress"]["step"],
            "raw" if chosen is saved["model"] else "ema",
            read_names(folder),
            tuple(notes),
            saved["step"].get("fitted", {}),
        )


@contextmanager
def give_learnt(learnt: Mapping[str, Any]) -> Iterator[Loan]:
    """Lend components what the run had learnt from its training split, in place of fitting them."""
    loan = lend_stand_ins()
    loan.fitted.recall = lambda: learnt
    with lend(loan):
        yield loan


def make_eval_pipeline(config: Config, loan: Loan, trust: Trust = ()) -> Pipeline:
    """Make the evaluation transforms, with what they had learnt; those of training come first.

    Raises:
        RunError: a transform was fitted in the run, and the checkpoint has nothing of it.
    """
    data_builder.make_pipeline(config, "train", trust)
    pipeline = data_builder.make_pipeline(config, "eval", trust)
    loan.fitted.fit(None)
    return pipeline


def choose_device(config: Config, notes: list[str]) -> torch.device:
    """Choose the run's device, or the CPU where this machine lacks it, and note that."""
    try:
        return devices.choose(config.device.type)
    except ValueError as error:
        notes.append(f"the run trained on {config.device.type}, and here it is the CPU: {error}")
        return torch.device("cpu")


def require_checkpoints(folder: Path, checkpoints: Checkpoints, file: str) -> None:
    """Require a checkpoint; say what else a run directory without one can still tell.

    Raises:
        RunError: there is none.
    """
    if file not in ("last", "best") or checkpoints.entries():
        return
    known = [name for name in ("config.yaml", "metrics.jsonl", "result.json") if (folder / name).is_file()]
    word = quote_shell_word(str(folder))
    rest = f"; {', '.join(known)} can still be read, and `python -m runner resume {word}` trains it" if known else ""
    raise RunError(f"{checkpoints.folder} holds no checkpoint, so there are no weights{rest}")


def read_names(folder: Path) -> dict[str, Any]:
    """Read the names of classes and input columns that a run has recorded; empty without them."""
    record = RecordedRun(folder).read_part("provenance.json")
    names = record.get("names") if isinstance(record, dict) else None
    return names if isinstance(names, dict) else {}


def find_step_inputs(config: Config, trust: Trust = (), *, verb: str = "predict") -> StepInputs:
    """Find which members of a batch the model gets, from `step.input` or the step's own default.

    Raises:
        ConfigError: the step does not say it.
    """
    step = import_object(config.step["_target_"], trust)
    given = {
        name: parameter.default
        for name, parameter in inspect.signature(step).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    } | {name: value for name, value in config.step.items() if not name.startswith("_")}
    places, output = given.get("input"), given.get("output")
    output = output if isinstance(output, int | str) else None
    if isinstance(places, int | str) and not isinstance(places, bool):
        return StepInputs((places,), output=output)
    if isinstance(places, Mapping) and places:
        return StepInputs(tuple(places.values()), tuple(map(str, places)), output)
    if isinstance(places, list | tuple) and places:
        return StepInputs(tuple(places), output=output)
    rule = f"does not say which members of a batch the model gets: {config.step['_target_']} has no `input`"
    remedy = "give the step an argument `input` (an index, a key, a list or a mapping of them), then `step.input=0`"
    if verb == "predict":
        remedy += "; the run's own data goes through the step as it is: `--split val`"
    raise ConfigError([Mistake("step.input", rule, remedy=remedy, kind="missing")])


def find_raw_form(config: Config, place: Place) -> RawSample:
    """Find the form of a raw sample's member at `place`, from `dataset.sample`."""
    stated: Any = config.dataset.sample
    if isinstance(stated, Sample):
        first = data_builder.get_member_key(config, "input")
        stated = {first: stated}
    elif isinstance(stated, list):
        stated = dict(enumerate(stated))
    member = (stated or {}).get(place)
    if member is None:
        return RawSample()
    dtype = getattr(torch, (member.dtype or "float32").removeprefix("torch."), torch.float32)
    shape = None if member.shape is None else tuple(member.shape)
    return RawSample(member.mode or "", shape, None if member.mode else dtype)


def print_note(text: str) -> None:
    """Print a note to stderr."""
    print(f"note: {make_printable(text)}", file=sys.stderr)
