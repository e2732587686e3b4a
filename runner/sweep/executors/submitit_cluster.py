"""Submitit executors: SLURM, or processes of this machine in its place."""

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.config import launchers
from runner.core.errors import ConfigError, Mistake, RunError
from runner.sweep.code_snapshot import CodeSnapshot
from runner.sweep.executors.queue_executor import QueueExecutor, make_outcome
from runner.sweep.executors.remote import RemoteJob
from runner.sweep.executors.slurm_queue import Slurm
from runner.sweep.interfaces import JobSpec
from runner.sweep.launcher_settings import GROUP

_SHARED = ("timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb", "name", "stderr_to_stdout")


class SubmititExecutor(QueueExecutor):
    """Base executor of submitit jobs; subclasses name the `cluster`."""

    cluster: str

    def __init__(self, settings: launchers.SubmititLauncher, frozen: CodeSnapshot, owner: int = 0) -> None:
        super().__init__(frozen, settings.array_parallelism, owner)
        self._settings = settings

    def _executor(self, job: JobSpec, place: Path, **own: Any) -> Any:
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

    def _begin(self, executor: Any, work: RemoteJob) -> Any:
        try:
            return executor.submit(work)
        except Exception as error:
            raise RunError(f"{self.cluster} did not take a job: {str(error).strip()}") from error

    def _answer(self, handle: Any) -> Mapping[str, Any]:
        """Return the outcome of a job that left a result or an exception."""
        error = handle.exception()
        if error is None:
            answer: dict[str, Any] = json.loads(handle.result())
            return answer
        cause = "timeout" if "timed-out" in str(error) else "lost"
        return make_outcome(
            None, cause, f"{str(error).strip().splitlines()[0]}: {handle.paths.stderr} has what it said"
        )


class SubmititLocalExecutor(SubmititExecutor):
    """Local executor of submitit: each job is a process of this machine, in SLURM's place."""

    cluster = "local"

    def __init__(self, settings: launchers.SubmititLauncher, frozen: CodeSnapshot) -> None:
        super().__init__(settings, frozen, os.getpid())

    def _submit(self, work: RemoteJob, job: JobSpec, place: Path) -> Any:
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
        return make_outcome(None, "lost", f"process {handle.job_id} is gone: {handle.paths.stderr} has what it said")

    def _cancel(self, handle: Any) -> None:
        os.kill(int(handle.job_id), signal.SIGKILL)  # what it has started sees that, and ends


class SlurmExecutor(SubmititExecutor):
    """SLURM executor: each job is a SLURM job, found again if still queued after a restart."""

    cluster = "slurm"

    def __init__(self, settings: launchers.SubmititLauncher, frozen: CodeSnapshot) -> None:
        if shutil.which("srun") is None:
            rule, where = "needs SLURM, whose `srun` is not found here", f"argument `{GROUP}=submitit_slurm`"
            remedy = f"on this machine alone: `{GROUP}=submitit_local`, or no launcher"
            raise ConfigError([Mistake(GROUP, rule, where=where, remedy=remedy, kind="unavailable")])
        super().__init__(settings, frozen)
        self._slurm = Slurm()

    def _submit(self, work: RemoteJob, job: JobSpec, place: Path) -> Any:
        executor = self._executor(job, place, slurm_max_num_timeout=self._settings.max_num_timeout)
        # Since SLURM 22.05 a step does not inherit them, and has one core.
        cores = self._settings.cpus_per_task or job.cores
        executor.update_parameters(slurm_srun_args=[f"--cpus-per-task={cores}"])
        return self._begin(executor, work)

    def _queued(self, place: Path) -> Any:
        """Find a queued job by its number, which submitit puts into the file name before the job runs."""
        from submitit import SlurmJob

        numbers = {path.name.partition("_")[0] for path in place.glob("*_submitted.pkl*")}
        for number in sorted(numbers, key=int, reverse=True):
            handle: Any = SlurmJob(place, number)
            if not _has_result(handle) and self._slurm.may_run(number):
                return handle
        return None

    def _is_done(self, handle: Any) -> bool:
        others = [other.job_id for other in self._handles.values()]
        return _has_result(handle) or self._slurm.is_over(handle.job_id, others)

    def _outcome(self, handle: Any) -> Mapping[str, Any]:
        if _has_result(handle):
            return self._answer(handle)
        state, cause = self._slurm.ending(handle.job_id)
        return make_outcome(
            None, cause, f"SLURM job {handle.job_id} ended as {state}: {handle.paths.stderr} has what it said"
        )

    def _withdraw(self, handle: Any, *, begun: bool) -> None:
        del begun  # one that was queued again waits too
        self._slurm.withdraw(handle.job_id)

    def _cancel(self, handle: Any) -> None:
        self._slurm.cancel(handle.job_id)


def _has_result(handle: Any) -> bool:
    # To list the folder makes a network's file system look whether there is something new in it.
    return handle.paths.result_pickle.name in os.listdir(handle.paths.folder)  # noqa: PTH208  names
