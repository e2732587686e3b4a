"""Rules for `sweep`: searches, pruners, and keys that need `--multirun`."""

from collections.abc import Iterable, Iterator

from runner.config import schema
from runner.config.check.rules.rule import Finding, find_unused_settings
from runner.config.check.rules.train import find_metric_names
from runner.config.suggestions import find_nearest, format_suggestion
from runner.core.errors import Mistake

OF_THE_SWEEP = ("sweep", "hydra", "on_event")  # groups and keys that are no part of a job


def find_multirun_only(arguments: Iterable[str]) -> Iterator[Mistake]:
    """Yield a mistake for each argument of a single run that configures a sweep."""
    for text in arguments:
        key, _, value = text.partition("=")
        key = key.lstrip("+")
        if key.startswith("sweep.") or (key == "sweep" and value not in ("default", "null")):
            rule = "has no effect without `-m`"
            yield Mistake(
                key, rule, where=f"argument `{text}`", remedy="put `-m` before it, or leave it out", kind="no-effect"
            )


def check_search(config: schema.Config) -> Iterator[Finding]:
    """Check that a search has a sampler and that its objectives are metrics of a completed run."""
    search = config.sweep.search
    if search.sampler is None:
        reason = "without `sweep.search.sampler`"
        yield from find_unused_settings(
            "sweep.search", search, ("pruner", "trials", "batch", "objectives"), reason, "sweep.search.sampler"
        )
        return
    for name in ("random", "seeds"):
        if (value := getattr(config.sweep, name)) is not None:
            rule = "must not stand beside `sweep.search.sampler`, which chooses each point by one result of one run"
            yield Finding(Mistake(f"sweep.{name}", rule, value, kind="conflict"), ("sweep.search.sampler",))
    if search.pruner is not None:
        yield from _check_pruner(config)
    if not search.objectives:
        return
    if len(search.objectives) == 1:
        rule = "must be two or more: a single one is `train.objective`"
        yield Finding(Mistake("sweep.search.objectives", rule, dict(search.objectives)))
    names, prefixes = find_metric_names(config)
    kept = [name for name in names if not name.startswith("train/")]
    if config.dataset.test is not None or config.dataset.test_fraction:
        kept += [f"test/{name.partition('/')[2]}" for name in names if name.startswith("train/")]
        prefixes += [f"test/{prefix.partition('/')[2]}" for prefix in prefixes]
    for name in search.objectives:
        if name not in kept and not name.startswith(tuple(prefixes)):
            right = find_nearest(name, kept)
            rule = f"must be one of {', '.join(f'`{known}`' for known in kept)}: no other metric is in a result"
            remedy = format_suggestion(right)
            found = Mistake(f"sweep.search.objectives.{name}", rule, remedy=remedy, suggestion=right)
            yield Finding(found, ("metrics", "dataset"))


def _check_pruner(config: schema.Config) -> Iterator[Finding]:
    """Check that a pruner has a single objective with values before the end of a job."""
    if config.sweep.search.objectives:
        rule = "must not stand beside several `sweep.search.objectives`: Optuna prunes by one"
        yield Finding(Mistake("sweep.search.pruner", rule, kind="conflict"), ("sweep.search.objectives",))
    objective = config.train.objective or find_metric_names(config)[0][0]
    if config.train.evaluate_every is None and not objective.startswith("train/"):
        rule = f"has no effect with train.evaluate_every=null: `{objective}` has one value, at the end of a job"
        yield Finding(Mistake("sweep.search.pruner", rule, kind="no-effect"), ("train.evaluate_every",))
