"""Creation of run directories, each unique to one run."""

import contextlib
import os
from datetime import datetime
from pathlib import Path

from runner.core.errors import ConfigError, Mistake
from runner.core.files import sync_folder


def make_run_dir(root: Path, name: str) -> Path:
    """Create and return `<root>/<name>/<date>_<time>_<id>`, a folder shared with no other process.

    Raises:
        ConfigError: this system is Windows.
    """
    if not hasattr(os, "pread"):
        rule = "can only be made on Linux and macOS: a run's files are written at places, which Windows cannot"
        raise ConfigError([Mistake("run", rule, remedy="on Windows use WSL 2, where everything works as on Linux")])
    parent = root / name
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        now = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
        folder = parent / f"{now}_{os.urandom(3).hex()}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            sync_folder(parent)
            return folder
