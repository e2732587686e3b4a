"""What a user's own model, loss, step, transform or init function does wrong is said with its line, before a run."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MINE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(64, 10)
    def forward(self, x):
        return self.fc(x.flatten(1))

class Broken(Net):
    def forward(self, x):
        return self.missing(x)

class Bare(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(64, 10)

def number(): return 3
def nothing(*args): return None
def text(output, target): return "loss"
def detached(output, target): return output.mean().detach()
def touches_nothing(module): pass
def misspells(module): module.wight.zero_()
def loss_only(batch, model, loss): return {"loss": loss(model(batch[0]), batch[1])}
def declared(batch, model, loss, input=0, target=1):
    output = model(batch[input])
    return {"loss": loss(output, batch[target]), "output": output, "target": batch[target]}
declared.needs = ("input", "target")
def three_channels(image): return image.repeat(3, 1, 1)

class Lazy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.LazyLinear(10)
    def forward(self, x):
        return self.fc(x.flatten(1))
"""
# override -> the key that is blamed, what is said, the place
WRONG = [
    (
        "step={_target_: mine.declared, input: 5}",
        "step.input must name members of a sample, which are 0, 1",
        "",
        "argument",
    ),
    ("model={_target_: mine.Broken}", "model refuses", "no attribute 'missing'", "mine.py:13"),
    ("model={_target_: mine.Bare}", "model refuses", 'missing the required "forward"', "argument"),
    ("model={_target_: mine.number}", "model must give an nn.Module, but gives int", "", "argument"),
    (
        "model={_target_: mine.Lazy}",
        "model must know the shapes of its parameters",
        "but fc.weight, fc.bias",
        "argument",
    ),
    ("loss={_target_: mine.nothing}", "loss must give a tensor", "NoneType", "argument"),
    ("loss={_target_: mine.text}", "loss must give a tensor", "str", "argument"),
    ("loss={_target_: mine.detached}", "loss must depend on a parameter that trains", "", "argument"),
    ("init.apply={_target_: mine.touches_nothing}", "init.apply must change a tensor", "", "argument"),
    ("init.apply={_target_: mine.misspells}", "init.apply is refused", "no attribute 'wight'", "mine.py:25"),
    ("transform.train.x={_target_: mine.nothing}", "transform.train must end with", "NoneType", "argument"),
    ("transform.eval.x={_target_: mine.three_channels}", "transform.eval makes what the model refuses", "", "argument"),
]


@pytest.mark.parametrize(("override", "said", "detail", "where"), WRONG, ids=[wrong[0] for wrong in WRONG])
def test_said_before_anything_exists(
    runner: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, override: str, said: str, detail: str, where: str
) -> None:
    """One mistake with its place, and no run directory: the verdict is that of `check`."""
    Path("mine.py").write_text(MINE)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    group = override.partition("=")[0]
    Path("conf").mkdir()
    settings = [override]
    if group in {"model", "loss", "step"}:  # an option of its own: a mapping on the command line is merged into ours
        Path(f"conf/{group}").mkdir()
        Path(f"conf/{group}/mine.yaml").write_text(override.partition("=")[2])
        settings = [f"{group}=mine"]
    ran = runner("experiment=null", *settings)

    assert (2, "1. " + said) == (ran.status, ran.err[: len(said) + 3])
    assert detail in ran.err
    assert where in ran.err
    assert not Path("outputs").exists()
