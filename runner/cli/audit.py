"""`python -m runner audit init`: report how initial weights scale signals, layer by layer.

One batch goes forward and backward, nothing is trained: the spread of activations and gradients layer by layer, units
that are dead, and the growth across the depth, for several choices of `init` side by side.
"""

from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import JSON, TRUST, Option, Verb, choose_subject
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE

VERBS = (
    Verb(
        "audit init",
        about="Show how initial weights scale signals, layer by layer, forward and backward; nothing is trained.",
        examples=(("audit init --init default,kaiming,xavier", "three initialisations side by side"),),
        options=(
            Option("--init", "choices of `init` to compare, otherwise the config's own", "a,b,c"),
            Option("--out", "the picture, otherwise outputs/audit_init.svg", "FILE"),
            JSON,
            TRUST,
        ),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Print the table and write the picture.

    Raises:
        ConfigError: the subject is not `init`, or a configuration is wrong.
        RunError: data or weights cannot be had.
    """
    choose_subject("audit", argv, ["init"])
    given = VERBS[0].parse(argv[1:])
    from runner.experiment.preview.init import compare_inits, draw_spreads, format_audits

    audits = compare_inits(given.overrides, given.get("--init", "").split(","), given.trust)
    if given.as_json:
        print_json([one.as_json() for one in audits])
        return EXIT_DONE
    print(make_printable(format_audits(audits)))
    out = Path(given.get("--out", "outputs/audit_init.svg"))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(draw_spreads(audits))
    print(out)
    return EXIT_DONE
