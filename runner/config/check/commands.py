"""Check who gives the command of `on_event`: the command line, or a file that is trusted with it."""

import re
from collections.abc import Sequence

from runner.config.origins import Layers
from runner.config.schema import OnEvent
from runner.core.errors import Mistake

TRUST = "on_event"  # the pattern of `--trust`; no wider one, such as `*`, trusts a command


_FROM_FILES = re.compile(r"\$\{(?!oc\.env:)")  # an interpolation of other keys, which files may set


def is_trusted(trust: Sequence[str]) -> bool:
    """Return whether commands of files are trusted on the command line."""
    return TRUST in trust


def check_command(settings: OnEvent, layers: Layers, trust: Sequence[str]) -> list[Mistake]:
    """Check that a composed config has its command from the command line."""
    path = ("on_event", "command")
    if settings.command is None or is_trusted(trust):
        return []
    given = layers.settings(path)
    where = layers.blame(path)
    if given and layers.is_argument(path) and not _FROM_FILES.search(str(given[-1].value)):
        return []
    rule = "must be given on the command line: what runs a command is never taken from a file alone"
    remedy = f"give it there (`on_event.command=…`), or add `--trust {TRUST}`"
    return [Mistake("on_event.command", rule, settings.command, where, remedy, kind="untrusted")]


def drop_recorded_command(settings: OnEvent, overrides: Sequence[str], trust: Sequence[str]) -> bool:
    """Drop the command of a recorded config unless it is given again or trusted; return whether it did."""
    for text in overrides:
        key, _, value = text.lstrip("+").partition("=")
        if key in ("on_event", "on_event.command") and not _FROM_FILES.search(value):
            return False
    if settings.command is None or is_trusted(trust):
        return False
    settings.command = None
    return True
