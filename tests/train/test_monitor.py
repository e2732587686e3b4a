"""Whole runs that are looked into: nothing moves a weight, nothing is lost, nothing off costs a call."""

import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import metadata as hparams_metadata

from runner.log.logger import Logger
from runner.train.monitor import Monitor
from runner.train.optimizer_step.base import OptimizerStep
from tests.experiment.crash.project import HARD, differences, ending, events
from tests.support import find_newest, read_metrics, read_result, record_operators

HOOKS = "{all: {name: '.*', forward: [mean, std, abs_max, zeros], backward: [mean, std, abs_max, zeros]}}"
SEEN = [
    "log.gradient_norm=true",
    f"++log.hooks={HOOKS}",
    "log.histograms=4st",
    "log.graph=true",
    "log.images=8",
    "log.confusion_matrix=true",
    "log.pr_curves=true",
    "log.embeddings=12",
]
TIMED = ["log.throughput=true", "log.data_wait=true", "log.memory=true", "log.mfu=true", "log.peak_flops=1e9"]

MORE = '''
import torch

from parts import Counting


class Fielded(Counting):
    """With fields of its own, and a stage that changes."""

    def __call__(self, batch, model, loss):
        outcome = super().__call__(batch, model, loss)
        right = (outcome["output"].argmax(1) == outcome["target"]).float()
        stage = "warm" if self.count < 5 else "hot"
        return outcome | {"right": right.mean(), "samples": len(right), "stage": stage}

def peak(module, inputs, output):
    return {"largest": output.abs().max(), "drawn": torch.rand(()), "none": None}

class Spread:
    def __init__(self, factor):
        self.factor = factor
    def __call__(self, module, gradient):
        return gradient.std() * self.factor

def scaling(module, inputs, output):
    output.mul_(2)

def wordy(module, gradient):
    return "large"

def failing(module, inputs, output):
    return 1 / 0
'''


@pytest.fixture(scope="module")
def project(project):
    (project / "more.py").write_text(MORE)
    yield project
    sys.modules.pop("more", None)


def made(hard, project, *argv):
    ran = hard(*argv)
    assert ran.status == 0, ran
    return find_newest(project)


def stop_after(step, monkeypatch):
    original, taken = torch.optim.AdamW.step, []

    def counted(self, *args, **kwargs):
        done = original(self, *args, **kwargs)
        taken.append(step)
        if len(taken) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)


@pytest.mark.filterwarnings("ignore:.*")  # the profiler's own
def test_with_everything_on_a_run_ends_with_the_bits_of_one_with_everything_off(hard, project):
    """With dropout, batch norm, a step with a state, and random transforms."""
    off = made(hard, project, HARD, "log.tensorboard=false", "log.every=100st")
    on = made(hard, project, HARD, *SEEN, *TIMED, "log.every=1st", "++log.profile={wait: 1, warmup: 1, active: 2}")
    saved = [torch.load(folder / "checkpoints" / "last.pt", weights_only=True) for folder in (off, on)]

    for part in ("model", "optimizer", "scheduler", "rng", "step"):
        assert differences(saved[0][part], saved[1][part]) == []
    results = [read_result(folder) for folder in (off, on)]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
    assert len(list((on / "profile").iterdir())) == 1


class Noisy(torch.nn.Module):
    """Draws also where it is evaluated, and needs its numbers."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) + torch.rand(4) + random.random() if float(x.sum()) < 1e9 else x


def test_a_graph_that_needs_numbers_is_drawn_of_a_copy_and_draws_nothing_from_training(tmp_path):
    model = Noisy()
    update = OptimizerStep(model, torch.nn.MSELoss(), lambda batch, net, loss: {"loss": loss(net(batch), batch)}, None)
    log = Logger(tmp_path, tensorboard=True, progress=False, total_steps=1)
    before = torch.get_rng_state().tolist(), random.getstate()
    batches = [torch.ones(2, 4), torch.zeros(2, 4)]

    assert list(Monitor(model, update, graph=True).batches(iter(batches), log)) == batches
    assert before == (torch.get_rng_state().tolist(), random.getstate())
    log.close()
    board = EventAccumulator(str(tmp_path / "tb"))
    board.Reload()
    assert "layer/linear" in {node.name for node in board.Graph().node}


def test_tensorboard_reads_all_that_was_seen(hard, project):
    folder = made(hard, project, HARD, *SEEN, *TIMED)
    board = EventAccumulator(str(folder / "tb"))
    board.Reload()
    plugins = {name: set(board.PluginTagToContent(name)) for name in ("scalars", "histograms", "images", "pr_curves")}
    parameters = [
        name
        for name in torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["model"]
        if "running" not in name and "tracked" not in name
    ]

    scalars = plugins.pop("scalars")
    steps = {
        "gradient_norm": [3, 6, 9, 12],
        "weights/conv.weight": [4, 8, 12],
        "val/confusion_matrix": [5, 10, 12],
    }

    assert plugins == {
        "histograms": {f"{kind}/{name}" for kind in ("weights", "gradients") for name in parameters},
        "images": {"val/predictions", "val/confusion_matrix"},
        "pr_curves": {f"val/pr/{name}" for name in ("0", "1", "2", "micro")},
    }
    assert scalars >= {
        "gradient_norm",
        "forward/conv/zeros",
        "backward/norm/std",
        "forward/(model)/mean",
        "throughput/mfu",
        "throughput/data_wait",
        "memory/resident_gib",
    }
    assert {name: [event.step for event in board.Tensors(name)] for name in steps} == steps
    assert {"conv/conv2d", "norm/batch_norm", "head/linear"} <= {node.name for node in board.Graph().node}
    assert len((folder / "tb/projector/val/tensors.tsv").read_text().splitlines()) == 12


@pytest.mark.parametrize("step", [2, 5, *(pytest.param(step, marks=pytest.mark.exhaustive) for step in (3, 7, 8))])
def test_stopped_and_resumed_nothing_seen_is_missing_or_double(hard, project, monkeypatch, step):
    """The step before one that is looked into, one that is, one that is evaluated."""
    whole = made(hard, project, HARD, *SEEN)
    with monkeypatch.context() as patch:
        stop_after(step, patch)
        assert hard(HARD, *SEEN)[0] == 75
    folder = find_newest(project)
    assert hard("resume", str(folder))[0] == 0

    assert differences(ending(whole), ending(folder)) == []
    assert events(whole) == events(folder)
    for other in (whole, folder):
        board = EventAccumulator(str(other / "tb"))
        board.Reload()
        assert [event.step for event in board.Tensors("weights/conv.weight")] == [4, 8, 12]
        assert [event.step for event in board.Tensors("val/predictions")] == [5, 10, 12]


FIELDED = (HARD, "step._target_=more.Fielded")


def test_a_steps_own_fields_are_logged_saved_and_may_be_the_objective(hard, project):
    folder = made(hard, project, *FIELDED, "train.objective=val/right", "train.mode=max")
    lines = read_metrics(folder)
    result = read_result(folder)
    saved = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)

    assert [line["train/stage"] for line in lines if "train/stage" in line] == ["warm", "hot"]
    assert [(line["step"], "train/right" in line, "val/right" in line) for line in lines] == [
        (3, True, False),
        (5, False, True),
        (6, True, False),
        (9, True, False),
        (10, False, True),
        (12, True, True),
    ]
    for line in lines:
        for split in ("train", "val"):
            assert line.get(f"{split}/right") == pytest.approx(line.get(f"{split}/accuracy", None))
    assert (result["objective"], result["train"]["train/right"], result["train"]["train/stage"]) == (
        result["metrics"]["val/right"],
        lines[-1]["train/right"],
        "hot",
    )
    assert saved["progress"]["last"]["train/stage"] == "hot"
    board = EventAccumulator(str(folder / "tb"))
    board.Reload()
    words = [(event.step, event.tensor_proto.string_val[0]) for event in board.Tensors("train/stage/text_summary")]
    assert words == [(3, b"warm"), (6, b"hot")]


@pytest.mark.parametrize("step", [4, *(pytest.param(step, marks=pytest.mark.exhaustive) for step in (1, 5, 7))])
def test_a_steps_own_fields_go_on_as_if_it_had_never_stopped(hard, project, monkeypatch, step):
    whole = made(hard, project, *FIELDED)
    with monkeypatch.context() as patch:
        stop_after(step, patch)
        assert hard(*FIELDED)[0] == 75
    folder = find_newest(project)
    assert hard("resume", str(folder))[0] == 0

    assert differences(ending(whole), ending(folder)) == []
    assert events(whole) == events(folder)


def test_hparams_are_a_row_for_each_run_with_its_last_metrics(hard, project):
    folder = made(hard, project, HARD, "seed=3")
    runs = EventMultiplexer().AddRunsFromDirectory(str(project / "outputs")).Reload().Runs()
    board = EventAccumulator(str(folder / "tb"))
    board.Reload()
    content = board.PluginTagToContent("hparams")
    start = hparams_metadata.parse_session_start_info_plugin_data(content[hparams_metadata.SESSION_START_INFO_TAG])
    end = hparams_metadata.parse_session_end_info_plugin_data(content[hparams_metadata.SESSION_END_INFO_TAG])
    metrics = read_result(folder)["metrics"]

    given = start.hparams
    assert (given["seed"].number_value, given["model._target_"].string_value) == (3, "parts.Net")
    assert not any(name.startswith(("log.", "sweep.")) for name in given)
    assert end.status == 1  # success
    assert [run for run in runs if folder.name in run] == [f"hard/{folder.name}/tb"]  # TensorBoard shows it once
    assert set(board.PluginTagToContent("scalars")) >= set(metrics)
    assert board.Tensors("val/loss")[-1].tensor_proto.float_val[0] == pytest.approx(metrics["val/loss"])


def test_a_prolonged_run_has_one_row(hard, project):
    folder = made(hard, project, HARD, "train.duration=2ep", "log.hparams=[train.*, seed]")
    assert hard("resume", str(folder), "train.duration=3ep")[0] == 0
    board = EventAccumulator(str(folder / "tb"))
    board.Reload()
    start = hparams_metadata.parse_session_start_info_plugin_data(
        board.PluginTagToContent("hparams")[hparams_metadata.SESSION_START_INFO_TAG]
    )

    assert start.hparams["train.duration"].string_value == "3ep"
    assert "optimizer.lr" not in start.hparams


OWN = "{mine: {name: conv, forward: {_target_: more.peak}, backward: {_target_: more.Spread, factor: 2}}}"


def test_hooks_of_ones_own_are_logged_and_move_no_weight(hard, project):
    """What they return is in the line of the step, by name; they draw random numbers of their own."""
    plain = made(hard, project, HARD, "log.every=3st")
    looked = made(hard, project, HARD, "log.every=3st", f"++log.hooks={OWN}")
    line = read_metrics(looked)[0]
    results = [read_result(folder) for folder in (plain, looked)]

    assert {name for name in line if name.startswith(("forward", "backward"))} == {
        "forward/conv/mine/largest",
        "forward/conv/mine/drawn",
        "backward/conv/mine",
    }
    assert line["forward/conv/mine/largest"] > 0
    assert line["backward/conv/mine"] > 0
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]


@pytest.mark.parametrize(
    ("hook", "status", "said"),
    [
        ("{name: cnv, forward: {_target_: more.peak}}", 2, "log.hooks.a.name must match a module, but is 'cnv'"),
        ("{name: conv, forward: {_target_: more.peek}}", 2, "did you mean `more.peak`?"),
        ("{name: conv, forward: {_target_: torch.mean}}", 2, "must be a function of your own that takes a module"),
        (
            "{name: conv, forward: {_target_: more.scaling}}",
            1,
            "log.hooks.a changed a tensor of `forward/conv` in place",
        ),
        (
            "{name: conv, backward: {_target_: more.wordy}}",
            1,
            "must return numbers, or a mapping of them, but returns str",
        ),
        (
            "{name: conv, forward: {_target_: more.failing}}",
            1,
            "log.hooks.a raised at `forward/conv`: ZeroDivisionError",
        ),
    ],
)
def test_a_hook_that_cannot_be_is_said(hard, hook, status, said):
    """Before the run where its name or its pattern is wrong; with its key where it raises or does more than look."""
    ended, _, text = hard(HARD, "log.every=1st", f"++log.hooks={{a: {hook}}}")

    assert (status, True) == (ended, said in text), text


def test_a_line_of_training_may_be_of_its_own_step(hard, project, monkeypatch):
    """The values of each third step, and of the last, as a log of every step has them; also after a resume."""
    every = {line["step"]: line for line in read_metrics(made(hard, project, HARD, FIELDED[1], "log.every=1st"))}
    names = ("train/loss", "train/accuracy", "train/right")
    third = read_metrics(made(hard, project, HARD, FIELDED[1], "log.every=3st", "log.mean=false"))
    means = read_metrics(made(hard, project, HARD, FIELDED[1], "log.every=3st"))
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        assert hard(HARD, FIELDED[1], "log.every=3st", "log.mean=false")[0] == 75
    folder = find_newest(project)
    assert hard("resume", str(folder))[0] == 0

    at = [line["step"] for line in third if "train/loss" in line]
    assert at == [3, 6, 9, 12]
    for name in names:
        assert [line[name] for line in third if name in line] == [every[step][name] for step in at]
        assert [line[name] for line in read_metrics(folder) if name in line] == [every[step][name] for step in at]
    assert means[0]["train/loss"] != third[0]["train/loss"]


def calls_of_ten_steps(hard, *argv):
    """Python's and C's calls, and the operators, between steps 12 and 22 of a run that logs each 25."""
    python, operators, done = Counter(), record_operators(), []

    def profiler(frame, event, arg):
        if event == "call":
            python[f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_qualname}"] += 1
        elif event == "c_call":
            python[arg.__qualname__] += 1

    original = torch.optim.AdamW.step

    def counted(self, *args, **kwargs):
        done.append(None)
        if len(done) == 22:
            sys.setprofile(None)
            operators.__exit__(None, None, None)
        result = original(self, *args, **kwargs)
        if len(done) == 12:
            operators.__enter__()
            sys.setprofile(profiler)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", counted)
        ran = hard(
            HARD,
            "train.duration=25st",
            "log.every=25st",
            "train.evaluate_every=null",
            "train.checkpoint_every=null",
            "loader.batch_size=1",
            *argv,
        )
    assert (ran.status, len(done)) == (0, 25), ran
    return python, Counter(operators.names)


OFF = [
    "log.gradient_norm=false",
    "++log.hooks={}",
    "log.histograms=null",
    "log.graph=false",
    "log.images=0",
    "log.confusion_matrix=false",
    "log.pr_curves=false",
    "log.embeddings=0",
    "log.throughput=false",
    "log.data_wait=false",
    "log.memory=false",
    "log.mfu=false",
    "log.profile=null",
    "log.hparams=false",
]


def test_what_is_off_adds_no_call_and_what_is_on_none_between_its_steps(hard, project):
    """Only waiting for data is measured at each step, where that is asked for."""
    calls_of_ten_steps(hard)  # what torch does once in a process
    absent = calls_of_ten_steps(hard)
    off = calls_of_ten_steps(hard, *OFF)
    on = calls_of_ten_steps(hard, *SEEN, "log.histograms=25st", "log.throughput=true", "log.memory=true")

    assert sum(absent[0].values()) > 1000
    assert sum(absent[1].values()) > 100
    assert off == absent
    assert on == absent


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["++log.hooks={a: {name: 'cnv', forward: [mean]}}"], "log.hooks.a.name must match a module, but is 'cnv'"),
        (["++log.hooks={a: {name: 'cnv', forward: [mean]}}"], "did you mean `conv`?"),
        (["++log.hooks={a: {module: torch.nn.Conv3d, backward: [mean]}}"], "none is a Conv3d"),
        (["++log.hooks={a: {name: conv}}"], "log.hooks.a needs statistics to log"),
        (["++log.hooks={a: {name: conv, forward: [median]}}"], "log.hooks.a.forward"),
        (
            ["log.tensorboard=false", "log.histograms=1ep"],
            "log.histograms has no effect while `log.tensorboard` is false",
        ),
        (
            ["dataset.val=null", "train.objective=null", "train.mode=null", "log.images=4"],
            "log.images has no effect without",
        ),
        (["log.peak_flops=1e12"], "log.peak_flops has no effect while `log.mfu` is false"),
        (["log.histograms=0st"], "log.histograms must"),
        (["device.compile=true", "log.embeddings=4"], "log.embeddings must be off with `device.compile`"),
        (["++log.profile={active: 0}"], "log.profile.active must be at least 1"),
        ([FIELDED[1], "train.objective=val/rigth"], "did you mean `val/right`?"),
        (["train.objective=val/right"], "train.objective must be one of"),
    ],
)
def test_what_is_asked_for_in_vain_is_a_mistake(hard, overrides, said):
    status, text, _ = hard("check", HARD, *overrides)

    assert status == 2
    assert said in text
