"""`python -m runner help [KEY] [overrides]`: each key's type, rule, default and comment.

Without a word: the verbs and the groups. A group: its options in `conf/` and every key. An argument of a component, as
`model.width` is: what the signature of its `_target_` says.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.cli import verbs
from runner.cli.options import JSON, Verb
from runner.config import key_help
from runner.config.hydra_repository import find_our_conf
from runner.config.key_help import KeyHelp
from runner.config.origins import as_path
from runner.config.suggestions import find_nearest, format_suggestion, translate_name
from runner.core.errors import ABSENT, ConfigError, Mistake
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE

VERBS = (Verb("help", options=(JSON,), more="[KEY]"),)


def main(argv: Sequence[str]) -> int:
    """Print the help for a key, a group, or all of them.

    Raises:
        ConfigError: there is no such key.
    """
    given = VERBS[0].parse(argv)
    words = [word for word in given.overrides if "=" not in word and not word.startswith("~")]
    overrides = [word for word in given.overrides if word not in words]
    if len(words) > 1:
        rule = f"takes one key, but there are {len(words)}: `{' '.join(words)}`"
        raise ConfigError([Mistake("help", rule, remedy=VERBS[0].usage)])
    if not words:
        if given.as_json:
            print_json([known.as_json() for known in key_help.list_key_help()])
        else:
            print(format_overview())
        return EXIT_DONE
    facts = find_help(words[0], overrides)
    if given.as_json:
        print_json({"keys": [known.as_json() for known in facts], "options": dict(list_options(words[0]))})
    else:
        print(make_printable(format_keys(facts, list_options(words[0]))))
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
        return [own, *below]
    if list_options(key) and not below:  # `experiment`, `debug`: groups, but no keys
        return []
    found = _find_argument(key, overrides)
    if found is not None:
        return [found]
    if own is not None:
        return [own]
    known = [one.key for one in key_help.list_key_help()]
    near = translate_name(key) or find_nearest(key, known)
    remedy = format_suggestion(near) or "python -m runner help"
    raise ConfigError([Mistake(key, "is no key", remedy=remedy, suggestion=near, kind="unknown-key")])


def _find_argument(key: str, overrides: Sequence[str]) -> KeyHelp | None:
    """Return the help for an argument of a component of the config; None where there is none."""
    from runner.config.compose import compose
    from runner.config.defaults import find_signature_default

    outer, _, name = key.rpartition(".")
    node: Any = compose(overrides).config
    config = node
    for part in as_path(outer):
        node = node.get(part) if isinstance(node, dict) else None
    target = node.get("_target_") if isinstance(node, dict) else None
    default = find_signature_default(target, name) if target else None
    if default is None and not (isinstance(node, dict) and target and name in node):
        return None
    said = key_help.find_comment(key, config)
    comment = f"argument of {target}{f': {said}' if said else ''}"
    if default is None:
        return KeyHelp(key, "an argument", "", ABSENT, comment, str(target))
    return KeyHelp(key, "an argument", "", default.value, comment, default.where)


def format_overview() -> str:
    """Format the verbs and the groups, a line each."""
    lines = ["Verbs (python -m runner VERB --help):"]
    for verb, module in verbs.VERBS.items():
        said = (importlib.util.find_spec(module), verb)
        lines.append(f"  {verb.ljust(12)}{_read_summary(Path(str(said[0] and said[0].origin)))}")
    lines += ["", "Keys (python -m runner help KEY):"]
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


def _read_summary(file: Path) -> str:
    """Return what a verb does, from the first line of its file."""
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
