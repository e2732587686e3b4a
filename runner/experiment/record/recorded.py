"""Config of an existing run: read, overridden, and compared with the config of its start."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from runner.config import document
from runner.config.check.check import Check, parse, to_resolved_data
from runner.config.expansion import ExpansionLimit, limit_expansion
from runner.config.hydra_loader import Composed
from runner.config.origins import Layers
from runner.config.schema import Config, Scheduler
from runner.config.suggestions import find_nearest
from runner.core.durations import Duration
from runner.core.errors import ABSENT, ConfigError, Mistake
from runner.core.escape import make_printable, quote_shell_word
from runner.core.safe_io import refuse_foreign

Keys = tuple[str, ...]


# What may differ and leaves every bit of the weights. `loader` and `device.type`: what they led to, the plan of making
# batches and the kind of device, is compared once it is known (`runner.experiment.record.provenance`).
FREE = {
    "run",
    "sweep",
    "log",
    "device.type",
    "train.checkpoint_every",
    "train.keep",
    "train.early_stop",  # like the duration, these two say when it is done
    "train.max_time",
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


def load_recorded_config(
    folder: Path,
    overrides: Sequence[str] = (),
    trust: Sequence[str] = (),
    *,
    verb: str = "resume",
    data_folders: Sequence[str] = (),
    say: Callable[[str], object] = lambda text: sys.stderr.write(f"{make_printable(text)}\n"),
) -> tuple[Config, str]:
    """Load the config of the run in `folder` and its YAML with interpolations; apply `overrides`.

    Where one of the two files is missing or damaged the other one takes its place, and `say` is told. A record is
    judged like a composed config: it may come from a stranger, and what it names is trusted by `trust` alone, whatever
    was trusted when it was recorded.

    Args:
        folder: a run directory.
        overrides: `key=value`, values in YAML; a leading `+` or `++` is allowed.
        trust: patterns of names trusted on the command line.
        verb: of the command, for the remedy.
        data_folders: folders elsewhere that the user has named for data that a dataset downloads by itself.
        say: told what is made up for.

    Raises:
        ConfigError: the folder is no run or leads elsewhere, an override is wrong, or the config with it.
    """
    if not is_run(folder):
        raise ConfigError([make_no_run_mistake(folder, verb)])
    whole = read_config_files(folder, say)
    if not overrides:
        return _check_record(whole.source, whole.data, trust, data_folders), OmegaConf.to_yaml(whole.unresolved)
    unresolved = whole.unresolved
    for override in overrides:
        key, separator, _ = override.lstrip("+").partition("=")
        if not separator:
            raise ConfigError([Mistake(override, "must be `key=value`", where=f"argument `{override}`", kind="syntax")])
        try:
            unresolved = OmegaConf.merge(unresolved, OmegaConf.from_dotlist([override.lstrip("+")]))
        except (OmegaConfBaseException, YAMLError) as error:
            raise ConfigError([Mistake(key, str(error), where=f"argument `{override}`", kind="syntax")]) from error
    return _check_record(whole.interpolated, unresolved, trust, data_folders), OmegaConf.to_yaml(unresolved)


def _check_record(
    source: document.Document, config: Any, trust: Sequence[str], data_folders: Sequence[str] = ()
) -> Config:
    """Check a record: plain data as it is, or a config whose interpolations are resolved first.

    Raises:
        ConfigError: a key, a name, a slot or an argument is wrong.
    """
    composed = _compose(source, OmegaConf.create())
    if OmegaConf.is_config(config):
        composed = _compose(source, config)
    else:
        composed.__dict__["_resolution"] = (deepcopy(config), [], [])  # `${…}` in what was resolved is text
    checked = Check(composed, tuple(trust), data_folders=tuple(data_folders))
    if mistakes := checked.of_a_record():
        raise ConfigError(mistakes)
    return checked.config


def _compose(source: document.Document, tree: Any) -> Composed:
    return Composed(tree, OmegaConf.create(), {}, [], Layers.of_a_file(source, Path.cwd()))


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run directory, even if its `config.yaml` is lost."""
    if (folder / "config.yaml").exists():
        return True
    return (folder / ".hydra" / "config.yaml").is_file() and any((folder / "checkpoints").glob("step_*.pt"))


def make_no_run_mistake(given: Path, verb: str) -> Mistake:
    """Make the mistake of a path that is no run directory; suggest the run that is meant, if known."""
    command = f"python -m runner {verb}"
    rule = "must be a run directory (one with a config.yaml)" if given.is_dir() else "must be a run directory"
    inside = next((parent for parent in given.parents if is_run(parent)), None)
    if inside is not None:  # a checkpoint, or another file or folder of a run
        checkpoint = f" --checkpoint {quote_shell_word(str(given))}" if verb == "evaluate" and given.is_file() else ""
        line = f"{command} {quote_shell_word(str(inside))}{checkpoint}"
        return Mistake(
            "RUN", rule, str(given), remedy=f"it is in the run {inside}: `{line}`", suggestion=str(inside), kind="file"
        )
    runs = [file.parent for pattern in ("*", "*/*", "*/*/*") for file in given.glob(f"{pattern}/config.yaml")]
    runs = [run for run in runs if run.name != ".hydra"]
    if runs:
        newest = max(runs, key=lambda run: (run.stat().st_mtime_ns, run.name))
        line = f"{command} {quote_shell_word(str(newest))}"
        remedy = f"the newest of the {len(runs)} run{'s' * (len(runs) != 1)} in it: `{line}`"
        return Mistake("RUN", rule, str(given), remedy=remedy, suggestion=str(newest), kind="file")
    beside = [file.parent for file in given.absolute().parent.glob("*/config.yaml")]
    near = find_nearest(given.name, [run.name for run in beside])
    if near:
        path = given.parent / near
        return Mistake("RUN", rule, str(given), remedy=f"did you mean `{path}`?", suggestion=str(path), kind="file")
    if given.is_dir():
        return Mistake(
            "RUN",
            rule,
            str(given),
            remedy="no run was begun in it, or it has lost all that says what it was",
            kind="file",
        )
    known = [file.parent for file in Path("outputs").glob("*/*/config.yaml")]
    near = find_nearest(given.name, [run.name for run in known])
    for run in known:
        if run.name == near:
            return Mistake("RUN", rule, str(given), remedy=f"did you mean `{run}`?", suggestion=str(run), kind="file")
    remedy = f"the runs are below outputs/<name>/: `{command} outputs/<name>/<run>`"
    return Mistake("RUN", rule, str(given), remedy=remedy, kind="file")


@dataclass(frozen=True)
class RecordedConfig:
    """Config of a run directory, as far as its files can be read.

    Attributes:
        data: plain, resolved.
        unresolved: the same with interpolations.
        source: the file that `data` is from.
        interpolated: the file that `unresolved` is from.
    """

    data: dict[str, Any]
    unresolved: Any
    source: document.Document
    interpolated: document.Document


def read_config_files(folder: Path, say: Callable[[str], object]) -> RecordedConfig:
    """Read the two config files of a run, unchecked; each stands in for a lost or damaged other one.

    Raises:
        ConfigError: neither of the two files can be read, or something in the folder leads elsewhere.
    """
    refuse_foreign(folder)
    written, kept = folder / "config.yaml", folder / ".hydra" / "config.yaml"
    (source, wrong), (interpolated, amiss) = _read(written, plain=True), _read(kept)
    data, config = None, None
    if source is not None:
        try:
            config = to_resolved_data(parse(deepcopy(source.data)))
            data = source.data
        except ConfigError as error:
            data, wrong = _read_hand_edited(written), _format_first_mistake(error)
    other = None
    if interpolated is not None and (data is None or (config is not None and _is_incomplete(data, config))):
        other, wrong_too = _resolve_interpolations(interpolated)
        amiss = wrong_too or amiss
    if data is not None and other is not None:  # some keys are not there: of an older version, or cut off?
        lost = [keys for keys, was, now in _find_differences(config, other) if _is_absent(data, keys) and was != now]
        if lost:
            data, wrong = None, f"it lacks {'.'.join(lost[0])}"
    if data is not None and source is not None:
        if interpolated is None:
            say(
                f"{kept} {_describe_loss(amiss)}: overrides are applied to {written}, whose interpolations are resolved"
            )
            return RecordedConfig(data, OmegaConf.create(deepcopy(data)), source, source)
        return RecordedConfig(data, OmegaConf.create(interpolated.data), source, interpolated)
    if other is not None and interpolated is not None:
        say(f"{written} {_describe_loss(wrong)}: the config is taken from {kept}")
        return RecordedConfig(other, OmegaConf.create(interpolated.data), interpolated, interpolated)
    rule = f"cannot be read: {wrong}"
    checkpoint = quote_shell_word(str(folder / "checkpoints" / "last.pt"))
    load = "torch.load(sys.argv[1], weights_only=True)['config']"
    code = f'python -c "import sys, torch, yaml; print(yaml.safe_dump({load}, sort_keys=False))"'
    line = f"{code} {checkpoint} > {quote_shell_word(str(written))}"
    remedy = f"nor can {kept} ({amiss}); a checkpoint holds it too: {line}"
    raise ConfigError([Mistake(str(written), rule, remedy=remedy, kind="file")])


def _resolve_interpolations(interpolated: document.Document) -> tuple[dict[str, Any] | None, str]:
    """Resolve the interpolations of a file within limits; None and the reason if it is no config."""
    composed = _compose(interpolated, OmegaConf.create(interpolated.data))
    try:
        if composed.unresolvable:
            raise ConfigError(composed.unresolvable)
        return to_resolved_data(parse(composed.config)), ""
    except ConfigError as error:
        return None, _format_first_mistake(error)


def _read_hand_edited(file: Path) -> Any:
    """Reread a config with OmegaConf's YAML (1e-3 is a number); None if it stays invalid."""
    read, _ = _read(file)
    try:
        if read is not None:
            parse(deepcopy(read.data))
            return read.data
    except ConfigError:
        pass
    return None


def _describe_loss(why: str) -> str:
    return f"cannot be used ({why})" if why != "missing" else "is missing"


def _read(file: Path, *, plain: bool = False) -> tuple[document.Document | None, str]:
    """Read the mapping in a YAML file; None and the reason if there is none."""
    try:
        read = document.load_record(file, plain=plain)
    except FileNotFoundError:
        return None, "missing"
    except OSError as error:
        return None, error.strerror or str(error)
    if read.mistake is not None:
        line = (read.mistake.where or "").rpartition(":")[2]
        return None, f"{read.mistake.rule}{f', line {line}' if line.isdigit() else ''}"
    return (read, "") if read.data else (None, "it holds no mapping")


def _format_first_mistake(error: ConfigError) -> str:
    mistake = error.mistakes[0]
    return f"{mistake.key} {mistake.rule}"


def _is_incomplete(data: Any, full: Any) -> bool:
    """Return whether a recorded config lacks a key of the full config."""
    if isinstance(data, dict) and isinstance(full, dict):
        return any(name not in data or _is_incomplete(data[name], value) for name, value in full.items())
    return False


def _is_absent(data: Any, keys: Keys) -> bool:
    for key in keys:
        if not isinstance(data, dict) or key not in data:
            return True
        data = data[key]
    return False


def _resolve(unresolved: Any) -> Any:
    try:
        with limit_expansion():
            return OmegaConf.to_container(unresolved, resolve=True)
    except ExpansionLimit as error:
        raise ConfigError([Mistake("config", "has interpolations that go on", kind="record")]) from error
    except OmegaConfBaseException as error:
        raise ConfigError([Mistake(str(error.full_key), str(error.msg), kind="record")]) from error


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
    ends = [f"train.{name}" for name in ("early_stop", "max_time") if before["train"][name] != after["train"][name]]
    notes += [f"{key} is {after['train'][key[6:]]}, and was {before['train'][key[6:]]}" for key in ends]
    changes, rescheduled, settings = _collect_changes(before, after, kept, notes, schedule)
    return Continuation(
        config=_check_record(whole.source, after, trust) if kept or schedule == "follow" else parse(after),
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
    for keys, old, new in _find_differences(before, after):
        if keys == ("train", "duration"):
            changes += _check_not_shorter(old, new)
            continue
        if keys == ("scheduler", "planned_for") and (keys in kept or schedule == "follow"):
            continue
        if schedule == "follow" and keys[0] == "scheduler" and keys[1:] and keys[1] not in OWN_OF_SCHEDULER:
            continue
        if keys[0] == "scheduler" and keys[1:] and keys[1] not in OWN_OF_SCHEDULER:
            rescheduled.append(keys[1])
            if longer:
                notes.append(f"{'.'.join(keys)} is {new} from here on, and was {old}")
                continue
        if keys[0] == "optimizer" and len(keys) == 2 and ABSENT not in (old, new):
            settings[keys[1]] = (old, new)
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
    return to_resolved_data(parse(data)), OmegaConf.to_yaml(tree)


def _check_schedule_option(schedule: str, before: Mapping[str, Any], longer: bool) -> None:
    scheduler, where = before["scheduler"], f"argument `--schedule {schedule}`"
    rule = ""
    if not longer:
        rule = "has no effect without a longer duration (`train.duration=…`)"
    elif scheduler["_target_"] is None and schedule != "continue":
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
    wanted, scheduler = after["train"]["duration"], after["scheduler"]
    old = {before["train"]["duration"], before["scheduler"]["planned_for"]} - {None}

    def renew(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: renew(member) for name, member in value.items()}
        if isinstance(value, list):
            return [renew(member) for member in value]
        return wanted if value in old else value

    for name in [name for name in scheduler if name not in OWN_OF_SCHEDULER]:
        renewed = renew(scheduler[name])
        if renewed != scheduler[name]:
            OmegaConf.update(tree, f"scheduler.{name}", renewed)
            scheduler[name] = renewed
    scheduler["planned_for"] = None
    OmegaConf.update(tree, "scheduler.planned_for", None)
    if not any(scheduler[name] != before["scheduler"].get(name) for name in scheduler if name not in OWN_OF_SCHEDULER):
        rule = "has no effect: no argument of scheduler is the duration of the run"
        remedy = "give it a value of its own (`scheduler.NAME=…`)"
        raise ConfigError(
            [Mistake("--schedule", rule, "follow", "argument `--schedule follow`", remedy, kind="no-effect")]
        )


def _keep(
    before: Mapping[str, Any], after: dict[str, Any], unresolved: str, notes: list[str], schedule: str
) -> list[Keys]:
    """Restore recorded values that followed `train.duration` and decide about bits; return the keys."""
    was, scheduler = before["train"]["duration"], after["scheduler"]
    kept = [keys for keys in _find_followers(unresolved, was, after) if not _is_free(keys, after)]
    if schedule == "follow":
        kept = [keys for keys in kept if keys[0] != "scheduler"]
    for keys in kept:
        old = _get(before, keys)
        notes.append(f"{'.'.join(keys)} stays {old}, as it was recorded (a value of its own makes it follow)")
        _put(after, keys, old)
    if any(keys[0] == "scheduler" for keys in kept) and scheduler["warmup"] and scheduler["planned_for"] is None:
        kept.append(("scheduler", "planned_for"))  # else the warmup would not be taken off any more
        scheduler["planned_for"] = was
    return kept


def _find_followers(unresolved: str, was: str, after: Mapping[str, Any]) -> list[Keys]:
    """Find the keys whose values come from `train.duration` by interpolation."""
    tree = OmegaConf.create(unresolved)
    OmegaConf.update(tree, "train.duration", was)
    data: Any = _resolve(tree)
    found = _find_differences(to_resolved_data(parse(data)), after)
    return [keys for keys, _, _ in found if keys != ("train", "duration")]


def _is_free(keys: Keys, config: Mapping[str, Any]) -> bool:
    monitor = config["scheduler"]["monitor"]
    # The objective and the best of a run are no part of its weights.
    if keys in (("train", "evaluate_every"), ("train", "evaluate_at_start")):
        return monitor is None and config["train"]["early_stop"] is None
    if keys in (("log", "every"), ("log", "mean")):  # the means of training are those since a line of the log
        return not str(monitor).startswith("train/")
    return any(".".join(keys[:length]) in FREE for length in range(1, len(keys) + 1))


def _check_not_shorter(was: str, wanted: str) -> list[Mistake]:
    old, new = Duration.parse(was), Duration.parse(wanted)
    if old.unit != new.unit:
        return [Mistake("train.duration", f"must be in the same unit as was recorded ({was})", wanted, kind="record")]
    if new.amount < old.amount:
        return [Mistake("train.duration", f"must not be shorter than what was recorded ({was})", wanted, kind="record")]
    return []


def _find_differences(before: Any, after: Any, at: Keys = ()) -> Iterator[tuple[Keys, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in [*before, *(name for name in after if name not in before)]:
            yield from _find_differences(before.get(name, ABSENT), after.get(name, ABSENT), (*at, str(name)))
    elif before != after or type(before) is not type(after):
        yield at, before, after


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
