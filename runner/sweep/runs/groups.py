"""Groups of runs to be compared: named by words, a number a run, paired where seeds match."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from runner.config.identity import WITHOUT_EFFECT
from runner.core.errors import ConfigError, Mistake
from runner.sweep.ledger import FILE, JobRecord, Ledger
from runner.sweep.report.comparison import Comparison, compare_numbers
from runner.sweep.runs.address import Address, AddressKind, find_address, is_run_directory
from runner.sweep.runs.filters import find_name
from runner.sweep.runs.index import UNREADABLE_LEDGER, find_root, read_table
from runner.sweep.runs.listing import is_folder, select_runs
from runner.sweep.runs.reading import RunRow

TAKEN: tuple[AddressKind, ...] = ("run", "job", "sweep", "filter")


LESS_IS_BETTER = ("loss", "error", "perplexity", "mae", "mse", "rmse", "nll")  # ends of names of metrics


@dataclass
class RunGroup:
    """Group of runs, each with its seed and its number.

    Attributes:
        word: that names it.
        said: what it is, in words.
        rows: runs that count.
        values: their numbers.
        left_out: runs that do not count, with the reason.
        notes: what else is to be known.
    """

    word: str
    said: str
    rows: list[RunRow]
    values: list[float] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def seeds(self) -> list[Any]:
        """Return the seed of each run that counts."""
        return [row.get("seed") for row in self.rows]


@dataclass(frozen=True)
class GroupComparison:
    """Comparison of two groups of runs.

    Attributes:
        a: the first group, and `b` the second.
        metric: name of the number.
        mode: `max` where more is better, else `min`.
        alpha: p value below which A is called better.
        result: of the test; None where a group has no run that counts.
        seeds: of the pairs; empty where groups are not paired.
        why: why they are or are not paired, in words.
    """

    a: RunGroup
    b: RunGroup
    metric: str
    mode: str
    alpha: float
    result: Comparison | None
    seeds: list[Any]
    why: str

    @property
    def is_better(self) -> bool:
        """Return whether A is better at `alpha`."""
        return self.result is not None and self.result.is_better(1 if self.mode == "max" else -1)

    @property
    def more(self) -> tuple[int, int] | None:
        """Return the further seeds that A and B need to show a difference of this size; None if not known."""
        if self.result is None or self.result.needed is None:
            return None
        return tuple(max(0, self.result.needed - mean.n) for mean in (self.result.a, self.result.b))  # type: ignore[return-value]


def compare_groups(
    words: tuple[str, str],
    *,
    metric: str = "",
    mode: Literal["", "min", "max"] = "",
    alpha: float = 0.01,
    unpaired: bool = False,
) -> GroupComparison:
    """Compare two groups of runs by the objective, or by a metric.

    Args:
        words: that name A and B: a sweep, a job with its replicates, a run, a filter.
        metric: name of the number; empty for the objective.
        mode: whether more is better; empty for that of the objective, else by the metric's name.
        alpha: p value below which A is better.
        unpaired: whether seeds are left out of account.

    Raises:
        ConfigError: a word names no run, a run is in both groups, or their objectives differ.
    """
    groups = [find_group(word, name) for word, name in zip(words, ("A", "B"), strict=True)]
    a, b = groups
    both = {row.folder.resolve() for row in a.rows} & {row.folder.resolve() for row in b.rows}
    if both:
        rule, value = "must be two groups, and both have the run", str(min(both))
        raise ConfigError([Mistake("A and B", f"{rule} {value}", kind="conflict")])
    name, direction = choose_metric([*a.rows, *b.rows], metric, mode)
    for group in groups:
        _reduce(group, name, is_objective=not metric)
        _note_differences(group)
    seeds, why = match_seeds(a, b, unpaired=unpaired)
    if not a.values or not b.values:
        return GroupComparison(a, b, name, direction, alpha, None, [], "a group has no run that counts")
    if seeds:
        pairs = [[group.values[group.seeds.index(seed)] for seed in seeds] for group in groups]
        result = compare_numbers(*pairs, paired=True, alpha=alpha)
    else:
        result = compare_numbers(a.values, b.values, paired=False, alpha=alpha)
    return GroupComparison(a, b, name, direction, alpha, result, seeds, why)


def find_group(word: str, name: str) -> RunGroup:
    """Find the runs that a word names; one job `SWEEP:12` stands for its replicates. Raises ConfigError."""
    folder = Path(word)
    if is_folder(word) and not is_run_directory(folder) and not (folder / FILE).is_file():
        return _require_rows(RunGroup(word, f"runs below {word}", select_runs([word]).rows), name)
    found = find_address(word, TAKEN, name=name)
    if found.kind == "filter":
        group = RunGroup(word, f"runs with {word}", select_runs([word]).rows)
    else:
        group = _find_listed(found)
    return _require_rows(group, name)


def _require_rows(group: RunGroup, name: str) -> RunGroup:
    word = group.word
    if not group.rows:
        remedy = f"`python -m runner ls {word!r}` lists what it selects"
        raise ConfigError([Mistake(name, "names no run", word, f"argument `{word}`", remedy, kind="file")])
    return group


def _find_listed(found: Address) -> RunGroup:
    root = find_root(found.sweep or found.runs[0])
    rows = {row.folder.resolve(): row for row in read_table(root).rows}
    group = RunGroup(found.word, f"the run {found.word}", [])
    wanted = list(found.runs)
    if found.sweep is not None and found.kind != "run":
        jobs = _read_jobs(found.sweep)
        group.said = f"{'job' if len(wanted) == 1 else 'jobs'} {', '.join(map(str, found.numbers))} of {found.sweep}"
        if found.kind == "sweep":
            group.said = f"the sweep {found.sweep}"
            wanted = [path for path in wanted if path.name not in jobs or jobs[path.name].active]
            if len(wanted) < len(found.runs):
                group.notes.append(f"{len(found.runs) - len(wanted)} jobs that are no longer asked for do not count")
        elif found.word.rpartition(":")[2].isdecimal() and (job := jobs.get(wanted[0].name)) and job.replicate_of:
            same = {path for path, other in jobs.items() if other.replicate_of == job.replicate_of and other.active}
            wanted = [found.sweep / path for path in sorted(same, key=lambda path: jobs[path].number)] or wanted
            group.said = f"job {job.number} of {found.sweep} and its replicates: {len(wanted)} jobs"
    group.rows = [rows[path.resolve()] for path in wanted if path.resolve() in rows]
    return group


def _read_jobs(sweep: Path) -> dict[str, JobRecord]:
    try:
        with Ledger(sweep, read_only=True) as ledger:
            return {job.path: job for job in ledger.jobs()}
    except UNREADABLE_LEDGER:
        return {}


def choose_metric(rows: Sequence[RunRow], metric: str, mode: str) -> tuple[str, str]:
    """Choose the name of the number and its direction. Raises ConfigError where objectives differ."""
    objectives = {str(row.get("objective_name")): row.get("mode") for row in rows if row.get("objective_name")}
    if metric:
        names = {name for row in rows for name in row.metrics}
        find_name(metric, names, where=f"argument `--metric {metric}`", of="--metric")
        bare = metric.removeprefix("best.")
        ends = bare.rpartition("/")[2].lower()
        known = objectives.get(bare) or ("min" if ends.endswith(LESS_IS_BETTER) else "max")
        return metric, mode or str(known)
    if len(objectives) != 1:
        rule = f"have different objectives ({', '.join(sorted(objectives))})" if objectives else "have no objective"
        raise ConfigError([Mistake("A and B", rule, remedy="name one: `--metric val/loss`", kind="conflict")])
    ((name, known),) = objectives.items()
    modes = {row.get("mode") for row in rows}
    if len(modes) > 1 and not mode:
        rule = f"disagree whether more of {name} is better (`train.mode`)"
        raise ConfigError([Mistake("A and B", rule, remedy="say it: `--mode max`", kind="conflict")])
    return name, mode or str(known)


def _reduce(group: RunGroup, metric: str, *, is_objective: bool) -> None:
    """Keep the runs that are completed and have a finite number, each experiment once."""
    seen: dict[tuple[str, str, float], str] = {}
    kept: list[RunRow] = []
    for row in group.rows:
        value = row.get("objective" if is_objective else metric)
        if row.status != "completed":
            cause = f" ({row.get('cause')})" if row.get("cause") else ""
            group.left_out.append((row.path, f"{row.status}{cause}"))
        elif not isinstance(value, int | float) or isinstance(value, bool):
            group.left_out.append((row.path, f"has no {metric}"))
        elif not math.isfinite(value):
            group.left_out.append((row.path, f"its {metric} is {value}"))
        else:
            weights = str(row.get("weights") or row.path)
            key = (str(row.get("seed")), weights, float(value))
            if key in seen:
                group.left_out.append((row.path, f"the same experiment as {seen[key]}, with the same seed and weights"))
                continue
            seen[key] = row.path
            kept.append(row)
            group.values.append(float(value))
    group.rows = kept


def _note_differences(group: RunGroup) -> None:
    """Note in which settings the runs of a group differ beside their seeds."""
    keys: Counter[str] = Counter()
    for row in group.rows[1:]:
        first = group.rows[0].config
        keys.update(key for key in {*first, *row.config} if first.get(key) != row.config.get(key))
    ignored = (*WITHOUT_EFFECT, "seed")
    differing = sorted(key for key in keys if not any(key == one or key.startswith(f"{one}.") for one in ignored))
    if differing:
        listed = ", ".join(differing[:5]) + (", …" if len(differing) > 5 else "")
        group.notes.append(f"its runs differ in {listed}, not in the seed alone")


def match_seeds(a: RunGroup, b: RunGroup, *, unpaired: bool) -> tuple[list[Any], str]:
    """Match the seeds of two groups; return those of the pairs, empty for none, and why.

    At least two seeds must be in both groups, once in each. Runs whose seed is in one group alone are left out then.
    """
    if unpaired:
        return [], "not paired: --unpaired"
    for name, group in (("A", a), ("B", b)):
        twice = [seed for seed, count in Counter(map(repr, group.seeds)).items() if count > 1]
        if twice:
            return [], f"not paired: several runs of {name} have the seed {twice[0]}"
    others = set(map(repr, b.seeds))
    common = [seed for seed in a.seeds if repr(seed) in others and seed is not None]
    if len(common) < 2:
        return [], f"not paired: {len(common) or 'no'} seed in both"
    for group in (a, b):
        known = set(map(repr, common))
        alone = [row for row in group.rows if repr(row.get("seed")) not in known]
        group.left_out += [(row.path, f"no run of the other group has its seed, {row.get('seed')}") for row in alone]
    return common, f"paired by seed: {len(common)} pairs"
