"""Plain values become what a signature says, or are refused in its words; a text never passes for an enum."""

import datetime as dt
import enum
import inspect
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from runner.config.check.annotations import UNFIT, convert, describe_misfit, infer_annotation
from runner.experiment.builders.instantiate import instantiate
from tests.support import find_mistakes


class Mode(enum.Enum):
    FAST = "fast"
    SLOW = "slow"


class Level(enum.IntEnum):
    LOW = 1


class Point(NamedTuple):
    x: int
    y: Path = Path()


CONVERTED = [
    (list[Mode], ["fast", "SLOW"], [Mode.FAST, Mode.SLOW]),
    (dict[str, Mode], {"a": "slow"}, {"a": Mode.SLOW}),
    (dict[Mode, int], {"fast": 1}, {Mode.FAST: 1}),
    (Mode | None, "Mode.FAST", Mode.FAST),
    (Level, 1, Level.LOW),
    (tuple[tuple[int, int], ...], [[1, 2], [3, 4]], ((1, 2), (3, 4))),
    (Optional[tuple[int, int]], [1, 2], (1, 2)),  # noqa: UP045  as older code writes it
    (frozenset[int], [1, 2], frozenset({1, 2})),
    (Point, [1, "a"], Point(1, Path("a"))),
    (torch.Size, [2, 3], torch.Size([2, 3])),
    (torch.device, "cuda:1", torch.device("cuda", 1)),
    (torch.dtype, "float16", torch.float16),
    (list[Path], ["a"], [Path("a")]),
    (dict[str, Path], {"a": "b"}, {"a": Path("b")}),
    (Decimal, "0.1", Decimal("0.1")),
    (Fraction, "1/3", Fraction(1, 3)),
    (re.Pattern[str], r"a\d", re.compile(r"a\d")),
    (range, [1, 4], range(1, 4)),
    (bytes, "é", "é".encode()),
    (dt.date, "2026-01-02", dt.date(2026, 1, 2)),
    (Mode, "quick", UNFIT),
    (Level, 3, UNFIT),
    (Point, [1, "a", 3], UNFIT),
    (torch.device, 0, UNFIT),
    (torch.device, "gpu", UNFIT),
    (Path, 3, UNFIT),
    (range, 3, UNFIT),
    (Decimal, "x", UNFIT),
]


@pytest.mark.parametrize(("annotation", "value", "expected"), CONVERTED, ids=str)
def test_a_plain_value_becomes_what_is_said(annotation: Any, value: Any, expected: Any) -> None:
    made = convert(value, annotation)

    assert (type(made), made) == (type(expected), expected)


def test_a_list_becomes_an_array_of_the_dtype_that_is_said() -> None:
    made = convert([1, 2], npt.NDArray[np.float32])

    assert (made.dtype, made.tolist()) == (np.dtype("float32"), [1.0, 2.0])
    assert convert("a", np.ndarray) is UNFIT


def parameter(annotation: Any = inspect.Parameter.empty, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter("x", inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


@pytest.mark.parametrize(
    ("wanted", "value", "words"),
    [
        (parameter(list[Mode]), ["fast", "quick"], "must be a list, each one of `fast`, `slow`"),
        (parameter(dict[str, Mode]), {"a": "quick"}, "must be a mapping, each value one of `fast`, `slow`"),
        (parameter(dict[str, int]), [1], "must be a mapping, each value an integer"),
        (parameter(default=Mode.FAST), "quick", "must be one of `fast`, `slow`"),
        (parameter(default=Level.LOW), 3, "must be one of `1`"),
        (parameter(default=torch.device("cpu")), 0, "must be a device, such as `cpu` or `cuda:0`"),
        (parameter(default=nn.BatchNorm2d), "BatchNorm1d", "must be a class (`{_target_: …}`)"),
        (parameter(default=Decimal(1)), "x", "must be Decimal"),
        (parameter(default=torch.relu), "relu", ""),
        (parameter(dict), {"a": 1}, ""),
        (parameter(dict[str, Any]), {"a": {"_target_": "x"}}, ""),
    ],
)
def test_what_does_not_fit_is_said(wanted: inspect.Parameter, value: Any, words: str) -> None:
    assert describe_misfit(value, wanted, durations=False) == words


def test_a_function_as_default_asks_for_one_that_is_not_called() -> None:
    assert "Callable" in str(infer_annotation(parameter(default=torch.relu)))
    assert Callable in {getattr(kind, "__origin__", kind) for kind in infer_annotation(parameter(default=len)).__args__}


CODE = """
import enum, torch
from torch import nn
class Mode(enum.Enum):
    FAST = "fast"
class Net(nn.Module):
    def __init__(self, *sizes: tuple[int, int], norm=nn.BatchNorm2d, **modes: Mode):
        super().__init__()
        self.sizes, self.norm, self.modes = sizes, norm, modes
class Called(nn.Module):
    def __init__(self, norm=None):
        super().__init__()
class Device(nn.Module):
    def __init__(self, level: Mode, device: "torch.device"):
        super().__init__()
"""


def test_a_class_as_default_gets_a_class_and_members_what_args_and_kwargs_say(
    runner: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line that a refusal proposes is taken."""
    (tmp_path / "kinds_of.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    net = {"_target_": "kinds_of.Net", "_args_": [[1, 2]], "norm": {"_target_": "torch.nn.BatchNorm1d"}, "a": "fast"}
    made = instantiate(net, "model")

    assert (made.sizes, made.norm, made.modes["a"].name) == (((1, 2),), nn.BatchNorm1d, "FAST")

    def said(arguments: str) -> str:
        ran = runner("check", "experiment=null", "dataset=none", f"++model={{_target_: kinds_of.{arguments}}}")
        return str(ran.out + ran.err)

    assert "write `{_target_: torch.nn.BatchNorm1d}`" in said("Net, norm: BatchNorm1d")
    assert "model.norm" not in said("Net, norm: {_target_: torch.nn.BatchNorm1d}")
    assert "add `_partial_: true`" in said("Called, norm: {_target_: torch.nn.BatchNorm1d}")
    assert "did you mean `cuda:0`?" in said("Device, level: fast, device: 0")


@pytest.mark.parametrize(("step", "keys"), [("own.step", []), ("runner.train.steps.supervised", ["loss.batch"])])
def test_a_loss_has_any_signature_where_the_step_is_ones_own(
    step: str, keys: list[str], elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervised step calls it with an output and a target; who else calls it knows what with."""
    code = (
        "def step(batch, model, loss, input=0, target=1): pass\n\ndef loss(model, output, batch, *, scale=1.0): pass\n"
    )
    (elsewhere / "own.py").write_text(code)
    monkeypatch.syspath_prepend(elsewhere)
    found = find_mistakes(f"step._target_={step}", "loss={_target_: own.loss, scale: 2.0}")

    assert keys == [mistake.key for mistake in found]


@pytest.mark.parametrize("value", ["random", "[0.1,0.2,0.3]"])
def test_the_fills_that_random_erasing_documents_are_no_mistakes(value: str) -> None:
    node = f"{{_target_: torchvision.transforms.v2.RandomErasing, value: {value}}}"

    assert find_mistakes(f"++transform.train.erase={node}") == []
