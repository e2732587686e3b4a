"""Optuna search: chooses each point from the results so far, and prunes unpromising jobs.

The study is Optuna's journal in the sweep's folder, with one writer, the controller: a trial is on the disk before its
job begins. What the journal says is never more than the jobs' directories say, so that a kill at any instant loses at
most a question, which is asked again.
"""

import dataclasses
import inspect
import logging
import math
import re
import threading
import warnings
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, check_distribution_compatibility
from optuna.storages.journal import JournalStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from runner.config import schema
from runner.config.check.check import Check
from runner.config.check.imports import import_object
from runner.core import rng
from runner.core.errors import ConfigError, Mistake
from runner.experiment.builders.instantiate import InstantiationError, instantiate
from runner.sweep.interfaces import Proposal
from runner.sweep.jobs import SweepPlan, find_objective
from runner.sweep.launcher_settings import OURS, get_launcher_name
from runner.sweep.ledger import OF_THE_MACHINE, JobRecord
from runner.sweep.pruning import LogPruner, NoPruner, SocketPruner
from runner.sweep.search.distributions import make_dimension
from runner.sweep.search.journal import Journal, find_foreign_pickle
from runner.sweep.space.axes import Space
from runner.sweep.space.request import SweepRequest as CommandLine

JOURNAL = "study.jsonl"


_NAME = "sweep"  # of the study: Hyperband's brackets are drawn from it


_AGAIN = "again"  # marks a trial that holds a later result of another one: its number


_PRUNED = "pruned"


_DIRECTIONS = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}


class _OnceFilter(logging.Filter):
    """Logging filter that passes a warning once, whatever its numbers: Optuna repeats some per trial."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = re.sub(r"\d+", "", record.getMessage())
        new = text not in self._said
        self._said.add(text)
        return new


optuna.logging.set_verbosity(optuna.logging.WARNING)


for handler in logging.getLogger("optuna").handlers:
    handler.addFilter(_OnceFilter())


class OptunaSearch:
    """Source of points that Optuna chooses.

    Args:
        folder: the sweep's, which exists and is locked when the first point is asked for; None for a study in memory.
        space: what is searched.
        settings: `sweep.search`.
        objectives: metric → `min` or `max`; of one metric a job's `objective` is taken.
        seed: of the sampler, where the config gives it none.
        trust: patterns of names trusted on the command line.
        elsewhere: whether jobs run on other machines, which share nothing with this one but files.
    """

    known = False

    def __init__(
        self,
        folder: Path | None,
        space: Space,
        settings: schema.Search,
        objectives: Mapping[str, str],
        *,
        seed: int = 0,
        trust: tuple[str, ...] = (),
        elsewhere: bool = False,
    ) -> None:
        self.total: int | None = settings.trials
        self._folder, self._elsewhere = folder, elsewhere
        self._space, self._settings, self._objectives = space, settings, dict(objectives)
        self._seed, self._trust = seed, trust
        self._dimensions = {dimension.name: dimension for dimension in map(make_dimension, space.axes)}
        self._distributions = {name: dimension.distribution for name, dimension in self._dimensions.items()}
        self._one_sampler: optuna.samplers.BaseSampler | None = None
        self._results: dict[int, tuple[TrialState, list[float] | None]] = {}  # the newest one of each trial
        self._earlier: deque[FrozenTrial] = deque()
        self._batch: deque[optuna.Trial] = deque()  # asked for, and not handed out yet
        self._open: set[int] = set()  # trials that were handed out, and whose job has not ended
        self._asked = 0
        self._lock = threading.RLock()  # jobs ask from threads of their own
        self._running: dict[str, int] = {}  # job → trial
        self._bench = NoPruner()
        self._begun = False

    def begin(self) -> None:
        """Open or create the study; a second call has no effect.

        Raises:
            ConfigError: the study in the folder is of something else.
        """
        if self._begun:
            return
        directions = [_DIRECTIONS[mode] for mode in self._objectives.values()]
        self._journal = Journal(None if self._folder is None else self._folder / JOURNAL)
        self._storage = JournalStorage(self._journal)
        self._study = optuna.create_study(  # one that is there keeps the directions that it has
            storage=self._storage,
            sampler=self._sampler(0),
            pruner=self._pruner(),
            study_name=_NAME,
            directions=directions,
            load_if_exists=True,
        )
        self._study_id = self._storage.get_study_id_from_name(_NAME)
        self._refuse_other(directions)
        self._take_up()
        if self._settings.pruner is not None and self._folder is not None:
            objective = next(iter(self._objectives))
            self._bench = LogPruner(self._stop, objective) if self._elsewhere else SocketPruner(self._stop)
        self._begun = True

    # ---- the source

    def next(self) -> Proposal | None:
        """Return the points of earlier invocations' trials first, so that each finds its job; then new ones.

        A batch is asked for at once, when all jobs of the one before have ended: so its points do not depend on the
        order in which these ended, and a kill leaves all of them in the journal or none.

        Raises:
            ConfigError: the study in the folder is of something else.
        """
        with self._lock:
            self.begin()
            if not self._earlier and not self._batch and not self._is_waiting:
                self._ask()
            if not self._earlier and not self._batch:
                return None
            trial = self._earlier.popleft() if self._earlier else self._batch.popleft()
            self._open.add(trial.number)
            return self._point(trial.number, trial.params)

    def _ask(self) -> None:
        """Ask for the next batch."""
        with self._journal.transaction():
            for _ in range(min(self._settings.batch, self._settings.trials - self._asked)):
                self._study.sampler = self._sampler(self._asked)
                self._batch.append(self._study.ask(self._distributions))
                self._asked += 1

    @property
    def _is_waiting(self) -> bool:
        """Whether jobs of a batch have not ended, whose results the next batch is chosen from."""
        return self._settings.batch > 1 and bool(self._open)

    @property
    def has_more(self) -> bool:
        """Whether more of a batch was asked for; or of what an earlier invocation has left of one."""
        return bool(self._batch) or (self._settings.batch > 1 and bool(self._earlier))

    @property
    def done(self) -> bool:
        """Whether no more points will come."""
        return self._begun and not self._earlier and not self._batch and self._asked >= self._settings.trials

    @property
    def judge(self) -> str:
        """Address where a job asks whether to stop; empty without a pruner."""
        return self._bench.address

    def started(self, point: Proposal, job: JobRecord) -> None:
        """Record that the job of a trial begins or goes on."""
        with self._lock:
            self._running[job.id] = point.tag
        if self._folder is not None:
            self._bench.follow(job.id, self._folder / job.path)

    def reached(self, number: int, count: int, value: float) -> bool:
        """Record the `count`-th objective value of a trial's job; return True to prune the job."""
        with self._lock, self._journal.transaction():
            trial = self._study.trials[number]
            # Its result is known, and it is done again for another reason; or it was said before an interruption.
            if trial.state.is_finished() or count < (trial.last_step or 0):
                return False
            if count in trial.intermediate_values:
                return _PRUNED in trial.user_attrs
            id_ = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
            self._storage.set_trial_intermediate_value(id_, count, value)
            stop = self._study.pruner.prune(self._study, self._storage.get_trial(id_))
            if stop:
                self._storage.set_trial_user_attr(id_, _PRUNED, value=True)
            return stop

    def ended(self, point: Proposal, job: JobRecord) -> None:
        """Tell the study how a job ended, unless it was interrupted or failed by the machine's fault."""
        self._bench.leave(job.id)
        with self._lock:
            self._running.pop(job.id, None)
            self._open.discard(point.tag)
            if job.status in ("completed", "pruned", "failed") and job.cause not in OF_THE_MACHINE:
                with self._journal.transaction():
                    self._tell(point.tag, *self._verdict(job))

    def refused(self, point: Proposal, problem: str) -> None:
        """Record a point with a wrong config as a failed trial."""
        with self._lock:
            self._open.discard(point.tag)
            self._tell(point.tag, TrialState.FAIL, None)

    def close(self) -> None:
        """Close the pruner after the last job."""
        self._bench.close()

    def _stop(self, job: str, count: int, value: float) -> bool:
        number = self._running.get(job)
        return number is not None and self.reached(number, count, value)

    # ---- the study

    def _point(self, number: int, params: Mapping[str, Any]) -> Proposal:
        settings = [s for name, dimension in self._dimensions.items() for s in dimension.settings(params[name])]
        return Proposal(self._space.point(settings).own, number)

    def _verdict(self, job: JobRecord) -> tuple[TrialState, list[float] | None]:
        if job.status == "completed":
            several = len(self._objectives) > 1
            values = [job.metrics.get(name) for name in self._objectives] if several else [job.objective]
            if all(isinstance(value, int | float) and math.isfinite(value) for value in values):
                return TrialState.COMPLETE, [float(value) for value in values if value is not None]
            return TrialState.FAIL, None
        # A diverged job says something about its place, which samplers hear of pruned trials only.
        bad = job.status == "pruned" or (job.cause == "non-finite" and len(self._objectives) == 1)
        return (TrialState.PRUNED if bad else TrialState.FAIL), None

    def _tell(self, number: int, state: TrialState, values: list[float] | None) -> None:
        if number not in self._results:
            self._study.tell(number, values, state)
        elif state == TrialState.COMPLETE and self._results[number] != (state, values):  # a result of another attempt
            trial = self._study.trials[number]
            again = optuna.create_trial(
                values=values,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={_AGAIN: number},
            )
            self._study.add_trial(again)
        else:
            return
        self._results[number] = (state, values)

    def _take_up(self) -> None:
        """Load the trials of earlier invocations, and the newest results of the finished ones."""
        for trial in self._study.trials:
            values = trial.values if trial.state == TrialState.COMPLETE else None
            number = trial.user_attrs.get(_AGAIN, trial.number)
            if trial.state.is_finished():
                self._results[number] = (trial.state, values)
            if number == trial.number:
                self._earlier.append(trial)
        self._asked = len(self._earlier)

    def _refuse_other(self, directions: list[StudyDirection]) -> None:
        """Refuse a study begun with other objectives or other choices of a key, or a foreign pickle."""
        remedy = "another `sweep.id` begins another study"
        if self._study.directions != directions:
            rule = "must be those that the study was begun with"
            raise ConfigError(
                [Mistake("sweep.search.objectives", rule, dict(self._objectives), remedy=remedy, kind="record")]
            )
        mistakes = {}
        for trial in self._study.trials:
            if found := find_foreign_pickle(trial.system_attrs):
                rule = f"holds a pickled `{found}`, which no sampler of Optuna writes"
                raise ConfigError(
                    [Mistake(str(self._journal.file), rule, remedy="it is not from here: delete it", kind="untrusted")]
                )
            for name in trial.distributions.keys() & self._distributions.keys():
                try:
                    check_distribution_compatibility(trial.distributions[name], self._distributions[name])
                except ValueError:
                    rule = "must have the kind of values, and the choices, that the study was begun with"
                    mistakes[name] = Mistake(
                        name, rule, _format_distribution(trial.distributions[name]), remedy=remedy, kind="record"
                    )
        if mistakes:
            raise ConfigError(list(mistakes.values()))

    # ---- its parts

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """Return the sampler for the `number`-th trial that is asked for.

        Optuna's own keep what they know in the study, except where their generator stands: a sampler that is made anew
        for each trial, with a seed of that trial, asks the same after a restart. Others are made once.
        """
        node = self._settings.sampler
        assert node is not None
        kind = import_object(node["_target_"], self._trust)
        takes_seed = "seed" in inspect.signature(kind).parameters
        own = self._seed if node.get("seed") is None else node["seed"]
        keyed = takes_seed and str(kind.__module__).startswith("optuna.")
        if keyed and not issubclass(kind, optuna.samplers.QMCSampler):  # whose points are one sequence of one seed
            seed = rng.derive_key(own, "search", number) % 2**32
            return self._build({**node, "seed": seed})
        if self._one_sampler is None:
            self._one_sampler = self._build({**node, "seed": own} if takes_seed else node)
        return self._one_sampler

    def _build(self, node: Mapping[str, Any]) -> optuna.samplers.BaseSampler:
        with warnings.catch_warnings():
            known = Warning if self._asked else optuna.exceptions.ExperimentalWarning  # one trial has said the others
            warnings.simplefilter("ignore", known)
            sampler: optuna.samplers.BaseSampler = instantiate(node, "sweep.search.sampler", trust=self._trust)
        return sampler

    def _pruner(self) -> optuna.pruners.BasePruner:
        node = self._settings.pruner
        if node is None:
            return optuna.pruners.NopPruner()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            pruner: optuna.pruners.BasePruner = instantiate(node, "sweep.search.pruner", trust=self._trust)
        return pruner


def make_search(plan: SweepPlan) -> OptunaSearch:
    """Make the search that a command line asks for.

    Raises:
        ConfigError: what shows only when sampler and pruner are used.
    """
    if mistakes := rehearse(plan.sweep, plan.trust):
        raise ConfigError(mistakes)
    settings, space = plan.settings.search, plan.sweep.space
    elsewhere = get_launcher_name(plan.sweep.base) in OURS
    objectives = find_objectives(plan.base, settings)
    return OptunaSearch(
        plan.folder, space, settings, objectives, seed=plan.base.seed, trust=plan.trust, elsewhere=elsewhere
    )


def find_objectives(config: schema.Config, settings: schema.Search) -> dict[str, str]:
    """Return the objectives of the search: metric → `min` or `max`."""
    name, mode = find_objective(config)
    return dict(settings.objectives) or {name: mode}


def rehearse(asked: CommandLine, trust: tuple[str, ...] = ()) -> list[Mistake]:
    """Run three trials in memory; return the mistakes that only a sampler or pruner in use shows."""
    settings = dataclasses.replace(asked.settings.search, trials=3, batch=1)
    objectives = find_objectives(Check(asked.base, trust).config, settings)
    key = "sweep.search.sampler"
    try:
        search = OptunaSearch(None, asked.space, settings, objectives, trust=trust)
        for number in range(3):
            point = search.next()
            assert point is not None
            job = JobRecord(
                "", number, [], "", status="completed", objective=0.0, metrics=dict.fromkeys(objectives, 0.0)
            )
            if settings.pruner is not None:
                key = "sweep.search.pruner"
                search.reached(point.tag, 1, 0.0)
                key = "sweep.search.sampler"
            search.ended(point, job)
    except InstantiationError as error:
        mistake = Mistake(error.key, f"is refused by `{error.node['_target_']}`: {error.cause}", kind="refused")
    except Exception as error:  # noqa: BLE001  whatever a sampler says to this space
        said = str(error).splitlines()[0] if str(error) else ""
        mistake = Mistake(key, f"cannot search this space: {type(error).__name__}: {said}", kind="refused")
    else:
        return []
    return asked.base.blame([mistake])


def _format_distribution(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(str(choice).partition("=")[2] for choice in distribution.choices)
    return str(distribution)
