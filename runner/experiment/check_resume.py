"""Proof that a config resumes exactly: train in one go, train with a stop, compare every tensor."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.config.check.check import Check
from runner.config.compose import compose
from runner.config.schema import Config
from runner.core.errors import RunError
from runner.core.paths import PACKAGE
from runner.experiment.examine import require_valid
from runner.experiment.record.recorded_run import RecordedRun

STEPS = 5


PARTS = ("model", "optimizer", "scheduler", "scaler", "ema", "metrics", "step", "rng", "progress")


def check_resume(overrides: Sequence[str], trust: tuple[str, ...] = (), steps: int = STEPS) -> dict[str, Any]:
    """Compare a run of `2 * steps` steps with one that is resumed after `steps`, bit by bit.

    Returns:
        `same`, `steps` and the `answer` in words; where they differ also `step`, `differs` (tensors) and `cause`.

    Raises:
        ConfigError: the config has mistakes.
        RunError: one of the runs failed.
    """
    require_valid(compose(overrides), trust)  # as asked for: what follows from the few steps is no mistake
    settings = [
        f"train.duration={2 * steps}st",
        "train.checkpoint_every=1st",
        f"train.keep={2 * steps + 1}",
        "log.progress=false",
    ]
    composed = compose([*overrides, *settings])
    config = Check(composed, trust).config
    config.train = replace(config.train, stop_when={}, early_stop=None, max_time=None)  # it trains all steps
    with tempfile.TemporaryDirectory(prefix="check_resume_") as scratch:
        return compare_resumed(Path(scratch), config, composed.unresolved_yaml, steps, trust)


def compare_resumed(
    scratch: Path, config: Config, unresolved: str, steps: int, trust: tuple[str, ...]
) -> dict[str, Any]:
    """Train `2 * steps` steps at once and with a stop after `steps`; return where the two first differ."""
    straight, resumed = scratch / "straight", scratch / "resumed"
    operators = _train(straight, config, unresolved, trust)
    _cut_run(straight, resumed, steps)
    patterns = [argument for pattern in trust for argument in ("--trust", pattern)]
    _run_in_subprocess(["resume", str(resumed), *patterns])
    found = _find_first_difference(straight, resumed, range(steps + 1, 2 * steps + 1))
    if found is None:
        said = f"{2 * steps} steps, and {steps} + {steps} resumed in another process, are bitwise the same."
        return {"same": True, "steps": steps, "answer": said}
    again = scratch / "again"
    _train(again, config, unresolved, trust)
    repeated = _find_first_difference(straight, again, range(1, 2 * steps + 1))
    step, names = found
    cause = _describe_cause(names, repeated, operators)
    said = f"They differ from step {step} on, first in {names[0]} ({len(names)} in all). {cause}"
    return {"same": False, "steps": steps, "step": step, "differs": names, "cause": cause, "answer": said}


def _train(folder: Path, config: Config, unresolved: str, trust: tuple[str, ...]) -> list[str]:
    """Train in `folder`; return the operators that warned of a missing deterministic kernel."""
    from runner.experiment.run import launch

    folder.mkdir()
    config = replace(config, log=replace(config.log, to={}))
    with warnings.catch_warnings(record=True) as caught, _redirect_output() as said:
        warnings.simplefilter("always")
        outcome = launch(
            config, folder, unresolved=unresolved, command=["check", "resume"], trust=trust, debugging=True
        )
    if outcome.status:
        raise RunError(f"the run that was to be compared failed: {outcome.result.get('error')}\n{said.getvalue()}")
    return sorted({str(w.message).split(" does not have")[0] for w in caught if "deterministic" in str(w.message)})


@contextlib.contextmanager
def _redirect_output() -> Iterator[io.StringIO]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield said


def _cut_run(straight: Path, resumed: Path, steps: int) -> None:
    """Copy a run with only its checkpoint of step `steps` and no result, as a kill there leaves it."""
    ignore = shutil.ignore_patterns("checkpoints", "result.json", ".lock")
    shutil.copytree(straight, resumed, ignore=ignore)
    before, after = (RecordedRun(run).open_checkpoints(keep=2 * steps + 1) for run in (straight, resumed))
    entry = next(entry for entry in before.entries() if entry.step == steps)
    after.save(before.load(before.folder / entry.file), steps, entry.metric)


def _run_in_subprocess(argv: list[str]) -> None:
    paths = os.pathsep.join([str(Path.cwd()), *(path for path in sys.path if path)])
    # The package's own folder stands first until it is imported: a project may have a `runner.py`.
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); import runner; del sys.path[0]; "
    code += "from runner.__main__ import run_process; run_process()"
    command = [sys.executable, "-c", code, str(PACKAGE.parent), *argv]
    done = subprocess.run(  # noqa: S603  the arguments are ours
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths}
    )
    if done.returncode:
        raise RunError(f"the resume failed with status {done.returncode}: {done.stdout}{done.stderr}")


def _find_first_difference(one: Path, other: Path, steps: Sequence[int]) -> tuple[int, list[str]] | None:
    """Find the first step after which two runs' checkpoints differ, and the parts that differ."""
    runs = [RecordedRun(run).open_checkpoints() for run in (one, other)]
    files = [{entry.step: run.folder / entry.file for entry in run.entries()} for run in runs]
    for step in steps:
        a, b = (run.load(names[step]) for run, names in zip(runs, files, strict=True))
        a["progress"]["seconds"] = b["progress"]["seconds"]  # of wall time, which no two runs share
        found = [name for part in PARTS for name in _find_differences(a[part], b[part], part)]
        if found:
            return step, found
    return None


def _find_differences(a: Any, b: Any, at: str) -> list[str]:
    import torch

    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for name in a for found in _find_differences(a[name], b[name], f"{at}.{name}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [found for place, (x, y) in pairs for found in _find_differences(x, y, f"{at}[{place}]")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        same = same and torch.equal(_to_bytes(a), _to_bytes(b))
    else:
        same = repr(a) == repr(b)
    return [] if same else [at]


def _to_bytes(tensor: Any) -> Any:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _describe_cause(names: list[str], repeated: tuple[int, list[str]] | None, operators: list[str]) -> str:
    if repeated is not None:
        which = f": {'; '.join(operators)}" if operators else ""
        return (
            f"Two runs from the same beginning differ too, from step {repeated[0]} on: something is not deterministic"
            f"{which or ', an operator without a deterministic kernel or a clock, a hash, a thread in user code'}. "
            "device.deterministic=strict refuses such operators."
        )
    if all(name.startswith("rng.") for name in names):
        return "Only the generators differ: something draws from them outside of the training steps."
    return (
        "Two runs from the same beginning are the same, so something has a state that no checkpoint holds: a dataset, "
        "transform, sampler, step or loss that counts or remembers. Of a step, a loss and a sampler `state_dict` is "
        "saved; a dataset's samples should depend on their index and the seeded generators alone."
    )
