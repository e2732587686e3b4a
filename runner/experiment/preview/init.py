"""Preview of the initialization: statistics of activations and gradients, layer by layer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from runner.config.compose import compose
from runner.config.schema import Config
from runner.core.chart import Line, Panel, render_svg
from runner.core.errors import ConfigError, Mistake
from runner.experiment.examine import require_valid


@dataclass
class LayerStatistics:
    """Statistics of one leaf module in one forward and backward pass."""

    name: str
    type: str
    weighted: bool  # whether it has parameters of two or more dimensions
    activation: float = math.nan  # standard deviation of its output
    gradient: float = math.nan  # standard deviation of the loss's gradient by its output
    dead: float = math.nan  # the share of channels nowhere above 0 in the batch: a rectifier gives nothing there


@dataclass
class Audit:
    """Audit of one choice of `init`: the loss, and the statistics of each layer."""

    init: str
    loss: float
    layers: list[LayerStatistics] = field(default_factory=list)

    def spreads(self, what: str) -> list[float]:
        """Return the weighted layers' standard deviations; `what` is `activation` or `gradient`."""
        return [getattr(layer, what) for layer in self.layers if layer.weighted]

    def as_json(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        return asdict(self) | {what: self.growth(what) for what in ("activation", "gradient")}

    def growth(self, what: str) -> float:
        """Compute the geometric mean of a spread's factor from one weighted layer to the next."""
        values = self.spreads(what)
        if len(values) < 2 or not all(math.isfinite(value) and value > 0 for value in (values[0], values[-1])):
            return math.nan
        return float((values[-1] / values[0]) ** (1 / (len(values) - 1)))


def compare_inits(overrides: Sequence[str], choices: Sequence[str], trust: tuple[str, ...] = ()) -> list[Audit]:
    """Audit the config that overrides make, once for each choice of `init`; an empty choice keeps its own.

    Raises:
        ConfigError: a config has mistakes.
        RunError: data or weights cannot be had.
    """
    audits = []
    for choice in choices:
        composed = compose([*overrides, *([f"init={choice}"] if choice else [])])
        config = require_valid(composed, trust).config
        try:
            audits.append(audit(config, choice or str(composed.choices.get("init")), trust))
        except ConfigError as error:
            raise ConfigError(composed.blame(error.mistakes)) from error
    return audits


def audit(config: Config, name: str, trust: tuple[str, ...]) -> Audit:
    """Send the first training batch forward and backward; return the statistics of each layer.

    Args:
        config: the checked config.
        name: of the choice, for the table.
        trust: patterns of names trusted on the command line.

    Raises:
        RunError: the data cannot be had, or model and loss refuse it.
    """
    import torch
    from torch import nn

    from runner.core import device as devices
    from runner.core import rng
    from runner.experiment.builders import model as model_builder
    from runner.experiment.builders.data import make_init_batch, make_parts, make_splits
    from runner.experiment.builders.instantiate import instantiate
    from runner.experiment.builders.lending import lend, lend_stand_ins
    from runner.train.optimizer_step.closure import is_custom_step

    device = devices.choose(config.device.type)
    model = model_builder.make_model(config, trust)
    parts = make_parts(config, trust)
    model_builder.prepare_model(config, model, trust, batch=lambda: make_init_batch(config, parts, trust))
    model = model.to(device).train()
    loss = None if config.loss is None else instantiate(config.loss, "loss", trust=trust, call=False, seed=config.seed)
    loss = loss.to(device) if isinstance(loss, nn.Module) else loss
    step = instantiate(config.step, "step", trust=trust, call=False, seed=config.seed)
    if is_custom_step(step):
        rule = "does its own backward and update: there is no gradient of one loss to look at"
        raise ConfigError([Mistake("step._target_", rule, config.step["_target_"], kind="conflict")])
    with lend(lend_stand_ins()):
        batch = next(iter(make_splits(config, parts, device, trust)["train"].batches(0)))
    layers: dict[str, LayerStatistics] = {}

    def watch(name: str, module: nn.Module) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not isinstance(output, torch.Tensor) or not output.is_floating_point():
                return
            kind = type(module).__name__
            weighted = any(p.dim() > 1 for p in module.parameters(recurse=False))
            layer = layers.setdefault(name, LayerStatistics(name, kind, weighted))
            layer.activation = output.detach().double().std(correction=0).item()
            if output.dim() > 1:
                layer.dead = (output.detach().transpose(0, 1).flatten(1) <= 0).all(1).double().mean().item()
            if output.requires_grad:
                output.register_hook(lambda gradient: _note(layer, gradient))

        return module.register_forward_hook(hook)

    handles = [watch(name, module) for name, module in model.named_modules() if not list(module.children())]
    with rng.stream(rng.derive_key(config.seed, "train")):
        outcome = step(batch, model, loss)
        outcome["loss"].backward()
    for handle in handles:
        handle.remove()
    return Audit(name, outcome["loss"].item(), list(layers.values()))


def _note(layer: LayerStatistics, gradient: Any) -> None:
    layer.gradient = gradient.detach().double().std(correction=0).item()


def format_audits(audits: Sequence[Audit]) -> str:
    """Format aligned plain text: one row per layer, three columns per `init` choice."""
    names = list(dict.fromkeys((layer.name, layer.type) for one in audits for layer in one.layers))
    by_name = [{layer.name: layer for layer in one.layers} for one in audits]
    columns = [f"{one.init} {what}" for one in audits for what in ("activation", "gradient", "dead")]
    lines = [["layer", "type", *columns]]
    lines += [
        [name, kind, *(cell for layers in by_name for cell in _format_cells(layers, name))] for name, kind in names
    ]
    lines.append(["loss", "", *(cell for one in audits for cell in (f"{one.loss:.4g}", "", ""))])
    growth = [(one.growth("activation"), one.growth("gradient")) for one in audits]
    lines.append(["a layer", "", *(cell for a, g in growth for cell in (f"x{a:.3g}", f"x{g:.3g}", ""))])
    used = [place for place in range(len(lines[0])) if any(line[place] for line in lines[1:])]
    widths = {place: max(len(line[place]) for line in lines) for place in used}
    return "\n".join("  ".join(line[place].ljust(widths[place]) for place in used).rstrip() for line in lines)


def _format_cells(layers: Mapping[str, LayerStatistics], name: str) -> tuple[str, str, str]:
    layer = layers.get(name)
    if layer is None:
        return "", "", ""
    gradient = "" if math.isnan(layer.gradient) else f"{layer.gradient:.3g}"
    return f"{layer.activation:.3g}", gradient, "" if math.isnan(layer.dead) else f"{layer.dead:.0%}"


def draw_spreads(audits: Sequence[Audit]) -> str:
    """Draw both spreads over the weighted layers as SVG: logarithmic scale, one line per choice."""
    return render_svg(
        [
            Panel(
                f"standard deviation of the {what}, layer by layer",
                [Line(one.init, list(enumerate(one.spreads(what)))) for one in audits],
                log_y=True,
            )
            for what in ("activation", "gradient")
        ]
    )
