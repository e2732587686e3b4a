"""`python -m runner evaluate RUN`: the metrics of a checkpoint.

`--checkpoint last|best|PATH` says of which, `--weights raw|ema` with which of its weights: with the average that
training evaluated (`train.ema`), unless told otherwise.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.config.recorded import recorded
from runner.errors import ConfigError, Mistake
from runner.verbs.train import split_trust

USAGE = "python -m runner evaluate RUN [--checkpoint last|best|PATH] [--weights raw|ema] [--json] [overrides]"


def main(argv: Sequence[str]) -> int:
    """Evaluate a checkpoint of a run on every split but train; the exit status."""
    rest, trust = split_trust(argv)
    arguments, as_json, positional = iter(rest), False, []
    options = {"--checkpoint": "last", "--weights": ""}
    for argument in arguments:
        name, separator, value = argument.partition("=")
        if name in options:
            options[name] = value if separator else next(arguments, "")
        elif argument == "--json":
            as_json = True
        else:
            positional.append(argument)
    if not positional:
        raise ConfigError([Mistake("RUN", "is missing", remedy=USAGE)])
    if options["--weights"] not in ("", "raw", "ema"):
        raise ConfigError([Mistake("--weights", "must be raw or ema", options["--weights"])])
    folder = Path(positional[0])
    config, _ = recorded(folder, positional[1:], trust)
    from runner import build, fit
    from runner.log import final_report
    from runner.state import put_weights

    run = build.build(config, folder, {}, trust)
    run.checkpoints.warn = lambda text: print(text, file=sys.stderr)
    saved = run.checkpoints.load(options["--checkpoint"])
    put_weights(run, saved, options["--weights"])
    metrics: dict[str, float] = {}
    for name in run.splits:
        if name != "train":
            metrics |= fit.evaluate(run, name) or {}
    if as_json:
        print(json.dumps({"run": str(folder), "step": saved["progress"]["step"], "metrics": metrics}))
    else:
        final_report(metrics, folder)
    return 0
