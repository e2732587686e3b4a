"""Parsers of command-line options: `--trust`, and options that take a value."""

from collections.abc import Sequence

from runner.core.errors import ConfigError, Mistake


def split_trust(argv: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return the command line without `--trust PATTERN` or `--trust=PATTERN`, and the patterns."""
    rest, trust, arguments = [], [], iter(argv)
    for argument in arguments:
        if argument == "--trust":
            trust.append(next(arguments, ""))
            if not trust[-1]:
                remedy = "--trust 'timm.*' or --trust DIRECTORY"
                raise ConfigError([Mistake("--trust", "needs a pattern", where="argument `--trust`", remedy=remedy)])
        elif argument.startswith("--trust="):
            trust.append(argument.removeprefix("--trust="))
        else:
            rest.append(argument)
    return rest, tuple(pattern for pattern in trust if pattern)


def split_options(argv: Sequence[str], names: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Split `--name VALUE` or `--name=VALUE` off the command line; return the rest and the values."""
    rest, found = [], {name: list[str]() for name in names}
    arguments = iter(argv)
    for argument in arguments:
        name, given, value = argument.partition("=")
        if name not in found:
            rest.append(argument)
            continue
        value = value if given else next(arguments, "")
        if not value:
            raise ConfigError([Mistake(name, "needs a value", where=f"argument `{argument}`")])
        found[name].append(value)
    return rest, found


def parse_whole_number(name: str, given: Sequence[str]) -> int | None:
    """Parse the value of an option that counts; return None if the option is not given."""
    if not given:
        return None
    if not given[-1].isdecimal() or int(given[-1]) < 1:
        raise ConfigError([Mistake(name, "must be a whole number of at least 1", given[-1])])
    return int(given[-1])
