"""Hydra's own flags, answered by Hydra: `--cfg`, `--info`, `--hydra-help`."""

from collections.abc import Sequence

from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra

from runner.config.compose import create_hydra
from runner.core.errors import ConfigError, Mistake
from runner.core.exit_status import EXIT_DONE


def answer(argv: Sequence[str]) -> int:
    """Print Hydra's answer; return the exit status.

    Raises:
        ConfigError: the composition has mistakes, or Hydra's completion is asked for.
    """
    parser = get_args_parser()
    asked = parser.parse_args(list(argv))
    if asked.shell_completion:
        rule = "is Hydra's completion, which does not work for `python -m`"
        remedy = 'eval "$(register-python-argcomplete yexp)", or another line of docs/command_line.md'
        raise ConfigError([Mistake("--shell-completion", rule, remedy=remedy, kind="unavailable")])
    hydra = create_hydra()
    try:
        if asked.hydra_help:
            hydra.hydra_help(config_name="config", args_parser=parser, args=asked)
        elif asked.cfg:
            hydra.show_cfg("config", asked.overrides, cfg_type=asked.cfg, package=asked.package, resolve=asked.resolve)
        elif asked.info:
            hydra.show_info(asked.info, config_name="config", overrides=asked.overrides)
    finally:
        GlobalHydra.instance().clear()
    return EXIT_DONE
