"""Command-line arguments: spelling in Hydra's grammar, and remedies for malformed ones."""

import itertools
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from runner.config.origins import format_argument, list_schema_keys
from runner.config.parsing import index_schema_keys
from runner.config.reading import format_yaml
from runner.config.suggestions import ELSEWHERE, find_nearest, translate_name
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


_RESUMES = ("resume", "resume_from", "resume_from_checkpoint", "ckpt", "ckpt_path", "checkpoint", "continue")


_TAKES_VALUE = ("--config-name", "--config-dir", "--config-path", "--experimental-rerun", "--package")


def quote_for_shell(text: str) -> str:
    """Quote an argument for a shell where it needs quotes."""
    if re.fullmatch(r"[\w@%+=:,./-]+", text):
        return text
    if "'" not in text:
        return f"'{text}'"
    if not re.search(r"[$`!]", text):
        escaped = re.sub(r'(["\\])', r"\\\1", text)
        return f'"{escaped}"'
    return shlex.quote(text)


def spell_override(key: str, value: str, parse: Parse) -> str:
    """Return `key=value` spelled in Hydra's grammar; empty where no spelling parses."""
    for text in _list_spellings(value):
        try:
            override = parse(f"{key}={text}")
        except HydraException:
            continue
        if not override.is_sweep_override() and (text != _quote(value) or override.value() == value):
            return f"{key}={text}"
    return ""


def _list_spellings(value: str) -> list[str]:
    plain = re.sub(r"^\((.*)\)$", r"[\1]", value.strip())  # a tuple of Python is a list
    read: Any = None
    if plain[:1] in ("{", "["):
        try:
            read = yaml.safe_load(plain)
        except yaml.YAMLError:
            read = None
    spelled = [_format_in_grammar(read)] if isinstance(read, dict | list) else []
    return [value, *spelled, _quote(value), "'" + value.replace("'", "\\'") + "'"]


def _quote(value: str) -> str:
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)
    return '"' + re.sub(r"(\\+)$", r"\1\1", escaped) + '"'


def _format_in_grammar(value: Any) -> str:
    """Format plain data in Hydra's grammar, whose keys have no quotes."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{_format_in_grammar(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_format_in_grammar, value)) + "]"
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z_][\w./-]*", value):
        return _quote(value)
    return format_yaml(value)


def diagnose_unreadable(text: str, error: HydraException, parse: Parse) -> Mistake:
    """Return the mistake for an argument that Hydra's grammar cannot parse."""
    key, equals, value = text.partition("=")
    key = key.lstrip("+~")
    if text.startswith("-"):
        return diagnose_flag(text, None, parse)
    if not equals:
        return diagnose_valueless(text, None, parse)
    first, *more = str(error).splitlines()
    if first.startswith("Error parsing override") and more:  # what a function says is below
        first = re.sub(r"^\w+ while evaluating '.*': ", "", more[0])
    if first.startswith("LexerNoViableAlt"):
        first = "it has quotes or other characters that Hydra reads for itself"
    name, plain = text.partition("=")[0].strip(), re.sub(r"^=+\s*", "", value)
    line = spell_override(name, plain, parse)
    if (name, plain) != (text.partition("=")[0], value) and line:
        rule = "cannot be read as `key=value`: it has a blank or a second `=` before its value"
        remedy = f"write `{quote_for_shell(line)}`"
        return Mistake(key.strip(), rule, where=format_argument(text), remedy=remedy, suggestion=line, kind="syntax")
    remedy = f"quote it: {quote_for_shell(line)}" if line else "write it in a file of `conf/experiment`"
    if key == "name" and re.search(r"[^\w.+=-]", value):  # it is that of a folder
        right = re.sub(r"[^\w.+=-]+", "_", value).strip("_.") or "run"
        remedy = f"a name has letters, digits and `._+=-`: `name={right}`"
    return Mistake(
        key or text,
        f"cannot be read as `key=value`: {first}",
        where=format_argument(text),
        remedy=remedy,
        kind="syntax",
    )


def diagnose_valueless(text: str, value: str | None, parse: Parse) -> Mistake:
    """Return the mistake for a key without `=`; `value` is the next argument if the key means it."""
    if value is None:
        remedy = f"write `{text.lstrip('+~')}=VALUE`" if re.fullmatch(r"[\w.@/+~]+", text) else ""
        colon = re.fullmatch(r"([\w.]+):\s*(.+)", text)
        if colon and is_key(colon[1]):  # as YAML writes it
            remedy = f"write `{quote_for_shell(_make_override(colon[1], colon[2], parse))}`"
        if text.endswith((".yaml", ".yml")):
            remedy = f"an experiment of `conf/experiment` is chosen by `experiment={_get_stem(text)}`"
        return Mistake(text, "cannot be read as `key=value`", where=format_argument(text), remedy=remedy, kind="syntax")
    key = text.rstrip("=:")
    line = _make_override(key, value.removeprefix("="), parse)
    rule = "cannot be read as `key=value`: the value stands apart"
    where = format_argument(f"{text} {value}")
    return Mistake(key, rule, where=where, remedy=f"write `{quote_for_shell(line)}`", suggestion=line, kind="syntax")


def diagnose_flag(text: str, value: str | None, parse: Parse) -> Mistake:
    """Return the mistake for an argument with leading dashes: an option of Hydra's, or a key."""
    name, equals, own = text.partition("=")
    name = _SHORT.get(name, name)
    said = own if equals else value
    where = format_argument(text if value is None else f"{text} {value}")
    if name in _HYDRAS:
        chosen = f"`experiment={_get_stem(said)}`" if said else "`experiment=NAME`"
        searched = quote_for_shell(f"hydra.searchpath=[file://{said or 'FOLDER'}]")
        remedy = _HYDRAS[name].format(chosen=chosen, searched=searched)
        return Mistake(
            name,
            "is an option of Hydra's that the runner does not take",
            where=where,
            remedy=remedy,
            kind="unknown-option",
        )
    key = name.lstrip("-")
    rule = "is no option of the runner; a key is set without dashes"
    if said is None and key.startswith("no-"):
        key, said = key.removeprefix("no-"), "false"
    if key.replace("-", "_") in _RESUMES:
        folder = re.sub(r"(/checkpoints)?/?[^/]*\.(pt|pth|ckpt)$", "", said or "") or "RUN"
        remedy = f"a run goes on by `python -m runner resume {quote_for_shell(folder)}`"
        return Mistake(name, rule, where=where, remedy=remedy, kind="unknown-option")
    if key in ("cuda", "gpu", "cpu", "mps") and said in (None, "true", "false"):
        key, said = "device", "cpu" if said == "false" else key
    line = f"{find_key(key)}=VALUE" if said is None else _make_override(key, said, parse)
    return Mistake(
        name, rule, where=where, remedy=f"write `{quote_for_shell(line)}`", suggestion=line, kind="unknown-option"
    )


def find_pairs(arguments: Sequence[str]) -> dict[int, int]:
    """Map the index of each key or option apart from its value to that value's index."""
    found: dict[int, int] = {}
    for index, text in enumerate(arguments[:-1]):  # `key = value`, `key= value`, `key =value`
        after = arguments[index + 1]
        at = index + 1 + (after == "=")
        split = text.endswith(("=", ":")) or after.startswith("=")
        if split and is_key(text.rstrip("=:")) and at < len(arguments) and not _is_assignment(arguments[at]):
            found[index] = at
    for index, (text, after) in enumerate(itertools.pairwise(arguments)):
        if (
            any(start <= index <= end for start, end in found.items())
            or "=" in text
            or re.match(r"[-~](?!\d|\.\d)", after)
            or _is_assignment(after)
        ):
            continue
        name = _SHORT.get(text, text)
        dashed = name.startswith("-") and (name in _TAKES_VALUE or name not in _HYDRAS)
        if dashed or is_key(text):
            found[index] = index + 1
    return found


def _is_assignment(text: str) -> bool:
    return re.match(r"[+~]{0,2}[\w.@/:-]+=", text) is not None


def is_key(text: str) -> bool:
    """Return whether a word is a schema key, a part of one, or another tool's name for one."""
    return bool(
        text in list_schema_keys()
        or text in ELSEWHERE
        or text in index_schema_keys()
        or (re.fullmatch(r"\w+(\.\w+)+", text) and text.partition(".")[0] in list_schema_keys())
    )


def find_key(name: str) -> str:
    """Translate an option name of another tool to a key; return it unchanged where none is known."""
    plain = name.replace("-", "_")
    if plain in list_schema_keys() and translate_name(plain) == "":
        return plain
    if "." in plain:
        return translate_name(plain) or plain
    full = translate_name(plain) or next(iter(index_schema_keys().get(plain, ())), "")
    if not full and (near := find_nearest(plain, [*index_schema_keys(), *ELSEWHERE])):
        full = translate_name(near) or index_schema_keys()[near][0]
    return full or plain


def _make_override(name: str, value: str, parse: Parse) -> str:
    """Return the override that sets the same as another tool's `--name value`."""
    key = find_key(name)
    if key.endswith(("duration", "_every")) and re.fullmatch(r"\d+", value):
        value += "st" if "step" in name else "ep"
    if key in ("device", "device.type"):
        return find_device_override(value) or f"{key}={value}"
    if key == "device.precision" and value in ("true", "True", "1"):
        value = "fp16" if "16" in name else "bf16"
    return spell_override(key, value, parse) or f"{key}={value}"


def find_device_override(option: str) -> str:
    """Return the override for a device as other tools name it; empty for any other text."""
    option = option.lower()
    number = re.fullmatch(r"(?:(?:gpu|cuda):?)?(\d+)", option)
    if number:
        return f"device.type=cuda:{number[1]}"
    known = {"gpu": "cuda", "nvidia": "cuda", "metal": "mps", "apple": "mps"}
    return f"device={known.get(option, option)}" if option in (*known, "cuda", "cpu", "mps", "auto") else ""


def find_remedy(key: str, value: Any) -> str:
    """Return the remedy for a key of Hydra's that has no effect here; empty for any other key."""
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


def _get_stem(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml")
