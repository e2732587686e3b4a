"""`python -m runner ls [FILTER] [DIR] [--show NAMES] [--sort NAMES] [--sql QUERY]`: list runs."""

import sys
from collections.abc import Sequence

from runner.cli.options import JSON, Option, Verb
from runner.core.errors import ConfigError, Mistake
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE
from runner.sweep.runs import formats, sql
from runner.sweep.runs.listing import RunList, select_runs

SHOW = Option("--show", "further columns: keys and metrics, separated by commas", "NAMES", is_repeatable=True)
SORT = Option("--sort", "sort by these; -NAME from the greatest on", "NAMES", is_repeatable=True)
CSV = Option("--csv", "print CSV")
SQL = Option("--sql", "answer a query: 'select name, avg(objective) from runs group by name'", "QUERY")

VERBS = (
    Verb(
        "ls",
        options=(SHOW, SORT, JSON, CSV, SQL),
        takes_overrides=False,
        more="[FILTER] [DIR]",
        about="List runs, newest first, as a table, JSON, CSV or SQL.",
        examples=(
            ("ls", "all below outputs"),
            ("ls 'status == failed'", "by a filter"),
            (
                "ls 'optimizer.lr < 0.1 and val/accuracy > 0.9' --show optimizer.lr,seed --sort=-objective",
                "with columns",
            ),
            ("ls --sql 'select name, avg(objective) from runs group by name'", "a query"),
        ),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Print the runs below `outputs`, or below the folders that are named.

    Raises:
        ConfigError: a filter, a name or a query is wrong.
    """
    given = VERBS[0].parse(argv)
    query = given.get(SQL.name)
    if given.as_json and CSV.name in given:
        raise ConfigError([Mistake("--csv", "and --json contradict each other", remedy="give one", kind="conflict")])
    listed = select_runs(given.overrides, show=given.get_all(SHOW.name), sort=given.get_all(SORT.name))
    if query is not None:
        print_answer(listed, query, as_json=given.as_json, as_csv=CSV.name in given)
    elif given.as_json:
        print_json(formats.as_json(listed))
    elif CSV.name in given:
        print(formats.as_csv(listed), end="")
    else:
        print(make_printable(formats.format_table(listed)))
    for note in [] if given.as_json else listed.notes:
        print(make_printable(note), file=sys.stderr)
    return EXIT_DONE


def print_answer(listed: RunList, query: str, *, as_json: bool, as_csv: bool) -> None:
    """Print the answer of a query in one of three formats.

    Raises:
        ConfigError: there are also a filter or columns, or the query is wrong.
    """
    if listed.filters or listed.show or listed.folders:
        rule, remedy = "takes no filter, folder or column beside it", "write `where` and the names into the query"
        raise ConfigError([Mistake("--sql", rule, remedy=remedy, kind="conflict")])
    answer = sql.run_query(listed.tables, query)
    if as_json:
        print_json(answer.as_json())
    elif as_csv:
        print(formats.write_csv(answer.names, answer.rows), end="")
    else:
        rows = [list(map(formats.format_value, row)) for row in answer.rows]
        print(make_printable(formats.align_columns([answer.names, *rows])))
