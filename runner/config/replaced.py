"""Replacements: which files of the working directory stand in for the runner's own."""

from pathlib import Path
from typing import Any

from runner.config import document
from runner.core import shipped
from runner.core.paths import PACKAGE, find_our_conf

ROOT_CONFIG = Path("conf/config.yaml")


def list_replaced() -> list[str]:
    """List what the project in the working directory replaces of the runner's own, a sentence each."""
    return [*_describe_root_config(), *_describe_modules(), *_describe_runner()]


def _describe_root_config() -> list[str]:
    ours = find_our_conf() / ROOT_CONFIG.name
    if not ROOT_CONFIG.is_file() or ROOT_CONFIG.resolve() == ours.resolve():
        return []
    left_out = sorted(_list_groups(ours) - _list_groups(ROOT_CONFIG))
    rest = f"; it leaves out {', '.join(left_out)}" if left_out else ""
    return [f"{ROOT_CONFIG} of this project replaces the runner's own: it chooses the option of each group{rest}"]


def _list_groups(file: Path) -> set[str]:
    """List the groups of a root config's defaults list."""
    entries: Any = document.load(file).data.get("defaults")
    entries = entries if isinstance(entries, list) else []
    keys = [str(key) for entry in entries if isinstance(entry, dict) for key in entry]
    return {key.removeprefix("override ").lstrip("/") for key in keys}


def _describe_modules() -> list[str]:
    said = []
    for name in shipped.NAMES:
        folder = Path(name)
        if folder.is_dir() and folder.resolve() != (shipped.FOLDER / name).resolve():
            own = [file for file in sorted(folder.glob("[!_]*")) if file.suffix == ".py" or file.is_dir()]
            files = [str(file) for file in own if shipped.find_shipped(f"{name}.{file.stem}") is not None]
            said += [f"{file} of this project replaces the runner's own module of the name" for file in files]
    return said


def _describe_runner() -> list[str]:
    """Describe a `runner` of the working directory, which `python -m` starts in place of ours."""
    for file in (Path("runner.py"), Path("runner/__init__.py")):
        if file.is_file() and file.parent.resolve() != PACKAGE.resolve():
            return [f"{file} of this project is what `python -m runner` starts here; `yexp` starts the runner"]
    return []
