"""Rules for `log`: contradictions and settings without effect."""

import importlib.util
import re
from collections.abc import Iterator, Mapping
from typing import Any

from runner.config import schema
from runner.config.check.imports import describe_install
from runner.config.check.rules.rule import Finding, find_unused_settings
from runner.config.check.rules.train import find_metric_names
from runner.core.errors import Mistake

# Trackers of ours: the package that each imports, in its own process; its extra has the same name.
PACKAGES = {f"runner.log.trackers.{name}": name.lower() for name in ("WandB", "MLflow", "Trackio")}
SECRET = re.compile(r"(.*_)?(api_?key|access_?key|token|secret|pass(word|wd|phrase)?|credentials?)", re.IGNORECASE)
LOGIN = re.compile(r"\w+://[^/@\s]+@")


def check_trackers(config: schema.Config) -> Iterator[Finding]:
    """Find trackers whose packages are missing, or that hold a secret."""
    for name, node in config.log.to.items():
        key = f"log.to.{name}"
        if node is None:
            continue
        package = PACKAGES.get(str(node.get("_target_")), "")
        if package and not is_installed(package):
            rule = f"needs the package `{package}`, which is not installed"
            yield Finding(Mistake(key, rule, remedy=describe_install(package), kind="missing"))
        for place in _find_secrets(key, node):
            rule = "looks like a secret, and a config is recorded in the run directory and in every checkpoint"
            remedy = "leave it out and let the tracker read it from the environment, as WANDB_API_KEY is"
            yield Finding(Mistake(place, rule, remedy=remedy))


def is_installed(package: str) -> bool:
    """Return whether a package can be imported, without importing it; a mere folder is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _find_secrets(key: str, value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for inner, member in value.items():
            yield from _find_secrets(f"{key}.{inner}", member, str(inner))
    elif isinstance(value, list):
        for place, member in enumerate(value):
            yield from _find_secrets(f"{key}.{place}", member, name)
    elif isinstance(value, str) and value and (SECRET.fullmatch(name) or LOGIN.match(value)):
        yield key


def _check_loggable(config: schema.Config) -> Iterator[Finding]:
    """Find log settings that a compiled model or FSDP cannot provide."""
    device, off = config.device, []
    if device.compile:
        off = [("hooks", "`device.compile`: what is compiled calls no hooks", "device.compile")]
        off.append(("embeddings", off[0][1], "device.compile"))
    if device.parallel == "fsdp":
        why = "device.parallel=fsdp: a process has shards of the weights only"
        off += [(name, why, "device.parallel") for name in ("gradient_norm", "hooks", "histograms", "graph", "mfu")]
    for name, why, key in off:
        if value := getattr(config.log, name):
            yield Finding(Mistake(f"log.{name}", f"must be off with {why}", value, kind="conflict"), (key,))


def check_log(config: schema.Config) -> Iterator[Finding]:
    """Yield findings about log settings without effect."""
    log = config.log
    evaluations = ("images", "confusion_matrix", "pr_curves", "embeddings")
    if not log.tensorboard:
        pictures = ("images", "confusion_matrix") if any(log.to.values()) else ()  # which trackers get, too
        idle = tuple(name for name in ("histograms", "graph", *evaluations) if name not in pictures)
        yield from find_unused_settings("log", log, idle, "while `log.tensorboard` is false", "log.tensorboard")
    elif all(name.startswith("train/") for name in find_metric_names(config)[0]) and config.dataset.test is None:
        yield from find_unused_settings("log", log, evaluations, "without a val or test split", "dataset")
    yield from _check_loggable(config)
    if not log.mfu:
        yield from find_unused_settings("log", log, ("peak_flops",), "while `log.mfu` is false", "log.mfu")
    for name, hook in log.hooks.items():
        if hook is not None and not hook.forward and not hook.backward:
            rule = "needs statistics to log: `forward` of the outputs, `backward` of their gradients, or both"
            yield Finding(
                Mistake(f"log.hooks.{name}", rule, remedy="forward: [mean, std, abs_max, zeros]", kind="missing")
            )
