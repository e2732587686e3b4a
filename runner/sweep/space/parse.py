"""Parse sweep overrides into axes: values, intervals, zips, seeds."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, ValueType
from hydra.core.override_parser.types import Sweep as Swept
from hydra.errors import HydraException

from runner.config.schema import Sweep
from runner.config.suggestions import find_nearest, format_suggestion
from runner.core.errors import ConfigError, Mistake
from runner.sweep.space import point_file
from runner.sweep.space.axes import Axis, AxisSetting, Interval, Space, draw_uniform

MAX_VALUES = 1_000_000  # of one key, and points of a grid: more is a mistake of typing


TAGS = ("log",)


OWN = ("sweep", "run", "hydra", "on_event")  # they are of the sweep as a whole, or of one directory


Parse = Callable[[str], Override]


def make_space(
    parse: Parse,
    arguments: Sequence[tuple[str, str]],
    settings: Sweep,
    origin: Callable[[str], str],
    cwd: Path,
    *,
    seed: int = 0,
    searched: bool = False,
) -> Space:
    """Make the space of a sweep.

    Args:
        parse: one argument in Hydra's grammar.
        arguments: each with the place that said it, empty for the command line; later ones replace earlier ones of the
            same key.
        settings: the sweep's own.
        origin: who set a key of `sweep`.
        cwd: where the file of points is looked for.
        seed: of the first replicate.
        searched: whether a search draws from the axes, so that they need not be enumerable.

    Raises:
        ConfigError: every argument and setting that cannot be enumerated or combined.
    """
    mistakes: list[Mistake] = []
    found: dict[str, AxisSetting | Axis | Interval] = {}
    for text, where in arguments:
        override, problem = None, ""
        try:
            override = parse(text)
            problem = _find_problem(override)
            if not problem:
                found[override.get_key_element()] = _parse_values(override, text, where, settings.random_seed)
        except (HydraException, ValueError, ZeroDivisionError) as error:
            problem = str(error).splitlines()[0]
        if problem:
            key = override.key_or_group if override is not None else text.partition("=")[0]
            mistakes.append(
                Mistake(key, f"cannot be enumerated: {problem}", where=where or f"argument `{text}`", kind="refused")
            )
    order = {element: position for position, element in enumerate(found)}
    fixed = [part for part in found.values() if isinstance(part, AxisSetting)]
    axes: list[Axis | Interval] = [part for part in found.values() if not isinstance(part, AxisSetting)]
    mistakes += _check_scales(axes, drawn=settings.random is not None or searched)
    axes, wrong = _zip_axes(axes, settings.zip, origin("sweep.zip"))
    mistakes += wrong
    if settings.points is not None:
        from_file, wrong = _read_file(parse, settings.points, origin("sweep.points"), cwd, [*fixed, *axes])
        mistakes += wrong
        axes += [from_file] if from_file else []
    seeds, wrong = _make_seeds(settings.seeds, origin("sweep.seeds"), axes, seed)
    space = Space(tuple(fixed), tuple(axes), seeds, settings.random, settings.random_seed, order)
    mistakes += wrong
    mistakes = mistakes or list(_check_count(space, settings, origin))
    if mistakes:
        raise ConfigError(mistakes)
    return space


def _find_problem(override: Override) -> str:
    """Return the reason why an argument cannot be one of a job's; empty if it can."""
    group = override.key_or_group.partition(".")[0].partition("/")[0]
    if group == "hydra":
        return "Hydra's own settings cannot be swept over"
    if group in OWN and override.is_sweep_override():
        return f"`{override.key_or_group}` cannot be swept over"
    return ""


def _parse_values(override: Override, text: str, where: str, seed: int) -> AxisSetting | Axis | Interval:
    """Parse the values of one argument; raise ValueError or HydraException if there are none."""
    key, element = override.key_or_group + (f"@{override.package}" if override.package else ""), _get_element(override)
    if not override.is_sweep_override():
        return AxisSetting(key, override.value(), text, where)
    value, said = override.value(), where or f"argument `{text}`"
    log = _is_logarithmic(value)
    if isinstance(value, IntervalSweep):
        return _parse_interval(value, key, element, said, log=log)
    shuffled = bool(getattr(value, "shuffle", False))
    if shuffled:  # Hydra's own would be in another order each time
        override._value = replace(value, shuffle=False)  # type: ignore[type-var]  # noqa: SLF001
    raw = list(itertools.islice(override.sweep_iterator(), MAX_VALUES + 1))
    if shuffled:
        raw = [v for _, v in sorted(enumerate(raw), key=lambda pair: draw_uniform(seed, [key], -1 - pair[0]))]
    if not raw:
        raise ValueError("it has no value at all")
    if len(raw) > MAX_VALUES:
        raise ValueError(f"it has more than {MAX_VALUES:,} values")
    if log and not all(isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in raw):
        raise ValueError("a logarithmic scale has numbers above 0 only")
    members = [
        _make_member(key, element, v, where or said * (override.value_type is ValueType.RANGE_SWEEP)) for v in raw
    ]
    return Axis((key,), tuple(members), log, said)


def _is_logarithmic(value: Any) -> bool:
    """Return whether a value is tagged `log`; raise ValueError for another tag."""
    tags = value.tags if isinstance(value, Swept) else set()
    if unknown := sorted(tags - set(TAGS)):
        right = find_nearest(unknown[0], TAGS)
        raise ValueError(
            f"`{unknown[0]}` is no tag that the runner knows: {format_suggestion(right) or 'there is `log`'}"
        )
    return "log" in tags


def _parse_interval(value: IntervalSweep, key: str, element: str, where: str, *, log: bool) -> Interval:
    low, high = value.start, value.end
    if low is None or high is None or not low < high:
        raise ValueError(f"an interval goes from a number up to a larger one, not from {low} to {high}")
    if log and low <= 0:
        raise ValueError(f"a logarithmic scale begins above 0, not at {low}")
    return Interval(key, element, low, high, where, isinstance(low, int) and isinstance(high, int), log)


def _get_element(override: Override) -> str:
    return str(override.get_key_element())


def _make_member(key: str, element: str, raw: Any, where: str) -> tuple[AxisSetting]:
    value = Override._convert_value(raw)  # noqa: SLF001  Hydra's own way to read a value, and to write one:
    text = Override._get_value_element_as_str(raw)  # noqa: SLF001
    if "${" in str(value):  # whose braces it would escape
        text = point_file.format_value(value)
    return (AxisSetting(key, value, f"{element}={text}", where),)


def _check_scales(axes: Iterable[Axis | Interval], *, drawn: bool) -> Iterator[Mistake]:
    """Yield the mistakes of intervals and log scales where no points are drawn."""
    if drawn:
        return
    for axis in axes:
        remedy = "draw from it with `sweep.random=20`"
        if isinstance(axis, Interval):
            rule = "cannot be enumerated: an interval has no list of values"
            others = f"let a search choose (`sweep=optuna_asha`), or list them: `{axis.key}=0.1,0.2`"
            yield Mistake(axis.key, rule, where=axis.where, remedy=f"{remedy}, {others}")
        elif axis.log:
            rule = "has a scale (`tag(log, …)`) without effect where every value is taken"
            yield Mistake(
                axis.keys[0], rule, where=axis.where, remedy=f"{remedy}, or leave the tag out", kind="no-effect"
            )


def _zip_axes(
    axes: list[Axis | Interval], asked: list[str] | list[list[str]], where: str
) -> tuple[list[Axis | Interval], list[Mistake]]:
    """Zip the axes that change together into one axis, at the place of the first."""
    groups = [group for group in asked if isinstance(group, list)] or ([list(map(str, asked))] if asked else [])
    by_key = {axis.keys[0]: axis for axis in axes}
    mistakes: list[Mistake] = []
    taken: set[str] = set()
    for group in groups:
        wrong = [
            *(_check_zippable(key, by_key, taken | set(group[:i]), where) for i, key in enumerate(group)),
            Mistake("sweep.zip", "needs at least two keys", group, where) if len(group) < 2 else None,
        ]
        together = [axis for key in group if isinstance(axis := by_key.get(key), Axis)]
        lengths = {axis.keys[0]: len(axis.members) for axis in together}
        if not any(wrong) and len(set(lengths.values())) > 1:
            said = ", ".join(f"`{key}` has {length}" for key, length in lengths.items())
            wrong.append(
                Mistake("sweep.zip", f"needs as many values of each key: {said}", where=where, kind="conflict")
            )
        mistakes += [mistake for mistake in wrong if mistake]
        taken |= set(group)
        if not any(wrong):
            members = tuple(
                tuple(itertools.chain(*row)) for row in zip(*(axis.members for axis in together), strict=True)
            )
            place = min(axes.index(axis) for axis in together)
            axes = [axis for axis in axes if axis not in together]
            axes.insert(place, Axis(tuple(group), members))
    return axes, mistakes


def _check_zippable(key: str, axes: Mapping[str, Axis | Interval], taken: set[str], where: str) -> Mistake | None:
    if key in taken:
        return Mistake("sweep.zip", f"names `{key}` twice", where=where, kind="conflict")
    axis = axes.get(key)
    if axis is None:
        right = find_nearest(key, axes)
        rule = f"names `{key}`, which is not swept over"
        return Mistake(
            "sweep.zip", rule, where=where, remedy=format_suggestion(right), suggestion=right, kind="conflict"
        )
    if isinstance(axis, Interval):
        return Mistake(
            "sweep.zip", f"names `{key}`, whose values are an interval and no list", where=where, kind="conflict"
        )
    return None


def _read_file(
    parse: Parse, name: str, where: str, cwd: Path, others: Sequence[AxisSetting | Axis | Interval]
) -> tuple[Axis | None, list[Mistake]]:
    """Read the points of a file as one axis."""
    rows, mistakes = point_file.read(cwd / name, name, where)
    elsewhere = {key for part in others for key in ([part.key] if isinstance(part, AxisSetting) else part.keys)}
    members: list[tuple[AxisSetting, ...]] = []
    for row in rows:
        settings: list[AxisSetting] = []
        for key, text in row.arguments:
            try:
                override = parse(text)
                problem = (
                    _find_problem(override) if key.partition(".")[0] not in OWN else f"`{key}` cannot be swept over"
                )
                problem = "it has several values" if not problem and override.is_sweep_override() else problem
            except HydraException as error:
                problem = f"it cannot be read as a value: {str(error).splitlines()[0]}"
            bare = key.lstrip("+~")
            if not problem and bare in elsewhere:
                problem = "it is given on the command line too, and one of the two would have no effect"
            if problem:
                mistakes.append(Mistake(key, f"cannot be set by a point: {problem}", where=row.where, kind="refused"))
            else:
                settings.append(AxisSetting(bare, override.value(), text, row.where))
        members.append(tuple(settings))
    if not rows:
        return None, mistakes
    keys = tuple(dict.fromkeys(setting.key for member in members for setting in member))
    return Axis(keys, tuple(members)), mistakes


def _make_seeds(
    count: int | None, where: str, axes: Sequence[Axis | Interval], first: int
) -> tuple[Axis | None, list[Mistake]]:
    if count is None:
        return None, []
    if any("seed" in axis.keys for axis in axes):
        rule = "must not stand beside a sweep over `seed`: both are replicates"
        return None, [Mistake("sweep.seeds", rule, count, where, kind="conflict")]
    if count > MAX_VALUES:
        return None, [Mistake("sweep.seeds", f"must be at most {MAX_VALUES:,}", count, where)]
    values = range(first, first + count)
    return Axis(("seed",), tuple((AxisSetting("seed", v, f"seed={v}", where),) for v in values)), []


def _check_count(space: Space, settings: Sweep, origin: Callable[[str], str]) -> Iterator[Mistake]:
    """Yield the mistakes in the number of points."""
    axes = [*space.axes, *([space.seeds] if space.seeds else [])]
    total = math.prod(len(axis.members) for axis in axes if isinstance(axis, Axis))
    if space.random is None:
        if settings.random_seed:
            rule = "has no effect without `sweep.random`"
            yield Mistake(
                "sweep.random_seed", rule, settings.random_seed, origin("sweep.random_seed"), kind="no-effect"
            )
        if total > MAX_VALUES:
            yield Mistake("sweep", f"must have at most {MAX_VALUES:,} points, but has {total:,}", where="")
        return
    where = origin("sweep.random")
    if settings.points is not None:
        rule = "must not stand beside `sweep.points`: its points are listed, not drawn"
        yield Mistake("sweep.random", rule, space.random, where, kind="conflict")
    elif not space.axes:
        remedy = "give it something: `optimizer.lr='tag(log, interval(0.001, 0.1))'`"
        yield Mistake("sweep.random", "has nothing to draw from", space.random, where, remedy, kind="conflict")
    elif space.random > MAX_VALUES:
        yield Mistake("sweep.random", f"must be at most {MAX_VALUES:,}", space.random, where)
    elif (total := sum(1 for _ in space.combinations())) < space.random:
        rule = f"must be at most {total}: there are no more different points"
        yield Mistake("sweep.random", rule, space.random, where, suggestion=str(total))
