"""`python -m runner audit init [--init a,b,c] [--json] [overrides]`: what an initialisation does to signals.

One batch goes forward and backward, nothing is trained: the spread of activations and gradients layer by layer, units
that are dead, and the growth across the depth, for several choices of `init` side by side.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from runner.chart import Line, Panel, svg
from runner.config.compose import compose
from runner.config.schema import Config
from runner.errors import ConfigError, Mistake, RunError
from runner.examine import examine
from runner.verbs.train import split_trust

USAGE = "python -m runner audit init [--init a,b,c] [--out FILE] [--json] [overrides]"


@dataclass
class Layer:
    """One leaf module in one forward and backward pass."""

    name: str
    type: str
    weighted: bool  # whether it has parameters of two or more dimensions
    activation: float = math.nan  # standard deviation of its output
    gradient: float = math.nan  # standard deviation of the loss's gradient by its output
    dead: float = math.nan  # the share of channels nowhere above 0 in the batch: a rectifier gives nothing there


@dataclass
class Audit:
    """What one choice of `init` does."""

    init: str
    loss: float
    layers: list[Layer] = field(default_factory=list)

    def spreads(self, what: str) -> list[float]:
        """The standard deviations of the weighted layers."""
        return [getattr(layer, what) for layer in self.layers if layer.weighted]

    def growth(self, what: str) -> float:
        """The factor by which a spread changes from one weighted layer to the next, in the geometric mean."""
        values = self.spreads(what)
        if len(values) < 2 or not all(math.isfinite(value) and value > 0 for value in (values[0], values[-1])):
            return math.nan
        return float((values[-1] / values[0]) ** (1 / (len(values) - 1)))


def main(argv: Sequence[str]) -> int:
    """Print the table, write the picture; 1 where data or weights cannot be had.

    Raises:
        ConfigError: the question is not `init`, or a configuration is wrong.
    """
    rest, trust = split_trust(argv)
    if not rest or rest[0] != "init":
        raise ConfigError([Mistake("audit", "can audit `init`", rest[0] if rest else None, remedy=USAGE)])
    options, overrides, arguments = {"--init": "", "--out": "outputs/audit_init.svg"}, [], iter(rest[1:])
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name in options:
            options[name] = value or next(arguments, "")
        elif argument != "--json":
            overrides.append(argument)
    choices = options["--init"].split(",") if options["--init"] else [""]
    audits = []
    for choice in choices:
        composed = compose([*overrides, *([f"init={choice}"] if choice else [])])
        examined = examine(composed, trust)
        if examined.mistakes:
            raise ConfigError(examined.mistakes)
        try:
            audits.append(audit(examined.config, choice or str(composed.choices.get("init")), trust))
        except ConfigError as error:
            raise ConfigError(composed.blame(error.mistakes)) from error
        except RunError as error:  # data or weights that cannot be had
            print(error, file=sys.stderr)
            return 1
    if "--json" in rest:
        print(json.dumps([asdict(one) | {w: one.growth(w) for w in ("activation", "gradient")} for one in audits]))
        return 0
    print(table(audits))
    out = Path(options["--out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(picture(audits))
    print(out)
    return 0


def audit(config: Config, name: str, trust: tuple[str, ...]) -> Audit:
    """Send the first training batch forward and backward.

    Args:
        config: the checked config.
        name: of the choice, for the table.
        trust: patterns of names trusted on the command line.

    Raises:
        RunError: the data cannot be had, or model and loss refuse it.
    """
    import torch
    from torch import nn

    from runner import device as devices
    from runner import rng, surgery
    from runner.build_data import make_parts, make_splits
    from runner.closure import is_own
    from runner.component import component

    device = devices.choose(config.device.type)
    model = surgery.make_model(config, trust)
    surgery.operate(config, model, trust)
    model = model.to(device).train()
    loss = None if config.loss is None else component(config.loss, "loss", trust=trust, call=False)
    loss = loss.to(device) if isinstance(loss, nn.Module) else loss
    step = component(config.step, "step", trust=trust, call=False)
    if is_own(step):
        rule = "does its own backward and update: there is no gradient of one loss to look at"
        raise ConfigError([Mistake("step._target_", rule, config.step["_target_"])])
    batch = next(iter(make_splits(config, make_parts(config, trust), device, trust)["train"].batches(0)))
    layers: dict[str, Layer] = {}

    def watch(name: str, module: nn.Module) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not isinstance(output, torch.Tensor) or not output.is_floating_point():
                return
            kind = type(module).__name__
            weighted = any(p.dim() > 1 for p in module.parameters(recurse=False))
            layer = layers.setdefault(name, Layer(name, kind, weighted))
            layer.activation = output.detach().double().std(correction=0).item()
            if output.dim() > 1:
                layer.dead = (output.detach().transpose(0, 1).flatten(1) <= 0).all(1).double().mean().item()
            if output.requires_grad:
                output.register_hook(lambda gradient: _note(layer, gradient))

        return module.register_forward_hook(hook)

    handles = [watch(name, module) for name, module in model.named_modules() if not list(module.children())]
    with rng.stream(rng.key(config.seed, "train")):
        outcome = step(batch, model, loss)
        outcome["loss"].backward()
    for handle in handles:
        handle.remove()
    return Audit(name, outcome["loss"].item(), list(layers.values()))


def _note(layer: Layer, gradient: Any) -> None:
    layer.gradient = gradient.detach().double().std(correction=0).item()


def table(audits: Sequence[Audit]) -> str:
    """Aligned plain text: a row a layer, three columns a choice."""
    names = list(dict.fromkeys((layer.name, layer.type) for one in audits for layer in one.layers))
    by_name = [{layer.name: layer for layer in one.layers} for one in audits]
    columns = [f"{one.init} {what}" for one in audits for what in ("activation", "gradient", "dead")]
    lines = [["layer", "type", *columns]]
    lines += [[name, kind, *(cell for layers in by_name for cell in _cells(layers, name))] for name, kind in names]
    lines.append(["loss", "", *(cell for one in audits for cell in (f"{one.loss:.4g}", "", ""))])
    growth = [(one.growth("activation"), one.growth("gradient")) for one in audits]
    lines.append(["a layer", "", *(cell for a, g in growth for cell in (f"x{a:.3g}", f"x{g:.3g}", ""))])
    used = [place for place in range(len(lines[0])) if any(line[place] for line in lines[1:])]
    widths = {place: max(len(line[place]) for line in lines) for place in used}
    return "\n".join("  ".join(line[place].ljust(widths[place]) for place in used).rstrip() for line in lines)


def _cells(layers: Mapping[str, Layer], name: str) -> tuple[str, str, str]:
    layer = layers.get(name)
    if layer is None:
        return "", "", ""
    gradient = "" if math.isnan(layer.gradient) else f"{layer.gradient:.3g}"
    return f"{layer.activation:.3g}", gradient, "" if math.isnan(layer.dead) else f"{layer.dead:.0%}"


def picture(audits: Sequence[Audit]) -> str:
    """An SVG of both spreads over the weighted layers, on a logarithmic scale, one line a choice."""
    return svg(
        [
            Panel(
                f"standard deviation of the {what}, layer by layer",
                [Line(one.init, list(enumerate(one.spreads(what)))) for one in audits],
                log_y=True,
            )
            for what in ("activation", "gradient")
        ]
    )
