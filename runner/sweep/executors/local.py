"""Local executor: one process per job, as many at a time as cores or GPUs allow."""

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import socket
import subprocess
from collections.abc import Iterable, Sequence
from typing import Any

from runner.config.check.check import Check
from runner.core.errors import RunError
from runner.core.exit_status import EXIT_APART, EXIT_DONE
from runner.experiment.examine import Say
from runner.sweep.code_snapshot import CodeSnapshot
from runner.sweep.executors import memory_limit
from runner.sweep.executors.examination import decode_mistakes, encode_jobs
from runner.sweep.executors.fork_server import EXAMINATION, LineReader
from runner.sweep.executors.server_process import start_server
from runner.sweep.executors.worker import list_preloadable
from runner.sweep.interfaces import Event, JobSpec

CLOSE_SECONDS = 10.0  # for the server to end by itself; one that is busy importing takes a second or two


STACK_MODULES = ["runner.sweep.executors.stack_attempt", "runner.experiment.stack", "runner.train.vectorized.allocator"]

MOST_DEATHS = 3  # of the server, one after the other without a job that ended in between


@dataclasses.dataclass
class _JobSlot:
    """Slot of a running job: its number, processes, cores, GPUs and pid."""

    slot: int
    processes: int
    cores: int
    gpus: list[int]
    pid: int | None = None


class LocalExecutor:
    """Executor (see `interfaces.Executor`) over the cores and GPUs of this machine.

    Args:
        slots: how many jobs at a time; `auto`: as many as there are cores for their threads and GPUs for them. A fixed
            number on fewer GPUs shares them.
        frozen: the project's modules as they were at submission.
        cores: of the machine, for these jobs.
        server: a fork server's process that has got no order yet; None starts one.
        modules: that its jobs need besides what all jobs do.
    """

    def __init__(
        self,
        slots: int | str,
        frozen: CodeSnapshot,
        cores: int | None = None,
        server: "subprocess.Popen[bytes] | None" = None,
        modules: Sequence[str] = (),
    ) -> None:
        self._slots, self._frozen, self._modules = slots, frozen, modules
        self._cores = cores or memory_limit.count_cores()
        self._gpus = 0
        self._visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        self._places: dict[str, _JobSlot] = {}
        self._deaths = 0
        self._imports: list[str] = []
        self._begin(server or start_server())

    def _begin(self, server: "subprocess.Popen[bytes]") -> None:
        self._server = server
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._ready = False
        self._replies = LineReader(self._server.stdout.fileno())
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._replies.handle, selectors.EVENT_READ)
        self._tell(frozen=dataclasses.asdict(self._frozen))
        if self._imports:
            self._tell(**{"import": self._imports})

    def prepare(self) -> None:
        self._imports += list_preloadable()
        self._tell(**{"import": self._imports})

    def prepare_stacks(self) -> None:
        """Have each job start with what a stack needs, so that all record the same code (50 ms)."""
        self._imports += STACK_MODULES
        self._tell(**{"import": STACK_MODULES})

    def examine(self, jobs: Sequence[Check], say: Say, meanwhile: Iterable[object] = ()) -> bool:
        """Examine jobs in a process forked from the server; return whether it came to its end.

        While the server gets ready and they are examined, `meanwhile` does a piece of other work at each `next`.
        """
        encoded = encode_jobs(jobs)
        if not encoded:
            return False
        self._tell(examine=encoded, modules=self._modules)
        work, has_work = iter(meanwhile), True
        while True:
            while not self._selector.select(0 if has_work else None):
                has_work = next(work, self) is not self
            for message in self._replies.read():
                match message:
                    case {"mistakes": found}:
                        say(decode_mistakes(found))
                    case {"examined": True}:
                        return True
                    case {"ended": name} if name == EXAMINATION:
                        return False
                    case _:
                        self._heard(message)
            if self._replies.ended:
                was_ready = self._ready
                self._lost()
                if was_ready:
                    return False
                self._wait_until_ready()
                self._tell(examine=encoded, modules=self._modules)

    def has_room(self, job: JobSpec) -> bool:
        if not self._ready:
            self._wait_until_ready()
        if isinstance(self._slots, int):
            taken = sum(place.processes for place in self._places.values())
            return taken + job.processes <= self._slots or not self._places
        taken = sum(place.cores for place in self._places.values())
        fits = taken + job.cores <= self._cores or not self._places  # one that is too large for the machine runs alone
        return fits and len(self._free_gpus(job)) >= self._wanted_gpus(job)

    @property
    def gpus(self) -> int:
        """The number of this machine's GPUs."""
        if not self._ready:
            self._wait_until_ready()
        return self._gpus

    def _wanted_gpus(self, job: JobSpec) -> int:
        return min(job.gpus, self._gpus)

    def _free_gpus(self, job: JobSpec) -> list[int]:
        """Return the GPUs a job may use, least loaded first; only idle ones if `slots` is auto."""
        among = range(self._gpus) if job.gpu is None else [job.gpu]
        load = {gpu: sum(gpu in place.gpus for place in self._places.values()) for gpu in among}
        shared = isinstance(self._slots, int)
        return sorted((gpu for gpu in among if shared or not load[gpu]), key=lambda gpu: (load[gpu], gpu))

    def start(self, job: JobSpec) -> None:
        gpus = self._free_gpus(job)[: self._wanted_gpus(job)]
        taken = {place.slot for place in self._places.values()}
        slot = next(number for number in range(len(taken) + 1) if number not in taken)
        self._places[job.id] = _JobSlot(slot, job.processes, job.cores, gpus)
        environment = {}
        if gpus and job.gpu is None:  # one that the config names is left to it
            names = [self._visible[gpu] if gpu < len(self._visible) else str(gpu) for gpu in gpus]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(names)
        self._tell(start=dataclasses.asdict(job), environment=environment)

    def wait(self, seconds: float) -> Sequence[Event]:
        if not self._selector.select(seconds):
            return []
        messages = self._replies.read()
        events = [event for message in messages for event in self._heard(message)]
        return [*events, *self._lost()] if self._replies.ended else events

    def _heard(self, message: dict[str, Any]) -> list[Event]:
        match message:
            case {"ready": True, "gpus": gpus}:
                self._ready, self._gpus = True, gpus
            case {"ended": name} if name == EXAMINATION:
                pass  # it has said before that it came to its end
            case {"broken": why}:
                raise RunError(f"torch cannot be used: {why}")
            case {"started": job, "pid": pid}:
                place = self._places[job]
                place.pid = pid
                return [Event("started", job, socket.gethostname(), place.slot, pid)]
            case {"tried": job, "as_one": as_one, "why": why, "member": member}:
                return [Event("tried", job, exit=EXIT_DONE if as_one else EXIT_APART, error=why, member=member)]
            case {"ended": job, "status": status, "cause": cause, "error": error}:
                del self._places[job]
                self._deaths = 0
                return [Event("ended", job, exit=status, cause=cause, error=error)]
        return []

    def _lost(self) -> list[Event]:
        """Report the jobs of a dead server as lost; restart the server unless it keeps dying."""
        self._kill_jobs()
        error = "the process that jobs are forked from was killed"
        events = [Event("ended", job, cause="lost", error=error) for job in self._places]
        self._places.clear()
        self.close()
        self._deaths += 1
        self._ready = False
        if self._deaths < MOST_DEATHS:
            self._begin(start_server())
        return events

    def _kill_jobs(self) -> None:
        for place in self._places.values():
            if place.pid is not None:
                with contextlib.suppress(OSError):
                    os.killpg(place.pid, signal.SIGKILL)

    def stop(self, job: str) -> None:
        self._tell(stop=job)

    def kill(self) -> None:
        self.close()
        self._places.clear()

    def dismiss(self) -> None:
        """Let the server end by itself, which takes a moment: nothing is started any more."""
        for stream in (self._server.stdin, self._server.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()
        self._selector.close()
        if not self._places and not self._replies.ended:  # it may be importing, and has no jobs to end
            self._server.kill()

    def close(self) -> None:
        self.dismiss()
        try:
            self._server.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:  # it was stopped (SIGSTOP), or hangs
            self._kill_jobs()
            self._server.kill()
            self._server.wait()

    def _wait_until_ready(self) -> None:
        while not self._ready:
            if self._deaths >= MOST_DEATHS:
                status = self._server.wait()
                raise RunError(f"the process that jobs are forked from ended {MOST_DEATHS} times, with status {status}")
            self._selector.select()
            for message in self._replies.read():
                self._heard(message)
            if self._replies.ended:
                self._lost()

    def _tell(self, **order: Any) -> None:
        stream = self._server.stdin
        assert stream is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone: `wait` finds that out
            stream.write(json.dumps(order).encode() + b"\n")
            stream.flush()
