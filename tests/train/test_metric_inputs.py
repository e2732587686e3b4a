"""Each metric gets its parts of what a step returns, and numbers are derived from means."""

from collections import namedtuple

import pytest
import torch

from runner.config.check.check import Check
from runner.config.check.rules.train import find_direction
from runner.config.compose import compose
from runner.core.durations import Duration
from runner.core.errors import RunError
from runner.core.expression import parse_expression
from runner.sweep.jobs import find_objective
from runner.sweep.runs.reading import _infer_mode
from runner.train.metric_inputs import DerivedNumber, MetricInput, find_due, list_fields
from tests.support import find_mistakes

Pair = namedtuple("Pair", ["mean", "scale"])  # noqa: PYI024  as a user's model returns it
OUTCOME = {
    "loss": torch.ones(()),
    "output": {"kind": torch.zeros(2, 3), "boxes": [torch.ones(4), torch.zeros(4)], "pair": Pair(torch.ones(2), 5)},
    "target": {"kind": torch.zeros(2), 7: "seven"},
    "extra": torch.full((2, 2), 3.0),
    "size": 2,
}


class Seen:
    """Keeps what it gets."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.given = []

    def update(self, *given):
        self.given.append(given)

    def compute(self):
        return len(self.given)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("kind", OUTCOME["output"]["kind"]),
        ("output.kind", OUTCOME["output"]["kind"]),
        ("boxes.1", OUTCOME["output"]["boxes"][1]),
        ("pair.scale", 5),
        ("extra", OUTCOME["extra"]),
    ],
)
def test_a_path_finds_a_part(place, expected):
    metric = MetricInput("x", Seen(), place, "kind")
    metric(OUTCOME)
    output, target = metric.metric.given[0]

    assert output is expected or torch.equal(output, expected)
    assert target is OUTCOME["target"]["kind"]


def test_the_whole_output_and_target_without_paths():
    metric = MetricInput("x", Seen())
    metric(OUTCOME | {"output": (torch.ones(2, requires_grad=True), [torch.zeros(1)]), "target": 5})
    ((one, rest), target) = metric.metric.given[0]

    assert (one.requires_grad, rest[0].tolist(), target) == (False, [0.0], 5)


def test_one_with_the_output_alone():
    metric = MetricInput("x", Seen(), "kind", alone=True)
    metric({"output": {"kind": torch.ones(1)}})

    assert metric.metric.given == [(torch.ones(1),)]


@pytest.mark.parametrize("outcome", [{"loss": torch.ones(())}, {"loss": 1.0, "reward": 2.0, "size": 3, "note": "a"}])
@pytest.mark.parametrize("place", [None, "kind"])
def test_a_step_without_output_updates_nothing(outcome, place):
    metric = MetricInput("x", Seen(), place)
    metric(outcome)

    assert (metric.metric.given, metric.updated) == ([], False)


@pytest.mark.parametrize(
    ("output", "target", "says"),
    [
        ("knd", None, r"metrics\.x\.output: the step gives no `knd`; there are `kind`, `boxes`, `pair`, `loss`"),
        ("boxes.2", None, r"no `boxes\.2`"),
        ("kind", "age", r"metrics\.x\.target: the step gives no `age`; there are `kind`, `7`, `loss`"),
    ],
)
def test_a_wrong_path_names_those_that_there_are(output, target, says):
    with pytest.raises(RunError, match=says):
        MetricInput("x", Seen(), output, target)(OUTCOME)


def test_a_path_of_two_things_is_refused():
    with pytest.raises(RunError, match=r"means two things.*write `output\.extra`"):
        MetricInput("x", Seen(), "extra")(OUTCOME | {"output": {"extra": torch.ones(1)}})


def test_an_output_without_a_target_is_refused():
    with pytest.raises(RunError, match="gives an output and no `target`"):
        MetricInput("x", Seen())({"output": torch.ones(1)})


def test_a_metric_has_no_value_until_it_is_updated():
    metric = MetricInput("x", Seen(), "kind", "kind")
    metric(OUTCOME)
    assert (metric.updated, metric.compute()) == (True, 1)
    metric.reset()
    assert (metric.updated, metric.compute()) == (False, 0)


def test_fields_that_are_parts_are_no_numbers():
    assert list_fields([MetricInput("x", None, "extra.a", "kind"), MetricInput("y", None, 0)]) == {"extra", "kind"}


def test_a_rhythm_is_due_once_in_a_period():
    metric = MetricInput("x", None, every=Duration.parse("2ep"))
    due = [bool(find_due([metric], step - 5, step, 5)) for step in range(5, 31, 5)]

    assert due == [False, True] * 3


@pytest.mark.parametrize(("values", "expected"), [({"val/a": 3.0, "val/b": 4}, {"val/h": 5.0}), ({"val/a": 3.0}, {})])
def test_a_derived_number_needs_all_of_its_sources(values, expected):
    names = {"a": "a", "b": "b"}
    number = DerivedNumber("h", names, parse_expression("sqrt(a * a + b ** 2)", frozenset(names)))

    assert expected == number.compute("val", values)


@pytest.mark.parametrize(
    ("derived", "expected"),
    [
        ("{of: loss, as: exp}", "min"),
        ("{of: loss, as: psnr}", "max"),
        ("{of: accuracy, as: 1 - x}", "min"),
        ("{of: {a: loss}, as: 2 * a}", "min"),
        ("{of: inner, as: sqrt}", "min"),
    ],
)
def test_a_derived_objective_has_the_direction_of_its_source(derived, expected):
    """In training, in a sweep, and for whoever reads the record."""
    metrics = ["+metrics.inner={of: loss, as: bits}", f"+metrics.own={derived}"]
    config = Check(compose(["train.objective=val/own", "train.mode=null", *metrics])).config
    flat = {"metrics.own.of": config.metrics["own"].of, "metrics.own.as": config.metrics["own"].function}
    flat |= {"metrics.inner.of": "loss", "metrics.inner.as": "bits"}

    assert (expected, ("val/own", expected)) == (find_direction(config, "val/own"), find_objective(config))
    assert not isinstance(flat["metrics.own.of"], str) or expected == _infer_mode("val/own", flat)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("{of: los, as: exp}", "metrics.own.of"),
        ("{of: own, as: exp}", "metrics.own.of"),
        ("{of: val/loss, as: exp}", "metrics.own.of"),
        ("{of: loss, as: expo}", "metrics.own.as"),
        ("{of: {a: loss, b: accuracy}, as: a + 1}", "metrics.own.of.b"),
        ("{of: loss, as: 'x * x - 5 * x'}", "train.mode"),
        ("{of: loss}", "metrics.own"),
    ],
)
def test_a_wrong_derived_number_is_a_mistake(override, key):
    mistake, *_ = find_mistakes(f"+metrics.own={override}", "train.objective=val/own", "train.mode=null")

    assert key in mistake.key


@pytest.mark.parametrize(
    ("node", "key", "says"),
    [
        ("{_target_: own.Metric, output: 3}", "metrics.own.output", "means two things"),
        ("{_target_: own.Metric, on: val}", "metrics.own.on", "must be train, eval or both"),
        ("{_target_: own.Metric, every: 2}", "metrics.own.every", "must be epochs"),
        ("{_target_: own.Metric, evry: 1ep}", "metrics.own.evry", "is unknown"),
        ("{_target_: own.Metric, target: [1]}", "metrics.own.target", "must name a part"),
    ],
)
def test_a_wrong_setting_of_a_metric_is_a_mistake(node, key, says, elsewhere, monkeypatch):
    """One that the metric itself has an argument for is no matter of silence either."""
    (elsewhere / "own.py").write_text("class Metric:\n    def __init__(self, output=1): pass\n")
    monkeypatch.syspath_prepend(elsewhere)
    (mistake,) = find_mistakes(f"+metrics.own={node}")

    assert (key, says in mistake.rule) == (mistake.key, True)
