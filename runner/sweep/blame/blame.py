"""Blame for the gap between two configs: compare them, run mixtures as a sweep, and conclude."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.config.check.rules.train import find_metric_names
from runner.config.suggestions import find_nearest, format_suggestion
from runner.core.errors import ConfigError, Mistake
from runner.core.exit_status import EXIT_DONE, EXIT_FAILED
from runner.core.files import sync_folder
from runner.sweep.blame.measured import Effect
from runner.sweep.blame.plan import BlamePlan, BlameSource
from runner.sweep.blame.search import BlameSearch, Culprit, Findings
from runner.sweep.blame.settings import DifferingSetting, find_settings
from runner.sweep.blame.side import ComparedSide, load_side
from runner.sweep.console import SweepConsole, SweepProgress
from runner.sweep.controller import Controller, SweepStop, catch_stop_signals
from runner.sweep.executors.local import LocalExecutor
from runner.sweep.interfaces import Executor
from runner.sweep.jobs import find_objective
from runner.sweep.ledger import JobRecord
from runner.sweep.multirun import open_ledger

LEAST_JOBS = 6  # A and B with replicates, before anything can be looked for


DIVERGED = {"max": 0.0, "min": 1000.0}  # what stands for a metric that became NaN: worse than any that trains


@dataclass(frozen=True)
class BlameRequest:
    """Question of blame: two configs, the metric of their gap, and what short runs may cost.

    Attributes:
        a: word that names the first, and `b` the second.
        metric: `<split>/<name>`; empty for A's objective.
        jobs: runs at most, replicates of A and B among them.
        duration: of each run; empty for that of the configs.
        slots: jobs at a time.
        overrides: of both sides.
        argv: the command line, for the record.
        trust: patterns of trusted names.
    """

    a: str
    b: str
    metric: str = ""
    jobs: int = 20
    duration: str = ""
    slots: int | str = "auto"
    overrides: Sequence[str] = ()
    argv: Sequence[str] = ()
    trust: tuple[str, ...] = ()


@dataclass
class BlameReport:
    """Answer: the culprits, what is within noise, what was not tried, and the runs that were made."""

    words: tuple[str, str]
    metric: str
    settings: list[DifferingSetting]
    findings: Findings
    folder: Path
    budget: int
    means: tuple[float | None, float | None] = (None, None)
    noise: float | None = None
    diverged: int = 0
    jobs: list[JobRecord] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    status: int = EXIT_DONE


def blame(
    request: BlameRequest,
    make_board: Callable[[SweepProgress], SweepConsole],
    make_executor: Callable[[BlamePlan], Executor] | None = None,
) -> BlameReport:
    """Answer a question of blame by short runs; the same question again goes on where it stood.

    Args:
        request: the question.
        make_board: makes the console of the runs.
        make_executor: makes what runs them; local slots unless given.

    Raises:
        ConfigError: a side, the metric or the budget is wrong, or the two sides do not differ.
        RunError: the folder cannot be written.
    """
    stop = SweepStop()
    with catch_stop_signals(stop):
        sides, settings = _compare_sides(request)
        metric, mode = _choose_metric(request, sides)
        plan = BlamePlan(sides, settings, request.slots, request.argv, request.trust)
        search = BlameSearch(len(settings), request.jobs)
        source = BlameSource(search, plan, metric, DIVERGED[mode])
        with ExitStack() as stack:
            executor = (make_executor or _make_local_executor)(plan)
            stack.callback(executor.close)
            plan.folder.mkdir(parents=True, exist_ok=True)
            sync_folder(plan.folder.parent)
            ledger, rows = open_ledger(plan, stack, create=True)
            assert ledger is not None
            executor.prepare()
            ledger.set(
                id=plan.id,
                name=plan.base.name,
                created=ledger.settings().get("created") or datetime.now().astimezone().isoformat(timespec="seconds"),
                command=["python", "-m", "runner", *plan.argv],
                base=[],
                swept=[setting.key for setting in settings],
                objective=metric,
                mode=mode,
                objectives={},
                searched=True,
            )
            board = make_board(SweepProgress([], None, metric, mode))
            if rows:
                board.say(f"{len(rows)} runs from before in {plan.folder}")
            stop.noted = True
            try:
                Controller(plan, ledger, source, executor, board, stop).run()
            finally:
                board.close()
                source.close()
    return _report(request, settings, metric, plan, search, source, stop)


def _make_local_executor(plan: BlamePlan) -> Executor:
    return LocalExecutor(plan.settings.slots, plan.frozen)


def _compare_sides(request: BlameRequest) -> tuple[tuple[ComparedSide, ComparedSide], list[DifferingSetting]]:
    overrides = [*request.overrides, *([f"train.duration={request.duration}"] if request.duration else [])]
    mistakes: list[Mistake] = []
    sides: list[ComparedSide] = []
    for name, word in (("A", request.a), ("B", request.b)):
        try:
            sides.append(load_side(name, word, overrides, request.trust))
        except ConfigError as error:
            mistakes += error.mistakes
    if request.jobs < LEAST_JOBS:
        rule, remedy = f"must be at least {LEAST_JOBS}", "20 find one of ten settings"
        mistakes.append(Mistake("--jobs", rule, request.jobs, f"argument `--jobs {request.jobs}`", remedy))
    if mistakes:
        raise ConfigError(mistakes)
    settings = find_settings(sides[0].data, sides[1].data)
    if not settings:
        rule = "differs from A in nothing that can change a result"
        remedy = "the seed, the log and workers are none; `python -m runner diff A B` compares code and data"
        raise ConfigError([Mistake("B", rule, request.b, f"argument `{request.b}`", remedy, kind="no-effect")])
    return (sides[0], sides[1]), settings


def _choose_metric(request: BlameRequest, sides: tuple[ComparedSide, ComparedSide]) -> tuple[str, str]:
    """Return the metric and its mode; it must be a metric of both sides."""
    objective, mode = find_objective(sides[0].config)
    metric = request.metric or objective
    for side in sides:
        names, prefixes = find_metric_names(side.config)
        test = side.config.dataset.test is not None or side.config.dataset.test_fraction
        names += [f"test/{name.partition('/')[2]}" for name in names if name.startswith("train/") and test]
        if metric not in names and not metric.startswith(tuple(prefixes)):
            near = find_nearest(metric, names)
            remedy = format_suggestion(near) or f"there are {', '.join(names)}"
            where = f"argument `--metric {metric}`" if request.metric else "train.objective of A"
            raise ConfigError(
                [Mistake("--metric", f"must be a metric of {side.word}", metric, where, remedy, near, "no-match")]
            )
    if metric != objective:
        mode = "min" if metric.endswith("loss") else "max"
    return metric, mode


def _report(
    request: BlameRequest,
    settings: list[DifferingSetting],
    metric: str,
    plan: BlamePlan,
    search: BlameSearch,
    source: BlameSource,
    stop: SweepStop,
) -> BlameReport:
    measured, everything = search.measured, frozenset(range(len(settings)))
    means = [
        measured.compute_mean(mixture) if measured.get_numbers(mixture) else None
        for mixture in (frozenset[int](), everything)
    ]
    found = search.findings.verdict == "found"
    return BlameReport(
        words=(request.a, request.b),
        metric=metric,
        settings=settings,
        findings=search.findings,
        folder=plan.folder,
        budget=request.jobs,
        means=(means[0], means[1]),
        noise=measured.noise if measured.freedom else None,
        diverged=source.diverged,
        jobs=source.jobs,
        problems=list(dict.fromkeys(source.problems)),
        status=stop.status if stop.signals else EXIT_DONE if found else EXIT_FAILED,
    )


def as_json(report: BlameReport) -> dict[str, Any]:
    """Return plain data for `--json`."""
    findings, settings = report.findings, report.settings

    def tell(effect: Effect | None) -> dict[str, Any] | None:
        return None if effect is None else effect.as_json()

    def describe(culprit: Culprit) -> dict[str, Any]:
        keys = [settings[index].key for index in culprit.settings]
        return {
            "settings": keys,
            "kind": culprit.kind,
            "effect": tell(culprit.effect),
            "without": tell(culprit.without),
        }

    blamed = {index for culprit in findings.culprits for index in culprit.settings}
    others = [index for index in range(len(settings)) if index not in blamed and index not in findings.untried]
    return {
        "a": report.words[0],
        "b": report.words[1],
        "metric": report.metric,
        "verdict": findings.verdict,
        "means": list(report.means),
        "noise": report.noise,
        "gap": tell(findings.gap),
        "settings": [
            {"key": setting.key, "a": setting.format_value(setting.a), "b": setting.format_value(setting.b)}
            for setting in settings
        ],
        "culprits": [describe(culprit) for culprit in findings.culprits],
        "explained": tell(findings.explained),
        "others": [settings[index].key for index in others] if findings.culprits else [],
        "left": tell(findings.left),
        "untried": [settings[index].key for index in findings.untried],
        "unresolved": findings.unresolved,
        "diverged": report.diverged,
        "folder": str(report.folder),
        "budget": report.budget,
        "runs": [
            {
                "number": job.number,
                "run": str(report.folder / job.path),
                "overrides": job.overrides,
                "status": job.status,
                "value": job.objective if job.metrics.get(report.metric) is None else job.metrics[report.metric],
            }
            for job in report.jobs
        ],
        "problems": report.problems,
    }
