"""Rules for `log`: contradictions and settings without effect."""

from collections.abc import Iterator

from runner.config import schema
from runner.config.check.rules.rule import Finding, find_unused_settings
from runner.config.check.rules.train import find_metric_names
from runner.core.errors import Mistake


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
        yield from find_unused_settings(
            "log", log, ("histograms", "graph", *evaluations), "while `log.tensorboard` is false", "log.tensorboard"
        )
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
