"""Stacks that a run has trained in, as its provenance records them, in words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.core import safe_io

SWITCH = "sweep.vectorize=off trains each job in a process of its own"  # what to do about a stack, in the record


def read_stacks(folder: Path) -> list[dict[str, Any]]:
    """Read the stacks of a run directory, the last one last; empty where it has always trained alone."""
    try:
        record = safe_io.read_json(folder / "provenance.json")
        entries = record.get("stacks") or []
        return [
            {"step": int(entry["step"]), "row": int(entry["row"]), "jobs": [*map(str, entry["jobs"])], "off": SWITCH}
            for entry in entries
        ]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # no record, or a damaged one
        return []


def describe_stacks(stacks: Sequence[Mapping[str, Any]]) -> str:
    """Describe in a line in which stacks a run has trained; empty without one."""
    if not stacks:
        return ""
    steps = ", ".join(f"from step {entry['step']:,} on as one of {len(entry['jobs'])}" for entry in stacks)
    return f"trained as one model with other jobs, {steps}: equal to rounding to a job alone ({SWITCH})"
