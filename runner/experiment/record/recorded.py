"""Config of an existing run: read from its files, and overridden."""

import sys
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from runner.config import document
from runner.config.check.check import Check, parse, to_resolved_data
from runner.config.check.commands import TRUST, drop_recorded_command
from runner.config.composed import Composed
from runner.config.expansion import ExpansionLimit, limit_expansion
from runner.config.origins import Layers
from runner.config.schema import Config
from runner.config.suggestions import find_nearest
from runner.core.errors import ABSENT, ConfigError, Mistake
from runner.core.escape import make_printable, quote_shell_word
from runner.core.safe_io import refuse_foreign

Keys = tuple[str, ...]


def load_recorded_config(
    folder: Path,
    overrides: Sequence[str] = (),
    trust: Sequence[str] = (),
    *,
    verb: str = "resume",
    data_folders: Sequence[str] = (),
    say: Callable[[str], object] = lambda text: sys.stderr.write(f"{make_printable(text)}\n"),
) -> tuple[Config, str]:
    """Load the config of the run in `folder` and its YAML with interpolations; apply `overrides`.

    Where one of the two files is missing or damaged the other one takes its place, and `say` is told. A record is
    judged like a composed config: it may come from a stranger, and what it names is trusted by `trust` alone, whatever
    was trusted when it was recorded.

    Args:
        folder: a run directory.
        overrides: `key=value`, values in YAML; a leading `+` or `++` is allowed.
        trust: patterns of names trusted on the command line.
        verb: of the command, for the remedy.
        data_folders: folders elsewhere that the user has named for data that a dataset downloads by itself.
        say: told what is made up for.

    Raises:
        ConfigError: the folder is no run or leads elsewhere, an override is wrong, or the config with it.
    """
    if not is_run(folder):
        raise ConfigError([make_no_run_mistake(folder, verb)])
    whole = read_config_files(folder, say)
    if not overrides:
        config = check_record(whole.source, whole.data, trust, data_folders)
        _drop_command(config, overrides, trust, verb, say)
        return config, OmegaConf.to_yaml(whole.unresolved)
    unresolved = whole.unresolved
    for override in overrides:
        key, separator, _ = override.lstrip("+").partition("=")
        if not separator:
            raise ConfigError([Mistake(override, "must be `key=value`", where=f"argument `{override}`", kind="syntax")])
        try:
            unresolved = OmegaConf.merge(unresolved, OmegaConf.from_dotlist([override.lstrip("+")]))
        except (OmegaConfBaseException, YAMLError) as error:
            raise ConfigError([Mistake(key, str(error), where=f"argument `{override}`", kind="syntax")]) from error
    config = check_record(whole.interpolated, unresolved, trust, data_folders)
    _drop_command(config, overrides, trust, verb, say)
    return config, OmegaConf.to_yaml(unresolved)


def _drop_command(
    config: Config, overrides: Sequence[str], trust: Sequence[str], verb: str, say: Callable[[str], object]
) -> None:
    """Drop a recorded command, and tell whoever would have waited for it."""
    if drop_recorded_command(config.on_event, overrides, trust) and verb == "resume":
        say(f"on_event.command of the record is not run: give it again, or add `--trust {TRUST}`")


def check_record(
    source: document.Document, config: Any, trust: Sequence[str], data_folders: Sequence[str] = ()
) -> Config:
    """Check a record: plain data as it is, or a config whose interpolations are resolved first.

    Raises:
        ConfigError: a key, a name, a slot or an argument is wrong.
    """
    composed = _compose(source, OmegaConf.create())
    if OmegaConf.is_config(config):
        composed = _compose(source, config)
    else:
        composed.__dict__["_resolution"] = (deepcopy(config), [], [])  # `${…}` in what was resolved is text
    checked = Check(composed, tuple(trust), data_folders=tuple(data_folders))
    if mistakes := checked.of_a_record():
        raise ConfigError(mistakes)
    return checked.config


def _compose(source: document.Document, tree: Any) -> Composed:
    return Composed(tree, OmegaConf.create(), {}, [], Layers.of_a_file(source, Path.cwd()))


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run directory, even if its `config.yaml` is lost."""
    if (folder / "config.yaml").exists():
        return True
    return (folder / ".hydra" / "config.yaml").is_file() and any((folder / "checkpoints").glob("step_*.pt"))


def make_no_run_mistake(given: Path, verb: str) -> Mistake:
    """Make the mistake of a path that is no run directory; suggest the run that is meant, if known."""
    command = f"python -m runner {verb}"
    rule = "must be a run directory (one with a config.yaml)" if given.is_dir() else "must be a run directory"
    inside = next((parent for parent in given.parents if is_run(parent)), None)
    if inside is not None:  # a checkpoint, or another file or folder of a run
        checkpoint = f" --checkpoint {quote_shell_word(str(given))}" if verb == "evaluate" and given.is_file() else ""
        line = f"{command} {quote_shell_word(str(inside))}{checkpoint}"
        return Mistake(
            "RUN", rule, str(given), remedy=f"it is in the run {inside}: `{line}`", suggestion=str(inside), kind="file"
        )
    runs = [file.parent for pattern in ("*", "*/*", "*/*/*") for file in given.glob(f"{pattern}/config.yaml")]
    runs = [run for run in runs if run.name != ".hydra"]
    if runs:
        newest = max(runs, key=lambda run: (run.stat().st_mtime_ns, run.name))
        line = f"{command} {quote_shell_word(str(newest))}"
        remedy = f"the newest of the {len(runs)} run{'s' * (len(runs) != 1)} in it: `{line}`"
        return Mistake("RUN", rule, str(given), remedy=remedy, suggestion=str(newest), kind="file")
    beside = [file.parent for file in given.absolute().parent.glob("*/config.yaml")]
    near = find_nearest(given.name, [run.name for run in beside])
    if near:
        path = given.parent / near
        return Mistake("RUN", rule, str(given), remedy=f"did you mean `{path}`?", suggestion=str(path), kind="file")
    if given.is_dir():
        return Mistake(
            "RUN",
            rule,
            str(given),
            remedy="no run was begun in it, or it has lost all that says what it was",
            kind="file",
        )
    known = [file.parent for file in Path("outputs").glob("*/*/config.yaml")]
    near = find_nearest(given.name, [run.name for run in known])
    for run in known:
        if run.name == near:
            return Mistake("RUN", rule, str(given), remedy=f"did you mean `{run}`?", suggestion=str(run), kind="file")
    remedy = f"the runs are below outputs/<name>/: `{command} outputs/<name>/<run>`"
    return Mistake("RUN", rule, str(given), remedy=remedy, kind="file")


@dataclass(frozen=True)
class RecordedConfig:
    """Config of a run directory, as far as its files can be read.

    Attributes:
        data: plain, resolved.
        unresolved: the same with interpolations.
        source: the file that `data` is from.
        interpolated: the file that `unresolved` is from.
    """

    data: dict[str, Any]
    unresolved: Any
    source: document.Document
    interpolated: document.Document


def read_config_files(folder: Path, say: Callable[[str], object]) -> RecordedConfig:
    """Read the two config files of a run, unchecked; each stands in for a lost or damaged other one.

    Raises:
        ConfigError: neither of the two files can be read, or something in the folder leads elsewhere.
    """
    refuse_foreign(folder)
    written, kept = folder / "config.yaml", folder / ".hydra" / "config.yaml"
    (source, wrong), (interpolated, amiss) = _read(written, plain=True), _read(kept)
    data, config = None, None
    if source is not None:
        try:
            config = to_resolved_data(parse(deepcopy(source.data)))
            data = source.data
        except ConfigError as error:
            data, wrong = _read_hand_edited(written), _format_first_mistake(error)
    other = None
    if interpolated is not None and (data is None or (config is not None and _is_incomplete(data, config))):
        other, wrong_too = _resolve_interpolations(interpolated)
        amiss = wrong_too or amiss
    if data is not None and other is not None:  # some keys are not there: of an older version, or cut off?
        lost = [keys for keys, was, now in find_differences(config, other) if _is_absent(data, keys) and was != now]
        if lost:
            data, wrong = None, f"it lacks {'.'.join(lost[0])}"
    if data is not None and source is not None:
        if interpolated is None:
            say(
                f"{kept} {_describe_loss(amiss)}: overrides are applied to {written}, whose interpolations are resolved"
            )
            return RecordedConfig(data, OmegaConf.create(deepcopy(data)), source, source)
        return RecordedConfig(data, OmegaConf.create(interpolated.data), source, interpolated)
    if other is not None and interpolated is not None:
        say(f"{written} {_describe_loss(wrong)}: the config is taken from {kept}")
        return RecordedConfig(other, OmegaConf.create(interpolated.data), interpolated, interpolated)
    rule = f"cannot be read: {wrong}"
    checkpoint = quote_shell_word(str(folder / "checkpoints" / "last.pt"))
    load = "torch.load(sys.argv[1], weights_only=True)['config']"
    code = f'python -c "import sys, torch, yaml; print(yaml.safe_dump({load}, sort_keys=False))"'
    line = f"{code} {checkpoint} > {quote_shell_word(str(written))}"
    remedy = f"nor can {kept} ({amiss}); a checkpoint holds it too: {line}"
    raise ConfigError([Mistake(str(written), rule, remedy=remedy, kind="file")])


def _resolve_interpolations(interpolated: document.Document) -> tuple[dict[str, Any] | None, str]:
    """Resolve the interpolations of a file within limits; None and the reason if it is no config."""
    composed = _compose(interpolated, OmegaConf.create(interpolated.data))
    try:
        if composed.unresolvable:
            raise ConfigError(composed.unresolvable)
        return to_resolved_data(parse(composed.config)), ""
    except ConfigError as error:
        return None, _format_first_mistake(error)


def _read_hand_edited(file: Path) -> Any:
    """Reread a config with OmegaConf's YAML (1e-3 is a number); None if it stays invalid."""
    read, _ = _read(file)
    try:
        if read is not None:
            parse(deepcopy(read.data))
            return read.data
    except ConfigError:
        pass
    return None


def _describe_loss(why: str) -> str:
    return f"cannot be used ({why})" if why != "missing" else "is missing"


def _read(file: Path, *, plain: bool = False) -> tuple[document.Document | None, str]:
    """Read the mapping in a YAML file; None and the reason if there is none."""
    try:
        read = document.load_record(file, plain=plain)
    except FileNotFoundError:
        return None, "missing"
    except OSError as error:
        return None, error.strerror or str(error)
    if read.mistake is not None:
        line = (read.mistake.where or "").rpartition(":")[2]
        return None, f"{read.mistake.rule}{f', line {line}' if line.isdigit() else ''}"
    if _has_odd_key(read.data):
        return None, "it has a key that is neither a text nor a number"
    return (read, "") if read.data else (None, "it holds no mapping")


def _has_odd_key(data: Any) -> bool:
    """Return whether a mapping, however deep, has a key that OmegaConf refuses, such as null."""
    if isinstance(data, dict):
        return any(not isinstance(key, str | int | float) or _has_odd_key(value) for key, value in data.items())
    return isinstance(data, list) and any(map(_has_odd_key, data))


def _format_first_mistake(error: ConfigError) -> str:
    mistake = error.mistakes[0]
    return f"{mistake.key} {mistake.rule}"


def _is_incomplete(data: Any, full: Any) -> bool:
    """Return whether a recorded config lacks a key of the full config."""
    if isinstance(data, dict) and isinstance(full, dict):
        return any(name not in data or _is_incomplete(data[name], value) for name, value in full.items())
    return False


def _is_absent(data: Any, keys: Keys) -> bool:
    for key in keys:
        if not isinstance(data, dict) or key not in data:
            return True
        data = data[key]
    return False


def resolve_record(unresolved: Any) -> Any:
    """Resolve a record's interpolations; raise ConfigError for one that cannot be followed."""
    try:
        with limit_expansion():
            return OmegaConf.to_container(unresolved, resolve=True)
    except ExpansionLimit as error:
        raise ConfigError([Mistake("config", "has interpolations that go on", kind="record")]) from error
    except OmegaConfBaseException as error:
        raise ConfigError([Mistake(str(error.full_key), str(error.msg), kind="record")]) from error


def find_differences(before: Any, after: Any, at: Keys = ()) -> Iterator[tuple[Keys, Any, Any]]:
    """Yield the keys in which two configs differ, with both values; `ABSENT` where a config has none."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in [*before, *(name for name in after if name not in before)]:
            yield from find_differences(before.get(name, ABSENT), after.get(name, ABSENT), (*at, str(name)))
    elif before != after or type(before) is not type(after):
        yield at, before, after
