"""`python -m runner [overrides]`: check, then train one run or, with `-m`, a sweep; or let Hydra answer."""

from collections.abc import Sequence
from pathlib import Path

from runner.config import compose
from runner.config.check import check
from runner.files import make_run_dir
from runner.verbs import hydra_questions


def main(argv: Sequence[str], began: float | None = None) -> int:
    """Serve the command line; the exit status."""
    if any(argument.split("=")[0] in hydra_questions.FLAGS for argument in argv):
        return hydra_questions.answer(argv)
    overrides, trust = split_trust(argv)
    if {"-m", "--multirun"} & set(overrides):
        from runner.sweep import multirun

        return multirun.main([argument for argument in overrides if argument not in ("-m", "--multirun")], argv, trust)
    composed = compose.compose(overrides)
    config = check(composed, trust)
    if config.run is not None:
        from runner.verbs import resume

        return resume.resume(Path(config.run), config, composed.unresolved_yaml, argv, trust)
    from runner.run import train

    return train(config, composed, argv, trust, lambda name: make_run_dir(Path("outputs"), name), began).status


def split_trust(argv: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The command line without `--trust PATTERN` (or `--trust=PATTERN`), and the patterns."""
    rest, trust, arguments = [], [], iter(argv)
    for argument in arguments:
        if argument == "--trust":
            trust.append(next(arguments, ""))
        elif argument.startswith("--trust="):
            trust.append(argument.removeprefix("--trust="))
        else:
            rest.append(argument)
    return rest, tuple(pattern for pattern in trust if pattern)
