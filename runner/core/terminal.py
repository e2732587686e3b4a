"""Terminal: the line that stands there while torch is loaded."""

import sys


def print_loading_line() -> None:
    """Say on a terminal that torch is about to be loaded: for seconds nothing else is said."""
    if sys.stderr is not None and sys.stderr.isatty():
        sys.stderr.write("Reading the config, loading torch …\n")
        sys.stderr.flush()
