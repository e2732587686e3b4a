"""Transactional journal of an Optuna study: a kill leaves no transaction half written."""

import contextlib
import io
import json
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from runner.core import safe_io

# All that Optuna's CMA-ES pickles into a study: its own state, and NumPy's arrays and numbers.
_OF_CMA = {("cmaes._cma", "CMA"), ("cmaes._cmawm", "CMAwM"), ("cmaes._sepcma", "SepCMA")}


_OF_NUMPY = {("numpy", "dtype"), ("numpy", "ndarray")} | {
    (f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")
}


_MORE = "more"  # a key of an operation that is not the last one of its transaction


class Journal(BaseJournalBackend):
    """Optuna journal backend with one writer and atomic transactions, one line per operation.

    Optuna's own file backend reads it too (its dashboard, for instance). Each line but the last one of a transaction
    says that there is more, so that what a kill or a power cut has torn off is known, and dropped when it is opened.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._operations: list[dict[str, Any]] = []
        self._unwritten: list[dict[str, Any]] = []
        self._depth = 0
        if file is not None and file.is_file():
            self._open(file)

    def _open(self, file: Path) -> None:
        content = safe_io.read_bytes(file, safe_io.MAX_LOG_BYTES)
        end = whole = 0
        for line in content.splitlines(keepends=True):
            try:
                operation = safe_io.parse_json(line) if line.endswith(b"\n") else None
            except ValueError:
                operation = None
            if not isinstance(operation, dict):
                break
            self._operations.append(operation)
            end += len(line)
            if not operation.pop(_MORE, False):
                whole, kept = end, len(self._operations)
        if whole < len(content):
            os.truncate(file, whole)
            del self._operations[kept if whole else 0 :]

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Write the operations made inside in one piece at the end, even after an exception."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            self._write()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the operations from a number on."""
        yield from self._operations[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations, which reach the disk when this call or its transaction returns."""
        self._operations += json.loads(json.dumps(logs))
        self._unwritten += logs
        self._write()

    def _write(self) -> None:
        if self._depth or not self._unwritten or self.file is None:
            return
        *before, last = self._unwritten
        self._unwritten = []
        lines = [json.dumps(log) + "\n" for log in [*({**log, _MORE: True} for log in before), last]]
        with self.file.open("ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())


def find_foreign_pickle(attributes: Mapping[str, Any]) -> str:
    """Return the first pickled name in a trial's attributes that CMA-ES does not write; or empty.

    A study may come from a stranger, and unpickling calls whatever a pickle names.
    """
    parts: dict[str, dict[int, str]] = {}
    for name, value in attributes.items():
        if found := re.fullmatch(r"(.*optimizer):(\d+)", name):
            parts.setdefault(found[1], {})[int(found[2])] = str(value)
    for texts in parts.values():
        reader = _JournalReader(io.BytesIO(bytes.fromhex("".join(texts[i] for i in sorted(texts)))))
        try:
            reader.load()
        except Exception as error:  # noqa: BLE001  a pickle may be broken in any way
            return reader.refused or str(error)
    return ""


class _JournalReader(pickle.Unpickler):
    find_foreign_pickle = ""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _OF_CMA | _OF_NUMPY:
            self.refused = f"{module}.{name}"
            raise pickle.UnpicklingError(self.refused)
        return super().find_class(module, name)
