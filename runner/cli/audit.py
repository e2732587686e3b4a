"""`python -m runner audit init [--init a,b,c] [--json] [overrides]`: what an initialisation does to signals.

One batch goes forward and backward, nothing is trained: the spread of activations and gradients layer by layer, units
that are dead, and the growth across the depth, for several choices of `init` side by side.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from runner.cli.options import split_trust
from runner.config.compose import compose
from runner.core.chart import Line, Panel, svg
from runner.core.errors import ConfigError, Mistake, RunError
from runner.core.escape import printable
from runner.experiment.examine import examine
from runner.experiment.preview.init import Audit, Layer, audit

USAGE = "python -m runner audit init [--init a,b,c] [--out FILE] [--json] [overrides]"


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
            print(printable(error), file=sys.stderr)
            return 1
    if "--json" in rest:
        print(json.dumps([asdict(one) | {w: one.growth(w) for w in ("activation", "gradient")} for one in audits]))
        return 0
    print(printable(table(audits)))
    out = Path(options["--out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(picture(audits))
    print(out)
    return 0


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
