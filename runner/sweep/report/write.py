"""The report of a sweep, where people look for it: the console and three files beside its ledger."""

import json
from collections.abc import Callable
from pathlib import Path

from runner.core.escape import printable
from runner.core.files import write_text
from runner.sweep.report import curves, table
from runner.sweep.report.results import Report, gather


def report(folder: Path, say: Callable[[str], object] = print) -> Report:
    """Say the table and write `report.csv`, `report.json` and `curves.png`; at the end of a sweep and at any time.

    Where the files cannot be written, or matplotlib is not there, that is said, and the table is all the same.

    Raises:
        ConfigError: it is no folder of a sweep.
    """
    gathered = gather(folder)
    say(printable(table.text(gathered)))
    for line in write(gathered):
        say(printable(line))
    return gathered


def write(gathered: Report) -> list[str]:
    """Write the three files; what there is to say about them."""
    folder = gathered.folder
    written, said = [folder / "report.csv", folder / "report.json"], []
    try:
        write_text(written[0], table.as_csv(gathered))
        write_text(written[1], json.dumps(table.as_json(gathered), indent=1) + "\n")
        if curves.draw(gathered, folder / "curves.png"):
            written.append(folder / "curves.png")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        said.append(curves.MISSING)
    except OSError as error:
        return [f"the report could not be written to {folder}: {error.strerror or error}"]
    return [f"\nin {folder}: {', '.join(file.name for file in written)}", *said]
