"""Check every job of a sweep before the first one starts."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from runner.config.check.check import Check
from runner.config.identity import compute_replicate_id
from runner.config.schema import Config
from runner.core.errors import Mistake
from runner.experiment.examine import Say, examine
from runner.experiment.preflight import processes as processes_preflight
from runner.sweep.launcher_settings import OURS, get_launcher_name, uses_hydra_launcher
from runner.sweep.space import request
from runner.sweep.stacks import StackPlan

Examiner = Callable[[Sequence[Check], Say], bool]  # passes mistakes on; returns whether it came to its end

MOST_ALIKE = 3  # values that break one rule in one place, of the many that `range(-1000, 0)` has


def examine_sweep(
    overrides: Sequence[str],
    trust: tuple[str, ...],
    say: Say = lambda _: None,
    note: Callable[[list[str]], None] = lambda _: None,
    show: Callable[[list[str]], None] | None = None,
) -> list[Mistake]:
    """Examine every job of a sweep and try its search.

    Args:
        overrides: the arguments of `-m`.
        trust: patterns of names trusted on the command line.
        say: is given mistakes as they are found.
        note: is given the notes of all jobs.
        show: is given lines about the jobs that train as one, see `sweep.vectorize`.

    Raises:
        ConfigError: the sweep itself cannot be composed, or cannot be enumerated.
    """
    plan = request.make_request(overrides, Path.cwd(), trust)
    checks = [Check(job.composed, trust) for job in plan.to_be_checked()]
    note(request.collect_notes(check.composed for check in checks))
    mistakes = examine_jobs(checks, plan.settings.processes, say)
    if plan.is_search and not mistakes:
        from runner.sweep.search import optuna_search  # imports Optuna

        mistakes = optuna_search.rehearse(plan, trust)
        say(mistakes)
    if not mistakes and show is not None:
        queued = uses_hydra_launcher(overrides) or get_launcher_name(plan.base) in OURS
        stacks = StackPlan(plan.settings, queued=queued)
        for number, job in enumerate(checks):
            stacks.add(str(number), job.config)
        if plan.is_search and len(set(stacks.keys.values())) == 1:  # the corners of the space are of one architecture
            for number in range(len(checks), plan.settings.search.batch):
                stacks.add(str(number), checks[0].config)
        asked = any(text.lstrip("+").startswith("sweep.vectorize=") for text in overrides)
        show([*stacks.describe(partial(try_group, trust=trust), asked=asked)])
    return mistakes


def try_group(configs: list[Config], trust: tuple[str, ...]) -> tuple[str, str]:
    """Try jobs as one model on a made-up batch; return why they cannot be, and else why that is not known."""
    from runner.experiment.preflight.stack import try_stacking  # imports torch

    found = try_stacking(configs, trust)
    return found.reason, found.untried


def examine_jobs(
    jobs: Sequence[Check],
    processes: int,
    say: Say = lambda _: None,
    elsewhere: Examiner | None = None,
) -> list[Mistake]:
    """Examine jobs of `processes` processes each; report each mistake once and at most three alike.

    Two that differ in nothing that is looked at are looked at once. `elsewhere` examines jobs in another process; what
    it does not bring to an end is examined here.
    """
    seen: dict[str, Mistake] = {}
    alike: Counter[tuple[str, str, str]] = Counter()

    def say_new(mistakes: list[Mistake]) -> None:
        new: dict[str, Mistake] = {}
        for mistake in mistakes:
            if str(mistake) not in seen | new:
                alike[kind := (mistake.key, mistake.rule, mistake.where)] += 1
                new |= {str(mistake): mistake} if alike[kind] <= MOST_ALIKE else {}
        seen.update(new)
        if new:
            say(list(new.values()))

    for job in jobs:  # what needs no torch is said of every job before torch is imported for the first
        say_new(
            [
                *job.at_once,
                *job.placed(processes_preflight.check_sweep_processes(job.config.device.parallel, processes)),
            ]
        )
    distinct = {compute_replicate_id(job.composed.config): job for job in reversed(jobs)}
    to_try = [*reversed(distinct.values())]
    if elsewhere is None or not elsewhere(to_try, say_new):
        for job in to_try:
            examine(job.composed, job.trust, say_new)
    return list(seen.values())
