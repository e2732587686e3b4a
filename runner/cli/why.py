"""`python -m runner why KEY [-m] [--json] [overrides]`: every place that sets KEY, the winner last."""

import json
from collections.abc import Sequence

from runner.cli.options import JSON, MULTIRUN, TRUST, Verb
from runner.config import origins
from runner.config.compose import compose, compose_sweep
from runner.config.hydra_loader import Composed
from runner.config.suggestions import find_nearest, format_suggestion, translate_name
from runner.config.why import collect_answers, describe_final_value
from runner.core.errors import ConfigError, Mistake, as_text
from runner.core.escape import make_printable

VERBS = (Verb("why KEY", options=(MULTIRUN, JSON, TRUST)),)


def main(argv: Sequence[str]) -> int:
    """Print every file:line and argument that sets a key, the winner last.

    Raises:
        ConfigError: no key is given, or nothing sets it and the schema does not know it.
    """
    given = VERBS[0].parse(argv)
    sweep = MULTIRUN.name in given
    keys = [word for word in given.overrides if "=" not in word and not word.startswith("~")]
    if not keys:
        raise ConfigError([Mistake("KEY", "is missing", remedy=VERBS[0].usage, kind="missing")])
    overrides = [word for word in given.overrides if word != keys[0]]
    composed = compose_sweep(overrides) if sweep else compose(overrides)
    if composed.mistakes:
        raise ConfigError(composed.mistakes)
    key = keys[0]
    answers = collect_answers(composed, origins.as_path(key))
    if not answers:
        raise ConfigError([_describe_unknown_key(composed, key)])
    value = answers[-1].value if sweep else describe_final_value(composed, origins.as_path(key), answers[-1].value)
    if given.as_json:
        print(json.dumps({"key": key, "value": value, "layers": [vars(answer) for answer in answers]}, default=str))
    else:
        print(make_printable(f"{key} = {as_text(value)}"))
        for answer in answers:
            print(make_printable(f"  {answer}"))
    return 0


def _describe_unknown_key(composed: Composed, key: str) -> Mistake:
    known = [*origins.list_schema_keys(), *map(origins.format_key, composed.layers.paths(composed.config))]
    right = translate_name(key) or find_nearest(key, known)
    return Mistake(
        key,
        "is set by nothing and is not a key that the runner knows",
        remedy=format_suggestion(right),
        suggestion=right,
        kind="unknown-key",
    )
