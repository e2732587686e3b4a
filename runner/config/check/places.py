"""Check the places that a config writes to: folders for data, and below the working directory.

A config may come from a stranger, also a recorded one, so it is asked before anything is built.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from runner.config.check.imports import list_user_directories
from runner.config.schema import Component, Config
from runner.config.suggestions import format_suggestion
from runner.core.archive import IMPORTABLE
from runner.core.errors import Mistake
from runner.core.escape import escape_line, quote_shell_word

OUR_TRACKERS = "runner.log.trackers."
# What a tool obeys that finds it: Python, Hydra, make, a shell, a build, a container.
OBEYED = re.compile(
    r"(GNU)?makefile|.*\.(mk|pth|sh|bash|zsh|fish|bat|cmd|ps1|cfg|toml|ini|desktop|service)|(docker|jenkins|vagrant|just|proc)file"
    r"|(conftest|setup|sitecustomize|usercustomize)(\..*)?|CMakeLists\.txt|requirements.*\.txt",
    re.IGNORECASE,
)


def find_misplaced(config: Config, trust: Sequence[str] = ()) -> Iterator[Mistake]:
    """Find downloads and databases of trackers in places that are not for data.

    Right is a folder below the working directory (or one named on the command line), with no hidden folder on the way.
    """
    for name, node in config.dataset.downloads.items():
        for key in ("to", "unpack"):
            text = None if node is None else getattr(node, key)
            if text is not None:
                yield from _judge_place(f"dataset.downloads.{name}.{key}", text, trust, is_file=key == "to")
    for name, tracker in config.log.to.items():
        if tracker is not None:
            yield from _judge_tracker(name, tracker, trust)


def _judge_tracker(name: str, node: Component, trust: Sequence[str]) -> Iterator[Mistake]:
    """Judge the name of a tracker, which names files of the run, and the database of MLflow's."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", name):
        yield Mistake(f"log.to.{name}", "must be a name of letters, digits, `_` and `-`: it names files of the run")
    yield from _judge_ours(f"log.to.{name}", node, trust)


def _judge_ours(key: str, value: Any, trust: Sequence[str], *, inside: bool = False) -> Iterator[Mistake]:
    """Judge the arguments of our trackers: plain and named, so that a database has a known place."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return
    target = str(value.get("_target_", ""))
    ours = target.startswith(OUR_TRACKERS)
    if inside and target:
        yield Mistake(f"{key}._target_", "must not be there: our trackers take plain values", target)
    if ours and value.get("_args_"):
        yield Mistake(f"{key}._args_", "must not be there: name the arguments of our trackers", remedy="name: value")
    text = value.get("database")
    if isinstance(text, str) and target == f"{OUR_TRACKERS}MLflow":
        if not re.fullmatch(r"[\w./ -]+", text):
            rule = "must be a plain file name; a server is named by the variable MLFLOW_TRACKING_URI"
            yield Mistake(f"{key}.database", rule, remedy="database: mlflow.db")
        else:
            yield from _judge_place(f"{key}.database", text, trust, is_file=True, may_be_first=True)
    for name, member in value.items():
        yield from _judge_ours(f"{key}.{name}", member, trust, inside=inside or ours)


def _judge_place(
    key: str, text: str, trust: Sequence[str], *, is_file: bool, may_be_first: bool = False
) -> Iterator[Mistake]:
    path, homes = Path(os.path.normpath(text)), list_user_directories(trust)
    inner = make_inner(path, homes)
    if inner is None:
        remedy = f"if you trust it: --trust {quote_shell_word(f'{path.parent}/')}"
        yield Mistake(key, "must lie below the working directory", text, remedy=remedy)
    elif (len(inner.parts) < 2 and not may_be_first) or any(part.startswith(".") for part in inner.parts):
        rule, right = "must lie in a folder for data, such as `data`, and not be hidden", f"data/{path.name}"
        yield Mistake(key, rule, text, remedy=format_suggestion(right), suggestion=right)
    elif escape_line(text) != text or (inner.parts[:1] and inner.parts[0].startswith("~")):
        yield Mistake(key, "must have no control character and no `~`, which stays as it is written", text)
    elif rule := _explain_picked_up(inner, is_file=is_file):
        right = f"data/{path.name}"
        yield Mistake(key, rule, text, remedy=format_suggestion(right), suggestion=right)
    elif led := find_led_away(path, homes):
        rule = f"must lie below the working directory, but a link on the way leads to {led}"
        yield Mistake(key, rule, text, remedy=f"if you trust it: --trust {quote_shell_word(f'{led}/')}", kind="file")


def find_outside(key: str, text: str, trust: Sequence[str] = ()) -> Iterator[Mistake]:
    """Find a folder that lies elsewhere, or where a program looks, and would be written to."""
    yield from _judge_place(key, text, trust, is_file=False, may_be_first=True)


def find_run_elsewhere(run: str) -> Mistake | None:
    """Return the mistake of a file's `run` that leads out of the working directory, else None."""
    path, homes = Path(os.path.normpath(run)), [Path.cwd()]
    led = None if make_inner(path, homes) is None else find_led_away(path, homes)
    if led is None and make_inner(path, homes) is not None:
        return None
    rule = "must lie below the working directory where a file says it" + (
        f", but a link on the way leads to {led}" if led else ""
    )
    return Mistake("run", rule, run, remedy=f"say it on the command line: {quote_shell_word(f'run={run}')}")


def make_inner(path: Path, homes: Sequence[Path]) -> Path | None:
    """Return a normalized path relative to the folder that holds it; None where none of the folders does."""
    holding = [home for home in homes if path.is_absolute() and path.is_relative_to(home)]
    inner = path.relative_to(holding[-1]) if holding else path
    return None if inner.is_absolute() or ".." in inner.parts else inner


def find_led_away(path: Path, homes: Sequence[Path]) -> Path | None:
    """Return the folder that a link on the way leads to, if it lies in none of the folders; else None."""
    real = path.resolve()
    return None if any(real.is_relative_to(home.resolve()) for home in homes) else real.parent


def _explain_picked_up(inner: Path, *, is_file: bool) -> str:
    """Explain why a program looks for what to do in this place; empty where none does."""
    if inner.name.endswith(IMPORTABLE):
        return "must be no file that Python could import"
    if is_file and OBEYED.fullmatch(inner.name):
        return "must be no file that a program obeys (Python, make, a shell, a build)"
    if inner.parts and inner.parts[0].lower() in ("conf", "hydra_plugins", "tests", "bin", "scripts"):
        return f"must lie in a folder for data, such as `data`, and not in {inner.parts[0]}, where a program looks"
    ways = [Path(*inner.parts[:count]) for count in range(1, len(inner.parts))]
    if any(way.name in ("site-packages", "dist-packages") or (way / "pyvenv.cfg").exists() for way in ways):
        return "must not lie in a virtual environment"
    first, outside = (
        (inner.parts or ("",))[0],
        [entry for entry in sys.path if entry and Path(entry).resolve() != Path.cwd()],
    )
    if not Path(first).exists() and first.isidentifier() and PathFinder.find_spec(first, outside) is not None:
        return f"must not make a folder {first}, which would be taken for the library of that name"
    return ""
