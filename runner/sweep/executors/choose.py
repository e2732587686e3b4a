"""Choose the executor of a sweep: local slots, submitit, SLURM or Ray."""

import subprocess
from collections.abc import Sequence

from runner.config import launchers
from runner.core.errors import RunError
from runner.sweep.executors.fork_server import OF_STACKS
from runner.sweep.executors.local import LocalExecutor
from runner.sweep.executors.ray_cluster import RayExecutor
from runner.sweep.executors.submitit_cluster import SlurmExecutor, SubmititLocalExecutor
from runner.sweep.interfaces import Event, Executor, JobSpec
from runner.sweep.jobs import SweepPlan
from runner.sweep.launcher_settings import OURS, get_launcher_name, read_launcher
from runner.sweep.stacks import StackPlan

_SUBMITIT = {"submitit_slurm": SlurmExecutor, "submitit_local": SubmititLocalExecutor}


def make_launcher_executor(plan: SweepPlan) -> Executor:
    """Make the executor that `hydra/launcher` names.

    Raises:
        ConfigError: a key of it is wrong, or its extra is not installed.
        RunError: Ray does not start.
    """
    settings, name = read_launcher(plan.sweep.base), get_launcher_name(plan.sweep.base)
    if isinstance(settings, launchers.RayLauncher):
        return RayExecutor(settings, plan.frozen, plan.typical)
    return _SUBMITIT[name](settings, plan.frozen)


def make_executor(plan: SweepPlan, server: "subprocess.Popen[bytes] | None" = None) -> Executor:
    """Make the executor of a plan: local slots, unless `hydra/launcher` names one in `OURS`.

    Args:
        plan: of the sweep.
        server: a fork server's process for local slots that waits for its first order, if there is one.
    """
    if get_launcher_name(plan.sweep.base) not in OURS:
        modules = () if StackPlan(plan.settings).explain_none() else OF_STACKS
        return LocalExecutor(plan.settings.slots, plan.frozen, server=server, modules=modules)

    return make_launcher_executor(plan)


class NoExecutor:
    """Executor of a sweep with nothing left to run: `has_room` raises RunError."""

    def prepare(self) -> None:
        pass

    def has_room(self, job: JobSpec) -> bool:
        raise RunError("what is left to be done has changed while it was looked at: give the same line again")

    def start(self, job: JobSpec) -> None:
        raise AssertionError

    def wait(self, seconds: float) -> Sequence[Event]:
        return []

    def stop(self, job: str) -> None:
        pass

    def kill(self) -> None:
        pass

    def close(self) -> None:
        pass
