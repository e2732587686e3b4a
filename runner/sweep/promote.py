"""Promotion of the best job of a sweep to an experiment file."""

import re
import sys
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from runner.config import document
from runner.config.minimal import write_experiment
from runner.core import safe_io
from runner.core.errors import ConfigError, Mistake
from runner.core.escape import escape_line, make_printable
from runner.core.paths import find_our_conf
from runner.experiment.record.recorded import is_run, read_config_files
from runner.sweep.ledger import JobRecord
from runner.sweep.report.results import REPLICATED, Report, ReportEntry, gather, is_result
from runner.sweep.report.table import format_point, format_score

NO_NAMES = ("null",)


MOST_LISTED = 3  # points within noise of the winner


HAS_WEIGHTS = ("completed", "pruned", "interrupted")


@dataclass(frozen=True)
class Winner:
    """Job to promote, and the report entry that it stands for."""

    row: JobRecord
    entry: ReportEntry


@dataclass(frozen=True)
class Promotion:
    """Experiment file that was written, the score of its job, and the command that trains with it."""

    file: Path
    score: str
    noise: str  # points that replicates cannot tell from it; empty for none
    command: str

    def as_json(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        return {"file": str(self.file), "score": self.score, "noise": self.noise, "command": self.command}


def promote(sweep: Path, name: str = "", job: str = "", trust: tuple[str, ...] = ()) -> Promotion:
    """Write a job of a sweep as `conf/experiment/<name>.yaml`: the best one, or the one that `job` names.

    Raises:
        ConfigError: there is no such sweep, no such job, nothing to promote, or the file exists.
    """
    report = gather(sweep)
    winner = find_job(report, job) if job else find_winner(report)
    name = name or f"{report.settings.get('name') or report.folder.parent.name}_best"
    if not re.fullmatch(r"[A-Za-z0-9_][\w.\-]{,99}", name, re.ASCII) or name in NO_NAMES or name.endswith(".yaml"):
        rule = "must be at most 100 letters (a to z), digits, `_`, `-` and `.`: what `experiment=NAME` can choose"
        raise ConfigError([Mistake("--name", rule, name)])
    file = Path("conf") / "experiment" / f"{name}.yaml"
    if (find_our_conf() / "experiment" / file.name).exists() and not file.exists():
        raise ConfigError([Mistake("--name", "must not be that of a shipped experiment", name)])
    folder = report.folder / winner.row.path
    recorded, unresolved = read_config(folder)
    arguments = report.arguments(winner.row)
    if FOLD in winner.row.values:  # the data of the experiment is no fold of it
        arguments = [text for text in arguments if not re.match(rf"\+*{re.escape(FOLD)}=", text)]
        recorded, unresolved = _without_fold(recorded, unresolved)
    header = format_header(report, winner, name, folder)
    write_experiment(file, header, arguments, recorded, unresolved, Path.cwd(), trust)
    command = report.command(*(f"--trust={pattern}" for pattern in trust), f"experiment={name}")
    return Promotion(file, describe_score(report, winner), describe_noise(report, winner), command)


FOLD = "dataset.fold"


def _without_fold(recorded: dict[str, Any], unresolved: str) -> tuple[dict[str, Any], str]:
    """Return a job's config, and its YAML with interpolations, with no fold held out."""
    written = OmegaConf.create(unresolved)
    OmegaConf.update(written, FOLD, None)
    return {**recorded, "dataset": {**recorded["dataset"], "fold": None}}, OmegaConf.to_yaml(written)


def find_winner(report: Report) -> Winner:
    """Return the first replicate with a result of the best entry, which need not be the best seed."""
    if report.best is None:
        remedy = "`--job NUMBER` promotes one that was pruned" if any(r.status == "pruned" for r in report.rows) else ""
        raise ConfigError(
            [Mistake("SWEEP", "has no completed job to promote", str(report.folder), remedy=remedy, kind="file")]
        )
    if report.objectives:
        front = ", ".join(str(entry.rows[0].number) for entry in report.entries if entry.front)
        rule = f"has several objectives and so no single winner: on the Pareto front are the jobs {front}"
        raise ConfigError([Mistake("SWEEP", rule, str(report.folder), remedy="choose one with `--job NUMBER`")])
    return Winner(next(row for row in report.best.rows if is_result(row)), report.best)


def find_job(report: Report, name: str) -> Winner:
    """Find a job by its number, its folder or a prefix of its id."""
    found = [r for r in report.rows if name in (str(r.number), r.path) or (len(name) >= 6 and r.id.startswith(name))]
    if len(found) != 1:
        rule = f"must be the number of a job, 0 to {max((row.number for row in report.rows), default=0)}"
        raise ConfigError([Mistake("--job", rule, name, f"argument `--job {name}`")])
    row = found[0]
    if row.status not in HAS_WEIGHTS:
        rule = f"must be completed, pruned or interrupted: job {row.number} is {row.status}"
        raise ConfigError([Mistake("--job", rule, name, f"argument `--job {name}`", kind="file")])
    entries = [entry for entry in report.entries if row in entry.rows]
    alone = ReportEntry((row,), {}, None, row.objective)
    return Winner(row, entries[0] if entries and is_result(row) else alone)


def read_config(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the resolved config of a job and its YAML with interpolations kept."""
    if not is_run(folder):
        raise ConfigError([Mistake("SWEEP", "has no config of this job any more", str(folder), kind="file")])
    whole = read_config_files(folder, lambda text: print(make_printable(text), file=sys.stderr))
    return whole.data, OmegaConf.to_yaml(whole.unresolved)


def format_header(report: Report, winner: Winner, name: str, folder: Path) -> str:
    """Format the comment header of the experiment: command, time, result, sweep, job, commit, date."""
    rows = [row for row in winner.entry.rows if is_result(row)] or [winner.row]
    seconds = [row.end - row.start for row in rows if row.start is not None and row.end is not None]
    lines = {
        "command": report.command(f"experiment={name}"),
        "time": f"{sum(seconds) / len(seconds):.3g} s, as a job of its sweep" if seconds else "not known",
        "result": describe_score(report, winner),
        **({"noise": f"within it {noise}"} if (noise := describe_noise(report, winner)) else {}),
        "sweep": f"{report.settings.get('id') or report.folder.name}, {report.folder}",
        "job": ", ".join(f"{row.number} ({row.id})" for row in rows),
        "commit": _read_commit(folder),
        "date": datetime.now().astimezone().strftime("%Y-%m-%d"),
    }
    width = max(map(len, lines)) + 1
    # A ledger may come from a stranger: a line feed would end the comment, and what follows would be YAML.
    said = [f"# {key + ':':<{width}} {escape_line(value)}" for key, value in lines.items()]
    return "\n".join([f"# {escape_line(_describe_rank(report, winner))}", *said, ""])


def _describe_rank(report: Report, winner: Winner) -> str:
    if winner.entry.rank == 1:
        return f"The best of {sum(entry.rank is not None for entry in report.entries)} points of a sweep."
    return f"Job {winner.row.number} of a sweep ({winner.row.status})."


def describe_score(report: Report, winner: Winner) -> str:
    """Describe the score, with the seeds and folds behind a mean."""
    entry, row = winner.entry, winner.row
    if entry.mean is None:
        return f"{report.objective} {format_score(replace(entry, last=row.objective)) or 'unknown'}, {row.status}"
    if entry.mean.n == 1:
        return f"{report.objective} {format_score(entry)} (seed {_read_setting(row, report, 'seed')})"
    keys = [key for key in REPLICATED if key in report.varied] or ["seed"]
    each = (" of ".join(_read_setting(row, report, key) for key in keys) for row in entry.rows if is_result(row))
    what = f"mean and 95% interval of {entry.mean.n} {report.replicates}: {', '.join(each)}"
    return f"{report.objective} {format_score(entry)} ({what})"


def describe_noise(report: Report, winner: Winner) -> str:
    """List the points that replicates cannot tell from the best; empty for another winner."""
    close = [entry for entry in report.entries if entry.within_noise and winner.entry.rank == 1]
    said = [f"{format_point(entry.rows[0], report.keys)} (p = {entry.p:.2g})" for entry in close[:MOST_LISTED]]
    return ", ".join(said) + (f" and {len(close) - len(said)} more" if len(close) > len(said) else "")


def _read_setting(row: JobRecord, report: Report, key: str) -> str:
    file = report.folder / row.path / "config.yaml"  # resolved: the point may have said `${...}`
    try:
        value = document.load_record(file, plain=True).data
        for name in key.split("."):
            value = value[name]
        return str(value)
    except (OSError, ValueError, LookupError):
        return "?"


def _read_commit(folder: Path) -> str:
    """Return the commit that the job ran, and whether the working tree had changes."""
    file = folder / "provenance.json"
    try:
        git = safe_io.read_json(file)["git"] or {}
    except (OSError, ValueError, TypeError, LookupError) as error:
        return f"not known: {file.name} {'is missing' if isinstance(error, FileNotFoundError) else 'is damaged'}"
    if not isinstance(git, dict) or not git.get("commit"):
        return "none: the job ran outside of a repository"
    return str(git["commit"]) + (" with uncommitted changes" if git.get("diff") or git.get("dirty") else "")
