"""Ray executor: each job is a task of a Ray cluster."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.config import launchers
from runner.core.errors import RunError
from runner.sweep.code_snapshot import CodeSnapshot
from runner.sweep.executors.queue_executor import QueueExecutor, make_outcome
from runner.sweep.executors.remote import RemoteJob
from runner.sweep.interfaces import JobSpec
from runner.sweep.launcher_settings import import_ray


class RayExecutor(QueueExecutor):
    """Executor on Ray: the cluster at `ray.init.address`, or a local Ray that lasts as long as the sweep."""

    def __init__(self, asked: launchers.RayLauncher, frozen: CodeSnapshot, typical: JobSpec) -> None:
        self._ray = import_ray()
        self._remote = asked.ray.remote
        settings = {"log_to_driver": False, "address": "local", **asked.ray.init}
        began = datetime.now().astimezone().strftime("session_%Y-%m-%d_%H-%M-%S")
        self._keeper = subprocess.Popen(  # noqa: S603  ours
            [sys.executable, str(Path(__file__).with_name("ray_cleanup.py")), str(os.getpid()), began],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self._ray.init(**settings)
        except Exception as error:
            self.close()
            page = "docs/cookbook/guides/clusters.md"
            remedy = "" if settings["address"] == "local" else f"; is RAY_AUTH_TOKEN its token ({page})?"
            raise RunError(f"Ray did not start: {str(error).strip()}{remedy}") from error
        has = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self._largest = {name: max((node.get(name, 0) for node in has), default=0) for name in ("CPU", "GPU")}
        needs = dict(zip(("CPU", "GPU"), self._needs(typical), strict=True))
        # For how many such jobs there are cores and GPUs; one at least, which Ray then waits with.
        places = [int(sum(node.get(name, 0) for node in has) // need) for name, need in needs.items() if need]
        super().__init__(frozen, max(1, min(places, default=1)))

    def _needs(self, job: JobSpec) -> tuple[float, float]:
        """Return the cores and GPUs of a job, at most those of the largest machine."""
        cpus, gpus = min(job.cores, self._largest["CPU"]), min(job.gpus, self._largest["GPU"])
        return self._remote.get("num_cpus", cpus), self._remote.get("num_gpus", gpus)

    def _submit(self, work: RemoteJob, job: JobSpec, place: Path) -> Any:
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
            return make_outcome(None, "memory", str(error).strip().splitlines()[0])
        except self._ray.exceptions.RayError as error:
            return make_outcome(None, "lost", str(error).strip().splitlines()[-1])
        return answer

    def _withdraw(self, handle: Any, *, begun: bool) -> None:
        if not begun:
            self._ray.cancel(handle)

    def _cancel(self, handle: Any) -> None:
        self._ray.cancel(handle, force=True)

    def close(self) -> None:
        """Leave the cluster, or shut down the Ray that was started here."""
        self._ray.shutdown()
        self._keeper.communicate()


def _run(*arguments: Any) -> str:
    return RemoteJob(*arguments)()
