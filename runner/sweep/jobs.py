"""From a point to a job: its config, who it is, what it takes, and whether it is to run at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runner.config.check.check import Check, resolved
from runner.config.check.imports import user_directories
from runner.config.check.rules.train import produced
from runner.config.identity import job_id, replicate_id, sweep_id
from runner.config.schema import Config
from runner.core.paths import PACKAGE
from runner.sweep import code_snapshot
from runner.sweep.interfaces import Job, Point
from runner.sweep.ledger import Row
from runner.sweep.space.request import Job as Composition
from runner.sweep.space.request import Plan as Composer

Anew = Literal["never", "if_changed", "always"]


@dataclass(frozen=True)
class Asked:
    """A point with its config.

    Attributes:
        point: as its source gave it.
        job: its config before it was checked.
        config: its config, every default filled in.
        id: of the job that it is.
    """

    point: Point
    job: Composition
    config: Config
    id: str


class Plan:
    """What the jobs of one command line are.

    Args:
        sweep: the command line, read.
        argv: the same as it was typed, for the record.
        trust: patterns of names trusted on the command line.
    """

    def __init__(self, sweep: Composer, argv: Sequence[str], trust: tuple[str, ...]) -> None:
        self.sweep, self.argv, self.trust = sweep, list(argv), trust
        self.base, self.settings = Check(sweep.base, trust).config, sweep.settings
        self.shared = [setting.text for setting in sweep.space.fixed]
        named = self.settings.id != "auto"
        self.id = self.settings.id if named else sweep_id(self.identified(self.base), sweep.space.keys)
        self.folder = Path("outputs") / self.base.name / self.id
        self.frozen = code_snapshot.freeze(Path.cwd(), [*user_directories(trust), *_home()])

    @property
    def typical(self) -> Job:
        """What a job takes that sets nothing of its own, to ask whether there is room for one."""
        return Job(id="", folder="", unresolved="", config={}, argv=[], **demand(self.base, self.settings.processes))

    def ask(self, point: Point) -> tuple[Asked, Check]:
        """Compose a point; its check says what is wrong with it."""
        job = self.sweep.job(self.sweep.point(point.overrides))
        checked = Check(job.composed, self.trust)
        return Asked(point, job, checked.config, job_id(self.identified(checked.config))), checked

    def identified(self, config: Config) -> dict[str, Any]:
        """The resolved config, with the number of processes: the batch of all of them follows it."""
        several = {"processes": self.settings.processes} if self.settings.processes > 1 else {}
        return resolved(config) | several

    def row(self, asked: Asked, number: int) -> Row:
        """A new row of the ledger."""
        return Row(
            id=asked.id,
            number=number,
            overrides=list(asked.point.overrides),
            path=f"{number}_{asked.id[:8]}",
            values=dict(asked.job.point.values),
            replicate_of=replicate_id(self.identified(asked.config)),
        )

    def job(self, asked: Asked, row: Row, anew: Anew, judge: str = "") -> Job:
        """What an executor needs to run the job; `judge` is where it asks whether it is pruned."""
        return Job(
            id=row.id,
            folder=str((self.folder / row.path).resolve()),
            unresolved=asked.job.composed.unresolved_yaml,
            config=resolved(asked.config),
            argv=self.argv,
            trust=list(self.trust),
            anew=anew,
            retry=row.status == "failed",
            timeout=self.settings.timeout,
            memory=self.settings.memory,
            judge=judge,
            **demand(asked.config, self.settings.processes),
        )


def demand(config: Config, processes: int) -> dict[str, Any]:
    """What a job takes: `processes`, all of its `cores` and `gpus`, and `gpu` where the config names one."""
    kind, _, index = config.device.type.partition(":")
    on_gpu = kind != "cpu"
    return {
        "processes": processes,
        "cores": config.device.threads * processes,
        "gpus": int(on_gpu) * processes,
        "gpu": int(index) if index else None,
    }


def objective_of(config: Config) -> tuple[str, str]:
    """The metric that the jobs are compared by, and whether `min` or `max` of it is best; without the data."""
    name = config.train.objective or produced(config)[0][0]
    return name, config.train.mode or ("min" if name.endswith("/loss") else "max")


def _home() -> list[Path]:
    """The runner's own folder, where it is a checkout and not installed."""
    home = PACKAGE.parent.resolve()
    return [] if home.name in code_snapshot.NO_CODE else [home]
