"""Continuation of a run: its config compared with the config of its start."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from runner.config.check.check import parse, to_resolved_data
from runner.config.nodes import find_member_nodes
from runner.config.schema import Config, Scheduler
from runner.core.durations import Duration
from runner.core.errors import ABSENT, ConfigError, Mistake
from runner.experiment.record.recorded import Keys, check_record, find_differences, read_config_files, resolve_record

# What may differ and leaves every bit of the weights. `loader` and `device.type`: what they led to, the plan of making
# batches and the kind of device, is compared once it is known (`runner.experiment.record.provenance`).
FREE = {
    "run",
    "sweep",
    "on_event",
    "log",
    "actions",
    "device.type",
    "train.test_with",
    "train.checkpoint_every",
    "train.keep",
    "train.early_stop",  # like the duration, these three say when it is done
    "train.stop_when",
    "train.max_time",
    "train.max_time_counts",
    "train.split_on_oom",  # where memory was enough it changes nothing; where not, there was no number
    "train.check_finite",
    "train.detect_anomaly",
    "train.on_fault",
    "train.max_faults",
    "train.on_save_error",
    "loader.num_workers",
    "loader.in_memory",
    "loader.in_memory_limit",
    "loader.pin_memory",
    "loader.multiprocessing_context",
    "loader.prefetch_factor",
    "loader.persistent_workers",
    "loader.timeout",
    "loader.eval.num_workers",
}


OWN_OF_SCHEDULER = {item.name for item in fields(Scheduler)}  # the rest are arguments of its `_target_`


INEXACT = "give it its value back, or accept other numbers with `--inexact`"


@dataclass(frozen=True)
class Continuation:
    """Config of a continued run, and how it differs from the config of the run's start.

    Attributes:
        config: the config to go on with.
        unresolved: its YAML with interpolations kept.
        changes: one for each key whose new value changes the numbers.
        notes: what else is otherwise, to be said.
        longer: whether it is to train for longer than it was.
        rescheduled: arguments of the scheduler that are given anew; they hold from now on.
        settings: arguments of the optimizer that are given anew, as they were and as they are.
        was: the duration that it was started with, where it is to train for longer.
        schedule: what the learning rate does then: see `plan_continuation`.
    """

    config: Config
    unresolved: str
    changes: list[Mistake] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    longer: bool = False
    rescheduled: tuple[str, ...] = ()
    settings: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    was: str = ""
    schedule: str = ""


def plan_continuation(
    folder: Path, config: Config, unresolved: str, trust: Sequence[str] = (), schedule: str = ""
) -> Continuation:
    """Compare a config with the one that the run in `folder` started with; return how the run continues.

    A longer duration is fine. What followed it by interpolation and decides about bits (a schedule's length) keeps its
    recorded value, unless it was given a value of its own too.

    Args:
        folder: the run directory.
        config: to go on with.
        unresolved: its YAML with interpolations kept.
        trust: patterns of names trusted on the command line.
        schedule: what the learning rate does in a run that trains for longer: `follow` the new duration from here on,
            stay `constant`, or `continue` as it was planned; empty where that was not said.

    Raises:
        ConfigError: `schedule` has no effect.
    """
    whole = read_config_files(folder, lambda _: None)
    before, after = to_resolved_data(parse(deepcopy(whole.data))), to_resolved_data(config)
    notes: list[str] = []
    was, wanted = before["train"]["duration"], after["train"]["duration"]
    kept: list[Keys] = []
    if schedule:
        _check_schedule_option(schedule, before, was != wanted)
    tree = OmegaConf.create(unresolved)
    if was != wanted:
        notes.append(f"train.duration is {wanted}, and was {was}")
        if schedule == "follow":
            _follow(before, after, tree)
        kept = _keep(before, after, unresolved, notes, schedule)
    for keys in kept:
        OmegaConf.update(tree, _join_keys(keys), _get(after, keys))
    ends = [
        f"train.{name}"
        for name in ("early_stop", "stop_when", "max_time", "max_time_counts")
        if before["train"][name] != after["train"][name]
    ]
    notes += [f"{key} is {after['train'][key[6:]]}, and was {before['train'][key[6:]]}" for key in ends]
    changes, rescheduled, settings = _collect_changes(before, after, kept, notes, schedule)
    return Continuation(
        config=check_record(whole.source, after, trust) if kept or schedule == "follow" else parse(after),
        unresolved=OmegaConf.to_yaml(tree) if kept or schedule == "follow" else unresolved,
        changes=changes,
        notes=notes,
        longer=was != wanted or bool(ends),
        rescheduled=tuple(rescheduled),
        settings=settings,
        was=was if was != wanted else "",
        schedule=schedule,
    )


def _collect_changes(
    before: Mapping[str, Any], after: Mapping[str, Any], kept: Sequence[Keys], notes: list[str], schedule: str
) -> tuple[list[Mistake], list[str], dict[str, tuple[Any, Any]]]:
    """Collect changes of the numbers, and new scheduler arguments and optimizer settings."""
    changes: list[Mistake] = []
    rescheduled: list[str] = []
    settings: dict[str, tuple[Any, Any]] = {}
    longer = before["train"]["duration"] != after["train"]["duration"]
    for keys, old, new in find_differences(before, after):
        if keys == ("train", "duration"):
            changes += _check_not_shorter(old, new)
            continue
        if keys == ("scheduler", "planned_for") and (keys in kept or schedule == "follow"):
            continue
        if schedule == "follow" and "scheduler" in keys[:-1] and keys[-1] not in OWN_OF_SCHEDULER:
            continue
        if keys[0] == "scheduler" and keys[1:] and keys[1] not in OWN_OF_SCHEDULER:
            rescheduled.append(keys[1])
            if longer:
                notes.append(f"{'.'.join(keys)} is {new} from here on, and was {old}")
                continue
        own = keys[0] == "optimizer" and not {"match", "scheduler", "param_groups"} & {*keys}
        if own and len(keys) in (2, 3) and ABSENT not in (old, new):  # of one optimizer, or of one of several
            settings[".".join(map(str, keys[1:]))] = (old, new)
        if not _is_free(keys, after):
            said = "not given" if old is ABSENT else old
            changes.append(
                Mistake(
                    ".".join(keys), f"must stay as the run was started with ({said})", new, "", INEXACT, kind="record"
                )
            )
    return changes, rescheduled, settings


def drop_schedule(again: Continuation) -> tuple[dict[str, Any], str]:
    """Return a run's config and YAML with the scheduler dropped: its rates are constant from here."""
    data = to_resolved_data(again.config) | {"scheduler": {}}
    tree = OmegaConf.create(again.unresolved)
    OmegaConf.update(tree, "scheduler", {"_target_": None}, merge=False)
    for name, _ in _list_schedulers(data)[1:]:
        data["optimizer"] = {**data["optimizer"], name[1]: {**data["optimizer"][name[1]], "scheduler": None}}
        OmegaConf.update(tree, _join_keys(name), None)
    return to_resolved_data(parse(data)), OmegaConf.to_yaml(tree)


def _check_schedule_option(schedule: str, before: Mapping[str, Any], longer: bool) -> None:
    scheduler, where = before["scheduler"], f"argument `--schedule {schedule}`"
    targets = [one.get("_target_") for _, one in _list_schedulers(before)]
    rule = ""
    if not longer:
        rule = "has no effect without a longer duration (`train.duration=…`)"
    elif not any(targets) and schedule != "continue":
        rule = "has no effect: the run has no scheduler, and its rates are constant"
    elif schedule == "follow" and scheduler["monitor"] is not None:
        rule = f"has no effect: the rates follow {scheduler['monitor']} and not the duration"
    if rule:
        raise ConfigError([Mistake("--schedule", rule, where=where, kind="no-effect")])


def _follow(before: Mapping[str, Any], after: dict[str, Any], tree: Any) -> None:
    """Set the scheduler's arguments that equal the old or planned duration to the new duration.

    Raises:
        ConfigError: none is.
    """
    wanted = after["train"]["duration"]
    schedulers = _list_schedulers(after)
    old = {before["train"]["duration"], *(one.get("planned_for") for _, one in _list_schedulers(before))} - {None}

    def renew(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: renew(member) for name, member in value.items()}
        if isinstance(value, list):
            return [renew(member) for member in value]
        return wanted if value in old else value

    renews = False
    for keys, scheduler in schedulers:
        for name in [name for name in scheduler if name not in OWN_OF_SCHEDULER]:
            renewed = renew(scheduler[name])
            if renewed != scheduler[name]:
                OmegaConf.update(tree, _join_keys((*keys, name)), renewed)
                scheduler[name] = renewed
            renews |= renewed != _get(before, keys).get(name)
        scheduler["planned_for"] = None
        OmegaConf.update(tree, _join_keys((*keys, "planned_for")), None)
    if not renews:
        rule = "has no effect: no argument of scheduler is the duration of the run"
        remedy = "give it a value of its own (`scheduler.NAME=…`)"
        raise ConfigError(
            [Mistake("--schedule", rule, "follow", "argument `--schedule follow`", remedy, kind="no-effect")]
        )


def _list_schedulers(data: Mapping[str, Any]) -> list[tuple[Keys, dict[str, Any]]]:
    """List the scheduler of a config, and then those of several optimizers, with their keys."""
    own = [(("optimizer", name), node) for name, node in find_member_nodes(data["optimizer"]).items()]
    members = [((*keys, "scheduler"), node["scheduler"]) for keys, node in own if node.get("scheduler")]
    return [(("scheduler",), data["scheduler"]), *members]


def _keep(
    before: Mapping[str, Any], after: dict[str, Any], unresolved: str, notes: list[str], schedule: str
) -> list[Keys]:
    """Restore recorded values that followed `train.duration` and decide about bits; return the keys."""
    was = before["train"]["duration"]
    kept = [keys for keys in _find_followers(unresolved, was, after) if not _is_free(keys, after)]
    if schedule == "follow":
        kept = [keys for keys in kept if "scheduler" not in keys]
    for keys in kept:
        old = _get(before, keys)
        notes.append(f"{'.'.join(keys)} stays {old}, as it was recorded (a value of its own makes it follow)")
        _put(after, keys, old)
    for place, one in _list_schedulers(after):
        follows = any(keys[: len(place)] == place for keys in kept)
        if follows and one.get("warmup") and one.get("planned_for") is None:
            kept.append((*place, "planned_for"))  # else the warmup would not be taken off any more
            one["planned_for"] = was
    return kept


def _find_followers(unresolved: str, was: str, after: Mapping[str, Any]) -> list[Keys]:
    """Find the keys whose values come from `train.duration` by interpolation."""
    tree = OmegaConf.create(unresolved)
    OmegaConf.update(tree, "train.duration", was)
    data: Any = resolve_record(tree)
    found = find_differences(to_resolved_data(parse(data)), after)
    return [keys for keys, _, _ in found if keys != ("train", "duration")]


def _is_free(keys: Keys, config: Mapping[str, Any]) -> bool:
    monitor = config["scheduler"]["monitor"]
    ends_at = [name for name, value in config["train"].get("stop_when", {}).items() if value is not None]
    # The objective and the best of a run are no part of its weights.
    if keys in (("train", "evaluate_every"), ("train", "evaluate_at_start")):
        by_evaluation = [name for name in ends_at if not name.startswith("train/")]
        return monitor is None and config["train"]["early_stop"] is None and not by_evaluation
    if keys in (("log", "every"), ("log", "mean")):  # the means of training are those since a line of the log
        return not any(str(name).startswith("train/") for name in (monitor, *ends_at))
    return any(".".join(keys[:length]) in FREE for length in range(1, len(keys) + 1))


def _check_not_shorter(was: str, wanted: str) -> list[Mistake]:
    old, new = Duration.parse(was), Duration.parse(wanted)
    if old.unit != new.unit:
        return [Mistake("train.duration", f"must be in the same unit as was recorded ({was})", wanted, kind="record")]
    if new.amount < old.amount:
        return [Mistake("train.duration", f"must not be shorter than what was recorded ({was})", wanted, kind="record")]
    return []


def _get(tree: Mapping[str, Any], keys: Keys) -> Any:
    value: Any = tree
    for key in keys:
        value = value[key]
    return deepcopy(value)


def _put(tree: dict[str, Any], keys: Keys, value: Any) -> None:
    for key in keys[:-1]:
        tree = tree[key]
    tree[keys[-1]] = value


def _join_keys(keys: Keys) -> str:
    return keys[0] + "".join(f"[{key}]" for key in keys[1:])
