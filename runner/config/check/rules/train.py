"""Rules for `optimizer`, `scheduler`, `train` and `device`: contradictions, unused settings."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Literal

from runner.config import schema
from runner.config.check.rules.rule import MINIMISE, SUPERVISED, TAKE_MODEL_LOSS, Finding, find_unused_settings
from runner.config.component_settings import list_components, list_derived, read_sources
from runner.config.nodes import find_member_nodes
from runner.config.parsing import read_part
from runner.config.schema import PROCESSES
from runner.config.suggestions import find_nearest, format_suggestion
from runner.core.durations import Duration, is_duration
from runner.core.errors import Mistake
from runner.core.expression import measure_slope, parse_expression

PLATEAU = "ReduceLROnPlateau"


CUDA_GRAPHED = ("reduce-overhead", "max-autotune")  # torch.compile's modes that capture CUDA graphs


def find_metric_names(config: schema.Config) -> tuple[list[str], list[str]]:
    """Return the metric names `<split>/<metric>` of training, and the prefixes of open-ended ones."""
    splits = ["train"]
    if config.dataset.val is not None or (
        config.dataset.source is not None and (config.dataset.val_fraction > 0 or config.dataset.folds is not None)
    ):
        splits.insert(0, "val")
    splits += [name for name, node in config.dataset.evaluate.items() if node is not None]
    metrics, derived = list_components(config.metrics), list_derived(config.metrics)

    def is_there(name: str, split: str) -> bool:
        return metrics[name].get("on", "both") in ("both", "train" if split == "train" else "eval")

    there = {split: [name for name in metrics if is_there(name, split)] for split in splits}
    names = [f"{split}/{name}" for split in splits for name in ("loss", *there[split], *derived)]
    prefixes = [
        f"{split}/{name}/"
        for split in splits
        for name in there[split]
        if not str(metrics[name].get("_target_")).startswith("runner.train.metrics.")
    ]
    return names, prefixes


def find_direction(config: schema.Config, name: str) -> Literal["min", "max"]:
    """Find whether less of a value is better: of a loss, and of what rises with it."""
    inner = name.partition("/")[2]
    if inner == "loss":
        return "min"
    number = list_derived(config.metrics).get(inner)
    if number is None:
        return "max"
    sources, split = read_sources(number), name.partition("/")[0]
    if len(sources) != 1:
        return "max"
    ((label, source),) = sources.items()
    base: Literal["min", "max"] = "max" if source == inner else find_direction(config, f"{split}/{source}")
    return base if measure_slope(number.function, label) >= 0 else "max" if base == "min" else "min"


def find_stop_names(config: schema.Config) -> dict[str, str | None]:
    """Return the metrics of `train.stop_when` by their keys."""
    return {f"train.stop_when.{name}": name for name, value in config.train.stop_when.items() if value is not None}


def check_stop_values(config: schema.Config) -> Iterator[Finding]:
    """Check that each metric of `train.stop_when` has a bound, and a value while training."""
    for name, value in config.train.stop_when.items():
        key = f"train.stop_when.{name}"
        if value is not None and value.below is None and value.above is None:
            rule = "must have `below`, `above`, or both"
            yield Finding(Mistake(key, rule, remedy="write `{below: 0.001}`, for instance", kind="missing"), (key,))
        if value is not None and config.train.evaluate_every is None and not name.startswith("train/"):
            rule = "has no effect while `train.evaluate_every` is null: there is one evaluation, at the end"
            yield Finding(Mistake(key, rule, remedy="leave it out", kind="no-effect"), ("train.evaluate_every",))


def check_metric_names(config: schema.Config) -> Iterator[Finding]:
    """Yield findings about metric names that no line of the log has."""
    names, prefixes = find_metric_names(config)
    if config.metrics.get("loss") is not None:
        rule = "must have another name: `train/loss` and `val/loss` are the loss itself"
        yield Finding(Mistake("metrics.loss", rule, remedy="name it `metrics.own_loss`, for instance", kind="conflict"))
    yield from check_derived(config)
    uses = {"train.objective": config.train.objective, **find_stop_names(config)}
    if PLATEAU in (config.scheduler._target_ or ""):
        uses["scheduler.monitor"] = config.scheduler.monitor
        if config.scheduler.monitor is None:
            rule = f"must be given: {PLATEAU} waits for a metric"
            yield Finding(
                Mistake(
                    "scheduler.monitor", rule, remedy=format_suggestion(names[0]), suggestion=names[0], kind="missing"
                )
            )
    for key, name in uses.items():
        if name is None or name in names or name.startswith(tuple(prefixes)):
            continue
        if config.step["_target_"] != SUPERVISED and any(name.startswith(known.split("/")[0] + "/") for known in names):
            continue  # perhaps a field of its own, which the preflight will see
        bare = next((known for known in names if known.partition("/")[2] == name), "")
        right = bare or find_nearest(name, names) or find_nearest(name.replace("_", "/", 1), [*names, ""])
        if not right and "/" in name:
            right = next((known for known in names if known.partition("/")[2] == name.partition("/")[2]), "")
        if name.replace("_", "/", 1) in names:
            right = name.replace("_", "/", 1)
        rule = f"must be one of {', '.join(f'`{known}`' for known in names)}: nothing else is produced while training"
        only_the_split = name.partition("/")[2] in {known.partition("/")[2] for known in names}
        follows_from = ("metrics", "dataset") if only_the_split else ("metrics",)
        yield Finding(Mistake(key, rule, name, remedy=format_suggestion(right), suggestion=right), follows_from)


def check_derived(config: schema.Config) -> Iterator[Finding]:
    """Check the expressions of derived numbers, and what they are derived from."""
    derived = list_derived(config.metrics)
    known = ["loss", *list_components(config.metrics)]
    for name, number in derived.items():
        sources = read_sources(number)
        try:
            used = parse_expression(number.function, frozenset(sources)).names
        except ValueError as error:
            yield Finding(Mistake(f"metrics.{name}.as", str(error), number.function), (f"metrics.{name}",))
            continue
        for label in sources.keys() - used:
            yield Finding(
                Mistake(
                    f"metrics.{name}.of.{label}",
                    "has no effect: `as` does not use it",
                    sources[label],
                    kind="no-effect",
                )
            )
        for source in sources.values():
            head, supervised = source.partition("/")[0], config.step["_target_"] == SUPERVISED
            if head not in known and (supervised or head in ("train", "val", "test") or source in derived):
                right = find_nearest(source.rpartition("/")[2], known)
                rule = f"must be a value without its split: one of {', '.join(known)}"
                yield Finding(
                    Mistake(f"metrics.{name}.of", rule, source, remedy=format_suggestion(right), suggestion=right),
                    ("metrics",),
                )
        known.append(name)
        is_objective = (config.train.objective or "").partition("/")[2] == name
        plain = len(sources) == 1 and measure_slope(number.function, *sources)
        if is_objective and config.train.mode is None and not plain:
            rule = f"must be given: whether less of {config.train.objective} is better does not follow from `as`"
            yield Finding(Mistake("train.mode", rule, remedy="write `min` or `max`", kind="missing"))


def check_test_weights(config: schema.Config) -> Iterator[Finding]:
    """Check that there is a test split for `train.test_with`, and a checkpoint of the best evaluation."""
    if config.train.test_with == "last":
        return
    if config.dataset.test is None and not (config.dataset.source is not None and config.dataset.test_fraction > 0):
        rule = "has no effect without a test split"
        mistake = Mistake("train.test_with", rule, "best", remedy="leave it at `last`", suggestion="last")
        yield Finding(mistake, ("dataset",))
    elif config.train.checkpoint_every is None:
        rule = "must be given with train.test_with=best: null saves the last weights only"
        yield Finding(
            Mistake("train.checkpoint_every", rule, None, suggestion="1ep", remedy=format_suggestion("1ep")),
            ("train.test_with",),
        )
    elif config.device.parallel == "fsdp":
        rule = "must be last with device.parallel=fsdp: each process holds a part of the last weights only"
        yield Finding(
            Mistake("train.test_with", rule, "best", suggestion="last", kind="conflict"), ("device.parallel",)
        )


def check_actions(config: schema.Config) -> Iterator[Finding]:
    """Check the names of actions, and that one process has the whole model to call them with."""
    splits = ("train", "val", "test", "lr", "step", "epoch", *config.dataset.evaluate)
    for name, node in config.actions.items():
        if node is not None and (name in splits or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)):
            rule = "must be a name of its own (letters, digits, `_`, `-`, `.`; no split): its artifacts stand below it"
            yield Finding(Mistake(f"actions.{name}", rule))
    if config.device.parallel == "fsdp" and any(config.actions.values()):
        rule = "must be none with device.parallel=fsdp: the first process calls them, and has a part of the model only"
        name = next(name for name, node in config.actions.items() if node is not None)
        yield Finding(Mistake(f"actions.{name}", rule, kind="conflict"), ("device.parallel",))


def check_processes(config: schema.Config) -> Iterator[Finding]:
    """Yield findings about settings that training on several processes cannot have."""
    device = config.device
    if device.parallel in PROCESSES:
        if device.type.startswith("cuda:"):
            rule = f"must not name one GPU with device.parallel={device.parallel}: each process takes that of its rank"
            yield Finding(
                Mistake("device.type", rule, device.type, suggestion="cuda", kind="conflict"), ("device.parallel",)
            )
        if config.train.on_fault != "stop":
            rule = f"must be stop with device.parallel={device.parallel}: one process alone can look for a fault"
            yield Finding(
                Mistake("train.on_fault", rule, config.train.on_fault, suggestion="stop", kind="conflict"),
                ("device.parallel",),
            )
        if config.loader.bad_samples == "skip":
            rule = f"must be error with device.parallel={device.parallel}: they count a batch before it is read"
            yield Finding(
                Mistake("loader.bad_samples", rule, "skip", suggestion="error", kind="conflict"), ("device.parallel",)
            )
    elif device.parallel == "data_parallel" and device.type not in ("auto", "cuda"):
        rule = "must be auto or cuda with device.parallel=data_parallel, which splits batches over all GPUs"
        yield Finding(
            Mistake("device.type", rule, device.type, suggestion="cuda", kind="conflict"), ("device.parallel",)
        )


def _check_process_limits(config: schema.Config) -> Iterator[Finding]:
    device = config.device
    if device.parallel not in PROCESSES:
        return
    if config.dataset.steps_per_epoch is not None:
        rule = "must be none without data (`dataset.steps_per_epoch`): there is no batch to share"
        yield Finding(Mistake("device.parallel", rule, device.parallel, kind="conflict"), ("dataset.steps_per_epoch",))
    if device.parallel == "fsdp" and device.precision == "fp16":
        rule = "must not be fp16 with device.parallel=fsdp: each process would scale by what it sees in its own part"
        yield Finding(
            Mistake("device.precision", rule, "fp16", suggestion="bf16", kind="conflict"), ("device.parallel",)
        )
    if config.train.split_on_oom:
        rule = (
            f"must be false with device.parallel={device.parallel}: the others would wait for the one that tries again"
        )
        yield Finding(
            Mistake("train.split_on_oom", rule, value=True, suggestion="false", kind="conflict"), ("device.parallel",)
        )


def find_training_contradictions(config: schema.Config) -> Iterator[Finding]:
    """Yield findings about settings of training that contradict each other."""
    device, train, step = config.device, config.train, config.step.get("_target_")
    if device.compile in CUDA_GRAPHED and train.accumulate > 1:
        rule = "must not stand beside `train.accumulate`: its CUDA graphs lose gradients then (pytorch#169545)"
        right = "default" if device.compile == "reduce-overhead" else "max-autotune-no-cudagraphs"
        yield Finding(
            Mistake("device.compile", rule, device.compile, suggestion=right, kind="conflict"), ("train.accumulate",)
        )
    if device.weights == "fp16" and device.precision == "fp16":
        rule = "must not be fp16 with device.weights=fp16: a GradScaler scales gradients of weights in fp32"
        yield Finding(
            Mistake("device.precision", rule, "fp16", suggestion="fp32", kind="conflict"), ("device.weights",)
        )
    loss = "" if config.loss is None else str(config.loss.get("_target_"))
    if loss.endswith((".BCELoss", ".binary_cross_entropy")) and device.precision in ("bf16", "fp16"):
        rule = f"is refused by torch in {device.precision} on a GPU: small probabilities become 0"
        remedy = "let the model give logits, and take torch.nn.BCEWithLogitsLoss"
        if device.type != "cpu":
            yield Finding(
                Mistake("loss._target_", rule, loss, remedy=remedy, kind="conflict"), ("device.precision", "loss")
            )
    yield from _check_process_limits(config)
    if config.dataset.steps_per_epoch is not None and step == SUPERVISED:
        rule = "needs data, and `dataset.steps_per_epoch` says that there is none"
        yield Finding(Mistake("step._target_", rule, step, kind="conflict"), ("dataset.steps_per_epoch", "step"))
    if config.loss is None and step == SUPERVISED:
        rule = "must be given: the supervised step calls it"
        yield Finding(Mistake("loss", rule, value=None, kind="missing"), ("step", "loss"))


def check_member_schedules(config: schema.Config) -> Iterator[Finding]:
    """Check the schedules of several optimizers, each as the one of a single optimizer."""
    for name, node in find_member_nodes(config.optimizer).items():
        chosen = read_part(schema.MemberOptimizer, node, ("optimizer", name))[0]
        chosen = getattr(chosen, "scheduler", None)
        if chosen is None:
            continue
        place = f"optimizer.{name}."
        if chosen.monitor is not None or PLATEAU in (chosen._target_ or ""):
            key = f"{place}scheduler.{'_target_' if chosen.monitor is None else 'monitor'}"
            rule = "must stand in `scheduler`, for all optimizers: one metric is followed"
            yield Finding(Mistake(key, rule, chosen.monitor or chosen._target_, kind="conflict"))
            continue
        alone = dataclasses.replace(config, scheduler=chosen)
        for finding in (*check_scheduler(chosen), *check_one_cycle(alone), *find_too_long(alone)):
            if finding.mistake.key.startswith("scheduler."):
                keys = [place + key if key.startswith("scheduler") else key for key in finding.follows_from]
                mistake = dataclasses.replace(finding.mistake, key=place + finding.mistake.key)
                yield Finding(mistake, tuple(keys))


def check_average(config: schema.Config) -> Iterator[Finding]:
    """Check that an average of the weights has what its kind needs, and begins within the run."""
    chosen, train = config.train.average, config.train
    if chosen is None:
        return
    if train.ema is not None:
        rule, remedy = "must not stand beside `train.ema`: there is one average", "take `kind: ema` and its `decay`"
        yield Finding(Mistake("train.average", rule, remedy=remedy, kind="conflict"), ("train.ema",))
    if chosen.kind == "mean":
        reason = "in a mean of the weights, each of which counts the same"
        yield from find_unused_settings("train.average", chosen, ("decay", "decay_power"), reason, "train.average.kind")
    elif chosen.decay is None:
        rule, right = f"must be given for kind {chosen.kind}", "0.999" if chosen.kind == "ema" else "0.5"
        remedy = format_suggestion(right)
        mistake = Mistake("train.average.decay", rule, None, remedy=remedy, suggestion=right, kind="missing")
        yield Finding(mistake, ("train.average.kind",))
    if chosen.update_bn and config.loader.persistent_workers and config.loader.num_workers:
        rule = "must be false with `train.average.update_bn`, which reads the training data in the midst of an epoch"
        mistake = Mistake("loader.persistent_workers", rule, value=True, suggestion="false", kind="conflict")
        yield Finding(mistake, ("train.average.update_bn",))
    run = Duration.parse(train.duration)
    begins = Duration.parse(chosen.from_ or "0st")
    if run.amount and begins != run and begins.reaches(run):
        rule = f"must be within the run, whose train.duration is {train.duration}: nothing would be averaged"
        yield Finding(Mistake("train.average.from", rule, chosen.from_, kind="conflict"), ("train.duration",))


def find_unused_in_training(config: schema.Config) -> Iterator[Finding]:
    """Find settings of `train`, `device` and `loss` without effect because of another key."""
    train = config.train
    if train.ema is None:
        yield from find_unused_settings("train", train, ("ema_every",), "without `train.ema`", "train.ema")
    if train.max_time is None:
        yield from find_unused_settings(
            "train", train, ("max_time_counts",), "without `train.max_time`", "train.max_time"
        )
    if train.evaluate_every is None:
        reason = "while `train.evaluate_every` is null: there is one evaluation, at the end"
        yield from find_unused_settings("train", train, ("early_stop",), reason, "train.evaluate_every")
    if all(name.startswith("train/") for name in find_metric_names(config)[0]):
        yield from find_unused_settings(
            "train", train, ("evaluate_at_start",), "without anything to evaluate", "dataset"
        )

    if config.device.compile == "reduce-overhead" and config.device.type in ("cpu", "mps"):
        rule = "has no effect without a CUDA device: it is `true` with CUDA graphs"
        mistake = Mistake(
            "device.compile", rule, config.device.compile, remedy="take `true`", suggestion="true", kind="no-effect"
        )
        yield Finding(mistake, ("device.type",))
    if config.loss is not None and config.step.get("_target_") in (MINIMISE, TAKE_MODEL_LOSS):
        rule = "has no effect: what the model gives is minimised as it is"
        yield Finding(
            Mistake("loss._target_", rule, config.loss.get("_target_"), remedy="take `loss=none`", kind="no-effect"),
            ("step",),
        )


def _list_frozen(freeze: schema.Freeze) -> list[tuple[str, schema.Freeze | schema.FreezeSet]]:
    sets = [(f"freeze.sets.{name}", part) for name, part in freeze.sets.items() if part is not None]
    return [("freeze", freeze), *sets]


def find_too_long(config: schema.Config, steps_per_epoch: int | None = None) -> Iterator[Finding]:
    """Find a warmup or freeze as long as the run; `steps_per_epoch` lets steps compare with epochs."""
    run = Duration.parse(config.train.duration)
    known = "" if steps_per_epoch is None else f" ({run.steps(steps_per_epoch):,} steps)"
    rule = f"must be shorter than the run, whose train.duration is {config.train.duration}{known}"
    for key, value, remedy in (
        ("scheduler.warmup", config.scheduler.warmup, "the schedule after it would never begin: make it shorter"),
        *(
            (f"{key}.{name}", value, f"nothing would ever {verb}: make it shorter, or null")
            for key, part in _list_frozen(config.freeze)
            for name, value, verb in (("from", part.from_, "freeze"), ("until", part.until, "thaw"))
        ),
    ):
        if value is not None and Duration.parse(value).reaches(run, steps_per_epoch):
            yield Finding(Mistake(key, rule, value, remedy=remedy, kind="conflict"), ("train.duration",))
    for key, part in _list_frozen(config.freeze):
        if (
            part.from_
            and part.until
            and Duration.parse(part.from_).reaches(Duration.parse(part.until), steps_per_epoch)
        ):
            mistake = Mistake(f"{key}.from", f"must be before {key}.until, {part.until}", part.from_, kind="conflict")
            yield Finding(mistake, (f"{key}.until",))
    epoch = config.pretrained.epoch
    if epoch and config.pretrained.strategy != "none" and Duration(epoch, "ep").reaches(run, steps_per_epoch):
        rule = f"must be before the end of the run, whose train.duration is {config.train.duration}{known}"
        remedy = f"the duration counts from the start: `train.duration={2 * epoch}ep` trains for {epoch} epochs more"
        yield Finding(Mistake("pretrained.epoch", rule, epoch, remedy=remedy, kind="conflict"), ("train.duration",))


def check_plateau(config: schema.Config) -> Iterator[Finding]:
    """Check that ReduceLROnPlateau gets an evaluation before the end of the run."""
    if PLATEAU not in (config.scheduler._target_ or ""):
        return
    every, run = config.train.evaluate_every, config.train.duration
    if every is None:
        rule = f"must be given: {PLATEAU} is asked after each evaluation, and null means one at the end"
        yield Finding(
            Mistake(
                "train.evaluate_every", rule, every, suggestion="1ep", remedy=format_suggestion("1ep"), kind="missing"
            )
        )
    elif Duration.parse(every).reaches(Duration.parse(run)):
        rule = f"must be shorter than train.duration ({run}): {PLATEAU} is asked after each evaluation"
        yield Finding(Mistake("train.evaluate_every", rule, every, kind="conflict"), ("train.duration",))


def check_one_cycle(config: schema.Config) -> Iterator[Finding]:
    """Check that OneCycleLR's `total_steps` reaches the end of the run, where it would raise."""
    chosen, run = config.scheduler, Duration.parse(config.train.duration)
    total = chosen.arguments.get("total_steps")
    if not (chosen._target_ or "").endswith(".OneCycleLR") or total is None:
        return
    unit = "st" if chosen.interval == "step" else "ep"
    if isinstance(total, int) and run.unit == unit:
        warmup = Duration.parse(chosen.warmup) if chosen.warmup is not None else Duration(0, unit)
        needed = math.ceil(run.amount - (warmup.amount if warmup.unit == unit else 0))
        short = total < needed
    else:
        known = isinstance(total, str) and is_duration(total)
        short = known and run.reaches(Duration.parse(total)) and total != config.train.duration
        short = short and chosen.planned_for is None
    if short:
        rule = f"must reach to the end of the run (train.duration is {config.train.duration}): OneCycleLR ends with it"
        text = "${train.duration}"
        yield Finding(
            Mistake(
                "scheduler.total_steps", rule, total, remedy=format_suggestion(text), suggestion=text, kind="conflict"
            ),
            ("train.duration",),
        )


def _is_plateau(name: str) -> bool:
    """Return whether a target is ReduceLROnPlateau or a misspelling of it."""
    return PLATEAU in name or find_nearest(name.rpartition(".")[2], [PLATEAU]) == PLATEAU


def check_scheduler(scheduler: schema.Scheduler) -> Iterator[Finding]:
    """Yield findings about scheduler settings without effect."""
    if scheduler._target_ is None:
        settings = ("interval", "monitor", "planned_for")  # a warmup needs none
        yield from find_unused_settings(
            "scheduler", scheduler, settings, "without a scheduler (`scheduler._target_`)", "scheduler._target_"
        )
        for name, value in scheduler.arguments.items():
            rule = "has no effect without a scheduler (`scheduler._target_`)"
            remedy = "choose one (`scheduler=cosine`) or leave it out"
            yield Finding(
                Mistake(f"scheduler.{name}", rule, value, remedy=remedy, kind="no-effect"), ("scheduler._target_",)
            )
        return
    if scheduler.warmup is None:
        yield from find_unused_settings(
            "scheduler", scheduler, ("planned_for",), "without a warmup", "scheduler.warmup"
        )
    if scheduler._target_.startswith("torch.optim.lr_scheduler.") and not _is_plateau(scheduler._target_):
        yield from find_unused_settings(
            "scheduler", scheduler, ("monitor",), f"without {PLATEAU}", "scheduler._target_"
        )
