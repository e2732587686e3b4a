"""Run every rule that needs several keys and no torch."""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields

from runner.config import schema
from runner.config.check.rules.data import (
    check_downloads,
    check_loader,
    check_samples,
    check_splits,
    check_whole_batches,
    find_unused_without_data,
)
from runner.config.check.rules.log import check_log, check_trackers
from runner.config.check.rules.model import find_shadowed_patterns, find_shadowed_rules
from runner.config.check.rules.rule import Finding, find_unused_settings
from runner.config.check.rules.sweep import check_search
from runner.config.check.rules.train import (
    check_actions,
    check_average,
    check_member_schedules,
    check_metric_names,
    check_one_cycle,
    check_plateau,
    check_processes,
    check_scheduler,
    check_stop_values,
    check_test_weights,
    find_too_long,
    find_training_contradictions,
    find_unused_in_training,
)
from runner.config.schema import PROCESSES
from runner.core.durations import Duration
from runner.core.errors import Mistake

# Preset of `debug` → the key that it is for, whether a config still has it, and its value.
DEBUG_PRESETS: dict[str, tuple[str, Callable[[schema.Config], bool], str, str]] = {
    "noop": (
        "train.duration",
        lambda config: not Duration.parse(config.train.duration).amount,
        "0st",
        "trains nothing",
    ),
    "anomaly": ("train.detect_anomaly", lambda config: config.train.detect_anomaly, "true", "looks for a NaN"),
    "one_batch": ("dataset.limit", lambda config: config.dataset.limit is not None, "64", "trains on one batch"),
    "overfit": ("dataset.limit", lambda config: config.dataset.limit is not None, "64", "learns a few samples"),
    "profiler": ("log.profile", lambda config: config.log.profile is not None, "{}", "traces steps"),
}


def check_debug(config: schema.Config, preset: str | None) -> Iterator[Finding]:
    """Find a setting that takes away what the chosen `debug` preset is for."""
    key, holds, right, does = DEBUG_PRESETS.get(preset or "", ("", lambda _: True, "", ""))
    if not holds(config):
        owner, _, name = key.partition(".")
        value = getattr(getattr(config, owner), name)
        rule = f"must be {right} with debug={preset}, which {does}"
        remedy = f"leave `{key}` or `debug={preset}` out"
        yield Finding(Mistake(key, rule, value, remedy=remedy, suggestion=right, kind="conflict"), ("debug",))


def collect_findings(config: schema.Config, choices: dict[str, str | None]) -> Iterator[Finding]:
    """Yield every finding of the rules between keys."""
    yield from check_splits(config.dataset)
    yield from check_samples(config.dataset.sample)
    yield from check_downloads(config.dataset.downloads)
    yield from check_metric_names(config)
    yield from check_stop_values(config)
    yield from check_test_weights(config)
    yield from check_actions(config)
    yield from check_trackers(config)
    yield from _find_contradictions(config)
    yield from check_debug(config, choices.get("debug"))
    yield from check_search(config)
    yield from _check_pretrained(config.pretrained)  # also where one only tries: the weights would be other ones
    if Duration.parse(config.train.duration).amount and not choices.get("debug"):
        yield from _find_unused(config)


def _find_contradictions(config: schema.Config) -> Iterator[Finding]:
    loader = config.loader
    if loader.sampler is not None and loader.batch_sampler is not None:
        yield Finding(
            Mistake("loader.sampler", "must not stand beside `loader.batch_sampler`", kind="conflict"),
            ("loader.batch_sampler",),
        )
    if loader.batch_sampler is not None and loader.drop_last:
        rule = "must not stand beside `loader.batch_sampler`, which makes the batches"
        yield Finding(
            Mistake("loader.drop_last", rule, value=True, suggestion="false", kind="conflict"),
            ("loader.batch_sampler",),
        )
    if loader.in_memory is True and loader.num_workers > 0:
        rule = "must not be true with `loader.num_workers` above 0, which means the per-sample path"
        yield Finding(
            Mistake("loader.in_memory", rule, value=True, suggestion="auto", kind="conflict"), ("loader.num_workers",)
        )
    limit = config.dataset.limit
    yield from check_whole_batches(config)
    size = loader.batch_size or 0
    if loader.drop_last and loader.batch_sampler is None and limit is not None and limit < size:
        rule = f"must be at least loader.batch_size, {loader.batch_size}: loader.drop_last drops what is fewer"
        remedy = "take `loader.drop_last=false`"
        yield Finding(
            Mistake("dataset.limit", rule, limit, remedy=remedy, kind="conflict"),
            ("loader.batch_size", "loader.drop_last"),
        )
    if config.loader.in_memory is True and loader.collate_fn is not None:
        rule = "must not be true with a `loader.collate_fn`, which joins samples one by one"
        yield Finding(
            Mistake("loader.in_memory", rule, value=True, suggestion="auto", kind="conflict"), ("loader.collate_fn",)
        )
    yield from find_training_contradictions(config)
    for name in config.dataset.evaluate:
        if name in ("train", "val", "test") or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            rule = "must be a name of its own (letters, digits, `_`, `-`, `.`; not train, val or test)"
            yield Finding(Mistake(f"dataset.evaluate.{name}", rule))
    yield from check_processes(config)
    for name, rule_ in config.init.rules.items():
        if rule_ is not None and rule_.last and rule_.module is None and rule_.name is None:
            yield Finding(
                Mistake(
                    f"init.rules.{name}.last", "needs a `module` or a `name` to choose from", value=True, kind="missing"
                )
            )


def _find_unused(config: schema.Config) -> Iterator[Finding]:
    chosen = config.dataset
    settings: tuple[str, ...]
    yield from check_loader(config.loader, config.device.type)
    if config.device.parallel not in PROCESSES:
        yield from find_unused_settings(
            "device", config.device, ("sync_batchnorm",), "in one process", "device.parallel"
        )
    if config.device.parallel != "ddp":
        reason = "without device.parallel=ddp"
        yield from find_unused_settings("device", config.device, ("find_unused_parameters",), reason, "device.parallel")
    if chosen.source is None:
        settings = ("val_fraction", "test_fraction", "split_seed", "stratify")
        yield from find_unused_settings(
            "dataset", chosen, settings, "without `dataset.source`", "dataset.source", "dataset.train"
        )
    elif not chosen.val_fraction and not chosen.test_fraction and chosen.folds is None:
        settings = ("split_seed", "stratify")
        yield from find_unused_settings(
            "dataset", chosen, settings, "where nothing is split off", "dataset.val_fraction", "dataset.test_fraction"
        )
    yield from check_scheduler(config.scheduler)
    yield from check_member_schedules(config)
    yield from check_average(config)
    yield from find_too_long(config)
    yield from check_plateau(config)
    yield from check_one_cycle(config)
    train = config.train
    if train.objective is None:
        yield from find_unused_settings("train", train, ("mode",), "without `train.objective`", "train.objective")
    if train.on_fault == "stop":
        yield from find_unused_settings(
            "train", train, ("max_faults",), "while `train.on_fault` is stop", "train.on_fault"
        )
    if train.checkpoint_every is None:
        yield from find_unused_settings(
            "train", train, ("keep",), "while `train.checkpoint_every` is null", "train.checkpoint_every"
        )
    yield from find_unused_in_training(config)
    yield from find_unused_without_data(config)
    transform = config.transform
    if not any(node is not None for node in (*transform.train.values(), *transform.eval.values())):
        yield from find_unused_settings(
            "transform", transform, ("on",), "without transforms", "transform.train", "transform.eval"
        )
    yield from check_log(config)
    yield from find_shadowed_patterns("freeze.params", config.freeze.params)
    yield from find_shadowed_rules(config.init.rules)


def _check_pretrained(pretrained: schema.Pretrained) -> Iterator[Finding]:
    """Find `pretrained` settings without effect because `pretrained.strategy` is none."""
    if pretrained.strategy == "none":
        names = tuple(item.name for item in fields(pretrained) if item.name not in ("strategy", "path"))
        reason, key = "while `pretrained.strategy` is none", "pretrained.strategy"
        if pretrained.path is not None:
            rule = f"has no effect {reason}: the weights would stay as they are initialised"
            remedy = "`pretrained=full` loads every tensor; filtered, partial and layers load some"
            mistake = Mistake(
                "pretrained.path", rule, pretrained.path, remedy=remedy, suggestion="null", kind="no-effect"
            )
            yield Finding(mistake, (key,))
        yield from find_unused_settings("pretrained", pretrained, names, reason, key)
