"""Replay of a record: compare it before anything runs, then step by step; explain the difference."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.config.compose import compose
from runner.config.schema import PROCESSES
from runner.core.errors import ConfigError, Mistake
from runner.experiment import diagnosis
from runner.experiment.examine import require_valid
from runner.experiment.record.record_file import RECORD_SUFFIX, read_record_file
from runner.experiment.record.result import collect_provenance, hash_weights
from runner.experiment.record.state_differences import StateDifference, find_state_differences, find_unknown_parts
from runner.experiment.replay.causes import DATA, EVALUATION, UNKNOWN, Divergence, explain, find_phase
from runner.experiment.replay.comparison import WITHIN, is_rounded, match_numbers
from runner.experiment.replay.operators import find_operator
from runner.experiment.replay.source import ConfigChange, ReplaySource, load_checkpoint, open_source
from runner.experiment.replay.train_again import Replayed, prepare_again, train_on
from runner.log.trace_file import RecordedTrace
from runner.train import evaluation
from runner.train.state import Run

Say = Callable[[str], object]


@dataclass
class ReplayAnswer:
    """Answer of a replay.

    Attributes:
        name: the record, as it was given.
        same: whether all that was compared is bitwise the same, or, of a run in a stack, within rounding.
        first: the step that the replay began after.
        last: the last step that was compared.
        before: what differs from the record before anything runs.
        config: the keys whose values differ from the record's.
        missing: what the record lacks, and what follows from it.
        notes: what else is to be said.
        finding: the first difference.
        rounded: whether the run trained in a stack, so that its losses are compared within rounding.
    """

    name: str
    same: bool = True
    first: int = 0
    last: int = 0
    before: list[StateDifference] = field(default_factory=list)
    config: list[ConfigChange] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    finding: Divergence | None = None
    rounded: bool = False

    def describe(self) -> str:
        """Describe the answer in one sentence or two."""
        if self.finding is not None:
            return self.finding.describe()
        if self.last <= self.first:
            return "No step was compared: the record knows none, or --steps and --from leave none."
        steps = f"Steps {self.first + 1:,} to {self.last:,}"
        if self.rounded:
            return (
                f"{steps} agree within {WITHIN:g} of each loss, with bitwise the same order of samples. The run "
                "trained in a stack, and the replay alone: their sums have another order, so the last bits differ."
            )
        return f"{steps} are bitwise the same."

    def as_json(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        answer: dict[str, Any] = {
            "run": self.name,
            "same": self.same,
            "first": self.first + 1,
            "last": self.last,
            "before": [one.as_json() for one in self.before],
            "config": [one.as_json() for one in self.config],
            "missing": self.missing,
            "notes": self.notes,
            **({"within": WITHIN} if self.rounded else {}),
        }
        found = self.finding
        if found is not None:
            answer |= {"step": found.step, "phase": found.phase, "seen": found.seen, "evidence": found.evidence}
            answer |= {"other": found.other, "deterministic": not found.differs_by_itself}
            answer |= {"operator": found.operator} if found.operator else {}
            answer |= {"since": found.since} if found.since is not None else {}
        return answer | {"answer": self.describe()}


def replay(
    path: Path, trust: tuple[str, ...] = (), *, steps: int | None = None, start: int | None = None, say: Say = print
) -> ReplayAnswer:
    """Train a record again in a folder of its own, and compare it step by step.

    Args:
        path: a run directory, or a record file.
        trust: patterns of trusted names.
        steps: to train; all that the record knows, unless given.
        start: the step to begin after, from the run's checkpoint; the beginning, unless given.
        say: told what differs before anything runs.

    Raises:
        ConfigError: there is no such record or checkpoint, or its config is wrong.
        RunError: the data cannot be had.
    """
    source = open_source(path, trust, start=start)
    return replay_source(source, trust, steps=steps, start=start, say=say)


def replay_source(
    source: ReplaySource,
    trust: tuple[str, ...],
    *,
    steps: int | None = None,
    start: int | None = None,
    say: Say = print,
) -> ReplayAnswer:
    """Replay an opened record, see `replay`."""
    _refuse_processes(source)
    answer = ReplayAnswer(source.name, first=start or 0, missing=list(source.missing))
    saved = None if start is None else load_checkpoint(source, start)
    until = _find_end(source, answer, steps)
    answer.rounded = is_rounded(source.trace, until)
    folder = source.folder or Path(source.name)
    with diagnosis.convert_record_errors(folder), prepare_again(source.config, trust, saved, source.settings) as run:
        _compare_states(source, answer, run, say)
        replayed = train_on(run, source.trace, until)
        answer.last = min(replayed.reached, max(source.steps, answer.first))
        if replayed.log.found:
            answer.same = False
            answer.finding = find_phase(
                replayed.log.found, source.trace, answer.first, any(one.kind == "data" for one in answer.before)
            )
        else:
            _compare_values(source, answer, replayed)
    if answer.finding is not None:
        if answer.finding.phase != EVALUATION:
            _look_closer(source, answer, replayed, trust, saved)
        if is_rounded(source.trace, answer.finding.step) and not answer.finding.remark:
            answer.finding.remark = (
                f"The run trained in a stack and the replay alone, so they agree within rounding: {WITHIN:g} of a loss "
                "is allowed, but rounding grows with the steps."
            )
        explain(answer.finding, source, answer.before, answer.config)
        answer.last = max(answer.first, answer.finding.step - 1)
    elif replayed.error:
        answer.same = False
        answer.notes.append(f"the replay ended after step {replayed.reached:,}: {replayed.error}")
        say(answer.notes[-1])
    elif answer.last <= answer.first:
        answer.same = False
    return answer


def _refuse_processes(source: ReplaySource) -> None:
    if source.config.device.parallel in PROCESSES:
        rule = "must be trained by one process to be replayed"
        remedy = f"it was trained with device.parallel={source.config.device.parallel}: replay runs in one process"
        raise ConfigError([Mistake("RUN", rule, source.name, remedy=remedy, kind="unavailable")])


def _find_end(source: ReplaySource, answer: ReplayAnswer, steps: int | None) -> int:
    """Find the last step to train: that of the record, of `steps`, or the one before numbers were changed."""
    until = source.steps
    if source.boundary is not None:
        until = min(until, source.boundary)
        others = f": {'; '.join(source.changes)}" if source.changes else ""
        rest = f"`--from {source.boundary}` replays the rest, where there is a checkpoint of that step"
        told = rest if source.folder else "the rest is not replayed"
        answer.notes.append(f"the run was continued after step {source.boundary:,} with other numbers{others}; {told}")
    if not source.trace.steps and not source.logged and not source.evaluated:
        answer.missing.append("nothing of its steps is recorded: only the final weights and metrics can be compared")
    return until if steps is None else min(until, answer.first + steps)


def _compare_states(source: ReplaySource, answer: ReplayAnswer, run: Run, say: Say) -> None:
    """Compare code, versions, hardware, threads, data and config with the record, before anything runs."""
    now = json.loads(json.dumps(collect_provenance(source.config, ["replay"], run), default=str))
    if source.provenance:
        answer.before = find_state_differences(source.provenance, now)
        unknown = find_unknown_parts(source.provenance)
        answer.missing += [f"the record says nothing of {', '.join(unknown)}"] if unknown else []
    answer.config = source.list_config_changes()
    for line in (*answer.missing, *answer.notes):
        say(line)
    differences = [*map(str, answer.config), *map(str, answer.before)]
    if differences:
        say("\n".join(["differs from the record before anything runs:", *(f"  {one}" for one in differences)]))
    elif source.provenance:
        say("config, code, versions, hardware, threads and data are those of the record")


def _compare_values(source: ReplaySource, answer: ReplayAnswer, replayed: Replayed) -> None:
    """Compare the values of log lines and evaluations; at the end also weights and final metrics."""
    log = replayed.log
    recorded = [(source.logged, log.logged_values), (source.evaluated, log.evaluated_values)]
    steps = sorted({step for known, _ in recorded for step in known})
    for step in steps:
        for known, now in recorded:
            rounded = is_rounded(source.trace, step)
            if (found := _find_other_values(step, known.get(step, {}), now.get(step, {}), rounded=rounded)) is not None:
                if not source.trace.steps:
                    found.since = max([answer.first, *(earlier for earlier in steps if earlier < step)])
                answer.finding, answer.same = found, False
                return
    run = replayed.run
    if run.progress.step != source.result.get("steps") or source.boundary is not None or replayed.error:
        return
    weights = source.result.get("weights_sha256")
    rounded = is_rounded(source.trace, run.progress.step)
    if not rounded and weights is not None and weights != hash_weights(run.layout.whole(run.model.state_dict())):
        answer.finding = Divergence(run.progress.step, UNKNOWN, "the final weights differ", since=answer.first)
        answer.same = False
        return
    final = source.result.get("metrics")
    values = dict(run.progress.last)
    if isinstance(final, Mapping) and "test" in run.splits:
        values |= evaluation.evaluate_and_show(run, "test") or {}
    if not isinstance(final, Mapping):
        return
    if (found := _find_other_values(run.progress.step, final, values, rounded=rounded)) is not None:
        answer.finding, answer.same = found, False


def _find_other_values(
    step: int, was: Mapping[str, Any], now: Mapping[str, Any], *, rounded: bool
) -> Divergence | None:
    other = []
    for name in was:
        try:
            old, new = float(was[name]), float(now[name])
        except (KeyError, TypeError, ValueError):
            continue
        if not match_numbers(old, new, rounded=rounded):
            other.append(f"{name} was {old:.9g}, is {new:.9g}")
    if not other:
        return None
    phase = EVALUATION if not any(name.startswith("train/loss") for name in other) else "forward"
    return Divergence(step, phase, ", ".join(other[:4]))


def _look_closer(
    source: ReplaySource, answer: ReplayAnswer, first: Replayed, trust: tuple[str, ...], saved: dict[str, Any] | None
) -> None:
    """Train up to the difference once more: where two replays differ, find the operator in which they do."""
    finding = answer.finding
    assert finding is not None
    with prepare_again(source.config, trust, saved, source.settings) as run:
        again = train_on(run, first.log.traced, first.reached)
    step = _find_first_other_batch(first, again)
    found = again.log.found
    if step is not None and (not found or step <= found[0].step):
        finding.step, finding.phase, finding.differs_by_itself = step, DATA, True
        finding.seen = "the batch of this step is another one in each replay, of the same sample indices"
        finding.since = None
        return
    if not found:
        return
    own = find_phase(found, first.log.traced, answer.first, data_differs=False)
    if own.step > finding.step:
        return
    operator: dict[str, Any] = {}
    if own.step > answer.first:
        with prepare_again(source.config, trust, saved, source.settings) as run:
            train_on(run, RecordedTrace(), own.step - 1)
            operator = find_operator(run)
        if not operator:  # the step itself gives the same twice, so what differs is what was there before
            finding.remark = (
                f"Two replays in one process differ from step {own.step:,} on, though that step repeats itself: "
                "something of the code keeps a state from one to the next, or is rarely not deterministic."
            )
            return
    finding.step, finding.phase, finding.since, finding.differs_by_itself = own.step, own.phase, own.since, True
    finding.seen, finding.operator = f"in two replays: {own.seen}", operator


def _find_first_other_batch(one: Replayed, other: Replayed) -> int | None:
    both = sorted(one.batches.keys() & other.batches.keys())
    return next((step for step in both if one.batches[step] != other.batches[step]), None)


# ---- a folder of experiments


def replay_all(
    folder: Path, trust: tuple[str, ...] = (), *, steps: int | None = None, say: Say = print
) -> list[ReplayAnswer]:
    """Replay each record of a folder of experiments with the experiment file as it is now.

    Raises:
        ConfigError: the folder has no record, or an experiment is wrong now.
    """
    records = sorted(folder.glob(f"*{RECORD_SUFFIX}")) if folder.is_dir() else []
    if not records:
        rule = f"must be a folder with records (*{RECORD_SUFFIX})"
        remedy = f"`python -m runner record RUN --to {folder}/NAME{RECORD_SUFFIX}` writes one"
        raise ConfigError([Mistake("--all", rule, str(folder), f"argument `--all {folder}`", remedy, kind="file")])
    answers = []
    for path in records:
        say(f"{path}:")
        source = open_source(path, trust)
        if (path.with_name(path.name.removesuffix(RECORD_SUFFIX) + ".yaml")).is_file():
            _take_experiment(source, path, trust)
        else:
            source.missing.append(f"there is no experiment file beside {path}: its recorded config is replayed")
        answers.append(replay_source(source, trust, steps=steps, say=lambda line: say(f"  {line}")))
        say(f"  {answers[-1].describe()}")
    return answers


def _take_experiment(source: ReplaySource, path: Path, trust: tuple[str, ...]) -> None:
    """Take the experiment file's config as it is now, with the overrides of the recorded command."""
    name = path.name.removesuffix(RECORD_SUFFIX)
    command = source.provenance.get("command")
    words = [str(word) for word in command[3:]] if isinstance(command, list) and command[:1] == ["python"] else []
    overrides = [word for word in words if "=" in word and not word.startswith(("-", "experiment=", "run="))]
    source.began = dict(read_record_file(path)["config"])
    source.config = require_valid(compose([f"experiment={name}", *overrides]), trust).config


def print_line(text: str) -> None:
    """Print a line to stdout at once: what differs is to be read while the replay trains."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def count_same(answers: Sequence[ReplayAnswer]) -> int:
    """Count the answers that found no difference."""
    return sum(answer.same for answer in answers)
