"""Comparison of two groups of runs, shown as text for people and as plain data for programs."""

from typing import Any

from runner.core.escape import escape_line
from runner.sweep.report.comparison import TESTS, Comparison, describe_mean
from runner.sweep.runs.groups import GroupComparison, RunGroup

MOST_LEFT_OUT = 10  # runs that are named


def format_comparison(found: GroupComparison) -> str:
    """Format what is compared, what is left out, the test and its answer."""
    lines = []
    for name, group in (("A", found.a), ("B", found.b)):
        lines.append(f"{name}: {group.said}: {_format_mean(name, found)}")
        lines += [f"   {note}" for note in group.notes]
        lines += [f"   left out: {path}: {reason}" for path, reason in group.left_out[:MOST_LEFT_OUT]]
        if len(group.left_out) > MOST_LEFT_OUT:
            lines.append(f"   … {len(group.left_out) - MOST_LEFT_OUT} more left out: --json names them")
    result = found.result
    if result is None:
        lines.append(f"A is not shown to be better: {found.why}")
        return "\n".join(map(escape_line, lines))
    direction = "more" if found.mode == "max" else "less"
    lines.append(f"A - B: {result.difference:+.6g} {found.metric}, of which {direction} is better; {found.why}")
    if result.interval is not None and result.p is not None:
        low, high = result.interval
        lines.append(f"95% interval {low:.6g} to {high:.6g}, p = {result.p:.3g}: {TESTS[result.test]}")
    return "\n".join([*map(escape_line, lines), *_tell_answer(found, result)])


def _format_mean(name: str, found: GroupComparison) -> str:
    group: RunGroup = found.a if name == "A" else found.b
    if found.result is None:
        return f"{len(group.rows)} runs that count"
    mean = found.result.a if name == "A" else found.result.b
    noise = f" ± {mean.half:.2g}, std {mean.std:.2g}" if mean.n > 1 else ""
    return f"{mean.n} run{'s' * (mean.n != 1)}, {found.metric} {mean.value:.6g}{noise}"


def _tell_answer(found: GroupComparison, result: Comparison) -> list[str]:
    if result.p is None:
        return ["A is not shown to be better: the noise is not known, which takes at least two runs a group"]
    if found.is_better:
        return [f"A is better (p < {found.alpha:g})"]
    sign = 1 if found.mode == "max" else -1
    said = [f"A is not shown to be better (p < {found.alpha:g})"]
    if result.p < found.alpha and sign * result.difference < 0:
        return [f"A is worse (p < {found.alpha:g})"]
    if found.more is None:
        return [*said, "no number of seeds that one would run shows a difference of this size"]
    a, b = found.more
    each = f"{a} more each" if a == b else f"{a} more of A, {b} more of B"
    whom = "A" if sign * result.difference > 0 else "B"
    what = f"about {result.needed} seeds each would show {whom} better, were the difference and the noise these"
    return [*said, f"{what} ({each}; power 0.8)"]


def as_json(found: GroupComparison) -> dict[str, Any]:
    """Return the comparison as plain data."""
    result = found.result
    said: dict[str, Any] = {
        "metric": found.metric,
        "mode": found.mode,
        "alpha": found.alpha,
        "better": found.is_better,
        "test": None if result is None else result.test,
        "paired": found.why,
        "seeds": found.seeds,
        "difference": None if result is None else result.difference,
        "interval": None if result is None or result.interval is None else list(result.interval),
        "p": None if result is None else result.p,
        "needed": None if result is None else result.needed,
        "more": None if found.more is None else {"a": found.more[0], "b": found.more[1]},
    }
    for name, group in (("a", found.a), ("b", found.b)):
        runs = [
            {"path": row.path, "seed": seed, "value": value}
            for row, seed, value in zip(group.rows, group.seeds, group.values, strict=True)
        ]
        mean = None if result is None else describe_mean(getattr(result, name))
        left_out = [{"path": path, "reason": reason} for path, reason in group.left_out]
        said[name] = {"word": group.word, "runs": runs, "mean": mean, "left_out": left_out, "notes": group.notes}
    return said
