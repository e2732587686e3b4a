"""`python -m runner replay RUN [--steps N] [--from STEP]`: train again; name the first difference.

RUN is a run directory or a record file. It is trained in a folder of its own; RUN is not touched. What differs before
anything runs is printed first: config, code, versions, hardware, threads, data. Then every step is compared with the
record's trace: bitwise the same (exit status 0), or the first step that differs and its cause (1).

`replay --all conf/experiment` replays each `NAME.record.json` of a folder with the experiment NAME as it is now.
"""

from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import COUNT, JSON, TRUST, Option, Verb
from runner.core.errors import ConfigError, Mistake
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE, EXIT_FAILED

STEPS = Option("--steps", "train only so many steps", "N", COUNT)


FROM = Option("--from", "begin after this step, from the run's checkpoint", "STEP", COUNT)


ALL = Option("--all", "replay each record of a folder of experiments", "FOLDER")


VERBS = (
    Verb(
        "replay",
        words=("RUN",),
        options=(STEPS, FROM, JSON, TRUST),
        takes_overrides=False,
        about="Train a recorded run again: the same bits, or the first step that differs and its cause.",
        examples=(("replay outputs/digits_cnn/2026-01-31_12-00-00_a1b2 --steps 20", "the first twenty steps"),),
    ),
    Verb(
        "replay",
        options=(ALL, STEPS, JSON, TRUST),
        about="The same for every record of a folder.",
        examples=(("replay --all conf/experiment --steps 5", "do my experiments still give these numbers?"),),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Print the answer; return 0 if every bit is the same, else 1.

    Raises:
        ConfigError: there is no such record, or its config is wrong.
        RunError: the data cannot be had.
    """
    if any(word == ALL.name or word.startswith(f"{ALL.name}=") for word in argv):
        return _run_all(argv)
    given = VERBS[0].parse(argv)
    from runner.experiment.replay.replay import print_line, replay

    say = (lambda _: None) if given.as_json else (lambda text: print_line(make_printable(text)))
    answer = replay(Path(given.words[0]), given.trust, steps=given.get("--steps"), start=given.get("--from"), say=say)
    if given.as_json:
        print_json(answer.as_json())
    else:
        print(make_printable(answer.describe()))
    return EXIT_DONE if answer.same else EXIT_FAILED


def _run_all(argv: Sequence[str]) -> int:
    given = VERBS[1].parse(argv)
    if given.overrides:
        rule = "takes neither RUN nor overrides: it replays each record of its folder"
        raise ConfigError([Mistake(ALL.name, rule, where=f"argument `{given.overrides[0]}`", kind="conflict")])
    from runner.experiment.replay.replay import count_same, print_line, replay_all

    say = (lambda _: None) if given.as_json else (lambda text: print_line(make_printable(text)))
    answers = replay_all(Path(given.get(ALL.name)), given.trust, steps=given.get("--steps"), say=say)
    same = count_same(answers)
    if given.as_json:
        print_json({"same": same == len(answers), "records": [answer.as_json() for answer in answers]})
    else:
        print(f"{same} of {len(answers)} records give the same numbers.")
    return EXIT_DONE if same == len(answers) else EXIT_FAILED
