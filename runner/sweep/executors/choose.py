"""Choose the executor of a sweep: local slots, submitit, SLURM or Ray."""

from collections.abc import Sequence

from runner.config import schema
from runner.core.errors import RunError
from runner.sweep.executors.local import Slots
from runner.sweep.executors.ray_cluster import Ray
from runner.sweep.executors.submitit_cluster import Here, OnSlurm
from runner.sweep.interfaces import Event, Executor, Job
from runner.sweep.jobs import Plan
from runner.sweep.launcher import OURS, chosen, launcher


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


def executor_of(plan: Plan) -> Executor:
    """Where its jobs run."""
    if chosen(plan.sweep.base) not in OURS:
        return Slots(plan.settings.slots, plan.frozen)

    return executor(plan)


class Nowhere:
    """An executor for a sweep of which nothing is left to run."""

    def prepare(self) -> None:
        pass

    def has_room(self, job: Job) -> bool:
        raise RunError("what is left to be done has changed while it was looked at: give the same line again")

    def start(self, job: Job) -> None:
        raise AssertionError

    def wait(self, seconds: float) -> Sequence[Event]:
        return []

    def stop(self, job: str) -> None:
        pass

    def kill(self) -> None:
        pass

    def close(self) -> None:
        pass
