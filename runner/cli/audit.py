"""`python -m runner audit init`: report how initial weights scale signals, layer by layer.

One batch goes forward and backward, nothing is trained: the spread of activations and gradients layer by layer, units
that are dead, and the growth across the depth, for several choices of `init` side by side.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from runner.cli.options import JSON, TRUST, Option, Verb, choose_subject
from runner.config.compose import compose
from runner.core.chart import Line, Panel, render_svg
from runner.core.errors import ConfigError, RunError
from runner.core.escape import make_printable
from runner.experiment.examine import examine
from runner.experiment.preview.init import Audit, LayerStatistics, audit

VERBS = (
    Verb(
        "audit init",
        options=(
            Option("--init", "choices of `init` to compare, otherwise the config's own", "a,b,c"),
            Option("--out", "the picture, otherwise outputs/audit_init.svg", "FILE"),
            JSON,
            TRUST,
        ),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Print the table and write the picture; return 1 if data or weights are unavailable.

    Raises:
        ConfigError: the question is not `init`, or a configuration is wrong.
    """
    choose_subject("audit", argv, ["init"])
    given = VERBS[0].parse(argv[1:])
    overrides, trust = given.overrides, given.trust
    choices = given.get("--init", "").split(",")
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
            print(make_printable(error), file=sys.stderr)
            return 1
    if given.as_json:
        print(json.dumps([asdict(one) | {w: one.growth(w) for w in ("activation", "gradient")} for one in audits]))
        return 0
    print(make_printable(format_table(audits)))
    out = Path(given.get("--out", "outputs/audit_init.svg"))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(draw_spreads(audits))
    print(out)
    return 0


def format_table(audits: Sequence[Audit]) -> str:
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
