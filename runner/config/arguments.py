"""Arguments that the shell and Hydra's grammar take, and what is meant by those that they do not take."""

import itertools
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from runner.config.origins import argument, schema_keys
from runner.config.parsing import all_keys, yaml_text
from runner.config.suggestions import ELSEWHERE, nearest, other_name
from runner.core.errors import Mistake

Parse = Callable[[str], Override]


# Options of Hydra's own that the runner does not take, by their long name.
_HYDRAS = {
    "--config-name": "an experiment is chosen by {chosen}",
    "--config-dir": "`./conf` is searched beside the runner's own; another folder by `{searched}`",
    "--config-path": "`./conf` is searched beside the runner's own; another folder by `{searched}`",
    "--run": "leave it out: without a verb the runner runs",
    "--experimental-rerun": "a run is continued by `python -m runner resume RUN`",
    "--resolve": "put `--cfg job` beside it",
    "--package": "put `--cfg job` beside it",
}


_SHORT = {"-cn": "--config-name", "-cd": "--config-dir", "-cp": "--config-path", "-r": "--run", "-p": "--package"}


_TAKES_VALUE = ("--config-name", "--config-dir", "--config-path", "--experimental-rerun", "--package")


def for_shell(text: str) -> str:
    """An argument as a shell takes it."""
    if re.fullmatch(r"[\w@%+=:,./-]+", text):
        return text
    if "'" not in text:
        return f"'{text}'"
    if not re.search(r"[$`!]", text):
        escaped = re.sub(r'(["\\])', r"\\\1", text)
        return f'"{escaped}"'
    return shlex.quote(text)


def written(key: str, value: str, parse: Parse) -> str:
    """`key=value` as Hydra's grammar takes it; empty where it takes none."""
    for text in _spellings(value):
        try:
            override = parse(f"{key}={text}")
        except HydraException:
            continue
        if not override.is_sweep_override() and (text != _quoted(value) or override.value() == value):
            return f"{key}={text}"
    return ""


def _spellings(value: str) -> list[str]:
    plain = re.sub(r"^\((.*)\)$", r"[\1]", value.strip())  # a tuple of Python is a list
    read: Any = None
    if plain[:1] in ("{", "["):
        try:
            read = yaml.safe_load(plain)
        except yaml.YAMLError:
            read = None
    spelled = [_in_grammar(read)] if isinstance(read, dict | list) else []
    return [value, *spelled, _quoted(value), "'" + value.replace("'", "\\'") + "'"]


def _quoted(value: str) -> str:
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)
    return '"' + re.sub(r"(\\+)$", r"\1\1", escaped) + '"'


def _in_grammar(value: Any) -> str:
    """Plain data in Hydra's grammar, whose keys have no quotes."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{_in_grammar(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_in_grammar, value)) + "]"
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z_][\w./-]*", value):
        return _quoted(value)
    return yaml_text(value)


def unread(text: str, error: HydraException, parse: Parse) -> Mistake:
    """What to say of an argument that is not in Hydra's grammar."""
    key, equals, value = text.partition("=")
    key = key.lstrip("+~")
    if text.startswith("-"):
        return flag(text, None, parse)
    if not equals:
        return valueless(text, None, parse)
    first, *more = str(error).splitlines()
    if first.startswith("Error parsing override") and more:  # what a function says is below
        first = re.sub(r"^\w+ while evaluating '.*': ", "", more[0])
    if first.startswith("LexerNoViableAlt"):
        first = "it has quotes or other characters that Hydra reads for itself"
    line = written(text.partition("=")[0], value, parse)
    remedy = f"quote it: {for_shell(line)}" if line else "write it in a file of `conf/experiment`"
    if key == "name" and re.search(r"[^\w.+=-]", value):  # it is that of a folder
        right = re.sub(r"[^\w.+=-]+", "_", value).strip("_.") or "run"
        remedy = f"a name has letters, digits and `._+=-`: `name={right}`"
    return Mistake(key or text, f"cannot be read as `key=value`: {first}", where=argument(text), remedy=remedy)


def valueless(text: str, value: str | None, parse: Parse) -> Mistake:
    """What to say of a key without `=`, and of the argument after it where that is its value."""
    if value is None:
        remedy = f"write `{text.lstrip('+~')}=VALUE`" if re.fullmatch(r"[\w.@/+~]+", text) else ""
        if text.endswith((".yaml", ".yml")):
            remedy = f"an experiment of `conf/experiment` is chosen by `experiment={_stem(text)}`"
        return Mistake(text, "cannot be read as `key=value`", where=argument(text), remedy=remedy)
    line = _set(text, value, parse)
    rule = "cannot be read as `key=value`: the value stands apart"
    where = argument(f"{text} {value}")
    return Mistake(text, rule, where=where, remedy=f"write `{for_shell(line)}`", suggestion=line)


def flag(text: str, value: str | None, parse: Parse) -> Mistake:
    """What to say of an argument with dashes before it: an option of Hydra's, or a key as other tools take it."""
    name, equals, own = text.partition("=")
    name = _SHORT.get(name, name)
    said = own if equals else value
    where = argument(text if value is None else f"{text} {value}")
    if name in _HYDRAS:
        chosen = f"`experiment={_stem(said)}`" if said else "`experiment=NAME`"
        searched = for_shell(f"hydra.searchpath=[file://{said or 'FOLDER'}]")
        remedy = _HYDRAS[name].format(chosen=chosen, searched=searched)
        return Mistake(name, "is an option of Hydra's that the runner does not take", where=where, remedy=remedy)
    key = name.lstrip("-")
    rule = "is no option of the runner; a key is set without dashes"
    if said is None and key.startswith("no-"):
        key, said = key.removeprefix("no-"), "false"
    if key in ("cuda", "gpu", "cpu", "mps") and said in (None, "true", "false"):
        key, said = "device", "cpu" if said == "false" else key
    line = f"{key_of(key)}=VALUE" if said is None else _set(key, said, parse)
    return Mistake(name, rule, where=where, remedy=f"write `{for_shell(line)}`", suggestion=line)


def pairs(arguments: Sequence[str]) -> dict[int, int]:
    """Where an argument is a key or option without `=`, and the next one its value: their indices."""
    found: dict[int, int] = {}
    for index, (text, after) in enumerate(itertools.pairwise(arguments)):
        if index in found.values() or "=" in text or re.match(r"[-~](?!\d|\.\d)", after) or _assigns(after):
            continue
        name = _SHORT.get(text, text)
        dashed = name.startswith("-") and (name in _TAKES_VALUE or name not in _HYDRAS)
        if dashed or is_key(text):
            found[index] = index + 1
    return found


def _assigns(text: str) -> bool:
    return re.match(r"[+~]{0,2}[\w.@/:-]+=", text) is not None


def is_key(text: str) -> bool:
    """Whether a word is a key of the runner's, or one that means such a key elsewhere."""
    return bool(
        text in schema_keys()
        or text in ELSEWHERE
        or text in all_keys()
        or (re.fullmatch(r"\w+(\.\w+)+", text) and text.partition(".")[0] in schema_keys())
    )


def key_of(name: str) -> str:
    """The key here that a name of another tool's command line means; itself where none is known."""
    plain = name.replace("-", "_")
    if plain in schema_keys() and other_name(plain) == "":
        return plain
    if "." in plain:
        return other_name(plain) or plain
    full = other_name(plain) or next(iter(all_keys().get(plain, ())), "")
    if not full and (near := nearest(plain, [*all_keys(), *ELSEWHERE])):
        full = other_name(near) or all_keys()[near][0]
    return full or plain


def _set(name: str, value: str, parse: Parse) -> str:
    """The argument that sets what another tool's `--name value` means."""
    key = key_of(name)
    if key.endswith(("duration", "_every")) and re.fullmatch(r"\d+", value):
        value += "st" if "step" in name else "ep"
    if key in ("device", "device.type"):
        return device(value) or f"{key}={value}"
    if key == "device.precision" and value in ("true", "True", "1"):
        value = "fp16" if "16" in name else "bf16"
    return written(key, value, parse) or f"{key}={value}"


def device(option: str) -> str:
    """The argument for a device as other tools name it; empty where it is none."""
    option = option.lower()
    number = re.fullmatch(r"(?:(?:gpu|cuda):?)?(\d+)", option)
    if number:
        return f"device.type=cuda:{number[1]}"
    known = {"gpu": "cuda", "nvidia": "cuda", "metal": "mps", "apple": "mps"}
    return f"device={known.get(option, option)}" if option in (*known, "cuda", "cpu", "mps", "auto") else ""


def without_effect(key: str, value: Any) -> str:
    """What to do in the place of a key of Hydra's that has no effect here; empty for any other."""
    if (key, value) in (("hydra.job.chdir", False), ("hydra.output_subdir", None)):  # as it is here
        return ""
    return next((remedy for name, remedy in _NO_EFFECT.items() if key == name or key.startswith(f"{name}.")), "")


NO_EFFECT = "has no effect here: the runner makes the folders and logs of its runs itself"


_FOLDERS = "`name=NAME` names a run, whose folder is outputs/NAME/DATE; `run=DIR` is a run's folder itself"


_OF_SWEEPS = "`name=NAME` names a sweep, whose folder is outputs/NAME/SWEEP; `sweep.id=ID` is the folder's own name"


_NO_EFFECT = {
    "hydra.run.dir": _FOLDERS,
    "hydra.sweep.dir": _OF_SWEEPS,
    "hydra.sweep.subdir": _OF_SWEEPS,
    "hydra.job.chdir": "leave it out: a run stays in the working directory, and paths are relative to it",
    "hydra.job.name": "write `name=NAME`",
    "hydra.output_subdir": "leave it out: the run's folder has `config.yaml`",
    "hydra.mode": "put `-m` before the arguments for a sweep",
    "hydra.job_logging": "see the keys of `log`",
    "hydra.hydra_logging": "see the keys of `log`",
    "hydra/job_logging": "see the keys of `log`",
    "hydra/hydra_logging": "see the keys of `log`",
}


def _stem(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml")
