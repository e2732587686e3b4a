"""Runs and sweeps that were recorded before the package had wings go on after the move."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.config.moved import MOVED, with_current_names, with_first_names
from tests.support import read_result

RECORDED = Path(__file__).parent / "recorded"
LINE = ["experiment=digits_mlp", "model.sizes=[64,8,10]", "train.duration=40ep", "seed=0,1,2", "sweep.slots=1"]
LINE += ["device=cpu", "device.threads=1", "name=sweep_before_the_house", "train.checkpoint_every=1ep", "train.keep=1"]


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """A run that was interrupted after two of 60 epochs, at commit 43d0977."""
    (run,) = (RECORDED / "before_the_house").iterdir()
    return Path(shutil.copytree(run, tmp_path / "run", symlinks=True))


def test_an_old_run_resumes_exactly(runner: Callable[..., Any], old_run: Path) -> None:
    """No `--inexact` is needed: the record compares modules by name, and those of the package have other names now."""
    ran = runner("resume", str(old_run))
    result = read_result(old_run)

    assert (0, "completed", 60 * 17) == (ran.status, result["status"], result["steps"]), ran.err
    assert result["metrics"]["test/accuracy"] > 0.93


def test_an_old_run_is_evaluated(runner: Callable[..., Any], old_run: Path) -> None:
    """Its config names `runner.step` and `runner.metrics`."""
    assert "runner.step.supervised" in (old_run / "config.yaml").read_text()
    ran = runner("evaluate", str(old_run), "--json")

    assert (0, 34) == (ran.status, json.loads(ran.out)["step"]), ran.err


def test_an_old_sweep_goes_on(runner: Callable[..., Any]) -> None:
    """The finished job stays, the interrupted one is continued, the waiting one runs; none has another identity."""
    (sweep,) = (RECORDED / "sweep_before_the_house").iterdir()
    folder = Path("outputs/sweep_before_the_house") / sweep.name
    shutil.copytree(sweep, folder, symlinks=True)
    before = (folder / "0_bcc00fc3" / "result.json").read_bytes()
    ran = runner("-m", *LINE)
    report = json.loads((folder / "report.json").read_text())

    assert ran.status == 0, ran.err
    assert ["sweep_d9212d17da"] == [path.name for path in folder.parent.iterdir()]
    assert before == (folder / "0_bcc00fc3" / "result.json").read_bytes()
    assert {"0_bcc00fc3", "1_7f0bf972"} < {path.name for path in folder.iterdir() if path.is_dir()}
    assert {"completed"} == {job["status"] for job in report["jobs"]}


def test_old_names_of_components_resolve(runner: Callable[..., Any]) -> None:
    """A user's YAML of an earlier release is no mistake."""
    old = "++metrics={accuracy: {_target_: runner.metrics.Accuracy}}"
    ran = runner("check", "step._target_=runner.step.supervised", old)

    assert (0, "No mistakes.") == (ran.status, ran.out.splitlines()[-1]), ran.err


def test_names_go_there_and_back() -> None:
    old = {"a": [{"_target_": f"{module}.X"} for module in MOVED], "b": {"_target_": "torch.nn.Linear"}}

    assert old == with_first_names(with_current_names(old))
    assert old != with_current_names(old)
