"""`python -m runner explain [--json] [RUN] [overrides]`: one row per tensor, and what set it."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runner.cli.options import Verb
from runner.config.compose import compose
from runner.core.errors import ConfigError, Mistake, RunError
from runner.core.escape import make_printable
from runner.experiment.examine import examine
from runner.experiment.preview.parameters import explain
from runner.experiment.record.recorded import is_run, load_recorded_config, make_no_run_mistake

VERBS = (Verb("explain"), Verb("explain", words=("RUN",)))


HEAD = (
    "tensor",
    "shape",
    "dtype",
    "count",
    "init",
    "mean",
    "std",
    "pretrained",
    "frozen",
    "group",
    "lr",
    "decay",
    "set by",
)


def main(argv: Sequence[str]) -> int:
    """Print the rows without data or training; return 1 if weights cannot be downloaded.

    Raises:
        ConfigError: whatever `check` finds.
    """
    given = VERBS[0].parse(argv)
    rest, trust = given.overrides, given.trust
    folder = Path(rest[0]) if rest and is_run(Path(rest[0])) else None
    composed = None
    if folder is None:
        if rest and "=" not in rest[0] and not rest[0].startswith(("~", "-")):
            if Path(rest[0]).exists() or "/" in rest[0]:
                raise ConfigError([make_no_run_mistake(Path(rest[0]), "explain")])
            rule = "must be an override (`key=value`) or a run directory, which has a `config.yaml`"
            raise ConfigError([Mistake(rest[0], rule, where=f"argument `{rest[0]}`")])
        composed = compose(rest)
        examined = examine(composed, trust)
        if examined.mistakes:
            raise ConfigError(examined.mistakes)
        config = examined.config
    else:
        config, _ = load_recorded_config(folder, rest[1:], trust, verb="explain")
    try:
        if folder is None:
            rows, groups = explain(config, composed, folder, trust)
        else:
            from runner.experiment.diagnosis import convert_record_errors

            with convert_record_errors(folder):
                rows, groups = explain(config, composed, folder, trust)
    except ConfigError as error:
        raise ConfigError(composed.blame(error.mistakes) if composed else error.mistakes) from error
    except RunError as error:  # a download, or a function of the user's
        print(make_printable(error), file=sys.stderr)
        return 1
    if given.as_json:
        print(json.dumps({"tensors": [asdict(row) for row in rows], "groups": groups}))
    else:
        print(make_printable(_format_table([HEAD, *(row.cells() for row in rows)])))
        print()
        print(make_printable("\n".join(_format_group(group) for group in groups)))
        states = [f"{row.name}: {', '.join(f'{n} {v}' for n, v in row.state.items())}" for row in rows if row.state]
        print("\n".join(["", "optimizer state", *states]) if states else "", end="\n" if states else "")
    return 0


def _format_group(group: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{k} {v}" for k, v in group.items() if k not in {"params", "param_names", "name"})
    return f"group {group['name']}: {len(group['param_names'])} parameters, {settings}"


def _format_table(cells: Sequence[Sequence[str]]) -> str:
    used = [place for place in range(len(HEAD)) if any(line[place] for line in cells[1:])]
    widths = {place: max(len(line[place]) for line in cells) for place in used}
    return "\n".join("  ".join(line[place].ljust(widths[place]) for place in used).rstrip() for line in cells)
