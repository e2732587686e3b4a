"""`python -m runner promote SWEEP [--name NAME] [--job JOB]`: write a job as an experiment file."""

import re
from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import TRUST, Option, Verb
from runner.config.hydra_loader import find_our_conf
from runner.config.minimal import write_experiment
from runner.core.errors import ConfigError, Mistake
from runner.core.escape import make_printable
from runner.sweep.promote import (
    NO_NAMES,
    describe_noise,
    describe_score,
    find_job,
    find_winner,
    format_header,
    read_config,
)
from runner.sweep.report.results import gather

VERBS = (
    Verb(
        "promote",
        words=("SWEEP",),
        options=(
            Option("--name", "name of the experiment, otherwise that of the sweep with `_best`", "NAME"),
            Option("--job", "number of the job, otherwise the best one", "NUMBER"),
            TRUST,
        ),
        takes_overrides=False,
    ),
)


def main(argv: Sequence[str]) -> int:
    """Write the experiment file and print the command that trains with it.

    Raises:
        ConfigError: there is no such sweep, no such job, nothing to promote, or the file exists.
    """
    given = VERBS[0].parse(argv)
    trust, name, job = given.trust, given.get("--name"), given.get("--job")
    report = gather(Path(given.words[0]))
    winner = find_job(report, job) if job else find_winner(report)
    name = name or f"{report.settings.get('name') or report.folder.parent.name}_best"
    if not re.fullmatch(r"[A-Za-z0-9_][\w.\-]{,99}", name, re.ASCII) or name in NO_NAMES or name.endswith(".yaml"):
        rule = "must be at most 100 letters (a to z), digits, `_`, `-` and `.`: what `experiment=NAME` can choose"
        raise ConfigError([Mistake("--name", rule, name)])
    file = Path("conf") / "experiment" / f"{name}.yaml"
    if (find_our_conf() / "experiment" / file.name).exists() and not file.exists():
        raise ConfigError([Mistake("--name", "must not be that of a shipped experiment", name, remedy=VERBS[0].usage)])
    folder = report.folder / winner.row.path
    recorded, unresolved = read_config(folder)
    header = format_header(report, winner, name, folder)
    write_experiment(file, header, report.arguments(winner.row), recorded, unresolved, Path.cwd(), trust)
    print(make_printable(f"{file}: {describe_score(report, winner)}"))
    if noise := describe_noise(report, winner):
        print(make_printable(f"within noise of it: {noise}"))
    print(report.command(*(f"--trust={pattern}" for pattern in trust), f"experiment={name}"))
    return 0
