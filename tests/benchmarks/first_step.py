"""Runs a module or a script as `python` would, until the first optimizer step has been made, and notes the instant.

usage: python first_step.py FILE (-m MODULE | SCRIPT) [ARGUMENT ...]
FILE gets `time.monotonic()`, which is the same clock in every process of a machine. Then the process ends.
"""

import importlib.abc
import importlib.machinery
import os
import runpy
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

WATCHED = "torch.optim.optimizer"


class Hook(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Adds the hook when something first imports torch's optimizers: nothing is imported earlier than without it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def find_spec(self, name: str, path: Any, _target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != WATCHED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        module.register_optimizer_step_post_hook(self.note)

    def note(self, *_: Any) -> None:
        self.file.write_text(str(time.monotonic()))
        os._exit(0)


if __name__ == "__main__":
    sys.meta_path.insert(0, Hook(Path(sys.argv[1])))
    if sys.argv[2] == "-m":
        sys.path[0] = ""  # as `python -m` has it
        sys.argv[:3] = []
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:2] = []
        runpy.run_path(sys.argv[0], run_name="__main__")
