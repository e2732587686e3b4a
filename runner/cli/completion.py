"""Completion of a command line in a shell: verbs, options, groups, keys, values, run directories.

The shell's side is argcomplete's: it starts the command with `_ARGCOMPLETE` set, and `answer_shell` prints what may
stand at the cursor. Nothing is composed and no torch is loaded: files are listed, and the first column of YAML is read.
"""

import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from runner.cli.help import AGENTS, list_subjects, read_verb_summary
from runner.cli.options import Option, Verb
from runner.cli.verbs import QUESTIONS, VERBS
from runner.config import key_help
from runner.config.defaults import list_arguments
from runner.config.key_help import NAME, KeyHelp
from runner.core.paths import find_our_conf

Words = dict[str, str]  # a word that may stand at the cursor → what it is


MOST = 2000  # entries of a folder that are looked at


RECIPES = ("experiment", "debug", "sweep")


_PATHS = frozenset({"FILE", "DIR", "FOLDER", "OUT", "last|best|PATH", "INPUT"})


_FOLDERS = {"RUN": "config.yaml", "SWEEP": "ledger.sqlite", "A": "config.yaml", "B": "config.yaml"}


_COLUMN = re.compile(r"^([A-Za-z_]\w*):", re.MULTILINE)  # keys in the first column of a YAML file


_DEFAULT = re.compile(r"^  - (?:override )?/?([\w/]+): ([\w./-]+)", re.MULTILINE)  # an entry of a defaults list


def answer_shell() -> None:
    """Print what may stand at the cursor and end the process, which a shell has started to ask."""
    import argparse

    try:
        import argcomplete
    except ModuleNotFoundError:
        os._exit(1)
    parser = argparse.ArgumentParser(prefix_chars="\0", add_help=False)  # all words are positional; the verb tells more
    action = parser.add_argument("words", nargs="*", default=[])
    action.completer = lambda prefix, parsed_args, **_: complete(parsed_args.words, prefix)  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options=False, validator=lambda *_: True)


def complete(words: Sequence[str], prefix: str) -> Words:
    """Return what may stand at the cursor.

    Args:
        words: those before it, without the command itself.
        prefix: what is there of the word at the cursor.
    """
    verb = words[0] if words and words[0] in VERBS else ""
    declared, rest = choose_verb(words[1:] if verb else words, verb)
    found: Words = {}
    if not words:
        found |= {name: summary for name, summary in list_verbs().items() if name.startswith(prefix)}
    if (verb and declared is None) or (len(words) == 1 and verb == "check"):
        found |= {subject: "" for subject in list_subjects(verb) if subject.startswith(prefix)}
    if declared is None:
        return found
    option = find_option(declared, rest[-1]) if rest else None
    if option is not None and option.value and option.default is None:
        return complete_value(option, prefix)
    if prefix.startswith("-"):
        name, equals, begun = prefix.partition("=")
        option = find_option(declared, name)
        if equals:
            values = complete_value(option, begun) if option else {}
            return {f"{name}={value}": said for value, said in values.items()}
        return {name: said for name, said in list_option_names(declared).items() if name.startswith(prefix)}
    return found | complete_word(declared, rest, prefix)


def choose_verb(rest: Sequence[str], verb: str) -> tuple[Verb | None, list[str]]:
    """Return the verb that the words belong to (None: a subject is missing), and the words after it."""
    module = importlib.import_module(VERBS[verb] if verb else "runner.cli.train")
    by_subject: dict[str, Verb] = {}
    for one in module.VERBS:
        first = by_subject.setdefault(subject := one.name.partition(" ")[2], one)
        options = tuple(dict.fromkeys([*first.options, *one.options]))  # `replay RUN` and `replay --all` are two
        by_subject[subject] = replace(first, options=options)
    if rest and rest[0] in by_subject:
        return by_subject[rest[0]], list(rest[1:])
    return by_subject.get(""), list(rest)


def list_verbs() -> Words:
    """Map each verb to what it does."""
    return {verb: read_verb_summary(module) for verb, module in VERBS.items()}


def find_option(declared: Verb, name: str) -> Option | None:
    """Return the option of a name; None where the verb has none."""
    return next((one for one in declared.options if name and name in (one.name, one.short)), None)


def list_option_names(declared: Verb) -> Words:
    """Map the names of a verb's options to what they do."""
    names = {name: one.help for one in declared.options for name in (one.name, one.short) if name}
    return names | dict.fromkeys(sorted(QUESTIONS), "help, or the versions")


def complete_value(option: Option, prefix: str) -> Words:
    """Complete the value of an option."""
    fixed = option.choices or (("last", "best") if option.value.startswith("last|") else ())
    found = {value: "" for value in fixed if value.startswith(prefix)}
    return found | (complete_path(prefix) if option.value in _PATHS else {})


def complete_word(declared: Verb, rest: Sequence[str], prefix: str) -> Words:
    """Complete a word that is no option: a run, a file, a key, an override."""
    given = [word for word in drop_options(declared, rest) if "=" not in word]
    wanted = declared.words[len(given)] if len(given) < len(declared.words) else ""
    if declared.name in ("help", "why"):
        if given:
            return complete_override(prefix, rest)
        page = {AGENTS: "the page for programs"} if declared.name == "help" and AGENTS.startswith(prefix) else {}
        return page | complete_key(prefix, rest, "", group_end="")
    if declared.name == "explain" and "/" in prefix:
        wanted = "RUN"
    if "[GROUP]" in declared.more:
        return {group: "" for group in list_groups() if group.startswith(prefix)}
    if wanted in _FOLDERS:
        found = complete_folder(prefix, _FOLDERS[wanted])
        return found | (complete_option("experiment", prefix) if wanted in ("A", "B") else {})
    if wanted or "INPUT" in declared.more or "DIR" in declared.more or "RUN" in declared.more:
        return complete_path(prefix) if wanted != "PATTERN" else {}
    return complete_override(prefix, rest) if declared.takes_overrides else {}


def drop_options(declared: Verb, rest: Sequence[str]) -> list[str]:
    """Return the words that are neither options nor their values."""
    kept, words = [], iter(rest)
    for word in words:
        option = find_option(declared, word.partition("=")[0])
        if option is None:
            kept.append(word)
        elif option.value and option.default is None and "=" not in word:
            next(words, None)
    return kept


# ---- overrides


def complete_override(prefix: str, words: Sequence[str]) -> Words:
    """Complete `key=value` and `group=option`, after `+`, `++` and `~` too; of several values the last."""
    sign = re.match(r"[+~]*", prefix)
    mark = sign[0] if sign else ""
    key, equals, value = prefix[len(mark) :].partition("=")
    if not equals:
        end = "" if mark.startswith("~") else "="
        return {mark + word: said for word, said in complete_key(key, words, end, group_end=end).items()}
    before, comma, last = value.rpartition(",")
    chosen = set(before.split(","))
    found = complete_option(key, last) if key in list_groups() else complete_key_value(key, last)
    return {f"{mark}{key}={before}{comma}{word}": said for word, said in found.items() if word not in chosen}


def complete_key(prefix: str, words: Sequence[str], end: str, *, group_end: str) -> Words:
    """Complete a key to its next dot: a key that holds others ends with the dot, any other with `end`."""
    found: Words = {}
    if "." not in prefix:
        found = {f"{group}{group_end}": "a group" for group in list_groups() if group.startswith(prefix)}
    outer = prefix.rpartition(".")[0]
    for key, said in list_keys(outer, words):
        if key.startswith(prefix):
            inner = key[len(outer) + 1 if outer else 0 :]
            name, dot, _ = inner.partition(".")
            whole = f"{outer}.{name}" if outer else name
            found.setdefault(f"{whole}." if dot else f"{whole}{end}", "" if dot else said)
    if len(found) == 1 and (only := next(iter(found))).endswith("."):
        return complete_key(only, words, end, group_end=group_end)
    return found


def list_keys(outer: str, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each key of the schema that people may write, and those of the component chosen for `outer`."""
    for known in key_help.list_key_help():
        if NAME not in known.key.split(".") and "N" not in known.key.split("."):
            yield known.key, describe_key(known)
    group = outer.partition(".")[0]
    if group in list_groups() and group not in RECIPES and outer == group:
        for name in read_keys(group, words):
            yield f"{group}.{name}", "of the option chosen"
    if not outer:
        for group in list_groups():
            if group not in RECIPES and "/" not in group and "_target_:" in read_file(group, find_chosen(group, words)):
                yield f"{group}.name", ""


def describe_key(known: KeyHelp) -> str:
    """Describe a key in a few words."""
    default = f", default {known.shown_default}" if isinstance(known.default, str | int | float) else ""
    return f"{known.kind}{default}"


def complete_key_value(key: str, prefix: str) -> Words:
    """Complete the value of a key: what it may be where that is a short list, a folder or a file."""
    if key == "run":
        return complete_folder(prefix, _FOLDERS["RUN"])
    if key == "pretrained.path":
        return complete_path(prefix)
    known = key_help.find_key_help(key)
    return {value: "" for value in (known.choices if known else ()) if value.startswith(prefix)}


# ---- groups and their options, from the folders of config files


def list_groups() -> list[str]:
    """List the groups of the project and ours, nested ones as `hydra/launcher` and `log/to`."""
    found: dict[str, None] = {}
    keys = {known.key for known in key_help.list_key_help()}
    for conf in (Path("conf"), find_our_conf()):
        for file in list_yaml(conf):
            folder = file.parent.relative_to(conf).as_posix()
            is_nested = folder.startswith("hydra/") or folder.replace("/", ".") in keys
            found.setdefault(folder if is_nested else folder.partition("/")[0])
    return sorted(found.keys() - {"."})


def list_yaml(folder: Path) -> list[Path]:
    """List the YAML files below a folder whose names can be typed; no pipe, which would never end."""
    files = islice(folder.rglob("*.yaml"), MOST) if folder.is_dir() else ()
    return [file for file in files if re.fullmatch(r"[\w.-]+", file.name) and file.is_file()]


def complete_option(group: str, prefix: str) -> Words:
    """Complete an option of a group, with the first comment of its file."""
    found: Words = {}
    for conf in (Path("conf"), find_our_conf()):
        for file in sorted(list_yaml(conf / group)):
            name = file.relative_to(conf / group).with_suffix("").as_posix()
            if name.startswith(prefix):
                found.setdefault(name, read_comment(file))
    return found


def read_comment(file: Path) -> str:
    """Return the first sentence of a file's comment, as it can be shown; empty where there is none."""
    try:
        text = key_help.read_first_comment(file)
    except (OSError, UnicodeDecodeError):
        return ""
    return "".join(letter for letter in text if letter.isprintable())[:100]


def read_keys(group: str, words: Sequence[str]) -> list[str]:
    """Return the keys of the option that is chosen for a group: those of its file and of its `_target_`."""
    text = read_file(group, find_chosen(group, words))
    target = re.search(r"^_target_: *([\w.]+)", text, re.MULTILINE)
    known = list_signature(target[1]) if target else []
    return [key for key in dict.fromkeys([*_COLUMN.findall(text), *known]) if key not in ("defaults", "_target_")]


def list_signature(target: str) -> list[str]:
    """List the arguments with a default of a class or function, from its source; nothing of it is run."""
    path = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))  # code of the project is read there, and not imported
    try:
        return [name for name, (_, default) in list_arguments(target).items() if default is not None]
    finally:
        sys.path[:] = path


def find_chosen(group: str, words: Sequence[str]) -> str:
    """Return the option of a group that the words choose, the experiment, or the root config."""
    given = dict(word.lstrip("+").partition("=")[::2] for word in words if "=" in word)
    root = dict(_DEFAULT.findall(read_file("", "config")))
    experiment = given.get("experiment") or root.get("experiment") or ""
    return (
        given.get(group)
        or dict(_DEFAULT.findall(read_file("experiment", experiment))).get(group)
        or root.get(group, "")
    )


def read_file(group: str, option: str) -> str:
    """Return the text of an option's file, the project's before ours; empty where there is none."""
    for conf in (Path("conf"), find_our_conf()):
        file = conf / group / f"{option}.yaml"
        try:
            if file.is_file():  # no pipe, which would never end
                with file.open(encoding="utf-8") as stream:
                    return stream.read(100_000)
        except (OSError, UnicodeDecodeError, ValueError):
            continue
    return ""


# ---- folders and files


def complete_folder(prefix: str, marker: str) -> Words:
    """Complete a folder that holds a file, `config.yaml` of a run; folders on the way end with a slash."""
    if "outputs/".startswith(prefix) and Path("outputs").is_dir():
        prefix = "outputs/"
    found: Words = {}
    for entry in list_entries(prefix):
        is_other = marker == _FOLDERS["SWEEP"] and (entry / _FOLDERS["RUN"]).is_file()  # a run holds no sweep
        if entry.is_dir() and not is_other:
            found[f"{entry}" if (entry / marker).is_file() else f"{entry}/"] = ""
    if len(found) == 1 and (only := next(iter(found))).endswith("/"):
        return complete_folder(only, marker) or found
    return found


def complete_path(prefix: str) -> Words:
    """Complete the path of a file."""
    return {f"{entry}/" if entry.is_dir() else f"{entry}": "" for entry in list_entries(prefix)}


def list_entries(prefix: str) -> Iterable[Path]:
    """List the entries of a folder whose path begins with a prefix; hidden ones only after a dot."""
    folder, begun = os.path.split(prefix)
    try:
        with os.scandir(Path(folder).expanduser()) as entries:
            names = sorted(entry.name for entry in islice(entries, MOST))
    except (OSError, RuntimeError):  # `~nobody/`
        return []
    shown = [
        name for name in names if name.startswith(begun) and (begun or not name.startswith(".")) and name.isprintable()
    ]
    return [Path(folder, name) for name in shown]
