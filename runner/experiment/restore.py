"""Continuation of a run from its last checkpoint."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.config.check.check import to_resolved_data
from runner.config.schema import Config
from runner.core.durations import Duration
from runner.core.errors import ConfigError, Mistake
from runner.data.interfaces import PlanKind
from runner.experiment.builders import run as run_builder
from runner.experiment.builders import train as train_builder
from runner.experiment.builders.instantiate import Trust
from runner.experiment.record import provenance
from runner.experiment.record.continuation import Continuation, drop_schedule
from runner.experiment.record.recorded_run import RecordedRun, get_latest_facts
from runner.experiment.record.result import add_resume, collect_provenance
from runner.train.lr_schedule import ConstantLR
from runner.train.single_process import SINGLE_PROCESS, SingleProcess
from runner.train.state import Run, follow, forecast, hold, plan_schedule
from runner.train.state_dict import change_settings, restore

FOLLOW = "--schedule follow"


def continue_run(
    folder: Path,
    again: Continuation,
    command: Sequence[str],
    trust: Trust,
    team: SingleProcess,
    said: list[str],
    *,
    inexact: bool,
) -> tuple[Run, dict[str, Any]]:
    """Rebuild a run at its newest whole checkpoint, or at step 0; return it and its new provenance.

    Nothing is written. `said` gets what is to be said.

    Raises:
        ConfigError: something differs from what it was, so that its numbers may.
        RunError: it had checkpoints, and none is left that is whole.
    """
    config = again.config
    before = RecordedRun(folder).read_provenance()
    kinds = {} if before is None else provenance.get_plan_kinds(before)
    if config.loader.in_memory == "auto" and kinds.get("train") == PlanKind.PER_SAMPLE:
        config.loader.in_memory = False  # the plan of making batches is kept
    said += again.notes
    where = {"config": to_resolved_data(config), "folder": str(folder.absolute())}
    team.tell(where | {"rescheduled": again.rescheduled, "settings": again.settings, "schedule": again.schedule})
    try:
        run = rebuild_at_checkpoint(config, folder, trust, said, again, team)
    except Exception:
        known = (
            {} if before is None else before | get_latest_facts(before) | dict.fromkeys(("data", "plan", "plan_kinds"))
        )
        changed = provenance.find_changes(known, collect_provenance(config, command, None)) if known else []
        if changed and not inexact:
            raise ConfigError([*again.changes, *changed]) from None
        raise
    asked = forecast_rates(run, again, said)
    if not run.checkpoints.entries():
        if asked:
            raise ConfigError(asked)
        said.append(f"there is no checkpoint yet: it starts at step {run.progress.step:,}")
        record = collect_provenance(config, command, run)
    else:
        now = collect_provenance(config, command, run)
        transforms = config.transform.eval
        changes = list(again.changes)
        if before is None:
            changes.append(make_provenance_mistake(folder))
        else:
            random_eval = any(node is not None for node in transforms.values())
            changes += provenance.find_changes(before | get_latest_facts(before), now, random_eval=random_eval)
        if asked or (changes and not inexact):
            raise ConfigError([*asked, *([] if inexact else changes)])
        said += [f"not exact from here on (--inexact): {change.key} {change.rule}" for change in changes]
        record = add_resume(now if before is None else before, now, run.progress.step, changes)
        if again.schedule:
            record["resumed"][-1]["schedule"] = again.schedule
    said.append(f"continues at step {run.progress.step:,}")
    return run, record


def make_provenance_mistake(folder: Path) -> Mistake:
    """Make the mistake of a run with checkpoints whose provenance is missing or damaged."""
    file = folder / "provenance.json"
    rule = "is damaged" if file.exists() else "is missing"
    remedy = f"put it back from a copy, or {provenance.ACCEPT}"
    return Mistake(
        str(file), f"{rule}, so that code, versions and data cannot be compared", remedy=remedy, kind="record"
    )


def rebuild_at_checkpoint(
    config: Config,
    folder: Path,
    trust: Trust,
    said: list[str],
    again: Continuation | None = None,
    team: SingleProcess = SINGLE_PROCESS,
) -> Run:
    """Build a run and load its newest whole checkpoint; warnings about damaged ones go to `said`."""
    run = run_builder.build(config, folder, to_resolved_data(config), trust, team)
    run.checkpoints.warn = said.append
    if not run.checkpoints.entries():
        run.checkpoints.refuse_lost(RecordedRun(folder).read_saved_steps())
    else:
        put_back(run, run.checkpoints.load("last"), again)
    if mistakes := train_builder.find_short_schedule(run.schedule, run.rhythm.total_steps, run.rhythm.steps_per_epoch):
        if again is not None and again.was:
            mistakes = [replace(mistake, remedy=f"{mistake.remedy}, or say `{FOLLOW}`") for mistake in mistakes]
        raise ConfigError(mistakes)
    return run


def put_back(run: Run, saved: dict[str, Any], again: Continuation | None) -> None:
    """Restore a run from a checkpoint, with the new settings and schedule of its continuation."""
    if again is None:
        restore(run, saved)
        return
    plan = None
    if again.schedule == "constant" and not saved["scheduler"]:  # by a checkpoint of this process
        run.schedule = ConstantLR()
    elif again.schedule in ("follow", "constant"):
        plan = plan_schedule(run, saved["progress"]["step"])
    restore(run, saved, again.rescheduled)
    change_settings(run, again.settings)
    if plan is not None:
        (follow if again.schedule == "follow" else hold)(run, plan)
    if again.schedule == "constant":
        run.config = drop_schedule(again)[0]


WORDS = f"""say what the rate is to do from here on:
{FOLLOW}    as the schedule of the new duration plans for this step and the rest
--schedule constant  stay as it is (where it has come to 0: as it was before that)
--schedule continue  as above"""


def forecast_rates(run: Run, again: Continuation, said: list[str]) -> list[Mistake]:
    """Tell `said` the future rates of a prolonged run; return a mistake if they would rise unasked."""
    if again.schedule == "constant" and not run.checkpoints.entries():
        rule = "has no effect on a run without a checkpoint, which starts at step 0"
        return [Mistake("--schedule", rule, where="argument `--schedule constant`", kind="no-effect")]
    rates = forecast(run) if again.was else []
    if not rates or (len(rates) == 1 and again.schedule != "constant"):
        return []
    names = [str(group.get("name", place)) for place, group in enumerate(run.optimizer.param_groups)]
    courses = list(zip(*rates, strict=True))
    words = [describe_rates(list(one), run.progress.step, run.rhythm.total_steps) for one in courses[:3]]
    whose = [f" of {name}" for name in names] if len(names) > 1 else [""]
    lines = [f"the learning rate{name} {text}" for name, text in zip(whose, words, strict=False)]
    old_end = max(0, Duration.parse(again.was).steps(run.rhythm.steps_per_epoch) - run.progress.step)
    rises = any(max(one[old_end:]) > one[old_end] * (1 + 1e-6) + 1e-12 for one in courses)
    if rises and not again.schedule and not again.rescheduled:
        rule = f"of a run that trained for {again.was} would make the rate rise again: {'; '.join(lines)}"
        return [Mistake("scheduler", rule, remedy=WORDS, suggestion=FOLLOW, kind="record")]
    said += [f"{line} ({'--schedule ' + again.schedule if again.schedule else 'as planned'})" for line in lines]
    return []


def describe_rates(rates: Sequence[float], start: int, end: int) -> str:
    """Describe the course of a rate from step `start` to step `end`."""
    first, last, most = rates[0], rates[-1], max(rates)
    if most == min(rates):
        return f"stays {first:.4g} to the end (step {end:,})"
    if most > first * (1 + 1e-6) + 1e-12:
        at = start + rates.index(most)
        return f"is {first:.4g} now, rises to {most:.4g} at step {at:,}, and is {last:.4g} at the end (step {end:,})"
    return f"is {first:.4g} now and falls to {last:.4g} at the end (step {end:,})"
