"""Output of a sweep's report: the console, and three files beside the ledger."""

import json
from collections.abc import Callable
from pathlib import Path

from runner.core.escape import make_printable
from runner.core.files import write_text
from runner.sweep.report import curves, table
from runner.sweep.report.results import Report, gather


def report(folder: Path, say: Callable[[str], object] = print) -> Report:
    """Print the table and write `report.csv`, `report.json` and `curves.png`; return the report.

    Where the files cannot be written, or matplotlib is not there, that is said, and the table is all the same.

    Raises:
        ConfigError: it is no folder of a sweep.
    """
    gathered = gather(folder)
    say(make_printable(table.format_report(gathered)))
    for line in write(gathered):
        say(make_printable(line))
    return gathered


def write(gathered: Report) -> list[str]:
    """Write the three files; return the lines that tell the user about them."""
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
