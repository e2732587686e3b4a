"""Source of a replay: what a run directory or a record file holds, and what of it is missing."""

import json
import math
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from runner.config.check.check import to_resolved_data
from runner.config.identity import WITHOUT_EFFECT
from runner.config.schema import Config
from runner.core.errors import ABSENT, ConfigError, Mistake
from runner.core.safe_io import refuse_foreign
from runner.experiment.record.continuation import FREE
from runner.experiment.record.record_file import RECORD_SUFFIX, read_record_file
from runner.experiment.record.recorded import (
    find_differences,
    load_recorded_config,
    make_no_run_mistake,
)
from runner.experiment.record.recorded_run import RecordedRun, get_latest_facts
from runner.log.trace_file import TRACE, RecordedTrace, read_trace, read_trace_lines, unpack_config

KEPT = {"loader.num_workers", "loader.in_memory"}  # which change no number, unless a dataset looks at them


@dataclass(frozen=True)
class ConfigChange:
    """Key whose value differs between two configs."""

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        was, now = ("absent" if value is ABSENT else json.dumps(value, default=str) for value in (self.was, self.now))
        return f"{self.key} was {was}, is {now}"

    def as_json(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        return {"key": self.key} | {
            name: None if value is ABSENT else value for name, value in (("was", self.was), ("now", self.now))
        }


@dataclass
class ReplaySource:
    """Record to replay.

    Attributes:
        name: as it was given.
        config: the checked config to train with.
        trace: of the steps; empty where there is none.
        evaluated: values of evaluations, by step, as far as they were logged.
        logged: values of training, by step.
        result: of the run; empty where it is not known.
        provenance: of the run; empty where it is not known.
        missing: what is not there, and what follows from that.
        folder: the run directory; None of a record file.
        boundary: the step at which the run was continued with other numbers; None without one.
        changes: what was otherwise from the boundary on.
        began: the config that the recorded steps began with; empty where it is not known.
        settings: arguments of optimizer and scheduler that the resume at the first step gave anew, as (old, new).
    """

    name: str
    config: Config
    trace: RecordedTrace = field(default_factory=RecordedTrace)
    evaluated: dict[int, dict[str, Any]] = field(default_factory=dict)
    logged: dict[int, dict[str, Any]] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    folder: Path | None = None
    boundary: int | None = None
    changes: list[str] = field(default_factory=list)
    began: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, dict[str, tuple[Any, Any]]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """The last step of which something is known."""
        steps = self.result.get("steps")
        known = steps if type(steps) is int and not self.trace.steps else 0
        return max([known, self.trace.last, *self.logged, *self.evaluated])

    def list_config_changes(self) -> list[ConfigChange]:
        """List the keys that can change numbers, and were otherwise when the run began."""
        return compare_configs(self.began, to_resolved_data(self.config)) if self.began else []


def compare_configs(
    before: Mapping[str, Any], now: Mapping[str, Any], kept: Collection[str] = KEPT
) -> list[ConfigChange]:
    """Compare two resolved configs in the keys that can change numbers, and those of `kept`."""
    of_training = {f"train.{name}" for name in ("duration", "evaluate_every", "objective", "mode")}
    free = ({*WITHOUT_EFFECT, *FREE} - {*kept}) | of_training
    return [
        ConfigChange(".".join(keys), was, value)
        for keys, was, value in find_differences(dict(before), dict(now))
        if not any(".".join(keys[:length]) in free for length in range(1, len(keys) + 1))
        and not (was is ABSENT and value is None)
    ]


def open_source(path: Path, trust: Sequence[str], *, start: int | None = None) -> ReplaySource:
    """Open a run directory or a record file; its config is judged like a composed one.

    Args:
        path: of the run directory or the file.
        trust: patterns of names trusted on the command line.
        start: the step to begin after, which decides of a continued run which config holds.

    Raises:
        ConfigError: there is no such record, or its config is wrong.
    """
    if path.name.endswith(RECORD_SUFFIX) or path.is_file():
        return _open_record_file(path, trust)
    return _open_run(path, trust, start)


def _open_run(folder: Path, trust: Sequence[str], start: int | None) -> ReplaySource:
    recorded = RecordedRun(folder)
    if not recorded.exists():
        raise ConfigError([make_no_run_mistake(folder, "replay")])
    missing: list[str] = []
    config, _ = recorded.load_config((), trust, verb="replay", say=missing.append)
    source = ReplaySource(str(folder), config, folder=folder, missing=missing)
    try:
        source.trace = read_trace(read_trace_lines(folder))
    except OSError:
        missing.append(f"{folder / TRACE} is missing: only the values of log lines and evaluations can be compared")
    except ValueError as error:
        missing.append(f"{folder / TRACE} is damaged ({error}): only log lines and evaluations can be compared")
    try:
        _take_events(source, recorded.read_events())
    except (OSError, ValueError):
        missing.append(f"{folder / 'metrics.jsonl'} is missing or damaged: values of evaluations cannot be compared")
    source.result = recorded.read_result()
    if not source.result:
        missing.append(f"{folder / 'result.json'} is missing or damaged: the final metrics cannot be compared")
    source.provenance = recorded.read_provenance() or {}
    if not source.provenance:
        rule = "is missing or damaged: code, versions, hardware and data cannot be compared"
        missing.append(f"{folder / 'provenance.json'} {rule}")
    _find_boundary(source, trust, start)
    return source


def _open_record_file(path: Path, trust: Sequence[str]) -> ReplaySource:
    record = read_record_file(path)
    config = load_plain_config(record["config"], trust)
    source = ReplaySource(str(path), config, result=record["result"], provenance=record["provenance"])
    try:
        source.trace = read_trace(record["trace"])
    except ValueError as error:
        source.missing.append(f"{path}: its trace is damaged ({error}): only evaluations can be compared")
    _take_events(source, record["metrics"])
    _find_boundary(source, trust, None)
    return source


def load_plain_config(plain: Mapping[str, Any], trust: Sequence[str]) -> Config:
    """Load a resolved config that stands in no run directory, judged like one that does.

    Raises:
        ConfigError: a key, a name, a slot or an argument is wrong.
    """
    with tempfile.TemporaryDirectory(prefix="replay_") as scratch:
        (Path(scratch) / "config.yaml").write_text(yaml.safe_dump(dict(plain), sort_keys=False))
        return load_recorded_config(Path(scratch), (), trust, verb="replay", say=lambda _: None)[0]


def _take_events(source: ReplaySource, events: Sequence[Any]) -> None:
    for event in events:
        if not isinstance(event, Mapping) or type(event.get("step")) is not int:
            continue
        for name, value in event.items():
            if "/" not in str(name) or not _is_number(value):
                continue
            kept = source.logged if str(name).startswith("train/") else source.evaluated
            kept.setdefault(event["step"], {})[str(name)] = float(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value in ("NaN", "Infinity", "-Infinity")
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _find_boundary(source: ReplaySource, trust: Sequence[str], start: int | None) -> None:
    """Find the first resume that changed numbers; up to there the config of the beginning holds."""
    begins = {
        step: unpack_config(marks["begin"].get("config"))
        for step, marks in sorted(source.trace.marks.items())
        if isinstance(marks.get("begin"), Mapping)
    }
    known = [config for config in begins.values() if config]
    source.began = known[0] if known else {}
    _take_inexact_resume(source)
    for step, config in begins.items():
        if config and source.began and step and (other := compare_configs(source.began, config, kept=())):
            if source.boundary is None or step < source.boundary:
                source.boundary = step
            if step == source.boundary:
                source.changes = [*map(str, other), *source.changes]
            break
    if source.boundary is None:
        return
    if start is not None and start >= source.boundary:
        if start == source.boundary and source.began:
            source.settings = _list_new_settings(source)
        source.began = {}
        source.provenance = dict(source.provenance) | get_latest_facts(source.provenance)
        source.boundary = None
    elif source.began:
        source.config = load_plain_config(source.began, trust)


def _take_inexact_resume(source: ReplaySource) -> None:
    """Take the first resume with other numbers of which provenance knows as the boundary."""
    entries = source.provenance.get("resumed")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, Mapping) and entry.get("exact") is False and type(entry.get("step")) is int:
            source.boundary, changes = entry["step"], entry.get("changes")
            source.changes = [_describe_change(change) for change in changes] if isinstance(changes, list) else []
            return


def _list_new_settings(source: ReplaySource) -> dict[str, dict[str, tuple[Any, Any]]]:
    """List the arguments of optimizer and scheduler that the resume at the boundary gave anew."""
    new: dict[str, dict[str, tuple[Any, Any]]] = {"optimizer": {}, "scheduler": {}}
    for change in compare_configs(source.began, to_resolved_data(source.config)):
        slot, _, name = change.key.partition(".")
        if slot in new and name:
            new[slot][name] = (change.was, change.now)
    return new


def _describe_change(change: Any) -> str:
    if not isinstance(change, Mapping):
        return str(change)
    return " ".join(str(change.get(name, "")) for name in ("key", "rule")).strip()


def load_checkpoint(source: ReplaySource, step: int) -> dict[str, Any]:
    """Load the checkpoint of a step, to begin there.

    Raises:
        ConfigError: the record has none.
        RunError: it is damaged.
    """
    rule = "must be a step that the run has a checkpoint of"
    if source.folder is None:
        remedy = "a record file holds no weights: leave `--from` out, or name the run directory"
        raise ConfigError([Mistake("--from", rule, step, f"argument `--from {step}`", remedy, kind="file")])
    refuse_foreign(source.folder)
    checkpoints = RecordedRun(source.folder).open_checkpoints()
    entries = {entry.step: entry.file for entry in checkpoints.entries()}
    if step not in entries:
        listed = ", ".join(map(str, entries)) or "none"
        remedy = f"there are checkpoints of the steps {listed}"
        raise ConfigError([Mistake("--from", rule, step, f"argument `--from {step}`", remedy, kind="file")])
    return checkpoints.load(checkpoints.folder / entries[step])
