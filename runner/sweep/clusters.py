"""Jobs on other machines: through submitit (SLURM, or this machine in SLURM's place) and through Ray.

The ledger and the report are those of any sweep: the controller runs where the command was given, and needs of the
other machines one file system that all of them see.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.config import schema
from runner.config.launcher import GROUP, chosen, import_ray, launcher
from runner.errors import ConfigError, Mistake, RunError
from runner.files import write_text
from runner.sweep.frozen import Frozen
from runner.sweep.ledger import Cause
from runner.sweep.plan import Plan
from runner.sweep.protocols import Event, Executor, Job
from runner.sweep.remote import RUNNING, STOP, Work
from runner.sweep.slurm import Slurm

POLL_SECONDS = 0.1  # between two looks at what has ended
QUEUE = "queue"


def executor(plan: Plan) -> Executor:
    """What `hydra/launcher` chooses.

    Raises:
        ConfigError: a key of it is wrong, or its extra is not installed.
        RunError: Ray does not start.
    """
    settings, name = launcher(plan.sweep.base), chosen(plan.sweep.base)
    if isinstance(settings, schema.RayLauncher):
        return Ray(settings, plan.frozen, plan.typical)
    return (OnSlurm if name == "submitit_slurm" else Here)(settings, plan.frozen)


class Queue:
    """What the executors here have in common (see `protocols.Executor`).

    Args:
        frozen: the project's modules as they were at submission.
        most: how many jobs may run or wait there at a time: a search chooses a point when there is room for it.
    """

    def __init__(self, frozen: Frozen, most: int, owner: int = 0) -> None:
        self._frozen, self._most, self._owner = frozen, most, owner
        self._handles: dict[str, Any] = {}
        self._places: dict[str, Path] = {}
        self._waiting: set[str] = set()  # of which it is not known yet that they run
        self._stopped: set[str] = set()

    def prepare(self) -> None:
        """Nothing: another machine imports for itself."""

    def has_room(self, job: Job) -> bool:
        return len(self._handles) < self._most

    def start(self, job: Job) -> None:
        folder = Path(job.folder)
        place = folder.parent / QUEUE / folder.name  # not in the job's own, which an attempt may put aside
        place.mkdir(parents=True, exist_ok=True)
        (place / STOP).unlink(missing_ok=True)
        self._places[job.id] = place
        self._waiting.add(job.id)
        handle = self._queued(place)
        if handle is None:
            (place / RUNNING).unlink(missing_ok=True)
            path = [entry or str(Path.cwd()) for entry in sys.path]
            modules = self._written_down(place.parent)
            work = Work(json.dumps(dataclasses.asdict(job)), modules, path, str(Path.cwd()), str(place), self._owner)
            handle = self._submit(work, job, place)
        self._handles[job.id] = handle

    def _written_down(self, folder: Path) -> str:
        """The file with the modules; what is in the queue with those of an earlier invocation keeps them."""
        text = json.dumps(dataclasses.asdict(self._frozen))
        file = folder / f"frozen.{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        if not file.exists():
            write_text(file, text)
        return str(file)

    def wait(self, seconds: float) -> Sequence[Event]:
        deadline = time.monotonic() + seconds
        while True:
            events = [event for job in list(self._handles) for event in self._look(job)]
            left = deadline - time.monotonic()
            if events or left <= 0:
                return events
            time.sleep(min(left, POLL_SECONDS))

    def stop(self, job: str) -> None:
        (self._places[job] / STOP).touch()
        self._stopped.add(job)
        with contextlib.suppress(Exception):  # the queue does not answer: it reads the file once it begins
            self._withdraw(self._handles[job], begun=job not in self._waiting)

    def kill(self) -> None:
        for job, handle in self._handles.items():
            (self._places[job] / STOP).touch()
            with contextlib.suppress(Exception):  # it has ended, or the queue does not answer: nothing more can be done
                self._cancel(handle)
        self._handles.clear()

    def close(self) -> None:
        """Leave the queue as it is: nothing of ours runs there any more."""

    def _look(self, job: str) -> list[Event]:
        events = []
        with contextlib.suppress(OSError, ValueError):
            if job in self._waiting:
                place = json.loads((self._places[job] / RUNNING).read_text())
                self._waiting.discard(job)
                events.append(Event("started", job, place["host"], pid=place["pid"]))
        if self._is_done(self._handles[job]):
            outcome = self._outcome(self._handles.pop(job))
            self._waiting.discard(job)
            if job in self._stopped and outcome["exit"] is None:  # as it was asked to: it may not even have begun
                outcome = _told(None)
            events.append(Event("ended", job, exit=outcome["exit"], cause=outcome["cause"], error=outcome["error"]))
        return events

    def _queued(self, _place: Path) -> Any:
        """What an earlier controller has queued, where it outlives it and is there yet."""
        return None

    def _submit(self, work: Work, job: Job, place: Path) -> Any:
        raise NotImplementedError

    def _is_done(self, handle: Any) -> bool:
        raise NotImplementedError

    def _outcome(self, handle: Any) -> Mapping[str, Any]:
        raise NotImplementedError

    def _withdraw(self, handle: Any, *, begun: bool) -> None:
        """Take a job back that waits in the queue; one that has begun saves and ends by itself."""

    def _cancel(self, handle: Any) -> None:
        raise NotImplementedError


def _told(status: int | None, cause: Cause | str = "", error: str = "") -> dict[str, Any]:
    """How a job ended, as `Work` says it."""
    return {"exit": status, "cause": cause, "error": error}


_SHARED = ("timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb", "name", "stderr_to_stdout")


class Submitit(Queue):
    """What jobs through submitit have in common, on whatever `cluster` of submitit's."""

    cluster: str

    def __init__(self, settings: schema.SubmititLauncher, frozen: Frozen, owner: int = 0) -> None:
        super().__init__(frozen, settings.array_parallelism, owner)
        self._settings = settings

    def _executor(self, job: Job, place: Path, **own: Any) -> Any:
        import submitit

        settings = dataclasses.asdict(self._settings)
        del settings["max_num_timeout"], settings["array_parallelism"]
        settings["cpus_per_task"] = settings["cpus_per_task"] or job.cores
        on_cuda = job.config["device"]["type"].startswith("cuda")
        if settings["gpus_per_node"] is None and on_cuda:  # else it takes what is there
            settings["gpus_per_node"] = job.gpus
        named = {name if name in _SHARED else f"slurm_{name}": value for name, value in settings.items()}
        executor = submitit.AutoExecutor(folder=place, cluster=self.cluster, **own)
        executor.update_parameters(**{name: value for name, value in named.items() if value not in (None, {}, [])})
        return executor

    def _begin(self, executor: Any, work: Work) -> Any:
        try:
            return executor.submit(work)
        except Exception as error:
            raise RunError(f"{self.cluster} did not take a job: {str(error).strip()}") from error

    def _answer(self, handle: Any) -> Mapping[str, Any]:
        """What a job left that ended by itself."""
        error = handle.exception()
        if error is None:
            answer: dict[str, Any] = json.loads(handle.result())
            return answer
        cause = "timeout" if "timed-out" in str(error) else "lost"
        return _told(None, cause, f"{str(error).strip().splitlines()[0]}: {handle.paths.stderr} has what it said")


class Here(Submitit):
    """Each job is a process that submitit starts on this machine, in SLURM's place."""

    cluster = "local"

    def __init__(self, settings: schema.SubmititLauncher, frozen: Frozen) -> None:
        super().__init__(settings, frozen, os.getpid())

    def _submit(self, work: Work, job: Job, place: Path) -> Any:
        executor = self._executor(job, place)
        # Ctrl-C reaches all that the terminal sees, but the controller decides what it means.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return self._begin(executor, work)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _is_done(self, handle: Any) -> bool:
        return bool(handle.done())

    def _outcome(self, handle: Any) -> Mapping[str, Any]:
        if handle.paths.result_pickle.exists():
            return self._answer(handle)
        return _told(None, "lost", f"process {handle.job_id} is gone: {handle.paths.stderr} has what it said")

    def _cancel(self, handle: Any) -> None:
        os.kill(int(handle.job_id), signal.SIGKILL)  # what it has started sees that, and ends


class OnSlurm(Submitit):
    """Each job is one of SLURM's. One that is still in the queue when its sweep is started again is found there."""

    cluster = "slurm"

    def __init__(self, settings: schema.SubmititLauncher, frozen: Frozen) -> None:
        if shutil.which("srun") is None:
            rule, where = "needs SLURM, whose `srun` is not found here", f"argument `{GROUP}=submitit_slurm`"
            remedy = f"on this machine alone: `{GROUP}=submitit_local`, or no launcher"
            raise ConfigError([Mistake(GROUP, rule, where=where, remedy=remedy)])
        super().__init__(settings, frozen)
        self._slurm = Slurm()

    def _submit(self, work: Work, job: Job, place: Path) -> Any:
        executor = self._executor(job, place, slurm_max_num_timeout=self._settings.max_num_timeout)
        # Since SLURM 22.05 a step does not inherit them, and has one core.
        cores = self._settings.cpus_per_task or job.cores
        executor.update_parameters(slurm_srun_args=[f"--cpus-per-task={cores}"])
        return self._begin(executor, work)

    def _queued(self, place: Path) -> Any:
        """A job runs once submitit has renamed its work to the job's number, and not before: that is the record."""
        from submitit import SlurmJob

        numbers = {path.name.partition("_")[0] for path in place.glob("*_submitted.pkl*")}
        for number in sorted(numbers, key=int, reverse=True):
            handle: Any = SlurmJob(place, number)
            if not _left_an_answer(handle) and self._slurm.may_run(number):
                return handle
        return None

    def _is_done(self, handle: Any) -> bool:
        others = [other.job_id for other in self._handles.values()]
        return _left_an_answer(handle) or self._slurm.is_over(handle.job_id, others)

    def _outcome(self, handle: Any) -> Mapping[str, Any]:
        if _left_an_answer(handle):
            return self._answer(handle)
        state, cause = self._slurm.ending(handle.job_id)
        return _told(None, cause, f"SLURM job {handle.job_id} ended as {state}: {handle.paths.stderr} has what it said")

    def _withdraw(self, handle: Any, *, begun: bool) -> None:
        del begun  # one that was queued again waits too
        self._slurm.withdraw(handle.job_id)

    def _cancel(self, handle: Any) -> None:
        self._slurm.cancel(handle.job_id)


def _left_an_answer(handle: Any) -> bool:
    # To list the folder makes a network's file system look whether there is something new in it.
    return handle.paths.result_pickle.name in os.listdir(handle.paths.folder)  # noqa: PTH208  names


class Ray(Queue):
    """Each job is a task of Ray: of the cluster at `ray.init.address`, or of a Ray that lasts as long as the sweep."""

    def __init__(self, asked: schema.RayLauncher, frozen: Frozen, typical: Job) -> None:
        self._ray = import_ray()
        self._remote = asked.ray.remote
        settings = {"log_to_driver": False, "address": "local", **asked.ray.init}
        began = datetime.now().astimezone().strftime("session_%Y-%m-%d_%H-%M-%S")
        self._keeper = subprocess.Popen(  # noqa: S603  ours
            [sys.executable, str(Path(__file__).with_name("keeper.py")), str(os.getpid()), began],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self._ray.init(**settings)
        except Exception as error:
            self.close()
            remedy = "" if settings["address"] == "local" else "; is RAY_AUTH_TOKEN its token (docs/clusters.md)?"
            raise RunError(f"Ray did not start: {str(error).strip()}{remedy}") from error
        has = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self._largest = {name: max((node.get(name, 0) for node in has), default=0) for name in ("CPU", "GPU")}
        needs = dict(zip(("CPU", "GPU"), self._needs(typical), strict=True))
        # For how many such jobs there are cores and GPUs; one at least, which Ray then waits with.
        places = [int(sum(node.get(name, 0) for node in has) // need) for name, need in needs.items() if need]
        super().__init__(frozen, max(1, min(places, default=1)))

    def _needs(self, job: Job) -> tuple[float, float]:
        """Cores and GPUs; one that is too large for every machine has the largest, as it would without Ray."""
        cpus, gpus = min(job.cores, self._largest["CPU"]), min(job.gpus, self._largest["GPU"])
        return self._remote.get("num_cpus", cpus), self._remote.get("num_gpus", gpus)

    def _submit(self, work: Work, job: Job, place: Path) -> Any:
        cpus, gpus = self._needs(job)
        # The controller decides what is tried again.
        options = {"max_retries": 0, **self._remote, "num_cpus": cpus, "num_gpus": gpus}
        return self._ray.remote(**options)(_run).remote(*work.arguments)

    def _is_done(self, handle: Any) -> bool:
        return bool(self._ray.wait([handle], timeout=0)[0])

    def _outcome(self, handle: Any) -> Mapping[str, Any]:
        try:
            answer: dict[str, Any] = json.loads(self._ray.get(handle))
        except self._ray.exceptions.OutOfMemoryError as error:
            return _told(None, "memory", str(error).strip().splitlines()[0])
        except self._ray.exceptions.RayError as error:
            return _told(None, "lost", str(error).strip().splitlines()[-1])
        return answer

    def _withdraw(self, handle: Any, *, begun: bool) -> None:
        if not begun:
            self._ray.cancel(handle)

    def _cancel(self, handle: Any) -> None:
        self._ray.cancel(handle, force=True)

    def close(self) -> None:
        """Leave the cluster, or end the Ray that was started here."""
        self._ray.shutdown()
        self._keeper.communicate()


def _run(*arguments: Any) -> str:
    return Work(*arguments)()
