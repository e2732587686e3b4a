"""`python -m runner convert FILE --trust [--out OUT] [--main MODULE]`: a pickled model as a plain file of tensors.

The one place that unpickles, that is, runs whatever code the file asks for: by hand, and in a process of its own.
"""

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.errors import ConfigError, Mistake

USAGE = "python -m runner convert FILE --trust [--out OUT] [--main MODULE]"


def main(argv: Sequence[str]) -> int:
    """Convert a file and verify that the result opens without unpickling; 1 where the file could not be unpickled.

    Raises:
        ConfigError: no such file, no `--trust`, or the output exists already.
    """
    file, out, main_module = understand(argv)
    command = [sys.executable, "-m", "runner.verbs.convert", str(file), str(out), main_module]
    child = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  this module
    if child.returncode:
        last = child.stderr.strip().splitlines()[-1:] or [f"it ended with the status {child.returncode}"]
        print(f"{file} could not be unpickled: {last[0]}", file=sys.stderr)
        if "Can't get attribute" in last[0]:
            print(
                "Run this where the class can be imported; for one of `__main__` add `--main MODULE`.", file=sys.stderr
            )
        return 1
    from runner.weights import Located, find_state, read

    state, _ = find_state(read(Located(out)))
    print(child.stdout, end="")
    print(f"{len(state)} tensors in {out}")
    return 0


def understand(argv: Sequence[str]) -> tuple[Path, Path, str]:
    """File, output and the module for `__main__` of a command line; raises ConfigError as `main`."""
    arguments, options, positional = iter(argv), {"--out": "", "--main": ""}, []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name in options:
            options[name] = value or next(arguments, "")
        elif argument != "--trust":
            positional.append(argument)
    if len(positional) != 1:
        whole = " ".join(positional)
        quoted = f"quote it: `python -m runner convert {shlex.quote(whole)} --trust`"
        raise ConfigError([Mistake("FILE", "must be one file", remedy=quoted if Path(whole).is_file() else USAGE)])
    file = Path(positional[0])
    out = Path(options["--out"]) if options["--out"] else file.with_name(f"{file.stem}.state_dict.pt")
    mistakes = []
    if not file.is_file():
        mistakes.append(Mistake("FILE", "must be a file", str(file)))
    if "--trust" not in argv:
        command = f"python -m runner convert {shlex.quote(str(file))} --trust"
        rule = "must be given: unpickling runs whatever code the file holds"
        mistakes.append(Mistake("--trust", rule, remedy=f"if you trust it: `{command}`"))
    if not out.parent.is_dir():
        mistakes.append(Mistake("--out", "must be in a folder that exists", str(out)))
    if out.exists():
        mistakes.append(Mistake("--out", "must not exist yet", str(out)))
    if mistakes:
        raise ConfigError(mistakes)
    return file, out, options["--main"]


def unpickle(file: Path, out: Path, main_module: str = "") -> None:
    """Load with full pickle, in this process, and save what is plain of it: for the child process only.

    Args:
        file: what to load.
        out: where to save: the state_dict of a module, otherwise the containers with their modules as state_dicts.
        main_module: a module whose names stand in for those of the script that the file was saved by.
    """
    import importlib

    import torch

    from runner.files import write_atomic

    if main_module:
        vars(sys.modules["__main__"]).update(vars(importlib.import_module(main_module)))
    dropped: list[str] = []
    result = plain(torch.load(file, map_location="cpu", weights_only=False), "", dropped)
    write_atomic(out, lambda opened: torch.save(result, opened))
    if dropped:
        print(f"left out, as neither tensor nor plain: {', '.join(dropped[:12])}{', …' if dropped[12:] else ''}")


def plain(value: Any, path: str, dropped: list[str]) -> Any:
    """Tensors, numbers, strings and containers of them; modules become state_dicts, the rest `None` and a note."""
    import numpy as np
    import torch
    from torch import nn

    if isinstance(value, nn.DataParallel | nn.parallel.DistributedDataParallel):
        value = value.module
    if isinstance(value, nn.Module):
        return plain(dict(value.state_dict()), path, dropped)
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray | np.generic):
        return value.item() if value.ndim == 0 else torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, bool | int | float | str | bytes | None):
        return value
    if isinstance(value, Mapping):
        return {
            key: plain(member, f"{path}.{key}".lstrip("."), dropped)
            for key, member in value.items()
            if isinstance(key, str | int)
        }
    if isinstance(value, list | tuple):
        return [plain(member, f"{path}[{i}]", dropped) for i, member in enumerate(value)]
    dropped.append(f"{path or 'the file'} ({type(value).__module__}.{type(value).__qualname__})")
    return None


if __name__ == "__main__":
    unpickle(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
