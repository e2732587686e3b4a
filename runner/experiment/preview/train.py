"""Preview of the learning rates: the scheduler stepped on the config's optimizer, untrained."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from runner.config.schema import Config, Transform
from runner.core import rng
from runner.core.chart import Line, Panel, render_svg
from runner.core.durations import Duration
from runner.core.errors import RunError
from runner.experiment.builders import data as data_builder
from runner.experiment.builders import model as model_builder
from runner.experiment.builders import train as train_builder
from runner.experiment.builders.instantiate import Trust, instantiate
from runner.experiment.preflight import model as model_preflight
from runner.experiment.preflight import report as report_preflight
from runner.experiment.preflight import train as train_preflight

STAND_IN = train_preflight.STEPS_PER_EPOCH  # steps of an epoch where the data is not at hand


ROWS = 12  # of the table, besides the first and the last


def plan(config: Config, trust: Trust = (), steps_per_epoch: int | None = None) -> dict[str, Any]:
    """Compute the rate of each parameter group after every step, as plain data.

    Args:
        config: the checked config.
        trust: patterns of names trusted on the command line.
        steps_per_epoch: null: counted from the dataset, which is built but not read.

    Returns:
        `steps`, `steps_per_epoch`, `lr` (group → rates; the one at place k holds after k steps, as `metrics.jsonl` has
        it), `momentum` likewise where it is cycled, `warmup` (steps), `follows` (the metric that will change the rates
        too, or null), `notes`.
    """
    notes = []
    if steps_per_epoch is None:
        steps_per_epoch, note = count_steps(config, trust)
        notes += [note] if note else []
    total = Duration.parse(config.train.duration).steps(steps_per_epoch)
    optimizer = make_optimizer(config, trust)
    names = [str(group.get("name", place)) for place, group in enumerate(optimizer.param_groups)]
    rates: list[list[float]] = []
    momenta: list[list[float]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the optimizer that was not stepped before
        schedule = train_builder.make_schedule(config, optimizer, steps_per_epoch, total, trust)
        for step in range(total + 1):
            rates.append([float(group.get("lr", math.nan)) for group in optimizer.param_groups])
            momenta.append([_get_momentum(group) for group in optimizer.param_groups])
            if step < total:
                schedule.step()
                if steps_per_epoch and (step + 1) % steps_per_epoch == 0:
                    schedule.epoch()
    if schedule.monitor is not None:
        notes.append(
            f"the rates also depend on {schedule.monitor}: they are lowered when it does not get better, "
            "which only training shows; this is their course while it does"
        )
    cycled = len(set(map(tuple, momenta))) > 1
    warmup = getattr(schedule, "warmup", 0)
    if warmup > total:
        notes.append(f"the run has {total} steps and ends within the warmup of {warmup}")
    return {
        "steps": total,
        "steps_per_epoch": steps_per_epoch,
        "warmup": warmup,
        "follows": schedule.monitor,
        "lr": dict(zip(names, map(list, zip(*rates, strict=True)), strict=True)),
        "momentum": dict(zip(names, map(list, zip(*momenta, strict=True)), strict=True)) if cycled else None,
        "notes": notes,
    }


def _get_momentum(group: Mapping[str, Any]) -> float:
    return float(group["momentum"] if "momentum" in group else group.get("betas", [0.0])[0])


def make_optimizer(config: Config, trust: Trust = ()) -> torch.optim.Optimizer:
    """Make the config's optimizer over empty tensors that stand for a meta model's parameters."""
    with rng.fork_rng():
        model = model_preflight.build_meta_model(
            config, report_preflight.Preflight(), trust
        ) or model_builder.make_model(config, trust)
        loss = (
            None if config.loss is None else instantiate(config.loss, "loss", trust=trust, call=False, seed=config.seed)
        )
    frozen = model_builder.freeze_model(config, model)
    return train_preflight.make_stand_in_optimizer(
        config, model_builder.make_groups(config, model, frozen, trust, loss), trust
    )


def count_steps(config: Config, trust: Trust = ()) -> tuple[int, str]:
    """Count the optimizer steps of an epoch; if unknown, return a stand-in number and the reason.

    The training dataset is built, so that it can say its length; nothing is downloaded, and no sample is read.
    """
    duration = Duration.parse(config.train.duration)
    chosen, cpu = config.dataset, torch.device("cpu")
    train = dataclasses.replace(
        chosen, train=_suppress_download(chosen.train), source=_suppress_download(chosen.source), val=None, test=None
    )
    loader = dataclasses.replace(config.loader, in_memory=False, num_workers=0, collate_fn=None)
    quiet = dataclasses.replace(config, dataset=train, loader=loader, transform=Transform())
    try:
        parts = {name: part for name, part in data_builder.make_parts(quiet, trust).items() if name == "train"}
        found = data_builder.make_splits(quiet, parts, cpu, trust)["train"].num_batches
    except (RunError, OSError) as error:
        reason = str(error).partition(". Where this machine")[0]
        return STAND_IN, f"an epoch is taken to have {STAND_IN} steps (--epoch N says otherwise): {reason}"
    if found is None:
        if duration.unit == "ep":
            raise RunError("train.duration: an iterable dataset has no length, so it must be in steps (`500st`)")
        return 0, "the dataset does not know its length, so no epoch ends"
    return math.ceil(found / config.train.accumulate), ""


def _suppress_download(node: dict[str, Any] | None) -> Any:
    return node if node is None or not node.get("download") else {**node, "download": False}


def draw_schedule(planned: Mapping[str, Any], file: Path) -> None:
    """Draw the rates of each group, and the momentum if it is cycled, over epochs or steps."""
    length, steps = planned["steps_per_epoch"], planned["steps"]
    by_epoch = length > 0 and steps >= length
    every = max(1, steps // 1500)  # points: twice the pixels of the picture
    places = sorted({*range(0, steps, every), *(steps,)})
    panels = []
    for title, courses in (("learning rate", planned["lr"]), ("momentum", planned["momentum"])):
        if courses is not None:
            lines = [
                Line(name, [(place / length if by_epoch else place, course[place]) for place in places])
                for name, course in courses.items()
            ]
            panels.append(Panel(title, lines, "epoch" if by_epoch else "step"))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(render_svg(panels))


def format_table(planned: Mapping[str, Any]) -> str:
    """Format some steps as aligned text: the first, the end of the warmup, evenly spaced, the last."""
    steps, length = planned["steps"], planned["steps_per_epoch"]
    places = sorted(
        {0, min(planned["warmup"], steps), steps, *(round(steps * i / (ROWS + 1)) for i in range(ROWS + 2))}
    )
    courses = {f"lr/{name}" if len(planned["lr"]) > 1 else "lr": course for name, course in planned["lr"].items()}
    courses |= {f"momentum/{name}": course for name, course in (planned["momentum"] or {}).items()}
    lines = [["after step", "epoch", *courses]]
    for place in places:
        epoch = f"{place / length:.2f}" if length else ""
        lines.append([f"{place:,}", epoch, *(f"{course[place]:.6g}" for course in courses.values())])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(map(str.rjust, line, widths)) for line in lines]
    return "\n".join([*text, *(f"note: {note}" for note in planned["notes"])])
