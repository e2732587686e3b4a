"""`python -m runner find lr | batch_size [--json] [overrides]`: search a setting by trial."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.cli.options import COUNT, JSON, POSITIVE, SIZE, TRUST, Option, ParsedArguments, Verb, choose_subject
from runner.core.errors import ConfigError, Mistake
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE, EXIT_FAILED

if TYPE_CHECKING:
    from runner.config.schema import Config
    from runner.experiment.tuning.batch_size import Trial


VERBS = (
    Verb(
        "find lr",
        about="Raise the learning rate from step to step in a short trial; suggest one.",
        examples=(
            ("find lr", "for the default experiment"),
            ("find lr experiment=digits_mlp --from 1e-4 --to 1 --steps 100", "between two rates"),
        ),
        options=(
            Option("--from", "lowest learning rate, otherwise 1e-7", "RATE", POSITIVE),
            Option("--to", "highest learning rate, otherwise 10", "RATE", POSITIVE),
            Option("--steps", "steps from one to the other, otherwise 200", "N", COUNT),
            JSON,
            TRUST,
        ),
    ),
    Verb(
        "find batch_size",
        about="Find the largest batch that fits into memory, over two optimizer steps.",
        examples=(
            ("find batch_size --max 4096", "no larger than 4096"),
            ("find batch_size device=cpu --memory 2GiB", "within a limit of yours"),
        ),
        options=(
            Option("--memory", "limit on a CPU, otherwise nine tenths of what is available", "4GiB", SIZE),
            Option("--max", "largest batch to try", "N", COUNT),
            JSON,
            TRUST,
        ),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Find the named setting; return 1 if nothing was found.

    Raises:
        ConfigError: nothing is named, or what cannot be found; or the config is wrong.
        RunError: the data cannot be had.
    """
    subject = choose_subject("find", argv, list(FINDERS))
    verb, make_finder = FINDERS[subject]
    given = verb.parse(argv[1:])
    finder = make_finder(given)  # wrong options are told before anything else
    from runner.config.compose import compose
    from runner.experiment.examine import require_valid

    return finder(require_valid(compose(given.overrides), given.trust).config, given.trust, given.as_json)


Finder = Callable[["Config", tuple[str, ...], bool], int]


def find_lr(given: ParsedArguments) -> Finder:
    """Return the finder of the learning-rate range test; its plot goes below `outputs/find/<name>/`."""
    low, high, steps = given.get("--from", 1e-7), given.get("--to", 10.0), given.get("--steps", 200)
    if low >= high:
        raise ConfigError([Mistake("--from", f"must be below --to, {high:g}", low)])
    if steps < 20:
        raise ConfigError([Mistake("--steps", "must be at least 20", steps)])

    def find(config: "Config", trust: tuple[str, ...], as_json: bool) -> int:
        from runner.experiment.tuning.lr_range_test import describe_test, draw_test, run_lr_range_test

        test = run_lr_range_test(config, low, high, steps, trust)
        if as_json:
            print_json(dataclasses.asdict(test))
        else:
            file = Path("outputs") / "find" / config.name / "lr.svg"
            draw_test(test, file)
            for line in describe_test(test):
                print(line)
            print(file)
        return EXIT_DONE if test.suggestion else EXIT_FAILED

    return find


def find_batch_size(given: ParsedArguments) -> Finder:
    """Return the finder of the largest batch that fits: it doubles, then bisects the gap."""
    limit, most = given.get("--memory"), given.get("--max")

    def find(config: "Config", trust: tuple[str, ...], as_json: bool) -> int:
        from runner.core import device as devices
        from runner.experiment.tuning.batch_size import search_batch_size

        device = devices.choose(config.device.type)
        if device.type != "cpu" and limit is not None:
            rule = f"has no effect on {device}: its memory is the limit"
            raise ConfigError([Mistake("--memory", rule, _format_gib(limit), kind="no-effect")])
        found = search_batch_size(config, limit, most, trust, (lambda _: None) if as_json else print_trial)
        if as_json:
            print_json(dataclasses.asdict(found))
            return EXIT_DONE if found.batch_size else EXIT_FAILED
        print(f"measured: {found.measured}, over two optimizer steps")
        if found.limit:
            print(
                f"limit: {_format_gib(found.limit)}"
                + ("" if limit else ", nine tenths of what is available (--memory)")
            )
        if found.batch_size is None:
            print("not even one sample fits")
            return EXIT_FAILED
        more = f"{found.too_large:,} does not fit" if found.too_large else "the most that was to be tried"
        print(f"loader.batch_size={found.batch_size}  ({more}; evaluation has its own, loader.eval.batch_size)")
        return EXIT_DONE

    return find


def print_trial(trial: "Trial") -> None:
    """Print a line for a trial as soon as it ends."""
    peak = "" if trial.peak is None else f"  {_format_gib(trial.peak)}"
    speed = "" if not trial.seconds else f"  {trial.batch_size / trial.seconds:,.0f} samples/s"
    print(f"{trial.batch_size:>9,}  {'fits' if trial.fits else trial.problem}{peak}{speed}", flush=True)


def _format_gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


FINDERS: dict[str, tuple[Verb, Callable[[ParsedArguments], Finder]]] = {
    "lr": (VERBS[0], find_lr),
    "batch_size": (VERBS[1], find_batch_size),
}
