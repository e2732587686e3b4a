"""Plan of a comparison's jobs: a mixture and a seed become a config, a row of the ledger and a job."""

import hashlib
import json
import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from runner.config import schema
from runner.config.check.check import Check, to_resolved_data
from runner.config.check.imports import list_user_directories
from runner.config.composed import Composed
from runner.config.identity import compute_job_id
from runner.config.origins import Layers
from runner.experiment.record.recorded_run import RecordedRun
from runner.sweep import code_snapshot
from runner.sweep.blame.measured import RunRequest
from runner.sweep.blame.search import BlameSearch
from runner.sweep.blame.settings import DifferingSetting, mix_configs
from runner.sweep.blame.side import BlamedSide
from runner.sweep.interfaces import Proposal
from runner.sweep.jobs import PlannedJob, SweepPlan, find_checkout
from runner.sweep.ledger import JobRecord
from runner.sweep.space.axes import Point
from runner.sweep.space.request import ComposedJob


class BlamePlan(SweepPlan):
    """Plan whose points are mixtures of two configs.

    Args:
        sides: A and B.
        settings: in which they differ.
        slots: how many jobs at a time.
        argv: the command line, for the record.
        trust: patterns of names trusted on the command line.
    """

    def __init__(
        self,
        sides: tuple[BlamedSide, BlamedSide],
        settings: Sequence[DifferingSetting],
        slots: int | str,
        argv: Sequence[str],
        trust: tuple[str, ...],
    ) -> None:
        self._a, self._b = sides[0].data, sides[1].data
        self.differing = list(settings)
        self.argv, self.trust = ["blame", *argv], trust
        self.base = sides[0].config
        self.is_queued = False
        self.settings = schema.Sweep(vectorize="off", slots=slots)  # type: ignore[arg-type]  # a number or `auto`
        self.shared: list[str] = []
        self.is_queued = False
        identity = [compute_job_id(self._a), compute_job_id(self._b), *(setting.key for setting in settings)]
        self.id = f"blame_{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:10]}"
        self.folder = Path("outputs") / self.base.name / self.id
        self.frozen = code_snapshot.freeze(Path.cwd(), [*list_user_directories(trust), *find_checkout()])

    def make_proposal(self, request: RunRequest) -> Proposal:
        """Make the proposal of a run; its words, which are no overrides, say what is taken from B."""
        keys = [setting.key for setting in self.differing]
        others = [key for index, key in enumerate(keys) if index not in request.mixture]
        taken = [key for index, key in enumerate(keys) if index in request.mixture]
        if not taken or not others:
            words = "B" if taken else "A"
        else:
            words = f"A + {' + '.join(taken)}" if len(taken) <= len(others) else f"B - {' - '.join(others)}"
        return Proposal((words, f"seed={self.base.seed + request.replicate}"), request)

    def ask(self, point: Proposal) -> tuple[PlannedJob, Check]:
        """Mix the config of a point; return the planned job and its check."""
        request: RunRequest = point.tag
        chosen = [self.differing[index] for index in sorted(request.mixture)]
        data = mix_configs(self._a, chosen, self._b) | {
            "seed": self.base.seed + request.replicate,
            "sweep": {},
            "run": None,
        }
        data["log"] = data["log"] | {"tensorboard": False, "progress": False, "model_table": False}
        data["on_event"] = {}
        values = {setting.key: setting.format_value(setting.b) for setting in chosen}
        composed = Composed(OmegaConf.create(), OmegaConf.create(), {}, [], Layers([], "the mixture", Path.cwd()))
        composed.__dict__["_resolution"] = (data, [], [])  # `${…}` in what was resolved is text
        checked = Check(composed, self.trust)
        resolved = to_resolved_data(checked.config)
        composed.unresolved = OmegaConf.create(resolved)
        job = ComposedJob(Point(overrides=point.overrides, own=point.overrides, values=values, places={}), composed)
        return PlannedJob(point, job, checked.config, compute_job_id(resolved), resolved), checked


class BlameSource:
    """Source of points that a search asks for; ended jobs are its measurements.

    Args:
        search: not begun.
        plan: makes a point of a request.
        metric: `<split>/<name>`.
        diverged: value that stands for a run whose numbers became NaN or infinite.
    """

    known, judge, has_more = False, "", False

    def __init__(self, search: BlameSearch, plan: BlamePlan, metric: str, diverged: float) -> None:
        self.total: int | None = None
        self.problems: list[str] = []
        self.jobs: list[JobRecord] = []
        self.diverged = 0
        self._search, self._plan, self._metric, self._value_of_nan = search, plan, metric, diverged
        self._asked = search.find()
        self._waiting: deque[RunRequest] = deque()
        self._open: set[RunRequest] = set()
        self._is_over = False
        self._advance()

    def _advance(self) -> None:
        """Go on with the search once nothing that it asked for is open."""
        while not self._waiting and not self._open and not self._is_over:
            try:
                requests = next(self._asked)
            except StopIteration:
                self._is_over = True
                return
            self._waiting.extend(requests)

    def next(self) -> Proposal | None:
        if not self._waiting:
            return None
        request = self._waiting.popleft()
        self._open.add(request)
        return self._plan.make_proposal(request)

    @property
    def done(self) -> bool:
        return self._is_over

    def started(self, point: Proposal, job: JobRecord) -> None:
        pass

    def ended(self, point: Proposal, job: JobRecord) -> None:
        if job.status == "interrupted" or point.tag not in self._open:
            return  # the same line goes on
        if job.id not in {known.id for known in self.jobs}:
            self.jobs.append(job)
        value = self._read_value(job)
        if value is None and job.status == "failed":
            self.problems.append(f"job {job.number} ({', '.join(job.overrides)}) failed ({job.cause}): {job.error}")
        self._search.measured.add(point.tag, value)
        self._close(point.tag)

    def refused(self, point: Proposal, problem: str) -> None:
        self.problems.append(f"{', '.join(point.overrides[:-1])} cannot be mixed: {problem.splitlines()[0]}")
        self._search.refuse(point.tag)
        self._close(point.tag)

    def _close(self, request: RunRequest) -> None:
        self._open.discard(request)
        self._advance()

    def _read_value(self, job: JobRecord) -> float | None:
        if job.status == "failed" and job.cause == "non-finite":
            self.diverged += 1
            return self._value_of_nan
        if job.status not in ("completed", "pruned"):
            return None
        result = RecordedRun(self._plan.folder / job.path).read_result()
        for part in ("metrics", "train"):
            values = result.get(part)
            if isinstance(values, dict) and self._metric in values:
                value = float(values[self._metric])
                self.diverged += not math.isfinite(value)
                return value if math.isfinite(value) else self._value_of_nan
        return None

    def close(self) -> None:
        self._asked.close()
