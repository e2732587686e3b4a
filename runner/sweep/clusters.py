"""Jobs on other machines: through submitit (SLURM, or this machine in SLURM's place) and through Ray.

The ledger and the report are those of any sweep: the controller runs where the command was given, and needs of the
other machines one file system that all of them see.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.config import schema
from runner.config.launcher import GROUP, chosen, import_ray, launcher
from runner.errors import ConfigError, Mistake, RunError
from runner.files import write_json, write_text
from runner.sweep.frozen import Frozen
from runner.sweep.ledger import Cause
from runner.sweep.plan import Plan
from runner.sweep.protocols import Event, Executor, Job
from runner.sweep.remote import RUNNING, STOP, Work

POLL_SECONDS = 0.1  # between two looks at what has ended
QUEUE, FROZEN, QUEUED = "queue", "frozen.json", "queued.json"


def executor(plan: Plan) -> Executor:
    """What `hydra/launcher` chooses.

    Raises:
        ConfigError: a key of it is wrong, or its extra is not installed.
        RunError: Ray does not start.
    """
    settings, name = launcher(plan.sweep.base), chosen(plan.sweep.base)
    if isinstance(settings, schema.RayLauncher):
        return Ray(settings, plan.frozen, plan.typical)
    return Submitit(settings, name.removeprefix("submitit_"), plan.frozen)


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

    def prepare(self) -> None:
        """Nothing: another machine imports for itself."""

    def has_room(self, job: Job) -> bool:
        return len(self._handles) < self._most

    def start(self, job: Job) -> None:
        folder = Path(job.folder)
        place = folder.parent / QUEUE / folder.name  # not in the job's own, which an attempt may put aside
        place.mkdir(parents=True, exist_ok=True)
        for name in (STOP, RUNNING):
            (place / name).unlink(missing_ok=True)
        file = place.parent / FROZEN
        if not self._places:  # the first one: this invocation's modules
            write_text(file, json.dumps(dataclasses.asdict(self._frozen)))
        path = json.dumps([entry or str(Path.cwd()) for entry in sys.path])
        work = Work(json.dumps(dataclasses.asdict(job)), str(file), path, str(place), self._owner)
        self._places[job.id] = place
        self._handles[job.id] = self._submit(work, job, place)
        self._waiting.add(job.id)

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

    def kill(self) -> None:
        for handle in self._handles.values():
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
            events.append(Event("ended", job, exit=outcome["exit"], cause=outcome["cause"], error=outcome["error"]))
        return events

    def _submit(self, work: Work, job: Job, place: Path) -> Any:
        raise NotImplementedError

    def _is_done(self, handle: Any) -> bool:
        raise NotImplementedError

    def _outcome(self, handle: Any) -> Mapping[str, Any]:
        raise NotImplementedError

    def _cancel(self, handle: Any) -> None:
        raise NotImplementedError


# What SLURM says of a job that left no answer. One that it has taken back is continued.
_STATES: dict[str, Cause] = {
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "OUT_OF_MEMORY": "memory",
    "NODE_FAIL": "lost",
    "BOOT_FAIL": "lost",
    "PREEMPTED": "lost",
    "CANCELLED": "killed",
}
_SHARED = ("timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb", "name", "stderr_to_stdout")


class Submitit(Queue):
    """Each job is one of SLURM's, or with `cluster` local a process that submitit starts here.

    A job that is still in the queue when its sweep is started again is found there.
    """

    def __init__(self, settings: schema.SubmititLauncher, cluster: str, frozen: Frozen) -> None:
        if cluster == "slurm" and shutil.which("srun") is None:
            rule, where = "needs SLURM, whose `srun` is not found here", f"argument `{GROUP}=submitit_slurm`"
            remedy = f"on this machine alone: `{GROUP}=submitit_local`, or no launcher"
            raise ConfigError([Mistake(GROUP, rule, where=where, remedy=remedy)])
        super().__init__(frozen, settings.array_parallelism, os.getpid() if cluster == "local" else 0)
        self._settings, self._cluster = settings, cluster

    def _submit(self, work: Work, job: Job, place: Path) -> Any:
        import submitit

        if (earlier := self._queued(place)) is not None:
            return earlier
        settings = dataclasses.asdict(self._settings)
        timeouts, _ = settings.pop("max_num_timeout"), settings.pop("array_parallelism")
        own = {} if self._cluster == "local" else {f"{self._cluster}_max_num_timeout": timeouts}
        executor = submitit.AutoExecutor(folder=place, cluster=self._cluster, **own)
        settings["cpus_per_task"] = settings["cpus_per_task"] or job.cores
        if settings["gpus_per_node"] is None and job.config["device"]["type"].startswith(
            "cuda"
        ):  # else it takes what is there
            settings["gpus_per_node"] = job.gpus
        named = {name if name in _SHARED else f"{self._cluster}_{name}": value for name, value in settings.items()}
        given = {name: value for name, value in named.items() if value not in (None, {}, [])}
        if self._cluster == "local":
            given = {name: value for name, value in given.items() if not name.startswith("local_")}
        executor.update_parameters(**given)
        try:
            handle = executor.submit(work)
        except Exception as error:
            raise RunError(f"{self._cluster} did not take a job: {str(error).strip()}") from error
        write_json(place / QUEUED, {"id": handle.job_id})
        return handle

    def _queued(self, place: Path) -> Any:
        """What an earlier controller has queued, if it is there yet; a process of this machine has ended with it."""
        if self._cluster == "local" or not (place / QUEUED).is_file():
            return None
        from submitit import SlurmJob

        handle: Any = SlurmJob(place, json.loads((place / QUEUED).read_text())["id"])
        return None if handle.done(force_check=True) else handle

    def _is_done(self, handle: Any) -> bool:
        return bool(handle.done())

    def _outcome(self, handle: Any) -> Mapping[str, Any]:
        error = handle.exception()
        if error is None:
            answer: dict[str, Any] = json.loads(handle.result())
            return answer
        state = str(handle.state).partition(" ")[0].rstrip("+")
        cause = "timeout" if "timed-out" in str(error) else _STATES.get(state, "lost")
        said = f"{self._cluster} job {handle.job_id} ended as {state}: {handle.paths.stderr} has what it said"
        return {"exit": None, "cause": cause, "error": said}

    def _cancel(self, handle: Any) -> None:
        handle.cancel()


class Ray(Queue):
    """Each job is a task of Ray: of the cluster at `ray.init.address`, or of a Ray that lasts as long as the sweep."""

    def __init__(self, asked: schema.RayLauncher, frozen: Frozen, typical: Job) -> None:
        self._ray = import_ray()
        self._remote = asked.ray.remote
        settings = {"log_to_driver": False, **asked.ray.init}
        try:
            self._ray.init(**settings)
        except Exception as error:
            raise RunError(f"Ray did not start: {str(error).strip()}") from error
        has = self._ray.cluster_resources()
        self._gpus = has.get("GPU", 0)
        cpus, gpus = self._needs(typical)
        # For how many such jobs there are cores and GPUs; one at least, which Ray then waits with.
        places = [int(there // need) for there, need in ((has.get("CPU", 0), cpus), (self._gpus, gpus)) if need]
        super().__init__(frozen, max(1, min(places, default=1)))

    def _needs(self, job: Job) -> tuple[float, float]:
        gpus = min(job.gpus, self._gpus)  # `device.type: auto` takes one where there is one
        return self._remote.get("num_cpus", job.cores), self._remote.get("num_gpus", gpus)

    def _submit(self, work: Work, job: Job, place: Path) -> Any:
        cpus, gpus = self._needs(job)
        # The controller decides what is tried again.
        options = {"max_retries": 0, **self._remote, "num_cpus": cpus, "num_gpus": gpus}
        return self._ray.remote(**options)(_run).remote(*work.texts)

    def _is_done(self, handle: Any) -> bool:
        return bool(self._ray.wait([handle], timeout=0)[0])

    def _outcome(self, handle: Any) -> Mapping[str, Any]:
        try:
            answer: dict[str, Any] = json.loads(self._ray.get(handle))
        except self._ray.exceptions.RayError as error:
            return {"exit": None, "cause": "lost", "error": str(error).strip().splitlines()[-1]}
        return answer

    def _cancel(self, handle: Any) -> None:
        self._ray.cancel(handle, force=True)

    def close(self) -> None:
        """Leave the cluster, or end the Ray that was started here."""
        self._ray.shutdown()


def _run(*texts: Any) -> str:
    return Work(*texts)()
