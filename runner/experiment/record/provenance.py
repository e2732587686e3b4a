"""Provenance of a run: collected at its start, compared at a resume (code, versions, machine, data)."""

import contextlib
import hashlib
import importlib.metadata
import operator
import os
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self
from weakref import WeakKeyDictionary

from runner.core.errors import Mistake
from runner.core.paths import PACKAGE
from runner.core.shared_answers import ask_once, is_known

GIT_SECONDS = 5.0  # a huge repository on a slow disk must not hold up the start


DIFF_BYTES = 1 << 20


UNTRACKED_FILES = 200


STATUS = ("status", "--porcelain=v2", "--branch", "-z")


DIFF = ("diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color")


STANDARD_LIBRARY = sysconfig.get_path("stdlib") + "/"


def collect(
    root: Path,
    *,
    command: Sequence[str],
    seed: int,
    data: Any = None,
    plan: Any = None,
    plan_kinds: Any = None,
    device: Any = None,
    processes: int = 1,
    names: Any = None,
) -> dict[str, Any]:
    """Collect the provenance known at the start of a run, as plain data; takes about 10 ms.

    Recorded as given: the `command` line, the `seed`, the fingerprint of the `data`, the `plan` of making batches in
    words and its `plan_kinds`, the `device` (its type and name), the number of `processes` that train together, the
    `names` of classes and input columns.
    `root` is the working directory: its repository and its modules count. Threads are those that torch is set to.
    Nothing that is missing (git, /proc, a GPU) is an error.
    """
    with GitRepository(root) as repository:  # git works while we do the rest
        record = {
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": list(command),
            "directory": str(root),
            "seed": seed,
            "threads": _count_threads(),
            "device": device,
            "processes": processes,
            "data": data,
            "plan": plan,
            "plan_kinds": plan_kinds,
            "names": names,
            "modules": hash_modules(root),
            "versions": _collect_versions(),
            "platform": _describe_platform(),
            "hardware": _describe_hardware(),
        }
        return {**record, "git": repository.state()}


# ---- code


def hash_modules(root: Path) -> dict[str, Any]:
    """Hash the source of each imported project module (SHA-256 by module name), with one `total`.

    The project is what lies under `root` or beside the package `runner`, without what is installed (site-packages, the
    standard library); of an installed runner its own packages count.
    """
    home = PACKAGE.parent
    folders = {f"{spelling}".rstrip("/") + "/" for f in (root, home) for spelling in (f.absolute(), f.resolve())}
    where = tuple(sorted(folders))
    modules = [(name, sys.modules.get(key)) for key, name in _find_project_modules(where)]
    known, hashed = _HASHED.get(where, ([], {}))
    if len(known) == len(modules) and all(map(operator.is_, known, [module for _, module in modules])):
        return hashed
    hashes = {}
    for name, module in modules:
        if module is not None:
            with contextlib.suppress(OSError):
                hashes[name] = _hash_source(module, str(module.__file__))
    files = dict(sorted(hashes.items()))
    total = hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in files.items()).encode()).hexdigest()
    _HASHED[where] = [module for _, module in modules], {"total": total, "files": files}
    return _HASHED[where][1]


_HASHED: dict[tuple[str, ...], tuple[list[Any], dict[str, Any]]] = {}  # by folders: the modules, what was found


_LOOKED_AT: dict[tuple[str, ...], tuple[Any, list[tuple[str, str]]]] = {}  # by folders: the last module, what was found


def _find_project_modules(folders: tuple[str, ...]) -> list[tuple[str, str]]:
    """Find `sys.modules` key and name of each module below the folders that is not installed.

    Modules stand there in the order of their import, and only those since the last call are looked at: a job of a sweep
    shares 2,000 with its parent, and a look copies the pages that they are on (11 of the 75 ms of a job of noop).
    """
    last, found = _LOOKED_AT.get(folders, (None, []))
    new = list_imports_since(last)
    for key in new:
        module = sys.modules.get(key)
        spec = getattr(module, "__spec__", None)
        name = spec.name if spec else key  # `__main__` is `runner.__main__` under `python -m`
        path = getattr(module, "__file__", None) or ""
        if path.startswith(folders) and (_is_ours(name) or not _is_installed(path)):
            found = [*found, (key, name)]
    if new:
        _LOOKED_AT[folders] = sys.modules.get(new[-1]), found
    return found


def list_imports_since(last: Any) -> list[str]:
    """List the keys in `sys.modules` behind the module `last`; all keys if `last` is not there."""
    while True:
        new: list[str] = []
        try:
            for key in reversed(sys.modules):
                if last is not None and sys.modules.get(key) is last:
                    break
                new.append(key)
        except RuntimeError:  # another thread has imported something meanwhile
            continue
        return new[::-1]


def get_last_import() -> Any:
    """Return the last module in `sys.modules`."""
    return sys.modules.get(next(reversed(sys.modules)))


_HASHES: "WeakKeyDictionary[Any, str]" = WeakKeyDictionary()


def _hash_source(module: Any, path: str) -> str:
    """Hash a module's source (SHA-256) once: an edit while the run goes on does not count."""
    if module not in _HASHES:
        loader: Any = getattr(getattr(module, "__spec__", None), "loader", None)  # a sweep's jobs import from memory
        source = loader.get_data(path) if hasattr(loader, "get_data") else Path(path).read_bytes()
        _HASHES[module] = hashlib.sha256(source).hexdigest()
    return _HASHES[module]


# ---- what a resume compares

COMPARED = (
    "modules",
    "versions",
    "threads",
    "device",
    "processes",
    "data",
    "plan",
    "plan_kinds",
)  # recorded anew by an inexact resume


LIBRARIES = ("torch", "cuda", "torchvision", "numpy")


WING = "runner.core.errors"  # a record without it is older than the wings, whose modules have other names
ACCEPT = "accept other numbers with `--inexact`"


# Sources of earlier releases whose modules give the same numbers as those of now, by module: SHA-256.
EQUAL_SOURCES = {
    # It read the same values from scikit-learn's file.
    "datasets.digits": "4da2f3f9082b34bb31ae3dfd5da4f9b7e6508e010678655b554440875fc2209b",
}


def find_changes(before: Mapping[str, Any], now: Mapping[str, Any], *, random_eval: bool = False) -> list[Mistake]:
    """Find differences that may change numbers: modules, libraries, device, threads, data, plan.

    `random_eval` says that evaluation has transforms, so that its plan matters too. What one of the records does not
    know is not compared.
    """
    found = []

    def compare(key: str, was: Any, value: Any, remedy: str = "") -> None:
        if was is not None and value is not None and was != value:
            rule = f"must be as it was for the steps so far ({was})"
            found.append(Mistake(key, rule, value, remedy=f"{remedy}{' or ' * bool(remedy)}{ACCEPT}", kind="record"))

    old, new = before["modules"]["files"], now["modules"]["files"]
    of_other_layout = any(_is_runner(name) for name in old) and WING not in old
    for name in old:
        if (of_other_layout and _is_runner(name)) or old[name] == EQUAL_SOURCES.get(name):
            continue
        if name in new and old[name] != new[name]:
            rule = "must have the source that it had for the steps so far"
            found.append(Mistake(f"module {name}", rule, remedy=f"put it back or {ACCEPT}", kind="record"))
    for name in LIBRARIES:
        compare(f"version of {name}", before["versions"].get(name), now["versions"].get(name))
    compare("device.threads", before["threads"], now["threads"])
    compare("processes", before.get("processes"), now.get("processes"), "start as many (torchrun --nproc-per-node)")
    compare("device.type", before.get("device"), now.get("device"))
    for name, data in (before["data"] or {}).items():
        compare(f"dataset ({name})", _drop_left_out(data), _drop_left_out((now["data"] or {}).get(name)))
    kinds = get_plan_kinds(now)
    for name, kind in get_plan_kinds(before).items():
        if name == "train" or random_eval:
            compare(f"loader (plan of {name})", kind, kinds.get(name, ""), "put `loader` back as it was")
    return found


def _drop_left_out(data: Any) -> Any:
    """Drop the words about what a fingerprint leaves out: they may hold the text of an error."""
    return {name: value for name, value in data.items() if name != "left_out"} if isinstance(data, Mapping) else data


def _is_runner(name: str) -> bool:
    return name.partition(".")[0] == "runner"


def get_plan_kinds(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the kind of each split's plan, see `PlanKind`; empty where it is not known."""
    kinds: dict[str, str] | None = record.get("plan_kinds")
    return _parse_old_plans(record["plan"] or {}) if kinds is None else kinds


def _parse_old_plans(plans: Mapping[str, str]) -> dict[str, str]:
    """Return the kinds of plans that an earlier release recorded as a text only."""
    ends = (";", ",", " on ", " (")
    return {name: min((plan.partition(end)[0] for end in ends), key=len) for name, plan in plans.items()}


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] in ("runner", "models", "datasets")


def _is_installed(path: str) -> bool:
    return "/site-packages/" in path or "/dist-packages/" in path or path.startswith(STANDARD_LIBRARY)


AT_SUBMISSION: dict[Path, dict[str, Any] | None] = {}  # in a job of a sweep, whose modules are those of then too


class GitRepository:
    """State of the git repository around `root`, read by background processes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        asked = () if root in AT_SUBMISSION or is_known(("repository", root)) else (STATUS, DIFF)
        self._processes = [_start_git(root, *arguments) for arguments in asked]
        self._clock = threading.Timer(GIT_SECONDS, self._kill)
        self._clock.daemon = True

    def __enter__(self) -> Self:
        if self._processes:
            self._clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._clock.cancel()
        self._kill()
        for process in filter(None, self._processes):
            process.communicate()

    def _kill(self) -> None:
        for process in filter(None, self._processes):
            process.kill()

    def state(self) -> dict[str, Any] | None:
        """Return commit, branch, dirty flag, untracked files, diff (cut at DIFF_BYTES); None without git."""
        if self._root in AT_SUBMISSION:
            return AT_SUBMISSION[self._root]
        return ask_once(("repository", self._root), self._read_state)

    def _read_state(self) -> dict[str, Any] | None:
        status, failed = _read(self._processes[0])
        if failed:
            return None
        fields = status.split("\0")
        header = dict(field[2:].split(" ", 1) for field in fields if field.startswith("# branch."))
        untracked = [field[2:] for field in fields if field.startswith("? ")]
        diff, diff_failed = _read(self._processes[1])
        return {
            "commit": header.get("branch.oid"),
            "branch": header.get("branch.head"),
            "dirty": any(not field.startswith("# ") for field in fields if field),
            "untracked": untracked[:UNTRACKED_FILES],
            "diff": diff[:DIFF_BYTES],
            "diff_complete": not diff_failed and len(diff) <= DIFF_BYTES,
        }


def _start_git(root: Path, *arguments: str) -> "subprocess.Popen[bytes] | None":
    # Nothing of the repository's own configuration is run, and its index is not written.
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false", "-C", str(root), *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    nothing = subprocess.DEVNULL
    try:
        return subprocess.Popen(  # noqa: S603  the arguments are ours
            command, stdin=nothing, stdout=subprocess.PIPE, stderr=nothing, env=environment
        )
    except OSError:  # no git
        return None


def _read(process: "subprocess.Popen[bytes] | None") -> tuple[str, bool]:
    if process is None or process.stdout is None:
        return "", True
    text = process.stdout.read(DIFF_BYTES + 1)
    if len(text) > DIFF_BYTES:
        process.kill()
        return text.decode(errors="replace"), False
    return text.decode(errors="replace"), process.wait() != 0


# ---- versions and machine


def _collect_versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": sys.version.split()[0]}
    for name in ("runner", "torch", "torchvision", "numpy", "hydra", "omegaconf", "tensorboardX"):
        module = sys.modules.get(name)
        if module is not None:
            versions[name] = getattr(module, "__version__", None)
    if torch := sys.modules.get("torch"):
        versions["cuda"] = torch.version.cuda
    if "tensorboardX" not in versions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions["tensorboardX"] = importlib.metadata.version("tensorboardX")
    return versions


def _count_threads() -> int | None:
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else None


def _describe_platform() -> dict[str, str]:
    system = os.uname()
    kernel = {"system": system.sysname, "release": system.release, "machine": system.machine}
    return {**kernel, "host": socket.gethostname()}


def _describe_hardware() -> dict[str, Any]:
    return {
        "cpu": _read_proc_field("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "cores_available": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _list_gpus(),
        "gpu_driver": _read_proc_field("/proc/driver/nvidia/version", "NVRM version"),
    }


def _list_gpus() -> list[dict[str, Any]]:
    """List names and capabilities of CUDA's GPUs if the run uses CUDA, else names from /proc."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        devices = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
        return [{"name": d.name, "capability": f"{d.major}.{d.minor}", "memory_bytes": d.total_memory} for d in devices]
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return [{"name": _read_proc_field(str(card), "Model")} for card in cards]


def _read_proc_field(path: str, key: str) -> str | None:
    """Return the value of `key` in the first 4 KiB of a /proc file: all of /proc/cpuinfo takes long."""
    try:
        with Path(path).open("rb", buffering=0) as file:
            text = file.read(4096).decode(errors="replace")
    except OSError:
        return None
    found = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(key)]
    return found[0] if found else None
