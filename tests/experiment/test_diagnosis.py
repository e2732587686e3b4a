"""What a batch shows that no preflight could see is said as the preflight says it: key, content, place, remedy."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

QUIET = ("log=quiet", "device=cpu", "experiment=null", "train.duration=1ep", "model=mlp", "model.sizes=[2,4,2]")
MINE = """
import torch
from torch.nn import functional as F

class Data(torch.utils.data.Dataset):
    def __init__(self, kind, size=40):
        self.kind, self.size = kind, size
    def __len__(self):
        return self.size
    def __getitem__(self, i):
        x, y = torch.full((2,), i / 40), i % 2
        targets = {"float": float(y), "text": ("no", "yes")[y], "column": torch.tensor([y]), "bool": bool(y), "many": i,
                   "onehot": torch.eye(2)[y].long(), "one_based": y + 1}
        samples = {"dict": {"image": x, "label": y, "id": i}, "alone": x,
                   "double": (x.double(), y), "wide": (x.repeat(2), y)}
        return samples[self.kind] if self.kind in samples else (x, targets.get(self.kind, y))

class Missing(Data):
    def __getitem__(self, i):
        return self.table[i]

class Normed(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))

class Heads(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    def forward(self, x):
        return {"out": self.a(x), "aux": self.b(x)} if self.training else self.a(x)

class Doubles(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 2, dtype=torch.float64)

class Broken(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
    def forward(self, x):
        return super().forward(x)[:, self.nothing]

class Keywords:
    def reset(self): pass
    def update(self, *, preds, target): pass
    def compute(self): return 1.0

class Fussy(Keywords):
    def update(self, output, target):
        assert (output < 1e-9).all(), "too large"

def lossy(output, target):
    return F.cross_entropy(output, target, weight=torch.ones(7))

def stepping(batch, model, loss):
    return {"loss": loss(model(batch["x"]), batch["y"])}

def plain(batch, model, loss):
    return {"loss": loss(model(batch[0]), batch[1])}
"""


@pytest.fixture
def mine(runner: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`mine("float", "model=heads")`: a run on a dataset of that kind, in a project with parts of its own."""
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    Path("mine.py").write_text(MINE)
    own = {"dataset": {"mine": "train: {_target_: mine.Data, kind: whole}\n"}, "metrics": {}, "loss": {}}
    own["model"] = {name.lower(): f"_target_: mine.{name}\n" for name in ("Normed", "Heads", "Doubles", "Broken")}
    own["metrics"] = {name.lower(): f"m: {{_target_: mine.{name}}}\n" for name in ("Keywords", "Fussy")}
    own["loss"] = {"lossy": "_target_: mine.lossy\n"}
    own["step"] = {name: f"_target_: mine.{name}\n" for name in ("stepping", "plain")}
    for group, options in own.items():
        Path("conf", group).mkdir(parents=True)
        for name, text in options.items():
            Path("conf", group, f"{name}.yaml").write_text(text)

    def run(kind: str, *more: str) -> Any:
        given = [
            argument for argument in QUIET if not any(m.startswith("model=") for m in more) or "model" not in argument
        ]
        return runner(*given, "dataset=mine", f"dataset.train.kind={kind}", *more)

    return run


# the kind of dataset, further arguments -> how the error begins, and what else it says
WRONG = [
    ("float", (), "loss refuses the batch of step 1 (output [40, 2] float32", "int(y)"),
    ("text", (), "loss refuses the batch of step 1", "the targets are texts"),
    ("onehot", (), "loss refuses the batch of step 1", "one-hot"),
    ("column", (), "loss refuses the batch of step 1", "[N], and not [N, 1]"),
    ("bool", (), "loss refuses the batch of step 1", "the target is bool"),
    ("one_based", (), "loss refuses the batch of step 1", "subtract 1 in the dataset"),
    ("many", (), "loss refuses the batch of step 1", "(classes 0 to 1): it needs 40"),
    ("dict", (), "step.input must name members of a batch", "write `step.input=image step.target=label`"),
    ("dict", ("step.input=image",), "step.target must name members of a batch", "`step.input=image step.target=label`"),
    ("alone", (), "step needs an input and a target", "return `(input, target)`"),
    ("double", (), "model refuses the batch of step 1 (0: [40, 2] float64, 1: [40] int64) in `layers.1`", "ToDtype"),
    ("wide", (), "model refuses the batch of step 1 (0: [40, 4] float32", "argument `model.sizes=[2,4,2]`"),
    (
        "whole",
        ("++dataset.sample.shape=[5]", "model.sizes=[5,4,2]"),
        "dataset.sample states another sample",
        "argument `++dataset.sample.shape=[5]`",
    ),
    ("whole", ("model=doubles",), "model refuses the batch of step 1", "its parameter `weight` is float64"),
    ("whole", ("model=broken",), "model refuses the batch of step 1", "mine.py:41; named by conf/model/broken.yaml"),
    ("whole", ("model=heads",), "loss refuses the batch of step 1", "step.output=out"),
    ("whole", ("loss=lossy",), "loss refuses the batch of step 1", "mine.py:53"),
    ("whole", ("metrics=keywords",), "metrics.m does not fit what the step gives", "in this order, unnamed"),
    (
        "whole",
        ("metrics=fussy",),
        "metrics.m refuses what the step gives of train",
        "AssertionError: too large: mine.py",
    ),
    ("whole", ("step=stepping",), "step refuses the batch of step 1", "mine.py:56"),
    ("whole", ("++dataset.train._target_=mine.Missing",), "train sample", "no attribute 'table' (mine.py:20)"),
    ("whole", ("model=normed", "loader.batch_size=13"), "loader.batch_size makes a batch", "`loader.batch_size=12`"),
    (
        "whole",
        ("model=normed", "loader.batch_size=13", "++dataset.sample.shape=[2]"),
        "loader.batch_size makes a batch",
        "40 samples in batches of 13 leave a last batch of one",
    ),
    (
        "whole",
        ("step=plain", "metrics=none", "model=normed", "loader.batch_size=13"),
        "model refuses the batch of step 4 (0: [1, 2] float32",
        "take `loader.drop_last=true`",
    ),
    ("whole", ("loader.drop_last=true",), "train has 40 samples, fewer than loader.batch_size=64", "no step"),
]


@pytest.mark.parametrize(("kind", "more", "said", "detail"), WRONG, ids=[f"{w[0]} {' '.join(w[1])}" for w in WRONG])
def test_what_a_batch_shows_is_said_as_the_preflight_says_it(
    mine: Callable[..., Any], kind: str, more: tuple[str, ...], said: str, detail: str
) -> None:
    """Exit status 1, the key and what the batch holds, the place and the remedy in one paragraph; no step is saved."""
    ran = mine(kind, *more)
    paragraph = ran.err.partition("The run failed: ")[2].partition("\n")[0].removeprefix("RunError: ")

    assert (1, said) == (ran.status, paragraph[: len(said)]), ran.err
    assert detail in paragraph


def test_what_fails_in_an_evaluation_names_its_split(mine: Callable[..., Any]) -> None:
    """The metric is the same, and the batch is one of val."""
    ran = mine("whole", "++dataset.val._target_=mine.Data", "++dataset.val.kind=many")

    assert "loss refuses a batch of val (output [40, 2]" in ran.err


def test_auxiliary_outputs_train_with_their_weights(mine: Callable[..., Any]) -> None:
    """The remedy of the error above is a line that works, and the loss is the weighted sum."""
    alone = mine("whole", "model=heads", "step.output=out", "train.duration=1st")
    both = mine("whole", "model=heads", "step.output=out", "step.auxiliary={aux: 0.4}", "train.duration=1st")

    assert (0, 0) == (alone.status, both.status)
    assert alone.folder.joinpath("metrics.jsonl").read_text() != both.folder.joinpath("metrics.jsonl").read_text()


CHANGES = {
    "the module is gone": ("", 2, "but is 'mine.Plain'"),
    "another size": ("super().__init__(2, 2, dtype=torch.float32) #", 0, ""),
    "a layer more": (
        "super().__init__(2, 2); self.more = torch.nn.Linear(2, 2) #",
        1,
        "the checkpoint lacks more.weight",
    ),
    "another shape": ("super().__init__(2, 2, bias=False) #", 1, "the model lacks bias"),
    "it raises": ("raise OSError('no vectors.npy') #", 1, "no vectors.npy"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_whose_code_has_changed_is_explained_and_evaluated_or_refused_in_words(
    mine: Callable[..., Any], runner: Callable[..., Any], change: str
) -> None:
    """No traceback: what is missing, and which module is another than the run recorded."""
    Path("conf/model").mkdir(parents=True, exist_ok=True)
    Path("conf/model/plain.yaml").write_text("_target_: mine.Plain\n")
    line = "        super().__init__(2, 2) # plain\n"
    plain = f"\nclass Plain(torch.nn.Linear):\n    def __init__(self):\n{line}"
    Path("mine.py").write_text(MINE + plain)
    ran = mine("whole", "model=plain", "++dataset.val._target_=mine.Data", "++dataset.val.kind=whole")
    assert ran.status == 0, ran.err
    code, status, said = CHANGES[change]
    sys.modules.pop("mine")
    Path("mine.py").write_text((MINE + plain).replace("super().__init__(2, 2) # plain", code))
    if not code:
        Path("mine.py").unlink()

    for verb in ("evaluate", "explain"):
        sys.modules.pop("mine", None)
        again = runner(verb, str(ran.folder))
        assert (status, "Traceback" in again.err) == (again.status, False), again.err
        assert said in again.err
        assert status != 1 or "(changed since the run: mine)" in again.err
