import io
import os
import random
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.node_def_pb2 import NodeDef

from runner.log import console as log_console
from runner.log import logger as log_module
from runner.log.console import print_final_report
from runner.log.logger import Logger
from tests.support import read_metrics

ROOT = Path(__file__).parents[2]


def make(folder, *, total=100, start=0, tensorboard=True, progress=True, stream=None):
    return Logger(
        folder,
        tensorboard=tensorboard,
        progress=progress,
        total_steps=total,
        start_step=start,
        stream=stream or io.StringIO(),
    )


def scalars(folder):
    """What the real TensorBoard reads: tag → [(step, value)]."""
    board = EventAccumulator(str(folder / "tb"), size_guidance={"scalars": 0})
    board.Reload()
    return {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def train(log, steps):
    """Training is logged every 2 steps, evaluated every 4."""
    for step in steps:
        if step % 2 == 0:
            log.scalars(step, step / 10, {"train/loss": 1 / step, "lr": 0.5}, steps_per_second=100.0)
        if step % 4 == 0:
            log.evaluated(step, step / 10, {"val/loss": 2 / step})


def expected_scalars(last):
    even, fourth = range(2, last + 1, 2), range(4, last + 1, 4)
    return {
        "train/loss": [(s, pytest.approx(1 / s)) for s in even],
        "lr": [(s, 0.5) for s in even],
        "val/loss": [(s, pytest.approx(2 / s)) for s in fourth],
    }


def test_each_step_is_one_json_object_with_all_that_was_logged_at_it(tmp_path):
    log = make(tmp_path)
    train(log, range(1, 7))
    log.close()

    assert read_metrics(tmp_path) == [
        {"step": 2, "epoch": 0.2, "train/loss": 0.5, "lr": 0.5},
        {"step": 4, "epoch": 0.4, "train/loss": 0.25, "lr": 0.5, "val/loss": 0.5},
        {"step": 6, "epoch": 0.6, "train/loss": 1 / 6, "lr": 0.5},
    ]


def test_tensorboard_reads_the_events(tmp_path):
    log = make(tmp_path)
    train(log, range(1, 9))
    log.close()

    assert scalars(tmp_path) == expected_scalars(8)


def test_a_nan_is_a_string_in_json_and_a_nan_in_tensorboard(tmp_path):
    log = make(tmp_path)
    log.scalars(1, 0.1, {"train/loss": float("nan")})
    log.close()

    assert read_metrics(tmp_path)[0]["train/loss"] == "NaN"
    assert np.isnan(scalars(tmp_path)["train/loss"][0][1])


@pytest.mark.parametrize("resumed_at", range(13))
def test_a_resume_logs_each_step_once_as_if_it_had_never_stopped(tmp_path, resumed_at):
    """It was killed at step 13; the checkpoint is of `resumed_at`, an evaluation pending there is done again."""
    straight, resumed = tmp_path / "a", tmp_path / "b"
    for folder in (straight, resumed):
        folder.mkdir()
    log = make(straight)
    train(log, range(1, 17))
    log.close()
    log = make(resumed)
    train(log, range(1, 14))
    log.sync()  # and no close: killed

    again = make(resumed, start=resumed_at)
    if resumed_at and resumed_at % 4 == 0:
        again.evaluated(resumed_at, resumed_at / 10, {"val/loss": 2 / resumed_at})
    train(again, range(resumed_at + 1, 17))
    again.close()
    log._console = log_console.QuietConsole(io.StringIO())
    log.close()

    assert (resumed / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    assert scalars(resumed) == scalars(straight) == expected_scalars(16)


def test_resumed_and_killed_again_at_once_there_is_no_gap(tmp_path):
    log = make(tmp_path)
    train(log, range(1, 9))
    log.close()
    for _ in range(3):
        log = make(tmp_path, start=6)
        log.sync()
        log.close()
    log = make(tmp_path, start=6)
    train(log, range(7, 9))
    log.close()

    assert len(list((tmp_path / "tb").iterdir())) == 5
    assert scalars(tmp_path) == expected_scalars(8)


def test_resumed_and_checkpointed_before_anything_is_logged_there_is_no_gap(tmp_path):
    log = make(tmp_path)
    train(log, range(1, 9))
    log.close()
    killed = make(tmp_path, start=6)
    killed.sync()  # then a checkpoint of step 7 is committed
    log = make(tmp_path, start=7)
    train(log, range(8, 9))
    log.close()

    assert scalars(tmp_path) == expected_scalars(8)
    killed.close()


# ---- what is lost of metrics.jsonl


def damage(path, how, draw):
    """Damage the file as a disk or a person does."""
    lines = path.read_bytes().splitlines(keepends=True)
    at = draw.randrange(len(lines))
    if how == "deleted":
        path.unlink()
    elif how == "flipped":
        whole = bytearray(b"".join(lines))
        place = draw.randrange(len(whole))
        whole[place] ^= 1 << draw.randrange(8)
        path.write_bytes(whole)
    else:
        kept = {
            "empty": b"",
            "truncated": b"".join(lines)[: draw.randrange(sum(map(len, lines)))],
            "lacks a line": b"".join(lines[:at] + lines[at + 1 :]),
            "lacks the first half": b"".join(lines[len(lines) // 2 :]),
            "has zeros": b"".join([*lines[:at], bytes(4096), *lines[at + 1 :]]),
            "has a line twice": b"".join([*lines[: at + 1], lines[at], *lines[at + 1 :]]),
            "has foreign text": b"".join([*lines[:at], b"<<<<<<< HEAD\n", *lines[at:]]),
        }
        path.write_bytes(kept[how])


HOW = (
    "deleted",
    "flipped",
    "empty",
    "truncated",
    "lacks a line",
    "lacks the first half",
    "has zeros",
    "has a line twice",
    "has foreign text",
)


def logged_until(folder, last, *, tensorboard):
    folder.mkdir()
    log = make(folder, tensorboard=tensorboard)
    train(log, range(1, last + 1))
    log.close()
    return {event["step"]: event for event in read_metrics(folder)}


@pytest.mark.parametrize("how", HOW)
def test_what_metrics_jsonl_has_lost_is_taken_from_tensorboards_events(tmp_path, seed, how):
    """Every line is there again, to single precision, and whatever was not whole is said."""
    draw = random.Random(f"{seed} {how}")
    for number in range(10):
        folder = tmp_path / str(number)
        before = logged_until(folder, 16, tensorboard=True)
        whole = (folder / "metrics.jsonl").read_bytes()
        damage(folder / "metrics.jsonl", how, draw)
        damaged = (folder / "metrics.jsonl").read_bytes() if how != "deleted" else b""
        said = log_module.mend(folder, 16, 16, 0)
        after = {event["step"]: event for event in read_metrics(folder)}

        names = {step: set(event) - {"epoch"} for step, event in before.items()}
        assert list(after) == list(before), said
        for step, event in before.items():
            for name in names[step]:
                assert float(after[step][name]) == pytest.approx(float(event[name]), rel=1e-6), said
        assert said or how == "flipped" or damaged == whole


@pytest.mark.parametrize("how", HOW)
def test_without_events_whole_lines_stay_and_what_is_lost_is_said(tmp_path, seed, how):
    draw = random.Random(f"{seed} {how}")
    for number in range(10):
        folder = tmp_path / str(number)
        before = logged_until(folder, 16, tensorboard=False)
        lines = (folder / "metrics.jsonl").read_bytes().splitlines()
        damage(folder / "metrics.jsonl", how, draw)
        damaged = (folder / "metrics.jsonl").read_bytes().splitlines() if how != "deleted" else []
        said = log_module.mend(folder, 16, 16, 0)
        after = (folder / "metrics.jsonl").read_bytes().splitlines()

        assert after == [line for line in dict.fromkeys(damaged) if line in lines or line in after]
        if len(after) < len(before) and how not in ("lacks a line", "lacks the first half"):  # nothing tells of those
            assert said


def test_a_foreign_event_file_is_left_alone(tmp_path):
    """One of PyTorch's own writer, of another name, of another content; a folder of that name."""
    from torch.utils.tensorboard import SummaryWriter

    logged_until(tmp_path / "run", 8, tensorboard=True)
    tb = tmp_path / "run" / "tb"
    with SummaryWriter(str(tb)) as writer:
        writer.add_scalar("train/loss", 99.0, 8)
    (tb / "events.out.tfevents.copy").write_bytes(b"\0" * 50)
    (tb / "events.out.tfevents.9999999999999.host").write_bytes(b"\xff" * 50)
    (tb / "events.out.tfevents.1700000000.host.1").write_bytes(b"\xff" * 500)
    (tb / "events.out.tfevents.1700000001.host.1").mkdir()
    foreign = {path: path.read_bytes() for path in tb.iterdir() if path.is_file()}

    assert log_module.mend(tmp_path / "run", 8, 8, 0) == []
    log = make(tmp_path / "run", start=8)
    train(log, range(9, 17))
    log.close()
    assert read_metrics(tmp_path / "run")[3]["train/loss"] == 1 / 8
    assert [event["step"] for event in read_metrics(tmp_path / "run")] == list(range(2, 17, 2))
    assert all(path.read_bytes() == whole for path, whole in foreign.items())


def test_what_an_abandoned_future_logged_does_not_come_back(tmp_path):
    log = make(tmp_path)
    train(log, range(1, 9))
    log.close()
    log = make(tmp_path, start=6)  # with another rhythm of evaluation: none at step 8
    log.scalars(8, 0.8, {"train/loss": 1 / 8, "lr": 0.5})
    log.close()
    log = make(tmp_path, start=8)
    log.close()

    assert scalars(tmp_path) == expected_scalars(8) | {"val/loss": [(4, 0.5)]}


def test_a_graph_is_shown_once(tmp_path):
    for start in (0, 0, 3):
        log = make(tmp_path, start=start)
        log.graph(GraphDef(node=[NodeDef(name=f"from {start}")]).SerializeToString())
        log.close()
    graphs = [e.graph_def for p in sorted((tmp_path / "tb").iterdir()) for e in EventFileLoader(str(p)).Load()]

    assert [GraphDef.FromString(graph).node[0].name for graph in graphs if graph] == ["from 0"]


def test_what_was_synced_survives_a_kill(tmp_path):
    code = (
        "import os; from pathlib import Path; from runner.log.logger import Logger\n"
        f"log = Logger(Path({str(tmp_path)!r}), tensorboard=True, progress=False, total_steps=9)\n"
        "for step in range(1, 6): log.scalars(step, 0.1, {'train/loss': 1.0})\n"
        "log.sync(); log.scalars(6, 0.1, {'train/loss': 1.0}); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)

    assert [e["step"] for e in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in scalars(tmp_path)["train/loss"]][:5] == [1, 2, 3, 4, 5]


def test_without_tensorboard_there_is_no_folder_and_no_import(tmp_path):
    code = (
        "import io, sys; from pathlib import Path; from runner.log.logger import Logger\n"
        f"log = Logger(Path({str(tmp_path)!r}), tensorboard=False, progress=True, total_steps=9, "
        "stream=io.StringIO())\n"
        "log.scalars(1, 0.1, {'train/loss': 1.0}); log.sync(); log.close()\n"
        "sys.exit('tensorboardX' in sys.modules or 'rich' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0

    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "metrics.jsonl"]


def test_what_is_said_stands_on_the_console_and_in_the_file_and_a_traceback_in_the_file_only(tmp_path):
    stream = io.StringIO()
    log = make(tmp_path, stream=stream)
    log.say("hello [bold]world[/bold]")
    log.note("for the file")
    try:
        raise ValueError("wrong")
    except ValueError as error:
        log.exception(error)  # noqa: TRY401  no logger of the standard library
    log.close()
    log.close()

    text = (tmp_path / "log.txt").read_text()
    assert stream.getvalue() == "hello [bold]world[/bold]\n"
    assert "hello [bold]world[/bold]\n" in text
    assert "for the file\n" in text
    assert "Traceback (most recent call last)" in text
    assert "ValueError: wrong" in text


def test_a_log_is_added_to(tmp_path):
    for word in ("one", "two"):
        log = make(tmp_path)
        log.say(word)
        log.close()

    assert [line[-3:] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["one", "two"]


# ---- the console


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(log_console.time, "monotonic", lambda: self.now)


def test_where_the_console_is_a_file_progress_is_a_line_every_5_seconds_each_evaluation_and_the_end(
    tmp_path, monkeypatch
):
    clock, stream = Clock(monkeypatch), io.StringIO()
    log = make(tmp_path, total=120, stream=stream)
    for step in range(1, 121):
        log.scalars(step, step / 10, {"train/loss": 1.0}, steps_per_second=10.0)
        clock.now += 0.1
        if step == 60:
            log.evaluated(step, step / 10, {"val/accuracy": 0.5})
    log.close()

    assert stream.getvalue().splitlines() == [
        "step 51/120  epoch 5.1  train/loss 1  10 steps/s  0:00:07 left",
        "step 60  epoch 6  val/accuracy 0.5",
        "step 101/120  epoch 10.1  train/loss 1  10 steps/s  0:00:02 left",
        "step 120/120  epoch 12  train/loss 1  10 steps/s  0:00:00 left",
    ]


def test_without_progress_nothing_is_said_of_it(tmp_path):
    stream = io.StringIO()
    log = make(tmp_path, progress=False, stream=stream)
    train(log, range(1, 9))
    log.close()

    assert stream.getvalue() == ""
    assert "val/loss" in (tmp_path / "log.txt").read_text()
    assert len(read_metrics(tmp_path)) == 4


class Terminal:
    """A real pseudo-terminal, and what was drawn on it."""

    def __init__(self):
        self._master, slave = os.openpty()
        self.stream = os.fdopen(slave, "w", encoding="utf-8")
        self._drawn = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        try:
            while data := os.read(self._master, 4096):
                self._drawn.append(data)
        except OSError:  # the other end is closed
            pass

    def text(self):
        self.stream.close()
        self._reader.join()
        os.close(self._master)
        return b"".join(self._drawn).decode()


def test_on_a_terminal_a_bar_is_drawn_at_most_twice_a_second_and_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    clock, terminal = Clock(monkeypatch), Terminal()
    threads = threading.active_count()
    log = make(tmp_path, total=1000, stream=terminal.stream)
    for step in range(50, 1001, 50):
        log.scalars(step, step / 10, {"train/loss": 1 / step, "lr": 0.5}, steps_per_second=1000.0)
        clock.now += 0.0625
    log.evaluated(1000, 100, {"val/accuracy": 0.987})
    assert threading.active_count() == threads
    log.say("said [above] it")
    log.close()

    text = terminal.text()
    assert set(re.findall(r"(\d+)/1000", text)) == {"0", "50", "450", "850", "1000"}
    assert "said [above] it" in text
    last = text[text.rindex("1000/1000") :]
    for part in ("epoch 100", "1000 steps/s", "0:00:00 left", "loss 0.001", "val/accuracy 0.987"):
        assert part in last


def test_a_dumb_terminal_gets_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    log = make(tmp_path, stream=terminal.stream)
    train(log, range(1, 5))
    log.close()

    assert "\x1b" not in terminal.text()


class Drawn:
    def __rich__(self):
        return "[bold]drawn[/bold]"

    def __str__(self):
        return "plain"


@pytest.mark.parametrize("progress", [True, False])
def test_what_rich_can_draw_is_drawn_on_a_terminal_only(tmp_path, monkeypatch, progress):
    monkeypatch.setenv("TERM", "xterm")
    terminal, stream = Terminal(), io.StringIO()
    for number, console in enumerate((terminal.stream, stream)):
        (tmp_path / str(number)).mkdir()
        log = make(tmp_path / str(number), stream=console, progress=progress)
        log.say(Drawn())
        log.close()
        assert (tmp_path / str(number) / "log.txt").read_text().endswith("plain\n")

    assert "drawn" in terminal.text()
    assert stream.getvalue() == "plain\n"


def test_the_final_report_names_each_metric_and_the_directory(capsys):
    print_final_report({"test/loss": 0.123456789, "test/accuracy": "NaN"}, Path("outputs/run/x"))

    assert capsys.readouterr().out == "test/loss      0.123457\ntest/accuracy  nan\noutputs/run/x\n"


def test_logging_draws_no_random_number(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    log = make(tmp_path, stream=terminal.stream)
    train(log, range(1, 9))
    log.say("words")
    log.close()
    terminal.text()

    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
