"""Expressions of derived numbers compute what Python would, and take nothing but arithmetic."""

import math

import pytest

from runner.core.expression import find_slope, parse_expression

NAMES = frozenset({"p", "r"})


@pytest.mark.parametrize(
    ("text", "x", "expected"),
    [
        ("exp", 2.0, math.exp(2)),
        ("sqrt", 9, 3.0),
        ("psnr", 0.01, 20.0),
        ("psnr(x, 255)", 255.0**2, 0.0),
        ("bits", math.log(8), 3.0),
        ("1 - x", 0.25, 0.75),
        ("-10 * log10(x) + 2 ** 3", 0.1, 18.0),
        ("max(x, 2, 1)", 1, 2.0),
        ("exp", 1e6, math.inf),
        ("x ** 1000000", 10, math.inf),
    ],
)
def test_an_expression_is_computed(text: str, x: float, expected: float) -> None:
    assert expected == pytest.approx(parse_expression(text).compute({"x": x}))


@pytest.mark.parametrize(
    ("text", "x"), [("log(x)", 0), ("sqrt", -1), ("1 / x", 0), ("x ** 0.5", -1), ("exp", math.nan)]
)
def test_there_is_no_number_outside_of_a_domain(text: str, x: float) -> None:
    assert math.isnan(parse_expression(text).compute({"x": x}))


def test_several_numbers_have_names() -> None:
    f1 = parse_expression("2 * p * r / (p + r)", NAMES)

    assert NAMES == f1.names
    assert f1.compute({"p": 0.5, "r": 1.0}) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("__import__('os')", "no function `__import__`"),
        ("x.real", "may have numbers"),
        ("x if x else 1", "may have numbers"),
        ("(lambda: x)()", "may have numbers"),
        ("[x for x in x]", "may have numbers"),
        ("exp(value=x)", "may have numbers"),
        ("expo", "has no `expo`"),
        ("'x'", "may have numbers"),
        ("3 + 4", "must use `x`"),
        ("x +", "must be a function's name"),
        ("x" * 201, "at most 200"),
        ("x, 1", "may have numbers"),
        ("True + x", "may have numbers"),
    ],
)
def test_anything_else_is_refused(text: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        parse_expression(text)


@pytest.mark.parametrize(
    ("text", "slope"), [("exp", 1), ("sqrt", 1), ("1 - x", -1), ("psnr", -1), ("x * x - 3 * x", 0), ("sqrt(1 - x)", 0)]
)
def test_the_slope_says_whether_less_is_better(text: str, slope: int) -> None:
    assert slope == find_slope(parse_expression(text))
