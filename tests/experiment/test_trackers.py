"""Trackers (`log.to`): each step once whatever ends a run, and nothing that they do reaches the training."""

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from runner.config.check.rules.log import is_installed
from runner.experiment.builders.log import start_trackers
from runner.experiment.tracker_process import TrackerHost
from runner.log.jsonl import JsonLines
from runner.log.trackers import MLflow
from tests.support import find_mistakes, read_lines, read_metrics, read_result

REPOSITORY = Path(__file__).parents[2]
MINE = """
import json, os, random, signal, sys, time
from pathlib import Path

class Mine:
    def __init__(self, file: Path):
        self.file = file.open("a")  # a text in the config, a path here
        print("begins")
        random.seed(0)
        sys.excepthook = signal.signal(signal.SIGINT, signal.SIG_DFL)
    def note(self, *what):
        self.file.write(json.dumps(what) + "\\n")
        self.file.flush()
    def begin(self, run):
        self.note("begin", run.id, run.group, run.last_step)
    def config(self, values):
        self.note("config", values["seed"])
    def scalars(self, step, values):
        self.note(step, values)
    def pictures(self, step, pictures):
        self.note("pictures", step, {name: png[:4].decode("latin1") for name, png in pictures.items()})
    def end(self, status):
        self.note("end", status)
        self.file.close()

class Failing:
    def scalars(self, step, values):
        raise SystemExit("no\\nthanks")

class Dead:
    def scalars(self, step, values):
        os.kill(os.getpid(), signal.SIGKILL)

class Hanging:
    def scalars(self, step, values):
        time.sleep(10)

class Deaf:
    pass

class Slow:
    def __init__(self, scalars=False):
        self.hangs = scalars
    def begin(self, run):
        time.sleep(0 if self.hangs else 60)
    def scalars(self, step, values):
        time.sleep(60)

class Threaded:
    def __init__(self):
        import threading
        threading.Thread(target=time.sleep, args=(60,)).start()
        raise ValueError("no server")
"""
QUICK = ("experiment=digits_mlp", "scheduler=none", "device=cpu", "log=quiet", "dataset.limit=100", "log.every=1st")
MINE_TO = ("log.to.mine._target_=mine.Mine", "log.to.mine.file=got.jsonl")


def find_last(folder):
    return max((folder / "outputs").glob("*/*"), key=lambda path: path.stat().st_ctime_ns)


@pytest.fixture
def mine(runner, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    yield runner
    sys.modules.pop("mine", None)


def open_host(folder, until=0):
    setup = {"name": "mine", "node": {"_target_": "mine.Mine", "file": "got.jsonl"}, "trust": [], "project": "p"}
    setup |= {"folder": str(folder), "group": None, "config": {"seed": 0}, "until": until}
    host = TrackerHost(setup, lambda _: None)
    assert host.open()
    return host


def train_and_be_killed(folder, draw, start, until_end):
    """Log steps as a run does, from a checkpoint on, until something ends it; the checkpoint to go on from, or None."""
    log, host, saved = JsonLines(folder / "metrics.jsonl", until=start[0]), open_host(folder, start[0]), start
    pending = start[1]
    for step in range(start[0] + (not pending), 21):
        parts = [("train/loss", step % 3 != 0), ("val/loss", step % 4 == 0)]
        for name, logs in parts if not pending else parts[1:]:
            if not until_end and draw.random() < 0.15:
                interrupted = draw.random() < 0.5 and name == "val/loss"
                host.close("interrupted" if interrupted else "killed", complete=False)
                log.close()
                return (step, True) if interrupted else saved
            if logs and name == "val/loss":
                host.take({"step": step, "pictures": {"val/sheet": "iVBORw=="}})
            if logs:
                log.append({"step": step, "epoch": 0, name: float("nan") if step == 10 else step})
                host.take({"step": step, "values": {"epoch": 0, name: float("nan") if step == 10 else step}})
            if draw.random() < 0.3:
                host.flush()
        pending = False
        if draw.random() < 0.2:
            saved = (step, False)
    host.close("completed", complete=True)
    log.close()
    return None


@pytest.mark.parametrize("number", range(12))
def test_each_step_arrives_once_whatever_ends_the_run(number, mine, tmp_path, monkeypatch, seed):
    """After kills and interruptions at any instant, also between the two halves of a step."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: sys.excepthook)
    (tmp_path / "trackers").mkdir()
    draw, at, ends = random.Random(seed * 100 + number), (0, False), 0
    while at is not None:
        at, ends = train_and_be_killed(tmp_path, draw, at, ends > 9), ends + 1
    got = read_lines(tmp_path / "got.jsonl")
    scalars = [(step, values) for step, values in (line for line in got if isinstance(line[0], int))]
    lines = [(line.pop("step"), line) for line in read_metrics(tmp_path)]
    assert json.dumps(scalars).replace("NaN", '"NaN"') == json.dumps(lines)
    pictures = Counter(line[1] for line in got if line[0] == "pictures")
    assert pictures == Counter(range(4, 21, 4))
    places = {line[0]: place for place, line in enumerate(got) if isinstance(line[0], int)}
    assert all(got[places[step] + 1][:2] == ["pictures", step] for step in pictures)
    assert len({line[1] for line in got if line[0] == "begin"}) == 1


def test_a_run_is_bitwise_the_same_with_trackers_that_fail_hang_and_die(mine, tmp_path):
    """Mine has each line of metrics.jsonl once; each of the others is said once."""
    mine(*QUICK, "train.duration=4st", "log.to={}")
    alone = read_result(find_last(tmp_path))
    others = [f"log.to.{name.lower()}._target_=mine.{name}" for name in ("Failing", "Dead", "Hanging", "Deaf")]
    ran = mine(*QUICK, "train.duration=4st", *MINE_TO, *others[:2], *others[2:3], "log.to.hanging.timeout=0.4")
    run = find_last(tmp_path)
    assert (ran.status, read_result(run)["weights_sha256"]) == (0, alone["weights_sha256"])
    got = read_lines(tmp_path / "got.jsonl")
    assert [line[0] for line in got] == ["begin", "config", 1, 2, 3, 4, "end"]
    lines = {line["step"]: line for line in read_metrics(run)}
    assert all({"step": step, **values} == lines[step] for step, values in (line for line in got if line[0] in lines))
    said = [line.split(". ")[0] for line in (run / "log.txt").read_text().split("\n") if "log.to." in line]
    expected = ["dead has ended (status -9)", "failing: `scalars` of step 1 failed (SystemExit: no thanks)"]
    assert sorted(line.split("log.to.")[1] for line in said)[:2] == expected
    assert "hanging is not done 0.4 s after the end" in max(said, key=lambda line: "hanging" in line)


class Breaking:
    """A tracker that fails at chosen calls."""

    def __init__(self, *at):
        self.at, self.calls = at, 0

    def scalars(self, step, values):
        if ("scalars", step) in self.at:
            raise OSError("no server")

    def flush(self):
        self.calls += 1
        if ("flush", self.calls) in self.at:
            raise OSError("no server")


@pytest.mark.parametrize(("at", "saved"), [((), 4), ((("flush", 2),), 4), ((("flush", 4),), 3), ((("scalars", 3),), 2)])
def test_the_step_on_the_disk_is_one_up_to_which_the_tracker_has_all(at, saved, tmp_path, monkeypatch):
    """A flush that fails is made good by the next; a step that fails is one for the resume."""
    monkeypatch.setattr("runner.experiment.tracker_process.build", lambda *_: Breaking(*at))
    (tmp_path / "trackers").mkdir()
    host = open_host(tmp_path)
    for step in range(1, 6):
        host.take({"step": step, "values": {"a": step}})
        if step > 1:
            host.flush()
    assert json.loads((tmp_path / "trackers" / "mine.json").read_text())["step"] == saved


def test_mlflow_keeps_what_its_server_did_not_take():
    """The next flush sends it, and no metric twice."""
    taken, fails = [], [False, True, False, False]

    def log_batch(_, metrics):
        if fails.pop(0):
            raise OSError("no server")
        taken.extend(metrics)

    tracker = MLflow()
    tracker._client, tracker._id = SimpleNamespace(log_batch=log_batch), "x"
    tracker._waiting = [*range(1500)]
    with pytest.raises(OSError, match="no server"):
        tracker.flush()
    tracker.flush()
    assert taken == [*range(1500)]


def test_wrong_trackers_are_mistakes(mine):
    """Names that are no files, targets that are none, secrets, places elsewhere, extras that are not there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runner.config.check.rules.log.is_installed", lambda _: False)
        told = find_mistakes(
            "log/to=[wandb,mlflow]",
            "+log.to.mlflow.database=../other.db",
            "log.to.web={_target_: runner.log.trackers.MLflow, database: 'http://host'}",
            "log.to._a._target_=mine.Failing",
            "log.to.b._target_=shutil.rmtree",
            "log.to.c._target_=runner.log.trackers.TrackedRun",
            "log.to.d={_target_: mine.Failing, timeout: -1}",
            "log.to.e={_target_: mine.Mine, file: x, api_key: y}",
            "log.to.f={_target_: mine.Mine, file: 'http://me:pass@host'}",
            "log.to.g={_target_: runner.log.trackers.MLflow, _args_: [x, /tmp/elsewhere.db]}",
            "log.to.h={_target_: runner.log.trackers.MLflow, database: {_target_: mine.Mine, file: /tmp/x}}",
            "log.to.i={_target_: mine.Mine, file: {_target_: runner.log.trackers.MLflow, database: /tmp/x.db}}",
        )
    expected = {
        "log.to.wandb": "install it: pip install 'yaml-experiment-runner[wandb]'",
        "log.to.mlflow": "install it: pip install 'yaml-experiment-runner[mlflow]'",
        "log.to.mlflow.database": "must lie below the working directory",
        "log.to.web.database": "must be a plain file name",
        "log.to._a": "must be a name of letters",
        "log.to.b._target_": "if you trust it",
        "log.to.c._target_": "must be a class with `scalars(step, values)`",
        "log.to.d.timeout": "must be seconds",
        "log.to.e.api_key": "looks like a secret",
        "log.to.f.file": "looks like a secret",
        "log.to.g._args_": "name the arguments",
        "log.to.h.database._target_": "take plain values",
        "log.to.i.file.database": "must lie below the working directory",
    }
    said = [(one.key, str(one)) for one in told]
    assert [key for key, words in expected.items() if not any(key == k and words in text for k, text in said)] == []


@pytest.mark.parametrize(
    "node", [{"_target_": "mine.Slow"}, {"_target_": "mine.Slow", "scalars": True}, "mine.Threaded"]
)
def test_a_tracker_that_hangs_ends_some_time_after_its_run(node, tmp_path):
    """In `begin`, in `scalars`, and by a thread that outlives a constructor that fails."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "trackers").mkdir()
    quick = "import runner.log.tracking as tracking; tracking.LAST_SECONDS = 0.5"
    command = [sys.executable, "-c", f"{quick}; from runner.experiment.tracker_process import main; main()"]
    paths = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.DEVNULL
    )
    node = node if isinstance(node, dict) else {"_target_": node}
    setup = {"name": "mine", "node": node, "trust": [], "project": "p", "folder": str(tmp_path), "group": None}
    lines = [{**setup, "config": {}, "until": 0}, *({"step": step, "values": {"a": 1}} for step in (1, 2))]
    try:
        process.communicate("".join(json.dumps(line) + "\n" for line in lines).encode(), timeout=20)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGALRM


@pytest.mark.parametrize("why", ["no process", "no folder"])
def test_a_tracker_that_cannot_be_started_is_said_and_the_run_goes_on(why, tmp_path, monkeypatch):
    """Neither a limit of processes nor a folder that takes nothing ends the run."""

    def refuse(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    if why == "no process":
        monkeypatch.setattr("runner.log.tracking.subprocess.Popen", refuse)
    else:
        (tmp_path / "trackers").write_text("")
    run = SimpleNamespace(folder=tmp_path, config={}, progress=SimpleNamespace(step=0))
    to = {name: {"_target_": "mine.Mine", "file": "x"} for name in ("a", "b")}
    said = []
    assert start_trackers(run, SimpleNamespace(log=SimpleNamespace(to=to), name="p"), (), said.append) == ()
    assert [line.split(":")[0] for line in said] == [f"log.to.{name} could not be started" for name in to]


def test_a_folder_of_wandb_is_no_installed_package(tmp_path, monkeypatch):
    """W&B leaves `./wandb` behind, which Python would import as a package without a file."""
    (tmp_path / "wandb_left").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert (is_installed("wandb_left"), is_installed("pytest")) == (False, True)


BESIDE = """
import multiprocessing, os, sys, time
from pathlib import Path
import runner.log.tracking as tracking
from runner.core.paths import find_our_conf
from runner.experiment.tuning.batch_size import start_server

sys.path.insert(0, os.getcwd())
Path("trackers").mkdir()
setup = {"name": "mine", "node": {"_target_": "mine.Mine", "file": "got.jsonl"}, "trust": [], "project": "p"}
setup |= {"folder": os.getcwd(), "group": None, "config": {"seed": 0}, "until": 0}
tracker = tracking.TrackerProcess("mine", Path("trackers"), setup, 30, print)
tracking.tell_end([tracker], "completed", complete=True)
tracking.wait_for_trackers([tracker])
start_server()
child = multiprocessing.get_context("forkserver").Process(target=find_our_conf)
child.start()
child.join()
print(child.exitcode)
"""


def test_children_find_the_package_beside_a_runner_py(tmp_path):
    """Trackers and trials of a batch size, where the project has a module of the package's name."""
    for name, text in {"mine": MINE, "runner": "raise SystemExit('of the project')", "beside": BESIDE}.items():
        (tmp_path / f"{name}.py").write_text(text)
    code = f"import sys; sys.path[0] = {str(REPOSITORY)!r}; import runner; exec(open('beside.py').read())"
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.returncode) == ("0\n", 0), ran.stderr
    assert [line[0] for line in read_lines(tmp_path / "got.jsonl")] == ["begin", "config", "end"]


def test_a_class_without_scalars_and_a_strangers_record_are_refused(mine, tmp_path):
    """Before anything is made; and a record's tracker may name no file outside of the run."""
    ran = mine("check", *QUICK, "log.to.a._target_=mine.Deaf")
    assert (ran.status, "log.to.a must have a method `scalars(step, values)`" in ran.out + ran.err) == (2, True)
    assert mine(*QUICK, "train.duration=1st").status == 0
    run = find_last(tmp_path)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("  to: {}", "  to: {../../x: {_target_: mine.Failing}}"))
    (run / "result.json").unlink()
    ran = mine("resume", str(run))
    assert (ran.status, "log.to.../../x must be a name of letters" in ran.err) == (2, True)


# ---- the libraries themselves


def read_wandb(folder):
    """Step -> names of what W&B's files hold, in the order of these files."""
    from wandb.proto import wandb_internal_pb2

    for file in sorted(folder.glob("offline-run-*/run-*.wandb")):
        data, at, record = file.read_bytes(), 7, b""  # LevelDB's log: blocks of 32 KiB, parts with a head of 7 bytes
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            record, at = record + data[at + 7 : at + 7 + length], at + 7 + length
            if kind in (1, 4):
                parsed, record = wandb_internal_pb2.Record.FromString(record), b""
                if parsed.WhichOneof("record_type") == "history":
                    items = {item.key or ".".join(item.nested_key): item.value_json for item in parsed.history.item}
                    yield from ((int(items["_step"]), name) for name in items if not name.startswith("_"))


def read_mlflow(file):
    with contextlib.closing(sqlite3.connect(file)) as database:
        return database.execute("select step, key from metrics").fetchall()


def read_trackio(folder):
    (file,) = folder.glob("*.db")
    with contextlib.closing(sqlite3.connect(file)) as database:
        rows = database.execute("select step, metrics from metrics").fetchall()
    return [(step, name) for step, values in rows for name in json.loads(values)]


def start(folder, *argv):
    paths = os.pathsep.join([str(REPOSITORY), *filter(None, sys.path)])
    more = {"PYTHONPATH": paths, "WANDB_MODE": "offline", "TRACKIO_DIR": str(folder / "trackio")}
    command = [sys.executable, "-m", "runner", *argv]
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen(command, cwd=folder, env={**os.environ, **more}, stdout=output, stderr=output)


def stop_after(process, folder, lines, number):
    """Send a signal once `metrics.jsonl` has so many lines."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        files = [*folder.glob("outputs/*/*/metrics.jsonl")]
        if files and len(files[0].read_bytes().splitlines()) >= lines:
            process.send_signal(number)
            break
        time.sleep(0.01)
    return process.wait()


@pytest.mark.exhaustive
def test_wandb_mlflow_and_trackio_have_each_step_once_after_two_kills_and_a_stop(mine, tmp_path):
    """All three at once; the weights are those of a run without them, and each has one run."""
    for package in ("wandb", "mlflow", "trackio"):
        pytest.importorskip(package)
    usual = (*QUICK[:4], "log.every=3st", "train.duration=40ep", "train.checkpoint_every=7st", "name=alone")
    assert start(tmp_path, *usual).wait() == 0
    alone = read_result(find_last(tmp_path))["weights_sha256"]
    shutil.rmtree(tmp_path / "outputs")
    first = start(tmp_path, *usual, "name=tracked", "log/to=[wandb,mlflow,trackio]")
    ends = [stop_after(first, tmp_path, 40, signal.SIGKILL)]
    run = str(find_last(tmp_path))
    for lines, number in ((90, signal.SIGKILL), (150, signal.SIGTERM), (10**9, 0)):
        ends.append(stop_after(start(tmp_path, "resume", run), tmp_path, lines, number))
    assert ends == [-9, -9, 75, 0]
    assert read_result(find_last(tmp_path))["weights_sha256"] == alone
    expected = Counter((line["step"], name) for line in read_metrics(find_last(tmp_path)) for name in line)
    expected = {key: count for key, count in expected.items() if key[1] != "step"}
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and "completed" not in (find_last(tmp_path) / "trackers/mlflow.log").read_text():
        time.sleep(0.1)
    assert Counter(read_wandb(tmp_path / "wandb")) == expected
    assert Counter(read_mlflow(tmp_path / "mlflow.db")) == expected
    assert Counter(read_trackio(tmp_path / "trackio")) == expected
