"""Text of an answer of `blame`: the culprits, the gap that each explains, the rest, the runs."""

from collections.abc import Iterator

from runner.sweep.blame.blame import BlameReport
from runner.sweep.blame.measured import Effect
from runner.sweep.blame.search import Culprit

MOST_PROBLEMS = 5


def format_report(report: BlameReport) -> str:
    """Format the answer."""
    parts = (_list_head(report), _list_culprits(report), _list_rest(report), [_describe_runs(report)])
    return "\n\n".join("\n".join(lines) for part in parts if (lines := list(part)))


def _list_head(report: BlameReport) -> Iterator[str]:
    many = len(report.settings) != 1
    words = f"{len(report.settings)} setting{'s' * many} differ{'s' * (not many)}"
    yield f"{words} between A ({report.words[0]}) and B ({report.words[1]})"
    a, b = ("no value" if mean is None else f"{mean:.4g}" for mean in report.means)
    noise = "" if report.noise is None else f"; one run of the same settings varies by {report.noise:.2g}"
    gap = "" if None in report.means else f": a gap of {_format(report.findings.gap)}{noise}"
    yield f"{report.metric}: A {a}, B {b}{gap}"


NOT_FOUND = {
    "unmeasured": "A or B has no value of the metric, so there is nothing to explain.",
    "noise": "The gap is within noise: nothing to blame. Longer runs (--duration) or more (--jobs) may show more.",
    "unfinished": "No setting is found: the runs are used up, or were stopped. More of them (--jobs) go on from here.",
}


def _list_culprits(report: BlameReport) -> Iterator[str]:
    findings = report.findings
    if not findings.culprits:
        yield NOT_FOUND.get(findings.verdict, NOT_FOUND["unfinished"])
    for culprit in findings.culprits:
        yield from _describe(culprit, report)


def _list_rest(report: BlameReport) -> Iterator[str]:
    findings = report.findings
    keys = [setting.key for setting in report.settings]
    blamed = {index for culprit in findings.culprits for index in culprit.settings}
    others = ", ".join(key for i, key in enumerate(keys) if i not in blamed and i not in findings.untried)
    if findings.culprits and others:
        if findings.left is None:
            yield f"the others were not run without these: {others}"
        elif findings.left.is_noise:
            yield f"within noise, all together {_format(findings.left)}: {others}"
        else:
            yield f"the others together still change {_format(findings.left)}: {others}"
    if findings.untried:
        untried = ", ".join(keys[index] for index in findings.untried)
        yield f"not tried, for {report.budget} runs were used up: {untried}"
    if report.diverged:
        yield f"{report.diverged} runs diverged (NaN): they count as the worst value"
    yield from (f"unresolved: {problem}" for problem in report.problems[:MOST_PROBLEMS])
    if len(report.problems) > MOST_PROBLEMS:
        yield f"unresolved: and {len(report.problems) - MOST_PROBLEMS} more"


def _describe_runs(report: BlameReport) -> str:
    return f"{len(report.jobs)} of {report.budget} runs, listed by: python -m runner report {report.folder}"


def _describe(culprit: Culprit, report: BlameReport) -> Iterator[str]:
    words = {
        "alone": "",
        "together": " (only together)",
        "unseparated": " (one of these, or several: they could not be told apart)",
    }
    lines = [str(report.settings[index]) for index in culprit.settings]
    share = ""
    if gap := report.findings.gap.value:
        share = f", {culprit.effect.value / gap:.0%} of the gap"
    yield f"culprit{words[culprit.kind] if len(lines) > 1 else ''}: {lines[0]}"
    yield from (f"         and {line}" for line in lines[1:])
    yield f"         changes {report.metric} by {_format(culprit.effect)}{share}"
    if culprit.without is not None:
        noise = " (within noise)" * culprit.without.is_noise
        yield f"         B without it: a gap of {_format(culprit.without)}{noise}"


def _format(effect: Effect) -> str:
    if effect.half != effect.half:  # NaN: no replicates
        return f"{effect.value:+.4g}"
    return f"{effect.value:+.4g} ± {effect.half:.2g}"
