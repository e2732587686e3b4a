"""A trace says what each step computed, and changes no bit of it."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.log.trace_file import read_trace, read_trace_lines
from runner.train.trace import NoTrace
from tests.support import Ran

QUICK = ("log=quiet", "device.type=cpu", "dataset.limit=70", "loader.batch_size=16", "log.every=4st")
SHORT = (*QUICK, "train.duration=3ep")


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param((), id="from memory"),
        pytest.param(("loader.in_memory=false", "train.accumulate=2"), id="sample by sample, two micro-batches"),
        pytest.param(("train.clip_norm=1", "train.ema=0.9", "log.mean=false"), id="clipping, an average"),
        pytest.param(("optimizer._target_=torch.optim.LBFGS", "~optimizer.momentum"), id="LBFGS"),
    ],
)
def test_the_weights_are_those_of_a_run_without_one(settings: tuple[str, ...], runner: Callable[..., Ran]) -> None:
    """With and without a trace, a run ends with the same bits."""
    if "LBFGS" in str(settings):
        settings = ("experiment=minimise", "train.duration=12st")
    line = (*QUICK[:2], *settings) if "experiment=minimise" in settings else (*SHORT, *settings)

    traced, plain = (runner(*line, f"log.trace={on}") for on in ("true", "false"))

    assert traced.result["weights_sha256"] == plain.result["weights_sha256"]
    assert [(ran.folder / "trace.jsonl").exists() for ran in (traced, plain)] == [True, False]


@pytest.mark.parametrize("settings", [(), ("loader.in_memory=false",), ("train.accumulate=2",)])
def test_the_order_is_that_of_the_samples(
    settings: tuple[str, ...], runner: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step's hash is that of the dataset's indices of its batches, for any way of making batches."""
    from runner.experiment.builders import run as run_builder

    made: list[Any] = []
    build = run_builder.build
    monkeypatch.setattr(run_builder, "build", lambda *args, **named: made.append(build(*args, **named)) or made[-1])

    ran = runner(*SHORT, *settings)

    split, rhythm = made[0].splits["train"], made[0].rhythm
    expected = []
    for epoch in range(3):
        batches = [split.sample_indices(epoch, number) for number in range(split.num_batches)]
        for first in range(0, len(batches), rhythm.accumulate):
            members = [index for batch in batches[first : first + rhythm.accumulate] for index in batch]
            expected.append(zlib.crc32(np.array(members, np.int64).tobytes()))
    trace = read_trace(read_trace_lines(ran.folder))
    assert [trace.steps[step].hashes["order"] for step in sorted(trace.steps)] == expected


def test_every_step_has_every_fact(runner: Callable[..., Ran]) -> None:
    """A run from memory knows loss, order, probes and settings of each step, and the batch of each log line."""
    ran = runner(*SHORT)

    trace = read_trace(read_trace_lines(ran.folder))

    facts = {(one.loss is not None, *sorted(one.hashes), *sorted(one.settings)) for one in trace.steps.values()}
    settings = ("dampening", "lr", "momentum", "weight_decay")
    assert facts == {(True, "gradient_probe", "order", "weights_probe", *settings)}
    assert [step for step, marks in trace.marks.items() if "batch" in marks] == [4, 8, 12, 15]
    assert sorted(trace.marks[0]["begin"]) == ["config", "generators", "optimizer", "tensors", "weights"]


def test_none_adds_no_call() -> None:
    """Without a trace the loop iterates over the batches themselves."""
    batches = iter([1])
    nothing: Any = None

    assert NoTrace().watch(batches, nothing) is batches


def test_a_trace_is_small(runner: Callable[..., Ran]) -> None:
    """A step takes some tens of bytes."""
    ran = runner(*QUICK, "log.every=50st", "train.checkpoint_every=null", "train.duration=200st")

    size = (Path(ran.folder) / "trace.jsonl").stat().st_size
    assert size < 4_000 + 200 * 40
