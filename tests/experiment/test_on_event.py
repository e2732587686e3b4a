"""The command of `on_event`: what it gets, when, and that nothing it does harms a run."""

import json
import time

import pytest

from runner.config.schema import OnEvent
from runner.experiment.on_event import tell_event
from tests.support import read_result

QUICK = (
    "experiment=digits_mlp",
    "scheduler=none",
    "device=cpu",
    "log=quiet",
    "dataset.limit=100",
    "train.duration=2st",
)


def call(command, capsys, event="ended", **settings):
    """Run a command for an event; what was noted, and what standard error says."""
    noted = []
    tell_event(
        OnEvent(command=command, **settings), event, {"run": "outputs/a", "objective": float("nan")}, noted.append
    )
    return noted, capsys.readouterr().err


@pytest.mark.parametrize("command", ["cat > got.json", ["tee", "got.json"]])
def test_the_command_reads_one_line_of_json(command, elsewhere, capsys):
    """A text through the shell, a list as a program: both get event, time, host and facts, NaN as a text."""
    noted, said = call(command, capsys)
    facts = json.loads((elsewhere / "got.json").read_text())
    assert {"event": "ended", "run": "outputs/a", "objective": "NaN"}.items() <= facts.items()
    assert abs(facts["time"] - time.time()) < 10
    assert said == ""
    assert noted[0].startswith("on_event (ended): `")
    assert "is done after" in noted[0]


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("exit 3", "ended with status 3"),
        (["not_there_at_all"], "cannot be run: No such file or directory"),
        (["cat", "a\0b"], "cannot be run"),
        ("exec 0<&-; true", ""),
        ("kill -9 $$", "ended with status -9"),
        ("echo words; exit 1", "words"),
    ],
)
def test_a_failing_command_is_said_and_raises_nothing(command, problem, elsewhere, capsys):
    """Its status or why it cannot be run, and what it printed."""
    noted, said = call(command, capsys)
    assert len(noted) == 1
    assert problem in noted[0]
    assert ("the run is as it was" in said) == bool(problem)


@pytest.mark.parametrize("command", ["sleep 60", "trap '' TERM; sleep 60 & wait", ["sleep", "60"]])
def test_a_hanging_command_is_killed_with_its_children(command, elsewhere, capsys):
    """After `timeout` seconds, whatever it ignores."""
    began = time.perf_counter()
    noted, _ = call(command, capsys, timeout=0.2)
    assert time.perf_counter() - began < 5
    assert "it took longer than on_event.timeout (0.2 s)" in noted[0]


def test_a_child_that_goes_on_is_not_waited_for(elsewhere, capsys):
    """A command may leave something behind that holds its output."""
    began = time.perf_counter()
    call("sleep 20 & echo $!", capsys)
    assert time.perf_counter() - began < 5


def test_only_the_events_that_are_asked_for_run_it(elsewhere, capsys):
    assert call("true", capsys, event="sweep_done", events=["failed"]) == ([], "")


def test_a_run_tells_its_end(runner, tmp_path):
    """The completed run's result, with its directory; the log says what the command said."""
    ran = runner(*QUICK, "on_event.command='cat > got.json; echo mailed'")
    facts = json.loads((tmp_path / "got.json").read_text())
    result = read_result(ran.folder)
    assert (facts["event"], facts["run"], facts["exit"]) == ("ended", str(tmp_path / ran.folder), 0)
    assert {name: facts[name] for name in result} == result
    assert "is done after" in (ran.folder / "log.txt").read_text()
    assert "mailed" not in ran.out + ran.err


def test_a_failed_run_tells_its_failure(runner, tmp_path):
    """`failed`, with the error; the exit status is the run's."""
    ran = runner(*QUICK, "optimizer.lr=1e30", "train.duration=20st", "on_event.command=[tee,got.json]")
    facts = json.loads((tmp_path / "got.json").read_text())
    assert (ran.status, facts["event"], facts["status"], facts["cause"]) == (1, "failed", "failed", "non-finite")


def test_a_resume_runs_the_command_only_where_it_is_given_again_or_trusted(runner, tmp_path):
    """A record does not give it; the command line and `--trust on_event` do."""
    ran = runner(*QUICK, "on_event.command='echo x >> got'")
    resumed = [
        runner("resume", str(ran.folder), f"train.duration={steps}st", *more)
        for steps, more in ((3, ()), (4, ("--trust", "on_event")), (5, ("on_event.command='echo y >> got'",)))
    ]
    assert [one.status for one in resumed] == [0, 0, 0]
    assert (tmp_path / "got").read_text() == "x\nx\ny\n"
    assert "on_event.command of the record is not run: give it again" in resumed[0].err


@pytest.mark.exhaustive  # a fork server
def test_a_sweep_tells_its_end_once(runner, tmp_path):
    """Jobs tell nothing; the sweep tells its folder, its jobs by status and the best."""
    ran = runner("-m", *QUICK, "seed=0,1", "on_event.command='cat >> got.json'")
    (facts,) = [json.loads(line) for line in (tmp_path / "got.json").read_text().splitlines()]
    assert (ran.status, facts["event"], facts["jobs"]) == (0, "sweep_done", {"completed": 2})
    assert facts["best"]["run"].startswith(facts["sweep"])
