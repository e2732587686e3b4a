"""`python -m runner help [KEY] [overrides]`: each key's type, rule, default and comment.

Without a word: the verbs and the groups. A group: its options in `conf/` and every key. An argument of a component, as
`model.width` is: what the signature of its `_target_` says.
"""

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.cli import verbs
from runner.cli.options import JSON, Verb, choose_subject
from runner.config import key_help
from runner.config.key_help import KeyHelp
from runner.config.reading import format_yaml
from runner.config.suggestions import find_nearest, format_suggestion, translate_name
from runner.core.errors import ABSENT, ConfigError, Mistake
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE
from runner.core.paths import find_agents_page, find_our_conf

AGENTS = "agents"


VERBS = (
    Verb(
        "help",
        options=(JSON,),
        more="[KEY | VERB | agents]",
        about="Show the type, rule, default and comment of a key, or of every key of a group.",
        examples=(
            ("help", "verbs and groups"),
            ("help optimizer", "options of a group, and its keys"),
            ("help train.duration", "one key"),
            ("help model.width model=small_cnn", "an argument of a component"),
            ("help show model", "as `show model --help`"),
            ("help agents", "the page for programs and agents"),
        ),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Print the help for a key, a group, or all of them.

    Raises:
        ConfigError: there is no such key.
    """
    given = VERBS[0].parse(argv)
    words = [word for word in given.overrides if "=" not in word and not word.startswith("~")]
    overrides = [word for word in given.overrides if word not in words]
    if words and words[0] in verbs.VERBS:
        check_verb_words(words)
        return print_help([*words, *(["--json"] if given.as_json else [])])
    if len(words) > 1:
        rule = f"takes one key, but there are {len(words)}: `{' '.join(words)}`"
        raise ConfigError([Mistake("help", rule, remedy=VERBS[0].usage)])
    if not words:
        if given.as_json:
            print_json([known.as_json() for known in key_help.list_key_help()])
        else:
            print(format_overview())
        return EXIT_DONE
    if words[0] == AGENTS:
        page = find_agents_page().read_text(encoding="utf-8")
        print_json({"page": page}) if given.as_json else print(page, end="")
        return EXIT_DONE
    facts = find_help(words[0], overrides)
    if given.as_json:
        print_json({"keys": [known.as_json() for known in facts], "options": dict(list_options(words[0]))})
    else:
        print(make_printable(format_keys(facts, list_options(words[0]))))
    return EXIT_DONE


def check_verb_words(words: Sequence[str]) -> None:
    """Check that the words after `help` name one verb, or one subject of it, and nothing more.

    Raises:
        ConfigError: a word is none of them.
    """
    subjects = list_subjects(words[0])
    if words[1:] and subjects:
        choose_subject(words[0], words[1:], subjects)
    if len(words) > (2 if subjects else 1):
        rule = f"takes one verb, but there are more words: `{' '.join(words)}`"
        raise ConfigError([Mistake("help", rule, remedy=VERBS[0].usage)])


def list_subjects(verb: str) -> list[str]:
    """List the second words of a verb: `model` of `show model`."""
    return [one.name.partition(" ")[2] for one in importlib.import_module(verbs.VERBS[verb]).VERBS if " " in one.name]


def check_subject(argv: Sequence[str]) -> None:
    """Check the word after a verb that has subjects: `model` of `show model`, `resume` of `check resume`.

    Raises:
        ConfigError: it is no subject of the verb.
    """
    declared = importlib.import_module(verbs.VERBS[argv[0]]).VERBS if argv and argv[0] in verbs.VERBS else ()
    has_subjects = any(" " in verb.name for verb in declared)
    takes_words = any(verb.words or verb.more for verb in declared if " " not in verb.name)
    if has_subjects and not takes_words and re.match(r"[A-Za-z][^=]*$", "".join(argv[1:2])):
        needs_none = any(" " not in verb.name for verb in declared)
        choose_subject(argv[0], argv[1:], list_subjects(argv[0]), is_optional=needs_none)


def print_help(argv: Sequence[str]) -> int:
    """Print the usage, options and examples of the verb that a command line begins with; of none, of all.

    Raises:
        ConfigError: the word after the verb is no subject of it.
    """
    as_json = JSON.name in argv
    if as_json and (not argv or argv[0] not in verbs.VERBS):
        modules = map(importlib.import_module, ["runner.cli.train", *verbs.VERBS.values()])
        print_json({"verbs": [verb.as_json() for module in modules for verb in module.VERBS]})
        return EXIT_DONE
    if not argv or argv[0] not in verbs.VERBS:
        print("Describe an experiment in YAML; this checks it, trains it, records it.\n")
        print(importlib.import_module("runner.cli.train").VERBS[0].format_help())
        print(f"\n{format_verbs()}")
        print("\nA key or a group: python -m runner help KEY. Hydra's own flags: --cfg job, --info, --hydra-help.")
        return EXIT_DONE
    check_subject(argv)
    module = importlib.import_module(verbs.VERBS[argv[0]])
    named = [verb for verb in module.VERBS if " " in verb.name and verb.name.split() == argv[:2]]
    if as_json:
        print_json({"verbs": [verb.as_json() for verb in named or module.VERBS]})
        return EXIT_DONE
    paragraphs = str(module.__doc__).rstrip().split("\n\n")[1:]
    print("\n\n".join([*(verb.format_help() for verb in named or module.VERBS), *paragraphs]))
    return EXIT_DONE


def list_options(group: str) -> list[tuple[str, str]]:
    """List the options of a group in the project's `conf/` and in ours."""
    return key_help.list_options(group.replace(".", "/"), [Path("conf"), find_our_conf()])


def find_help(key: str, overrides: Sequence[str] = ()) -> list[KeyHelp]:
    """Return the help for a key and the keys below it; for an argument of a component from its signature.

    Raises:
        ConfigError: neither the schema nor a component of the config has the key.
    """
    own = key_help.find_key_help(key)
    below = key_help.list_keys_below(key)
    if own is not None and not (own.key.endswith(f".{key_help.NAME}") and own.default is ABSENT):
        names = {one.key for one in below}
        is_open = ("component" in own.kind and not below) or f"{key}.{key_help.NAME}" in names
        inner = list_arguments(key, overrides) if is_open else []
        return [own, *below, *(one for one in inner if one.key not in names)]
    if list_options(key) and not below:  # `experiment`, `debug`: groups, but no keys
        return []
    beside = list_arguments(key.rpartition(".")[0], overrides) if "." in key else []
    if found := [one for one in beside if one.key == key]:
        return found
    if own is not None:
        return [own]
    known = [AGENTS, *verbs.VERBS, *(one.key for one in (*beside, *key_help.list_key_help()))]
    near = translate_name(key) or find_nearest(key, known)
    remedy = format_suggestion(near) or "python -m runner help"
    raise ConfigError([Mistake(key, "is no key", remedy=remedy, suggestion=near, kind="unknown-key")])


def list_arguments(key: str, overrides: Sequence[str]) -> list[KeyHelp]:
    """List the help for the arguments of the component that a config has at a key; none where it has none."""
    from runner.config.compose import compose
    from runner.config.defaults import find_docstring
    from runner.config.defaults import list_arguments as list_signature
    from runner.config.editor.docstrings import read_arguments
    from runner.config.origins import as_path

    node: Any = compose(overrides).config
    for part in as_path(key):
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or not isinstance(target := node.get("_target_"), str):
        return []
    found = []
    signature, said = list_signature(target), read_arguments(find_docstring(target))
    for one in dict.fromkeys([*signature, *node]):
        kind, default = signature.get(one, ("", None))
        # What has no default and is not given is not for people to give: the parameters of an optimizer, say.
        if one != "_target_" and (default is not None or one in node):
            given = f"; {format_yaml(node[one])} in this config" if one in node else ""
            where, value = (default.where, default.value) if default else (target, ABSENT)
            comment = f"Argument of {target}{given}. {said.get(one, '')}".rstrip()
            found.append(KeyHelp(f"{key}.{one}", kind or "an argument", "", value, comment, where))
    return found


def format_verbs() -> str:
    """Format the verbs, a line each."""
    lines = ["Verbs (python -m runner VERB --help):"]
    for verb, module in verbs.VERBS.items():
        lines.append(f"  {verb.ljust(12)}{read_verb_summary(module)}")
    return "\n".join(lines)


def format_overview() -> str:
    """Format the verbs and the groups, a line each."""
    lines = [format_verbs(), "", "Keys (python -m runner help KEY):"]
    roots = [known for known in key_help.list_key_help() if "." not in known.key]
    for known in roots:
        said_of = known.comment or known.kind
        options = ", ".join(name for name, _ in list_options(known.key))
        lines.append(f"  {known.key.ljust(14)}{said_of}{f' [{options}]' if options else ''}")
    lines.append(
        f"  {'experiment'.ljust(14)}a whole recipe [{', '.join(name for name, _ in list_options('experiment'))}]"
    )
    lines.append(
        f"  {'debug'.ljust(14)}a preset to find a fault [{', '.join(name for name, _ in list_options('debug'))}]"
    )
    return "\n".join(lines)


def read_verb_summary(module: str) -> str:
    """Return what a verb does, from the first line of its module."""
    file = Path(__file__).with_name(f"{module.rpartition('.')[2]}.py")
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    return first.strip('"').partition("`: ")[2].rstrip(".")


def format_keys(facts: Sequence[KeyHelp], options: Sequence[tuple[str, str]]) -> str:
    """Format keys, each with its type, rule and default, then its comment; and the options of a group."""
    lines = []
    for known in facts:
        default = "must be given" if known.default is ABSENT else f"default {known.shown_default}"
        if isinstance(known.default, dict) and known.default and len(facts) > 1:
            default = ""
        said = "; ".join(filter(None, [known.kind, known.rule, default]))
        lines.append(f"{known.key}: {said} ({known.where})")
        lines += [f"    {known.comment}"] if known.comment else []
    if options:
        width = max(len(name) for name, _ in options)
        lines += ["", "Options:", *(f"  {name.ljust(width)}  {comment}".rstrip() for name, comment in options)]
    return "\n".join(lines).strip()
