"""Strategies of `pretrained`: which tensors of a file the model takes, and how much must load.

A new strategy is one object in STRATEGIES, and its name in `runner.config.schema.Pretrained`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.core.errors import Mistake
from runner.core.patterns import compile_pattern, diagnose_no_match, find_nearest
from runner.model.pretrained.plan import Options


@dataclass
class Selection:
    """Selection of tensors under way: what a strategy reads, and the lists that take its mistakes."""

    options: Options
    names: Mapping[str, str]  # the file's names after prefixes and rename rules → as they are in the file
    target: Mapping[str, Any]  # the model's tensors by name
    mistakes: list[Mistake]
    without_effect: list[Mistake]
    chosen: set[str] | None = None  # the names that patterns let through, of which a rename may make more load


@dataclass(frozen=True)
class Strategy:
    """Rule for taking tensors over, one object per strategy.

    Attributes:
        select: maps the model's names to the file's for the tensors to load.
        must_load_all: whether every tensor of the model must load, and every one of the file be used.
        allows: the options that the strategy reads, of `include`, `exclude` and `layers`.
        needs: those of them that must be given.
    """

    select: Callable[[Selection], dict[str, str]]
    must_load_all: bool = False
    allows: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


def select_all(given: Selection) -> dict[str, str]:
    """Select every tensor of the file whose name the model has."""
    given.chosen = set(given.names)
    return {name: given.names[name] for name in given.names if name in given.target}


def select_matching(given: Selection) -> dict[str, str]:
    """Select tensors whose names match `include` and do not match `exclude`."""
    include = _match_names("include", given.options.include, given)
    exclude = _match_names("exclude", given.options.exclude, given)
    chosen = [name for name in given.names if name in include and name not in exclude]
    given.chosen = set(chosen)
    return {name: given.names[name] for name in chosen if name in given.target}


def _match_names(key: str, patterns: Sequence[str], given: Selection) -> set[str]:
    matched: set[str] = set()
    for index, pattern in enumerate(patterns):
        expression = compile_pattern(f"pretrained.{key}[{index}]", pattern, given.mistakes)
        if expression is None:
            continue
        hits = {name for name in given.names if expression.fullmatch(name)}
        if not hits:
            mistake = diagnose_no_match(f"pretrained.{key}[{index}]", pattern, list(given.names), "a name of the file")
            given.without_effect.append(mistake)
        elif key == "include" and pattern != ".*" and not hits & given.target.keys():
            rule = f"must match a name of the model too, but matches {', '.join(sorted(hits)[:3])} of the file only"
            given.without_effect.append(Mistake(f"pretrained.{key}[{index}]", rule, pattern, kind="no-match"))
        matched |= hits
    return matched


def select_layers(given: Selection) -> dict[str, str]:
    """Select the tensors and layers that `layers` names, each perhaps under another name."""
    layers = given.options.layers
    wanted = layers if isinstance(layers, Mapping) else {name: name for name in layers}
    pairs: dict[str, str] = {}
    for index, (source, target) in enumerate(wanted.items()):
        key = f"pretrained.layers.{source}" if isinstance(layers, Mapping) else f"pretrained.layers[{index}]"
        below = {n: n.removeprefix(source) for n in given.names if n == source or n.startswith(f"{source}.")}
        fitting = {target + rest: given.names[name] for name, rest in below.items() if target + rest in given.target}
        if not fitting:
            given.without_effect.append(_diagnose_no_layer(key, source, target, given, found=bool(below)))
        for name, original in fitting.items():
            if pairs.get(name, original) != original:
                rule = f"must not give `{name}` two sources, `{pairs[name]}` and `{original}`"
                given.mistakes.append(Mistake(key, rule, kind="conflict"))
            pairs[name] = original
    return pairs


def _diagnose_no_layer(key: str, source: str, target: str, given: Selection, *, found: bool) -> Mistake:
    swapped = source != target and any(name == source or name.startswith(f"{source}.") for name in given.target)
    if not found and swapped:
        remedy = f"the file's name stands first: `{target}: {source}`"
        return Mistake(key, "must be a tensor or layer of the file", source, remedy=remedy, kind="no-match")
    place, text, known = ("model", target, list(given.target)) if found else ("file", source, list(given.names))
    known += sorted({name[:end] for name in known for end, letter in enumerate(name) if letter == "."})
    near = find_nearest(text, known)
    remedy = f"did you mean `{near}`?" if near else f"it has {', '.join(known[:8])}"
    rule = f"must be a tensor or layer of the {place}"
    return Mistake(key, rule, text, remedy=remedy, suggestion=near, kind="no-match")


STRATEGIES: Mapping[str, Strategy] = {
    "full": Strategy(select_all, must_load_all=True),
    "filtered": Strategy(select_matching, allows=("include", "exclude")),
    "partial": Strategy(select_matching, allows=("include", "exclude")),
    "layers": Strategy(select_layers, allows=("layers",), needs=("layers",)),
}


def check_options(options: Options) -> list[Mistake]:
    """Find options without effect with the strategy, and options that it lacks."""
    strategy = STRATEGIES[options.strategy]
    given = {
        "layers": bool(options.layers),
        "include": list(options.include) != [".*"],
        "exclude": bool(options.exclude),
    }
    mistakes = []
    for key, is_given in given.items():
        takers = [name for name, other in STRATEGIES.items() if key in other.allows]
        if is_given and key not in strategy.allows:
            rule, remedy = f"has no effect with the strategy {options.strategy}", ""
            if key == "layers":
                remedy = f"`pretrained.strategy={takers[0]}` takes them"
            else:
                rule += f": {' and '.join(takers)} choose by pattern"
            mistakes.append(Mistake(f"pretrained.{key}", rule, remedy=remedy, kind="no-effect"))
        if key in strategy.needs and not is_given:
            rule = f"must name what the strategy {options.strategy} takes over"
            mistakes.append(Mistake(f"pretrained.{key}", rule, kind="missing"))
    return mistakes
