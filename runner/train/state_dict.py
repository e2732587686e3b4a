"""State of a run as a checkpoint holds it, and its restoration."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from torch import nn

from runner.core import rng
from runner.core.errors import ConfigError, Mistake, RunError
from runner.model.param_groups import compare_groups
from runner.train.accumulators import get_accumulators, set_accumulators
from runner.train.lr_schedule import is_of
from runner.train.state import Run


def collect_state(run: Run) -> dict[str, Any]:
    """Collect all that a resume needs: plain containers, numbers, strings and tensors."""
    parts = {name: run.layout.whole(part.state_dict()) for name, part in _find_stateful_parts(run).items()}
    sampler = run.session.sampler_state if run.progress.batch else copy_sampler_state(run)
    slow = {} if run.average is None else run.average.collect_beginning()
    return {
        "model": run.layout.whole(run.model.state_dict()),
        "optimizer": run.layout.whole(run.optimizer.state_dict()),
        "scheduler": run.schedule.state_dict(),
        "scaler": None if run.scaler is None else run.scaler.state_dict(),
        "ema": None if run.average is None else run.layout.whole(run.average.state_dict()),
        "rng": _collect_generators(run),
        "progress": vars(run.progress)
        | {"losses": list(run.losses.read()), "sizes": list(run.losses.read_sizes())}
        | ({"sums": True} if run.losses.sums else {})
        | {"averaged": 0 if run.average is None else run.average.count, **run.update.state_dict()}
        | {"fields": run.losses.fields.state_dict()}
        | ({"slow": run.layout.whole(slow)} if slow else {}),
        "metrics": {name: get_accumulators(metric, f"metrics.{name}") for name, metric in run.metrics["train"].items()},
        "step": parts | ({} if sampler is None else {"sampler": sampler}),
        "config": run.config,
    }


def restore(run: Run, saved: dict[str, Any], rescheduled: Iterable[str] = ()) -> None:
    """Restore the live objects from a checkpoint's state.

    Args:
        run: built from the same config.
        saved: what `collect_state` gave.
        rescheduled: arguments of the scheduler that hold as they are now, not as they were saved.

    Raises:
        RunError: the checkpoint lacks something, or has something that this run does not know.
    """
    _check_same_keys(collect_state(run), saved, "")
    run.model.load_state_dict(run.layout.model(run.model, saved["model"]))
    compare_groups(saved["optimizer"]["param_groups"], run.optimizer.param_groups)
    run.optimizer.load_state_dict(dict(run.layout.optimizer(run.optimizer, saved["optimizer"])))
    run.schedule.load_state_dict(_replace_arguments(run, saved["scheduler"], rescheduled))
    fields = dict(saved["progress"])
    averaged, slow = fields.pop("averaged"), fields.pop("slow", None)
    run.update.load_state_dict({name: fields.pop(name) for name in run.update.state_dict()})
    if run.average is not None:  # one that is new (`--inexact`) begins with the weights as they are
        run.average.count = averaged
        average = dict(run.layout.model(run.model, slow or saved["ema"] or saved["model"]))
        run.average.load_state_dict(average, is_beginning=slow is not None)
    if run.scaler is not None and saved["scaler"]:
        run.scaler.load_state_dict(saved["scaler"])
    run.losses.values, run.losses.sizes = fields.pop("losses"), fields.pop("sizes")
    run.losses.sums = fields.pop("sums", run.losses.sums)
    run.losses.fields.load_state_dict(fields.pop("fields"))
    for name, value in ({"acted_at": fields["step"]} | fields).items():
        setattr(run.progress, name, value)
    for name, metric in run.metrics["train"].items():
        set_accumulators(metric, saved["metrics"][name], run.device)
    for name, part in _find_stateful_parts(run).items():
        own = saved["step"][name]
        part.load_state_dict(run.layout.model(part, own) if isinstance(part, nn.Module) else own)
    if find_sampler(run) is not None:
        find_sampler(run).load_state_dict(saved["step"]["sampler"])
    _set_generators(run, saved["rng"])


def _collect_generators(run: Run) -> dict[str, Any]:
    """Collect the random generator state; `ranks` holds that of the other processes (from 1 on)."""
    own = run.session.streams
    states: list[dict[str, Any]] = run.team.gather(rng.get_state() if own is None else own)
    return states[0] | ({"ranks": states[1:]} if states[1:] else {})


def _set_generators(run: Run, saved: dict[str, Any]) -> None:
    states = [saved, *saved.get("ranks", [])]
    if run.team.rank < len(states):
        rng.set_state(states[run.team.rank])
    else:  # more processes than it was saved by, which is not exact
        rng.seed_all(rng.derive_key(run.seed, "train", *run.team.stream, run.progress.step))


def compare_model(model: nn.Module, saved: Mapping[str, Any]) -> None:
    """Compare a saved state_dict with the model's names and shapes.

    Raises:
        RunError: tensors are missing, unknown, or of another shape; all of them are named, or the first few.
    """
    own = model.state_dict()
    differences = {
        "the checkpoint lacks": [name for name in own if name not in saved],
        "the model lacks": [name for name in saved if name not in own],
        "other shapes have": [
            f"{name} ({list(tensor.shape)}, saved as {list(saved[name].shape)})"
            for name, tensor in own.items()
            if name in saved and hasattr(tensor, "shape") and tensor.shape != saved[name].shape
        ],
    }
    said = [f"{what} {', '.join(names[:4])}{' …' * (len(names) > 4)}" for what, names in differences.items() if names]
    if said:
        raise RunError(f"the model is not the one that was saved: {'; '.join(said)}")


def put_weights(run: Run, saved: dict[str, Any], which: str = "") -> None:
    """Load the `raw` or `ema` weights for an evaluation; by default `ema` if the checkpoint has it.

    Raises:
        ConfigError: the checkpoint has no average.
    """
    weights = choose_weights(saved, which)
    compare_model(run.model, weights)
    run.model.load_state_dict(weights)
    run.average = None
    for name, part in _find_stateful_parts(run).items():
        part.load_state_dict(saved["step"][name])


def choose_weights(saved: Mapping[str, Any], which: str = "") -> dict[str, Any]:
    """Choose the `raw` or `ema` weights of a checkpoint; by default `ema` if it has them.

    Raises:
        ConfigError: the checkpoint has no average.
    """
    if which == "ema" and saved["ema"] is None:
        raise ConfigError(
            [Mistake("--weights", "must be raw: the checkpoint has no average of the weights", which, kind="conflict")]
        )
    weights: dict[str, Any] = saved["model" if which == "raw" or saved["ema"] is None else "ema"]
    return weights


def change_settings(run: Run, settings: Mapping[str, tuple[Any, Any]]) -> None:
    """Set optimizer settings, given as (old, new) by name; learning rates scale in proportion.

    A name is `lr`, or `generator.lr` for one of several optimizers.
    """
    for key, (old, new) in settings.items():
        owner, _, name = key.rpartition(".")
        if name == "lr" and old:
            run.schedule.scale(new / old, owner)
        for group in (group for group in run.optimizer.param_groups if is_of(group, owner)):
            if name == "lr" and old:
                group["lr"] = group["lr"] * new / old
            elif group.get(name) == old:
                group[name] = new


ADDED_LATER = ("sums", "acted_at", "seconds_training", "slow")  # not in checkpoints of earlier releases: have defaults


def _check_same_keys(ours: Mapping[str, Any], saved: Mapping[str, Any], at: str) -> None:
    for name in (ours.keys() ^ saved.keys()) - {"ranks", *ADDED_LATER}:
        rule = "lacks" if name in ours else "has, and this run does not,"
        raise RunError(f"the checkpoint {rule} `{at}{name}`")
    for name in ("progress", "metrics", "step", "rng"):
        if not at:
            _check_same_keys(ours[name], saved[name], f"{name}.")


def _find_stateful_parts(run: Run) -> dict[str, Any]:
    parts = {"step": run.step, "loss": run.loss}
    stateful = {name: part for name, part in parts.items() if hasattr(part, "state_dict")}
    return stateful | ({"fitted": run.fitted} if run.fitted.parts else {})


def find_sampler(run: Run) -> Any:
    """Return the user's sampler of the train split if it has a state_dict, else None."""
    sampler = run.splits["train"].sampler
    return sampler if hasattr(sampler, "state_dict") else None


def copy_sampler_state(run: Run) -> Any:
    """Copy the current state of the train split's sampler; None without a stateful one."""
    sampler = find_sampler(run)
    return None if sampler is None else deepcopy(sampler.state_dict())


def _replace_arguments(run: Run, saved: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Replace some arguments in the scheduler's saved state by their current values."""
    if not saved.get("scheduler"):
        return saved
    now = run.schedule.state_dict()["scheduler"]
    names = [*names, "_schedule_phases"] if names else []  # what OneCycleLR makes of its length
    return saved | {"scheduler": saved["scheduler"] | {name: now[name] for name in names if name in now}}
