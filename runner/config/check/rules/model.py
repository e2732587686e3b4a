"""Rules for `init` and `freeze`: rules and patterns that an earlier one shadows."""

from collections.abc import Iterator
from typing import Any

from runner.config import schema
from runner.config.check.rules.rule import Finding
from runner.core.errors import Mistake


def find_shadowed_patterns(key: str, patterns: list[Any]) -> Iterator[Finding]:
    """Yield a finding for each pattern that an earlier one hides."""
    for index, pattern in enumerate(patterns):
        earlier = next((i for i, other in enumerate(patterns[:index]) if other in (pattern, ".*")), None)
        if earlier is not None:
            rule = f"has no effect: `{key}.{earlier}` matches the same names first"
            yield Finding(
                Mistake(f"{key}.{index}", rule, pattern, remedy="leave it out", kind="no-effect"), (f"{key}.{earlier}",)
            )


def find_shadowed_rules(rules: dict[str, schema.InitRule | None]) -> Iterator[Finding]:
    """Find init rules whose tensors an earlier rule sets for every module that could match."""
    seen: list[tuple[str, schema.InitRule]] = []
    for name, rule in rules.items():
        if rule is None:
            continue
        for earlier, other in seen:
            wider = (
                other.module in (None, rule.module)
                and other.name in (None, ".*", rule.name)
                and other.last <= rule.last
            )
            if wider and not other.last and rule.tensors and set(rule.tensors) <= set(other.tensors):
                text = f"has no effect: `init.rules.{earlier}` comes first for all of its tensors"
                yield Finding(
                    Mistake(f"init.rules.{name}", text, remedy="put it first, or leave it out", kind="no-effect")
                )
                break
        seen.append((name, rule))
