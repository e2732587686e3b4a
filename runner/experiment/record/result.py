"""Files of a run directory: `result.json`, `config.yaml`, and the resumes in `provenance.json`."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from runner.config.schema import Config
from runner.core import device as devices
from runner.core.errors import Mistake
from runner.core.files import write_json, write_text
from runner.core.shared_answers import ask_once
from runner.data.interfaces import Split
from runner.experiment.record import provenance
from runner.experiment.record.recorded_run import RecordedRun
from runner.train.state import Run

_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # libyaml writes the same 5 times faster


def hash_weights(state_dict: Mapping[str, Any]) -> str:
    """Hash names, dtypes, shapes and bytes of a state_dict, in its order."""
    digest = hashlib.sha256()
    for name, value in state_dict.items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def format_error(error: Exception) -> str:
    """Format an error as `ValueError: …`, even if its `__str__` fails; escape undecodable bytes."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  of somebody's `__str__`
        text = f"{type(error).__name__}, which has no text"
    return text.encode(errors="backslashreplace").decode()


def make_empty_result() -> dict[str, Any]:
    """Make the result of a run of which nothing is known yet: status `failed`, no metrics."""
    return {"status": "failed", "metrics": {}, "best": None, "objective": None, "steps": 0, "error": None}


def write_result(folder: Path, result: Mapping[str, Any]) -> bool:
    """Write `result.json`; print the reason and return False if that fails (a full disk)."""
    try:
        write_json(folder / "result.json", result)
    except OSError as error:
        print(f"{folder / 'result.json'} could not be written: {error.strerror or error}", file=sys.stderr)
        return False
    return True


def write_config(folder: Path, plain: Mapping[str, Any], unresolved: str) -> None:
    """Write `.hydra/config.yaml`, then `config.yaml`, which makes the folder a run."""
    (folder / ".hydra").mkdir(exist_ok=True)
    write_text(folder / ".hydra" / "config.yaml", unresolved)
    write_text(folder / "config.yaml", _format_yaml(plain))


def _format_yaml(plain: Mapping[str, Any]) -> str:
    """Format a config as YAML, section by section: jobs of a stack have most of them in common."""

    def dump(section: Mapping[str, Any]) -> str:
        text: str = yaml.dump(section, Dumper=_Dumper, sort_keys=False)
        return text

    sections = [{name: value} for name, value in plain.items()] or [{}]
    return "".join(ask_once(("yaml", repr(section)), partial(dump, section)) for section in sections)


def add_resume(
    before: Mapping[str, Any], now: Mapping[str, Any], step: int, changes: Sequence[Mistake]
) -> dict[str, Any]:
    """Return the record of a run with one more resume in it, at `step`."""
    earlier = before.get("resumed", [])
    entry: dict[str, Any] = {"time": now["time"], "command": now["command"], "step": step, "exact": not changes}
    known = earlier[-1].get("facts") if earlier else None
    if changes:
        entry["changes"] = [change.as_json() for change in changes]
        known = {name: now[name] for name in provenance.COMPARED}
    return {**before, "resumed": [*earlier, entry | ({"facts": known} if known else {})]}


def read_inexact_steps(folder: Path) -> dict[str, Any]:
    """Read the steps of inexact resumes as `inexact` of the result; empty without one."""
    return list_inexact_steps(RecordedRun(folder).read_provenance() or {})


def list_inexact_steps(record: Mapping[str, Any]) -> dict[str, Any]:
    """List the steps of inexact resumes in a provenance, as `inexact` of the result."""
    steps = [entry["step"] for entry in record.get("resumed", []) if not entry["exact"]]
    return {"inexact": steps} if steps else {}


def collect_provenance(config: Config, command: Sequence[str], run: Run | None) -> dict[str, Any]:
    """Collect the provenance of a run: code, versions, machine, data."""
    splits: Mapping[str, Split] = run.splits if run is not None else {}
    fitted = {} if run is None else run.fitted.describe()
    return ({"fitted": fitted} if fitted else {}) | provenance.collect(
        Path.cwd(),
        command=command,
        seed=config.seed,
        data={name: {"samples": split.size} | split.fingerprint.as_json() for name, split in splits.items()},
        plan={name: split.plan.text for name, split in splits.items()},
        plan_kinds={name: split.plan.kind for name, split in splits.items()},
        device=None if run is None else devices.describe(run.device),
        processes=1 if run is None else run.team.world,
        names={} if run is None else run.names,
    )


def get_last_values(run: Run) -> dict[str, Any]:
    """Return `metrics` of the last weights, without those of training, and the `objective`."""
    last = run.progress.last
    metrics = {name: value for name, value in last.items() if not name.startswith("train/")}
    return {"metrics": metrics, "objective": last.get(run.objective.name)}


def compute_timings(run: Run) -> dict[str, Any]:
    """Compute a run's steps, seconds of evaluating and saving, and steps per second."""
    clock = run.clock
    clock.pause()
    first_step, first_seconds = clock.first_epoch or (run.session.started_at, 0.0)
    steps, seconds = run.progress.step - first_step, clock.training - first_seconds
    return {
        "steps": run.progress.step,
        "seconds_evaluating": clock.evaluating,
        "seconds_saving": clock.saving,
        "steps_per_second": steps / seconds if steps > 0 and seconds > 0 else None,
    } | measure_compiling(run)


def measure_compiling(run: Run) -> dict[str, float]:
    """Return the seconds that `torch.compile` took, forward and backward; empty without it."""
    compiles = run.config.get("device", {}).get("compile")
    return {"seconds_compiling": devices.read_compile_seconds() - run.clock.compiled_before} if compiles else {}
