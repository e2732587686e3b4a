"""Arithmetic expressions in named numbers (`exp(x)`, `2 * p * r / (p + r)`), without Python's `eval`."""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

LONGEST = 200  # characters


def compute_psnr(error: float, peak: float = 1.0) -> float:
    """Compute the peak signal-to-noise ratio in dB from a mean squared error."""
    return 20 * math.log10(peak) - 10 * math.log10(error)


FUNCTIONS: dict[str, Callable[..., float]] = {
    **{name: getattr(math, name) for name in ("exp", "expm1", "log", "log1p", "log2", "log10", "sqrt", "tanh")},
    "abs": abs,
    "min": min,
    "max": max,
    "psnr": compute_psnr,
    "bits": lambda nats: nats / math.log(2),
}
CONSTANTS = {"pi": math.pi, "e": math.e}
_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[float], float]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}


@dataclass(frozen=True)
class Expression:
    """Parsed expression; a bare name of a function is that function of the only number, `x`."""

    text: str
    tree: ast.expr
    names: frozenset[str]  # of its numbers

    def compute(self, values: Mapping[str, float]) -> float:
        """Compute the value: NaN outside of a function's domain, infinity beyond the largest number."""
        try:
            return _compute(self.tree, values)
        except OverflowError:
            return math.inf
        except (ValueError, ZeroDivisionError):
            return math.nan


def parse_expression(text: str, names: frozenset[str] = frozenset({"x"})) -> Expression:
    """Parse an expression in the numbers of these names.

    Raises:
        ValueError: it is none; the message says what it must be.
    """
    if len(text) > LONGEST:
        message = f"must have at most {LONGEST} characters"
        raise ValueError(message)
    whole = f"{text}(x)" if text in FUNCTIONS and "x" in names else text
    try:
        tree = ast.parse(whole.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        message = "must be a function's name or an expression, such as `exp` or `1 - x`"
        raise ValueError(message) from error
    used = frozenset(_list_names(tree, names))
    if not used:
        message = f"must use {' or '.join(f'`{name}`' for name in sorted(names))}"
        raise ValueError(message)
    return Expression(text, tree, used)


def _list_names(node: ast.expr, names: frozenset[str]) -> list[str]:
    """List the numbers that an expression uses; raise ValueError for anything but arithmetic."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return []
    if isinstance(node, ast.Name):
        if node.id in names:
            return [node.id]
        if node.id in CONSTANTS:
            return []
        known = ", ".join([*sorted(names), *CONSTANTS, *FUNCTIONS])
        message = f"has no `{node.id}`: there are {known}"
        raise ValueError(message)
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _list_names(node.left, names) + _list_names(node.right, names)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _list_names(node.operand, names)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords and node.args:
        if node.func.id in FUNCTIONS:
            return [name for argument in node.args for name in _list_names(argument, names)]
        message = f"has no function `{node.func.id}`: there are {', '.join(FUNCTIONS)}"
        raise ValueError(message)
    message = f"may have numbers, names, + - * / ** and functions, but has `{ast.unparse(node)}`"
    raise ValueError(message)


def _compute(node: ast.expr, values: Mapping[str, float]) -> float:
    if isinstance(node, ast.Constant):
        return float(node.value)  # type: ignore[arg-type]  # looked at by `_list_names`
    if isinstance(node, ast.Name):
        return values[node.id] if node.id in values else CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp):
        return _UNARY[type(node.op)](_compute(node.operand, values))
    if isinstance(node, ast.BinOp):
        made: Any = _BINARY[type(node.op)](_compute(node.left, values), _compute(node.right, values))
        return made if isinstance(made, float) else math.nan  # a root of a negative number is complex
    assert isinstance(node, ast.Call)
    assert isinstance(node.func, ast.Name)
    return float(FUNCTIONS[node.func.id](*[_compute(argument, values) for argument in node.args]))


def measure_slope(text: str, name: str = "x") -> int:
    """Return the slope of an expression's text, see `find_slope`; 0 where it is none."""
    try:
        return find_slope(parse_expression(text, frozenset({name})))
    except ValueError:
        return 0


def find_slope(expression: Expression) -> int:
    """Return 1 where an expression in one positive number rises, -1 where it falls, else 0."""
    if len(expression.names) != 1:
        return 0
    (name,) = expression.names
    found = [expression.compute({name: 10 ** (place / 8)}) for place in range(-24, 17)]  # from 0.001 to 100
    steps = [after - before for before, after in pairwise(found)]
    if all(step > 0 for step in steps):
        return 1
    return -1 if all(step < 0 for step in steps) else 0
