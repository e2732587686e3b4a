"""Exact resume: whatever instant a run stops at, it ends with the bits that it would have ended with."""

import contextlib
import io
import itertools
import json
import math
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml

from runner.train import evaluation
from runner.train.checkpoint import Checkpoints
from tests.experiment.crash.project import HARD, STEPS, differences, ending, events
from tests.support import find_newest, read_result

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # four workers on few cores


WHOLE = {}


@pytest.fixture
def whole(hard, project):
    """The uninterrupted run, made once."""
    if not WHOLE.get(project):
        assert hard(HARD)[0] == 0
        WHOLE[project] = find_newest(project)
    return WHOLE[project]


def stop_after(step, monkeypatch, number=signal.SIGTERM):
    """Send this process a signal in the middle of that optimizer step of the run, counted from its beginning."""
    original = torch.optim.AdamW.step
    seen = []

    def counted(self, *args, **kwargs):
        done = original(self, *args, **kwargs)
        steps = max(int(state["step"]) for state in self.state.values())
        if steps == step and not seen:
            seen.append(step)
            os.kill(os.getpid(), number)
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)


def stopped(hard, project, monkeypatch, step, *argv):
    with monkeypatch.context() as patch:
        stop_after(step, patch)
        status, _, err = hard(*argv)
    assert status == 75, err
    folder = find_newest(project) if argv[0] != "resume" else Path(argv[1])
    assert read_result(folder)["steps"] == step
    return folder


def same(one, other):
    assert differences(ending(one), ending(other)) == []
    assert events(one) == events(other)


def settings(workers, persistent):
    return [f"loader.num_workers={workers}", *(["loader.persistent_workers=true"] if persistent else [])]


PAIRS = [(0, 0), (0, 1), (1, 0), (4, 1), (0, 4), (1, 4), (4, 0), (1, 1), (4, 4)]


@pytest.mark.parametrize("step", [1, 4, 5, 9])
def test_a_run_stopped_after_any_step_ends_the_same(hard, project, whole, monkeypatch, step):
    """Weights, optimizer, generators, metrics, log lines, TensorBoard's events are those of the run never stopped."""
    folder = stopped(hard, project, monkeypatch, step, HARD)
    status, _, err = hard("resume", str(folder))

    assert status == 0, err
    same(whole, folder)


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)])
def test_another_number_of_workers_ends_the_same(hard, project, whole, monkeypatch, before, after):
    folder = stopped(hard, project, monkeypatch, 6, HARD, *settings(before, before > 0))

    assert hard("resume", str(folder), f"loader.num_workers={after}", "loader.persistent_workers=false")[0] == 0
    same(whole, folder)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (1, False), (1, True), (4, False), (4, True)])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_every_step_with_every_loader_ends_the_same(hard, project, whole, monkeypatch, step, workers, persistent):
    folder = stopped(hard, project, monkeypatch, step, HARD, *settings(workers, persistent))

    assert hard("resume", str(folder))[0] == 0
    same(whole, folder)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_every_pair_of_workers_ends_the_same(hard, project, whole, monkeypatch, before, after):
    folder = stopped(hard, project, monkeypatch, 6, HARD, f"loader.num_workers={before}")

    assert hard("resume", str(folder), f"loader.num_workers={after}")[0] == 0
    same(whole, folder)


def test_many_interruptions_end_the_same(hard, project, whole, monkeypatch):
    """Stopped after each of ten steps, two epochs and a half of them."""
    folder = stopped(hard, project, monkeypatch, 1, HARD)
    for step in range(2, 11):
        stopped(hard, project, monkeypatch, step, "resume", str(folder))

    assert hard("resume", str(folder))[0] == 0
    same(whole, folder)


def test_a_stop_while_it_evaluates_evaluates_again(hard, project, whole, monkeypatch):
    """The evaluation under way is pending in the checkpoint, and done first."""
    original, calls = evaluation.evaluate, []

    def evaluate(run, name, *looks):
        calls.append(name)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(run, name, *looks)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate", evaluate)
        assert hard(HARD)[0] == 75
    folder = find_newest(project)
    saved = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    assert (saved["progress"]["step"], saved["progress"]["evaluation_pending"]) == (5, True)

    assert hard("resume", str(folder))[0] == 0
    same(whole, folder)


def test_a_longer_duration_ends_as_if_it_had_been_asked_for_at_once(hard, project, whole):
    """The rest of what was logged, and every bit of the weights, for a schedule that does not follow the duration."""
    assert hard(HARD, "train.duration=2ep")[0] == 0
    folder = find_newest(project)
    status, out, _ = hard("resume", str(folder), "train.duration=3ep")

    assert status == 0
    assert "train.duration is 3ep, and was 2ep" in out
    one, other = (torch.load(run / "checkpoints" / "last.pt", weights_only=True) for run in (whole, folder))
    assert [] == differences(
        {part: one[part] for part in ("model", "optimizer", "scheduler", "rng")},
        {part: other[part] for part in ("model", "optimizer", "scheduler", "rng")},
    )
    lines = {line["step"]: line for line in ending(folder)["lines"]}
    assert all(lines[line["step"]] == line for line in ending(whole)["lines"])


COSINE = """
# @package _global_
defaults:
  - override /dataset: grids
  - override /scheduler: cosine
  - override /model: net
name: hard
loader: {batch_size: 12}
device: {type: cpu}
"""


def test_a_schedule_that_followed_the_duration_stays_and_this_is_said(hard, project):
    (project / "conf" / "experiment" / "cosine.yaml").write_text(COSINE)
    cosine = ["experiment=cosine", "train.duration=1ep"]
    status, _, err = hard(*cosine)
    assert status == 0, err
    folder = find_newest(project)
    _, out, _ = hard("resume", str(folder), "train.duration=2ep", "--schedule", "continue")

    assert "scheduler.T_max stays 1ep" in out
    assert torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["scheduler"]["scheduler"]["T_max"] == 4
    _, out, err = hard("resume", str(folder), "train.duration=3ep", "scheduler.T_max=3ep")
    assert "scheduler.T_max is 3ep from here on" in out, err
    assert torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["scheduler"]["scheduler"]["T_max"] == 12


@pytest.fixture
def cosine(hard, project, tmp_path):
    """A finished run of 8 steps whose rate has come to 0, in a folder of its own."""
    (project / "conf" / "experiment" / "cosine.yaml").write_text(COSINE)
    run = tmp_path / "cosine"
    run.mkdir()
    status, _, err = hard("experiment=cosine", "train.duration=2ep", "log.every=1st", f"run={run}")
    assert status == 0, err
    return run


def rates(folder):
    return {line["step"]: line["lr"] for line in ending(folder)["lines"] if "lr" in line}


def cosine_rate(step, steps, rate=0.05):
    return rate * (1 + math.cos(math.pi * step / steps)) / 2


def test_a_rate_that_would_rise_again_asks_for_a_word_and_touches_nothing(hard, cosine):
    before = contents(cosine)
    status, _, err = hard("resume", str(cosine), "train.duration=4ep")

    assert status == 2
    assert "would make the rate rise again: the learning rate is 0 now, rises to" in err
    assert all(f"--schedule {word}" in err for word in ("follow", "constant", "continue"))
    assert contents(cosine) == before


def test_the_schedule_follows_the_new_duration_from_here(hard, cosine):
    """Each rate is that of the cosine over 16 steps; a later resume goes on with it."""
    before = rates(cosine)
    base = before[4] * 2
    status, out, err = hard("resume", str(cosine), "train.duration=4ep", "--schedule", "follow")

    assert status == 0, err
    assert f"the learning rate is {base / 2:.4g} now and falls to 0 at the end (step 16) (--schedule follow)" in out
    expected = {step: cosine_rate(step, 16, base) for step in range(9, 17)}
    assert rates(cosine) == pytest.approx(before | expected, abs=1e-12)
    planned = yaml.safe_load((cosine / "config.yaml").read_text())["scheduler"]
    recorded = json.loads((cosine / "provenance.json").read_text())["resumed"][0]
    assert (planned["T_max"], planned["planned_for"], recorded["schedule"]) == ("4ep", None, "follow")
    assert hard("resume", str(cosine), "train.duration=8ep", "--schedule=follow")[0] == 0
    assert rates(cosine)[24] == pytest.approx(cosine_rate(24, 32, base))


def test_the_last_rate_stays_where_it_has_come_to_0_that_before(hard, cosine):
    base = rates(cosine)[4] * 2
    last = cosine_rate(7, 8, base)
    status, out, err = hard("resume", str(cosine), "train.duration=4ep", "--schedule", "constant")

    assert status == 0, err
    assert f"the learning rate stays {last:.4g} to the end (step 16)" in out
    assert [rates(cosine)[step] for step in range(9, 17)] == pytest.approx([last] * 8)
    assert yaml.safe_load((cosine / "config.yaml").read_text())["scheduler"]["_target_"] is None
    assert hard("resume", str(cosine), "train.duration=5ep")[0] == 0
    assert rates(cosine)[20] == pytest.approx(last)


def test_a_run_that_was_prolonged_with_a_word_is_interrupted_and_goes_on_the_same(hard, cosine, tmp_path, monkeypatch):
    for word in ("follow", "constant", "continue"):
        straight, cut = tmp_path / f"{word}1", tmp_path / f"{word}2"
        shutil.copytree(cosine, straight, symlinks=True)
        shutil.copytree(cosine, cut, symlinks=True)
        assert hard("resume", str(straight), "train.duration=4ep", "--schedule", word)[0] == 0
        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.SGD, "step", stopping(torch.optim.SGD.step, 3))
            assert hard("resume", str(cut), "train.duration=4ep", "--schedule", word)[0] == 75
        assert hard("resume", str(cut))[0] == 0
        assert ending(straight)["result"]["weights_sha256"] == ending(cut)["result"]["weights_sha256"]
        assert rates(straight) == rates(cut)


def stopping(step, count):
    """An optimizer's step that sends SIGTERM to this process in its call of that number."""
    calls = itertools.count(1)

    def counted(*args, **kwargs):
        done = step(*args, **kwargs)
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    return counted


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--schedule", "follow"], "has no effect without a longer duration"),
        (["--schedule", "folow", "train.duration=4ep"], "did you mean `follow`?"),
        (["--schedule"], "--schedule needs a value, follow or constant or continue"),
    ],
)
def test_a_word_that_means_nothing_is_a_mistake(hard, cosine, words, said):
    status, _, err = hard("resume", str(cosine), *words)

    assert (status, said in err) == (2, True), err


def test_a_schedule_that_does_not_follow_the_duration_has_nothing_to_follow(hard, whole):
    status, _, err = hard("resume", str(whole), "train.duration=4ep", "--schedule", "follow")

    assert (status, "no argument of scheduler is the duration of the run" in err) == (2, True), err


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("optimizer.lr=0.5", "optimizer.lr must stay as the run was started with (0.001), but is 0.5"),
        ("seed=3", "seed must stay"),
        ("train.duration=1ep", "train.duration must not be shorter"),
        ("device.threads=2", "device.threads must stay"),
        ("+model.extra=1", "model.extra is not an argument of `parts.Net`"),
        ("dataset.train.count=40", "dataset.train.count must stay"),
        ("loader.batch_size=6", "loader.batch_size must stay"),
    ],
)
def test_another_config_is_refused_by_name(hard, whole, override, key):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    status, _, err = hard("resume", str(whole), override)

    assert status == 2
    assert key in err
    assert before == {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}


def test_another_config_is_accepted_with_inexact_and_marked(hard, project, monkeypatch):
    folder = stopped(hard, project, monkeypatch, 5, HARD)
    status, out, _ = hard("resume", str(folder), "optimizer.lr=0.5", "--inexact")
    record = json.loads((folder / "provenance.json").read_text())

    assert status == 0
    assert "not exact from here on (--inexact): optimizer.lr" in out
    assert read_result(folder)["inexact"] == [5]
    assert [line["lr"] for line in ending(folder)["lines"] if "lr" in line] == pytest.approx(
        [7e-4, 0.245, 0.1715, 0.12005]
    )
    assert (record["resumed"][0]["exact"], record["resumed"][0]["changes"][0]["key"]) == (False, "optimizer.lr")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["modules"]["files"].update(parts="0"), "module parts must have the source that it had"),
        (lambda r: r["versions"].update(torch="1.0"), "version of torch must be as it was"),
        (lambda r: r["data"]["train"].update(sha256="0"), "dataset (train) must be as it was"),
        (lambda r: r.update(threads=7), "device.threads must be as it was"),
        (lambda r: r.update(device={"type": "cuda", "name": "x"}), "device.type must be as it was"),
        (lambda r: r["plan_kinds"].update(train="no data"), "loader (plan of train) must be as it was"),
        (
            lambda r: r.update(plan={"train": "streamed, by 2"}, plan_kinds=None),
            "must be as it was for the steps so far (s",
        ),
    ],
)
def test_another_world_is_refused_by_name_and_nothing_is_touched(hard, project, monkeypatch, change, said):
    folder = stopped(hard, project, monkeypatch, 5, HARD)
    record = json.loads((folder / "provenance.json").read_text())
    change(record)
    (folder / "provenance.json").write_text(json.dumps(record))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    status, _, err = hard("resume", str(folder))

    assert status == 2
    assert said in err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


# ---- a run that cannot go on


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def without_module(project, monkeypatch):
    (project / "parts.py").rename(project / "away.txt")
    monkeypatch.delitem(sys.modules, "parts")


def with_a_broken_module(project, monkeypatch):
    shutil.copy(project / "parts.py", project / "away.txt")
    (project / "parts.py").write_text("def (:\n")
    monkeypatch.delitem(sys.modules, "parts")


def with_another_layer(_project, monkeypatch):
    made = sys.modules["parts"].Net.__init__

    def init(self):
        made(self)
        self.more = torch.nn.Linear(3, 3)

    monkeypatch.setattr(sys.modules["parts"].Net, "__init__", init)


def without_data(_project, monkeypatch):
    def init(self, count, seed=0):
        raise FileNotFoundError(2, "No such file or directory", "grids.csv")

    monkeypatch.setattr(sys.modules["parts"].Grids, "__init__", init)


def with_a_full_disk(_project, monkeypatch):
    from runner.experiment import run

    def write_json(path, _value):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(run, "write_json", write_json)


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        (without_module, 2, "model._target_ there is no module `parts`"),
        (
            with_a_broken_module,
            2,
            "model._target_ `parts` cannot be imported: SyntaxError",
        ),
        (with_another_layer, 1, "more.weight"),
        (without_data, 1, "grids.csv"),
        (with_a_full_disk, 1, "provenance.json cannot be written (No space left on device)"),
    ],
)
def test_a_completed_run_that_cannot_go_on_loses_nothing(
    hard, project, whole, tmp_path, monkeypatch, change, status, said
):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder, symlinks=True)
    before = contents(folder)
    with monkeypatch.context() as patch:
        change(project, patch)
        found, _, err = hard("resume", str(folder), "train.duration=4ep")
    if (project / "away.txt").exists():
        (project / "away.txt").replace(project / "parts.py")

    after = {path: text for path, text in contents(folder).items() if "tb" not in path.parts}
    assert (found, said in err, "Traceback" in err) == (status, True, False), err
    assert after == {path: text for path, text in before.items() if "tb" not in path.parts}


def test_a_run_whose_code_has_changed_so_that_it_cannot_load_is_refused_by_the_modules_name(
    hard, whole, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder, symlinks=True)
    record = json.loads((folder / "provenance.json").read_text())
    record["modules"]["files"]["parts"] = "0"
    (folder / "provenance.json").write_text(json.dumps(record))
    with_another_layer(None, monkeypatch)
    status, _, err = hard("resume", str(folder), "train.duration=4ep")

    assert (status, "module parts must have the source that it had" in err, "1 mistake." in err) == (2, True, True)
    assert read_result(folder)["status"] == "completed"


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(hard, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder, symlinks=True)
    shutil.rmtree(folder / "checkpoints")
    before = contents(folder)
    status, _, err = hard("resume", str(folder), "train.duration=4ep")

    assert (status, "holds no checkpoint, though the run has saved at step 12" in err) == (1, True), err
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("{run}/checkpoints/last.pt", "`python -m runner resume {run}`"),
        ("{run}/checkpoints", "`python -m runner resume {run}`"),
        ("{run}/metrics.jsonl", "`python -m runner resume {run}`"),
        ("{parent}", "`python -m runner resume {run}`"),
        ("{run}x", "did you mean `{run}`?"),
    ],
)
def test_what_is_no_run_directory_is_answered_with_the_run_that_is_meant(hard, whole, tmp_path, given, near):
    run = tmp_path / "mine" / "2026-01-01_run"
    shutil.copytree(whole, run, symlinks=True)
    status, _, err = hard("resume", given.format(run=run, parent=run.parent))

    assert (status, near.format(run=run) in err) == (2, True), err


def test_a_checkpoints_name_without_its_ending_is_answered_with_the_file(hard, whole):
    status, _, err = hard("evaluate", str(whole), "--checkpoint", "step_00000012")

    assert (status, f"--checkpoint {whole}/checkpoints/step_00000012.pt" in err) == (2, True), err


# ---- a run that has lost some of its files


def lose(name, content=None):
    def change(folder):
        path = folder / name
        if content is None:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            path.write_bytes(content(path.read_bytes()) if callable(content) else content)

    return change


GARBAGE = b"\0\xff{"


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        (lose(".hydra"), 0, ".hydra/config.yaml is missing: overrides are applied to"),
        (lose(".hydra/config.yaml", GARBAGE), 0, "overrides are applied to"),
        (lose("config.yaml"), 0, "config.yaml is missing: the config is taken from"),
        (lose("config.yaml", GARBAGE), 0, "the config is taken from"),
        (lose("config.yaml", b""), 0, "it holds no mapping): the config is taken from"),
        (lose("config.yaml", lambda text: text[: text.index(b"\ntrain:") + 1]), 0, "it lacks train.duration"),
        (lose("config.yaml", lambda text: text.replace(b"seed: 0", b"sfed: 0", 1)), 0, "sfed is not a key"),
        (lose("result.json", GARBAGE), 0, ""),
        (lose("result.json", b"[]"), 0, ""),
        (lose("result.json"), 0, ""),
        (lose("provenance.json"), 2, "provenance.json is missing, so that code, versions and data cannot be compared"),
        (lose("provenance.json", GARBAGE), 2, "provenance.json is damaged"),
        (lose("provenance.json", b'{"modules": []}'), 2, "provenance.json is damaged"),
        (lose("checkpoints/manifest.json"), 0, "manifest.json is missing: it is made again"),
        (lose("checkpoints/manifest.json", GARBAGE), 0, "it is made again"),
    ],
)
def test_what_a_run_has_lost_is_said_with_what_can_still_be_done(hard, whole, tmp_path, change, status, said):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder, symlinks=True)
    change(folder)
    found, out, err = hard("resume", str(folder), "train.duration=3.25ep")
    if status == 2:
        assert "or accept other numbers with `--inexact`" in err
        assert hard("resume", str(folder), "train.duration=3.25ep", "--inexact")[0] == 0

    assert (found, said in out + err, "Traceback" in out + err) == (status, True, False), out + err
    assert read_result(folder)["steps"] == 13


@pytest.mark.parametrize("damage", [None, b"", b"\0" * 4096, b"2/3"])
def test_log_lines_that_are_lost_are_taken_from_tensorboards_events(hard, project, whole, monkeypatch, damage):
    """The resumed run's lines are those of the whole one, to single precision; weights and events to the bit."""
    folder = stopped(hard, project, monkeypatch, 9, HARD)
    lines = folder / "metrics.jsonl"
    text = lines.read_bytes()
    lines.unlink()
    if damage is not None:
        lines.write_bytes(text[: len(text) * 2 // 3] if damage == b"2/3" else damage)
    status, out, err = hard("resume", str(folder))

    assert (status, "from TensorBoard's events" in out) == (0, True), out + err
    assert [pytest.approx(line, rel=1e-6) for line in ending(whole)["lines"]] == ending(folder)["lines"]
    assert events(whole) == events(folder)
    assert ending(whole)["result"] == ending(folder)["result"]


def test_log_lines_that_nothing_else_holds_are_said_to_be_lost(hard, project, monkeypatch):
    folder = stopped(hard, project, monkeypatch, 9, HARD, "log.tensorboard=false")
    (folder / "metrics.jsonl").unlink()
    status, out, err = hard("resume", str(folder))

    assert (status, "what was logged up to step 9 is lost" in out) == (0, True), out + err


def test_without_any_config_the_line_is_given_that_takes_it_from_a_checkpoint(hard, whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder, symlinks=True)
    was = (folder / "config.yaml").read_bytes()
    (folder / "config.yaml").write_bytes(b"")
    shutil.rmtree(folder / ".hydra")
    status, _, err = hard("evaluate", str(folder))
    code, _, rest = err.partition('python -c "')[2].partition('" ')
    monkeypatch.setattr(sys, "argv", ["-c", rest.partition(" > ")[0]])
    with contextlib.redirect_stdout(io.StringIO()) as text:
        exec(code, {})

    assert (status, code != "") == (2, True), err
    assert yaml.safe_load(text.getvalue()) == yaml.safe_load(was)


def test_the_same_line_with_run_goes_on_too(hard, project, whole, monkeypatch):
    """`run=RUN` begins in an empty folder, goes on in one that was stopped, prints the result of one that is done."""
    folder = project / "outputs" / "hard" / "mine"
    folder.mkdir(exist_ok=True)
    line = [HARD, f"run={folder}"]
    with monkeypatch.context() as patch:
        stop_after(7, patch)
        assert hard(*line)[0] == 75
    assert hard(*line)[0] == 0
    same(whole, folder)
    status, _, err = hard(*line)
    assert (status, "nothing was done" in err) == (0, True)


def test_a_run_without_a_checkpoint_starts_at_step_0_in_its_directory(hard, project, whole):
    folder = project / "outputs" / "hard" / "early"
    folder.mkdir()
    for name in ("config.yaml", ".hydra", "provenance.json"):
        (shutil.copytree if (whole / name).is_dir() else shutil.copy)(whole / name, folder / name)
    status, out, _ = hard("resume", str(folder))

    assert status == 0
    assert "no checkpoint yet" in out
    same(whole, folder)


def test_a_run_in_progress_is_refused(hard, project, monkeypatch):
    from runner.core.lock import Lock

    folder = stopped(hard, project, monkeypatch, 5, HARD)
    with Lock(folder):
        status, _, err = hard("resume", str(folder))

    assert (status, "must not be in progress" in err) == (2, True)


def test_no_skipped_sample_is_read(hard, project, monkeypatch):
    """After a stop behind batch 3 of the second epoch, what is left of it is read and nothing before."""
    folder = stopped(hard, project, monkeypatch, 7, HARD)
    read = sys.modules["parts"].READ
    read.clear()
    stopped(hard, project, monkeypatch, 8, "resume", str(folder))

    fingerprints, val = 2 * 8, 12  # what tells the data of both splits
    assert len(read) - fingerprints - val <= 44 - 36


# ---- what is saved: each item, deleted or disturbed, makes a difference

UNREAD = {"config", "scaler", "ema"}  # a note for people; the places of what does not exist yet


def items(value, at=()):
    """The paths of everything in a checkpoint that can be changed."""
    if isinstance(value, dict) and value:
        return [at, *(path for name, member in value.items() for path in items(member, (*at, name)))]
    if isinstance(value, list | tuple) and value:
        return [path for place, member in enumerate(value) for path in items(member, (*at, place))]
    return [at]


def changed(saved, path):
    """A copy of a checkpoint with one item disturbed, or deleted where it is a dictionary."""
    owner = saved
    for name in path[:-1]:
        if isinstance(owner[name], tuple):
            owner[name] = list(owner[name])
        owner = owner[name]
    value = owner[path[-1]]
    if isinstance(value, torch.Tensor):
        flat = value.clone().reshape(-1)
        if flat.numel():
            flat[0] = flat[0] + 1 if value.dtype != torch.uint8 else flat[0] ^ 1
        owner[path[-1]] = flat.reshape(value.shape)
    elif isinstance(value, bool):
        owner[path[-1]] = not value
    elif isinstance(value, int | float):
        owner[path[-1]] = value + 1
    elif isinstance(value, str):
        owner[path[-1]] = value + "x"
    else:
        del owner[path[-1]]
    return saved


def without_effect(path):
    """What may differ and changes nothing, each for a reason."""
    names = [str(name) for name in path]
    return (
        names[0] in UNREAD
        or names[-1] in {"maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"}
        or "initial_lr" in names  # StepLR goes on from the rate as it is
        or "base_lrs" in names
        or names[-1] in {"_get_lr_called_within_step", "_is_initial", "verbose"}
        or "_last_lr" in names  # for people, written anew by each step
        or names[:2] == ["progress", "evaluated_at"]  # only spares an evaluation done twice at one step
        or names[:2] == ["progress", "last"]  # written anew by each log line and evaluation
        or names[:2] in (["progress", "averaged"], ["progress", "parts"])  # of recipes, whose tests look at them
    )


def mutate(hard, project, whole, source, path, number):
    folder = project / "outputs" / "hard" / f"mutant{number}"
    shutil.copytree(source, folder, symlinks=True)
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    saved = changed(checkpoints.load(), path)
    checkpoints.save(saved, checkpoints.newest().step, None)
    status, _, _ = hard("resume", str(folder))
    found = status != 0 or differences(ending(whole), ending(folder)) != []
    shutil.rmtree(folder)
    return found


def mutants(source):
    saved = torch.load(source / "checkpoints" / "last.pt", weights_only=True)
    return [path for path in items(saved) if path and not without_effect(path)]


def test_a_saved_item_that_is_disturbed_is_noticed(hard, project, whole, monkeypatch, seed):
    source = stopped(hard, project, monkeypatch, 7, HARD)
    paths = random.Random(seed).sample(mutants(source), 8)

    missed = [path for number, path in enumerate(paths) if not mutate(hard, project, whole, source, path, number)]
    assert missed == [], missed


@pytest.mark.exhaustive
def test_every_saved_item_that_is_disturbed_is_noticed(hard, project, whole, monkeypatch):
    source = stopped(hard, project, monkeypatch, 7, HARD)
    paths = mutants(source)

    missed = [path for number, path in enumerate(paths) if not mutate(hard, project, whole, source, path, number)]
    assert missed == [], missed


def test_a_schedule_by_its_first_rates_and_a_sampler_with_a_state_go_on(hard, project, monkeypatch):
    """What the other run does not read of a checkpoint: each of it disturbed is noticed here."""
    assert hard("experiment=turning")[0] == 0
    whole = find_newest(project)
    source = stopped(hard, project, monkeypatch, 6, "experiment=turning")
    saved = torch.load(source / "checkpoints" / "last.pt", weights_only=True)
    paths = [path for path in items(saved) if path[-2:] == ("base_lrs", 0) or path[-2:] == ("sampler", "turns")]

    assert len(paths) == 2
    for number, path in enumerate(paths):
        assert mutate(hard, project, whole, source, path, number), path
    assert hard("resume", str(source))[0] == 0
    same(whole, source)


def test_a_last_save_cut_short_before_its_links_is_finished(hard, project, whole, monkeypatch):
    """Killed between the manifest and `last.pt`, at the last step: nothing is left to train, but the link follows."""
    original = Checkpoints.finish

    def killed(self):
        if self.newest().step == STEPS:
            raise OSError(5, "as good as killed")
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "finish", killed)
        assert hard(HARD)[0] == 1
    folder = find_newest(project)
    assert torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["progress"]["step"] < STEPS

    assert hard("resume", str(folder))[0] == 0
    assert {path.name for path in folder.glob("checkpoints/*")} == {path.name for path in whole.glob("checkpoints/*")}
    assert [] == differences(ending(whole)["checkpoint"], ending(folder)["checkpoint"])


def test_saving_at_every_step_or_never_gives_the_same_weights(hard, project, whole):
    assert hard(HARD, "train.checkpoint_every=1st")[0] == 0

    assert [] == differences(ending(whole)["checkpoint"], ending(find_newest(project))["checkpoint"])


def pairs():
    return list(itertools.product((0, 1, 4), repeat=2))


def test_all_nine_pairs_of_workers_are_in_the_exhaustive_test():
    assert sorted(PAIRS) == sorted(pairs())
