"""`result.json` and `config.yaml` of a run directory."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from runner.config.schema import Config
from runner.core import device as devices
from runner.core.errors import Mistake
from runner.core.files import write_json, write_text
from runner.core.safe_io import read_json
from runner.data.interfaces import Split
from runner.experiment.record import provenance
from runner.train.state import Run

_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # libyaml writes the same 5 times faster


def weights_sha256(state_dict: Mapping[str, Any]) -> str:
    """A hash of names, dtypes, shapes and bytes of a state_dict, in its order."""
    digest = hashlib.sha256()
    for name, value in state_dict.items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def words_of(error: Exception) -> str:
    """`ValueError: …`, also of one that cannot say what it is; the bytes of a file name that are no UTF-8 spelt out."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  of somebody's `__str__`
        text = f"{type(error).__name__}, which has no text"
    return text.encode(errors="backslashreplace").decode()


def new_result() -> dict[str, Any]:
    """A result before anything is known."""
    return {"status": "failed", "metrics": {}, "best": None, "objective": None, "steps": 0, "error": None}


def write_result(folder: Path, result: Mapping[str, Any]) -> bool:
    """Write `result.json`; whether that was possible, and where it was not (a full disk) it is said."""
    try:
        write_json(folder / "result.json", result)
    except OSError as error:
        print(f"{folder / 'result.json'} could not be written: {error.strerror or error}", file=sys.stderr)
        return False
    return True


def write_config(folder: Path, plain: Mapping[str, Any], unresolved: str) -> None:
    """`.hydra/config.yaml`, and then `config.yaml`, which makes the folder a run."""
    (folder / ".hydra").mkdir(exist_ok=True)
    write_text(folder / ".hydra" / "config.yaml", unresolved)
    write_text(folder / "config.yaml", yaml.dump(plain, Dumper=_Dumper, sort_keys=False))


def recorded_facts(folder: Path) -> dict[str, Any] | None:
    """The `provenance.json` of a run; None where it is missing or damaged."""
    try:
        record = read_json(folder / "provenance.json")
        provenance.changes(record | latest_facts(record), record)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return record if isinstance(record["data"], dict | None) and isinstance(record["plan"], dict | None) else None


def latest_facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """What an inexact resume has recorded anew."""
    facts: dict[str, Any] = record.get("resumed", [{}])[-1].get("facts", {})
    return facts


def with_resume(
    before: Mapping[str, Any], now: Mapping[str, Any], step: int, changes: Sequence[Mistake]
) -> dict[str, Any]:
    """The record of a run with one more resume in it, at `step`."""
    earlier = before.get("resumed", [])
    entry: dict[str, Any] = {"time": now["time"], "command": now["command"], "step": step, "exact": not changes}
    known = earlier[-1].get("facts") if earlier else None
    if changes:
        entry["changes"] = [change.as_json() for change in changes]
        known = {name: now[name] for name in provenance.COMPARED}
    return {**before, "resumed": [*earlier, entry | ({"facts": known} if known else {})]}


def inexact_steps(folder: Path) -> dict[str, Any]:
    """`inexact` for the result: the steps at which the run went on with something else than before."""
    resumed = (recorded_facts(folder) or {}).get("resumed", [])
    steps = [entry["step"] for entry in resumed if not entry["exact"]]
    return {"inexact": steps} if steps else {}


def facts(config: Config, command: Sequence[str], run: Run | None) -> dict[str, Any]:
    """Where everything comes from: code, versions, machine, data."""
    splits: Mapping[str, Split] = run.splits if run is not None else {}
    return provenance.collect(
        Path.cwd(),
        command=command,
        seed=config.seed,
        data={name: {"samples": split.size, "sha256": split.fingerprint} for name, split in splits.items()},
        plan={name: split.plan for name, split in splits.items()},
        device=None if run is None else devices.describe(run.device),
        processes=1 if run is None else run.team.world,
    )


def last_values(run: Run) -> dict[str, Any]:
    """The `metrics` of the last weights, and the `objective`."""
    last = run.progress.last
    metrics = {name: value for name, value in last.items() if not name.startswith("train/")}
    return {"metrics": metrics, "objective": last.get(run.objective)}


def figures(run: Run) -> dict[str, Any]:
    """Steps and seconds of a run."""
    clock = run.clock
    clock.pause()
    first_step, first_seconds = clock.first_epoch or (run.started_at, 0.0)
    steps, seconds = run.progress.step - first_step, clock.training - first_seconds
    return {
        "steps": run.progress.step,
        "seconds_evaluating": clock.evaluating,
        "seconds_saving": clock.saving,
        "steps_per_second": steps / seconds if steps > 0 and seconds > 0 else None,
    }
