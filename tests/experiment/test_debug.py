"""The debugging presets: each one line. (That each of them runs: test_experiments.py.)"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import read_metrics, read_result

NETS = """
import torch


class Rooted(torch.nn.Module):
    def __init__(self, bad_at=3):
        super().__init__()
        self.fc = torch.nn.Linear(64, 10)
        self.calls, self.bad_at = 0, bad_at

    def forward(self, x):
        self.calls += self.training
        y = self.fc(x.flatten(1))
        if self.calls < self.bad_at:
            return y
        return y + 0 * (y - y).sqrt()
"""


@pytest.fixture
def rooted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[str, ...]:
    """A model whose gradient becomes NaN at its third step, while its output is sound."""
    (tmp_path / "nets_of_debug.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "conf" / "model"
    folder.mkdir(parents=True)
    (folder / "rooted.yaml").write_text("_target_: nets_of_debug.Rooted")
    return ("model=rooted", "train.duration=6st", "device=cpu", "log.progress=false")


def test_anomaly_names_the_operator_and_its_line(rooted: tuple[str, ...], runner: Callable[..., Any]) -> None:
    """At the step where it happens; the whole traceback of the forward call is in the log."""
    ran = runner(*rooted, "debug=anomaly", "log.every=1st")
    folder = next(Path("outputs/digits_cnn").iterdir())
    log = (folder / "log.txt").read_text()

    assert ran.status == 1
    assert "Function 'SqrtBackward0' returned nan values" in ran.err
    assert "nets_of_debug.py:16" in ran.err
    assert "return y + 0 * (y - y).sqrt()" in log
    assert read_result(folder)["steps"] == 2


def test_anomaly_detection_is_off_again_afterwards(runner: Callable[..., Any]) -> None:
    """It changes no weight, and is off without the preset and after it."""
    settings = ("train.duration=3st", "device=cpu", "log=quiet")
    weights = [runner(*settings, *preset).result["weights_sha256"] for preset in ((), ("debug=anomaly",))]

    assert weights[0] == weights[1]
    assert not torch.is_anomaly_enabled()


def test_fast_does_everything_once(runner: Callable[..., Any]) -> None:
    """Steps, evaluations, checkpoints, the test set, with whatever else the config has on for longer runs."""
    longer = ("scheduler.warmup=1ep", "freeze={params: ['conv1.*'], until: 20ep}")
    ran = runner("debug=fast", "device=cpu", *longer)
    events = read_metrics(ran.folder)

    assert [1, 2, 3, 4] == [event["step"] for event in events if "train/loss" in event]
    assert [2, 4] == [event["step"] for event in events if "val/loss" in event]
    assert {"step_00000002.pt", "step_00000004.pt"} <= {path.name for path in (ran.folder / "checkpoints").iterdir()}
    assert "test/accuracy" in ran.result["metrics"]
