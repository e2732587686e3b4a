"""`python -m runner evaluate RUN [--checkpoint last|best|PATH] [--json] [overrides]`: the metrics of a checkpoint."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.config.recorded import recorded
from runner.errors import ConfigError, Mistake
from runner.verbs.train import split_trust

USAGE = "python -m runner evaluate RUN [--checkpoint last|best|PATH] [--json] [overrides]"


def main(argv: Sequence[str]) -> int:
    """Evaluate a checkpoint of a run on every split but train; the exit status."""
    rest, trust = split_trust(argv)
    arguments, which, as_json, positional = iter(rest), "last", False, []
    for argument in arguments:
        if argument == "--checkpoint":
            which = next(arguments, "last")
        elif argument.startswith("--checkpoint="):
            which = argument.removeprefix("--checkpoint=")
        elif argument == "--json":
            as_json = True
        else:
            positional.append(argument)
    if not positional:
        raise ConfigError([Mistake("RUN", "is missing", remedy=USAGE)])
    folder = Path(positional[0])
    config, _ = recorded(folder, positional[1:])
    from runner import build, fit
    from runner.log import final_report

    run = build.build(config, folder, {}, trust)
    run.checkpoints.warn = lambda text: print(text, file=sys.stderr)
    saved = run.checkpoints.load(which)
    run.model.load_state_dict(saved["model"])
    metrics: dict[str, float] = {}
    for name in run.splits:
        if name != "train":
            metrics |= fit.evaluate(run, name) or {}
    if as_json:
        print(json.dumps({"run": str(folder), "step": saved["progress"]["step"], "metrics": metrics}))
    else:
        final_report(metrics, folder)
    return 0
