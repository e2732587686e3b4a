"""`python -m runner promote SWEEP [--name NAME] [--job JOB]`: the winner as `conf/experiment/<name>.yaml`."""

import re
from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import split_trust
from runner.config.hydra_loader import our_conf
from runner.config.minimal import write_experiment
from runner.core.errors import ConfigError, Mistake
from runner.core.escape import printable
from runner.sweep.promote import NO_NAMES, _best, _config, _header, _job, _noise, _said
from runner.sweep.report.results import gather

USAGE = "python -m runner promote outputs/<name>/<sweep> [--name NAME] [--job NUMBER] [--trust PATTERN]"


def main(argv: Sequence[str]) -> int:
    """Write the file, and say how to train with it.

    Raises:
        ConfigError: there is no such sweep, no such job, nothing to promote, or the file exists.
    """
    rest, trust = split_trust(argv)
    sweep, name, job = _arguments(rest)
    report = gather(Path(sweep))
    winner = _job(report, job) if job else _best(report)
    name = name or f"{report.settings.get('name') or report.folder.parent.name}_best"
    if not re.fullmatch(r"[A-Za-z0-9_][\w.\-]{,99}", name, re.ASCII) or name in NO_NAMES or name.endswith(".yaml"):
        rule = "must be at most 100 letters (a to z), digits, `_`, `-` and `.`: what `experiment=NAME` can choose"
        raise ConfigError([Mistake("--name", rule, name)])
    file = Path("conf") / "experiment" / f"{name}.yaml"
    if (our_conf() / "experiment" / file.name).exists() and not file.exists():
        raise ConfigError([Mistake("--name", "must not be that of a shipped experiment", name, remedy=USAGE)])
    folder = report.folder / winner.row.path
    recorded, unresolved = _config(folder)
    header = _header(report, winner, name, folder)
    write_experiment(file, header, report.arguments(winner.row), recorded, unresolved, Path.cwd(), trust)
    print(printable(f"{file}: {_said(report, winner)}"))
    if noise := _noise(report, winner):
        print(printable(f"within noise of it: {noise}"))
    print(report.command(*(f"--trust={pattern}" for pattern in trust), f"experiment={name}"))
    return 0


def _arguments(argv: Sequence[str]) -> tuple[str, str, str]:
    given, options, arguments = [], {"--name": "", "--job": ""}, iter(argv)
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option in options:
            options[option] = value if equals else next(arguments, "")
            if not options[option]:
                raise ConfigError([Mistake(option, "needs a value", where=f"argument `{argument}`", remedy=USAGE)])
        elif argument.startswith("-"):
            raise ConfigError([Mistake(argument, "is no option of `promote`", remedy=USAGE)])
        else:
            given.append(argument)
    if len(given) != 1:
        rule = "is missing" if not given else f"must be one folder, but there is `{' '.join(given)}`"
        raise ConfigError([Mistake("SWEEP", rule, remedy=USAGE)])
    return given[0], options["--name"], options["--job"]
