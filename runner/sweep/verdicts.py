"""Verdicts of a sweep: whether jobs of one architecture train as one model; the ledger keeps them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

OFF = "sweep.vectorize=off: a process each"


@dataclass
class Verdict:
    """Verdict about the jobs of one group.

    Attributes:
        as_one: whether they train as one model.
        why: the times that were compared, or the reason against it.
        by: `sweep.vectorize` of the sweep that decided.
        fits: jobs that the memory holds together, where that was too few; else 0.
        jobs: numbers of those that have trained in a stack.
    """

    as_one: bool
    why: str = ""
    by: str = "auto"
    fits: int = 0
    jobs: list[int] = field(default_factory=list)

    def describe(self, count: int, *, before: bool = False) -> str:
        """Describe in a line what it says of `count` jobs; `before` where an earlier invocation decided."""
        how = "as one model" if self.as_one else "alone"
        decided = ", as this sweep has decided before" if before else ""
        why = f": {self.why}" if self.why else ""
        remedy = OFF if self.as_one else "sweep.vectorize=on tries again" if before else ""
        line = f"vectorize: {count:,} job{'s' * (count != 1)} train {how}{decided}{why}"
        return f"{line} ({remedy})" if remedy else line


def encode_verdicts(verdicts: Mapping[str, Verdict]) -> dict[str, dict[str, Any]]:
    """Encode verdicts, by the key of their group, as plain data."""
    return {key: asdict(verdict) for key, verdict in verdicts.items()}


def read_verdicts(settings: Mapping[str, Any]) -> dict[str, Verdict]:
    """Read the verdicts among the settings of a sweep."""
    return {key: Verdict(**verdict) for key, verdict in (settings.get("stacks") or {}).items()}
