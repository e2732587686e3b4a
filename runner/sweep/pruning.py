"""How a running job learns that it is pruned: it asks after each value of its objective, and the search answers.

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

BY_FILE = "file"


PRUNE = "prune"  # the file


POLL_SECONDS = 1.0  # between two looks at the logs of jobs elsewhere


ANSWER_SECONDS = 60.0  # after which a job goes on without an answer


# Of the job with this id: whether to stop at its count-th value.
Answer = Callable[[str, int, float], bool]


def judge_at(address: str, job: str, folder: Path) -> Callable[[int, float], bool] | None:
    """What a job asks, in its process; None where there is nobody to ask. No answer means: go on."""
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


class Nobody:
    """Answers nothing, for a search without a pruner."""

    address = ""

    def follow(self, job: str, folder: Path) -> None:
        pass

    def leave(self, job: str) -> None:
        pass

    def close(self) -> None:
        pass


class Bench(Nobody):
    """Answers jobs of this machine over a socket, each question in a thread of its own."""

    def __init__(self, answer: Answer) -> None:
        # Of this user alone, and short: the path of a socket has at most 107 bytes.
        self._folder = tempfile.mkdtemp(prefix="runner-", dir="/tmp")
        self.address = f"{self._folder}/judge"
        self._server = _Server(self.address, _Question)
        self._server.answer = answer
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def close(self) -> None:
        """Nobody asks any more."""
        self._server.shutdown()
        self._server.server_close()
        shutil.rmtree(self._folder, ignore_errors=True)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    answer: Answer


class _Question(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            job, count, value = json.loads(self.rfile.readline())
            self.wfile.write(json.dumps(self.server.answer(job, int(count), float(value))).encode() + b"\n")


class Reader(Nobody):
    """Reads what jobs on other machines log, and leaves a file for one that is to stop."""

    address = BY_FILE

    def __init__(self, answer: Answer, objective: str) -> None:
        self._answer, self._objective = answer, objective
        self._folders: dict[str, Path] = {}
        self._said: dict[str, int] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def follow(self, job: str, folder: Path) -> None:
        """A job begins, or goes on."""
        (folder / PRUNE).unlink(missing_ok=True)
        self._folders[job] = folder

    def leave(self, job: str) -> None:
        """It has ended."""
        self._folders.pop(job, None)

    def close(self) -> None:
        """No job runs any more."""
        self._closed.set()

    def look(self) -> None:
        """Ask about every value that is new."""
        for job, folder in list(self._folders.items()):
            values = logged(folder / "metrics.jsonl", self._objective)
            for count in range(self._said.get(job, 0) + 1, len(values) + 1):
                self._said[job] = count
                if self._answer(job, count, values[count - 1]):
                    (folder / PRUNE).touch()
                    break

    def _run(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            self.look()


def logged(file: Path, name: str) -> list[float]:
    """Every value of a metric in a `metrics.jsonl`, in order; a torn end is left out."""
    try:
        lines = file.read_bytes().splitlines(keepends=True)
    except OSError:
        return []
    values = []
    for line in lines:
        with contextlib.suppress(ValueError):
            event: Mapping[str, Any] = json.loads(line)
            if name in event and line.endswith(b"\n"):
                values.append(float(event[name]))
    return values
