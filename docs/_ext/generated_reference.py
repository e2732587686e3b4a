"""Reference pages, written while the site is built from what the runner itself reads.

A page says `<!-- generated: keys -->`; in its place come the schema's keys, the verbs' parsers, the options of `conf/`,
or the pages of a folder.
"""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner.cli.verbs import VERBS
from runner.config import key_help
from runner.config.key_help import KeyHelp
from runner.core.errors import ABSENT

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
FIRST_VERSION = "0.1.0"
SINCE: dict[str, str] = {}  # key → version, of keys that came later than the first version
CHOSEN = ("experiment", "debug", "sweep", "hydra/launcher")  # groups whose options are listed by `format_options` alone


def setup(app: Any) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("source-read", replace_marks)
    app.connect("env-get-outdated", lambda *_: sorted(page for page in _list_pages()))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _list_pages() -> list[str]:
    """List the pages that are partly generated: they are read anew in each build."""
    docs = ROOT / "docs"
    found = [page for page in docs.rglob("*.md") if MARK.search(page.read_text(encoding="utf-8"))]
    return [str(page.relative_to(docs).with_suffix("")) for page in found]


def replace_marks(_app: Any, _name: str, source: list[str]) -> None:
    """Put the generated text in the place of each mark of a page."""
    source[0] = generate(source[0])


def generate(text: str) -> str:
    """Return a page's text with its marks replaced."""
    return MARK.sub(lambda mark: PARTS[mark[1]](), text)


# ---- keys


def format_keys() -> str:
    """Format every key of the schema, by group."""
    groups: dict[str, list[KeyHelp]] = {}
    for known in key_help.list_key_help():
        groups.setdefault(known.key.partition(".")[0], []).append(known)
    alone = [keys[0] for keys in groups.values() if len(keys) == 1 and not _list_options(keys[0].key)]
    lines = ["## Single keys", "", *(_format_key(known) for known in alone)]
    for name, keys in groups.items():
        if keys[0] in alone:
            continue
        lines += [f"## {name}", ""]
        options = _list_options(name)
        if options:
            listed = ", ".join(f"`{option}`" for option, _ in options)
            lines += [f"Options (`{name}=…`, [what each is](options.md#{name.replace('_', '-')})): {listed}.", ""]
        lines += [_format_key(known) for known in keys]
    return "\n".join(lines)


def _format_key(known: KeyHelp) -> str:
    """Format a key as a definition: type, rule, default; comment."""
    facts = [_escape(known.kind)]
    if known.rule:
        facts.append(_escape(known.rule))
    if known.default is ABSENT:
        facts.append("must be given" if not known.key.endswith(f".{key_help.NAME}") else "")
    elif not (isinstance(known.default, dict) and known.default):
        facts.append(f"default {_format_code(known.shown_default)}")
    since = SINCE.get(known.key)
    facts.append(f"since {since}" if since else "")
    said = "; ".join(filter(None, facts))
    anchor = re.sub(r"\W+", "-", re.sub(r"\bNAME\b", "any", known.key)).lower()
    lines = [f"[`{known.key}`]{{#key-{anchor}}}", f": {said}"]
    if known.comment:
        lines.append(f"\n  {_escape(known.comment[0].upper() + known.comment[1:])}")
    return "\n".join(lines) + "\n"


def _format_code(text: str) -> str:
    """Format text as code, whatever backquotes are in it."""
    flat = " ".join(text.split())
    return f"`` {flat} ``" if "`" in flat else f"`{flat}`"


def _escape(text: str) -> str:
    """Escape what Markdown would read as markup, outside of code."""
    parts = re.split(r"(`+[^`]*`+)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([<>*_\[\]{}$])", r"\\\1", part) for part in parts)


def _list_options(group: str) -> list[tuple[str, str]]:
    return key_help.list_options(group, [CONF])


# ---- options of the groups


def format_options() -> str:
    """Format the options of every group of `conf/`, each with its first comment; of recipes also time and result."""
    folders = sorted(path for path in CONF.rglob("*") if path.is_dir() and [*path.glob("*.yaml")])
    lines = []
    for folder in folders:
        group = str(folder.relative_to(CONF))
        lines += [f"({group.replace('/', '-')})=" if "/" in group else "", f"## {group}", ""]
        is_recipe = group in CHOSEN
        lines += [
            "| option | is |" if not is_recipe else "| option | is | time and result |",
            "|---" * (2 + is_recipe) + "|",
        ]
        for option, comment in _list_options(group):
            row = [f"`{option}`", _escape(comment)]
            if is_recipe:
                row.append(_escape(_read_header(folder / f"{option}.yaml")))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
        lines.append("")
    return "\n".join(lines)


def _read_header(file: Path) -> str:
    """Return what the header of a recipe says of time and result."""
    said: dict[str, str] = {}
    last = ""
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        match = re.match(r"#\s*(command|time|result|note):\s*(.*)", line)
        if match:
            last = match[1]
            said[last] = match[2]
        elif last:
            said[last] += " " + line.lstrip("# ")
    return "; ".join(said[name] for name in ("time", "result") if name in said)


# ---- verbs


def format_verbs() -> str:
    """Format every verb: its usage, its options, and what its exit statuses mean."""
    train = importlib.import_module("runner.cli.train")
    lines = ["## no verb: train, or sweep", "", *_format_verb(train)]
    for name, place in sorted(VERBS.items()):
        lines += [f"## {name}", "", *_format_verb(importlib.import_module(place))]
    return "\n".join(lines)


def _format_verb(module: Any) -> list[str]:
    said = inspect.cleandoc(module.__doc__ or "")
    summary, _, rest = said.partition("\n\n")
    usages = "\n".join(_fold(declared.usage) for declared in module.VERBS)
    lines = [_escape(_drop_usage(" ".join(summary.split()))), "", "```text", usages, "```", ""]
    lines += [_escape(rest), ""] if rest else []
    options = {str(option): option for declared in module.VERBS for option in declared.options}
    if options:
        lines += ["| option | does |", "|---|---|"]
        for shown, option in options.items():
            name = f"`{option.short}`, `{shown}`" if option.short else f"`{shown}`"
            lines.append(f"| {name.replace('|', chr(92) + '|')} | {_escape(option.help).replace('|', chr(92) + '|')} |")
        lines.append("")
    examples = [(line, text) for declared in module.VERBS for line, text in declared.examples]
    if examples:
        shown = [f"python -m runner {line}".rstrip() + f"\n    # {text}" for line, text in examples]
        lines += ["```text", *shown, "```", ""]
    lines += ["| exit status | when |", "|---|---|"]
    lines += [f"| {status} | {_escape(when).replace('|', chr(92) + '|')} |" for status, when in _list_statuses(module)]
    return [*lines, ""]


def _fold(usage: str) -> str:
    """Fold a long usage between its options."""
    words = [word.replace(" ", "\0") for word in re.findall(r"\[(?:[^\[\]]|\[[^\]]*\])*\]|\S+", usage)]
    folded = textwrap.wrap(
        " ".join(words), 84, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(folded).replace("\0", " ")


def _drop_usage(summary: str) -> str:
    """Return a module's summary without the command line that it begins with."""
    text = re.sub(r"^`python -m runner[^`]*`:?\s*", "", summary)
    return text[:1].upper() + text[1:]


STOPPED = [(75, "stopped by SIGTERM or SIGUSR1, after saving"), (130, "stopped by Ctrl-C, after saving")]
# What 0, 1 and 2 mean where the docstring of `main` does not say it: a training, and verbs whose answer may be no.
ANSWERS = {
    "train": {
        0: "the run, or every job of the sweep, is completed",
        1: "the run failed, or a job of the sweep",
        2: "the request or the configuration is wrong; nothing was created",
    },
    "resume": {
        0: "the run is completed; of one that was before, its result is printed",
        1: "the run failed",
        2: "there is no such run, it is in progress, or something differs from its record that could change a number",
    },
    "check": {0: "no mistakes", 1: "`check resume`: a bit differs", 2: "there are mistakes"},
    "compare": {0: "A is better", 1: "A is not shown to be better"},
    "find": {1: "nothing could be suggested"},
    "replay": {0: "bitwise the same", 1: "a number differs"},
    "blame": {0: "culprits are found", 1: "no culprit is found"},
}


def _list_statuses(module: Any) -> list[tuple[int, str]]:
    """List the exit statuses of a verb, with what its `main` says of the errors that it raises."""
    name = module.__name__.rpartition(".")[2]
    source = Path(module.__file__).read_text(encoding="utf-8")
    raised, answers = _read_raises(inspect.getdoc(module.main) or ""), ANSWERS.get(name, {})
    used = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    failed = "; ".join(filter(None, [answers.get(1), raised.get("RunError")]))
    if not failed and "EXIT_FAILED" in used:
        failed = "something could not be done"
    wrong = answers.get(2) or raised.get("ConfigError", "the request is wrong")
    rows = [(0, answers.get(0, "done")), (1, failed), (2, wrong)]
    return [row for row in rows if row[1]] + (STOPPED if name in ("train", "resume", "blame") else [])


def _read_raises(text: str) -> dict[str, str]:
    """Read the section `Raises:` of a docstring."""
    _, _, section = text.partition("Raises:\n")
    found = re.findall(r"^(\w+): (.*(?:\n[ ]{2,}.*)*)", textwrap.dedent(section.partition("\n\n")[0]), re.MULTILINE)
    return {name: " ".join(said.split()).rstrip(".") for name, said in found}


# ---- tables of contents


def format_toctree(words: str, pattern: str) -> str:
    """Format a table of contents of the pages that match a pattern, in the order of their names; empty without any."""
    docs = ROOT / "docs"
    pages = sorted(page for page in docs.glob(pattern) if page.stem != "index")
    if not pages:
        return ""
    names = [f"/{page.relative_to(docs).with_suffix('')}" for page in pages]
    return "\n".join([words, "", "```{toctree}", ":maxdepth: 1", "", *names, "```"])


PARTS: dict[str, Callable[[], str]] = {
    "keys": format_keys,
    "options": format_options,
    "verbs": format_verbs,
    "tools": lambda: format_toctree("The tools around a run:", "*.md"),
}
