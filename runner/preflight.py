"""What can be known about a config without data: the model on the meta device, one made-up sample through everything.

Plain meta tensors have shapes and dtypes but no numbers, so even a large model is built and run in a moment.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import default_collate

from runner import build, rng
from runner.config.schema import Config, Sample
from runner.errors import Mistake, RunError

STEPS_PER_EPOCH = 100  # a stand-in: the data is not touched yet


@dataclass
class Preflight:
    """What was found: the model and a batch of one sample on the meta device, if possible; mistakes; notes."""

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

    @contextmanager
    def catching(self, key: str) -> Iterator[None]:
        """Turn what a constructor refuses into a mistake."""
        try:
            yield
        except RunError as error:
            at, _, rest = str(error).partition(": ")
            self.mistakes.append(Mistake(at if at.startswith(key) else key, rest or str(error)))
        except (ValueError, TypeError) as error:
            self.mistakes.append(Mistake(key, str(error)))


def preflight(config: Config, trust: build.Trust = ()) -> Preflight:
    """Build model, loss, metrics, optimizer, scheduler; send a sample of zeros through transforms, model, loss."""
    found = Preflight()
    cpu = torch.device("cpu")
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
    except RunError as error:
        if _about_meta(error.__cause__):
            found.notes.append(f"the model cannot be built on the meta device ({error.__cause__})")
        else:
            found.mistakes.append(Mistake("model", str(error).removeprefix("model: ")))
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
        with found.catching("scheduler"):
            build.make_schedule(config, optimizer, STEPS_PER_EPOCH, 10 * STEPS_PER_EPOCH, trust)


def zeros(sample: Sample) -> Any:
    """A raw sample's member of zeros: a tensor, or a black PIL image."""
    if sample.mode is not None:
        from PIL import Image

        width, height = sample.size or [1, 1]
        return Image.new(sample.mode, (width, height))
    return torch.zeros(sample.shape or [], dtype=getattr(torch, sample.dtype or "float32"))


def _sample_batch(config: Config, found: Preflight, trust: build.Trust) -> Any:
    """A sample of zeros, transformed on the CPU and collated, on the meta device."""
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
        except RunError as error:
            found.mistakes.append(Mistake(*str(error).split(": ", 1)))
            return None
        except Exception as error:  # noqa: BLE001  a user's transform may raise anything
            rule = f"refuses a sample of zeros: {type(error).__name__}: {error}"
            found.mistakes.append(Mistake(f"transform.{which}", rule))
            return None
    try:
        batch = default_collate([transformed])
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
    assert found.model is not None
    step = build.component(config.step, "step", trust=trust, call=False)
    training = found.model.training
    found.model.eval()
    try:
        on_meta = loss.to("meta") if isinstance(loss, nn.Module) else loss
        outcome = step(found.batch, found.model, on_meta)
        value = outcome["loss"]
        if value.numel() != 1:
            rule = f"must give one number to call backward on, but the step's loss has the shape {list(value.shape)}"
            found.mistakes.append(Mistake("loss", rule))
    except Exception as error:  # noqa: BLE001  a user's model may raise anything
        if _about_meta(error):
            found.notes.append(f"the model does not run on the meta device ({type(error).__name__}: {error})")
        else:
            shapes = ", ".join(_shapes(found.batch))
            rule = f"model and loss refuse a batch of one sample ({shapes}): {type(error).__name__}: {error}"
            found.mistakes.append(Mistake("model", rule))
    finally:
        found.model.train(training)


def _shapes(batch: Any) -> list[str]:
    items = batch.items() if isinstance(batch, dict) else enumerate(batch)
    return [f"{place}: {list(member.shape)} {member.dtype}" for place, member in items if hasattr(member, "shape")]
