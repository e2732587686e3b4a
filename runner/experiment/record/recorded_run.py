"""Recorded run as one object: config, provenance, result, metrics and checkpoints of its directory."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.schema import Config
from runner.core import safe_io
from runner.core.escape import make_printable
from runner.experiment.record import provenance
from runner.experiment.record.recorded import is_run, load_recorded_config

if TYPE_CHECKING:
    from runner.train.checkpoint import Checkpoints

UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError)  # of a damaged record


def print_to_stderr(text: str) -> None:
    """Print a line to stderr, control characters escaped."""
    print(make_printable(text), file=sys.stderr)


@dataclass(frozen=True)
class RecordedRun:
    """Run directory, each part read when it is asked for, within limits and without following links.

    It may come from a stranger, or be damaged: a part that cannot be read is None or empty.
    """

    folder: Path

    def exists(self) -> bool:
        """Return whether the folder is a run directory."""
        return is_run(self.folder)

    def load_config(
        self,
        overrides: Sequence[str] = (),
        trust: Sequence[str] = (),
        *,
        verb: str = "resume",
        say: Callable[[str], object] = print_to_stderr,
    ) -> tuple[Config, str]:
        """Load the checked config and its unresolved YAML, see `load_recorded_config`."""
        return load_recorded_config(self.folder, overrides, trust, verb=verb, say=say)

    def read_part(self, name: str) -> Any:
        """Read one of the JSON files as it is; None if it is missing or damaged."""
        try:
            return safe_io.read_json(self.folder / name)
        except (OSError, ValueError):
            return None

    def read_result(self) -> dict[str, Any]:
        """Read `result.json`; empty if it is missing or damaged."""
        result = self.read_part("result.json")
        return result if isinstance(result, dict) else {}

    def read_final_metrics(self) -> dict[str, float] | None:
        """Read the metrics of a completed run; None if it is not completed, or its result is damaged."""
        result = self.read_result()
        try:
            metrics = {str(name): float(value) for name, value in result["metrics"].items()}
            return metrics if result["status"] == "completed" else None
        except UNREADABLE:
            return None

    def read_saved_steps(self) -> int:
        """Read the steps of an ended run from its result; 0 if they are not known."""
        result = self.read_result()
        try:
            return int(result["steps"]) if result["status"] in ("completed", "interrupted", "pruned") else 0
        except UNREADABLE:
            return 0

    def read_provenance(self) -> dict[str, Any] | None:
        """Read `provenance.json`; None if it is missing, damaged, or cannot be compared with another."""
        record = self.read_part("provenance.json")
        try:
            provenance.find_changes(record | get_latest_facts(record), record)
            known = (record["data"], record["plan"], record.get("plan_kinds"))
        except UNREADABLE:
            return None
        return record if all(isinstance(part, dict | None) for part in known) else None

    def read_events(self) -> list[dict[str, Any]]:
        """Read the events of `metrics.jsonl`, one object per line.

        Raises:
            OSError: the file cannot be read.
            ValueError: a line is no JSON.
        """
        lines = safe_io.read_bytes(self.folder / "metrics.jsonl", safe_io.MAX_LOG_BYTES).splitlines()
        return [safe_io.parse_json(line) for line in lines]

    def open_checkpoints(self, **settings: Any) -> "Checkpoints":
        """Open the checkpoints, with settings of `Checkpoints`."""
        from runner.train.checkpoint import Checkpoints  # torch takes a second

        return Checkpoints(self.folder / "checkpoints", **settings)


def get_latest_facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that the latest inexact resume recorded anew; empty without one."""
    facts: dict[str, Any] = record.get("resumed", [{}])[-1].get("facts", {})
    return facts
