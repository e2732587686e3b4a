"""What can be known about a config without data: the model on the meta device, one made-up sample through everything.

Plain meta tensors have shapes and dtypes but no numbers, so even a large model is built and run in a moment.
"""

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import default_collate

from runner import build, rng
from runner import device as devices
from runner.config.schema import Config, Sample
from runner.errors import ConfigError, Mistake, RunError
from runner.schedule import Duration

STEPS_PER_EPOCH = 100  # a stand-in: the data is not touched yet


@dataclass
class Preflight:
    """What was found: the model and a batch of two samples on the meta device, if possible; mistakes; notes."""

    model: nn.Module | None = None
    batch: Any = None
    mistakes: list[Mistake] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what is left for the first real batch to show, and why

    def inputs(self, config: Config) -> Any:
        """What the model is called with: the member or members of the batch that the step's `input` names."""
        place = config.step.get("input", 0)
        if isinstance(place, dict):
            return {name: self.batch[member] for name, member in place.items()}
        return [self.batch[member] for member in place] if isinstance(place, list) else self.batch[place]

    def one_sample(self, config: Config) -> Any:
        """The same for a batch of one."""
        inputs = self.inputs(config)
        if isinstance(inputs, dict):
            return {name: member[:1] for name, member in inputs.items()}
        return [member[:1] for member in inputs] if isinstance(inputs, list) else inputs[:1]

    @contextmanager
    def catching(self, key: str) -> Iterator[None]:
        """Turn what a constructor refuses into a mistake."""
        try:
            yield
        except build.Refused as error:
            self.mistakes.append(refusal(error))
        except ConfigError as error:
            self.mistakes += error.mistakes
        except (RunError, ValueError, TypeError, ArithmeticError) as error:
            self.mistakes.append(Mistake(key, f"is refused ({type(error).__name__}: {error})"))


def refusal(error: build.Refused) -> Mistake:
    """What a constructor refused, at the argument that its message speaks of by name or by value, if that is one."""
    words = set(re.findall(r"[^\s:,;=()'\"`]+", str(error.cause)))
    scalars = {name: value for name, value in error.node.items() if isinstance(value, bool | int | float | str)}
    scalars.pop("_target_", None)
    named = {name for name in scalars if name in words}
    valued = {name for name, value in scalars.items() if str(value) in words}
    for candidates in (named & valued, valued, named):
        if len(candidates) == 1:
            name = candidates.pop()
            return Mistake(f"{error.key}.{name}", f"is refused ({error.said})", scalars[name])
    return Mistake(error.key, f"is refused ({error.said})", error.node["_target_"])


def preflight(config: Config, trust: build.Trust = ()) -> Preflight:
    """Build model, loss, metrics, optimizer, scheduler; send a sample of zeros through transforms, model, loss."""
    found = Preflight()
    cpu = torch.device("cpu")
    try:
        devices.choose(config.device.type)
    except ValueError as error:
        remedy = "take `device.type=auto` or `cpu`"
        found.mistakes.append(Mistake("device.type", f"cannot be had ({error})", config.device.type, remedy=remedy))
    with rng.isolated():
        found.model = _meta_model(config, found, trust)
        loss = None
        with found.catching("loss"):
            loss = build.component(config.loss, "loss", trust=trust, call=False)
        with found.catching("metrics"):
            build.make_metrics(config, cpu, trust)
        with found.catching("init"):
            build.init_rules(config, trust)
        if found.model is not None:
            _check_optimizer(config, found.model, found, trust)
        found.batch = _sample_batch(config, found, trust)
        if found.model is not None and found.batch is not None and loss is not None:
            _try_step(config, found, loss, trust)
    return found


def _meta_model(config: Config, found: Preflight, trust: build.Trust) -> nn.Module | None:
    try:
        with torch.device("meta"):
            model: nn.Module = build.component(config.model, "model", trust=trust)
    except build.Refused as error:
        if _about_meta(error.cause):
            found.notes.append(f"the model cannot be built on the meta device ({error.said})")
        else:
            found.mistakes.append(refusal(error))
        return None
    return model


def _about_meta(error: BaseException | None) -> bool:
    """Whether an error only says that there are no numbers on the meta device."""
    return isinstance(error, NotImplementedError) or "meta" in str(error).lower()


def _check_optimizer(config: Config, model: nn.Module, found: Preflight, trust: build.Trust) -> None:
    """Empty CPU tensors stand for the parameters: fused optimizers refuse meta ones."""
    stand_ins = [
        (name, nn.Parameter(torch.empty([0] * p.dim(), dtype=p.dtype))) for name, p in model.named_parameters()
    ]
    if not stand_ins:
        found.mistakes.append(Mistake("model", "must have parameters to train", config.model["_target_"]))
        return
    with found.catching("optimizer"):
        optimizer = build.component(config.optimizer, "optimizer", stand_ins, trust=trust)
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            rule = "needs a closure at each step, which is not built yet"
            found.mistakes.append(Mistake("optimizer._target_", rule, config.optimizer["_target_"]))
            return
        with found.catching("scheduler"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            steps = Duration.parse(config.train.duration).steps(STEPS_PER_EPOCH)
            schedule = build.make_schedule(config, optimizer, STEPS_PER_EPOCH, steps, trust)
            schedule.step()  # some arguments are refused at the first step only
            schedule.epoch()


def zeros(sample: Sample) -> Any:
    """A raw sample's member of zeros: a tensor, or a black PIL image."""
    if sample.mode is not None:
        from PIL import Image

        width, height = sample.size or [1, 1]
        return Image.new(sample.mode, (width, height))
    return torch.zeros(sample.shape or [], dtype=getattr(torch, sample.dtype or "float32"))


def _sample_batch(config: Config, found: Preflight, trust: build.Trust) -> Any:
    """Two samples of zeros, transformed on the CPU and collated, on the meta device."""
    stated = config.dataset.sample
    if stated is None:
        found.notes.append(
            "the dataset states no `sample`, so transforms, model and loss meet the first real batch first"
        )
        return None
    if isinstance(stated, Sample):
        stated = [stated, Sample(shape=[], dtype="int64")]
    sample: Any = (
        {name: zeros(member) for name, member in stated.items()}
        if isinstance(stated, dict)
        else tuple(zeros(member) for member in stated)
    )
    for which in ("train", "eval"):
        try:
            pipeline = build.make_pipeline(config, which, trust)
            transformed = pipeline.apply(sample)
        except build.Refused as error:
            found.mistakes.append(refusal(error))
            return None
        except Exception as error:  # noqa: BLE001  a user's transform may raise anything
            rule = f"refuses a sample of zeros: {type(error).__name__}: {error}"
            found.mistakes.append(Mistake(f"transform.{which}", rule))
            return None
    try:
        batch = default_collate([transformed, transformed])
    except TypeError:
        found.notes.append("the transformed sample is no tensor, so model and loss meet the first real batch first")
        return None
    return _to_meta(batch)


def _to_meta(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {name: _to_meta(member) for name, member in batch.items()}
    if isinstance(batch, list | tuple):
        return [_to_meta(member) for member in batch]
    return batch.to("meta") if isinstance(batch, torch.Tensor) else batch


def _try_step(config: Config, found: Preflight, loss: Any, trust: build.Trust) -> None:
    """Send the batch through the model, and through the step; whose fault an error is shows in which of them raises."""
    model = found.model
    assert model is not None
    step = build.component(config.step, "step", trust=trust, call=False)
    training = model.training
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever is to be said of the real data is said when it comes
        try:
            if config.step["_target_"] == "runner.step.supervised":
                _trying(found, "model", "refuses", lambda: call(model, found.inputs(config)))
            if not found.mistakes:
                on_meta = loss.to("meta") if isinstance(loss, nn.Module) else loss
                outcome = _trying(found, "loss", "or the step refuses", lambda: step(found.batch, model, on_meta))
                _check_outcome(found, outcome)
        finally:
            model.train(training)


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's output for a tensor, a list of arguments, or a mapping of named ones."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, list) else model(inputs)


def _trying(found: Preflight, key: str, verb: str, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except Exception as error:  # noqa: BLE001  a user's model may raise anything
        said = f"{type(error).__name__}: {error}"
        if _about_meta(error):
            found.notes.append(
                f"the {key} does not run on the meta device ({said}); it meets the first real batch first"
            )
        else:
            found.mistakes.append(
                Mistake(key, f"{verb} a batch of two samples ({', '.join(_shapes(found.batch))}): {said}")
            )
        return None


def _check_outcome(found: Preflight, outcome: Any) -> None:
    if outcome is None:
        return
    if not isinstance(outcome, Mapping) or "loss" not in outcome:
        found.mistakes.append(
            Mistake("step", f"must return a mapping with `loss`, but returns {type(outcome).__name__}")
        )
    elif outcome["loss"].numel() != 1:
        shape = list(outcome["loss"].shape)
        found.mistakes.append(
            Mistake("loss", f"must give one number to call `backward` on, but gives the shape {shape}")
        )


def _shapes(batch: Any) -> list[str]:
    items = batch.items() if isinstance(batch, dict) else enumerate(batch)
    return [f"{place}: {list(member.shape)} {member.dtype}" for place, member in items if hasattr(member, "shape")]
