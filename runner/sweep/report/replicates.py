"""Replicates of a run: intervals of metrics over the jobs of its sweep that differ in the seed."""

import math
from pathlib import Path

from runner.core.errors import ConfigError
from runner.sweep.ledger import FILE
from runner.sweep.report.results import gather, is_result
from runner.sweep.report.significance import Mean


def describe_replicates(run: Path) -> list[str]:
    """Describe each metric over a run's replicates: mean and 95% interval; empty where there are none."""
    if not (run.resolve().parent / FILE).is_file():
        return []
    try:
        report = gather(run.resolve().parent)
    except ConfigError:  # a ledger that cannot be read: the card says nothing of it
        return []
    name = run.resolve().name
    entry = next((one for one in report.entries if any(Path(row.path).name == name for row in one.rows)), None)
    rows = [row for row in entry.rows if is_result(row)] if entry is not None else []
    said = []
    for metric in rows[0].metrics if len(rows) > 1 else ():
        values = [row.metrics[metric] for row in rows if isinstance(row.metrics.get(metric), int | float)]
        if len(values) > 1 and all(map(math.isfinite, values)):
            mean = Mean.of(values)
            said.append(f"{metric}: {mean.value:.6g} ± {mean.half:.2g} (95% interval of the mean of {mean.n} seeds)")
    return said
