"""`python -m runner report SWEEP [--json]`: report the results of a sweep, finished or running."""

import json
from collections.abc import Sequence
from pathlib import Path

from runner.core.errors import ConfigError, Mistake
from runner.sweep.report import table
from runner.sweep.report.write import report

USAGE = "python -m runner report outputs/<name>/<sweep> [--json]"


def main(argv: Sequence[str]) -> int:
    """Print the table, or JSON with `--json`, and write the report into the sweep's folder.

    Raises:
        ConfigError: no sweep is named, or what is none.
    """
    words = [word for word in argv if word != "--json"]
    if len(words) != 1 or words[0].startswith("-"):
        rule = "is missing" if not words else f"must be one folder, but there is `{' '.join(words)}`"
        raise ConfigError([Mistake("SWEEP", rule, remedy=USAGE)])
    as_json = "--json" in argv
    found = report(Path(words[0]), say=(lambda _: None) if as_json else print)
    if as_json:
        print(json.dumps(table.as_json(found)))
    return 0
