"""`python -m runner report SWEEP | DIR… --html[=FILE] [--plots DIR]`: report runs in tables and plots."""

from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import JSON, Option, ParsedArguments, Verb
from runner.core.errors import ConfigError, Mistake
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE
from runner.sweep.report import table
from runner.sweep.report.write import report

HTML = Option("--html", "write one HTML file of sweeps and runs, to be looked at", "FILE", default="")
PLOTS = Option("--plots", "with --html: write each plot as PNG and SVG, too", "FOLDER")

VERBS = (
    Verb(
        "report",
        words=("SWEEP",),
        options=(JSON, HTML, PLOTS),
        takes_overrides=False,
        more="[DIR…]",
        about="Show the results of a sweep, finished or running, as a table; or any sweeps and runs as an HTML page.",
        examples=(
            ("report outputs/digits_cnn/sweep_1f0c", "the table; report.csv, report.json, curves.png"),
            ("report outputs/digits_cnn/sweep_1f0c --html=report.html", "a page to be looked at"),
        ),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Print the table, or JSON with `--json`, and write the report into the sweep's folder.

    With `--html` write a page of any sweeps and runs instead.

    Raises:
        ConfigError: no sweep is named, or what is none.
    """
    given = VERBS[0].parse(argv)
    if HTML.name in given:
        return write_page(given)
    if PLOTS.name in given:
        remedy = "add --html; the table's own plot is curves.png"
        raise ConfigError([Mistake(PLOTS.name, "needs --html", remedy=remedy, kind="conflict")])
    if given.overrides:
        rule = f"must be one, but there are {1 + len(given.overrides)}: `{' '.join([*given.words, *given.overrides])}`"
        raise ConfigError([Mistake("SWEEP", rule, remedy="with --html several are reported together")])
    found = report(Path(given.words[0]), say=(lambda _: None) if given.as_json else print)
    if given.as_json:
        print_json(table.as_json(found))
    return EXIT_DONE


def write_page(given: ParsedArguments) -> int:
    """Write the HTML report and say where it is."""
    from runner.sweep.report.html.write import write_html

    file, plots = given.get(HTML.name), given.get(PLOTS.name)
    written = write_html([*given.words, *given.overrides], Path(file) if file else None, Path(plots) if plots else None)
    said = {"html": str(written.file), "runs": written.runs, "bytes": written.size, "notes": list(written.notes)}
    if given.as_json:
        print_json(said | {"plots": list(map(str, written.plots))})
        return EXIT_DONE
    for note in written.notes:
        print(make_printable(f"note: {note}"))
    if written.plots:
        print(make_printable(f"{len(written.plots)} plots in {plots}"))
    runs = f"{written.runs:,} run{'s' * (written.runs != 1)}"
    print(make_printable(f"{runs}, {written.size / 1e6:.1f} MB: {written.file}"))
    return EXIT_DONE
