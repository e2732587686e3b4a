"""Parser of every verb's arguments: a verb declares its words and options, and gets their values.

`--name VALUE` and `--name=VALUE` mean the same. All mistakes of a command line are reported together: an option that
does not exist (with the nearest one), a value that is missing, wrong or given twice. An argument without dashes is a
word of the verb or an override of the config.
"""

import argparse
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.config.suggestions import find_nearest, format_suggestion
from runner.core.errors import ConfigError, Mistake
from runner.core.user_trust import read_trusted


@dataclass(frozen=True)
class ValueKind:
    """Kind of values an option takes: `rule` in words, `parse` raises ValueError for any other text."""

    rule: str
    parse: Callable[[str], Any]


def _parse_count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    return number if number >= 1 else _refuse()


def _parse_positive(text: str) -> float:
    number = float(text)
    return number if 0 < number < math.inf else _refuse()


_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def _parse_size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]|[KMG]i)?B?", text)
    size = 0 if match is None else int(float(match[1]) * _UNITS[match[2] or ""])
    return size or _refuse()


def _refuse() -> Any:
    raise ValueError


TEXT = ValueKind("must be a text", str)
COUNT = ValueKind("must be a whole number of at least 1", _parse_count)
POSITIVE = ValueKind("must be a number above 0", _parse_positive)
SIZE = ValueKind("must be a size such as 4GiB, 500MB", _parse_size)


@dataclass(frozen=True)
class Option:
    """Option of a verb.

    Attributes:
        name: with its dashes, `--steps`.
        help: what it does, in a phrase.
        value: name of its value in `--help`, `K`; empty for an option without a value.
        kind: kind of the value.
        choices: the only values; empty for any.
        is_repeatable: whether every value counts; otherwise two different values are a mistake.
        short: another spelling, `-m`.
        default: value of an option that is given without one; its value is then given as `--name=VALUE` only.
    """

    name: str
    help: str
    value: str = ""
    kind: ValueKind = TEXT
    choices: tuple[str, ...] = ()
    is_repeatable: bool = False
    short: str = ""
    default: str | None = None

    def __str__(self) -> str:
        shown = "|".join(self.choices) or self.value
        if self.default is not None:
            return f"{self.name}[={shown}]"
        return f"{self.name} {shown}".rstrip()


ANSWERED = ("--help", "--version")  # of every command line, before its verb is asked


JSON = Option("--json", "print one JSON object, for programs")
TRUST = Option("--trust", "import also names like this, or code of this directory", "PATTERN", is_repeatable=True)
EVENTS = Option("--json", "print a JSON object for each event, and nothing else, for programs")
MULTIRUN = Option("--multirun", "treat the overrides as a sweep", short="-m")
INEXACT = Option("--inexact", "accept that numbers may differ from those of an uninterrupted run")
SCHEDULE = Option(
    "--schedule",
    "learning rate of a run that trains for longer",
    "WORD",
    choices=("follow", "constant", "continue"),
)


@dataclass(frozen=True)
class ParsedArguments:
    """Arguments of a verb, apart: its words, the overrides, and the values of its options."""

    words: tuple[str, ...] = ()
    overrides: list[str] = field(default_factory=list)
    values: Mapping[str, list[Any]] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of an option; `default` where it is not given."""
        return self.values[name][-1] if name in self.values else default

    def get_all(self, name: str) -> list[Any]:
        """Return every value of an option that may be repeated, in their order."""
        return self.values.get(name, [])

    @property
    def as_json(self) -> bool:
        """Whether the answer is for programs."""
        return JSON.name in self

    @property
    def trust(self) -> tuple[str, ...]:
        """Patterns of trusted names: those given here, and those that the user keeps for this project.

        Raises:
            ConfigError: what the user keeps cannot be read.
        """
        return (*self.get_all(TRUST.name), *read_trusted())


@dataclass(frozen=True)
class Verb:
    """Declaration of a verb's command line.

    Attributes:
        name: `show model`; empty for training.
        words: names of the words that must be given first, such as `RUN`.
        options: its options.
        takes_overrides: whether overrides of the config may follow.
        more: further words that may follow, as the usage shows them; the verb tells them from overrides.
        about: what it does, in a sentence or a paragraph.
        examples: command lines without `python -m runner`, each with what it does: `("seed=1", "another seed")`.
    """

    name: str
    words: tuple[str, ...] = ()
    options: tuple[Option, ...] = (JSON, TRUST)
    takes_overrides: bool = True
    more: str = ""
    about: str = ""
    examples: tuple[tuple[str, str], ...] = ()

    @property
    def usage(self) -> str:
        """The line that shows all of it."""
        options = [f"[{option}]" for option in self.options]
        rest = ["[overrides]"] if self.takes_overrides else []
        return " ".join(
            ["python -m runner", *filter(None, [self.name]), *self.words, *filter(None, [self.more]), *options, *rest]
        )

    def parse(self, argv: Sequence[str]) -> ParsedArguments:
        """Split a command line into words, overrides and the options' values.

        Raises:
            ConfigError: every mistake in the options and the words.
        """
        rest, given, mistakes = self._split(argv)
        values: dict[str, list[Any]] = {}
        for option in self.options:
            if option.name in given:
                values[option.name] = self._convert(option, given[option.name], mistakes)
        count = len(self.words)
        mistakes += [Mistake(word, "is missing", remedy=self.usage, kind="missing") for word in self.words[len(rest) :]]
        if rest[count:] and not self.takes_overrides and not self.more:
            said = f"must be one, but there are {len(rest)}" if self.words else "takes no word"
            key = (self.words or (self.name,))[-1]
            mistakes.append(Mistake(key, f"{said}: `{' '.join(rest)}`", remedy=self.usage))
        if mistakes:
            raise ConfigError(mistakes)
        return ParsedArguments(tuple(rest[:count]), rest[count:], values)

    def _split(self, argv: Sequence[str]) -> tuple[list[str], dict[str, list[str]], list[Mistake]]:
        by_name = {name: option for option in self.options for name in (option.name, option.short) if name}
        rest: list[str] = []
        given: dict[str, list[str]] = {}
        mistakes: list[Mistake] = []
        arguments = list(argv)
        while arguments:
            argument = arguments.pop(0)
            name, equals, value = argument.partition("=")
            option = by_name.get(name)
            if option is None:
                mistake = self._find_misspelt(name, argument)
                if mistake is None:
                    rest.append(argument)
                else:
                    mistakes.append(mistake)
            elif not option.value:
                if equals:
                    mistakes.append(Mistake(name, "takes no value", value, f"argument `{argument}`"))
                given.setdefault(option.name, [])
            elif option.default is not None and not equals:
                given.setdefault(option.name, []).append(option.default)
            else:
                if not equals and arguments and not arguments[0].startswith("--"):
                    value = arguments.pop(0)
                if value:
                    given.setdefault(option.name, []).append(value)
                else:
                    rule = f"needs a value, {' or '.join(option.choices) or option.value}"
                    mistakes.append(
                        Mistake(name, rule, where=f"argument `{argument}`", remedy=self.usage, kind="missing")
                    )
        return rest, given, mistakes

    def _find_misspelt(self, name: str, argument: str) -> Mistake | None:
        """Return the mistake of an unknown option; None where the config may have the key."""
        if not re.match(r"--?[A-Za-z]", name):
            return None
        bare = {name.lstrip("-"): name for name in (*(option.name for option in self.options), *ANSWERED)}
        near = bare.get(find_nearest(name.lstrip("-"), bare), "")
        if self.takes_overrides:
            from runner.config.arguments import is_key

            if not near or is_key(name.lstrip("-").replace("-", "_")):
                return None  # the composition tells how the key is written
        rule = f"is no option of `{self.name}`" if self.name else "is no option"
        remedy = format_suggestion(near) or self.usage
        return Mistake(
            name, rule, where=f"argument `{argument}`", remedy=remedy, suggestion=near, kind="unknown-option"
        )

    def _convert(self, option: Option, texts: list[str], mistakes: list[Mistake]) -> list[Any]:
        if len(set(texts)) > 1 and not option.is_repeatable:
            rule = f"is given {len(texts)} times, and only one can count"
            mistakes.append(
                Mistake(option.name, rule, ", ".join(texts), remedy="leave the others out", kind="conflict")
            )
        values = []
        for text in texts:
            where = f"argument `{option.name} {text}`"
            if option.choices and text not in option.choices:
                near = find_nearest(text, option.choices)
                listed = " or ".join(filter(None, [", ".join(option.choices[:-1]), option.choices[-1]]))
                remedy = format_suggestion(near)
                mistakes.append(Mistake(option.name, f"must be {listed}", text, where, remedy, near))
                continue
            try:
                values.append(option.kind.parse(text))
            except ValueError:
                mistakes.append(Mistake(option.name, option.kind.rule, text, where))
        return values

    def as_json(self) -> dict[str, Any]:
        """Return plain data: name, usage, options and examples."""
        options = [
            {"name": one.name, "short": one.short, "value": one.value, "choices": one.choices, "help": one.help}
            for one in self.options
        ]
        examples = [{"command": f"python -m runner {line}".rstrip(), "about": text} for line, text in self.examples]
        return {"name": self.name, "usage": self.usage, "about": self.about, "options": options, "examples": examples}

    def format_help(self) -> str:
        """Format the usage, the options and the examples, as argparse formats them for the terminal's width."""
        examples = [f"  {f'python -m runner {line}'.rstrip()}\n      {text}" for line, text in self.examples]
        words = "[options]" if len(self.options) > 4 else " ".join(f"[{option}]" for option in self.options)
        parser = argparse.ArgumentParser(
            usage=self.usage.replace(" ".join(f"[{option}]" for option in self.options), words),
            description=textwrap.fill(self.about, 100),
            epilog="\n".join(["examples:", *examples]) if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for option in self.options:
            names = [name for name in (option.short, option.name) if name]
            said = option.help.replace("%", "%%")
            if option.default is not None:
                parser.add_argument(str(option), help=said, action="store_true")
            elif option.value:
                parser.add_argument(*names, help=said, metavar="|".join(option.choices) or option.value)
            else:
                parser.add_argument(*names, help=said, action="store_true")
        return parser.format_help().rstrip()


def choose_subject(verb: str, argv: Sequence[str], subjects: Sequence[str], *, is_optional: bool = False) -> str:
    """Return the subject of a verb, the word after it: `model` of `show model`.

    `is_optional` where the verb does without one, as `check` does.

    Raises:
        ConfigError: it is missing, or no subject of the verb.
    """
    word = argv[0] if argv else ""
    if word in subjects:
        return word
    listed = " or ".join(filter(None, [", ".join(subjects[:-1]), subjects[-1]]))
    remedy = f"python -m runner {verb} {'|'.join(subjects)}"
    if not word or "=" in word or word.startswith("-"):
        raise ConfigError([Mistake(verb, f"needs a subject: {listed}", remedy=remedy, kind="missing")])
    near = find_nearest(word, subjects)
    suggestion = f"{verb} {near}" if near else ""
    rule = f"must be followed by {listed}{' or by overrides, `key=value`' if is_optional else ''}"
    remedy = format_suggestion(suggestion) or remedy
    raise ConfigError([Mistake(verb, rule, word, f"argument `{word}`", remedy, suggestion, "unknown-option")])


def find_trust(argv: Sequence[str]) -> tuple[str, ...]:
    """Return the trusted patterns of any command line, whatever else is in it."""
    _, given, _ = Verb("", options=(TRUST,))._split(argv)  # noqa: SLF001  another process reports the mistakes
    return (*given.get(TRUST.name, []), *read_trusted())
