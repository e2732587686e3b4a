"""Unpickle a file in its own process and save its tensors: for `convert --trust` only."""

import pickle
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from runner.core.errors import ConfigError, Mistake, RunError

# `torch.load` takes a module for `pickle_module`: this one is Python's but for its `Unpickler`.
load, UnpicklingError = pickle.load, pickle.UnpicklingError


@dataclass(frozen=True)
class Conversion:
    """File of tensors that was written; `str()` tells what it holds."""

    file: Path
    count: int  # tensors
    notes: str  # told by the process that unpickled
    remedy: str  # how to load from it, where that is not plain

    def as_json(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        return {"file": str(self.file), "tensors": self.count, "notes": self.notes, "remedy": self.remedy}

    def __str__(self) -> str:
        return f"{self.count} tensors in {self.file}{f'; to load from it: {self.remedy}' if self.remedy else ''}"


def convert(file: Path, out: Path | None = None, main_module: str = "", *, trusted: bool) -> Conversion:
    """Convert a pickled file and verify that the new one opens without unpickling.

    Args:
        file: what `unpickle` reads.
        out: the file to write; `<file>.state_dict.pt` beside it unless given.
        main_module: a module whose names stand in for those of the script that pickled the model.
        trusted: whether the caller trusts the file: unpickling runs whatever code it holds.

    Raises:
        ConfigError: there is no such file, it is not trusted, or the output exists already.
        RunError: it cannot be unpickled.
    """
    out = out or file.with_name(f"{file.stem}.state_dict.pt")
    if mistakes := _check_conversion(file, out, trusted=trusted):
        raise ConfigError(mistakes)
    command = [sys.executable, "-m", __name__, str(file), str(out), main_module]
    child = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  this module
    if child.returncode:
        last = child.stderr.strip().splitlines()[-1:] or [f"it ended with the status {child.returncode}"]
        raise RunError(f"{file} could not be unpickled: {last[0]}")
    from runner.model.pretrained.contents import find_state
    from runner.model.pretrained.files import read
    from runner.model.pretrained.locate import LocatedWeights

    raw = read(LocatedWeights(out))
    try:
        state, _ = find_state(raw)
    except ConfigError as error:  # several, or none by itself: whoever loads it has to say which
        first = error.mistakes[0]
        return Conversion(out, count_tensors(raw), child.stdout, first.remedy or first.rule)
    return Conversion(out, len(state), child.stdout, "")


def _check_conversion(file: Path, out: Path, *, trusted: bool) -> list[Mistake]:
    mistakes = []
    if not file.is_file():
        mistakes.append(Mistake("FILE", "must be a file", str(file), kind="file"))
    if not trusted:
        again = f"python -m runner convert {shlex.quote(str(file))} --trust"
        rule = "must be given: unpickling runs whatever code the file holds"
        mistakes.append(Mistake("--trust", rule, remedy=f"if you trust it: `{again}`", kind="missing"))
    if not out.parent.is_dir():
        mistakes.append(Mistake("--out", "must be in a folder that exists", str(out), kind="file"))
    if out.exists():
        mistakes.append(Mistake("--out", "must not exist yet", str(out), kind="file"))
    return mistakes


def count_tensors(value: Any) -> int:
    """Count the tensors in plain data."""
    import torch

    if isinstance(value, Mapping | list):
        return sum(count_tensors(member) for member in (value.values() if isinstance(value, Mapping) else value))
    return int(isinstance(value, torch.Tensor))


def unpickle(file: Path, out: Path, main_module: str = "") -> None:
    """Load with full pickle in this process and save the plain part: for the child process only.

    Args:
        file: a file of `torch.save`, a plain pickle (these also under gzip, bzip2 or xz), or an .npz or .npy of NumPy.
        out: where to save: the state_dict of a module, otherwise the containers with their modules as state_dicts.
        main_module: a module whose names stand in for those of the script that the file was saved by.
    """
    import importlib

    import torch

    from runner.core.files import write_atomic

    if main_module:
        vars(sys.modules["__main__"]).update(vars(importlib.import_module(main_module)))
    AbsentObject.names.clear()
    dropped: list[str] = []
    result = to_plain(load_anything(file), "", dropped)
    write_atomic(out, lambda opened: torch.save(result, opened))
    if dropped:
        print(f"left out, as neither tensor nor plain: {', '.join(dropped[:12])}{', …' if dropped[12:] else ''}")
    if AbsentObject.names:
        names = sorted(AbsentObject.names)
        print(f"not to be imported here, and stood in for: {', '.join(names[:12])}{', …' if names[12:] else ''}")
        if any(name.startswith("__main__.") for name in names):
            print("Where more of it is wanted: for classes of `__main__` add `--main MODULE`.")


def load_anything(file: Path) -> Any:
    """Load a file of torch, pickle or NumPy; objects of unimportable classes become `AbsentObject`."""
    import bz2
    import gzip
    import lzma

    import numpy as np
    import torch

    from runner.model.pretrained.files import TORCH_BEFORE_1_6

    with file.open("rb") as raw:
        head = raw.read(6)
    openers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    opener = next((opener for magic, opener in openers.items() if head.startswith(magic)), open)
    with opener(file, "rb") as opened:
        head = opened.read(512)
        opened.seek(0)
        if head.startswith(b"\x93NUMPY") or (head.startswith(b"PK") and _is_npz(opened)):
            arrays = np.load(opened, allow_pickle=True)
            return dict(arrays) if isinstance(arrays, Mapping) else arrays
        if head[:1] == b"\x80" and not head.startswith(TORCH_BEFORE_1_6):
            return Unpickler(opened, encoding="latin1").load()  # as files of Python 2 need it
        return torch.load(opened, map_location="cpu", weights_only=False, pickle_module=sys.modules[__name__])


def _is_npz(opened: Any) -> bool:
    import zipfile

    names = zipfile.ZipFile(opened).namelist()
    opened.seek(0)
    return bool(names) and all(name.endswith(".npy") for name in names)


class AbsentObject:
    """Placeholder for an object of a class that cannot be imported; it keeps the pickled content."""

    names: set[str] = set()  # noqa: RUF012  of all such classes, on purpose

    def __new__(cls, *_args: Any, **_settings: Any) -> Self:
        """Accept any arguments."""
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_settings: Any) -> None:
        self.items: dict[Any, Any] = {}

    def __setstate__(self, state: Any) -> None:
        """Keep the attributes; slots come as the second of two."""
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, Mapping):
                vars(self).update({str(name): value for name, value in part.items()})

    def __setitem__(self, name: Any, value: Any) -> None:
        vars(self).setdefault("items", {})[name] = value

    def append(self, value: Any) -> None:
        """Append as a list does."""
        items = vars(self).setdefault("items", {})
        items[len(items)] = value

    def extend(self, values: Sequence[Any]) -> None:
        """Extend as a list does."""
        for value in values:
            self.append(value)

    add = append  # of a set

    def __call__(self, *_args: Any, **_settings: Any) -> "AbsentObject":
        """Return the placeholder itself: a call of an absent function is absent too."""
        return self

    def __hash__(self) -> int:
        return id(self)


class Unpickler(pickle.Unpickler):
    """Unpickler that substitutes placeholders for classes it cannot import."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the class or function, or a placeholder class."""
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            AbsentObject.names.add(f"{module}.{name}")
            return type(name.rpartition(".")[2] or "Absent", (AbsentObject,), {"__module__": module})


def to_plain(value: Any, path: str, dropped: list[str], above: tuple[int, ...] = ()) -> Any:
    """Convert to tensors, numbers, strings and containers; modules to state_dicts, the rest to None."""
    import numpy as np
    import torch

    if value is None or isinstance(value, bool):
        return value
    kinds: tuple[Any, ...] = (int, float, str, bytes)
    for kind in kinds:  # of an enumeration or another subclass, its plain value
        if isinstance(value, kind) and not isinstance(value, np.generic):
            return kind.__new__(kind, value)
    if isinstance(value, torch.Tensor):
        return value.detach().as_subclass(torch.Tensor).clone()
    taken = _from_numpy(value) if isinstance(value, np.ndarray | np.generic) else None
    if taken is None and id(value) not in above:  # else a container that holds itself
        taken = _to_plain_container(value, path, dropped, (*above, id(value)))
    if taken is None:
        own = value if isinstance(value, type) else type(value)
        dropped.append(f"{path or 'the file'} ({own.__module__}.{own.__qualname__})")
    return taken


def _to_plain_container(value: Any, path: str, dropped: list[str], above: tuple[int, ...]) -> Any:
    """Convert a mapping, list, module or object with tensors to plain data; None without tensors."""
    from torch import nn

    if isinstance(value, list | tuple):
        return [to_plain(member, f"{path}[{i}]", dropped, above) for i, member in enumerate(value)]
    if isinstance(value, Mapping):
        kept: dict[Any, Any] = {}
        for key, member in value.items():
            if isinstance(key, str | int):
                name = str.__str__(key) if isinstance(key, str) else int(key)
                kept[name] = to_plain(member, f"{path}.{key}".lstrip("."), dropped, above)
            else:
                dropped.append(f"{path or 'the file'}[{key!r:.40}] (its key is no text)")
        return kept
    if isinstance(value, nn.DataParallel | nn.parallel.DistributedDataParallel):
        value = value.module
    if isinstance(value, nn.Module):
        return to_plain(_read_state(value), path, dropped, above)
    inside = getattr(value, "__dict__", {})
    if parts := _collect_parts(value, ""):
        return to_plain(parts, path, dropped, above)
    said: list[str] = []
    attributes = to_plain({str(name): inside[name] for name in inside if inside[name] is not None}, path, said, above)
    if not count_tensors(attributes):
        return None
    dropped += said
    return attributes


def _read_state(module: Any) -> dict[str, Any]:
    """Return the module's state_dict; if its own code fails, the parameters and buffers torch keeps."""
    try:
        return dict(module.state_dict())
    except Exception:  # noqa: BLE001  a user's class may raise anything
        return _collect_parts(module, "")


def _collect_parts(value: Any, prefix: str) -> dict[str, Any]:
    """Collect a pickled module's parameters and buffers by name, without any code of its class."""
    import torch

    inside = getattr(value, "__dict__", {})
    if not isinstance(inside.get("_modules"), Mapping):
        return {}
    hidden = inside.get("_non_persistent_buffers_set", ())
    own = {**(inside.get("_parameters") or {}), **(inside.get("_buffers") or {})}
    found = {
        prefix + name: tensor for name, tensor in own.items() if isinstance(tensor, torch.Tensor) and name not in hidden
    }
    for name, child in (inside.get("_modules") or {}).items():
        if isinstance(child, AbsentObject | torch.nn.Module):
            found |= _collect_parts(child, f"{prefix}{name}.")
    return found


def _from_numpy(value: Any) -> Any:
    """Convert an array to a tensor and a scalar to a number; None for types that torch lacks."""
    import numpy as np
    import torch

    kinds: dict[str, Any] = {"b": bool, "i": int, "u": int, "f": float, "c": complex, "U": str, "S": bytes}
    if value.ndim == 0:
        kind = kinds.get(value.dtype.kind)
        return None if kind is None else kind(value)
    try:
        return torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
    except (TypeError, ValueError):
        return None


if __name__ == "__main__":
    unpickle(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
