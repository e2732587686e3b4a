"""Filter of runs: `model.width > 16 and status == failed`, parsed with `ast`, never evaluated.

A name is a column, a metric (`val/accuracy`) or a dotted key of the config. A run without it has null there: null
equals null alone, and no order (`<`), no list (`in`) and no pattern (`~`) holds for it. So `x != 5` and `not x > 5`
hold for a run that has no x. A word on the right that is no name is a text. A pattern must match the whole value.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from runner.config.suggestions import find_nearest, format_suggestion, translate_name
from runner.core.errors import ConfigError, Kind, Mistake

LONGEST = 10_000  # characters of a filter


STATUSES = ("running", "completed", "failed", "interrupted", "pruned", "waiting", "damaged")


SECONDS = ("age", "seconds")  # columns that a time such as `7d` is compared with


class FilteredRun(Protocol):
    """Run as a filter sees it."""

    def get(self, name: str) -> Any:
        """Return the value of a column, metric or key; None where the run has none."""


Test = Callable[[FilteredRun], bool]


_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<text>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")|`(?P<quoted>[^`]+)`"
    r"|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?:[A-Za-z]\w*)?)"
    r"|(?P<name>[^\W\d]\w*(?:[./]\w[\w-]*)*)"
    r"|(?P<sign>==|!=|<=|>=|!~|&&|\|\||[<>~()\[\],=!&|+-])"
)


_CONSTANTS = {"true": True, "false": False, "null": None, "none": None, "nan": math.nan, "inf": math.inf}


_REMEDIES = {
    "=": "write `==`",
    "!": "write `not`",
    "!~": "write `not NAME ~ 'pattern'`",
    "&&": "write `and`",
    "&": "write `and`",
    "||": "write `or`",
    "|": "write `or`",
}


_TIME_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


_SIZE_UNITS = {"B": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}


@dataclass(frozen=True)
class _Word:
    text: str
    is_key: bool = False  # in backquotes


@dataclass(frozen=True)
class _Quantity:
    """Number with a unit: a time, a size, a duration of training."""

    text: str

    def as_seconds(self) -> float | None:
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhdw])", self.text)
        whole = "".join(number + unit for number, unit in parts) == self.text
        return sum(float(number) * _TIME_UNITS[unit] for number, unit in parts) if whole else None

    def as_bytes(self) -> float | None:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMGT]i?)?B?", self.text)
        return None if match is None else float(match[1]) * _SIZE_UNITS[match[2] or "B"]


_Operand = Any  # a _Word, a _Quantity, a text, a number, a bool, None, or a list of these


def parse_filter(text: str, names: Collection[str] | None) -> Test:
    """Parse a filter to a test of one run.

    Args:
        text: of the filter.
        names: every column, metric and key that some run has; None where any name is taken.

    Raises:
        ConfigError: it cannot be read, or has a name that no run has.
    """
    return _Parser(text, names).parse()


def find_name(name: str, names: Collection[str] | None, *, where: str, of: str = "FILTER") -> None:
    """Check that a column, metric or key is known.

    Raises:
        ConfigError: no run has it; the nearest name is in the remedy.
    """
    if names is None or name in names:
        return
    translated = translate_name(name)
    near = translated if translated in names else find_nearest(name, names)
    inside = sorted(known for known in names if known.startswith(f"{name}."))
    ends = sorted(known for known in names if known.endswith((f".{name}", f"/{name}")))
    if inside:
        rule, remedy = f"is a group of keys, and `{name}` none", f"it has {', '.join(inside[:5])}"
    else:
        rule = f"names `{name}`, which no run has as a column, a metric or a key of its config"
        near = ends[0] if len(ends) == 1 else near
        listed = f"there are {', '.join(ends[:5])}" if ends else "`--json` lists the columns and the metrics"
        remedy = format_suggestion(near) or listed
    raise ConfigError([Mistake(of, rule, where=where, remedy=remedy, suggestion=near, kind="unknown-key")])


class _Parser:
    """Parser of one filter: its tokens become names of a Python expression, whose tree is compiled."""

    def __init__(self, text: str, names: Collection[str] | None) -> None:
        self.text, self.names = text, names
        self.where = f"argument `{text if len(text) <= 200 else text[:199] + '…'}`"
        self.operands: dict[str, _Operand] = {}
        self.places: list[tuple[int, int]] = []  # of each token: in the expression, in the filter

    def parse(self) -> Test:
        if len(self.text) > LONGEST:
            raise self._make_error(f"must have at most {LONGEST:,} characters")
        source = self._tokenize()
        if not source.strip():
            raise self._make_error("is empty", remedy="'status == completed'")
        try:
            tree = ast.parse(source, mode="eval")
            return self._compile(tree.body)
        except SyntaxError as error:
            place = max((at for mine, at in self.places if mine < (error.offset or 1)), default=0)
            rest = self.text[place : place + 40]
            rule = f"cannot be read at `{rest}`" if rest.strip() else "cannot be read to its end"
            remedy = "'model.width > 16 and status == completed'; a text with spaces needs quotes"
            raise self._make_error(rule, remedy=remedy) from None
        except (RecursionError, MemoryError):
            raise self._make_error("is nested too deeply") from None

    def _make_error(self, rule: str, remedy: str = "", kind: Kind = "syntax", suggestion: str = "") -> ConfigError:
        return ConfigError([Mistake("FILTER", rule, where=self.where, remedy=remedy, suggestion=suggestion, kind=kind)])

    def _tokenize(self) -> str:
        parts: list[str] = []
        at, length = 0, 0
        while at < len(self.text):
            match = _TOKEN.match(self.text, at)
            if match is None:
                unclosed = self.text[at] in "'\"`"
                rule = f"cannot be read at `{self.text[at : at + 40]}`"
                raise self._make_error(rule, remedy="close the quote" if unclosed else "")
            kind = str(match.lastgroup)
            part = self._translate(kind, match)
            self.places.append((length, at))
            parts.append(part)
            length += len(part) + 1
            at = match.end()
        return " ".join(parts).strip()

    def _translate(self, kind: str, match: re.Match[str]) -> str:
        """Translate one token to Python: an operand becomes a made-up name."""
        said = match[0]
        operand: _Operand
        if kind == "space":
            return ""
        if kind == "sign":
            if said in _REMEDIES:
                raise self._make_error(f"has no operator `{said}`", remedy=_REMEDIES[said])
            return "@" if said == "~" else said
        if kind == "name":
            if said in ("and", "or", "not", "in"):
                return said
            operand = _CONSTANTS[said.lower()] if said.lower() in _CONSTANTS else _Word(said)
        elif kind == "quoted":
            operand = _Word(match["quoted"], is_key=True)
        elif kind == "text":
            operand = re.sub(r"\\(.)", lambda found: found[0] if found[1] not in "'\"\\" else found[1], said[1:-1])
        else:
            try:
                operand = int(said) if said.isdecimal() else float(said)
            except ValueError:
                if said.isdecimal():
                    raise self._make_error("has a number of too many digits") from None
                operand = _Quantity(said)
        name = f"_{len(self.operands)}"
        self.operands[name] = operand
        return name

    # ---- the tree

    def _compile(self, node: ast.expr) -> Test:
        if isinstance(node, ast.BoolOp):
            parts = [self._compile(value) for value in node.values]
            if isinstance(node.op, ast.And):
                return lambda run: all(part(run) for part in parts)
            return lambda run: any(part(run) for part in parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self._compile(node.operand)
            return lambda run: not inner(run)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            return self._compile_pattern(node)
        if isinstance(node, ast.Compare):
            return self._compile_comparison(node)
        operand = self._read(node)
        if not isinstance(operand, _Word):
            raise self._make_error("must compare a name with a value", remedy="'seed == 1'")
        get = self._compile_key(operand)
        return lambda run: get(run) not in (None, False)

    def _read(self, node: ast.expr) -> _Operand:
        """Read an operand of a comparison."""
        if isinstance(node, ast.Name):
            return self.operands[node.id]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            number = self._read(node.operand)
            if isinstance(number, int | float) and not isinstance(number, bool):
                return -number if isinstance(node.op, ast.USub) else number
        if isinstance(node, ast.List | ast.Tuple):
            return [self._read(member) for member in node.elts]
        what = {ast.BinOp: "does not calculate", ast.Call: "calls no function", ast.Subscript: "takes no index"}
        raise self._make_error(what.get(type(node), "cannot be read: it must compare names with values"))

    def _compile_key(self, word: _Word) -> Callable[[FilteredRun], Any]:
        find_name(word.text, self.names, where=self.where)
        return lambda run: run.get(word.text)

    def _compile_pattern(self, node: ast.BinOp) -> Test:
        left, right = self._read(node.left), self._read(node.right)
        pattern = right.text if isinstance(right, _Word | _Quantity) else right
        if not isinstance(left, _Word) or not isinstance(pattern, str):
            raise self._make_error("needs a name before `~` and a pattern after it", remedy="name ~ 'digits.*'")
        get = self._compile_key(left)
        try:
            matches = re.compile(pattern).fullmatch
        except (re.error, OverflowError, RecursionError) as error:
            raise self._make_error(f"has a pattern that cannot be read: {error}", remedy="") from None
        return lambda run: (value := get(run)) is not None and matches(_write(value)) is not None

    def _compile_comparison(self, node: ast.Compare) -> Test:
        sides = (node.left, *node.comparators)
        if any(isinstance(part, ast.BinOp) and isinstance(part.op, ast.MatMult) for part in sides):
            raise self._make_error("has `~` within another comparison", remedy="join the two with `and`")
        operands = [self._read(part) for part in sides]
        keys = [self._is_key(operand, first=place == 0) for place, operand in enumerate(operands)]
        if not any(keys):
            raise self._make_error("must compare a name with a value", remedy="'seed == 1'")
        tests = []
        for place, sign in enumerate(node.ops):
            pair, are_keys = operands[place : place + 2], keys[place : place + 2]
            known = [one.text for one, is_key in zip(pair, are_keys, strict=True) if is_key]
            tests.append(self._compile_pair(pair, are_keys, sign, known))
        return lambda run: all(test(run) for test in tests)

    def _is_key(self, operand: _Operand, *, first: bool) -> bool:
        if not isinstance(operand, _Word):
            return False
        if first or operand.is_key:
            find_name(operand.text, self.names, where=self.where)
            return True
        return self.names is not None and operand.text in self.names

    def _compile_pair(self, sides: list[_Operand], keys: list[bool], sign: ast.cmpop, known: list[str]) -> Test:
        compare = _SIGNS.get(type(sign))
        if compare is None:
            raise self._make_error("has no `is`", remedy="write `==`")
        is_order = isinstance(sign, ast.Lt | ast.LtE | ast.Gt | ast.GtE)
        is_list = isinstance(sign, ast.In | ast.NotIn)
        if is_list and not keys[1] and not isinstance(sides[1], list):
            raise self._make_error("needs a list after `in`", remedy=f"{known[0] if known else 'seed'} in [1, 2]")
        gets: list[Callable[[FilteredRun], Any]] = []
        for operand, is_key in zip(sides, keys, strict=True):
            if is_key:
                gets.append(self._compile_key(operand))
                continue
            if is_order and (isinstance(operand, _Word | list | bool) or operand is None):
                said = operand.text if isinstance(operand, _Word) else _write(operand)
                raise self._make_error(
                    f"cannot order by `{said}`, which is no number",
                    remedy=f"a text needs quotes: '{said}'" if isinstance(operand, _Word) else "",
                )
            gets.append(_make_constant(self._convert(operand, known)))
        left, right = gets
        return lambda run: compare(left(run), right(run))

    def _convert(self, operand: _Operand, known: list[str]) -> Any:
        """Convert a constant to what the values of the names that it is compared with are."""
        if isinstance(operand, list):
            return [self._convert(member, known) for member in operand]
        key = known[0] if known else ""
        if isinstance(operand, _Word):
            operand = operand.text
        if key == "status" and isinstance(operand, str) and operand not in STATUSES:
            near = find_nearest(operand, STATUSES)
            remedy = format_suggestion(near) or f"there are {', '.join(STATUSES)}"
            raise self._make_error(f"names no status with `{operand}`", remedy, "value", near)
        if key in SECONDS:
            seconds = operand.as_seconds() if isinstance(operand, _Quantity) else None
            is_number = isinstance(operand, int | float) and not isinstance(operand, bool)
            if seconds is None and (isinstance(operand, _Quantity | str) or (is_number and key == "age")):
                said = operand.text if isinstance(operand, _Quantity) else operand
                raise self._make_error(f"needs a time to compare `{key}` with, and `{said}` is none", "7d, 12h, 30m")
            return operand if seconds is None else seconds
        if key == "size" and isinstance(operand, _Quantity):
            size = operand.as_bytes()
            if size is None:
                raise self._make_error(f"needs a size, and `{operand.text}` is none", "500MB, 2GiB")
            return size
        return operand


def _make_constant(value: Any) -> Callable[[FilteredRun], Any]:
    return lambda _: value


def _write(value: Any) -> str:
    """Write a value as YAML would."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return value if isinstance(value, str) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _split_unit(value: Any) -> tuple[float, str] | None:
    """Split `5ep` into number and unit; None for anything else."""
    text = value.text if isinstance(value, _Quantity) else value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]+)", text) if isinstance(text, str) else None
    return None if match is None else (float(match[1]), match[2])


def _is_equal(a: Any, b: Any) -> bool:
    if isinstance(a, _Quantity) or isinstance(b, _Quantity):
        left, right = _split_unit(a), _split_unit(b)
        return left is not None and left == right
    if _is_number(a) and _is_number(b):
        return bool(a == b or (a != a and b != b))  # noqa: PLR0124  NaN is what is asked for by `nan`
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_is_equal, a, b))
    return type(a) is type(b) and bool(a == b)


def _make_order(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def test(a: Any, b: Any) -> bool:
        if isinstance(a, _Quantity) or isinstance(b, _Quantity):
            left, right = _split_unit(a), _split_unit(b)
            return left is not None and right is not None and left[1] == right[1] and compare(left[0], right[0])
        comparable = (_is_number(a) and _is_number(b)) or (isinstance(a, str) and isinstance(b, str))
        return comparable and compare(a, b)

    return test


def _has_member(a: Any, b: Any) -> bool:
    """Return whether `a` is a member of the list `b`, or a part of the text `b`."""
    if isinstance(b, list):
        return any(_is_equal(a, member) for member in b)
    return isinstance(a, str) and isinstance(b, str) and a in b


_SIGNS: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: _is_equal,
    ast.NotEq: lambda a, b: not _is_equal(a, b),
    ast.Lt: _make_order(operator.lt),
    ast.LtE: _make_order(operator.le),
    ast.Gt: _make_order(operator.gt),
    ast.GtE: _make_order(operator.ge),
    ast.In: _has_member,
    ast.NotIn: lambda a, b: not _has_member(a, b),
}
