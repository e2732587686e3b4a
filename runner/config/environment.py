"""Watch what a config takes from the environment, which may hold secrets.

A config may come from a stranger. What it reads of the environment is written into `config.yaml`, checkpoints and
TensorBoard, and a URL sends it away. So OmegaConf's own resolver is asked which variables each value has read, however
the interpolation is spelt: through another key, `oc.select`, `oc.decode`, or a name that is itself interpolated.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import OmegaConf
from omegaconf.resolvers import oc

from runner.config.origins import Layers, Path_, format_key
from runner.core.errors import Mistake
from runner.core.escape import quote_shell_word

URL = re.compile(r"(^|[^A-Za-z])[A-Za-z][A-Za-z0-9+.-]*://")


SECRET = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|COOKIE|API_?KEY|(^|_)(AUTH|PWD|KEY|DSN)(_|$)(?<!^PWD)", re.IGNORECASE
)


_watching: list[set[str]] = []


@contextmanager
def watch_environment() -> Iterator[set[str]]:
    """Collect the names of the environment variables that interpolations read inside."""
    names: set[str] = set()
    _watching.append(names)
    try:
        yield names
    finally:
        _watching.remove(names)


def _read_variable(key: str, *default: Any) -> str | None:
    """Read an environment variable as OmegaConf's `oc.env` does, and note its name for those that watch."""
    for names in _watching:
        names.add(str(key))
    return oc.env(key, *default)


OmegaConf.register_new_resolver("oc.env", _read_variable, replace=True)


def judge_environment(path: Path_, value: Any, names: set[str], layers: Layers) -> Mistake | None:
    """Return the mistake of a value that takes a secret or makes a URL of the environment, else None.

    What stands on the command line itself is its user's own.
    """
    if not names or layers.is_argument(path):
        return None
    name = min(names, key=lambda one: (SECRET.search(one) is None, one))
    rule = ""
    if SECRET.search(name):
        rule = f"reads {name} of the environment, which looks like a secret and would be written into the run's records"
    elif any(URL.search(text) for text in _find_texts(value)):
        rule = f"is a URL that holds {name} of the environment, which it would send away"
    if not rule:
        return None
    key, origin = format_key(path), layers.settings(path)
    written = origin[-1].value if origin and isinstance(origin[-1].value, str) else f"${{oc.env:{name}}}"
    remedy = "write the value out, or give it on the command line, where it is your own"
    if '"' not in written:
        line = f'{key}="{written}"'
        remedy += f": {quote_shell_word(line)}"
    return Mistake(key, rule, where=layers.blame(path), remedy=remedy, kind="interpolation")


def _find_texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _find_texts(inner)
    elif isinstance(value, str):
        yield value
