"""Builder of a run, in this order: device, data, model and its preparation, optimizer, schedule."""

import math
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from runner.config.component_settings import list_components
from runner.config.schema import Config
from runner.core import device as devices
from runner.core import durations, rng
from runner.core.durations import Duration
from runner.core.errors import RunError
from runner.data.splitting import describe_names
from runner.experiment.builders import data as data_builder
from runner.experiment.builders import model as model_builder
from runner.experiment.builders.instantiate import Trust, instantiate
from runner.experiment.builders.lending import Loan, lend
from runner.experiment.builders.log import make_monitor
from runner.experiment.builders.train import (
    choose_objective,
    compile_in_place,
    make_actions,
    make_average,
    make_derived,
    make_metric_input,
    make_metrics,
    make_optimizer,
    make_optimizer_step,
    make_scaler,
    make_schedule,
    make_views,
    match_saved_optimizer,
    parse_interval,
    require_step_durations,
)
from runner.model.pretrained.optimizer_state import count_steps
from runner.model.weight_dtype import convert_weights
from runner.train.checkpoint import Checkpoints, ReadOnlyCheckpoints
from runner.train.distributed import data_parallel
from runner.train.distributed.process_group import ProcessGroup
from runner.train.loss_weights import is_summed
from runner.train.lr_schedule import trace_rates
from runner.train.metric_inputs import list_fields
from runner.train.optimizer_step.closure import is_custom_step, needs_closure
from runner.train.optimizer_step.precision import DTYPES
from runner.train.single_process import SINGLE_PROCESS, FullTensors, SingleProcess
from runner.train.state import Losses, Objective, Rhythm, Run, Threshold
from runner.train.step_outputs import RESERVED
from runner.train.steps import needs_input_and_target
from runner.train.trace import NoTrace, Trace


def build(
    config: Config, folder: Path, plain: dict[str, Any], trust: Trust = (), team: SingleProcess = SINGLE_PROCESS
) -> Run:
    """Build every object of a run.

    Args:
        config: the checked config.
        folder: the run directory.
        plain: the config as it will stand in checkpoints.
        trust: patterns of names trusted on the command line.
        team: the processes that train together.

    Raises:
        RunError: data, download or device refuse.
    """
    with lend(Loan(folder)) as loan:
        return _build_parts(config, folder, plain, trust, team, loan)


def _build_parts(
    config: Config, folder: Path, plain: dict[str, Any], trust: Trust, team: SingleProcess, loan: Loan
) -> Run:
    device = devices.choose(config.device.type, team.local_rank)
    devices.set_up(device, config.device.threads, config.device.deterministic, config.device.precision)
    team.start(device)
    rng.seed_all(rng.derive_key(config.seed, "build"))  # what no slot's own stream covers: a label read, a cache filled
    loan.fitted.recall = lambda: data_builder.read_fitted(folder)
    parts, splits = _build_data(config, device, trust, folder, team, loan)
    train = splits["train"]
    if train.num_batches == 0:
        raise RunError(describe_empty_epoch(config, train.size, team.world))
    if train.num_batches is None:
        require_step_durations(config)
    rhythm = make_rhythm(config, train.num_batches or 0)
    steps_per_epoch, total_steps = rhythm.steps_per_epoch, rhythm.total_steps
    loan.set_lengths(steps_per_epoch, total_steps)
    name, mode = choose_objective(config, splits)
    kind = Checkpoints if team.rank == 0 else ReadOnlyCheckpoints
    checkpoints = kind(folder / "checkpoints", keep=config.train.keep, mode=mode)
    is_new = not checkpoints.entries()
    model = model_builder.make_model(config, trust)
    with team.first():
        done = model_builder.prepare_model(
            config, model, trust, weights=is_new, batch=partial(data_builder.make_init_batch, config, parts, trust)
        )
    model = convert_weights(model, DTYPES.get(config.device.weights)).to(device=device)
    if config.device.memory_format == "channels_last" and config.device.parallel != "fsdp":  # it shards rows of weights
        model = model.to(memory_format=torch.channels_last)
    if config.device.compile:
        compile_in_place(model, config.device.compile)
    node = data_builder.add_class_weights(config, parts)
    loss = None if node is None else instantiate(node, "loss", trust=trust, call=False, seed=config.seed)
    if isinstance(loss, nn.Module):
        loss = loss.to(device)
    layout = data_parallel.shard_model(config.device.parallel, team, done.frozen, model, loss)
    groups = model_builder.make_groups(config, model, done.frozen, trust, loss)
    optimizer = make_optimizer(config, groups, device, trust)
    layout.ready(optimizer)
    step = instantiate(config.step, "step", trust=trust, call=False, seed=config.seed)
    scaler = make_scaler(config, step, optimizer, device)
    metrics = {which: make_metrics(config, device, trust, which) for which in ("train", "eval")}
    inputs = {
        which: [make_metric_input(config, name, metric) for name, metric in made.items()]
        for which, made in metrics.items()
    }
    actions = make_actions(config, trust)
    average = make_average(config, model, rhythm, layout)
    update = make_optimizer_step(config, device, model, loss, step, optimizer, inputs["train"], average, scaler)
    dataset = parts["train"][0] if "train" in parts else None
    run = Run(
        folder=folder,
        seed=config.seed,
        device=device,
        model=model,
        loss=loss,
        step=step,
        optimizer=optimizer,
        update=update,
        looks=make_monitor(config, model, update, optimizer, device, folder, dataset, team, trust),
        scaler=scaler,
        schedule=make_schedule(config, optimizer, steps_per_epoch, total_steps, trust),
        splits=splits,
        metrics=metrics,
        inputs=inputs,
        derived=make_derived(config),
        actions=actions,
        datasets=collect_datasets(parts) if actions else {},
        losses=Losses(
            RESERVED | list_fields([*inputs["train"], *inputs["eval"]]),
            sums=loss is not None and needs_input_and_target(step) and is_summed(loss),
        ),
        checkpoints=checkpoints,
        rhythm=rhythm,
        objective=Objective(name, mode, tuple(split for split in splits if split not in ("train", "test"))),
        average=average,
        views=make_views(config, trust),
        config=plain,
        pretrained=done.pretrained,
        frozen=done.frozen,
        names=describe_names(dataset),
        team=team,
        layout=layout,
        fitted=loan.fitted,
        trace=make_trace(config, team),
    )
    loan.progress.at = run.progress
    if uses_data_parallel(config, device, step, optimizer):
        run.update.net = data_parallel.wrap_data_parallel(model)
    if isinstance(team, ProcessGroup):
        data_parallel.share(run, team, config.device.find_unused_parameters, config.device.sync_batchnorm)
    if is_new:
        continue_saved(config, run, trust)
    return run


def collect_datasets(parts: data_builder.Parts) -> dict[str, Any]:
    """Collect the raw samples of each split, for the actions."""
    return {
        name: dataset if indices is None else Subset(dataset, indices.tolist())
        for name, (dataset, indices) in parts.items()
    }


def _build_data(
    config: Config, device: torch.device, trust: Trust, folder: Path, team: SingleProcess, loan: Loan
) -> tuple[data_builder.Parts, dict[str, Any]]:
    """Build datasets and splits; again where an argument in epochs waited for the length of an epoch.

    Raises:
        RunError: the epochs have no length, or one that depends on the steps of such an argument.
    """
    with team.first():
        parts = data_builder.make_parts(config, trust)
        where = (device, trust, folder if team.rank == 0 else None, team.rank, team.world)
        splits = data_builder.make_splits(config, parts, *where)
        if loan.waiting:
            parts, splits = rebuild_in_steps(config, where, splits, loan)
    if loan.fitted.parts:
        hashes = team.every({key: part["sha256"] for key, part in loan.fitted.describe().items()})
        if different := [key for key in hashes[0] if any(other[key] != hashes[0][key] for other in hashes)]:
            raise RunError(f"{', '.join(different)}: `fit` has learnt something else in another process")
    return parts, splits


def rebuild_in_steps(
    config: Config, where: tuple[Any, ...], splits: Mapping[str, Any], loan: Loan
) -> tuple[data_builder.Parts, dict[str, Any]]:
    """Build the data again, now that the length of an epoch is known, with durations as steps.

    Raises:
        RunError: the epochs have no length, or one that depends on these steps.
    """
    count, keys = splits["train"].num_batches, ", ".join(dict.fromkeys(loan.waiting))
    if count is None:
        raise RunError(f"an iterable dataset has no length, so these must be in steps (`500st`): {keys}")
    loan.steps_per_epoch = math.ceil(count / config.train.accumulate)
    loan.takers.clear()
    loan.fitted.clear()
    loan.shared.clear()
    parts = data_builder.make_parts(config, where[1])
    again = data_builder.make_splits(config, parts, *where)
    if again["train"].num_batches != count:
        raise RunError(
            f"{keys}: the epochs have {again['train'].num_batches} batches with these as steps, and {count} with "
            "others, so a duration in epochs has no meaning there: write steps (`500st`)"
        )
    return parts, again


def make_trace(config: Config, team: SingleProcess) -> NoTrace:
    """Make the trace, of the first process; shards of a model would ask the others, so fsdp has none."""
    return Trace() if config.log.trace and team.rank == 0 and config.device.parallel != "fsdp" else NoTrace()


def make_rhythm(config: Config, num_batches: int) -> Rhythm:
    """Make the lengths and intervals of a run, of which an epoch has `num_batches` batches (0: not known)."""
    train = config.train
    steps_per_epoch = math.ceil(num_batches / train.accumulate)
    total_steps = Duration.parse(train.duration).steps(steps_per_epoch)
    first_step = (config.pretrained.epoch or 0) * steps_per_epoch
    return Rhythm(
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        log_every=Duration.parse(config.log.every),
        evaluate_every=parse_interval(train.evaluate_every),
        checkpoint_every=parse_interval(train.checkpoint_every),
        first_step=first_step if first_step < total_steps else 0,
        accumulate=train.accumulate,
        log_means=config.log.mean,
        evaluate_at_start=train.evaluate_at_start,
        early_stop=train.early_stop,
        stop_when=tuple(
            Threshold(name, value.below, value.above) for name, value in train.stop_when.items() if value is not None
        ),
        max_seconds=None if train.max_time is None else durations.parse_seconds(train.max_time),
        own_rhythms=tuple(
            Duration.parse(node["every"])
            for node in list_components(config.metrics).values()
            if node.get("every") is not None and node.get("on", "both") != "eval"
        ),
        max_time_counts=train.max_time_counts,
        check_finite=train.check_finite,
        on_save_error=train.on_save_error,
    )


def continue_saved(config: Config, run: Run, trust: Trust = ()) -> None:
    """Continue a saved training: set `pretrained.epoch` and load the file's optimizer state."""
    made = run.pretrained
    said: list[str] = []
    if run.rhythm.first_step:
        run.progress.step, run.progress.epoch = run.rhythm.first_step, config.pretrained.epoch or 0
        rates = trace_rates(run.schedule, run.optimizer, 0, run.rhythm.first_step, run.rhythm.steps_per_epoch)[-1]
        shown = ", ".join(f"{rate:.6g}" for rate in dict.fromkeys(rates))
        said.append(
            f"training begins after epoch {run.progress.epoch} (step {run.rhythm.first_step:,}), with the rate {shown}"
        )
        if run.schedule.monitor is not None:
            said.append("scheduler.monitor: what the schedule has seen of it before is not known, so it begins anew")
    if made is None:
        return
    if made.optimizer is not None:
        matched = match_saved_optimizer(config, made, run.optimizer, trust)
        load_entries(run.optimizer, matched.entries, run.layout)
        steps, each = count_steps(made.optimizer), run.rhythm.steps_per_epoch
        if steps and config.pretrained.epoch is not None and steps != config.pretrained.epoch * each:
            epochs = f"{steps / each:.6g} epochs of {each:,} steps here"
            said.append(
                f"its optimizer has taken {steps:,} steps, {epochs}: pretrained.epoch is {config.pretrained.epoch}"
            )
        said += matched.said
        made.optimizer = None  # its tensors are no longer needed
    made.begins += said


def load_entries(
    optimizer: torch.optim.Optimizer, entries: Mapping[str, Mapping[str, Any]], layout: FullTensors
) -> None:
    """Load optimizer state by parameter name; other parameters' state and all settings stay."""
    own = optimizer.state_dict()
    for group in own["param_groups"]:
        for number, name in zip(group["params"], group["param_names"], strict=True):
            if name in entries:  # copies: tensors of a file may share their memory
                own["state"][number] = {key: deepcopy(value) for key, value in entries[name].items()}
    optimizer.load_state_dict(dict(layout.optimizer(optimizer, own)))


def uses_data_parallel(config: Config, device: torch.device, step: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Return whether `nn.DataParallel` splits each batch: if set, or with `auto` on several GPUs."""
    if config.device.parallel != "auto":
        return config.device.parallel == "data_parallel"
    several_gpus = device.type == "cuda" and config.device.type in ("auto", "cuda") and torch.cuda.device_count() > 1
    return several_gpus and not is_custom_step(step) and not needs_closure(optimizer)


def describe_empty_epoch(config: Config, size: int, world: int) -> str:
    """Describe why a training epoch has no batch, and the setting to change."""
    each = config.loader.batch_size
    if each is None:
        return "train gives no batch (loader.batch_size is null, so the dataset makes them): there is no step"
    if config.loader.batch_sampler is not None or not config.loader.drop_last:
        key = "loader.batch_sampler" if config.loader.batch_sampler is not None else "loader.sampler"
        return f"{key} gives no batch of the {size:,} samples of train: there is no step"
    whole = f"loader.batch_size={each}" + (f" times {world} processes" if world > 1 else "")
    return (
        f"train has {size:,} samples, fewer than {whole}, and loader.drop_last=true drops them: there is no step. "
        f"Take loader.drop_last=false or loader.batch_size={max(1, size // world)}"
    )
