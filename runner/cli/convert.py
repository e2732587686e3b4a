"""`python -m runner convert FILE --trust [--out OUT]`: convert a pickled model to a file of tensors.

The one place that unpickles, that is, runs whatever code the file asks for: by hand, and in a process of its own.
"""

import pickle
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import Option, Verb
from runner.core.errors import ConfigError, Mistake
from runner.model.pretrained.unpickle import count_tensors

VERBS = (
    Verb(
        "convert",
        words=("FILE",),
        options=(
            Option("--trust", "let the file run its code: unpickling does"),
            Option("--out", "the file of tensors, otherwise FILE.state_dict.pt beside it", "OUT"),
            Option("--main", "module that stands for the script that pickled the model", "MODULE"),
        ),
        takes_overrides=False,
    ),
)


def main(argv: Sequence[str]) -> int:
    """Convert a file and verify that it opens without unpickling; return 1 on failure.

    Raises:
        ConfigError: no such file, no `--trust`, or the output exists already.
    """
    file, out, main_module = parse_arguments(argv)
    command = [sys.executable, "-m", "runner.model.pretrained.unpickle", str(file), str(out), main_module]
    child = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  this module
    if child.returncode:
        last = child.stderr.strip().splitlines()[-1:] or [f"it ended with the status {child.returncode}"]
        print(f"{file} could not be unpickled: {last[0]}", file=sys.stderr)
        return 1
    from runner.model.pretrained.files import LocatedWeights, find_state, read

    print(child.stdout, end="")
    raw = read(LocatedWeights(out))
    try:
        state, _ = find_state(raw)
    except ConfigError as error:  # several, or none by itself: which is for who loads it to say
        count = count_tensors(raw)
        print(f"{count} tensors in {out}; to load from it: {error.mistakes[0].remedy or error.mistakes[0].rule}")
        return 0 if count else 1
    print(f"{len(state)} tensors in {out}")
    return 0


def parse_arguments(argv: Sequence[str]) -> tuple[Path, Path, str]:
    """Parse a command line into file, output and `__main__` module; raise ConfigError as `main`."""
    given = VERBS[0].parse(argv)
    file = Path(given.words[0])
    out = Path(given.get("--out") or file.with_name(f"{file.stem}.state_dict.pt"))
    mistakes = []
    if not file.is_file():
        mistakes.append(Mistake("FILE", "must be a file", str(file), kind="file"))
    if "--trust" not in given:
        again = f"python -m runner convert {shlex.quote(str(file))} --trust"
        rule = "must be given: unpickling runs whatever code the file holds"
        mistakes.append(Mistake("--trust", rule, remedy=f"if you trust it: `{again}`", kind="missing"))
    if not out.parent.is_dir():
        mistakes.append(Mistake("--out", "must be in a folder that exists", str(out), kind="file"))
    if out.exists():
        mistakes.append(Mistake("--out", "must not exist yet", str(out), kind="file"))
    if mistakes:
        raise ConfigError(mistakes)
    return file, out, given.get("--main", "")


# `torch.load` takes a module for `pickle_module`; this one is as Python's but for the class above.
load, loads, dump, dumps = pickle.load, pickle.loads, pickle.dump, pickle.dumps


UnpicklingError = pickle.UnpicklingError
