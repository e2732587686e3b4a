"""Optuna as a source of points: what it asks, what it is told, and what a kill leaves of it."""

import functools
import itertools
import json
import math
import pickle
import random
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from runner.config import schema
from runner.config.check import imports
from runner.core.errors import ConfigError
from runner.sweep.ledger import JobRecord
from runner.sweep.search.distributions import make_dimension
from runner.sweep.search.optuna_search import JOURNAL, OptunaSearch
from runner.sweep.space.request import make_request
from tests.support import read_result
from tests.sweep import project

TPE = {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 3}
ASHA = {"_target_": "optuna.pruners.SuccessiveHalvingPruner", "min_resource": 1, "reduction_factor": 2}
SPACE = ("optimizer.lr=tag(log, interval(0.001, 1))", "model=small_cnn,mlp", "optimizer.momentum=interval(0, 0.9)")
SAMPLER = ("sweep.search.sampler._target_=optuna.samplers.TPESampler",)
TWO = (*SAMPLER, "seed=1,2")
Ended = Mapping[str, Any]


@functools.cache
def space_of(*arguments: str) -> Any:
    return make_request([*SAMPLER, *arguments], Path.cwd()).space


def search(
    folder: Path | None, *arguments: str, objectives: Any = None, seed: int = 0, **settings: Any
) -> OptunaSearch:
    chosen = schema.Search(**{"sampler": TPE, "trials": 8} | settings)
    return OptunaSearch(
        folder, space_of(*(arguments or SPACE)), chosen, objectives or {"val/accuracy": "max"}, seed=seed
    )


def row(point: Any, **columns: Any) -> JobRecord:
    """The job of a point: its identity is its arguments, its result a function of them."""
    name = " ".join(point.overrides)
    return JobRecord(id=name, number=0, overrides=list(point.overrides), path=str(abs(hash(name))), **columns)


def completed(point: Any) -> dict[str, Any]:
    lr = next(float(o.partition("=")[2]) for o in point.overrides if o.startswith("optimizer.lr="))
    return {"status": "completed", "objective": -abs(math.log(lr / 0.05)) - ("model=mlp" in point.overrides)}


def drive(
    source: OptunaSearch, result: Callable[[Any], Ended] = completed, known: dict[Any, Ended] | None = None
) -> list[Any]:
    """What a controller with one slot does: a job that is known has its result at once, another one is run."""
    known = {} if known is None else known
    points = []
    while (point := source.next()) is not None:
        points.append(point)
        ran = known.get(point.overrides) or result(point)
        known[point.overrides] = ran
        source.started(point, row(point))
        source.ended(point, row(point, **ran))
    source.close()
    return points


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("optimizer.lr=interval(0.1, 1)", "FloatDistribution(high=1.0, log=False, low=0.1, step=None)"),
        ("optimizer.lr=tag(log, interval(0.1, 1))", "FloatDistribution(high=1.0, log=True, low=0.1, step=None)"),
        ("seed=int(interval(1, 10))", "IntDistribution(high=9, log=False, low=1, step=1)"),
        ("seed=range(2, 11, 3)", "IntDistribution(high=8, log=False, low=2, step=3)"),
        ("seed=tag(log, choice(1, 10, 100))", "FloatDistribution(high=100.0, log=True, low=1.0, step=None)"),
        ("seed=1,5,6", "CategoricalDistribution(choices=('seed=1', 'seed=5', 'seed=6'))"),
        ("model=mlp,small_cnn", "CategoricalDistribution(choices=('model=mlp', 'model=small_cnn'))"),
    ],
)
def test_hydras_syntax_is_the_space(argument: str, expected: str) -> None:
    assert expected == str(make_dimension(space_of(argument).axes[0]).distribution)


def test_an_asked_value_is_one_of_the_argument() -> None:
    """A number between two members of a range or a list stands for the nearer one; an interval's is short to read."""
    source = search(None, "seed=range(2, 11, 3)", "loader.batch_size=tag(log, choice(8, 64, 512))", SPACE[0], trials=30)
    points = [dict(o.split("=") for o in point.overrides if "sweep" not in o) for point in drive(source)]
    assert {"2", "5", "8"} >= {point["seed"] for point in points}
    assert {"8", "64", "512"} == {point["loader.batch_size"] for point in points}
    assert all(len(point["optimizer.lr"].replace("0.", "").lstrip("0")) <= 4 for point in points)


@pytest.mark.parametrize("name", ["TPESampler", "CmaEsSampler", "GPSampler", "NSGAIISampler", "QMCSampler"])
def test_a_kill_at_any_byte_changes_no_point(name: str, tmp_path: Path, seed: int) -> None:
    """Begun again with what a kill left of its journal, a search asks for the points of one that was not disturbed."""
    sampler = {"_target_": f"optuna.samplers.{name}"} | ({"n_startup_trials": 3} if name[0] in "TG" else {})
    space = (SPACE[0], SPACE[2])
    whole = search(tmp_path, *space, sampler=sampler, seed=7)
    undisturbed, results = drive(whole), {}
    drive(search(tmp_path, *space, sampler=sampler), known=results)
    journal = (tmp_path / JOURNAL).read_bytes()
    draw = random.Random(seed)
    for cut in sorted(draw.sample(range(len(journal)), 2 if name[0] == "G" else 6)):  # a Gaussian process is slow
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / JOURNAL).write_bytes(journal[:cut])
        again = drive(search(folder, *space, sampler=sampler, seed=7), known=dict(results))
        assert [point.overrides for point in undisturbed] == [point.overrides for point in again], cut


def ask_batches(source: OptunaSearch, known: dict[Any, Ended], order: random.Random) -> list[list[Any]]:
    """What a controller does with batches, whose jobs end in any order: the points of each."""
    batches = []
    while (point := source.next()) is not None:
        batch = [point]
        while source.has_more:
            batch.append(source.next())
        batches.append([point.overrides for point in batch])
        assert source.next() is None, "no job of the batch has ended"
        for point in order.sample(batch, len(batch)):
            known[point.overrides] = ran = known.get(point.overrides) or completed(point)
            source.ended(point, row(point, **ran))
    return batches


def test_the_points_of_a_batch_depend_on_those_before_and_on_no_order(tmp_path: Path, seed: int) -> None:
    """Batches of five of twelve: asked at once, the next after the last end; the same after a kill at any byte."""
    draw, results = random.Random(seed), {}
    whole = ask_batches(search(tmp_path, trials=12, batch=5), results, draw)
    assert [5, 5, 2] == [len(batch) for batch in whole]
    journal = (tmp_path / JOURNAL).read_bytes()
    for cut in draw.sample(range(len(journal)), 8):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / JOURNAL).write_bytes(journal[:cut])
        again = ask_batches(search(folder, trials=12, batch=5), dict(results), draw)
        assert [*itertools.chain(*whole)] == [*itertools.chain(*again)], cut


def test_finished_trials_count_and_are_told_once(tmp_path: Path) -> None:
    ran: list[Any] = []

    def run(point: Any) -> Ended:
        ran.append(point.overrides)
        return completed(point)

    known: dict[Any, Ended] = {}
    first = drive(search(tmp_path, trials=5), run, known)
    second = drive(search(tmp_path, trials=8), run, known)
    study = optuna.load_study(study_name="sweep", storage=storage(tmp_path))

    assert [p.overrides for p in first] == [p.overrides for p in second[:5]], "each finds its job again"
    assert len(ran) == len(set(ran)) == len(second) == len(study.trials) == 8
    assert [known[p.overrides]["objective"] for p in second] == [trial.value for trial in study.trials]
    assert drive(search(tmp_path, trials=8), run, known)[8:] == []


def storage(folder: Path) -> Any:
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL)))


def states(folder: Path) -> list[str]:
    return [trial.state.name for trial in optuna.load_study(study_name="sweep", storage=storage(folder)).trials]


def test_how_a_job_ended_is_what_the_study_hears(tmp_path: Path) -> None:
    """What the machine did is no result; a diverged job is a bad place, which samplers hear of as a pruned trial."""
    ends: list[Ended] = [
        {"status": "completed", "objective": 0.5},
        {"status": "completed", "objective": math.nan},
        {"status": "failed", "cause": "exception"},
        {"status": "failed", "cause": "non-finite"},
        {"status": "failed", "cause": "killed"},
        {"status": "interrupted"},
        {"status": "pruned", "objective": 0.1},
    ]
    coming = iter(ends)
    points = drive(search(tmp_path, trials=7), lambda _: next(coming))
    assert ["COMPLETE", "FAIL", "FAIL", "PRUNED", "RUNNING", "RUNNING", "PRUNED"] == states(tmp_path)

    again = drive(search(tmp_path, trials=7), known={p.overrides: e for p, e in zip(points, ends, strict=True)} | {
        points[4].overrides: {"status": "completed", "objective": 0.7},
        points[2].overrides: {"status": "completed", "objective": 0.9},  # retried with sweep.retry=all
    })  # fmt: skip
    assert [p.overrides for p in points] == [p.overrides for p in again]
    assert ["COMPLETE", "FAIL", "FAIL", "PRUNED", "COMPLETE", "RUNNING", "PRUNED", "COMPLETE"] == states(tmp_path)
    assert len(drive(search(tmp_path, trials=8), lambda _: {"status": "interrupted"})) == 8, (
        "the later result is no trial"
    )


def test_several_objectives_come_from_the_metrics(tmp_path: Path) -> None:
    source = search(tmp_path, objectives={"val/accuracy": "max", "val/loss": "min"}, trials=4)
    metrics = iter([{"val/accuracy": i, "val/loss": -i, "test/loss": 9.0} for i in range(3)] + [{"val/accuracy": 1}])
    drive(source, lambda _: {"status": "completed", "objective": 5.0, "metrics": next(metrics)})
    study = optuna.load_study(study_name="sweep", storage=storage(tmp_path))
    assert [[0, 0], [1, -1], [2, -2], None] == [trial.values for trial in study.trials]
    assert [2] == [trial.number for trial in study.best_trials]


@pytest.mark.parametrize(
    ("arguments", "objectives", "words"),
    [
        ((*SPACE[:1], "model=mlp,lenet", SPACE[2]), {"val/accuracy": "max"}, "model must have the kind of values"),
        (SPACE, {"val/accuracy": "min"}, "sweep.search.objectives must be those"),
    ],
)
def test_a_study_of_something_else_is_refused(arguments: Any, objectives: Any, words: str, tmp_path: Path) -> None:
    drive(search(tmp_path, trials=2))
    with pytest.raises(ConfigError, match=words):
        search(tmp_path, *arguments, objectives=objectives).next()


class Harmful:
    def __reduce__(self) -> Any:
        return print, ("unpickled",)


def test_a_study_of_a_stranger_is_not_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CMA-ES keeps its state as a pickle in the study: what it does not write itself is refused, and not called."""
    cma = {"_target_": "optuna.samplers.CmaEsSampler"}
    for trials in (10, 12):  # the second time it reads its own
        drive(search(tmp_path, SPACE[0], SPACE[2], sampler=cma, trials=trials))
    journal = (tmp_path / JOURNAL).read_text()
    (state,) = set(re.findall(r'"cma:optimizer:0": "([0-9a-f]+)"', journal)[-1:])
    (tmp_path / JOURNAL).write_text(journal.replace(state, pickle.dumps(Harmful()).hex() + "0"))
    with pytest.raises(ConfigError, match=r"holds a pickled `builtins\.print`"):
        search(tmp_path, SPACE[0], SPACE[2], sampler=cma).next()
    assert not capsys.readouterr().out


def test_a_wider_interval_goes_on_with_the_study(tmp_path: Path) -> None:
    first = drive(search(tmp_path, trials=3))
    wider = drive(search(tmp_path, "optimizer.lr=tag(log, interval(0.0001, 10))", *SPACE[1:], trials=5))
    assert [p.overrides for p in first] == [p.overrides for p in wider[:3]]


def test_jobs_ask_from_their_processes_and_are_pruned_once_they_lag(tmp_path: Path) -> None:
    """ASHA on the values of jobs: the first goes on, a worse one stops at its first rung, a better one does not."""
    from runner.sweep.pruning import connect

    source = search(tmp_path, pruner=ASHA)
    stopped: dict[int, list[int]] = {}
    for number, level in enumerate([5.0, 1.0, 9.0]):
        point = source.next()
        assert point is not None
        source.started(point, row(point))
        judge = connect(source.judge, row(point).id, tmp_path)
        assert judge is not None
        asked = [judge(count, level) for count in (1, 2, 3)]
        stopped[number] = [count for count, stop in enumerate(asked, 1) if stop]
        source.ended(point, row(point, status="completed", objective=level))
    source.close()
    assert {0: [], 1: [1], 2: []} == {number: counts[:1] for number, counts in stopped.items()}
    assert not judge(4, 0.0), "nobody answers any more: the job goes on"


def test_what_was_answered_is_answered_again_after_a_restart(tmp_path: Path) -> None:
    """A job that a kill took back to its last checkpoint asks again; its earlier values are not judged as new ones."""
    source = search(tmp_path, pruner=ASHA)
    first, second = source.next(), source.next()
    assert not any(source.reached(first.tag, count, 9.0) for count in (1, 2, 3))
    assert source.reached(second.tag, 1, 1.0)
    source.close()

    again = search(tmp_path, pruner=ASHA)
    assert (first.overrides, second.overrides) == (again.next().overrides, again.next().overrides)
    assert [False, False] == [again.reached(first.tag, count, 9.0) for count in (2, 3)]
    assert again.reached(second.tag, 1, 1.0)
    assert {1: 9.0, 2: 9.0, 3: 9.0} == optuna.load_study(study_name="sweep", storage=storage(tmp_path)).trials[
        0
    ].intermediate_values
    again.close()


def test_elsewhere_the_log_is_read_and_a_file_says_stop(tmp_path: Path) -> None:
    from runner.sweep.pruning import PRUNE, LogPruner, connect

    asked: list[Any] = []

    def answer(job: str, count: int, value: float) -> bool:
        asked.append((job, count, value))
        return value < 0.3

    reader = LogPruner(answer, "val/accuracy")
    reader.close()  # `look` is what its thread does each second
    (tmp_path / PRUNE).touch()  # of an earlier attempt
    reader.follow("a", tmp_path)
    judge = connect(reader.address, "a", tmp_path)
    events = [{"step": 1, "train/loss": 1.0}, {"step": 2, "val/accuracy": 0.5}, {"step": 4, "val/accuracy": 0.2}]
    for torn, expected in (("", False), ('{"step": 5, "val', True)):
        upto = 2 if not torn else 3
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events[:upto]) + torn)
        reader.look()
        assert expected == judge(9, 9.0)
    assert [("a", 1, 0.5), ("a", 2, 0.2)] == asked


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("sweep.search.sampler={_target_: optuna.samplers.CmaEsSampler, restart_strategy: x}",),
            "1. sweep.search.sampler is refused by `optuna.samplers.CmaEsSampler`",
        ),
        (("sweep.search.pruner.reduction_factor=1",), "1. sweep.search.pruner is refused by"),
        (
            ("sweep.search.sampler={_target_: optuna.samplers.GridSampler, search_space: {x: [1]}}",),
            "1. sweep.search.sampler cannot search this space: ValueError",
        ),
    ],
)
def test_what_shows_only_in_use_is_said_before_the_first_job(arguments: Any, words: str, runner: Any) -> None:
    assert words in runner("check", "-m", "sweep=optuna_asha", *arguments).out
    ran = runner("-m", "sweep=optuna_asha", *arguments)
    assert (2, True) == (ran.status, words.removeprefix("1. ") in ran.err)
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("optimizer.lr=interval(0, 1)", "sweep.search.trials=3"), "has no effect without `sweep.search.sampler`"),
        (("optimizer.lr=interval(0, 1)",), "let a search choose"),
        (SAMPLER, "has nothing to choose"),
        ((*TWO, "sweep.search.sampler.sed=1"), "did you mean `sweep.search.sampler.seed`"),
        (("sweep.search.sampler._target_=optuna.samplers.TPESample", "seed=1,2"), "optuna.samplers.TPESampler"),
        (("sweep.search.sampler._target_=optuna.pruners.NopPruner", "seed=1,2"), "subclass of optuna.samplers"),
        ((*TWO, "sweep.search.pruner._target_=optuna.samplers.TPESampler"), "subclass of optuna.pruners.BasePruner"),
        ((*TWO, "sweep.search.pruner._target_=optuna.study.create_study"), "is not among the parts of `optuna`"),
        ((*TWO, "sweep.search.objectives={val/loss: min}"), "must be two or more"),
        ((*TWO, "sweep.search.objectives={val/loss: min, val/acuracy: max}"), "did you mean `val/accuracy`"),
        ((*TWO, "optimizer.momentum=interval(-2, 0.5)"), "argument `optimizer.momentum=interval"),
        ((*SAMPLER, "model=mlp,small_cnn", "model.width=range(8, 16)"), "model.width is not an argument"),
        (("sweep=optuna_asha", "sweep.seeds=2"), "must not stand beside"),
        (("sweep=optuna_asha", "train.evaluate_every=null"), "`val/accuracy` has one value, at the end of a job"),
        (("sweep=optuna_asha", "sweep.search.objectives={val/loss: min, val/accuracy: max}"), "prunes by one"),
    ],
)  # fmt: skip
def test_a_wrong_search_is_said_before_anything_starts(arguments: Any, words: str, runner: Any, tmp_path: Path) -> None:
    ran = runner("check", "-m", *arguments)
    assert (2, True) == (ran.status, words in ran.out), ran.out
    assert not (tmp_path / "outputs").exists()


def test_the_shipped_search_has_no_mistake(runner: Any) -> None:
    assert runner("check", "-m", "sweep=optuna_asha").out == "No mistakes.\n"
    assert runner("check", "-m", "sweep=optuna_asha", "model=mlp,small_cnn").status == 0


def test_a_missing_extra_is_named(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    find = imports._find_spec
    monkeypatch.setattr(imports, "_find_spec", lambda name: None if name == "optuna" else find(name))
    assert "pip install 'yaml-experiment-runner[optuna]'" in runner("check", "-m", "sweep=optuna_asha").out


# ---- whole commands

ROUND = (
    *("-m", "experiment=quick", "train.duration=6ep", "model.pause=0.02", "sweep.slots=2", "sweep.search.trials=7"),
    "sweep.search.sampler={_target_: optuna.samplers.TPESampler, n_startup_trials: 2}",
    "sweep.search.pruner={_target_: optuna.pruners.SuccessiveHalvingPruner, min_resource: 1, reduction_factor: 2}",
    "optimizer.lr=tag(log, interval(0.001, 1))",
)


def test_a_killed_search_loses_nothing_and_a_pruned_job_can_be_trained_to_its_end(tmp_path: Path) -> None:
    project.write(tmp_path)
    process = project.start(tmp_path, *ROUND)
    project.wait_for(lambda: len(done_in(tmp_path)) >= 2)
    process.kill()
    process.wait()
    before = {row.id: row for row in done_in(tmp_path)}

    assert project.here(tmp_path, *ROUND) == 0, project.said(tmp_path)
    rows = project.rows(tmp_path)
    folder = project.sweep_of(tmp_path)
    assert 7 == len(rows) == len(states(folder))
    assert {"completed", "pruned"} == {row.status for row in rows}
    assert before == {row.id: row for row in rows if row.id in before}, "what was finished did not run again"
    pruned = next(row for row in rows if row.status == "pruned")
    said = read_result(folder / pruned.path)
    last = (folder / pruned.path / "checkpoints" / "last.pt").resolve()
    assert last.name == f"step_{said['steps']:08d}.pt"
    logged = (folder / pruned.path / "metrics.jsonl").read_text().splitlines()
    assert pruned.objective == said["objective"] == json.loads(logged[-1])["val/loss"]

    assert project.here(tmp_path, "resume", str(folder / pruned.path)) == 0
    assert project.here(tmp_path, *ROUND) == 0
    assert "a search of 7 trials, with 7 jobs from before" in project.said(tmp_path)
    (row,) = (row for row in project.rows(tmp_path) if row.id == pruned.id)
    took = read_result(folder / pruned.path)["seconds"]
    assert row.end - row.start == pytest.approx(took), "the pause before it was continued is not its time"
    study = optuna.load_study(study_name="sweep", storage=storage(folder))
    assert ("completed", row.objective, "COMPLETE") == (row.status, study.trials[-1].value, study.trials[-1].state.name)
    assert 8 == len(study.trials)


def done_in(folder: Path) -> list[JobRecord]:
    return [row for row in project.rows(folder) if row.status in ("completed", "pruned")]


@pytest.mark.exhaustive
def test_a_search_that_is_killed_again_and_again_ends_as_one_that_never_was(tmp_path: Path, seed: int) -> None:
    """With one slot a search depends on nothing but its seed: the same points, bits and verdicts after any kill."""
    draw = random.Random(seed)
    line = (*ROUND, "sweep.slots=1", "sweep.search.trials=10")
    folders = []
    for name in ("undisturbed", "killed"):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        project.write(folders[-1])
    assert project.here(folders[0], *line) == 0, project.said(folders[0])
    kills = finished = 0
    while True:
        process = project.start(folders[1], *line)
        finished += draw.randrange(1, 4)
        while process.poll() is None and len(done_in(folders[1])) < finished:
            time.sleep(0.02)
        if process.poll() is not None:
            break
        time.sleep(draw.random() / 2)
        process.kill()
        process.wait()
        kills += 1
    assert process.returncode == 0, project.said(folders[1])
    assert kills > 0
    assert project.bits(folders[0]) == project.bits(folders[1])
    whole, cut = (
        [(t.params, t.value, t.state, t.intermediate_values) for t in optuna.load_study(
            study_name="sweep", storage=storage(project.sweep_of(folder))
        ).trials]
        for folder in folders
    )  # fmt: skip
    assert whole == cut
