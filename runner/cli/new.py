"""`python -m runner new [DIR] [--name NAME]`: lay out a project of one's own, which runs as it is.

A model and a dataset in `components/`, a YAML file of each and an experiment in `conf/`, a test, a README and a
`.gitignore`. No file that is there is touched: if one of them is, nothing is written.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import JSON, Option, Verb
from runner.core.errors import ConfigError, Mistake
from runner.core.escape import make_printable, quote_shell_word
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE
from runner.core.paths import PACKAGE, find_our_conf

NAME = Option("--name", "name of its experiment, otherwise that of the folder", "NAME")


VERBS = (
    Verb(
        "new",
        options=(NAME, JSON),
        takes_overrides=False,
        more="[DIR]",
        about="Lay out a project of your own: a model, a dataset, YAML of each, an experiment, a test; it runs.",
        examples=(
            ("new spirals", "a folder `spirals`; then: cd spirals && python -m runner experiment=spirals"),
            ("new --name first", "here; what is there is never overwritten"),
        ),
    ),
)


TEMPLATES = Path(__file__).parent / "templates"


_PLACE = "__NAME__"


# `experiment=null` chooses nothing, and `name: yes` is no text: what YAML 1.1 or Hydra's grammar reads as a value.
_YAML_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "nan", "inf"})


def main(argv: Sequence[str]) -> int:
    """Write the files and print what to do next.

    Raises:
        ConfigError: the name is no name, the folder is not usable, or a file is there already.
    """
    given = VERBS[0].parse(argv)
    if len(given.overrides) > 1:
        rule = f"must be one, but there are {len(given.overrides)}: `{' '.join(given.overrides)}`"
        raise ConfigError([Mistake("DIR", rule, remedy=VERBS[0].usage)])
    folder = Path(*given.overrides)
    name = given.get(NAME.name) or re.sub(r"\W+", "_", folder.resolve().name, flags=re.ASCII).strip("_").lower()
    texts = fill_templates(name)
    if mistakes := find_obstacles(folder, name, list(texts)):
        raise ConfigError(mistakes)
    for file, text in texts.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        with (folder / file).open("x", encoding="utf-8") as stream:
            stream.write(text)
    command = f"python -m runner experiment={name}"
    if given.as_json:
        print_json({"folder": str(folder), "name": name, "files": list(texts), "command": command})
        return EXIT_DONE
    print(make_printable("\n".join(str(folder / file) for file in texts)))
    step = "" if folder.resolve() == Path.cwd().resolve() else f"cd {quote_shell_word(str(folder))} && "
    print(make_printable(f"\nNext: {step}{command}"))
    return EXIT_DONE


def fill_templates(name: str) -> dict[str, str]:
    """Return the text of each file of a project, by its path in the folder."""
    texts = {}
    for template in sorted(TEMPLATES.rglob("*.txt")):
        path = template.relative_to(TEMPLATES).with_suffix("").as_posix().replace(_PLACE, name)
        texts[".gitignore" if path == "gitignore" else path] = template.read_text("utf-8").replace(_PLACE, name)
    return texts


def find_obstacles(folder: Path, name: str, files: Sequence[str]) -> list[Mistake]:
    """Find all that keeps a project from being written there, or from running there."""
    mistakes = []
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        rule = "must be letters, digits and underscores, no digit first"
        mistakes.append(Mistake(NAME.name, rule, name, remedy="give one: --name first"))
    elif name.lower() in _YAML_WORDS:
        rule = "is a word of YAML, which would be read as a value and not as a name"
        mistakes.append(Mistake(NAME.name, rule, name, remedy=f"give another one: --name my_{name}"))
    elif (find_our_conf() / "experiment" / f"{name}.yaml").exists():
        rule = f"must not hide the shipped experiment {name}"
        mistakes.append(Mistake(NAME.name, rule, remedy=f"give another one: --name my_{name}", kind="conflict"))
    if folder.exists() and not folder.is_dir():
        return [*mistakes, Mistake("DIR", "is a file", str(folder), kind="file")]
    for link in find_links(folder, files):
        rule = f"has {link}, which is a link or leads elsewhere, and nothing is written outside of the folder"
        mistakes.append(Mistake("DIR", rule, remedy="choose another folder", kind="file"))
    taken = [str(folder / file) for file in files if is_taken(folder, file)]
    if taken:
        rule = f"has {', '.join(taken)} already, and nothing is overwritten"
        mistakes.append(Mistake("DIR", rule, remedy="choose another folder", kind="file"))
    for own in (folder / "runner.py", folder / "runner"):
        if own.exists() and own.resolve() != PACKAGE.resolve():
            rule = f"has {own}, which `python -m runner` would start in place of the runner"
            mistakes.append(Mistake("DIR", rule, remedy="rename it, or choose another folder", kind="conflict"))
    return mistakes


def is_taken(folder: Path, file: str) -> bool:
    """Return whether a path below a folder is there, as a link to nothing too, or lies below a file."""
    place = folder / file
    return place.exists() or place.is_symlink() or any((folder / one).is_file() for one in Path(file).parents)


def find_links(folder: Path, files: Sequence[str]) -> list[Path]:
    """Find the folders on the way to files below a folder that are links, or that resolve outside of it."""
    ways = dict.fromkeys(folder / one for file in files for one in list(Path(file).parents)[:-1])
    inside = folder.resolve()
    return [one for one in ways if one.is_symlink() or (one.exists() and not one.resolve().is_relative_to(inside))]
