"""The page for programs, `docs/reference/json.md`, says what `--json` prints: events, verbs, exit statuses."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

from runner.__main__ import VERBS, main
from runner.core import exit_status
from tests.support import keep_process_state, read_result

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "json.md").read_text()
QUICK = ("experiment=digits_mlp", "scheduler=none", "device=cpu", "dataset.limit=100", "log.progress=false")
SHORT = (*QUICK, "train.duration=2st")


def read_rows(title):
    """Read the cells of the first table below a heading of the page."""
    table = PAGE.split(f"\n## {title}\n")[1].split("\n|---")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[1:]]


EVENTS = {
    re.sub("`", "", row[0]): set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", row[2])))
    for row in read_rows("Events")
}
ANSWERS = {row[0].strip("`"): row[1] for row in read_rows("Answers")}


def listen(folder, *argv):
    """Run a command with `--json` in this process: its exit status, the lines of standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with keep_process_state(), chdir(folder), redirect_stdout(out), redirect_stderr(err):
        status = main([*argv, "--json"])
    lines = out.getvalue().splitlines()
    return status, [json.loads(line, parse_constant=pytest.fail) for line in lines], err.getvalue()


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The events of a run, and the folder that it was started in."""
    folder = tmp_path_factory.mktemp("told")
    return folder, listen(folder, *SHORT)


@pytest.mark.parametrize("event", ["started of a run", "log", "evaluated", "saved", "note", "ended of a run"])
def test_the_page_has_the_fields_of_a_runs_events(told, event):
    """Each event has the fields of its row; `ended` also those of `result.json`."""
    _, (_, lines, _) = told
    found = [set(line) - {"event", "time"} for line in lines if line["event"] == event.split()[0]]
    if event.startswith("ended"):
        assert all(EVENTS[event] - {"json"} <= fields for fields in found)
    else:
        assert found == [EVENTS[event]] * len(found)
    assert len(found) >= 1


def test_a_run_tells_its_story_in_order(told):
    """It starts, logs, evaluates, saves and ends; the last line is the result with directory and exit status."""
    folder, (status, lines, err) = told
    events = [line["event"] for line in lines if line["event"] != "note"]
    result = read_result(folder / lines[-1]["run"])
    assert (status, events) == (0, ["started", "log", "evaluated", "saved", "evaluated", "ended"])
    assert {name: lines[-1][name] for name in result} == result
    assert lines[-1]["run"] in err


def test_a_resume_tells_events_too(told):
    """It begins where the run had ended; of a run that is done `ended` is the only line."""
    folder, (_, lines, _) = told
    _, resumed, _ = listen(folder, "resume", lines[-1]["run"], "train.duration=3st")
    assert (resumed[0]["event"], resumed[0]["step"], resumed[-1]["steps"]) == ("started", 2, 3)
    status, again, _ = listen(folder, "resume", lines[-1]["run"])
    assert (status, [line["event"] for line in again], again[0]["steps"]) == (0, ["ended"], 3)


@pytest.mark.parametrize(
    "argv",
    [
        ("optimizer.l=3", "modl=4"),
        ("-m", "optimizer.l=1,2"),
        ("resume", "nowhere"),
        ("trian",),
        ("--jsn",),
        ("check", "optimizer.l=3"),
        ("evaluate", "nowhere"),
        ("show", "dta"),
        ("report", "nowhere"),
    ],
)
def test_a_wrong_request_is_one_line_with_its_mistakes(argv, tmp_path):
    """Exit status 2, one object on standard output, each mistake with key and rule; nothing is created."""
    status, lines, _ = listen(tmp_path, *argv)
    (line,) = lines
    assert (status, line["count"], list(tmp_path.iterdir())) == (2, len(line["mistakes"]), [])
    assert all(mistake["key"] and mistake["rule"] for mistake in line["mistakes"])
    assert set(line) >= ({"event", "exit", "status"} if argv[0] not in VERBS or argv[0] == "resume" else set())


def test_a_failed_run_tells_why(tmp_path):
    """The last line has status, cause and error; standard error has the same in words."""
    status, lines, err = listen(tmp_path, *QUICK, "optimizer.lr=1e30", "train.duration=20st")
    last = lines[-1]
    assert (status, last["event"], last["exit"], last["status"], last["cause"]) == (
        1,
        "ended",
        1,
        "failed",
        "non-finite",
    )
    assert last["error"] in err


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_stopped_run_tells_the_signal(number, exit_code, tmp_path, monkeypatch):
    """After it has saved: `saved`, then `ended` as interrupted."""
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *a, **k: (step(*a, **k), os.kill(os.getpid(), number))[0])
    status, lines, _ = listen(tmp_path, *QUICK, "train.duration=50st")
    assert (status, lines[-2]["event"], lines[-1]["event"]) == (exit_code, "saved", "ended")
    assert (lines[-1]["status"], lines[-1]["signal"]) == ("interrupted", signal.Signals(number).name)


def test_a_warning_of_python_is_an_event(tmp_path, monkeypatch):
    """It is told with its category and place."""
    from runner.train import loop

    def warn(run):
        import warnings

        with warnings.catch_warnings(action="always"):
            warnings.warn("careful", UserWarning, stacklevel=1)
        fit(run)

    fit = loop.fit
    monkeypatch.setattr(loop, "fit", warn)
    monkeypatch.setattr("warnings.showwarning", lambda *_, **__: None)
    _, lines, _ = listen(tmp_path, *SHORT)
    (warning,) = [line for line in lines if line["event"] == "warning"]
    assert (warning["text"], warning["category"]) == ("careful", "UserWarning")
    assert set(warning) - {"event", "time"} == EVENTS["warning"]


@pytest.mark.exhaustive  # a fork server
def test_the_page_has_the_fields_of_a_sweeps_events(tmp_path):
    """A job that fails is told with its cause, the sweep with the numbers of failed jobs."""
    status, lines, _ = listen(tmp_path, "-m", *QUICK, "train.duration=20st", "optimizer.lr=0.1,1e30")
    for event in ("started of a sweep", "job_started", "job_ended", "ended of a sweep"):
        found = [set(line) - {"event", "time"} for line in lines if line["event"] == event.split()[0]]
        assert found == [EVENTS[event]] * len(found) != []
    causes = {line["number"]: line["cause"] for line in lines if line["event"] == "job_ended"}
    assert (status, causes, lines[-1]["failed"]) == (1, {0: "", 1: "non-finite"}, [1])


def test_every_verb_has_a_row():
    """A verb whose answer is not on the page is not for programs yet."""
    rows = {name.split()[0] for name in ANSWERS}
    assert VERBS.keys() - rows == {"resume"}


def test_every_verb_answers_through_the_stream():
    """A verb prints JSON by `print_json`, which prints of other code cannot mix with."""
    files = {name.rpartition(".")[2]: ROOT / f"{name.replace('.', '/')}.py" for name in VERBS.values()}
    texts = {name: file.read_text() for name, file in files.items()}
    assert [name for name, text in texts.items() if "json.dumps(" in text or "print(to_json(" in text] == []


COMMANDS = {
    "check": ("check", *SHORT),
    "why": ("why", "optimizer.lr"),
    "explain": ("explain", *SHORT),
    "show schedule": ("show", "schedule", *SHORT),
    "show model": ("show", "model", *SHORT),
    "evaluate": ("evaluate", "RUN"),
    "ls": ("ls",),
    "predict": ("predict", "RUN", "--split", "test"),
    "export": ("export", "RUN", "--to", "state_dict"),
    "replay": ("replay", "RUN", "--steps", "1"),
    "record": ("record", "RUN", "--to", "told.record.json"),
}
SLOW = {
    "show data": ("show", "data", *SHORT),
    "audit": ("audit", "init", *SHORT),
    "find lr": ("find", "lr", *SHORT, "--steps", "20"),
    "find batch_size": ("find", "batch_size", *SHORT, "--max", "64"),
    "check resume": ("check", "resume", *SHORT, "--steps", "1"),
    "replay": ("replay", "RUN"),
    "export": ("export", "RUN", "--to", "safetensors"),
    "diff": ("diff", "RUN", "experiment=digits_mlp seed=1"),
}


@pytest.mark.parametrize("verb", [*COMMANDS, *(pytest.param(verb, marks=pytest.mark.exhaustive) for verb in SLOW)])
def test_the_page_has_the_keys_of_a_verbs_answer(verb, told):
    """The keys of its one line are those of the row."""
    folder, (_, lines, _) = told
    argv = [lines[-1]["run"] if word == "RUN" else word for word in (COMMANDS | SLOW)[verb]]
    _, (answer,), _ = listen(folder, *argv)
    keys = set(answer[0] if isinstance(answer, list) else answer)
    assert keys == set(re.findall(r"`(\w+)`", re.split("[;:]", ANSWERS[verb])[0]))


def test_the_page_has_every_exit_status():
    """The statuses of the command line; two that jobs of a sweep tell it by are its own affair."""
    known = {
        value
        for name, value in vars(exit_status).items()
        if name.startswith("EXIT_") and name not in ("EXIT_DISK", "EXIT_APART")
    }
    assert {int(row[0]) for row in read_rows("Exit statuses")} == known


# ---- processes

SCRIPT = """
import random, sys
from runner.core.event_stream import claim_stdout, emit
with claim_stdout(events=True):
    print("started", file=sys.stderr, flush=True)
    for number in range(10**9):
        emit("log", number=number, text="x" * random.choice([10, 1000, 5000, 60000]))
"""


@pytest.mark.exhaustive  # 40 processes
def test_a_kill_tears_no_line():
    """SIGKILL at 40 random moments, lines of 10 to 60,000 bytes, a reader that is slow: each line parses."""
    for moment in range(40):
        with subprocess.Popen(
            [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            process.stderr.readline()
            until, read = time.monotonic() + 0.01 * (1 + moment % 10), b""
            while time.monotonic() < until:
                read += os.read(process.stdout.fileno(), 3000)
            process.kill()
            read += process.stdout.read()
        assert read.endswith(b"\n")
        assert [json.loads(line)["number"] for line in read.splitlines()] == list(range(read.count(b"\n")))


@pytest.mark.exhaustive  # two processes that import torch
def test_a_reader_that_leaves_ends_nothing(tmp_path):
    """`| head -n 1` has seen enough; the run goes on to its result and exit status 0."""
    line = f"{sys.executable} -m runner {' '.join(SHORT)} --json | head -n 1; exit ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = ["bash", "-c", line]
    done = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
    (run,) = (tmp_path / "outputs" / "digits_mlp").iterdir()
    assert (done.returncode, json.loads(done.stdout)["event"]) == (0, "started")
    assert read_result(run)["status"] == "completed"
