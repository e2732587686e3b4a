"""`python -m runner convert FILE --trust [--out OUT]`: convert a pickled model to a file of tensors.

The one place that unpickles, that is, runs whatever code the file asks for: by hand, and in a process of its own.
"""

import pickle
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.core.errors import ConfigError, Mistake
from runner.model.pretrained.unpickle import count_tensors

USAGE = "python -m runner convert FILE --trust [--out OUT] [--main MODULE]"


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
    from runner.model.pretrained.contents import find_state
    from runner.model.pretrained.files import read
    from runner.model.pretrained.locate import LocatedWeights

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
    arguments, options, positional = iter(argv), {"--out": "", "--main": ""}, []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name in options:
            options[name] = value or next(arguments, "")
        elif argument != "--trust":
            positional.append(argument)
    if len(positional) != 1:
        whole = shlex.quote(" ".join(positional))
        remedy = (
            f"a path with spaces is quoted: `python -m runner convert {whole} --trust`" if positional[1:] else USAGE
        )
        raise ConfigError([Mistake("FILE", "must be one file", remedy=remedy)])
    file = Path(positional[0])
    out = Path(options["--out"]) if options["--out"] else file.with_name(f"{file.stem}.state_dict.pt")
    mistakes = []
    if not file.is_file():
        mistakes.append(Mistake("FILE", "must be a file", str(file)))
    if "--trust" not in argv:
        again = f"python -m runner convert {shlex.quote(str(file))} --trust"
        rule = "must be given: unpickling runs whatever code the file holds"
        mistakes.append(Mistake("--trust", rule, remedy=f"if you trust it: `{again}`"))
    if not out.parent.is_dir():
        mistakes.append(Mistake("--out", "must be in a folder that exists", str(out)))
    if out.exists():
        mistakes.append(Mistake("--out", "must not exist yet", str(out)))
    if mistakes:
        raise ConfigError(mistakes)
    return file, out, options["--main"]


# `torch.load` takes a module for `pickle_module`; this one is as Python's but for the class above.
load, loads, dump, dumps = pickle.load, pickle.loads, pickle.dump, pickle.dumps


UnpicklingError = pickle.UnpicklingError
