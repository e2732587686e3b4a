"""The state of a run as a checkpoint holds it, and its restoration."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from torch import nn

from runner.core import rng
from runner.core.errors import ConfigError, Mistake, RunError
from runner.model.param_groups import compare_groups
from runner.train import metrics as metric_state
from runner.train.optimizer_step.split_on_oom import Splitting
from runner.train.state import Run


def state(run: Run) -> dict[str, Any]:
    """All that a resume needs: plain containers, numbers, strings and tensors."""
    parts = {name: run.layout.whole(part.state_dict()) for name, part in _with_state(run).items()}
    sampler = run.sampler_state if run.progress.batch else sampler_state(run)
    return {
        "model": run.layout.whole(run.model.state_dict()),
        "optimizer": run.layout.whole(run.optimizer.state_dict()),
        "scheduler": run.schedule.state_dict(),
        "scaler": None if run.scaler is None else run.scaler.state_dict(),
        "ema": None if run.average is None else run.layout.whole(run.average.state_dict()),
        "rng": _generators(run),
        "progress": vars(run.progress)
        | {"losses": list(run.losses.read()), "sizes": list(run.losses.sizes)}
        | {"averaged": 0 if run.average is None else run.average.count, "parts": getattr(run.update, "parts", 1)}
        | {"fields": run.losses.fields.state_dict()},
        "metrics": {name: metric_state.accumulators(metric) for name, metric in run.metrics["train"].items()},
        "step": parts | ({} if sampler is None else {"sampler": sampler}),
        "config": run.config,
    }


def restore(run: Run, saved: dict[str, Any], rescheduled: Iterable[str] = ()) -> None:
    """Put a checkpoint's state back into the live objects.

    Args:
        run: built from the same config.
        saved: what `state` gave.
        rescheduled: arguments of the scheduler that hold as they are now, not as they were saved.

    Raises:
        RunError: the checkpoint lacks something, or has something that this run does not know.
    """
    _same_keys(state(run), saved, "")
    run.model.load_state_dict(run.layout.model(run.model, saved["model"]))
    compare_groups(saved["optimizer"]["param_groups"], run.optimizer.param_groups)
    run.optimizer.load_state_dict(dict(run.layout.optimizer(run.optimizer, saved["optimizer"])))
    run.schedule.load_state_dict(_rescheduled(run, saved["scheduler"], rescheduled))
    fields = dict(saved["progress"])
    averaged, parts = fields.pop("averaged"), fields.pop("parts")
    if isinstance(run.update, Splitting):
        run.update.parts = parts
    if run.average is not None:  # one that is new (`--inexact`) begins with the weights as they are
        run.average.count = averaged
        run.average.load_state_dict(dict(run.layout.model(run.model, saved["ema"] or saved["model"])))
    if run.scaler is not None and saved["scaler"]:
        run.scaler.load_state_dict(saved["scaler"])
    run.losses.values, run.losses.sizes = fields.pop("losses"), fields.pop("sizes")
    run.losses.fields.load_state_dict(fields.pop("fields"))
    for name, value in fields.items():
        setattr(run.progress, name, value)
    for name, metric in run.metrics["train"].items():
        metric_state.set_accumulators(metric, saved["metrics"][name], run.device)
    for name, part in _with_state(run).items():
        own = saved["step"][name]
        part.load_state_dict(run.layout.model(part, own) if isinstance(part, nn.Module) else own)
    if sampler_of(run) is not None:
        sampler_of(run).load_state_dict(saved["step"]["sampler"])
    _set_generators(run, saved["rng"])


def _generators(run: Run) -> dict[str, Any]:
    """The state of the generators, and in `ranks` that of the other processes' (from 1 on)."""
    states: list[dict[str, Any]] = run.team.gather(rng.get_state())
    return states[0] | ({"ranks": states[1:]} if states[1:] else {})


def _set_generators(run: Run, saved: dict[str, Any]) -> None:
    states = [saved, *saved.get("ranks", [])]
    if run.team.rank < len(states):
        rng.set_state(states[run.team.rank])
    else:  # more processes than it was saved by, which is not exact
        rng.seed_all(rng.derive_key(run.seed, "train", *run.team.stream, run.progress.step))


def compare_model(model: nn.Module, saved: Mapping[str, Any]) -> None:
    """See whether a saved state_dict is one of this model.

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
    """What evaluating needs of a checkpoint: its `raw` weights or their `ema` (unless told, that where there is one).

    Raises:
        ConfigError: the checkpoint has no average.
    """
    if which == "ema" and saved["ema"] is None:
        raise ConfigError([Mistake("--weights", "must be raw: the checkpoint has no average of the weights", which)])
    weights = saved["model" if which == "raw" or saved["ema"] is None else "ema"]
    compare_model(run.model, weights)
    run.model.load_state_dict(weights)
    run.average = None
    for name, part in _with_state(run).items():
        part.load_state_dict(saved["step"][name])


def change_settings(run: Run, settings: Mapping[str, tuple[Any, Any]]) -> None:
    """Give the optimizer other settings than it was saved with, each with its old value: rates change in proportion."""
    for name, (old, new) in settings.items():
        if name == "lr" and old:
            run.schedule.scale(new / old)
        for group in run.optimizer.param_groups:
            if name == "lr" and old:
                group["lr"] = group["lr"] * new / old
            elif group.get(name) == old:
                group[name] = new


def _same_keys(ours: Mapping[str, Any], saved: Mapping[str, Any], at: str) -> None:
    for name in (ours.keys() ^ saved.keys()) - {"ranks"}:
        rule = "lacks" if name in ours else "has, and this run does not,"
        raise RunError(f"the checkpoint {rule} `{at}{name}`")
    for name in ("progress", "metrics", "step", "rng"):
        if not at:
            _same_keys(ours[name], saved[name], f"{name}.")


def _with_state(run: Run) -> dict[str, Any]:
    parts = {"step": run.step, "loss": run.loss}
    return {name: part for name, part in parts.items() if hasattr(part, "state_dict")}


def sampler_of(run: Run) -> Any:
    """The user's sampler of the train split where it has a state, else None."""
    sampler = run.splits["train"].sampler
    return sampler if hasattr(sampler, "state_dict") else None


def sampler_state(run: Run) -> Any:
    """A copy of the state of that sampler, as it is now."""
    sampler = sampler_of(run)
    return None if sampler is None else deepcopy(sampler.state_dict())


def _rescheduled(run: Run, saved: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The scheduler's saved state with some of its arguments as they were given anew."""
    if not saved.get("scheduler"):
        return saved
    now = run.schedule.state_dict()["scheduler"]
    names = [*names, "_schedule_phases"] if names else []  # what OneCycleLR makes of its length
    return saved | {"scheduler": saved["scheduler"] | {name: now[name] for name in names if name in now}}
