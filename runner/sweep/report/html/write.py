"""Writing of the HTML report, and of its plots as PNG and SVG files for a paper."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.core.files import write_text
from runner.sweep.report.html.content import make_content, select_reported
from runner.sweep.report.html.page import PendingVega, make_page, refuse_other_file
from runner.sweep.report.html.plots import refuse_other_folder, write_plots
from runner.sweep.runs.listing import RunList

NAME = "report.html"


@dataclass(frozen=True)
class WrittenReport:
    """Report that was written.

    Attributes:
        file: the page.
        runs: number of runs in it.
        size: bytes of the page.
        notes: what was left out, and why, in words.
        plots: files of the plots.
    """

    file: Path
    runs: int
    size: int
    notes: Sequence[str]
    plots: Sequence[Path] = ()


def write_html(words: Sequence[str], file: Path | None = None, plots: Path | None = None) -> WrittenReport:
    """Write the page of the runs that words name.

    Args:
        words: folders, names, jobs and filters, as of `ls`.
        file: of the page; by default `report.html` in the one sweep or run, else in the working directory.
        plots: folder for each plot as PNG and SVG; None for none.

    Raises:
        ConfigError: there is no such run, the file is another one, or vl-convert is not installed.
    """
    if file is not None:
        refuse_other_file(file)
    vega = PendingVega()
    reported, listed = select_reported(words)
    file = file if file is not None else choose_folder(listed) / NAME
    refuse_other_file(file)
    if plots is not None:
        refuse_other_folder(plots)
    content = make_content(reported, listed)
    page = make_page(content, vega.collect())
    write_text(file, page)
    drawn, left_out = ([], []) if plots is None else write_plots(content, plots)
    return WrittenReport(file, len(reported.rows), len(page.encode()), [*content["notes"], *left_out], drawn)


def choose_folder(listed: RunList) -> Path:
    """Choose the folder of the report: the one folder that was named, else the working directory."""
    if len(listed.folders) == 1 and listed.folders[0].is_dir() and not listed.filters:
        return listed.folders[0]
    return Path()
