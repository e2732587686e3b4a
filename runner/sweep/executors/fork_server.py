"""Fork server: a process with every import done, so that a forked job starts in milliseconds.

It is told what to do in JSON lines, and says what has happened in JSON lines. When the controller is gone, however it
went, it kills every job with all of its processes; each job watches for that itself too.
"""

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from runner.core.collection import pause_collection
from runner.experiment.record import provenance
from runner.sweep import code_snapshot
from runner.sweep.executors import memory_limit
from runner.sweep.executors.worker import exit_with_server, run_job, watch_controller

GRACE_SECONDS = 5.0  # between asking a job whose time is up to save, and killing it


TICK_SECONDS = 0.1  # between two looks at memory and clocks, while jobs run


SCAN_SECONDS = 2.0  # between two looks for the processes that jobs have started


LEAST_LEFT = 0.03  # of the memory; with less left the largest job is killed, before the kernel chooses a process


KERNEL_SECONDS = 5.0  # so long after the kernel killed for memory a process that was killed is taken for that one


WITHOUT_TORCH = ("sympy", "omegaconf", "hydra._internal.hydra")  # while the libraries of torch are loaded


THIRD_PARTY = (
    "torch",
    "torch.fx.experimental.symbolic_shapes",  # what the first operator on the meta device imports, 0.3 s
)


PRELOADED = (
    "runner.experiment.preflight.preflight",
    "runner.sweep.executors.examination",
)


OF_JOBS = (  # what no examination needs, imported while the first one runs
    "runner.experiment.run",
    "runner.sweep.executors.attempt",
    "runner.sweep.executors.stack_attempt",
    "tensorboardX",
    "numpy.ma",  # these, 0.1 s, are imported by torch or NumPy where a run first counts operations, saves or logs
    "torch.utils.flop_counter",
    "torch.utils.serialization",
)


OF_STACKS = ("runner.experiment.stack",)  # of a sweep that may have some: the code of other jobs is without it


EXAMINATION = "examination"  # the name of the child that examines jobs


MANY = 8  # so many jobs pay for `memory.join_pages`


# The controller decides what these mean, also where they reach all of its processes (SLURM, `systemctl stop`).
OF_THE_CONTROLLER = tuple(
    getattr(signal, f"SIG{name}") for name in ("INT", "TERM", "HUP", "USR1", "USR2") if hasattr(signal, f"SIG{name}")
)


class LineReader:
    """Reader of JSON lines from a pipe."""

    def __init__(self, handle: int) -> None:
        self.handle, self.ended = handle, False
        self._pieces: list[bytes] = []  # of a line that is not complete: it may have megabytes

    def read(self) -> list[dict[str, Any]]:
        """Wait for data; return the complete lines as JSON objects. Sets `ended` at the end of the pipe."""
        data = os.read(self.handle, 1 << 20)
        self.ended = not data
        self._pieces.append(data)
        if b"\n" not in data:
            return []
        *lines, rest = b"".join(self._pieces).split(b"\n")
        self._pieces = [rest]
        return [json.loads(line) for line in lines]


@dataclass
class Child:
    """Running job: its process, leader of its own process group, its limits and why it was killed."""

    job: str
    pid: int
    said: int  # the end of the pipe in which it leaves what it has to say: lines, and a last message without an end
    timeout: float | None
    memory: float | None
    began: float = field(default_factory=time.monotonic)
    members: list[int] = field(default_factory=list)  # further processes of its group, when last looked
    cause: str = ""
    error: str = ""
    kill_at: float | None = None
    rest: bytes = b""  # of what it has said, after the last whole line

    def read_lines(self) -> list[dict[str, Any]]:
        """Return the lines that have come since the last call."""
        with contextlib.suppress(BlockingIOError):
            self.rest += os.read(self.said, 1 << 16)
        *lines, self.rest = self.rest.split(b"\n")
        with contextlib.suppress(ValueError):  # code of the user has written to a handle that is not its own
            return [json.loads(line) for line in lines]
        return []


def main(libraries: threading.Thread) -> None:
    """Serve the controller over standard input and output until it is gone.

    The thread `libraries` loads those of torch.
    """
    for number in OF_THE_CONTROLLER:
        signal.signal(number, signal.SIG_IGN)
    orders, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)  # what an import prints
    os.close(null)
    lines = LineReader(orders)
    setup: list[dict[str, Any]] = []
    reader = threading.Thread(target=_read_setup, args=(lines, setup))
    with exit_with_controller(orders):
        reader.start()  # the controller need not wait until its order is read
        preload(WITHOUT_TORCH)
        libraries.join()
        preload(THIRD_PARTY)
        reader.join()
        if not setup:
            return
        code_snapshot.install(code_snapshot.CodeSnapshot(**setup.pop(0)["frozen"]))
        preload(PRELOADED)
    try:
        gpus = count_gpus()
    except Exception as error:  # noqa: BLE001  a broken installation, or a `torch.py` of the user
        found = getattr(sys.modules.get("torch"), "__file__", None) or "torch"
        os.write(replies, json.dumps({"broken": f"{found}: {type(error).__name__}: {error}"}).encode() + b"\n")
        return
    provenance.hash_modules(Path.cwd())  # their hashes, as they are now
    server = Server(lines, replies, console=int(sys.argv[2]))
    server.say(ready=True, gpus=gpus)
    for order in setup:
        server.obey(order)
    server.serve()


def count_gpus() -> int:
    """Count the GPUs without CUDA being touched, which a fork would not survive."""
    import torch

    return torch.cuda.device_count() or int(torch.backends.mps.is_available())


def _read_setup(lines: LineReader, setup: list[dict[str, Any]]) -> None:
    """Read orders until there is one, or nobody is left to give any."""
    while not setup and not lines.ended:
        setup += lines.read()


@contextlib.contextmanager
def exit_with_controller(lifeline: int) -> Iterator[None]:
    """End this process as soon as the controller ends, while imports keep it busy."""
    watched, done = os.pipe()
    watch = threading.Thread(target=watch_controller, args=(lifeline, watched), daemon=True)
    watch.start()
    try:
        yield
    finally:
        os.close(done)
        watch.join()  # none of ours runs beside the one that forks
        os.close(watched)


def preload(names: Iterable[str]) -> None:
    """Import modules that jobs will need; a failing import fails again, and is reported, in its job."""
    with pause_collection():
        for name in names:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    gc.freeze()  # a collection in a job does not copy the pages of what is here (7 of 65 ms of a job of noop)


class Server:
    """Parent of the jobs: forks and reaps them, and enforces their time and memory limits."""

    def __init__(self, orders: LineReader, replies: int, console: int) -> None:
        self._orders, self._replies, self._console = orders, replies, console
        self._children: dict[str, Child] = {}
        self._woken, wake = os.pipe()
        for handle in (self._woken, wake):
            os.set_blocking(handle, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._wake = wake
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._kernel_kills, self._kernel_killed_at = memory_limit.count_oom_kills(), -KERNEL_SECONDS
        self._scanned = 0.0
        self._started = 0
        self._has_prepared = False  # for jobs, which need more than their examination

    def serve(self) -> None:
        """Serve until the controller is gone, then kill every job."""
        selector = selectors.DefaultSelector()
        selector.register(self._orders.handle, selectors.EVENT_READ)
        selector.register(self._woken, selectors.EVENT_READ)
        self._selector = selector
        while True:
            for key, _ in selector.select(TICK_SECONDS if self._children else None):
                if key.fd == self._woken:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._woken, 4096)
                    continue
                for order in self._orders.read():
                    self.obey(order)
                if self._orders.ended:
                    self._end()
            for child in list(self._children.values()):
                self._listen(child)
                self._reap(child)
            if self._children:
                self._look_at_clocks()
                self._look_at_memory()

    def say(self, **message: Any) -> None:
        """Send a message to the controller."""
        data = json.dumps(message).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._replies, data) :]
        except BrokenPipeError:
            self._end()

    def obey(self, order: dict[str, Any]) -> None:
        """Execute one order: start a job, stop a job, examine jobs, or import modules."""
        match order:
            case {"start": job, "environment": environment}:
                self._prepare_for_jobs()
                self._start(job, environment)
            case {"stop": job}:
                if job in self._children:
                    os.kill(self._children[job].pid, signal.SIGTERM)  # not its workers, which it ends itself
            case {"examine": jobs, "modules": names}:
                self._examine(jobs)
                self._prepare_for_jobs(names)
            case {"import": names}:
                preload(names)

    def _examine(self, jobs: str) -> None:
        """Examine jobs in a child, which tells the controller itself while the server says nothing."""

        def run(write: int) -> NoReturn:
            from runner.sweep.executors.examination import run_examination

            exit_with_server(self._orders.handle)
            run_examination(jobs, self._replies, write, self._console)

        if (error := self._fork(EXAMINATION, run)) is not None:
            self.say(ended=EXAMINATION, status=None, cause="lost", error=error.strerror)

    def _prepare_for_jobs(self, further: Sequence[str] = ()) -> None:
        """Import once what jobs need and their examination does not."""
        if not self._has_prepared:
            self._has_prepared = True
            preload([*OF_JOBS, *further])
            provenance.hash_modules(Path.cwd())  # their hashes, as they are now

    def _start(self, job: dict[str, Any], environment: dict[str, str]) -> None:
        if self._started == MANY and (left := memory_limit.measure_available()) is not None and left[0] > left[1] // 4:
            memory_limit.join_pages()  # what runs keeps the old ones, so that both are held for a while
        self._started += 1

        def run(write: int) -> NoReturn:
            for mine in (self._replies, self._console):
                os.close(mine)
            run_job(job, environment, write, self._orders.handle)

        error = self._fork(job["id"], run, job["timeout"], job["memory"])
        if error is None:
            self.say(started=job["id"], pid=self._children[job["id"]].pid)
        else:
            refused = f"no process could be started for it: {error.strerror}"
            self.say(ended=job["id"], status=None, cause="lost", error=refused)

    def _fork(
        self,
        name: str,
        run: Callable[[int], NoReturn],
        timeout: float | None = None,
        memory: float | None = None,
    ) -> OSError | None:
        """Fork a child that calls `run` with the pipe for its last message; return why there is none."""
        said, write = os.pipe()
        pid = -1
        signal.pthread_sigmask(signal.SIG_BLOCK, OF_THE_CONTROLLER)  # what comes before the child listens is not lost
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that there are threads: NumPy's BLAS has some, and looks after them
                pid = os.fork()
        except OSError as error:  # as many processes as there may be, or no memory for one
            os.close(said)
            os.close(write)
            return error
        finally:
            if pid != 0:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, OF_THE_CONTROLLER)
        if pid == 0:
            self._release()
            run(write)
        with contextlib.suppress(OSError):  # the child does so too; whoever comes first
            os.setpgid(pid, pid)
        os.close(write)
        os.set_blocking(said, False)
        self._children[name] = Child(name, pid, said, timeout, memory)
        return None

    def _release(self) -> None:
        """Release the server's handles and signal handlers in a child."""
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in {signal.SIGCHLD, *OF_THE_CONTROLLER} - {signal.SIGUSR2}:  # that one is submitit's alone
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, OF_THE_CONTROLLER)
        self._selector.close()
        for mine in (self._woken, self._wake, *(child.said for child in self._children.values())):
            os.close(mine)

    def _listen(self, child: Child) -> None:
        """Pass on what a stack says of its trial."""
        for line in child.read_lines():
            self.say(tried=child.job, **line)

    def _reap(self, child: Child) -> None:
        try:
            dead = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            dead = None
        if dead is None:
            return
        _kill_group(child.pid)  # what it has left behind, while the number of the group is still its own
        _, waited = os.waitpid(child.pid, 0)
        status = os.waitstatus_to_exitcode(waited)
        del self._children[child.job]
        self._listen(child)
        message = _read_last_message(child)
        if status == -signal.SIGKILL and not child.cause and self._kernel_has_killed():
            child.cause, child.error = "memory", "the kernel killed it for want of memory"
        error = child.error or message.get("error", "")
        self.say(ended=child.job, status=status, cause=child.cause, error=error)
        preload(message.get("modules", []))

    def _kernel_has_killed(self) -> bool:
        kills = memory_limit.count_oom_kills()
        if kills > self._kernel_kills:
            self._kernel_kills, self._kernel_killed_at = kills, time.monotonic()
        return time.monotonic() - self._kernel_killed_at < KERNEL_SECONDS

    def _look_at_clocks(self) -> None:
        now = time.monotonic()
        for child in self._children.values():
            if child.kill_at is not None and now >= child.kill_at:
                _kill_group(child.pid)
            elif child.kill_at is None and child.timeout is not None and now - child.began >= child.timeout:
                child.cause, child.error = "timeout", f"it took longer than sweep.timeout, {child.timeout:g} s"
                child.kill_at = now + GRACE_SECONDS
                os.kill(child.pid, signal.SIGTERM)

    def _look_at_memory(self) -> None:
        if time.monotonic() - self._scanned > SCAN_SECONDS:
            groups = memory_limit.list_process_groups()
            for child in self._children.values():
                child.members = [pid for pid in groups.get(child.pid, []) if pid != child.pid]
            self._scanned = time.monotonic()
        self._kernel_has_killed()
        if any(child.cause == "memory" for child in self._children.values()):
            return  # what is being killed gives its memory back first
        held = {child.job: memory_limit.measure_resident(child.pid, child.members) for child in self._children.values()}
        for job, size in held.items():
            limit = self._children[job].memory
            if limit is not None and size > limit * 2**30:
                self._kill_for_memory(job, f"it held {size / 2**30:.3g} GiB, more than sweep.memory, {limit:g}")
        left = memory_limit.measure_available()
        if left is not None and left[0] < LEAST_LEFT * left[1] and held:
            job = max(held, key=lambda name: held[name])
            most = f"{held[job] / 2**30:.3g} GiB"
            said = f"it held the most ({most}) when {left[0] / 2**30:.2g} GiB of {left[1] / 2**30:.3g} were left"
            self._kill_for_memory(job, said)

    def _kill_for_memory(self, job: str, error: str) -> None:
        child = self._children[job]
        child.cause, child.error = "memory", error
        _kill_group(child.pid)

    def _end(self) -> NoReturn:
        for child in self._children.values():
            _kill_group(child.pid)
        os._exit(0)


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _read_last_message(child: Child) -> dict[str, Any]:
    try:
        message: dict[str, Any] = json.loads(child.rest) if child.rest else {}
    except ValueError:  # it was cut short
        message = {}
    os.close(child.said)
    return message
