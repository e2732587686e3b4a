"""`python -m runner why KEY [-m] [--json] [overrides]`: every place that sets KEY, the winner last."""

from collections.abc import Sequence

from runner.cli.options import JSON, MULTIRUN, TRUST, Verb
from runner.core.errors import ConfigError, Mistake
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE

VERBS = (
    Verb(
        "why",
        more="KEY",
        options=(MULTIRUN, JSON, TRUST),
        about="Show every file:line and argument that sets a key, in order, the winner last.",
        examples=(
            ("why optimizer.lr", "who sets the rate?"),
            ("why optimizer.lr experiment=digits_mlp optimizer.lr=0.2", "with these arguments"),
        ),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Print every file:line and argument that sets a key, the winner last.

    Raises:
        ConfigError: no key is given, or nothing sets it and the schema does not know it.
    """
    given = VERBS[0].parse(argv)
    key = next((word for word in given.overrides if "=" not in word and not word.startswith("~")), None)
    if key is None:
        raise ConfigError([Mistake("KEY", "is missing", remedy=VERBS[0].usage, kind="missing")])
    overrides = [word for word in given.overrides if word != key]
    from runner.config.why import trace_key

    history = trace_key(key, overrides, multirun=MULTIRUN.name in given)
    if given.as_json:
        print_json(history.as_json())
    else:
        print(make_printable(history))
    return EXIT_DONE
