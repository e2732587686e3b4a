"""Jobs of a sweep: the config, identity and resources of each point."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from runner.config.check.check import Check, to_resolved_data
from runner.config.check.imports import list_user_directories
from runner.config.check.rules.train import find_direction, find_metric_names
from runner.config.identity import compute_job_id, compute_replicate_id, compute_stack_id, compute_sweep_id
from runner.config.schema import Config
from runner.core.paths import PACKAGE
from runner.sweep import code_snapshot
from runner.sweep.interfaces import JobSpec, Proposal
from runner.sweep.launcher_settings import OURS, get_launcher_name
from runner.sweep.ledger import JobRecord
from runner.sweep.space.request import ComposedJob as Composition
from runner.sweep.space.request import SweepRequest as Composer

Anew = Literal["never", "if_changed", "always"]


@dataclass(frozen=True)
class PlannedJob:
    """Point with its composed config and its job id.

    Attributes:
        point: as its source gave it.
        job: its config before it was checked.
        config: its config, every default filled in.
        id: of the job that it is.
        data: the config as plain data, which nobody changes.
        texts: of the sections of configs, which jobs of a sweep share; see `Composed.format_unresolved`.
    """

    point: Proposal
    job: Composition
    config: Config
    id: str
    data: dict[str, Any]
    texts: dict[str, str] = field(default_factory=dict)

    @cached_property
    def unresolved(self) -> str:
        """The config as written, interpolations in place."""
        return self.job.composed.format_unresolved(self.texts)

    @cached_property
    def stack_id(self) -> str:
        """The hash that jobs of one stack share."""
        return compute_stack_id(self.data)


class SweepPlan:
    """Plan of a sweep: composes points, and makes ledger rows and job specifications.

    Args:
        sweep: the command line, read.
        argv: the same as it was typed, for the record.
        trust: patterns of names trusted on the command line.
    """

    def __init__(self, sweep: Composer, argv: Sequence[str], trust: tuple[str, ...]) -> None:
        self.sweep, self.argv, self.trust = sweep, list(argv), trust
        self.base, self.settings = Check(sweep.base, trust).config, sweep.settings
        self.shared = [setting.text for setting in sweep.space.fixed]
        self.is_queued = get_launcher_name(sweep.base) in OURS  # jobs wait in a queue, on other machines
        named = self.settings.id != "auto"
        shared = self.identified(to_resolved_data(self.base))
        self.id = self.settings.id if named else compute_sweep_id(shared, sweep.space.keys)
        self.folder = Path("outputs") / self.base.name / self.id
        self._texts: dict[str, str] = {}
        self.frozen = code_snapshot.freeze(Path.cwd(), [*list_user_directories(trust), *find_checkout()])

    @property
    def typical(self) -> JobSpec:
        """Job specification with the base config's resources, used to ask whether there is room."""
        return JobSpec(
            id="", folder="", unresolved="", config={}, argv=[], **compute_resources(self.base, self.settings.processes)
        )

    def ask(self, point: Proposal) -> tuple[PlannedJob, Check]:
        """Compose a point; return the planned job and its check."""
        job = self.sweep.job(self.sweep.point(point.overrides))
        checked = Check(job.composed, self.trust)
        data = to_resolved_data(checked.config)
        identity = compute_job_id(self.identified(data))
        return PlannedJob(point, job, checked.config, identity, data, self._texts), checked

    def identified(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return a resolved config plus the number of processes, on which the batch depends."""
        several = {"processes": self.settings.processes} if self.settings.processes > 1 else {}
        return data | several

    @cached_property
    def _replicates(self) -> dict[str, str]:  # by the id of a job: the id without the seed
        return {}

    def compute_replicate(self, asked: PlannedJob) -> str:
        """Return the id of a job without its seed, which replicates share."""
        if asked.id not in self._replicates:
            self._replicates[asked.id] = compute_replicate_id(self.identified(asked.data))
        return self._replicates[asked.id]

    def prepare(self, asked: PlannedJob) -> None:
        """Compute now what a job needs once it starts."""
        _ = self.compute_replicate(asked), asked.unresolved, asked.stack_id

    def row(self, asked: PlannedJob, number: int) -> JobRecord:
        """Make a new row of the ledger."""
        return JobRecord(
            id=asked.id,
            number=number,
            overrides=list(asked.point.overrides),
            path=f"{number}_{asked.id[:8]}",
            values=dict(asked.job.point.values),
            replicate_of=self.compute_replicate(asked),
        )

    def job(self, asked: PlannedJob, row: JobRecord, anew: Anew, judge: str = "") -> JobSpec:
        """Make the job specification for an executor; `judge` is the address of the pruner."""
        return JobSpec(
            id=row.id,
            folder=str((self.folder / row.path).resolve()),
            unresolved=asked.unresolved,
            config=asked.data,
            argv=self.argv,
            trust=list(self.trust),
            anew=anew,
            retry=row.status == "failed",
            timeout=self.settings.timeout,
            memory=self.settings.memory,
            judge=judge,
            **compute_resources(asked.config, self.settings.processes),
        )

    def stack(self, jobs: Sequence[JobSpec], number: int, share: int, *, timed: bool) -> JobSpec:
        """Make the specification of a stack of jobs; `share` stacks run at a time."""
        return replace(
            jobs[0],
            id=f"stack {number}",
            config={},
            unresolved="",
            members=[dict(vars(job)) for job in jobs],
            timed=timed,
            share=share,
        )


def compute_resources(config: Config, processes: int) -> dict[str, Any]:
    """Return the `processes`, total `cores` and `gpus` of a job, and the `gpu` its config names."""
    kind, _, index = config.device.type.partition(":")
    on_gpu = kind != "cpu"
    return {
        "processes": processes,
        "cores": config.device.threads * processes,
        "gpus": int(on_gpu) * processes,
        "gpu": int(index) if index else None,
    }


def find_objective(config: Config) -> tuple[str, str]:
    """Return the metric that jobs are compared by and its mode, `min` or `max`; needs no data."""
    name = config.train.objective or find_metric_names(config)[0][0]
    return name, config.train.mode or find_direction(config, name)


def find_checkout() -> list[Path]:
    """Return the runner's own folder in a list; an installed package gives an empty list."""
    home = PACKAGE.parent.resolve()
    return [] if home.name in code_snapshot.NO_CODE else [home]
