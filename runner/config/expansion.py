"""Bound the work and the length of interpolations while OmegaConf resolves them.

What a text names can be read off it only where the name stands there: `${oc.select:"b${n}"}` and `${a.${n}}` put it
together. So evaluations are counted where OmegaConf makes them: a bomb of 300 bytes would make 2^30.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf.base import Container

MAX_EVALUATIONS = 1_000  # of a config; one whose name is put together takes 2 ms


MAX_CHARACTERS = 10_000_000  # that they give, all together


class ExpansionLimit(BaseException):
    """Stop of a resolution that has no end; no `Exception`, which OmegaConf would wrap at every level."""


@contextmanager
def limit_expansion() -> Iterator[None]:
    """Stop OmegaConf inside after MAX_EVALUATIONS interpolations, or MAX_CHARACTERS.

    Raises:
        ExpansionLimit: there are more.
    """
    resolve, spent = Container.resolve_parse_tree, {"evaluations": 0, "characters": 0}

    def resolve_counted(container: Container, *args: Any, **options: Any) -> Any:
        spent["evaluations"] += 1
        resolved = None if spent["evaluations"] > MAX_EVALUATIONS else resolve(container, *args, **options)
        spent["characters"] += len(resolved) if isinstance(resolved, str) else 0
        if spent["evaluations"] > MAX_EVALUATIONS or spent["characters"] > MAX_CHARACTERS:
            raise ExpansionLimit
        return resolved

    Container.resolve_parse_tree = resolve_counted  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Container.resolve_parse_tree = resolve  # type: ignore[method-assign]
