"""`python -m runner find lr | batch_size [--json] [overrides]`: search a setting by trial."""

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.cli.options import parse_whole_number, split_options, split_trust
from runner.config.compose import compose
from runner.config.schema import Config
from runner.core.errors import ConfigError, Mistake, RunError
from runner.core.escape import make_printable
from runner.experiment.examine import examine

if TYPE_CHECKING:
    from runner.experiment.tuning.batch_size import Trial
    from runner.experiment.tuning.lr_range_test import LRRangeTest


USAGE = (
    "python -m runner find lr [--from 1e-7] [--to 10] [--steps 200] [--json] [overrides], or "
    "python -m runner find batch_size [--memory 4GiB] [--max N] [--json] [overrides]"
)


OPTIONS = {"lr": ["--from", "--to", "--steps"], "batch_size": ["--memory", "--max"]}


UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def main(argv: Sequence[str]) -> int:
    """Find the named setting; return 1 if data is unavailable or nothing was found.

    Raises:
        ConfigError: nothing is named, or what cannot be found; or the config is wrong.
    """
    what = argv[0] if argv else ""
    if what not in OPTIONS:
        rule = "is missing" if not what or "=" in what else "cannot be found"
        raise ConfigError([Mistake("find", rule, what, remedy=USAGE) if what else Mistake("find", rule, remedy=USAGE)])
    rest, trust = split_trust(argv[1:])
    rest, options = split_options(rest, OPTIONS[what])
    as_json = "--json" in rest
    values = {name: given[-1] for name, given in options.items() if given}
    finder = FINDERS[what](values)  # what is wrong with the options is said before anything else
    examined = examine(compose([argument for argument in rest if argument != "--json"]), trust)
    if examined.mistakes:
        raise ConfigError(examined.mistakes)
    try:
        return finder(examined.config, trust, as_json)
    except RunError as error:
        print(make_printable(error), file=sys.stderr)
        return 1


Finder = Callable[[Config, tuple[str, ...], bool], int]


def find_lr(options: dict[str, str]) -> Finder:
    """Return the finder of the learning-rate range test; its plot goes below `outputs/find/<name>/`."""
    low, high = _parse_positive("--from", options, 1e-7), _parse_positive("--to", options, 10.0)
    steps = parse_whole_number("--steps", [options["--steps"]] if "--steps" in options else []) or 200
    if low >= high:
        raise ConfigError([Mistake("--from", f"must be below --to, {high:g}", low)])
    if steps < 20:
        raise ConfigError([Mistake("--steps", "must be at least 20", steps)])

    def find(config: Config, trust: tuple[str, ...], as_json: bool) -> int:
        from runner.experiment.tuning.lr_range_test import run_lr_range_test

        test = run_lr_range_test(config, low, high, steps, trust)
        if as_json:
            print(json.dumps(dataclasses.asdict(test)))
        else:
            file = Path("outputs") / "find" / config.name / "lr.svg"
            draw(test, file)
            for line in describe_test(test):
                print(line)
            print(file)
        return 0 if test.suggestion else 1

    return find


def describe_test(test: "LRRangeTest") -> list[str]:
    """Describe the range test: the steps tried, the fall of the loss, the suggestion and its rule."""
    end = "where the loss diverged" if test.diverged else "the end of the range"
    tried = f"{len(test.rates)} steps, from {test.rates[0]:.3g} to {test.rates[-1]:.3g}, {end}" if test.rates else end
    if test.suggestion is None:
        return [tried, "no suggestion: the loss does not fall anywhere in this range"]
    return [
        tried,
        f"the smoothed loss falls from {test.begins:.2g} on, fastest at {test.steepest:.2g}, to {test.lowest:.2g}",
        f"optimizer.lr={test.suggestion:.2g}  (halfway from its beginning to its end, on the logarithmic scale)",
    ]


def draw(test: "LRRangeTest", file: Path) -> None:
    """Plot the losses and the smoothed losses over the learning rate, with the suggestion."""
    from runner.core.chart import Line, Panel, render_svg

    mark = None if test.suggestion is None else (test.suggestion, f"{test.suggestion:.2g}")
    first, least = max(test.smoothed[:1], default=0.0), min(test.smoothed, default=0.0)
    ceiling = first + (first - least) / 2 + abs(first) / 20  # what lies above is only divergence
    courses = [
        [(r, v) for r, v in zip(test.rates, values, strict=True) if v <= ceiling]
        for values in (test.losses, test.smoothed)
    ]
    lines = [Line("", courses[0], faint=True), Line("training loss, smoothed", courses[1])]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(render_svg([Panel("learning-rate range test", lines, "optimizer.lr", log_x=True, mark=mark)]))


def find_batch_size(options: dict[str, str]) -> Finder:
    """Return the finder of the largest batch that fits: it doubles, then bisects the gap."""
    limit = None if "--memory" not in options else _parse_size("--memory", options["--memory"])
    most = parse_whole_number("--max", [options["--max"]] if "--max" in options else [])

    def find(config: Config, trust: tuple[str, ...], as_json: bool) -> int:
        from runner.core import device as devices
        from runner.experiment.tuning.batch_size import search_batch_size

        device = devices.choose(config.device.type)
        if device.type != "cpu" and limit is not None:
            rule = f"has no effect on {device}: its memory is the limit"
            raise ConfigError([Mistake("--memory", rule, options["--memory"])])
        found = search_batch_size(config, limit, most, trust, (lambda _: None) if as_json else print_trial)
        if as_json:
            print(json.dumps(dataclasses.asdict(found)))
            return 0 if found.batch_size else 1
        print(f"measured: {found.measured}, over two optimizer steps")
        if found.limit:
            print(
                f"limit: {_format_gib(found.limit)}"
                + ("" if limit else ", nine tenths of what is available (--memory)")
            )
        if found.batch_size is None:
            print("not even one sample fits")
            return 1
        more = f"{found.too_large:,} does not fit" if found.too_large else "the most that was to be tried"
        print(f"loader.batch_size={found.batch_size}  ({more}; evaluation has its own, loader.eval.batch_size)")
        return 0

    return find


def print_trial(trial: "Trial") -> None:
    """Print a line for a trial as soon as it ends."""
    peak = "" if trial.peak is None else f"  {_format_gib(trial.peak)}"
    speed = "" if not trial.seconds else f"  {trial.batch_size / trial.seconds:,.0f} samples/s"
    print(f"{trial.batch_size:>9,}  {'fits' if trial.fits else trial.problem}{peak}{speed}", flush=True)


def _format_gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def _parse_positive(name: str, options: dict[str, str], default: float) -> float:
    try:
        value = float(options.get(name, default))
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError([Mistake(name, "must be a number above 0", options.get(name))])
    return value


def _parse_size(name: str, text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]|[KMG]i)?B?", text)
    if match is None or float(match[1]) == 0:
        raise ConfigError([Mistake(name, "must be a size such as 4GiB, 500MB", text)])
    return int(float(match[1]) * UNITS[match[2] or ""])


FINDERS: dict[str, Callable[[dict[str, str]], Finder]] = {"lr": find_lr, "batch_size": find_batch_size}
