"""A trace's lines give back the bits that they were made of, and refuse what is no trace."""

import math
import random

import pytest

from runner.log.trace_file import (
    match_bits,
    pack_config,
    pack_hashes,
    pack_losses,
    pack_setting,
    read_trace,
    unpack,
    unpack_config,
)


def test_losses_come_back_bit_by_bit(seed: int) -> None:
    """Numbers of either precision come back with the same bits, special ones too."""
    draw = random.Random(seed)
    doubles = [draw.uniform(-1e3, 1e3) for _ in range(50)] + [0.0, -0.0, math.inf, 1e300, math.nan]
    singles = [0.5, -0.0, math.inf, 3.25]

    packed = [pack_losses(doubles), pack_losses(singles)]

    back = [*unpack(packed[0]), *unpack(packed[1])]
    assert [text[:3] for text in packed] == ["f8:", "f4:"]
    assert all(match_bits(one, other) for one, other in zip(back, [*doubles, *singles], strict=True))


def test_steps_of_a_line_have_their_facts() -> None:
    """A line written after step 12 holds the facts of the steps that it has losses of."""
    event = {"step": 12, "loss": pack_losses([1.0, 2.0]), "order": pack_hashes([7, 2**32 - 1])}
    event |= {"settings": {"lr": pack_setting([0.1, 0.2]), "momentum": 0.9}, "weights": "ab"}

    trace = read_trace([event])

    facts = {step: (one.loss, one.hashes["order"], one.settings["lr"]) for step, one in trace.steps.items()}
    assert facts == {11: (1.0, 7, 0.1), 12: (2.0, 2**32 - 1, 0.2)}
    assert trace.steps[11].settings["momentum"] == 0.9
    assert trace.marks == {12: {"weights": "ab"}}


@pytest.mark.parametrize(
    "line",
    [
        [],
        "x",
        {},
        {"step": "1"},
        {"step": -1},
        {"step": 1, "loss": 3},
        {"step": 1, "loss": "f4:!"},
        {"step": 1, "loss": "o8:AAAA"},
        {"step": 1, "loss": pack_losses([1.0, 2.0])},
        {"step": 2, "loss": pack_losses([1.0, 2.0]), "order": pack_hashes([1])},
        {"step": 1, "loss": pack_losses([1.0]), "settings": {"lr": []}},
    ],
)
def test_no_line_of_a_trace_is_refused(line: object) -> None:
    """What no run has written is a ValueError, whatever it is."""
    with pytest.raises(ValueError, match=r"line|numbers|setting|base64|Only|padding|data"):
        read_trace([line])


def test_a_config_comes_back_and_a_bomb_does_not() -> None:
    """A packed config comes back; what unpacks to more than a config can be is none."""
    assert unpack_config(pack_config({"model": {"width": 16}})) == {"model": {"width": 16}}
    assert unpack_config(pack_config({"a": "0" * 10_000_000})) == {}
    assert unpack_config("none") == {}
