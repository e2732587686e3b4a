"""Settings that do nothing, contradict each other, or name a metric that nothing will produce."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from runner.config import schema
from runner.config.interpret import yaml_text
from runner.config.names import did_you_mean, nearest
from runner.errors import Mistake
from runner.schedule import Duration, is_duration
from runner.torchrun import PROCESSES

PLATEAU = "ReduceLROnPlateau"
SUPERVISED, MINIMISE = "runner.step.supervised", "runner.step.minimise"
NO_MULTIRUN = "has no effect without `-m`"
OF_THE_SWEEP = ("sweep", "hydra")  # groups and keys that are no part of a job


@dataclass(frozen=True)
class Finding:
    """A mistake, and the keys that it follows from: where one of them is wrong itself, it is not reported."""

    mistake: Mistake
    follows_from: tuple[str, ...] = ()


def findings(config: schema.Config, choices: dict[str, str | None]) -> Iterator[Finding]:
    """All that is wrong between the keys of a config."""
    yield from _splits(config.dataset)
    yield from _samples(config.dataset.sample)
    yield from _downloads(config.dataset.downloads)
    yield from _names(config)
    yield from _contradictions(config)
    yield from _search(config)
    yield from _pretrained(config.pretrained)  # also where one only tries: the weights would be other ones
    if Duration.parse(config.train.duration).amount and not choices.get("debug"):
        yield from _without_effect(config)


def without_multirun(arguments: Iterable[str]) -> Iterator[Mistake]:
    """Arguments that say how to sweep, to a run that is no sweep."""
    for text in arguments:
        key, _, value = text.partition("=")
        key = key.lstrip("+")
        if key.startswith("sweep.") or (key == "sweep" and value not in ("default", "null")):
            yield Mistake(key, NO_MULTIRUN, where=f"argument `{text}`", remedy="put `-m` before it, or leave it out")


def _splits(dataset: schema.Dataset) -> Iterator[Finding]:
    given = [name for name in ("train", "val", "test") if getattr(dataset, name) is not None]
    if dataset.source is None and dataset.train is None and dataset.steps_per_epoch is None:
        rule = "must be given (or `dataset.source`, which is then split; a step without data has `dataset=none`)"
        yield Finding(Mistake("dataset.train", rule), ("dataset.source", "dataset"))
    if dataset.steps_per_epoch is not None and (dataset.source is not None or "train" in given):
        rule = "is for a step without data: it must not stand beside any"
        yield Finding(Mistake("dataset.steps_per_epoch", rule, dataset.steps_per_epoch), ("dataset",))
    if dataset.source is not None and "train" in given:
        yield Finding(
            Mistake("dataset.source", "must not stand beside `dataset.train`: one of them is the training data")
        )
    fractions = {name: getattr(dataset, f"{name}_fraction") for name in ("val", "test")}
    if sum(fractions.values()) >= 1:
        rule = "and `dataset.test_fraction` together must be below 1"
        yield Finding(Mistake("dataset.val_fraction", rule, sum(fractions.values())), ("dataset.test_fraction",))
    for name, fraction in fractions.items():
        if fraction and dataset.source is not None and name in given:
            rule = f"must not stand beside `dataset.{name}`: one of them is the {name} data"
            yield Finding(Mistake(f"dataset.{name}_fraction", rule, fraction), (f"dataset.{name}",))


def _downloads(downloads: dict[str, schema.Download | None]) -> Iterator[Finding]:
    taken: dict[str, str] = {}
    for name, node in downloads.items():
        if node is None:
            continue
        for key, path in (("to", node.to), ("unpack", node.unpack)):
            if path in taken:
                mistake = Mistake(f"dataset.downloads.{name}.{key}", f"is the place of `{taken[path]}` already", path)
                yield Finding(mistake, (taken[path],))
            elif path is not None:
                taken[path] = f"dataset.downloads.{name}.{key}"
        if node.unpack is None:
            limits = [item for item in fields(node) if item.name in ("members_limit", "size_limit", "ratio_limit")]
            for item in limits:
                value, text = getattr(node, item.name), yaml_text(item.default)
                if value != item.default:
                    key, remedy = f"dataset.downloads.{name}.{item.name}", f"leave it at `{text}`"
                    rule = "has no effect without `unpack`"
                    yield Finding(Mistake(key, rule, value, remedy=remedy, suggestion=text))


_DTYPES = (
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "bool",
    "complex64",
    "complex128",
)


def _samples(sample: Any) -> Iterator[Finding]:
    """Each member is a tensor (`shape`, `dtype`) or an image (`mode`, `size`)."""
    members = {"dataset.sample": sample}
    if isinstance(sample, list | dict):
        pairs = sample.items() if isinstance(sample, dict) else enumerate(sample)
        members = {f"dataset.sample.{name}": member for name, member in pairs}
    for key, member in members.items():
        if member is None:
            continue
        if member.dtype is not None and member.dtype not in _DTYPES:
            right = nearest(member.dtype.removeprefix("torch."), _DTYPES)
            right = right or (member.dtype.removeprefix("torch.") if member.dtype[6:] in _DTYPES else "")
            rule = "must be the name of a dtype, such as float32"
            yield Finding(Mistake(f"{key}.dtype", rule, member.dtype, remedy=did_you_mean(right), suggestion=right))
        if (member.shape is None) == (member.mode is None):
            rule = "must have either `shape` (of a tensor) or `mode` and `size` (of an image)"
            yield Finding(Mistake(key, rule), (key,))


def produced(config: schema.Config) -> tuple[list[str], list[str]]:
    """The names `<split>/<metric>` that training produces, and prefixes of those that a metric makes up itself."""
    splits = ["train"]
    if config.dataset.val is not None or (
        config.dataset.source is not None and (config.dataset.val_fraction > 0 or config.dataset.folds is not None)
    ):
        splits.insert(0, "val")
    splits += [name for name, node in config.dataset.evaluate.items() if node is not None]
    metrics = {name: node for name, node in config.metrics.items() if node is not None}
    names = [f"{split}/{name}" for split in splits for name in ("loss", *metrics)]
    prefixes = [
        f"{split}/{name}/"
        for split in splits
        for name, node in metrics.items()
        if not str(node.get("_target_")).startswith("runner.metrics.")
    ]
    return names, prefixes


def _names(config: schema.Config) -> Iterator[Finding]:
    names, prefixes = produced(config)
    uses = {"train.objective": config.train.objective}
    if PLATEAU in (config.scheduler._target_ or ""):
        uses["scheduler.monitor"] = config.scheduler.monitor
        if config.scheduler.monitor is None:
            rule = f"must be given: {PLATEAU} waits for a metric"
            yield Finding(Mistake("scheduler.monitor", rule, remedy=did_you_mean(names[0]), suggestion=names[0]))
    for key, name in uses.items():
        if name is None or name in names or name.startswith(tuple(prefixes)):
            continue
        if config.step["_target_"] != SUPERVISED and any(name.startswith(known.split("/")[0] + "/") for known in names):
            continue  # perhaps a field of its own, which the preflight will see
        bare = next((known for known in names if known.partition("/")[2] == name), "")
        right = bare or nearest(name, names) or nearest(name.replace("_", "/", 1), [*names, ""])
        if not right and "/" in name:
            right = next((known for known in names if known.partition("/")[2] == name.partition("/")[2]), "")
        if name.replace("_", "/", 1) in names:
            right = name.replace("_", "/", 1)
        rule = f"must be one of {', '.join(f'`{known}`' for known in names)}: nothing else is produced while training"
        only_the_split = name.partition("/")[2] in {known.partition("/")[2] for known in names}
        follows_from = ("metrics", "dataset") if only_the_split else ("metrics",)
        yield Finding(Mistake(key, rule, name, remedy=did_you_mean(right), suggestion=right), follows_from)


def _contradictions(config: schema.Config) -> Iterator[Finding]:
    loader = config.loader
    if loader.sampler is not None and loader.batch_sampler is not None:
        yield Finding(
            Mistake("loader.sampler", "must not stand beside `loader.batch_sampler`"), ("loader.batch_sampler",)
        )
    if loader.batch_sampler is not None and loader.drop_last:
        rule = "must not stand beside `loader.batch_sampler`, which makes the batches"
        yield Finding(Mistake("loader.drop_last", rule, value=True, suggestion="false"), ("loader.batch_sampler",))
    if loader.in_memory is True and loader.num_workers > 0:
        rule = "must not be true with `loader.num_workers` above 0, which means the per-sample path"
        yield Finding(Mistake("loader.in_memory", rule, value=True, suggestion="auto"), ("loader.num_workers",))
    limit = config.dataset.limit
    if loader.drop_last and loader.batch_sampler is None and limit is not None and limit < loader.batch_size:
        rule = f"must be at least loader.batch_size, {loader.batch_size}: loader.drop_last drops what is fewer"
        remedy = "take `loader.drop_last=false`"
        yield Finding(Mistake("dataset.limit", rule, limit, remedy=remedy), ("loader.batch_size", "loader.drop_last"))
    if config.loader.in_memory is True and loader.collate_fn is not None:
        rule = "must not be true with a `loader.collate_fn`, which joins samples one by one"
        yield Finding(Mistake("loader.in_memory", rule, value=True, suggestion="auto"), ("loader.collate_fn",))
    yield from _contradictions_in_training(config)
    for name in config.dataset.evaluate:
        if name in ("train", "val", "test") or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            rule = "must be a name of its own (letters, digits, `_`, `-`, `.`; not train, val or test)"
            yield Finding(Mistake(f"dataset.evaluate.{name}", rule))
    yield from _several_processes(config)
    for name, rule_ in config.init.rules.items():
        if rule_ is not None and rule_.last and rule_.module is None and rule_.name is None:
            yield Finding(Mistake(f"init.rules.{name}.last", "needs a `module` or a `name` to choose from", value=True))


def _several_processes(config: schema.Config) -> Iterator[Finding]:
    device = config.device
    if device.parallel in PROCESSES:
        if device.type.startswith("cuda:"):
            rule = f"must not name one GPU with device.parallel={device.parallel}: each process takes that of its rank"
            yield Finding(Mistake("device.type", rule, device.type, suggestion="cuda"), ("device.parallel",))
        if config.train.on_fault != "stop":
            rule = f"must be stop with device.parallel={device.parallel}: one process alone can look for a fault"
            yield Finding(
                Mistake("train.on_fault", rule, config.train.on_fault, suggestion="stop"), ("device.parallel",)
            )
        if config.loader.bad_samples == "skip":
            rule = f"must be error with device.parallel={device.parallel}: they count a batch before it is read"
            yield Finding(Mistake("loader.bad_samples", rule, "skip", suggestion="error"), ("device.parallel",))
    elif device.parallel == "data_parallel" and device.type not in ("auto", "cuda"):
        rule = "must be auto or cuda with device.parallel=data_parallel, which splits batches over all GPUs"
        yield Finding(Mistake("device.type", rule, device.type, suggestion="cuda"), ("device.parallel",))


def _search(config: schema.Config) -> Iterator[Finding]:
    """A search needs a sampler; several objectives are of metrics that a completed run has, and nothing prunes them."""
    search = config.sweep.search
    if search.sampler is None:
        reason = "without `sweep.search.sampler`"
        yield from _idle("sweep.search", search, ("pruner", "trials", "objectives"), reason, "sweep.search.sampler")
        return
    for name in ("random", "seeds"):
        if (value := getattr(config.sweep, name)) is not None:
            rule = "must not stand beside `sweep.search.sampler`, which chooses each point by one result of one run"
            yield Finding(Mistake(f"sweep.{name}", rule, value), ("sweep.search.sampler",))
    if search.pruner is not None:
        yield from _pruner(config)
    if not search.objectives:
        return
    if len(search.objectives) == 1:
        rule = "must be two or more: a single one is `train.objective`"
        yield Finding(Mistake("sweep.search.objectives", rule, dict(search.objectives)))
    names, prefixes = produced(config)
    kept = [name for name in names if not name.startswith("train/")]
    if config.dataset.test is not None or config.dataset.test_fraction:
        kept += [f"test/{name.partition('/')[2]}" for name in names if name.startswith("train/")]
        prefixes += [f"test/{prefix.partition('/')[2]}" for prefix in prefixes]
    for name in search.objectives:
        if name not in kept and not name.startswith(tuple(prefixes)):
            right = nearest(name, kept)
            rule = f"must be one of {', '.join(f'`{known}`' for known in kept)}: no other metric is in a result"
            remedy = did_you_mean(right)
            found = Mistake(f"sweep.search.objectives.{name}", rule, remedy=remedy, suggestion=right)
            yield Finding(found, ("metrics", "dataset"))


def _pruner(config: schema.Config) -> Iterator[Finding]:
    """A pruner needs one objective, and values of it before the end."""
    if config.sweep.search.objectives:
        rule = "must not stand beside several `sweep.search.objectives`: Optuna prunes by one"
        yield Finding(Mistake("sweep.search.pruner", rule), ("sweep.search.objectives",))
    objective = config.train.objective or produced(config)[0][0]
    if config.train.evaluate_every is None and not objective.startswith("train/"):
        rule = f"has no effect with train.evaluate_every=null: `{objective}` has one value, at the end of a job"
        yield Finding(Mistake("sweep.search.pruner", rule), ("train.evaluate_every",))


def _several_processes_cannot(config: schema.Config) -> Iterator[Finding]:
    device = config.device
    if device.parallel not in PROCESSES:
        return
    if config.dataset.steps_per_epoch is not None:
        rule = "must be none without data (`dataset.steps_per_epoch`): there is no batch to share"
        yield Finding(Mistake("device.parallel", rule, device.parallel), ("dataset.steps_per_epoch",))
    if device.parallel == "fsdp" and device.precision == "fp16":
        rule = "must not be fp16 with device.parallel=fsdp: each process would scale by what it sees in its own part"
        yield Finding(Mistake("device.precision", rule, "fp16", suggestion="bf16"), ("device.parallel",))
    if config.train.split_on_oom:
        rule = (
            f"must be false with device.parallel={device.parallel}: the others would wait for the one that tries again"
        )
        yield Finding(Mistake("train.split_on_oom", rule, value=True, suggestion="false"), ("device.parallel",))


CUDA_GRAPHED = ("reduce-overhead", "max-autotune")  # torch.compile's modes that capture CUDA graphs


def _contradictions_in_training(config: schema.Config) -> Iterator[Finding]:
    device, train, step = config.device, config.train, config.step.get("_target_")
    if device.compile in CUDA_GRAPHED and train.accumulate > 1:
        rule = "must not stand beside `train.accumulate`: its CUDA graphs lose gradients then (pytorch#169545)"
        right = "default" if device.compile == "reduce-overhead" else "max-autotune-no-cudagraphs"
        yield Finding(Mistake("device.compile", rule, device.compile, suggestion=right), ("train.accumulate",))
    loss = "" if config.loss is None else str(config.loss.get("_target_"))
    if loss.endswith((".BCELoss", ".binary_cross_entropy")) and device.precision in ("bf16", "fp16"):
        rule = f"is refused by torch in {device.precision} on a GPU: small probabilities become 0"
        remedy = "let the model give logits, and take torch.nn.BCEWithLogitsLoss"
        if device.type != "cpu":
            yield Finding(Mistake("loss._target_", rule, loss, remedy=remedy), ("device.precision", "loss"))
    yield from _several_processes_cannot(config)
    if config.dataset.steps_per_epoch is not None and step == SUPERVISED:
        rule = "needs data, and `dataset.steps_per_epoch` says that there is none"
        yield Finding(Mistake("step._target_", rule, step), ("dataset.steps_per_epoch", "step"))
    if config.loss is None and step == SUPERVISED:
        rule = "must be given: the supervised step calls it"
        yield Finding(Mistake("loss", rule, value=None), ("step", "loss"))
    several = any(isinstance(node, dict) and "_target_" in node for node in config.optimizer.values())
    for label, group in config.param_groups.items():
        if several and group is not None:
            rule = "must not stand beside several optimizers: each has the settings of what it matches"
            yield Finding(Mistake(f"param_groups.{label}", rule), ("optimizer",))


def _idle(owner: str, values: Any, names: tuple[str, ...], reason: str, *follows_from: str) -> Iterator[Finding]:
    """One finding for each of these settings that is not at its default."""
    usual = type(values)()
    for name in names:
        value, default = getattr(values, name), getattr(usual, name)
        if is_dataclass(default):
            inner = tuple(item.name for item in fields(default))
            yield from _idle(f"{owner}.{name}", value, inner, reason, *follows_from)
        elif value != default:
            text = yaml_text(default)
            remedy = f"leave it at `{text}`"
            mistake = Mistake(f"{owner}.{name}", f"has no effect {reason}", value, remedy=remedy, suggestion=text)
            yield Finding(mistake, follows_from)


def _without_effect(config: schema.Config) -> Iterator[Finding]:
    chosen = config.dataset
    settings: tuple[str, ...]
    yield from _loader(config.loader, config.device.type)
    if config.device.parallel not in PROCESSES:
        yield from _idle("device", config.device, ("sync_batchnorm",), "in one process", "device.parallel")
    if config.device.parallel != "ddp":
        reason = "without device.parallel=ddp"
        yield from _idle("device", config.device, ("find_unused_parameters",), reason, "device.parallel")
    if chosen.source is None:
        settings = ("val_fraction", "test_fraction", "split_seed", "stratify")
        yield from _idle("dataset", chosen, settings, "without `dataset.source`", "dataset.source", "dataset.train")
    elif not chosen.val_fraction and not chosen.test_fraction and chosen.folds is None:
        settings = ("split_seed", "stratify")
        yield from _idle(
            "dataset", chosen, settings, "where nothing is split off", "dataset.val_fraction", "dataset.test_fraction"
        )
    yield from _scheduler(config.scheduler)
    yield from too_long(config)
    yield from _plateau(config)
    yield from _one_cycle(config)
    train = config.train
    if train.objective is None:
        yield from _idle("train", train, ("mode",), "without `train.objective`", "train.objective")
    if train.on_fault == "stop":
        yield from _idle("train", train, ("max_faults",), "while `train.on_fault` is stop", "train.on_fault")
    if train.checkpoint_every is None:
        yield from _idle("train", train, ("keep",), "while `train.checkpoint_every` is null", "train.checkpoint_every")
    yield from _idle_in_training(config)
    yield from _idle_without_data(config)
    transform = config.transform
    if not any(node is not None for node in (*transform.train.values(), *transform.eval.values())):
        yield from _idle("transform", transform, ("on",), "without transforms", "transform.train", "transform.eval")
    yield from _log(config)
    yield from _shadowed("freeze.params", config.freeze.params)
    yield from _shadowed_rules(config.init.rules)


def _pretrained(pretrained: schema.Pretrained) -> Iterator[Finding]:
    """Weights that nothing would load, and a strategy without weights."""
    if pretrained.strategy == "none":
        names = tuple(item.name for item in fields(pretrained) if item.name not in ("strategy", "path"))
        reason, key = "while `pretrained.strategy` is none", "pretrained.strategy"
        if pretrained.path is not None:
            rule = f"has no effect {reason}: the weights would stay as they are initialised"
            remedy = "`pretrained=full` loads every tensor; filtered, partial and layers load some"
            mistake = Mistake("pretrained.path", rule, pretrained.path, remedy=remedy, suggestion="null")
            yield Finding(mistake, (key,))
        yield from _idle("pretrained", pretrained, names, reason, key)


def _idle_in_training(config: schema.Config) -> Iterator[Finding]:
    """Settings of `train` that need another one, or something to evaluate."""
    train = config.train
    if train.ema is None:
        yield from _idle("train", train, ("ema_every",), "without `train.ema`", "train.ema")
    if train.evaluate_every is None:
        reason = "while `train.evaluate_every` is null: there is one evaluation, at the end"
        yield from _idle("train", train, ("early_stop",), reason, "train.evaluate_every")
    if all(name.startswith("train/") for name in produced(config)[0]):
        yield from _idle("train", train, ("evaluate_at_start",), "without anything to evaluate", "dataset")

    if config.device.compile == "reduce-overhead" and config.device.type in ("cpu", "mps"):
        rule = "has no effect without a CUDA device: it is `true` with CUDA graphs"
        mistake = Mistake("device.compile", rule, config.device.compile, remedy="take `true`", suggestion="true")
        yield Finding(mistake, ("device.type",))
    if config.loss is not None and config.step.get("_target_") == MINIMISE:
        rule = "has no effect: what the model gives is minimised as it is"
        yield Finding(Mistake("loss._target_", rule, config.loss.get("_target_"), remedy="take `loss=none`"), ("step",))


def _idle_without_data(config: schema.Config) -> Iterator[Finding]:
    """Whatever makes batches, where there are none."""
    if config.dataset.steps_per_epoch is None:
        return
    reason, key = "without data (`dataset.steps_per_epoch`)", "dataset.steps_per_epoch"
    for owner, values in (("loader", config.loader), ("transform", config.transform)):
        names = tuple(item.name for item in fields(values) if item.name != "eval" or owner == "transform")
        yield from _idle(owner, values, names, reason, key)
    if not config.dataset.evaluate and config.dataset.val is None and config.dataset.test is None:
        yield from _idle("dataset", config.dataset, ("sample", "limit", "classes", "class_weights"), reason, key)


def _loader(loader: schema.Loader, device: str) -> Iterator[Finding]:
    if loader.num_workers == 0 and not loader.eval.num_workers:
        settings = ("prefetch_factor", "persistent_workers", "multiprocessing_context", "worker_init_fn", "timeout")
        yield from _idle(
            "loader",
            loader,
            settings,
            "while `loader.num_workers` is 0",
            "loader.num_workers",
            "loader.eval.num_workers",
        )
    if loader.num_workers or loader.in_memory is False or loader.collate_fn is not None:
        reason = "where samples do not stay in memory"
        yield from _idle("loader", loader, ("in_memory_limit",), reason, "loader.num_workers", "loader.in_memory")
    if device in ("cpu", "mps"):
        yield from _idle("loader", loader, ("pin_memory",), "without a CUDA device", "device.type")


def _out_of_sight(config: schema.Config) -> Iterator[Finding]:
    """What cannot be looked at the way the model runs."""
    device, off = config.device, []
    if device.compile:
        off = [("hooks", "`device.compile`: what is compiled calls no hooks", "device.compile")]
        off.append(("embeddings", off[0][1], "device.compile"))
    if device.parallel == "fsdp":
        why = "device.parallel=fsdp: a process has shards of the weights only"
        off += [(name, why, "device.parallel") for name in ("gradient_norm", "hooks", "histograms", "graph", "mfu")]
    for name, why, key in off:
        if value := getattr(config.log, name):
            yield Finding(Mistake(f"log.{name}", f"must be off with {why}", value), (key,))


def _log(config: schema.Config) -> Iterator[Finding]:
    log = config.log
    evaluations = ("images", "confusion_matrix", "pr_curves", "embeddings")
    if not log.tensorboard:
        yield from _idle(
            "log", log, ("histograms", "graph", *evaluations), "while `log.tensorboard` is false", "log.tensorboard"
        )
    elif all(name.startswith("train/") for name in produced(config)[0]) and config.dataset.test is None:
        yield from _idle("log", log, evaluations, "without a val or test split", "dataset")
    yield from _out_of_sight(config)
    if not log.mfu:
        yield from _idle("log", log, ("peak_flops",), "while `log.mfu` is false", "log.mfu")
    for name, hook in log.hooks.items():
        if hook is not None and not hook.forward and not hook.backward:
            rule = "needs statistics to log: `forward` of the outputs, `backward` of their gradients, or both"
            yield Finding(Mistake(f"log.hooks.{name}", rule, remedy="forward: [mean, std, abs_max, zeros]"))


def too_long(config: schema.Config, steps_per_epoch: int | None = None) -> Iterator[Finding]:
    """What would come true only when the run is over; steps and epochs compare where the epoch's length is known."""
    run = Duration.parse(config.train.duration)
    known = "" if steps_per_epoch is None else f" ({run.steps(steps_per_epoch):,} steps)"
    rule = f"must be shorter than the run, whose train.duration is {config.train.duration}{known}"
    for key, value, remedy in (
        ("scheduler.warmup", config.scheduler.warmup, "the schedule after it would never begin: make it shorter"),
        ("freeze.until", config.freeze.until, "nothing would ever thaw: make it shorter, or null"),
    ):
        if value is not None and Duration.parse(value).reaches(run, steps_per_epoch):
            yield Finding(Mistake(key, rule, value, remedy=remedy), ("train.duration",))


def _plateau(config: schema.Config) -> Iterator[Finding]:
    """A plateau is asked after the evaluations that are due, the one at the end aside."""
    if PLATEAU not in (config.scheduler._target_ or ""):
        return
    every, run = config.train.evaluate_every, config.train.duration
    if every is None:
        rule = f"must be given: {PLATEAU} is asked after each evaluation, and null means one at the end"
        yield Finding(Mistake("train.evaluate_every", rule, every, suggestion="1ep", remedy=did_you_mean("1ep")))
    elif Duration.parse(every).reaches(Duration.parse(run)):
        rule = f"must be shorter than train.duration ({run}): {PLATEAU} is asked after each evaluation"
        yield Finding(Mistake("train.evaluate_every", rule, every), ("train.duration",))


def _one_cycle(config: schema.Config) -> Iterator[Finding]:
    """OneCycleLR raises an error at the first step that it was not planned for."""
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
            Mistake("scheduler.total_steps", rule, total, remedy=did_you_mean(text), suggestion=text),
            ("train.duration",),
        )


def _is_plateau(name: str) -> bool:
    """Whether a target is ReduceLROnPlateau, or misspells it."""
    return PLATEAU in name or nearest(name.rpartition(".")[2], [PLATEAU]) == PLATEAU


def _scheduler(scheduler: schema.Scheduler) -> Iterator[Finding]:
    if scheduler._target_ is None:
        settings = ("interval", "warmup", "monitor", "planned_for")
        yield from _idle(
            "scheduler", scheduler, settings, "without a scheduler (`scheduler._target_`)", "scheduler._target_"
        )
        for name, value in scheduler.arguments.items():
            rule = "has no effect without a scheduler (`scheduler._target_`)"
            remedy = "choose one (`scheduler=cosine`) or leave it out"
            yield Finding(Mistake(f"scheduler.{name}", rule, value, remedy=remedy), ("scheduler._target_",))
        return
    if scheduler.warmup is None:
        yield from _idle("scheduler", scheduler, ("planned_for",), "without a warmup", "scheduler.warmup")
    if scheduler._target_.startswith("torch.optim.lr_scheduler.") and not _is_plateau(scheduler._target_):
        yield from _idle("scheduler", scheduler, ("monitor",), f"without {PLATEAU}", "scheduler._target_")


def _shadowed(key: str, patterns: list[Any]) -> Iterator[Finding]:
    for index, pattern in enumerate(patterns):
        earlier = next((i for i, other in enumerate(patterns[:index]) if other in (pattern, ".*")), None)
        if earlier is not None:
            rule = f"has no effect: `{key}.{earlier}` matches the same names first"
            yield Finding(Mistake(f"{key}.{index}", rule, pattern, remedy="leave it out"), (f"{key}.{earlier}",))


def _shadowed_rules(rules: dict[str, schema.InitRule | None]) -> Iterator[Finding]:
    """A rule all of whose tensors an earlier rule sets for every module that it can match."""
    seen: list[tuple[str, schema.InitRule]] = []
    for name, rule in rules.items():
        if rule is None:
            continue
        for earlier, other in seen:
            wider = (
                other.module in (None, rule.module)
                and other.name in (None, ".*", rule.name)
                and other.last <= rule.last
            )
            if wider and not other.last and rule.tensors and set(rule.tensors) <= set(other.tensors):
                text = f"has no effect: `init.rules.{earlier}` comes first for all of its tensors"
                yield Finding(Mistake(f"init.rules.{name}", text, remedy="put it first, or leave it out"))
                break
        seen.append((name, rule))
