"""`python -m runner [overrides]`: check, then train one run or, with `-m`, a sweep; or answer one of Hydra's own questions."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.config import compose
from runner.config.check import check
from runner.config.schema import Config
from runner.errors import ConfigError
from runner.files import make_run_dir
from runner.verbs import hydra_questions

if TYPE_CHECKING:
    from runner.run import Outcome

def main(argv: Sequence[str], began: float | None = None) -> int:
    """Serve the command line; the exit status."""
    if any(argument.split("=")[0] in hydra_questions.FLAGS for argument in argv):
        return hydra_questions.answer(argv)
    overrides, trust = split_trust(argv)
    if {"-m", "--multirun"} & set(overrides):
        from runner.sweep import multirun  # noqa: PLC0415

        return multirun.main([argument for argument in overrides if argument not in ("-m", "--multirun")], argv, trust)
    composed = compose.compose(overrides)
    config = check(composed, trust)
    if config.run is not None:
        from runner.verbs import resume  # noqa: PLC0415

        return resume.resume(Path(config.run), config, composed.unresolved_yaml, argv, trust)
    return train(config, composed, argv, trust, lambda name: make_run_dir(Path("outputs"), name), began).status


def train(
    config: Config,
    composed: compose.Composed,
    argv: Sequence[str],
    trust: tuple[str, ...],
    make_folder: Callable[[str], Path],
    began: float | None = None,
) -> "Outcome":
    """Preflight, make the run directory, train.

    Raises:
        ConfigError: the preflight found mistakes; nothing was made.
    """
    began = time.perf_counter() if began is None else began
    prepare_environment(config)
    from runner import run  # noqa: PLC0415  torch is imported here, after the mistakes that need none
    from runner.preflight import preflight  # noqa: PLC0415

    found = preflight(config, trust)
    if found.mistakes:
        raise ConfigError(composed.blame(found.mistakes))
    return run.launch(
        config,
        make_folder(config.name),
        unresolved=composed.unresolved_yaml,
        command=["python", "-m", "runner", *argv],
        trust=trust,
        found=found,
        began=began,
    )


def prepare_environment(config: Config) -> None:
    """What must be in the environment before torch is imported: cuBLAS is deterministic only with a fixed workspace."""
    if config.device.deterministic != "off":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


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
