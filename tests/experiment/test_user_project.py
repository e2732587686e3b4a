"""A user's own project: its own `conf/`, its own package `models`, nothing imported from the runner."""

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

from tests.support import read_result

FILES = {
    "conf/experiment/spirals.yaml": """
        # @package _global_
        defaults:
          - override /dataset: spirals
          - override /transform: jitter
          - override /model: net
          - override /init: small
          - override /loss: hinge
          - override /optimizer: adamw
          - override /metrics: sure
        name: spirals
        train: {duration: 3ep, objective: val/sure, mode: max}
        """,
    "conf/dataset/spirals.yaml": """
        source: {_target_: mylib.data.Spirals, count: 300}
        val_fraction: 0.2
        sample: [{shape: [2], dtype: float32}, {shape: [], dtype: float32}]
        """,
    "conf/transform/jitter.yaml": "train: {jitter: {_target_: mylib.data.jitter, size: 0.01}}",
    "conf/model/net.yaml": "{_target_: models.Net, hidden: 16}",
    "conf/init/small.yaml": "apply: {_target_: mylib.nets.small_weights, scale: 0.1}",
    "conf/loss/hinge.yaml": "{_target_: mylib.nets.hinge, margin: 1.0}",
    "conf/metrics/sure.yaml": "sure: {_target_: mylib.nets.Sure, margin: 0.5}",
    "models/__init__.py": """
        import torch

        class Net(torch.nn.Module):
            def __init__(self, hidden):
                super().__init__()
                self.inner = torch.nn.Linear(2, hidden)
                self.outer = torch.nn.Linear(hidden, 1)

            def forward(self, x):
                return self.outer(torch.tanh(self.inner(x)))[:, 0]
        """,
    "mylib/__init__.py": "",
    "mylib/data.py": """
        import math

        import torch
        from torch.utils.data import Dataset

        class Spirals(Dataset):
            def __init__(self, count):
                self.count = count

            def __len__(self):
                return self.count

            def __getitem__(self, index):
                side = index % 2
                turn = index / self.count * 2 * math.pi
                angle = turn + side * math.pi
                return torch.tensor([turn * math.cos(angle), turn * math.sin(angle)]), float(2 * side - 1)

        def jitter(point, size):
            return point + size * torch.randn(2)
        """,
    "mylib/nets.py": """
        import torch

        def small_weights(module, scale):
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=scale)

        def hinge(output, target, margin):
            return torch.relu(margin - output * target).mean()

        class Sure:
            def __init__(self, margin):
                self.margin = margin
                self.reset()

            def reset(self):
                self.seen = []

            def update(self, output, target):
                self.seen += (output * target > self.margin).tolist()

            def compute(self):
                return sum(self.seen) / len(self.seen)
        """,
}


def test_a_project_of_its_own(tmp_path: Path) -> None:
    """Dataset, transform, model, init function, loss and metric of the user's run by name, as whole commands."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip())
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "runner", *arguments]
        return subprocess.run(
            line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    done = command("experiment=spirals", "device=cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / done.stdout.strip().splitlines()[-1]
    result = read_result(folder)
    provenance = json.loads((folder / "provenance.json").read_text())
    assert ("completed", {"val/loss", "val/sure"}) == (result["status"], result["metrics"].keys())
    assert "mylib.nets" in json.dumps(provenance), "the user's modules are part of the record"
    again = command("evaluate", str(folder), "--json")
    assert json.loads(again.stdout)["metrics"] == result["metrics"], again.stderr

    ours = command("model=small_cnn", "debug=noop", "device=cpu", "log=quiet")
    assert ours.returncode == 0, "their package `models` has no `cnn`, so that ours is found: " + ours.stderr
