"""Snapshot of the project's modules at submission, so that later edits change no waiting job.

Files are read once, into memory. In a process that has `install`ed them, an import takes them from there, under the
names and paths that they have on the disk, also a module that nobody has imported yet.
"""

import hashlib
import os
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from runner.experiment.record import provenance

MOST_ENTRIES = 20_000  # files and folders that are looked at; a data set under the working directory has millions


NO_CODE = {"outputs", "node_modules", "site-packages", "dist-packages", "__pycache__"}


@dataclass
class CodeSnapshot:
    """Module sources by real path; `complete` is False if the scan stopped at MOST_ENTRIES.

    `repository` is its state when that was, of the one that `root` lies in.
    """

    sources: dict[str, str] = field(
        default_factory=dict
    )  # text of one byte a character: any encoding goes through JSON
    stamps: dict[str, list[int]] = field(default_factory=dict)  # when it was last changed (ns), its size
    complete: bool = True
    root: str = ""
    repository: dict[str, Any] | None = None

    def add(self, path: str) -> None:
        """Read a file; skip one that cannot be read."""
        real = os.path.realpath(path)
        if real in self.sources:
            return
        try:
            with Path(real).open("rb") as file:
                stat = os.fstat(file.fileno())
                self.sources[real] = file.read().decode("latin-1")
                self.stamps[real] = [stat.st_mtime_ns, stat.st_size]
        except OSError:
            return


def freeze(root: Path, folders: Iterable[Path]) -> CodeSnapshot:
    """Return a snapshot of the modules below the folders and of the repository state at `root`."""
    with provenance.GitRepository(root) as repository:  # git works while files are read
        frozen = read(folders)
        return replace(frozen, root=str(root), repository=repository.state())


def read(folders: Iterable[Path]) -> CodeSnapshot:
    """Read the modules below the folders, breadth first, and the imported modules that lie there.

    Hidden folders, virtual environments, outputs and what is installed are no code of the project.
    """
    frozen = CodeSnapshot()
    roots = [folder.resolve() for folder in folders]
    waiting, seen = deque(roots), 0
    while waiting and seen < MOST_ENTRIES:
        try:
            with os.scandir(waiting.popleft()) as entries:
                for entry in entries:
                    seen += 1
                    if seen >= MOST_ENTRIES:
                        break
                    if entry.name.endswith(".py"):
                        frozen.add(entry.path)
                    elif entry.name.isidentifier() and entry.name not in NO_CODE and _is_code_folder(entry):
                        waiting.append(Path(entry.path))
        except OSError:
            continue
    frozen.complete = seen < MOST_ENTRIES
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None) or ""
        if path.endswith(".py") and any(Path(path).is_relative_to(root) for root in roots) and not _is_installed(path):
            frozen.add(path)
    return frozen


def _is_code_folder(entry: "os.DirEntry[str]") -> bool:
    return entry.is_dir(follow_symlinks=False) and not Path(entry.path, "pyvenv.cfg").exists()


def _is_installed(path: str) -> bool:
    return any(part in NO_CODE for part in Path(path).parts)


def install(frozen: CodeSnapshot) -> None:
    """Make this process and its forks import these sources instead of the files on disk.

    What it records of the repository is as it was then too.
    """
    provenance.AT_SUBMISSION[Path(frozen.root)] = frozen.repository
    sys.meta_path.insert(0, _SnapshotFinder(frozen))


class _SnapshotFinder:
    """Import finder that takes the source of a file in the snapshot from memory."""

    def __init__(self, frozen: CodeSnapshot) -> None:
        self._frozen = frozen

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None and spec.has_location:
            return self._spec(name, spec.origin)
        last = name.rpartition(".")[2]
        for folder in sys.path if path is None else path:  # a file that is gone by now
            for file in (os.path.join(folder, last, "__init__.py"), os.path.join(folder, f"{last}.py")):  # noqa: PTH118
                if (found := self._spec(name, file)) is not None:
                    return found
        return None

    def _spec(self, name: str, file: str) -> ModuleSpec | None:
        real = os.path.realpath(file)
        if real not in self._frozen.sources:
            return None
        folder = [str(Path(file).parent)] if Path(file).name == "__init__.py" else None
        loader = _SnapshotLoader(name, file, self._frozen, real)
        return spec_from_file_location(name, file, loader=loader, submodule_search_locations=folder)


class _SnapshotLoader(SourceFileLoader):
    def __init__(self, name: str, path: str, frozen: CodeSnapshot, real: str) -> None:
        super().__init__(name, path)
        self._frozen, self._real = frozen, real

    def get_data(self, path: str) -> bytes:
        if path != self.path:  # what was compiled of it before
            return super().get_data(path)
        return self._frozen.sources[self._real].encode("latin-1")

    def path_stats(self, path: str) -> Mapping[str, Any]:
        stat = Path(path).stat()
        if [stat.st_mtime_ns, stat.st_size] != self._frozen.stamps[self._real]:
            raise OSError  # so that nothing compiled is taken for it, and nothing is written down as it
        return super().path_stats(path)


def find_changed_modules(modules: Mapping[str, str], frozen: CodeSnapshot, folders: Sequence[Path] = ()) -> list[str]:
    """Return the modules (name → SHA-256 of the source) whose source differs in `frozen`.

    One that is not there any more is left out, as in the comparison that `resume` makes. Nothing is imported.
    """
    finder = _SnapshotFinder(frozen)
    found = []
    for name, digest in modules.items():
        path: Sequence[str] | None = [*map(str, folders), *sys.path]
        spec = None
        for end in range(1, name.count(".") + 2):
            part = ".".join(name.split(".")[:end])
            spec = finder.find_spec(part, path) or PathFinder.find_spec(part, path)
            path = None if spec is None else spec.submodule_search_locations
            if path is None:
                break
        source = None if spec is None or spec.name != name else frozen.sources.get(os.path.realpath(spec.origin or ""))
        if source is not None and hashlib.sha256(source.encode("latin-1")).hexdigest() != digest:
            found.append(name)
    return found
