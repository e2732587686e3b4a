"""One run: from a checked config to a run directory with its result, also when it fails."""

import hashlib
import json
import os
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from torch import Tensor

from runner import build, build_looks, diagnosis, faults, fit, memory, numerics, provenance, torchrun
from runner import device as devices
from runner.component import Trust
from runner.config.check import resolved
from runner.config.compose import Composed
from runner.config.effects import SUPERVISED, too_long
from runner.config.recorded import Continuation, without_schedule
from runner.config.schema import Config
from runner.data import Split
from runner.errors import ConfigError, Mistake, RunError, refusal
from runner.examine import Examined
from runner.files import Lock, remove, write_json, write_text
from runner.log import Log, Text, WatchedLog, final_report, lasting_console, mend
from runner.meta import meta_copy, to_meta
from runner.model_table import model_table
from runner.numerics import Fault
from runner.optimizer import Constant
from runner.preflight import Preflight, misfits
from runner.schedule import Duration
from runner.state import PRUNED, Run, Stop, change_settings, follow, forecast, hold, planned, restore
from runner.team import ALONE, Alone, Team

# Asked whether to stop: the how-manieth value of the objective this is (from 1, also across resumes), and the value.
Judge = Callable[[int, float], bool]

EXIT_DONE, EXIT_FAILED, EXIT_WRONG, EXIT_STOPPED, EXIT_INTERRUPTED = 0, 1, 2, 75, 130
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # libyaml writes the same 5 times faster
OURS = Path(__file__).parent
ECHO_SECONDS = 3.0  # a terminal's Ctrl-C reaches every process, and torchrun then sends it to each again


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit status, directory and result."""

    status: int
    folder: Path
    result: dict[str, Any]


@contextmanager
def stopping(stop: Stop, *, silent: bool = False) -> Iterator[None]:
    """SIGTERM, SIGUSR1 and Ctrl-C set a flag, and the step under way ends first; a second Ctrl-C leaves at once."""
    if threading.current_thread() is not threading.main_thread():
        with stop:
            yield
        return

    asked_at = 0.0

    def handler(number: int, _frame: FrameType | None) -> None:
        nonlocal asked_at
        if stop.shared and stop.wanted and time.monotonic() - asked_at < ECHO_SECONDS:
            return
        if number == signal.SIGINT and stop.wanted == signal.SIGINT:
            os._exit(EXIT_INTERRUPTED)
        asked_at = time.monotonic()
        stop.on_signal(number)
        if silent:
            return
        again = "; Ctrl-C again leaves at once, with what is saved" if number == signal.SIGINT else ""
        said = f"\n{signal.Signals(number).name}: stopping after this step{again}\n"
        with suppress(OSError):
            os.write(2, said.encode())  # `print` may be what was interrupted

    numbers = [signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
    before = {number: signal.signal(number, handler) for number in numbers}
    if hasattr(signal, "SIGHUP"):  # the terminal was closed, which is no wish to stop
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop:
            yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def weights_sha256(state_dict: Mapping[str, Any]) -> str:
    """A hash of names, dtypes, shapes and bytes of a state_dict, in its order."""
    digest = hashlib.sha256()
    for name, value in state_dict.items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def train(
    examined: Examined,
    composed: Composed,
    argv: Sequence[str],
    trust: Trust,
    folder: Path,
    began: float | None = None,
    judge: Judge | None = None,
) -> Outcome:
    """Train a config without mistakes in a run directory of its own.

    Args:
        examined: the config, and what the preflight found.
        composed: what it was composed to.
        argv: the command line, for the record.
        trust: patterns of names trusted on the command line.
        folder: the run directory; it exists.
        began: `time.perf_counter()` when the command was given.
        judge: asked after each value of the objective but that of the last step whether the run is to stop as pruned.
    """
    return launch(
        examined.config,
        folder,
        blame=composed.blame,
        unresolved=composed.unresolved_yaml,
        command=["python", "-m", "runner", *argv],
        trust=trust,
        found=examined.found,
        debugging=bool(composed.choices.get("debug")),
        began=began,
        judge=judge,
    )


def as_recorded(mistakes: list[Mistake]) -> list[Mistake]:
    """Mistakes about a config of which nothing but its record is known."""
    return [replace(mistake, where=mistake.where or f"config.yaml: {mistake.key}") for mistake in mistakes]


def launch(
    config: Config,
    folder: Path,
    *,
    unresolved: str,
    command: Sequence[str],
    trust: Trust = (),
    found: Preflight | None = None,
    again: Continuation | None = None,
    inexact: bool = False,
    debugging: bool = False,
    began: float | None = None,
    judge: Judge | None = None,
    blame: diagnosis.Blame = as_recorded,
) -> Outcome:
    """Train in a run directory that is ours.

    Args:
        config: the checked config.
        folder: the run directory; it exists.
        unresolved: the composed config as YAML, interpolations kept.
        command: the command line, for the record.
        trust: patterns of names trusted on the command line.
        found: what the preflight found, to be shown first.
        again: to continue: how the config compares with what the run was started with.
        inexact: whether to continue although numbers may differ.
        debugging: whether a `debug` option was chosen, so that the run may be too short for what it does.
        began: `time.perf_counter()` when the command was given.
        judge: asked after each value of the objective but that of the last step whether the run is to stop as pruned.
        blame: gives a mistake that only the data shows the place that set its key.

    Raises:
        ConfigError: another process is at work on it, or it cannot be continued exactly; nothing was touched.
    """
    began = time.perf_counter() if began is None else began
    stop, status = Stop(), EXIT_FAILED
    team = enlist(config, stop, command)
    run: Run | None = None
    log: Log | None = None
    result = new_result()
    stands = again is None  # a run that goes on is not touched until it stands where it stood
    with Lock(folder), stopping(stop), devices.flags_kept(), lasting_console():
        try:
            team.watch(lambda culprit: give_up(folder, result if stands else None, culprit))
            said, record = list[str](), dict[str, Any]()
            if again is None:
                run = start(
                    config, folder, unresolved, command, trust, team, found=found, blame=blame, debugging=debugging
                )
            else:
                run, record = go_on(folder, again, command, trust, team, said, inexact=inexact)
            team.tell({"step": run.progress.step})
            run.stop = stop
            stop_in_time(run, began)
            log = open_log(run, config, judge)
            if again is not None:
                take_up(folder, run, again, record)
                stands = True
            introduce(run, config, found, said)
            result["seconds_startup"] = time.perf_counter() - began
            while (fault := fit_to(run, config)) is not None:
                if team.world > 1:  # the search trains on in one process
                    raise fault
                rebuild = partial(at_last_checkpoint, config, folder, trust, said, again)
                run = faults.answer(run, fault, rebuild, *answers_of(config))
                run.stop = stop
                log.close()
                log = open_log(run, config, judge)
            status = finish(run, result)
        except Exception as error:
            if again is not None and isinstance(error, ConfigError):
                raise
            team.failed(error)
            if not stands:
                result["error"] = team.blame(error) or cause_of(error)
                return cannot_go_on(folder, result, log, team)
            result["error"] = team.blame(error) or diagnosis.words(error, run, config, found, blame)
            if isinstance(error, Fault):
                result["fault"] = error.record()
            result["error"] += traceback_to(log, folder, error)
        result |= outcome_of(run, folder) | {"seconds": time.perf_counter() - began}
        status = status if write_result(folder, result) else EXIT_FAILED
        close_log(log, folder, run, config, result["status"])
        conclude(result, folder)
        team.end()
    return Outcome(status, folder, result)


def outcome_of(run: Run | None, folder: Path) -> dict[str, Any]:
    """The figures of a run for its result, its last save waited for; and where it was not exact."""
    if run is None:
        return inexact_steps(folder)
    with suppress(RunError):  # the last save; what it would say comes too late
        run.checkpoints.wait()
    return figures(run) | inexact_steps(folder)


def cannot_go_on(folder: Path, result: dict[str, Any], log: Log | None, team: Alone) -> Outcome:
    """Say why a run does not go on; its directory stays as it was, with the result that it had."""
    if log is not None:
        with suppress(OSError):
            log.close()
    print(f"{folder} cannot go on: {result['error']}", file=sys.stderr)
    print("Its result, metrics and checkpoints are as they were.", file=sys.stderr)
    team.end()
    return Outcome(EXIT_FAILED, folder, result)


def cause_of(error: Exception) -> str:
    """An error in one paragraph, with the line of the user's own code that it comes from, where there is one."""
    ours = type(error).__module__.partition(".")[0] == "runner"
    if isinstance(error, OSError) and not ours:
        text = refusal(error)
    else:
        text = str(error).encode(errors="backslashreplace").decode() if ours else words_of(error)
    place = place_of(error)
    return text if not place or place in text else f"{text} ({place})"


def place_of(error: BaseException | None) -> str:
    """The `file:line` of the user's own code that an error, or its cause, comes from; empty where there is none."""
    here, found = Path.cwd(), ""
    while error is not None:
        frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, SyntaxError) and error.filename:
            frames.append((error.filename, error.lineno))
        for name, line in frames:
            file = Path(name)
            own = file.is_relative_to(here) and not file.is_relative_to(OURS) and "site-packages" not in file.parts
            found = f"{file.relative_to(here)}:{line}" if own else found
        error = error.__cause__ or error.__context__
    return found


def words_of(error: Exception) -> str:
    """`ValueError: …`, also of one that cannot say what it is; the bytes of a file name that are no UTF-8 spelt out."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  of somebody's `__str__`
        text = f"{type(error).__name__}, which has no text"
    return text.encode(errors="backslashreplace").decode()


def new_result() -> dict[str, Any]:
    """A result before anything is known."""
    return {"status": "failed", "metrics": {}, "best": None, "objective": None, "steps": 0, "error": None}


def traceback_to(log: Log | None, folder: Path, error: Exception) -> str:
    """Write the traceback of what ended the run to `log.txt`; what to say where that cannot be."""
    try:
        if log is None:
            Text(folder).exception(error)
        else:
            log.exception(error)  # noqa: LOG004
    except OSError as refused:
        return f" (nor could log.txt be written: {refused.strerror or refused})"
    return ""


def stop_in_time(run: Run, began: float) -> None:
    """Let training end when `train.max_time`, of which earlier processes have used some, is used up."""
    if run.max_seconds is not None:
        run.stop.end_at(began + run.max_seconds - run.progress.seconds, "train.max_time is used up")


def enlist(config: Config, stop: Stop, command: Sequence[str]) -> Alone:
    """The processes that train together, of which this is rank 0: one alone, unless the config wants more.

    Raises:
        ConfigError: it does, and this process was started by `command` and not by torchrun.
    """
    place = torchrun.place()
    if config.device.parallel not in torchrun.PROCESSES:
        return ALONE
    if place is None:
        raise ConfigError(torchrun.mistakes(config.device.parallel, command[3:]))
    stop.shared = True
    return Team(place, stop)


def write_result(folder: Path, result: Mapping[str, Any]) -> bool:
    """Write `result.json`; whether that was possible, and where it was not (a full disk) it is said."""
    try:
        write_json(folder / "result.json", result)
    except OSError as error:
        print(f"{folder / 'result.json'} could not be written: {error.strerror or error}", file=sys.stderr)
        return False
    return True


def give_up(folder: Path, result: dict[str, Any] | None, culprit: str) -> None:
    """Write the result, if there is one, and end this process, which waits in vain for one that failed."""
    if result is not None:
        write_result(folder, result | {"error": culprit})
    print(f"The run failed: {culprit}", file=sys.stderr)
    os._exit(EXIT_FAILED)


def start(
    config: Config,
    folder: Path,
    unresolved: str,
    command: Sequence[str],
    trust: Trust,
    team: Alone,
    *,
    found: Preflight | None = None,
    blame: diagnosis.Blame,
    debugging: bool = False,
) -> Run:
    """A new run: write down what it is, build it, write down where it comes from."""
    plain = resolved(config)
    write_config(folder, plain, unresolved)
    remove(folder / "result.json")  # of an attempt that failed before it had a config
    team.tell({"config": plain, "folder": str(folder.absolute()), "rescheduled": [], "settings": {}, "schedule": ""})
    run: Run | None = None
    try:
        run = build.build(config, folder, plain, trust, team)
    finally:
        write_json(folder / "provenance.json", facts(config, command, run))
    if mistakes := lengths(config, run, debugging=debugging):
        raise RunError("; ".join(map(str, mistakes)))
    try_the_first_batch(run, config, found, trust, blame)
    return run


def try_the_first_batch(
    run: Run, config: Config, found: Preflight | None, trust: Trust, blame: diagnosis.Blame
) -> None:
    """Let what only real data shows be found before the first step.

    That is a batch of one sample at the end of an epoch, which batch norm cannot train on, and, where the dataset
    states no sample, a metric that does not fit what the model gives.

    Raises:
        RunError: a made-up batch is known, and the model refuses one sample of it.
    """
    if run.team.world > 1 or config.device.compile or config.step["_target_"] != SUPERVISED or not run.total_steps:
        return

    def told(mistakes: list[Mistake]) -> None:
        if mistakes:
            raise RunError("; ".join(diagnosis.in_one_line(mistake, blame) for mistake in mistakes))

    rest = smallest_batch(run, config) == 1
    if found is not None and found.batch is not None and found.model is not None:
        told(misfits(config, found.model, run.loss, found.batch, trust, rest=rest, size=run.splits["train"].size))
    else:
        size = run.splits["train"].size
        run.rehearse = lambda batch: told(
            misfits(config, meta_copy(run.model), run.loss, to_meta(batch), trust, rest=rest, size=size, metrics=True)
        )


def smallest_batch(run: Run, config: Config) -> int:
    """Samples in the smallest batch of an epoch of training; 0 where the config does not say it."""
    size, whole = run.splits["train"].size, config.loader.batch_size
    if config.loader.batch_sampler is not None or not size:
        return 0
    return whole if config.loader.drop_last else size % whole or whole


def lengths(config: Config, run: Run, *, debugging: bool) -> list[Mistake]:
    """What is too short or too long for the run, now that its steps are known; a `debug` run is short on purpose."""
    outlived = build.outlived(run.schedule, run.total_steps, run.steps_per_epoch)
    if debugging or run.total_steps == 0:
        return outlived
    return [*(finding.mistake for finding in too_long(config, run.steps_per_epoch)), *outlived]


def write_config(folder: Path, plain: Mapping[str, Any], unresolved: str) -> None:
    """`.hydra/config.yaml`, and then `config.yaml`, which makes the folder a run."""
    (folder / ".hydra").mkdir(exist_ok=True)
    write_text(folder / ".hydra" / "config.yaml", unresolved)
    write_text(folder / "config.yaml", yaml.dump(plain, Dumper=_Dumper, sort_keys=False))


def go_on(
    folder: Path,
    again: Continuation,
    command: Sequence[str],
    trust: Trust,
    team: Alone,
    said: list[str],
    *,
    inexact: bool,
) -> tuple[Run, dict[str, Any]]:
    """The run as it was at its newest whole checkpoint, or as it began where there is none; and its new provenance.

    Nothing is written. `said` gets what is to be said.

    Raises:
        ConfigError: something differs from what it was, so that its numbers may.
        RunError: it had checkpoints, and none is left that is whole.
    """
    config = again.config
    before = recorded_facts(folder)
    if before is not None and config.loader.in_memory == "auto":  # the plan of making batches is kept
        plan = provenance.plan_kind((before["plan"] or {}).get("train", ""))
        if plan.startswith("sample by sample"):
            config.loader.in_memory = False
    said += again.notes
    where = {"config": resolved(config), "folder": str(folder.absolute())}
    team.tell(where | {"rescheduled": again.rescheduled, "settings": again.settings, "schedule": again.schedule})
    try:
        run = at_last_checkpoint(config, folder, trust, said, again, team)
    except Exception:
        known = {} if before is None else before | latest_facts(before) | {"data": None, "plan": None}
        changed = provenance.changes(known, facts(config, command, None)) if known else []
        if changed and not inexact:
            raise ConfigError([*again.changes, *changed]) from None
        raise
    asked = foresee(run, again, said)
    if not run.checkpoints.entries():
        if asked:
            raise ConfigError(asked)
        said.append("there is no checkpoint yet: it starts at step 0")
        record = facts(config, command, run)
    else:
        now = facts(config, command, run)
        transforms = config.transform.eval
        changes = list(again.changes)
        if before is None:
            changes.append(unknown_provenance(folder))
        else:
            random_eval = any(node is not None for node in transforms.values())
            changes += provenance.changes(before | latest_facts(before), now, random_eval=random_eval)
        if asked or (changes and not inexact):
            raise ConfigError([*asked, *([] if inexact else changes)])
        said += [f"not exact from here on (--inexact): {change.key} {change.rule}" for change in changes]
        record = with_resume(now if before is None else before, now, run.progress.step, changes)
        if again.schedule:
            record["resumed"][-1]["schedule"] = again.schedule
    said.append(f"continues at step {run.progress.step:,}")
    return run, record


def take_up(folder: Path, run: Run, again: Continuation, record: Mapping[str, Any]) -> None:
    """Write down that a run goes on: from here on its earlier result is not so any more."""
    write_json(folder / "provenance.json", record)
    if run.checkpoints.entries():
        run.checkpoints.finish()
    unresolved = without_schedule(again)[1] if again.schedule == "constant" else again.unresolved
    write_config(folder, run.config, unresolved)
    remove(folder / "result.json")


def recorded_facts(folder: Path) -> dict[str, Any] | None:
    """The `provenance.json` of a run; None where it is missing or damaged."""
    try:
        record = json.loads((folder / "provenance.json").read_bytes())
        provenance.changes(record | latest_facts(record), record)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return record if isinstance(record["data"], dict | None) and isinstance(record["plan"], dict | None) else None


def latest_facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """What an inexact resume has recorded anew."""
    facts: dict[str, Any] = record.get("resumed", [{}])[-1].get("facts", {})
    return facts


def unknown_provenance(folder: Path) -> Mistake:
    """What to say of a run with checkpoints whose provenance is not known."""
    file = folder / "provenance.json"
    rule = "is damaged" if file.exists() else "is missing"
    remedy = f"put it back from a copy, or {provenance.ACCEPT}"
    return Mistake(str(file), f"{rule}, so that code, versions and data cannot be compared", remedy=remedy)


def with_resume(
    before: Mapping[str, Any], now: Mapping[str, Any], step: int, changes: Sequence[Mistake]
) -> dict[str, Any]:
    """The record of a run with one more resume in it, at `step`."""
    earlier = before.get("resumed", [])
    entry: dict[str, Any] = {"time": now["time"], "command": now["command"], "step": step, "exact": not changes}
    known = earlier[-1].get("facts") if earlier else None
    if changes:
        entry["changes"] = [change.as_json() for change in changes]
        known = {name: now[name] for name in provenance.COMPARED}
    return {**before, "resumed": [*earlier, entry | ({"facts": known} if known else {})]}


def inexact_steps(folder: Path) -> dict[str, Any]:
    """`inexact` for the result: the steps at which the run went on with something else than before."""
    resumed = (recorded_facts(folder) or {}).get("resumed", [])
    steps = [entry["step"] for entry in resumed if not entry["exact"]]
    return {"inexact": steps} if steps else {}


def at_last_checkpoint(
    config: Config,
    folder: Path,
    trust: Trust,
    said: list[str],
    again: Continuation | None = None,
    team: Alone = ALONE,
) -> Run:
    """A run built anew, its newest whole checkpoint loaded; `said` gets what there is to say about damaged ones."""
    run = build.build(config, folder, resolved(config), trust, team)
    run.checkpoints.warn = said.append
    if not run.checkpoints.entries():
        run.checkpoints.refuse_lost(steps_of(folder))
    else:
        put_back(run, run.checkpoints.load("last"), again)
    if mistakes := build.outlived(run.schedule, run.total_steps, run.steps_per_epoch):
        if again is not None and again.was:
            mistakes = [replace(mistake, remedy=f"{mistake.remedy}, or say `{FOLLOW}`") for mistake in mistakes]
        raise ConfigError(mistakes)
    return run


def put_back(run: Run, saved: dict[str, Any], again: Continuation | None) -> None:
    """Restore a run from a checkpoint, with what is otherwise from here on."""
    if again is None:
        restore(run, saved)
        return
    plan = None
    if again.schedule == "constant" and not saved["scheduler"]:  # by a checkpoint of this process
        run.schedule = Constant()
    elif again.schedule in ("follow", "constant"):
        plan = planned(run, saved["progress"]["step"])
    restore(run, saved, again.rescheduled)
    change_settings(run, again.settings)
    if plan is not None:
        (follow if again.schedule == "follow" else hold)(run, plan)
    if again.schedule == "constant":
        run.config = without_schedule(again)[0]


FOLLOW = "--schedule follow"
WORDS = f"""say what the rate is to do from here on:
{FOLLOW}    as the schedule of the new duration plans for this step and the rest
--schedule constant  stay as it is (where it has come to 0: as it was before that)
--schedule continue  as above"""


def foresee(run: Run, again: Continuation, said: list[str]) -> list[Mistake]:
    """Say what the rate of a run that trains for longer will do; a mistake where it would rise, and nobody said so."""
    if again.schedule == "constant" and not run.checkpoints.entries():
        rule = "has no effect on a run without a checkpoint, which starts at step 0"
        return [Mistake("--schedule", rule, where="argument `--schedule constant`")]
    rates = forecast(run) if again.was else []
    if not rates or (len(rates) == 1 and again.schedule != "constant"):
        return []
    names = [str(group.get("name", place)) for place, group in enumerate(run.optimizer.param_groups)]
    courses = list(zip(*rates, strict=True))
    words = [rate_words(list(one), run.progress.step, run.total_steps) for one in courses[:3]]
    whose = [f" of {name}" for name in names] if len(names) > 1 else [""]
    lines = [f"the learning rate{name} {text}" for name, text in zip(whose, words, strict=False)]
    old_end = max(0, Duration.parse(again.was).steps(run.steps_per_epoch) - run.progress.step)
    rises = any(max(one[old_end:]) > one[old_end] * (1 + 1e-6) + 1e-12 for one in courses)
    if rises and not again.schedule and not again.rescheduled:
        rule = f"of a run that trained for {again.was} would make the rate rise again: {'; '.join(lines)}"
        return [Mistake("scheduler", rule, remedy=WORDS, suggestion=FOLLOW)]
    said += [f"{line} ({'--schedule ' + again.schedule if again.schedule else 'as planned'})" for line in lines]
    return []


def rate_words(rates: Sequence[float], start: int, end: int) -> str:
    """What a rate does from one step to another, in words."""
    first, last, most = rates[0], rates[-1], max(rates)
    if most == min(rates):
        return f"stays {first:.4g} to the end (step {end:,})"
    if most > first * (1 + 1e-6) + 1e-12:
        at = start + rates.index(most)
        return f"is {first:.4g} now, rises to {most:.4g} at step {at:,}, and is {last:.4g} at the end (step {end:,})"
    return f"is {first:.4g} now and falls to {last:.4g} at the end (step {end:,})"


def steps_of(folder: Path) -> int:
    """The steps after which a run has saved, as its `result.json` says; 0 where that is not known."""
    try:
        result = json.loads((folder / "result.json").read_bytes())
        return int(result["steps"]) if result["status"] in ("completed", "interrupted", "pruned") else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def answers_of(config: Config) -> tuple[str, int]:
    """What to do after a fault, and how often."""
    return config.train.on_fault, config.train.max_faults


def open_log(run: Run, config: Config, judge: Judge | None = None) -> Log:
    """The log of the run from its step on; what the checkpoints have to say goes there too."""
    progress = run.progress
    said = list[str]()
    if progress.step:
        # The lines that a checkpoint knows of: its losses are those since a line, and an evaluation has one.
        since = progress.step - len(run.losses.sizes) - len(progress.left_out)
        said = mend(run.folder, progress.step, max(since, progress.evaluated_at or 0), run.steps_per_epoch)
    log = Log if judge is None else partial(WatchedLog, watch=Watch(run, judge))
    run.log = log(
        run.folder,
        tensorboard=config.log.tensorboard,
        progress=config.log.progress,
        total_steps=run.total_steps,
        start_step=run.progress.step,
        go_on=config.train.on_save_error == "go_on",
    )
    for line in said:
        run.log.say(line)
    run.checkpoints.warn = run.log.say
    if isinstance(run.update, memory.Splitting):
        run.update.warn = run.log.say
    run.on_save_error = config.train.on_save_error
    return run.log


def close_log(log: Log | None, folder: Path, run: Run | None, config: Config, status: str) -> None:
    """Close the log, if there is one, how the run ended last; where the disk is full, say what it lacks."""
    if log is None:
        return
    shown = run if run is not None and run.__dict__.get("log") is log else None
    try:
        try:
            if shown is not None:
                show_hparams(shown, config, status)
        finally:
            log.close()
    except OSError as error:
        print(f"{folder / 'tb'} lacks its last events: {error.strerror or error}", file=sys.stderr)


def show_hparams(run: Run, config: Config, status: str) -> None:
    """The run's row in TensorBoard's table of runs: config, and how it ended."""
    wanted = config.log.hparams
    if wanted:
        run.log.hparams(build_looks.hparams(run.config, None if wanted is True else [*wanted]), status)


@dataclass
class Watch:
    """Asks `judge` at each new value of the objective; with its yes the run stops at this very step, and saves it."""

    run: Run
    judge: Judge
    step: int = -1  # of the last value
    count: int = 0  # of values, those before a resume included

    def __call__(self, step: int, values: Mapping[str, Any]) -> None:
        run = self.run
        at_end = step >= run.total_steps or run.stop.asked
        if run.objective not in values or step == self.step or at_end:
            return
        if self.step < 0:
            events = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
            self.count = sum(run.objective in event and event["step"] < step for event in events)
        self.step, self.count = step, self.count + 1
        if self.judge(self.count, values[run.objective]):
            run.stop.on_signal(PRUNED)


def fit_to(run: Run, config: Config) -> Fault | None:
    """Train to the end, to a signal, or to a number that is none."""
    try:
        with numerics.anomalies() if config.train.detect_anomaly else nullcontext():
            fit.fit(run)
    except Fault as fault:
        return fault
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        raise RunError(too_much(run)) from error
    return None


def too_much(run: Run) -> str:
    """That the memory was not enough: for which batch, what to change, and the peak."""
    loader, evaluating = run.config["loader"], not run.model.training
    key, size = "loader.batch_size", loader["batch_size"]
    if evaluating and loader["eval"]["batch_size"] is not None:
        key, size = "loader.eval.batch_size", loader["eval"]["batch_size"]
    where = "in the evaluation after" if evaluating else "in the step after"
    ways = memory.advice(
        size,
        run.accumulate,
        run.config["device"]["precision"],
        evaluating=evaluating,
        splits=run.config["train"]["split_on_oom"],
    )
    return f"out of memory {where} step {run.progress.step:,} with {key}={size}; {memory.peak(run.device)}. {ways}"


def introduce(run: Run, config: Config, found: Preflight | None, said: Sequence[str]) -> None:
    """Say what is about to be trained: the model's table, how batches are made, where."""
    if found is not None:
        if config.log.model_table and found.model is not None and found.batch is not None:
            run.log.say(model_table(found.model, found.one_sample(config)))
        for note in found.notes:
            run.log.say(f"note: {note}")
    if run.pretrained is not None:
        write_json(run.folder / "pretrained.json", run.pretrained.as_json())
        run.log.say(run.pretrained.summary())
    for name, split in run.splits.items():
        run.log.say(f"{name}: {split.size:,} samples, {split.plan}" if split.size else f"{name}: {split.plan}")
    run.log.say(f"{run.total_steps:,} steps on {run.device}, in {run.folder}")
    for line in said:
        run.log.say(line)


def conclude(result: Mapping[str, Any], folder: Path) -> None:
    """Say how it ended: the metrics, or the error in one paragraph, and the run directory."""
    if result["status"] == "completed":
        final_report(result["metrics"] or result.get("train", {}), folder)
    elif result["status"] == "pruned":
        print(f"pruned after step {result['steps']:,}; train it to the end with:")
        print(f"python -m runner resume {shlex.quote(str(folder))}")
    elif result["status"] == "interrupted":
        print(f"stopped by {result['signal']} after step {result['steps']:,}; continue with:")
        print(f"{torchrun.command()} -m runner resume {folder}")
    else:
        print(f"The run failed: {result['error']}", file=sys.stderr)
        if "nor could log.txt" not in result["error"]:
            print(f"The traceback is in {folder / 'log.txt'}", file=sys.stderr)


def facts(config: Config, command: Sequence[str], run: Run | None) -> dict[str, Any]:
    """Where everything comes from: code, versions, machine, data."""
    splits: Mapping[str, Split] = run.splits if run is not None else {}
    return provenance.collect(
        Path.cwd(),
        command=command,
        seed=config.seed,
        data={name: {"samples": split.size, "sha256": split.fingerprint} for name, split in splits.items()},
        plan={name: split.plan for name, split in splits.items()},
        device=None if run is None else devices.describe(run.device),
        processes=1 if run is None else run.team.world,
    )


def finish(run: Run, result: dict[str, Any]) -> int:
    """Evaluate the last weights on what has not been evaluated yet, and fill in the result; the exit status."""
    progress = run.progress
    if run.stop.signal is None:
        if progress.step == 0:
            fit.evaluate_and_compare(run, {})
            fit.save(run)
            fit.settle(run)
        if "test" in run.splits:
            test = fit.evaluate_and_show(run, "test")
            if test is not None:
                progress.last |= test
                run.log.evaluated(progress.step, progress.epoch, test)
    result["best"] = progress.best and {"step": progress.best["step"], "metrics": progress.best["metrics"]}
    result["weights_sha256"] = weights_sha256(run.layout.whole(run.model.state_dict()))
    if run.scaler is not None:
        result["steps_skipped"] = run.scaler.skipped
        run.log.say(f"fp16's scaler skipped {run.scaler.skipped:,} of {progress.step:,} steps (infinite gradients)")
    if run.average is not None:
        result["ema_sha256"] = weights_sha256(run.layout.whole(run.average.state_dict()))
    if run.stop.signal == PRUNED:
        result["status"] = "pruned"
        result |= last_values(run)
        return EXIT_DONE
    if run.stop.signal is not None:
        result["status"] = "interrupted"
        result["signal"] = signal.Signals(run.stop.signal).name
        return EXIT_INTERRUPTED if run.stop.signal == signal.SIGINT else EXIT_STOPPED
    result["status"] = "completed"
    if run.stop.ended:
        result["stopped"] = run.stop.ended
        run.log.say(f"training ended after step {progress.step:,} of {run.total_steps:,}: {run.stop.ended}")
    say_unknown(run)
    result["metrics"] = {name: value for name, value in progress.last.items() if not name.startswith("train/")}
    result["train"] = {name: value for name, value in progress.last.items() if name.startswith("train/")}
    result["objective"] = progress.last.get(run.objective)
    result |= last_values(run)
    return EXIT_DONE


def say_unknown(run: Run) -> None:
    """Say that the objective had no value, where a run that trained never had one."""
    if run.progress.step and run.objective not in run.progress.last:
        known = fit.numbers_of(run.progress.last)
        run.log.say(f"train.objective: {run.objective} was never said, so nothing was compared; there are {known}")


def last_values(run: Run) -> dict[str, Any]:
    """The `metrics` of the last weights, and the `objective`."""
    last = run.progress.last
    metrics = {name: value for name, value in last.items() if not name.startswith("train/")}
    return {"metrics": metrics, "objective": last.get(run.objective)}


def figures(run: Run) -> dict[str, Any]:
    """Steps and seconds of a run."""
    clock = run.clock
    clock.pause()
    first_step, first_seconds = clock.first_epoch or (run.started_at, 0.0)
    steps, seconds = run.progress.step - first_step, clock.training - first_seconds
    return {
        "steps": run.progress.step,
        "seconds_evaluating": clock.evaluating,
        "seconds_saving": clock.saving,
        "steps_per_second": steps / seconds if steps > 0 and seconds > 0 else None,
    }
