"""Pruning of running jobs: a job reports each objective value, the search says stop or go on.

On one machine it asks over a socket and waits for the answer, so that it stops at that very step. On others, where the
controller reads along in the job's `metrics.jsonl`, it looks for a file that the controller leaves.
"""

import contextlib
import json
import shutil
import socket
import socketserver
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runner.core import safe_io

BY_FILE = "file"


PRUNE = "prune"  # the file


POLL_SECONDS = 1.0  # between two looks at the logs of jobs elsewhere


ANSWER_SECONDS = 60.0  # after which a job goes on without an answer


# Of the job with this id: whether to stop at its count-th value.
Answer = Callable[[str, int, float], bool]


def connect(address: str, job: str, folder: Path) -> Callable[[int, float], bool] | None:
    """Return the function by which a job asks its pruner (no answer: go on); None without one."""
    if not address:
        return None
    if address == BY_FILE:
        return lambda _count, _value: (folder / PRUNE).exists()

    def ask(count: int, value: float) -> bool:
        with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as line:
            line.settimeout(ANSWER_SECONDS)
            line.connect(address)
            line.sendall(json.dumps([job, count, value]).encode() + b"\n")
            with line.makefile("rb") as answers:
                return bool(json.loads(answers.readline()))
        return False

    return ask


class NoPruner:
    """Null pruner, for a search without one: every method is a no-op."""

    address = ""

    def follow(self, job: str, folder: Path) -> None:
        pass

    def leave(self, job: str) -> None:
        pass

    def close(self) -> None:
        pass


class SocketPruner(NoPruner):
    """Pruner over a Unix socket for jobs of this machine, one thread per question."""

    def __init__(self, answer: Answer) -> None:
        # Of this user alone, and short: the path of a socket has at most 107 bytes.
        self._folder = tempfile.mkdtemp(prefix="runner-", dir="/tmp")
        self.address = f"{self._folder}/judge"
        self._server = _PruneServer(self.address, _PruneRequest)
        self._server.answer = answer
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def close(self) -> None:
        """Shut down the server and remove the socket."""
        self._server.shutdown()
        self._server.server_close()
        shutil.rmtree(self._folder, ignore_errors=True)


class _PruneServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    answer: Answer


class _PruneRequest(socketserver.StreamRequestHandler):
    server: _PruneServer

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            job, count, value = json.loads(self.rfile.readline())
            self.wfile.write(json.dumps(self.server.answer(job, int(count), float(value))).encode() + b"\n")


class LogPruner(NoPruner):
    """Pruner for jobs on other machines: reads their logs and leaves a file for a job to stop."""

    address = BY_FILE

    def __init__(self, answer: Answer, objective: str) -> None:
        self._answer, self._objective = answer, objective
        self._folders: dict[str, Path] = {}
        self._said: dict[str, int] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def follow(self, job: str, folder: Path) -> None:
        """Begin to read the log of a job, and delete an old prune file."""
        (folder / PRUNE).unlink(missing_ok=True)
        self._folders[job] = folder

    def leave(self, job: str) -> None:
        """Cease to read the log of a job."""
        self._folders.pop(job, None)

    def close(self) -> None:
        """End the polling thread."""
        self._closed.set()

    def look(self) -> None:
        """Ask the search about every new value of every job."""
        for job, folder in list(self._folders.items()):
            values = read_values(folder / "metrics.jsonl", self._objective)
            for count in range(self._said.get(job, 0) + 1, len(values) + 1):
                self._said[job] = count
                if self._answer(job, count, values[count - 1]):
                    (folder / PRUNE).touch()
                    break

    def _run(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            self.look()


def read_values(file: Path, name: str) -> list[float]:
    """Read every value of a metric from a `metrics.jsonl`, in order; skip a torn last line."""
    try:
        lines = safe_io.read_bytes(file, safe_io.MAX_LOG_BYTES).splitlines(keepends=True)
    except OSError:
        return []
    values = []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):
            event: Mapping[str, Any] = safe_io.parse_json(line)
            if name in event and line.endswith(b"\n"):
                values.append(float(event[name]))
    return values
