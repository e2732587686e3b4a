"""Record file of a run, small enough to be committed: config, trace and result, without weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.config.check.check import to_resolved_data
from runner.core import safe_io
from runner.core.errors import ConfigError, Mistake
from runner.core.files import to_json, write_text
from runner.experiment.record.recorded import make_no_run_mistake
from runner.experiment.record.recorded_run import RecordedRun
from runner.log.trace_file import TRACE, read_trace, read_trace_lines

RECORD_SUFFIX = ".record.json"


FORMAT = "runner-record-1"


MOST_STEPS = 5_000  # with facts of their own; of a longer run those of its log lines and checkpoints


OF_RESULT = ("status", "metrics", "best", "objective", "steps", "weights_sha256", "ema_sha256", "stopped", "inexact")


OF_PROVENANCE = (
    "time", "command", "seed", "threads", "device", "processes", "data", "plan", "plan_kinds", "modules", "versions",
    "hardware", "platform", "resumed",
)  # fmt: skip


def write_record(folder: Path, to: Path, trust: tuple[str, ...] = ()) -> dict[str, Any]:
    """Write the record of a run to a file; return what it says: `steps`, `metrics`, `bytes`, `notes`.

    Raises:
        ConfigError: the folder is no run, has no trace, or the file is not the runner's to write.
    """
    recorded = RecordedRun(folder)
    if not recorded.exists():
        raise ConfigError([make_no_run_mistake(folder, "record")])
    mistakes = _check_target(to)
    lines: list[Any] = []
    try:
        lines = read_trace_lines(folder)
        read_trace(lines)
    except (OSError, ValueError) as error:
        rule = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        remedy = "train it again with log.trace=true: a record without a trace cannot be replayed step by step"
        mistakes.append(Mistake(str(folder / TRACE), rule, remedy=remedy, kind="file"))
    result, record = recorded.read_result(), recorded.read_provenance()
    if not result:
        mistakes.append(Mistake(str(folder / "result.json"), "is missing or damaged", kind="file"))
    if mistakes:
        raise ConfigError(mistakes)
    notes: list[str] = []
    config, _ = recorded.load_config((), trust, verb="record", say=notes.append)
    if result.get("status") != "completed":
        notes.append(f"the run is {result.get('status')}: the record ends at step {result.get('steps')}")
    if record is None:
        notes.append(f"{folder / 'provenance.json'} is missing or damaged: the record knows no code, versions or data")
    content = {
        "format": FORMAT,
        "config": to_resolved_data(config),
        "result": {name: result[name] for name in OF_RESULT if name in result},
        "provenance": _cut_provenance(record or {}),
        "metrics": _read_evaluations(recorded),
        "trace": _reduce_lines(lines, notes),
    }
    text = _format(content)
    write_text(to, text)
    return {
        "record": str(to),
        "steps": result.get("steps"),
        "metrics": result.get("metrics"),
        "bytes": len(text),
        "notes": notes,
    }


def _check_target(to: Path) -> list[Mistake]:
    where = f"argument `--to {to}`"
    if not to.name.endswith(RECORD_SUFFIX) or to.name == RECORD_SUFFIX:
        remedy = f"such as conf/experiment/NAME{RECORD_SUFFIX}"
        return [Mistake("--to", f"must end in {RECORD_SUFFIX}", str(to), where, remedy, kind="file")]
    if not to.parent.is_dir():
        return [
            Mistake("--to", "must stand in an existing folder", str(to), where, f"`mkdir -p {to.parent}`", kind="file")
        ]
    if to.is_symlink() or (to.exists() and not _is_record(to)):
        return [Mistake("--to", "must be a new file or a record", str(to), where, "name another file", kind="file")]
    return []


def _is_record(path: Path) -> bool:
    try:
        read_record_file(path)
    except ConfigError:
        return False
    return True


def read_record_file(path: Path) -> dict[str, Any]:
    """Read a record file, within limits; it may be a stranger's.

    Raises:
        ConfigError: it is no record.
    """
    rule = ""
    try:
        record = safe_io.read_json(path)
    except OSError as error:
        rule = f"cannot be read: {error.strerror or error}"
    except ValueError as error:
        rule = f"is no JSON: {error}"
    else:
        parts = {"config": dict, "result": dict, "provenance": dict, "metrics": list, "trace": list}
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            rule = f"is no record: its `format` must be {FORMAT}"
        elif wrong := [name for name, kind in parts.items() if not isinstance(record.get(name), kind)]:
            rule = f"is no whole record: {', '.join(wrong)} is missing or of another kind"
    if rule:
        remedy = f"`python -m runner record RUN --to {path}` writes one"
        raise ConfigError([Mistake(str(path), rule, remedy=remedy, kind="file")])
    return dict(record)


def _cut_provenance(record: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what a replay compares; the diff of a dirty tree is no small thing."""
    kept = {name: record[name] for name in OF_PROVENANCE if name in record}
    modules = record.get("modules")
    files = modules.get("files") if isinstance(modules, Mapping) else None
    if isinstance(files, Mapping):  # the runner's own are many; its version and the commit tell of them
        ours = ("runner", "__main__")
        own = {name: value for name, value in files.items() if str(name).partition(".")[0] not in ours}
        kept["modules"] = {"files": own}
    git = record.get("git")
    if isinstance(git, Mapping):
        kept["git"] = {name: git.get(name) for name in ("commit", "branch", "dirty")}
    return kept


def _read_evaluations(recorded: RecordedRun) -> list[dict[str, Any]]:
    try:
        events: list[Any] = recorded.read_events()
    except (OSError, ValueError):
        return []
    kept = []
    for event in events:
        if isinstance(event, Mapping) and type(event.get("step")) is int:
            values = {name: value for name, value in event.items() if "/" in str(name)}
            values = {name: value for name, value in values.items() if not name.startswith(("train/", "lr/"))}
            kept += [{"step": event["step"], **values}] if values else []
    return kept


def _reduce_lines(lines: list[Any], notes: list[str]) -> list[Any]:
    """Leave out the packed facts of steps after the first MOST_STEPS; marks stay."""
    packed = {"loss", "settings", "order", "data_probe", "weights_probe", "gradient_probe"}
    kept = []
    for line in lines:
        event = dict(line)
        if event["step"] > MOST_STEPS:
            event = {name: value for name, value in event.items() if name not in packed}
        if len(event) > 1:
            kept.append(event)
    if any(line["step"] > MOST_STEPS for line in lines):
        notes.append(f"after step {MOST_STEPS:,} the record holds log lines and checkpoints, not every step")
    return kept


def _format(content: Mapping[str, Any]) -> str:
    """Format a record for a repository: a line for each part and each line of the trace."""
    parts = []
    for name, value in content.items():
        if name in ("trace", "metrics"):
            rows = ",\n  ".join(map(to_json, value))
            parts.append(f'"{name}": [\n  {rows}\n ]')
        else:
            parts.append(f'"{name}": {to_json(value)}')
    return "{\n " + ",\n ".join(parts) + "\n}\n"
