"""Address of recorded things: a word names a run, a job, a sweep, an experiment, a record or a filter."""

import json
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runner.config.suggestions import find_nearest
from runner.core import safe_io
from runner.core.errors import ConfigError, Kind, Mistake
from runner.sweep.ledger import FILE

AddressKind = Literal["run", "job", "sweep", "experiment", "record", "filter"]


SAID: dict[AddressKind, str] = {
    "run": "a run directory",
    "job": "a job of a sweep, SWEEP:12",
    "sweep": "the folder of a sweep",
    "experiment": "an experiment",
    "record": "a record, NAME.record.json",
    "filter": "a filter of runs, 'status == completed'",
}


ROOT = Path("outputs")


RECORD = ".record.json"


MOST_LETTERS = 255  # of a file's name


MOST_JOBS = 100_000  # that one word may list


_JOB_WORD = re.compile(r"(?P<sweep>.+):(?P<jobs>\d+(-\d+)?(,\d+(-\d+)?)*)")


_OPERATORS = re.compile(r"==|!=|<|>|~|\b(and|or|not|in)\b")


@dataclass(frozen=True)
class Address:
    """Thing that a word of the command line names.

    Attributes:
        word: as it was given.
        kind: see `AddressKind`.
        runs: run directories: one of a run, those of the jobs, all of a sweep in the order of their numbers.
        numbers: of the jobs, in the order of `runs`; of a job and a sweep.
        sweep: folder of the sweep; of a job and a sweep.
        file: of a record, or of an experiment that is a file.
        overrides: arguments that compose an experiment.
    """

    word: str
    kind: AddressKind
    runs: tuple[Path, ...] = ()
    numbers: tuple[int, ...] = ()
    sweep: Path | None = None
    file: Path | None = None
    overrides: tuple[str, ...] = ()


def find_address(word: str, kinds: Collection[AddressKind], *, name: str = "RUN") -> Address:
    """Find the thing that a word names; `kinds` are those that the verb takes, `name` is for errors.

    A path counts before a name: a run directory, a sweep's folder, a record, an experiment's file; then the name of a
    run or a sweep below `outputs`, then the name of an experiment; else a filter. Nothing is read but names.

    Raises:
        ConfigError: it names nothing, several things, or a thing of another kind.
    """
    try:
        found = _find(word, name)
    except OSError:  # a line of overrides, longer than a file's name can be
        found = _find_overrides(word)
    if found is None and "filter" in kinds and _OPERATORS.search(word):
        found = Address(word, "filter")
    if found is None:
        raise ConfigError([_make_unknown_mistake(word, kinds, name)])
    if found.kind not in kinds:
        rule = f"must be {_join_kinds(kinds)}, but is {SAID[found.kind]}"
        raise ConfigError(
            [Mistake(name, f"{rule}: {word}", where=f"argument `{word}`", remedy=_suggest_other(found, kinds))]
        )
    return found


def locate_run(word: str) -> Path:
    """Locate the run that a word names: a run directory, its name, or a job of a sweep, SWEEP:12.

    A word that names nothing stays a path, for whoever reads it to refuse.

    Raises:
        ConfigError: it names several jobs.
    """
    try:
        found = find_address(word, ("run", "job"))
    except ConfigError:
        return Path(word)
    if len(found.runs) != 1:
        rule = f"must be one run, and names {len(found.runs)} jobs"
        raise ConfigError([Mistake("RUN", rule, word, f"argument `{word}`", kind="conflict")])
    return found.runs[0]


def is_run_directory(folder: Path) -> bool:
    """Return whether a folder is a run directory, as `RecordedRun` decides, without reading a file."""
    if (folder / "config.yaml").exists():
        return not (folder / FILE).is_file()
    return (folder / ".hydra" / "config.yaml").is_file() and any((folder / "checkpoints").glob("step_*.pt"))


def list_jobs(sweep: Path) -> dict[int, Path]:
    """Map job number to directory for every job of a sweep that has one."""
    names = (entry for entry in sweep.iterdir() if re.fullmatch(r"\d+_[0-9a-f]{8}", entry.name))
    found = {int(path.name.partition("_")[0]): path for path in names if path.is_dir() and not path.is_symlink()}
    return dict(sorted(found.items()))


def find_sweep(word: str) -> Path | None:
    """Find the folder of a sweep by its path, or by its name below `outputs/<name>/` where that is unique.

    Raises:
        ConfigError: several sweeps have that name.
    """
    folder = Path(word)
    if (folder / FILE).is_file():
        return folder
    named = [file.parent for file in ROOT.glob(f"*/*/{FILE}") if file.parent.name == word]
    return _require_one(named, word, "SWEEP")


def find_named_folder(word: str) -> Path | None:
    """Find the run or the sweep below `outputs` that has a name; None where there is none.

    Raises:
        ConfigError: several have it.
    """
    if len(word) > MOST_LETTERS or not re.fullmatch(r"[\w.+=-]+", word):
        return None
    return _require_one(_list_named_runs(word), word, "RUN") or find_sweep(word)


def _find(word: str, name: str) -> Address | None:
    path = Path(word)
    for given in (path, path.parent) if path.name in ("config.yaml", "result.json", "checkpoints") else (path,):
        if (given / FILE).is_file():
            return _make_sweep(word, given)
        if is_run_directory(given):
            return _make_run(word, given)
    if word.endswith(RECORD):
        return Address(word, "record", file=path) if path.is_file() else _find_experiment_record(word)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return _make_experiment(word, path)
    if (match := _JOB_WORD.fullmatch(word)) and (sweep := find_sweep(match["sweep"])):
        return _make_jobs(word, sweep, match["jobs"], name)
    if "/" not in word and (run := _require_one(_list_named_runs(word), word, name)):
        return _make_run(word, run)
    if sweep := find_sweep(word):
        return _make_sweep(word, sweep)
    option = word.removeprefix("experiment=")
    if option in _list_experiments() and " " not in option:
        return Address(word, "experiment", file=_find_option_file(option), overrides=(f"experiment={option}",))
    return _find_overrides(word)


def _find_overrides(word: str) -> Address | None:
    """Read a word as a command line of overrides, `'experiment=digits_mlp optimizer.lr=0.1'`."""
    try:
        words = shlex.split(word)
    except ValueError:  # a quote that is not closed
        return None
    if not words or not all(re.match(r"[~+]*[A-Za-z_][\w.@/-]*=(?!=)", part) for part in words):
        return None
    return Address(word, "experiment", overrides=tuple(words))


def _make_run(word: str, folder: Path) -> Address:
    if re.fullmatch(r"\d+_[0-9a-f]{8}", folder.name) and (folder.parent / FILE).is_file():
        return Address(word, "run", (folder,), (int(folder.name.partition("_")[0]),), folder.parent)
    return Address(word, "run", (folder,))


def _make_sweep(word: str, folder: Path) -> Address:
    jobs = list_jobs(folder)
    return Address(word, "sweep", tuple(jobs.values()), tuple(jobs), folder)


def _make_jobs(word: str, sweep: Path, listed: str, name: str) -> Address:
    """Make the address of jobs by their numbers, `3`, `0-4` or `0,3,6`; refuse one that is not there."""
    there, numbers = list_jobs(sweep), dict[int, None]()
    for part in listed.split(","):
        first, _, last = part.partition("-")
        if len(part) > 20 or int(last or first) - int(first) > MOST_JOBS:
            raise ConfigError([Mistake(name, f"must name at most {MOST_JOBS:,} jobs", word, f"argument `{word}`")])
        numbers |= dict.fromkeys(range(int(first), int(last or first) + 1))
    if missing := [number for number in numbers if number not in there]:
        shown = ", ".join(map(str, missing[:5])) + ", …" * (len(missing) > 5)
        known = f"{min(there)} to {max(there)}" if there else "none"
        rule = f"names a job without a directory: {shown}"
        where, remedy = f"argument `{word}`", f"{sweep} has the jobs {known}"
        raise ConfigError([Mistake(name, rule, where=where, remedy=remedy, kind="file")])
    return Address(word, "job", tuple(there[number] for number in numbers), tuple(numbers), sweep)


def _make_experiment(word: str, file: Path) -> Address:
    """Make the address of an experiment's file, which must be an option of the group `experiment`."""
    option = next((name for name, known in _list_experiments().items() if known.resolve() == file.resolve()), "")
    if not option:
        rule, where = "must lie in conf/experiment, so that it composes", f"argument `{word}`"
        raise ConfigError([Mistake("experiment", rule, word, where, "move it there", kind="file")])
    return Address(word, "experiment", file=file, overrides=(f"experiment={option}",))


def _find_experiment_record(word: str) -> Address | None:
    for folder in _list_experiment_folders():
        if (folder / word).is_file():
            return Address(word, "record", file=folder / word)
    return None


def _list_experiment_folders() -> list[Path]:
    from runner.core.paths import find_our_conf

    return [Path("conf/experiment"), find_our_conf() / "experiment"]


def _list_experiments() -> dict[str, Path]:
    """Map the name of each experiment to its file; those of the working directory come first."""
    found: dict[str, Path] = {}
    for folder in _list_experiment_folders():
        for file in sorted(folder.rglob("*.yaml")):
            found.setdefault(str(file.relative_to(folder).with_suffix("")), file)
    return found


def _find_option_file(option: str) -> Path | None:
    return _list_experiments().get(option)


def _list_named_runs(word: str) -> list[Path]:
    if not re.fullmatch(r"[\w.+=-]+", word) or not ROOT.is_dir():
        return []
    return [path for pattern in ("*", "*/*") for path in ROOT.glob(f"{pattern}/{word}") if is_run_directory(path)]


def _require_one(found: Sequence[Path], word: str, name: str) -> Path | None:
    if len(found) > 1:
        rule, remedy = f"must be one, but {len(found)} are called {word}", ", ".join(map(str, found[:5]))
        raise ConfigError([Mistake(name, rule, where=f"argument `{word}`", remedy=remedy, kind="conflict")])
    return found[0] if found else None


def _list_near(word: str) -> dict[str, str]:
    """Map the nearest of all names to how it is written; empty where none is near."""
    known: dict[str, str] = {}
    for pattern in ("*/*", "*/*/*"):
        for path in ROOT.glob(f"{pattern}/config.yaml") if ROOT.is_dir() else ():
            known |= {str(path.parent): str(path.parent), path.parent.name: str(path.parent)}
    for path in ROOT.glob(f"*/*/{FILE}") if ROOT.is_dir() else ():
        known |= {str(path.parent): str(path.parent), path.parent.name: str(path.parent)}
    known |= {name: name for name in _list_experiments()}
    near = find_nearest(word.rstrip("/"), known)
    return {near: known[near]} if near else {}


def _make_unknown_mistake(word: str, kinds: Collection[AddressKind], name: str) -> Mistake:
    path, near = Path(word), next(iter(_list_near(word).values()), "")
    kind: Kind = "file"
    if len(word) > MOST_LETTERS:
        rule = f"must be {_join_kinds(kinds)}, and is too long for a name"
    elif path.is_dir():
        rule = f"must be {_join_kinds(kinds)}, but is a folder that is none"
        inside = sorted(path.glob("*/config.yaml"))[-1:] or sorted(path.glob("*/*/config.yaml"))[-1:]
        near = str(inside[0].parent) if inside else near
    elif path.exists():
        rule = f"must be {_join_kinds(kinds)}, but is another file"
    else:
        rule = f"must be {_join_kinds(kinds)}, and there is none of that name"
    remedy = f"did you mean `{near}`?" if near else "`python -m runner ls` lists the runs"
    return Mistake(name, rule, word, f"argument `{word}`", remedy, near, kind)


def _suggest_other(found: Address, kinds: Collection[AddressKind]) -> str:
    if found.kind == "sweep" and "job" in kinds and found.numbers:
        return f"name one of its jobs: `{found.word.rstrip('/')}:{found.numbers[0]}`"
    if found.kind == "filter" and "run" in kinds:
        return "`python -m runner ls FILTER` lists the runs that it selects"
    return ""


def _join_kinds(kinds: Collection[AddressKind]) -> str:
    *rest, last = [SAID[kind] for kind in SAID if kind in kinds]
    return " or ".join(filter(None, [", ".join(rest), last]))


def read_record(file: Path) -> dict[str, object]:
    """Read a record's file within limits. Raises ConfigError where it is no JSON object."""
    try:
        record = safe_io.read_json(file)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError([Mistake("record", f"cannot be read: {why}", str(file), kind="file")]) from error
    if not isinstance(record, dict):
        rule = f"must be a JSON object, but is {json.dumps(record)[:40]}"
        raise ConfigError([Mistake("record", rule, where=str(file), kind="file")])
    return record
