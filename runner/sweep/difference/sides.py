"""Sides of a difference: a run, job, record or experiment as config, provenance, result and curves."""

import contextlib
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from runner.config import document
from runner.config.check.check import check, parse, to_resolved_data
from runner.config.compose import compose
from runner.config.composed import Composed
from runner.config.why import collect_answers
from runner.core import safe_io
from runner.core.errors import ConfigError, Mistake
from runner.experiment.record import provenance
from runner.experiment.record.recorded_run import RecordedRun
from runner.log.trace_file import expand_steps, read_trace_lines
from runner.sweep.ledger import Ledger
from runner.sweep.report.results import Curve, read_curves
from runner.sweep.runs.address import Address, find_address, read_record
from runner.sweep.runs.index import UNREADABLE_LEDGER

Keys = tuple[str, ...]


MOST_STEPS = 10_000_000  # of a trace whose losses are read


MOST_CURVES = 40  # metrics of a run whose values are read


@dataclass
class ComparedSide:
    """Side of a difference.

    Attributes:
        name: `A` or `B`.
        word: as it was given.
        said: what it is, in words.
        kind: `run`, `job`, `experiment` or `record`.
        config: resolved, as plain data; empty where it cannot be read.
        provenance: empty where it is not known; of an experiment the state of now.
        result: empty where there is none.
        curves: logged values of each metric.
        losses: of each step, by its number, as the trace has them; empty without a trace.
        missing: what is not there, and so cannot be compared.
        file: the config's file, where it is recorded.
        overrides: that composed the config, as far as they are recorded.
        is_now: whether it is an experiment, which has the state of now.
    """

    name: str
    word: str
    said: str
    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    file: Path | None = None
    overrides: tuple[str, ...] = ()
    is_now: bool = False

    @cached_property
    def composed(self) -> Composed | None:
        """The config composed again from the recorded arguments and the files of now; None if that fails."""
        if not self.overrides or any("oc." in word for word in self.overrides):
            return None
        try:
            composed = compose(self.overrides)
        except (ConfigError, OSError, ValueError):
            return None
        return None if composed.mistakes and not self.is_now else composed

    def find_place(self, keys: Keys, value: Any) -> str:
        """Find the file and line, or the argument, that set a key; of a run at least the line of its config.

        A run does not record the lines. Its arguments are composed with the files of now, and a place counts where it
        gives the value that the run had.
        """
        key = ".".join(keys)
        for entry in reversed(_list_mappings(self.provenance.get("resumed"))):
            words = [word for word in _list_texts(entry.get("command")) if word.lstrip("+").startswith(f"{key}=")]
            if words:
                return f"argument `{words[-1]}` of a resume"
        if self.composed is not None:
            with contextlib.suppress(ConfigError, KeyError, IndexError, TypeError, AttributeError, ValueError):
                answers = collect_answers(self.composed, keys)
                found: Any = self.composed.config
                for part in keys:
                    found = found.get(part, answers[-1].value) if isinstance(found, dict) else answers[-1].value
                if answers and (self.is_now or _is_same(found, value)):
                    answer = answers[-1]
                    return f"{answer.where}{answer.note if '(default)' in answer.note else ''}"
        return self._find_recorded_line(keys)

    def _find_recorded_line(self, keys: Keys) -> str:
        if self.file is None:
            return ""
        with contextlib.suppress(OSError):
            found = document.find(document.load_record(self.file, plain=True).root, keys)
            return f"{self.file}:{found[0]}" if found else ""
        return ""


def _is_same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)


def _list_mappings(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def _list_texts(value: Any) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def open_side(
    word: str, name: str, trust: tuple[str, ...] = (), announce: Callable[[], object] = lambda: None
) -> ComparedSide:
    """Open what a word names as one side of a difference; call `announce` before torch is loaded.

    A run or a record may come from a stranger: nothing of it is imported. An experiment is checked as `check` does.

    Raises:
        ConfigError: the word names nothing, several runs, or an experiment with mistakes.
    """
    found = find_address(word, ("run", "job", "experiment", "record"), name=name)
    if found.kind == "experiment":
        if "torch" not in sys.modules:
            announce()
        return _open_experiment(found, name, trust)
    if found.kind == "record":
        return _open_record(found, name)
    if len(found.runs) > 1:
        rule = f"must name one job, and names {len(found.runs)}"
        raise ConfigError([Mistake(name, rule, word, f"argument `{word}`", kind="conflict")])
    return _open_run(found, name)


def _open_run(found: Address, name: str) -> ComparedSide:
    folder = found.runs[0]
    safe_io.refuse_foreign(folder)
    recorded = RecordedRun(folder)
    said = f"run {folder}" if found.sweep is None else f"job {found.numbers[0]} of {found.sweep}"
    side = ComparedSide(name, found.word, said, found.kind, file=folder / "config.yaml")
    side.config = _read_config(side, folder)
    known = recorded.read_part("provenance.json")
    side.provenance = known if isinstance(known, dict) else {}
    if not side.provenance:
        side.missing.append(
            "provenance.json is missing or damaged: its code, packages, hardware and data are not known"
        )
    side.result = recorded.read_result()
    if not side.result:
        side.missing.append("result.json is missing or damaged: its results are not known")
    side.curves = _read_all_curves(folder / "metrics.jsonl")
    if not side.curves:
        side.missing.append("metrics.jsonl has no curves")
    with contextlib.suppress(OSError, ValueError):  # without a trace, or of an earlier release
        side.losses = _read_losses(read_trace_lines(folder))
    if found.sweep is None:
        side.overrides = _find_overrides(_list_texts(side.provenance.get("command")))
    else:
        side.overrides = _find_job_overrides(found.sweep, folder.name)
    return side


def _read_config(side: ComparedSide, folder: Path) -> dict[str, Any]:
    """Read the recorded config as plain data with every default, or as it stands where it does not parse."""
    for file in (folder / "config.yaml", folder / ".hydra" / "config.yaml"):
        try:
            read = document.load_record(file, plain=file.name == "config.yaml" and file.parent == folder)
        except OSError as error:
            side.missing.append(f"{file.relative_to(folder)} cannot be read: {error.strerror or error}")
            continue
        if read.mistake is None and read.data:
            side.file = file
            return _fill_defaults(read.data)
        said = read.mistake.rule if read.mistake is not None else "holds no mapping"
        side.missing.append(f"{file.relative_to(folder)} {said}")
    side.file = None
    return {}


def _fill_defaults(data: dict[str, Any]) -> dict[str, Any]:
    """Add the keys that are younger than the record, with their defaults."""
    try:
        return to_resolved_data(parse(data))
    except (ConfigError, TypeError, ValueError, AttributeError):
        return data


def _find_overrides(command: Sequence[str]) -> tuple[str, ...]:
    """Return the overrides in the recorded command of a run; empty where it was no plain run."""
    words = list(command)
    words = words[3:] if words[:3] == ["python", "-m", "runner"] else []
    overrides = [word for word in words if re.match(r"[~+]*[A-Za-z_][\w.@/-]*=", word)]
    is_plain = not any(word in ("-m", "--multirun") for word in words) and not any(map(_is_of_hydra, overrides))
    return tuple(overrides) if is_plain else ()


def _is_of_hydra(word: str) -> bool:
    return word.lstrip("+~").startswith("hydra")


def _find_job_overrides(sweep: Path, path: str) -> tuple[str, ...]:
    try:
        with Ledger(sweep, read_only=True) as ledger:
            base = [str(word) for word in ledger.settings().get("base") or []]
            job = next((job for job in ledger.jobs() if job.path == path), None)
    except UNREADABLE_LEDGER:
        return ()
    words = [*base, *job.overrides] if job is not None else []
    return () if any(map(_is_of_hydra, words)) else tuple(words)


def _read_all_curves(file: Path) -> dict[str, Curve]:
    names: dict[str, None] = {}
    with contextlib.suppress(OSError), safe_io.open_read(file) as opened:
        for number, line in enumerate(safe_io.read_lines(opened)):
            with contextlib.suppress(ValueError, AttributeError):
                names |= dict.fromkeys(str(name) for name in safe_io.parse_json(line) if "/" in str(name))
            if number > 1_000 or len(names) > MOST_CURVES:
                break
    return {name: curve for name, curve in read_curves(file, list(names)[:MOST_CURVES]).items() if curve}


def _read_losses(lines: Sequence[Any]) -> dict[int, float]:
    """Read the loss of each step from the lines of a trace, as far as they can be read."""
    losses: dict[int, float] = {}
    with contextlib.suppress(ValueError, TypeError, LookupError, AttributeError):
        for line in lines:
            losses |= {step: facts.loss for step, facts in expand_steps(line) if facts.loss is not None}
            if len(losses) > MOST_STEPS:
                break
    return losses


def _open_record(found: Address, name: str) -> ComparedSide:
    assert found.file is not None
    record = read_record(found.file)
    side = ComparedSide(name, found.word, f"record {found.file}", "record")
    for part in ("config", "provenance", "result"):
        value = record.get(part)
        if isinstance(value, dict):
            setattr(side, part, value)
        else:
            side.missing.append(f"`{part}` of {found.file} is missing or no mapping")
    side.config = _fill_defaults(side.config) if side.config else {}
    for event in _list_mappings(record.get("metrics")):
        step = event.get("step")
        for metric, value in event.items():
            if metric != "step" and type(step) is int and isinstance(value, int | float) and math.isfinite(value):
                side.curves.setdefault(str(metric), []).append((step, float(value)))
    side.losses = _read_losses(_list_mappings(record.get("trace")))
    side.overrides = _find_overrides(_list_texts(side.provenance.get("command")))
    return side


def _open_experiment(found: Address, name: str, trust: tuple[str, ...]) -> ComparedSide:
    """Open an experiment: its config as it would be recorded now, and the state of code and machine."""
    said = f"experiment {' '.join(found.overrides)}, with the files of now"
    side = ComparedSide(name, found.word, said, "experiment", overrides=found.overrides, is_now=True)
    composed = compose(found.overrides)
    if composed.mistakes:
        raise ConfigError(composed.mistakes)
    config = check(composed, trust)
    side.composed = composed
    side.config = _fill_defaults(to_resolved_data(config))  # with the types that a record has
    import numpy  # noqa: F401, ICN001  whose versions a run records
    import torch

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(config.device.threads)
        side.provenance = provenance.collect(Path.cwd(), command=[], seed=config.seed)
    finally:
        torch.set_num_threads(threads)
    side.missing.append("it has not run: its data, results and curves are not known")
    return side
