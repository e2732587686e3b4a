"""`python -m runner why KEY [-m] [--json] [overrides]`: every file:line and argument that set KEY; the winner last."""

import json
from collections.abc import Sequence

from runner.cli.options import split_trust
from runner.config import origins
from runner.config.compose import compose, compose_sweep
from runner.config.hydra_loader import Composed
from runner.config.suggestions import did_you_mean, nearest, other_name
from runner.config.why import _in_the_end, layers
from runner.core.errors import ConfigError, Mistake, as_text
from runner.core.escape import printable

USAGE = "python -m runner why KEY [-m] [--json] [overrides]"


def main(argv: Sequence[str]) -> int:
    """Print who set a key.

    Raises:
        ConfigError: no key is given, or nothing sets it and the schema does not know it.
    """
    rest, _ = split_trust(argv)
    as_json, sweep = "--json" in rest, bool({"-m", "--multirun"} & set(rest))
    words = [argument for argument in rest if argument not in ("--json", "-m", "--multirun")]
    keys = [word for word in words if "=" not in word and not word.startswith("~")]
    if not keys:
        raise ConfigError([Mistake("KEY", "is missing", remedy=USAGE)])
    overrides = [word for word in words if word != keys[0]]
    composed = compose_sweep(overrides) if sweep else compose(overrides)
    if composed.mistakes:
        raise ConfigError(composed.mistakes)
    key = keys[0]
    answers = layers(composed, origins.as_path(key))
    if not answers:
        raise ConfigError([_unknown(composed, key)])
    value = answers[-1].value if sweep else _in_the_end(composed, origins.as_path(key), answers[-1].value)
    if as_json:
        print(json.dumps({"key": key, "value": value, "layers": [vars(answer) for answer in answers]}, default=str))
    else:
        print(printable(f"{key} = {as_text(value)}"))
        for answer in answers:
            print(printable(f"  {answer}"))
    return 0


def _unknown(composed: Composed, key: str) -> Mistake:
    known = [*origins.schema_keys(), *map(origins.dotted, composed.layers.paths(composed.config))]
    right = other_name(key) or nearest(key, known)
    return Mistake(
        key, "is set by nothing and is not a key that the runner knows", remedy=did_you_mean(right), suggestion=right
    )
