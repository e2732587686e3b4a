"""Schema of `hydra.launcher`: the settings of SLURM and Ray, under the keys of Hydra's own launchers.

Plain Python, like the schema; `runner.sweep.launcher_settings` parses it.
"""

from dataclasses import dataclass
from typing import Any

from runner.config.schema import make_field


@dataclass
class SubmititLauncher:
    """Keys of `hydra.launcher` for `hydra/launcher=submitit_slurm` and `submitit_local`.

    A job is one task on one node. What is null is left to the queue, cores and GPUs to what the job itself asks for.
    """

    timeout_min: int = make_field(
        60, at_least=1
    )  # of the queue; a job that has not ended by then saves and is queued again
    cpus_per_task: int | None = make_field(None, at_least=1)
    gpus_per_node: int | None = make_field(None, at_least=0)
    mem_gb: float | None = make_field(None, above=0)
    name: str = "runner"
    stderr_to_stdout: bool = False
    array_parallelism: int = make_field(
        16, at_least=1
    )  # jobs in the queue at a time; a search chooses one when one ends
    partition: str | None = None
    qos: str | None = None
    comment: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gres: str | None = None
    account: str | None = None
    cpus_per_gpu: int | None = make_field(None, at_least=1)
    gpus_per_task: int | None = make_field(None, at_least=1)
    mem_per_gpu: str | None = None
    mem_per_cpu: str | None = None
    signal_delay_s: int = make_field(120, at_least=1)  # between the signal to save and the end of its time
    max_num_timeout: int = make_field(100, at_least=0)  # how often it is queued again
    additional_parameters: dict[str, Any] = make_field({})  # of sbatch
    setup: list[str] = make_field([])  # lines of shell before the job: `module load …`


@dataclass
class RayOptions:
    init: dict[str, Any] = make_field(
        {}
    )  # arguments of ray.init; `address: auto` or `ray://…` names a cluster that runs
    remote: dict[str, Any] = make_field(
        {}
    )  # options of each task; num_cpus and num_gpus are those that the job asks for


@dataclass
class RayLauncher:
    """Keys of `hydra.launcher` for `hydra/launcher=ray`."""

    ray: RayOptions = make_field(RayOptions)
