"""`python -m runner [overrides]`: check, then train one run or, with `-m`, a sweep; or let Hydra answer."""

import sys
from collections.abc import Sequence
from pathlib import Path

from runner import torchrun
from runner.config import compose
from runner.config.names import did_you_mean, nearest
from runner.errors import ConfigError, Mistake, count_line
from runner.examine import examine, reporter
from runner.files import make_run_dir
from runner.verbs import hydra_questions


def main(argv: Sequence[str], began: float | None = None) -> int:
    """Serve the command line; the exit status."""
    if any(argument.split("=")[0] in hydra_questions.FLAGS for argument in argv):
        return hydra_questions.answer(argv)
    overrides, trust = split_trust(argv)
    overrides, schedule = split_schedule(overrides)
    if {"-m", "--multirun"} & set(overrides):
        if torchrun.place() is not None:
            remedy = "without torchrun: `python -m runner -m …`; or one torchrun for each job"
            raise ConfigError([torchrun.not_here("-m", remedy)])
        from runner.sweep import multirun

        return multirun.main([argument for argument in overrides if argument not in ("-m", "--multirun")], argv, trust)
    composed = compose.compose([argument for argument in overrides if argument != "--inexact"])
    say = reporter()
    examined = examine(composed, trust, say)
    config = examined.config
    started = torchrun.mistakes(config.device.parallel, argv)
    say(started)
    if examined.mistakes or started:
        print(count_line(len(examined.mistakes) + len(started)), file=sys.stderr)
        return 2
    if config.run is None and "--inexact" in overrides:
        raise ConfigError([Mistake("--inexact", "has no effect without `run=RUN`", where="argument `--inexact`")])
    if config.run is None and schedule:
        where = f"argument `--schedule {schedule}`"
        raise ConfigError([Mistake("--schedule", "has no effect without `run=RUN`", where=where)])
    if config.run is not None:
        from runner.verbs import resume

        return resume.resume(Path(config.run), config, composed.unresolved_yaml, argv, trust)
    from runner.run import train

    return train(examined, composed, argv, trust, make_run_dir(Path("outputs"), config.name), began).status


def split_trust(argv: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The command line without `--trust PATTERN` (or `--trust=PATTERN`), and the patterns."""
    rest, trust, arguments = [], [], iter(argv)
    for argument in arguments:
        if argument == "--trust":
            trust.append(next(arguments, ""))
            if not trust[-1]:
                remedy = "--trust 'timm.*' or --trust DIRECTORY"
                raise ConfigError([Mistake("--trust", "needs a pattern", where="argument `--trust`", remedy=remedy)])
        elif argument.startswith("--trust="):
            trust.append(argument.removeprefix("--trust="))
        else:
            rest.append(argument)
    return rest, tuple(pattern for pattern in trust if pattern)


SCHEDULES = ("follow", "constant", "continue")  # of a run that trains for longer


def split_schedule(argv: Sequence[str]) -> tuple[list[str], str]:
    """The command line without `--schedule WORD` (or `--schedule=WORD`), and the word; empty where there is none.

    Raises:
        ConfigError: it is none of SCHEDULES.
    """
    rest, word, arguments = [], "", iter(argv)
    for argument in arguments:
        option, separator, value = argument.partition("=")
        if option != "--schedule":
            rest.append(argument)
            continue
        word = value if separator else next(arguments, "")
        if word not in SCHEDULES:
            near = nearest(word, SCHEDULES)
            rule = f"must be {', '.join(SCHEDULES[:-1])} or {SCHEDULES[-1]}"
            raise ConfigError([Mistake("--schedule", rule, word, f"argument `{argument}`", did_you_mean(near), near)])
    return rest, word
