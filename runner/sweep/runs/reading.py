"""Row of the table of runs, read from a run directory within limits; a damaged one tells what is left."""

import contextlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from runner.core import safe_io
from runner.core.expression import measure_slope
from runner.sweep.runs.discovery import FoundRun

# Columns of each run, whatever its config; `size` is measured only where it is asked for.
COLUMNS = (
    "path",
    "name",
    "sweep",
    "job",
    "status",
    "cause",
    "error",
    "problem",
    "age",
    "started",
    "ended",
    "seconds",
    "objective",
    "objective_name",
    "mode",
    "steps",
    "seed",
    "commit",
    "dirty",
    "archived",
    "weights",
)


ENDS = ("completed", "failed", "interrupted", "pruned")  # statuses of a `result.json`


MOST_KEYS = 5_000  # of a config or of metrics, in the table


LONGEST_TEXT = 10_000  # characters of a value


MOST_SECTION_BYTES = 200_000  # of a config that is read key by key


TAIL_BYTES = 1 << 18  # of a metrics.jsonl, for the last value of each metric


@dataclass
class RunRow:
    """Row of the table: a run and what it says of itself.

    Attributes:
        folder: the run directory.
        columns: by name, see `COLUMNS`, without `age`.
        config: every key of the config that holds a value, dotted.
        metrics: the last value of each metric; of the best checkpoint as `best.<metric>`, with `best.step`.
        ended: when it was last written to, seconds since 1970; None where that is not known.
        now: when the table was made.
    """

    folder: Path
    columns: dict[str, Any]
    config: dict[str, Any]
    metrics: dict[str, Any]
    ended: float | None
    now: float

    def get(self, name: str) -> Any:
        """Return the value of a column, metric or key; None where the run has none."""
        if name in self.columns:
            return self.columns[name]
        if name == "age":
            return None if self.ended is None else max(0.0, self.now - self.ended)
        if name in self.metrics:
            return self.metrics[name]
        if name == "size":
            self.columns["size"] = measure_size(self.folder)
            return self.columns["size"]
        return self.config.get(name)

    @property
    def path(self) -> str:
        """Path as it is shown."""
        return str(self.columns["path"])

    @property
    def status(self) -> str:
        """Status, see `STATUSES` of the filters."""
        return str(self.columns["status"])


def measure_size(folder: Path) -> int:
    """Measure the bytes of all files below a folder; a link counts as itself."""
    total, waiting = 0, [folder]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
    return total


def read_run(folder: Path, found: FoundRun) -> dict[str, Any]:
    """Read what a run directory says as plain data: `columns`, `config`, `metrics`, `ended`.

    The status is that of its result; it is empty where the run has not written one.
    """
    problems: list[str] = []
    config = _read_config(folder, problems)
    result = _read_object(folder / "result.json", problems)
    record = _read_object(folder / "provenance.json", problems)
    status = result.get("status") if isinstance(result.get("status"), str) else None
    if result and status not in ENDS:
        problems.append("result.json names no status of a run")
        status = None
    if config is None and status is None:
        problems.append("config.yaml is missing" if not (folder / "config.yaml").is_symlink() else "")
    metrics = _collect_metrics(folder, result, config or {})
    objective_name = (config or {}).get("train.objective") or next(
        (name for name in ("val/loss", "train/loss") if name in metrics), None
    )
    git = record.get("git") if isinstance(record.get("git"), dict) else {}
    columns = {
        "name": _cut((config or {}).get("name")),
        "job": _parse_job(found),
        "status": status or "",
        "cause": _cut(result.get("cause")),
        "error": _cut(result.get("error")),
        "problem": "; ".join(filter(None, problems)) or None,
        "started": _cut(record.get("time")),
        "ended": _format_time(found) if status else None,
        "seconds": _parse_number(result.get("seconds")),
        "objective": _parse_number(result.get("objective")) if status else metrics.get(objective_name or ""),
        "objective_name": objective_name,
        "mode": (config or {}).get("train.mode") or _infer_mode(objective_name, config or {}),
        "steps": _parse_number(result.get("steps")),
        "seed": (config or {}).get("seed"),
        "commit": _cut((git or {}).get("commit")),
        "dirty": (git or {}).get("dirty") if isinstance((git or {}).get("dirty"), bool) else None,
        "weights": _cut(result.get("weights_sha256")),
        "archived": _cut((result.get("archived") or {}).get("time")) if _is_archived(result) else None,
    }
    ended = found.result / 1e9 if status and found.result else found.changed
    return {"columns": columns, "config": config or {}, "metrics": metrics, "ended": ended or None}


def make_row(root: Path, found: FoundRun, said: Mapping[str, Any], now: float) -> RunRow:
    """Make the row of a run from what its directory says."""
    folder = root if found.path == "." else root / found.path
    metrics = {name: _to_number(value) for name, value in said["metrics"].items()}
    columns = {
        "path": str(folder),
        "sweep": (str(root) if found.sweep == "." else str(root / found.sweep)) if found.sweep else None,
        **said["columns"],
    }
    columns["objective"] = _to_number(columns["objective"])
    return RunRow(folder, columns, said["config"], metrics, said["ended"], now)


def _is_archived(result: Mapping[str, Any]) -> bool:
    return isinstance(result.get("archived"), dict)


def _parse_job(found: FoundRun) -> int | None:
    number = found.path.rpartition("/")[2].partition("_")[0]
    return int(number) if found.sweep and number.isdecimal() and len(number) < 10 else None


def _infer_mode(objective_name: str | None, config: Mapping[str, Any]) -> str | None:
    """Infer whether more is better; of a number derived from one other, by that one and the slope."""
    if objective_name is None:
        return None
    inner = str(objective_name).partition("/")[2]
    source, text = (config.get(f"metrics.{inner}.{part}") for part in ("of", "as"))
    if not isinstance(source, str) or not isinstance(text, str):
        return "min" if objective_name.endswith("loss") else "max"
    without = {key: value for key, value in config.items() if not key.startswith(f"metrics.{inner}.")}
    base = _infer_mode(f"val/{source}", without)
    return base if measure_slope(text) >= 0 else "max" if base == "min" else "min"


def _format_time(found: FoundRun) -> str:
    return datetime.fromtimestamp(found.result / 1e9).astimezone().isoformat(timespec="seconds")


def _read_object(file: Path, problems: list[str]) -> dict[str, Any]:
    """Read a JSON object; empty where there is none, with the problem where it is damaged."""
    try:
        value = safe_io.read_json(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        why = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        problems.append(f"{file.name} cannot be read: {why}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{file.name} is no JSON object")
        return {}
    return value


def _read_config(folder: Path, problems: list[str]) -> dict[str, Any] | None:
    """Read the config as dotted keys; None where there is none or it cannot be read."""
    from runner.config import document  # OmegaConf takes a moment, and a table that is known needs none

    file = folder / "config.yaml"
    if (known := _read_sections(file)) is not None:
        return known
    try:
        read = document.load_record(file, plain=True)
    except FileNotFoundError:
        return None
    except OSError as error:
        problems.append(f"config.yaml cannot be read: {error.strerror or error}")
        return None
    if read.mistake is not None or not read.data:
        line = (read.mistake.where if read.mistake else "").rpartition(":")[2]
        rule = read.mistake.rule if read.mistake else "holds no mapping"
        problems.append(f"config.yaml {rule}{f', line {line}' if line.isdigit() else ''}")
        return None
    keys: dict[str, Any] = {}
    for number, (key, value) in enumerate(list_leaves(read.data)):
        if number >= MOST_KEYS:
            problems.append(f"config.yaml has more than {MOST_KEYS:,} keys")
            break
        keys[key] = _cut(value)
    return keys


_SECTION = re.compile(r"(?m)^(?=[A-Za-z_])")


# What a part of the file cannot be read by itself with: anchors, aliases and tags, and lines that begin otherwise.
_WHOLE_ONLY = re.compile(r"(?m)(^|[\s\[{,])[&*!]|^[^A-Za-z_\s-]")


def _read_sections(file: Path) -> dict[str, Any] | None:
    """Read a config key by key of its first level, since most runs have most of them alike.

    None where the file has to be read as a whole: it is damaged, has anchors or is too large.
    """
    try:
        text = safe_io.read_bytes(file, MOST_SECTION_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        return None
    parts = _SECTION.split(text)
    if parts[0].strip() or "\r" in text or _WHOLE_ONLY.search(text):
        return None
    keys: dict[str, Any] = {}
    seen: set[str] = set()
    for part in parts[1:]:
        name, leaves = _flatten_section(part)
        if leaves is None or name in seen:
            return None
        seen.add(name)
        keys |= leaves
    return keys if keys and len(keys) < MOST_KEYS else None


@lru_cache(maxsize=10_000)
def _flatten_section(text: str) -> tuple[str, dict[str, Any] | None]:
    """Parse a key of the first level to its name and its leaves; None for anything but one key."""
    from runner.config import document

    try:
        data = document.parse_plain_text(text)
    except ValueError:
        return "", None
    if not isinstance(data, dict) or len(data) != 1 or not all(isinstance(name, str) for name in data):
        return "", None
    return next(iter(data)), {key: _cut(value) for key, value in list_leaves(data)}


def list_leaves(value: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and value of each leaf; a list and an empty mapping are leaves."""
    for name, inner in value.items():
        key = f"{before}{name}"
        if isinstance(inner, Mapping) and inner:
            yield from list_leaves(inner, f"{key}.")
        else:
            yield key, inner


def _cut(value: Any) -> Any:
    """Cut a text, and turn what JSON does not have into a text."""
    if isinstance(value, str):
        return value if len(value) <= LONGEST_TEXT else value[: LONGEST_TEXT - 1] + "…"
    if isinstance(value, list | dict):
        return _as_plain(value) if len(str(value)) <= LONGEST_TEXT else f"{str(value)[: LONGEST_TEXT - 1]}…"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        return float(value) if abs(value) < 10**300 else str(value)
    return value if isinstance(value, float | int | bool | None) else str(value)


def _as_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _as_plain(inner) for name, inner in value.items()}
    return [_as_plain(member) for member in value] if isinstance(value, list) else _cut(value)


def _collect_metrics(folder: Path, result: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the last value of each metric: of the result, else of the last lines of `metrics.jsonl`."""
    found: dict[str, Any] = {}
    for part in ("train", "metrics"):
        found |= _list_numbers(result.get(part))
    if not found:
        found = _read_last_metrics(folder / "metrics.jsonl")
    best = result.get("best")
    if isinstance(best, dict):
        found |= {f"best.{name}": value for name, value in _list_numbers(best.get("metrics")).items()}
        found |= {f"best.{name}": value for name, value in _list_numbers({"step": best.get("step")}).items()}
    found |= _list_numbers({name: result.get(name) for name in ("steps_per_second", "seconds_startup")})
    return {name: value for name, value in list(found.items())[:MOST_KEYS] if name not in config}


def _list_numbers(values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        return {}
    parsed = {str(name)[:LONGEST_TEXT]: _parse_number(value) for name, value in values.items()}
    return {name: value for name, value in parsed.items() if value is not None}


def _parse_number(value: Any) -> float | int | str | None:
    """Return a number as it is, NaN and infinity as the texts that stand for them; else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value if -(2**63) < value < 2**63 or isinstance(value, float) else float(value)
    return value if value in ("NaN", "Infinity", "-Infinity") else None


def _to_number(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value


def _read_last_metrics(file: Path) -> dict[str, Any]:
    """Read the last value of each metric from the end of a `metrics.jsonl`, even one still being written."""
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError), safe_io.open_read(file) as opened:
        size = os.fstat(opened.fileno()).st_size
        opened.seek(max(0, size - TAIL_BYTES))
        lines = opened.read(TAIL_BYTES).splitlines()
        for line in lines[1:] if size > TAIL_BYTES else lines:
            with contextlib.suppress(ValueError):  # a line that is half written
                event = safe_io.parse_json(line)
                found |= _list_numbers(event) if isinstance(event, dict) else {}
    return {name: value for name, value in found.items() if not (isinstance(value, float) and math.isinf(value))}
