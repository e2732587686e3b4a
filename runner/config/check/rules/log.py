"""Rules for `log`: settings that contradict each other or have no effect."""

from collections.abc import Iterator

from runner.config import schema
from runner.config.check.rules.rule import Finding, _idle
from runner.config.check.rules.train import produced
from runner.core.errors import Mistake


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
