"""Types and rules that the fields of the schema are made of."""

import dataclasses
from dataclasses import field
from typing import Any, NewType

# A mapping with a `_target_` (a dotted path) and the arguments of that callable; `slot` in the metadata says what fits.
Component = NewType("Component", dict[str, Any])


# `5ep` (epochs, fractions allowed) or `500st` (optimizer steps).
Duration = NewType("Duration", str)


# A regular expression, matched with `re.fullmatch`.
Pattern = NewType("Pattern", str)


def make_field(default: Any = dataclasses.MISSING, **rules: Any) -> Any:
    """Make a schema field with its rules.

    Rules: `at_least`, `at_most`, `above`, `below` (numbers, inclusive or strict); `slot` (what a component must be);
    `regex` (what a string must fullmatch) and `like` (an example, said instead of it); `unbuilt` (a key of the contract
    whose feature does not exist yet: any value but the default is refused by name); `alias` (the key's name in YAML
    where it is a Python keyword); `may_be_zero` (a duration may be 0); `rest` (the field that takes every key the class
    does not name). A mutable default is copied for each instance.
    """
    if isinstance(default, dict | list):
        value = default
        return field(default_factory=value.copy, metadata=rules)
    if dataclasses.is_dataclass(default) and isinstance(default, type):
        return field(default_factory=default, metadata=rules)
    return field(default=default, metadata=rules)
