"""Propose rename rules from a file's names to a model's, by common names, shapes and order."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

Shape = tuple[int, ...]


Rule = tuple[str, str]  # what `re.sub` looks for, and puts in its place


MOST_RULES = 30  # a longer list explains nothing


TRIED = 40  # candidates weighed in each round, those with the most votes


def apply(rules: Sequence[Rule], name: str) -> str:
    """Apply all rules to a name, in order. Raises re.error for a replacement that names no group."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def propose(source: Mapping[str, Shape], target: Mapping[str, Shape]) -> list[Rule]:
    """Propose rules that match more names of `source` to `target` with equal shape; greedy by gain.

    Args:
        source: the file's names and shapes.
        target: the model's.

    Returns:
        Rules in the order in which they apply; none where the names differ in no way that suffix and shape explain.
        No two names of `source` become one.
    """
    names = list(source)
    shapes = list(source.values())
    rules: list[Rule] = []
    while len(rules) < MOST_RULES:
        matched = _count_matched(names, shapes, target)
        best: tuple[int, int, int] = (0, 0, 0)  # gain, votes, brevity
        chosen: tuple[Rule, list[str]] | None = None
        for rule, votes in _collect_candidates(names, shapes, target):
            renamed = [re.sub(*rule, name) for name in names]
            if len(set(renamed)) < len(set(names)):
                continue
            worth = _count_matched(renamed, shapes, target) - matched, votes, -len(rule[0])
            if worth[0] > 0 and worth > best:
                best, chosen = worth, (rule, renamed)
        if chosen is None:
            break
        rules.append(chosen[0])
        names = chosen[1]
    return rules


def as_yaml(rules: Sequence[Rule]) -> str:
    """Format the rules as a block to paste into a config."""
    lines = [
        f"  - {{from: {_quote_single(pattern)}, to: {_quote_single(replacement)}}}" for pattern, replacement in rules
    ]
    return "\n".join(["pretrained:", "  rename:", *lines])


def as_argument(rules: Sequence[Rule]) -> str:
    """Format the rules as an override in Hydra's grammar, not yet quoted for a shell."""
    items = ", ".join(
        f"{{from: {_quote_double(pattern)}, to: {_quote_double(replacement)}}}" for pattern, replacement in rules
    )
    return f"pretrained.rename=[{items}]"


def _quote_single(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _quote_double(text: str) -> str:
    # Hydra keeps backslashes in quotes but before a quote.
    return '"' + text.replace('"', r"\"") + '"'


def _count_matched(names: Sequence[str], shapes: Sequence[Shape], target: Mapping[str, Shape]) -> int:
    return sum(target.get(name) == shape for name, shape in zip(names, shapes, strict=True))


def _collect_candidates(
    names: Sequence[str], shapes: Sequence[Shape], target: Mapping[str, Shape]
) -> list[tuple[Rule, int]]:
    """Collect rules from unused names to missing names of equal shape, the most votes first.

    Where several names are as like, their order decides: files and models list tensors in the order of registration.
    """
    sources: dict[Shape, list[str]] = defaultdict(list)
    for name, shape in zip(names, shapes, strict=True):
        if shape and target.get(name) != shape:  # a scalar's shape says nothing
            sources[shape].append(name)
    present = {name for name, shape in zip(names, shapes, strict=True) if target.get(name) == shape}
    targets: dict[Shape, list[str]] = defaultdict(list)
    for name, shape in target.items():
        if name not in present and shape in sources:
            targets[shape].append(name)
    votes: Counter[Rule] = Counter()
    for shape, wanted in targets.items():
        for rank, name in enumerate(wanted):
            ranked = sorted(
                enumerate(sources[shape]),
                key=lambda other: (*_score_likeness(other[1], name), -abs(other[0] - rank)),
                reverse=True,
            )
            for vote, (_, other) in zip((2, 1), ranked, strict=False):
                votes.update(dict.fromkeys(_generate_rules(other, name), vote))
    return votes.most_common(TRIED)


def _score_likeness(source: str, target: str) -> tuple[int, int, int]:
    """Score two names by their common ending, then equal numbers, then the common beginning."""
    first, second = source.split("."), target.split(".")
    numbers = zip(re.findall(r"\d+", source), re.findall(r"\d+", target), strict=False)
    return (
        _count_common(first[::-1], second[::-1]),
        sum(one == other for one, other in numbers),
        _count_common(first, second),
    )


def _count_common(first: Sequence[str], second: Sequence[str]) -> int:
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


def _generate_rules(source: str, target: str) -> Iterator[Rule]:
    """Generate rules for `source` → `target`: change the prefix, a part within, or the ending."""
    first, second = source.split("."), target.split(".")
    tail = min(_count_common(first[::-1], second[::-1]), len(first), len(second))
    old, new = first[: len(first) - tail], second[: len(second) - tail]
    head = _count_common(old, new)
    inner_old, inner_new = old[head:], new[head:]
    if tail:
        before, after = ".".join([*old, ""]), ".".join([*new, ""])
        yield f"^{re.escape(before)}", _escape_literal(after)
        yield from _generate_numbered("^", before, "", after)
        if not old:
            yield rf"^(?={re.escape(first[0])}\.)", _escape_literal(after)
        if head and inner_old:
            within = "." + ".".join([*inner_new, ""]) if inner_new else "."
            yield re.escape("." + ".".join([*inner_old, ""])), _escape_literal(within)
            yield from _generate_numbered("", "." + ".".join([*inner_old, ""]), "", within)
    elif head and inner_old and inner_new:
        ending = "." + ".".join(inner_old)
        yield f"{re.escape(ending)}$", _escape_literal("." + ".".join(inner_new))
        yield from _generate_numbered("", ending, "$", "." + ".".join(inner_new))


def _escape_literal(text: str) -> str:
    return text.replace("\\", r"\\")


def _generate_numbered(start: str, before: str, end: str, after: str) -> Iterator[Rule]:
    """Generate the rule that generalises each number common to both, in order, to any number."""
    old, new = re.split(r"(\d+)", before), re.split(r"(\d+)", after)  # numbers at the odd places
    places: dict[int, int] = {}  # place in `new` → place in `old`
    reached = 1
    for place in range(1, len(new), 2):
        found = next((other for other in range(reached, len(old), 2) if old[other] == new[place]), None)
        if found is not None:
            places[place], reached = found, found + 2
    if not places:
        return
    groups = {other: number for number, other in enumerate(sorted(places.values()), start=1)}
    pattern = "".join(r"(\d+)" if place in groups else re.escape(part) for place, part in enumerate(old))
    replacement = "".join(
        rf"\g<{groups[places[place]]}>" if place in places else _escape_literal(part) for place, part in enumerate(new)
    )
    yield f"{start}{pattern}{end}", re.sub(r"\\g<(\d+)>(?!\d)", r"\\\1", replacement)
