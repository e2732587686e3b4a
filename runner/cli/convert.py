"""`python -m runner convert FILE --trust [--out OUT]`: convert a pickled model to a file of tensors.

The one place that unpickles, that is, runs whatever code the file asks for: by hand, and in a process of its own.
"""

from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import JSON, Option, Verb
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE, EXIT_FAILED
from runner.model.pretrained.unpickle import convert

VERBS = (
    Verb(
        "convert",
        about="Convert a pickled model to a file of tensors. Unpickling runs its code: vouch for it by --trust.",
        examples=(("convert model.pt --trust", "writes model.state_dict.pt beside it"),),
        words=("FILE",),
        options=(
            Option("--trust", "let the file run its code: unpickling does"),
            Option("--out", "the file of tensors, otherwise FILE.state_dict.pt beside it", "OUT"),
            Option("--main", "module that stands for the script that pickled the model", "MODULE"),
            JSON,
        ),
        takes_overrides=False,
    ),
)


def main(argv: Sequence[str]) -> int:
    """Print what was written; return 1 where it holds no tensor.

    Raises:
        ConfigError: no such file, no `--trust`, or the output exists already.
        RunError: the file cannot be unpickled.
    """
    given = VERBS[0].parse(argv)
    out = Path(given.get("--out")) if "--out" in given else None
    done = convert(Path(given.words[0]), out, given.get("--main", ""), trusted="--trust" in given)
    if given.as_json:
        print_json(done.as_json())
    else:
        print(make_printable(done.notes), end="")
        print(make_printable(done))
    return EXIT_DONE if done.count else EXIT_FAILED
