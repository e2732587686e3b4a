"""The config of an existing run: with overrides applied where they belong, compared with the one it was run with."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.config import document
from runner.config.blame import Layers, shown
from runner.config.check import Check, parse, resolved
from runner.config.compose import Composed
from runner.config.schema import Config, Scheduler
from runner.errors import ABSENT, ConfigError, Mistake
from runner.safe_io import refuse_foreign
from runner.schedule import Duration

Keys = tuple[str, ...]

# What may differ and leaves every bit of the weights. `loader` and `device.type`: what they led to, the plan of making
# batches and the kind of device, is compared once it is known (`runner.provenance`).
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


def recorded(folder: Path, overrides: Sequence[str] = (), trust: Sequence[str] = ()) -> tuple[Config, str]:
    """The config of the run in `folder` and its YAML with interpolations kept.

    A record is judged like a composed config: it may come from a stranger, and what it names is trusted by `trust`
    alone, whatever was trusted when it was recorded.

    Args:
        folder: a run directory.
        overrides: `key=value`, values in YAML; a leading `+` or `++` is allowed.
        trust: patterns of names trusted on the command line.

    Raises:
        ConfigError: the folder is no run or leads elsewhere, an override is wrong, or the config with it.
    """
    if not (folder / "config.yaml").is_file():
        rule = "must be a run directory (one with a config.yaml)" if folder.is_dir() else "must be a run directory"
        raise ConfigError([Mistake("RUN", rule, str(folder))])
    refuse_foreign(folder)
    with_interpolations = _document(folder / ".hydra" / "config.yaml")
    if not overrides:
        resolved_one = _document(folder / "config.yaml")
        return _judged(resolved_one, resolved_one.data, trust), with_interpolations.text
    unresolved: Any = OmegaConf.create(with_interpolations.data)
    for override in overrides:
        key, separator, _ = override.lstrip("+").partition("=")
        if not separator:
            raise ConfigError([Mistake(override, "must be `key=value`", where=f"argument `{override}`")])
        try:
            unresolved = OmegaConf.merge(unresolved, OmegaConf.from_dotlist([override.lstrip("+")]))
        except OmegaConfBaseException as error:
            raise ConfigError([Mistake(key, str(error), where=f"argument `{override}`")]) from error
    return _judged(with_interpolations, unresolved, trust), OmegaConf.to_yaml(unresolved)


def _document(path: Path) -> document.Document:
    """Read a recorded config within limits.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        read = document.load_record(path)
    except OSError as error:
        raise ConfigError([Mistake("RUN", f"has no {path.name} to read ({error.strerror})", str(path))]) from error
    if read.mistake is not None:
        raise ConfigError([shown(read.mistake, Path.cwd())])
    return read


def _judged(source: document.Document, config: Any, trust: Sequence[str]) -> Config:
    """Check a record: plain data as it is, or a config whose interpolations are followed first.

    Raises:
        ConfigError: a key, a name, a slot or an argument is wrong.
    """
    layers = Layers.of_a_file(source, Path.cwd())
    tree = config if OmegaConf.is_config(config) else OmegaConf.create()
    composed = Composed(tree, OmegaConf.create(), {}, [], layers)
    if tree is not config:
        composed.__dict__["_resolution"] = (deepcopy(config), [])  # `${…}` in what was resolved is text
    checked = Check(composed, tuple(trust))
    if mistakes := checked.of_a_record():
        raise ConfigError(mistakes)
    return checked.config


def _resolve(unresolved: Any) -> Any:
    try:
        return OmegaConf.to_container(unresolved, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([Mistake(str(error.full_key), str(error.msg))]) from error


@dataclass(frozen=True)
class Continuation:
    """With what a run goes on, and how that differs from what it was started with.

    Attributes:
        config: the config to go on with.
        unresolved: its YAML with interpolations kept.
        changes: one for each key whose new value changes the numbers.
        notes: what else is otherwise, to be said.
        longer: whether it is to train for longer than it was.
        rescheduled: arguments of the scheduler that are given anew; they hold from now on.
        settings: arguments of the optimizer that are given anew, as they were and as they are.
    """

    config: Config
    unresolved: str
    changes: list[Mistake] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    longer: bool = False
    rescheduled: tuple[str, ...] = ()
    settings: dict[str, tuple[Any, Any]] = field(default_factory=dict)


def continuation(folder: Path, config: Config, unresolved: str, trust: Sequence[str] = ()) -> Continuation:
    """Compare a config with the one that the run in `folder` was started with.

    A longer duration is fine. What followed it by interpolation and decides about bits (a schedule's length) keeps its
    recorded value, unless it was given a value of its own too.
    """
    refuse_foreign(folder)
    record = _document(folder / "config.yaml")
    before, after = resolved(parse(deepcopy(record.data))), resolved(config)
    notes: list[str] = []
    was, wanted = before["train"]["duration"], after["train"]["duration"]
    kept: list[Keys] = []
    if was != wanted:
        notes.append(f"train.duration is {wanted}, and was {was}")
        kept = _keep(before, after, unresolved, notes)
    tree = OmegaConf.create(unresolved)
    for keys in kept:
        OmegaConf.update(tree, _dotted(keys), _get(after, keys))
    ends = [f"train.{name}" for name in ("early_stop", "max_time") if before["train"][name] != after["train"][name]]
    notes += [f"{key} is {after['train'][key[6:]]}, and was {before['train'][key[6:]]}" for key in ends]
    changes: list[Mistake] = []
    rescheduled: list[str] = []
    settings: dict[str, tuple[Any, Any]] = {}
    for keys, old, new in _differences(before, after):
        if keys == ("train", "duration"):
            changes += _shorter(old, new)
            continue
        if keys == ("scheduler", "planned_for") and keys in kept:
            continue
        if keys[0] == "scheduler" and keys[1:] and keys[1] not in OWN_OF_SCHEDULER:
            rescheduled.append(keys[1])
            if was != wanted:
                notes.append(f"{'.'.join(keys)} is {new} from here on, and was {old}")
                continue
        if keys[0] == "optimizer" and len(keys) == 2 and ABSENT not in (old, new):
            settings[keys[1]] = (old, new)
        if not _is_free(keys, after):
            said = "not given" if old is ABSENT else old
            changes.append(Mistake(".".join(keys), f"must stay as the run was started with ({said})", new, "", INEXACT))
    return Continuation(
        config=_judged(record, after, trust) if kept else parse(after),
        unresolved=OmegaConf.to_yaml(tree) if kept else unresolved,
        changes=changes,
        notes=notes,
        longer=was != wanted or bool(ends),
        rescheduled=tuple(rescheduled),
        settings=settings,
    )


def _keep(before: Mapping[str, Any], after: dict[str, Any], unresolved: str, notes: list[str]) -> list[Keys]:
    """Give what followed `train.duration` and decides about bits its recorded value back; its keys."""
    was, scheduler = before["train"]["duration"], after["scheduler"]
    kept = [keys for keys in _followers(unresolved, was, after) if not _is_free(keys, after)]
    for keys in kept:
        old = _get(before, keys)
        notes.append(f"{'.'.join(keys)} stays {old}, as it was recorded (a value of its own makes it follow)")
        _put(after, keys, old)
    if any(keys[0] == "scheduler" for keys in kept) and scheduler["warmup"] and scheduler["planned_for"] is None:
        kept.append(("scheduler", "planned_for"))  # else the warmup would not be taken off any more
        scheduler["planned_for"] = was
    return kept


def _followers(unresolved: str, was: str, after: Mapping[str, Any]) -> list[Keys]:
    """The keys whose values come from `train.duration` by interpolation."""
    tree = OmegaConf.create(unresolved)
    OmegaConf.update(tree, "train.duration", was)
    data: Any = _resolve(tree)
    found = _differences(resolved(parse(data)), after)
    return [keys for keys, _, _ in found if keys != ("train", "duration")]


def _is_free(keys: Keys, config: Mapping[str, Any]) -> bool:
    monitor = config["scheduler"]["monitor"]
    # The objective and the best of a run are no part of its weights.
    if keys in (("train", "evaluate_every"), ("train", "evaluate_at_start")):
        return monitor is None and config["train"]["early_stop"] is None
    if keys == ("log", "every"):  # the means of training are those since a line of the log
        return not str(monitor).startswith("train/")
    return any(".".join(keys[:length]) in FREE for length in range(1, len(keys) + 1))


def _shorter(was: str, wanted: str) -> list[Mistake]:
    old, new = Duration.parse(was), Duration.parse(wanted)
    if old.unit != new.unit:
        return [Mistake("train.duration", f"must be in the same unit as was recorded ({was})", wanted)]
    if new.amount < old.amount:
        return [Mistake("train.duration", f"must not be shorter than what was recorded ({was})", wanted)]
    return []


def _differences(before: Any, after: Any, at: Keys = ()) -> Iterator[tuple[Keys, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in [*before, *(name for name in after if name not in before)]:
            yield from _differences(before.get(name, ABSENT), after.get(name, ABSENT), (*at, str(name)))
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


def _dotted(keys: Keys) -> str:
    return keys[0] + "".join(f"[{key}]" for key in keys[1:])
