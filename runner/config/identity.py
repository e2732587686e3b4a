"""Hashes that identify jobs, replicates and sweeps by the settings that can change a result."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from runner.config.defaults import takes_floats
from runner.config.moved import with_first_names

# What cannot change a result, and why. Everything else counts, also what is not known yet.
WITHOUT_EFFECT = {
    "name": "names the output directory",
    "run": "names an existing run directory",
    "sweep": "says how jobs are run, not what they are",
    "actions": "they draw from streams of their own, and whatever they do to the model is undone",
    "on_event": "what is run at the end",
    "log": "logging draws no random number and reads nothing that training writes",
    "loader.num_workers": "order and augmentation are keyed by sample, not by worker",
    "loader.pin_memory": "where a batch waits, not what is in it",
    "loader.multiprocessing_context": "how workers are started",
    "loader.prefetch_factor": "how many batches wait",
    "loader.persistent_workers": "when workers are started",
    "loader.timeout": "how long a batch may take",
    "loader.eval.num_workers": "as loader.num_workers",
    "train.keep": "which checkpoints stay on the disk",
    "train.on_save_error": "what to do about a full disk",
}


# Keys younger than the first recorded sweeps, and what they were before they were there: so they change no identity.
ADDED_LATER: dict[str, Any] = {
    "pretrained.optimizer": False,
    "pretrained.epoch": None,
    "train.stop_when": {},
    "train.max_time_counts": "all",
    "train.average": None,
    "init.samples": 1024,
    "transform.views": None,
    "device.weights": "fp32",
    "freeze.from": None,
    "freeze.sets": {},
    "train.test_with": "last",
}


# What jobs that train as one stack may differ in: a value for each along the leading dimension, or a state of its own.
OF_EACH_JOB = (
    "seed",
    "init",
    "scheduler",
    "loss.label_smoothing",
    *(f"optimizer.{name}" for name in ("lr", "weight_decay", "momentum", "dampening", "nesterov", "maximize")),
    *(f"optimizer.{name}" for name in ("betas", "eps", "alpha")),
    *(f"train.{name}" for name in ("duration", "clip_norm", "clip_value", "ema", "ema_every", "max_time")),
    *(
        f"train.{name}"
        for name in ("evaluate_every", "evaluate_at_start", "checkpoint_every", "early_stop", "stop_when")
    ),
    *(f"train.{name}" for name in ("objective", "mode", "check_finite", "on_fault", "max_faults")),
)


_INDEXED = ("cuda:",)  # which of several devices of a kind: a slot gives each job its own


def compute_job_id(config: Mapping[str, Any]) -> str:
    """Hash a resolved config (every default filled in) without keys that cannot change its result."""
    return _hash(_drop_without_effect(config))


def compute_replicate_id(config: Mapping[str, Any]) -> str:
    """Hash a config as `compute_job_id` does, but without seed and fold: replicates share the hash."""
    kept = _drop_without_effect(config)
    if (kept.get("dataset") or {}).get("fold") is not None:
        kept = _without(kept, "dataset.fold")
    return _hash({key: value for key, value in kept.items() if key != "seed"})


def compute_stack_id(config: Mapping[str, Any]) -> str:
    """Hash a resolved config without what jobs of one stack may differ in (OF_EACH_JOB, some numbers)."""
    kept = _drop_without_effect(config)
    for key in OF_EACH_JOB:
        kept = _without(kept, key)
    for name, is_of_each_job in (("model", _is_float), ("param_groups", _is_number)):
        kept[name] = _replace_members(kept.get(name), is_of_each_job)
    return _hash(kept)


def _is_float(value: Any) -> bool:
    return type(value) is float


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _replace_members(value: Any, is_blanked: Callable[[Any], bool]) -> Any:
    """Replace the members of a nested value for which `is_blanked` holds by null."""
    if isinstance(value, Mapping):
        return {name: _replace_members(member, is_blanked) for name, member in value.items()}
    if isinstance(value, list):
        return [_replace_members(member, is_blanked) for member in value]
    return None if is_blanked(value) else value


def compute_sweep_id(base: Mapping[str, Any], swept: Collection[str]) -> str:
    """Hash the config that all jobs share, without the swept keys, together with their names.

    So a line, and the line with values added or taken away, is the same sweep.
    """
    shared = _drop_without_effect(base)
    for key in swept:
        shared = _without(shared, key.partition("@")[0].replace("/", "."))
    return f"sweep_{_hash([shared, sorted(swept)])[:10]}"


def _drop_without_effect(config: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = with_first_names(dict(config))
    for key in WITHOUT_EFFECT:
        kept = _without(kept, key)
    for key, default in ADDED_LATER.items():
        group, _, name = key.partition(".")
        if (kept.get(group) or {}).get(name) == default:
            kept = _without(kept, key)
    kept = {name: _with_floats(value) for name, value in kept.items()}
    device = dict(kept.get("device") or {})
    if str(device.get("type")).startswith(_INDEXED):
        device["type"] = str(device["type"]).partition(":")[0]
        kept["device"] = device
    return kept


def _with_floats(value: Any, target: str = "", name: str = "") -> Any:
    """Convert integers to floats where a component's signature says `float`: `1` becomes `1.0`."""
    if isinstance(value, Mapping):
        inner = str(value.get("_target_", ""))
        return {key: _with_floats(member, inner, str(key)) for key, member in value.items()}
    if isinstance(value, list):
        return [_with_floats(member, target, name) for member in value]
    is_meant = type(value) is int and bool(target) and abs(value) <= 2**53 and takes_floats(target, name)
    return float(value) if is_meant else value


def _without(config: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a copy without a dotted key; the config itself where the key is absent."""
    first, _, rest = key.partition(".")
    if first not in config:
        return config
    if not rest:
        return {name: value for name, value in config.items() if name != first}
    inner = config[first]
    return {**config, first: _without(inner, rest)} if isinstance(inner, dict) else config


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(_to_canonical(value)).encode()).hexdigest()[:16]


def _to_canonical(value: Any) -> Any:
    """Convert plain data for hashing: a component's arguments are sorted, other mappings keep order.

    The order of transforms, rules and groups decides, that of keyword arguments does not.
    """
    if isinstance(value, Mapping):
        names = sorted(value) if "_target_" in value else value
        return [[str(name), _to_canonical(value[name])] for name in names]
    return [_to_canonical(member) for member in value] if isinstance(value, list | tuple) else value
