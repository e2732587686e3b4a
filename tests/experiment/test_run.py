"""Whole runs: the run directory, the bits of the weights, evaluation, resume, failure."""

import errno
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra._internal.hydra import Hydra

from runner.train import loop
from tests.support import Ran, read_metrics, read_result, run_in

Runner = Callable[..., Any]
SHORT = ("train.duration=2ep", "dataset.limit=200", "device=cpu")


def interrupt_after(step: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGTERM) -> None:
    """Send this process a signal as soon as that optimizer step is done."""
    original = torch.optim.SGD.step
    count = 0

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        done = original(self, *args, **kwargs)
        if count == step:
            os.kill(os.getpid(), number)
        return done

    monkeypatch.setattr(torch.optim.SGD, "step", counted)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The run of `SHORT` and nothing else."""
    return run_in(tmp_path_factory.mktemp("short"), *SHORT)


def test_a_run_directory_has_its_config_whole_and_as_it_was_written(short: Ran) -> None:
    config = yaml.safe_load((short.folder / "config.yaml").read_text())

    assert short.folder.parts[-3:-1] == ("outputs", "digits_cnn")
    assert (config["train"]["duration"], config["seed"]) == ("2ep", 0), "defaults are filled in"
    assert "${train.duration}" in (short.folder / ".hydra" / "config.yaml").read_text()


def test_a_run_directory_has_its_provenance(short: Ran) -> None:
    provenance = json.loads((short.folder / "provenance.json").read_text())

    assert {"seed", "threads", "command", "data", "plan", "versions"} <= provenance.keys()
    assert len(provenance["data"]["train"]["sha256"]) == 64


def test_a_run_directory_has_its_checkpoints(short: Ran) -> None:
    folder = short.folder / "checkpoints"
    manifest = json.loads((folder / "manifest.json").read_text())

    assert [entry["step"] for entry in manifest["entries"]] == [4, 8]
    assert (folder / "last.pt").resolve() == (folder / "step_00000008.pt").resolve()
    assert (folder / "best.pt").exists()


def test_a_run_directory_has_its_logs(short: Ran) -> None:
    assert [event["step"] for event in read_metrics(short.folder)] == [4, 8]
    assert list((short.folder / "tb").glob("events.out.tfevents.*"))
    assert "test/accuracy" in (short.folder / "log.txt").read_text()


def test_a_run_directory_has_its_result(short: Ran) -> None:
    result = short.result

    assert (short.status, result["status"], result["steps"]) == (0, "completed", 8)
    assert {"val/loss", "val/accuracy", "test/loss", "test/accuracy"} == result["metrics"].keys()
    assert result["objective"] == result["metrics"]["val/accuracy"]


def test_a_checkpoint_opens_without_this_package(short: Ran) -> None:
    """Plain torch reads a checkpoint with `weights_only=True`, and finds the keys of the contract."""
    saved = torch.load(short.folder / "checkpoints" / "last.pt", weights_only=True)
    keys = {"model", "optimizer", "scheduler", "scaler", "ema", "rng", "progress", "metrics", "step", "config"}

    assert keys == saved.keys()
    assert saved["optimizer"]["param_groups"][0]["param_names"][0] == "conv1.weight"
    assert list(saved["model"]) == [
        f"{layer}.{kind}" for layer in ("conv1", "conv2", "fc") for kind in ("weight", "bias")
    ]


@pytest.mark.parametrize(
    "other",
    [
        ("log.every=1st", "train.evaluate_every=3st", "train.checkpoint_every=1st"),
        (
            "train.evaluate_every=null",
            "train.checkpoint_every=null",
            "log=quiet",
            "metrics=none",
            "train.objective=null",
            "train.mode=null",
        ),
        ("loader.eval.batch_size=7", "log.every=0.5ep"),
    ],
)
def test_watching_changes_no_bit(runner: Runner, short: Ran, other: tuple[str, ...]) -> None:
    """Logging, evaluating and saving at any rhythm, or hardly, leaves the weights bitwise the same."""
    assert short.result["weights_sha256"] == runner(*SHORT, *other).result["weights_sha256"]


def test_another_seed_changes_the_weights(runner: Runner, short: Ran) -> None:
    assert short.result["weights_sha256"] != runner(*SHORT, "seed=1").result["weights_sha256"]


def test_workers_change_no_bit(runner: Runner) -> None:
    """Zero and two workers train the same weights where both go sample by sample."""
    alone = runner(*SHORT, "loader.in_memory=false").result["weights_sha256"]

    assert alone == runner(*SHORT, "loader=workers").result["weights_sha256"]


@pytest.mark.parametrize("which", ["last", "best"])
def test_evaluate_gives_the_same_bits(runner: Runner, which: str) -> None:
    """`evaluate` of a finished run gives the numbers of the end of training, bit for bit."""
    ran = runner(*SHORT, "seed=2")
    again = runner("evaluate", str(ran.folder), "--checkpoint", which, "--json")
    metrics = json.loads(again.out)["metrics"]
    expected = ran.result["metrics"] if which == "last" else ran.result["best"]["metrics"]

    assert again.status == 0
    assert {name: metrics[name] for name in expected if name in metrics} == {
        name: value for name, value in expected.items() if not name.startswith("train/")
    }
    assert runner("evaluate", str(ran.folder), f"--checkpoint={ran.folder}/checkpoints/last.pt").status == 0


@pytest.mark.parametrize("step", [1, 3, 4, 7])
def test_an_interrupted_run_goes_on_exactly(runner: Runner, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """A signal after any step, then `resume`: the same weights, and the same log lines, as without."""
    settings = (*SHORT, "log.every=3st")
    whole = runner(*settings)
    with monkeypatch.context() as patched:
        interrupt_after(step, patched)
        stopped = runner(*settings)
    folder = Path(stopped.out.strip().splitlines()[-1].split()[-1])
    result = read_result(folder)
    assert (stopped.status, result["status"], result["steps"]) == (75, "interrupted", step)
    resumed = runner("resume", str(folder))
    exact = ("weights_sha256", "metrics", "best")

    assert resumed.status == 0
    assert [whole.result[name] for name in exact] == [resumed.result[name] for name in exact]
    assert read_metrics(whole.folder) == read_metrics(folder)


def test_ctrl_c_saves_and_says_how_to_go_on(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the step, saves, exits with 130 and prints the line that continues."""
    interrupt_after(3, monkeypatch, signal.SIGINT)
    stopped = runner(*SHORT)

    assert stopped.status == 130
    assert "python -m runner resume outputs/digits_cnn/" in stopped.out


def test_a_closed_terminal_does_not_end_a_run(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its SIGHUP comes after the second step."""
    interrupt_after(2, monkeypatch, signal.SIGHUP)
    ran = runner(*SHORT)

    assert (ran.status, ran.result["status"], ran.result["steps"]) == (0, "completed", 8)


@pytest.mark.parametrize("refusal", [errno.EPIPE, errno.EIO])
def test_a_console_that_is_gone_does_not_end_a_run(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    """`| head` has read enough (EPIPE), the terminal is closed (EIO)."""

    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(refusal, os.strerror(refusal))

    from runner.__main__ import main

    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr(sys, "stderr", Gone())
    assert main(list(SHORT)) == 0
    (folder,) = (tmp_path / "outputs" / "digits_cnn").iterdir()
    assert read_result(folder)["status"] == "completed"


def test_a_run_that_failed_before_it_had_a_config_begins_in_its_folder(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was full when its first file was written."""
    from runner.experiment.record import result

    folder = tmp_path / "mine"
    folder.mkdir()
    with monkeypatch.context() as patch:

        def full(path: Path, _text: str) -> str:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        patch.setattr(result, "write_text", full)
        assert runner(*SHORT, f"run={folder}").status == 1
    assert not (folder / "config.yaml").exists()
    assert (folder / "result.json").exists()
    ran = runner(*SHORT, f"run={folder}")

    assert (ran.status, ran.result["status"]) == (0, "completed")


def test_a_folder_of_something_else_is_no_place_for_a_run(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    ran = runner(*SHORT, f"run={tmp_path / 'mine'}")

    assert (ran.status, "it has no config.yaml, but thesis.tex" in ran.err) == (2, True)


@pytest.mark.parametrize("verb", [[], ["show", "schedule"], ["show", "data"], ["audit", "init"]])
@pytest.mark.parametrize("place", ["file", "link"])
def test_outputs_that_is_no_folder_is_said_in_a_sentence(
    runner: Runner, tmp_path: Path, verb: list[str], place: str
) -> None:
    if place == "file":
        (tmp_path / "outputs").touch()
    else:
        (tmp_path / "outputs").symlink_to("/nonexistent/disk")
    ran = runner(*verb, *SHORT)

    said = {"file": "outputs is a file where a folder must be", "link": "outputs is a link to /nonexistent/disk"}[place]
    assert (ran.status, said in ran.err, ran.err.count("\n")) == (1, True, 1), ran.err


def test_resume_of_a_completed_run_touches_nothing(runner: Runner) -> None:
    """It prints the result, exits with 0, and every file is as it was."""
    folder = runner(*SHORT).folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = runner("resume", str(folder))

    assert again.status == 0
    assert "test/accuracy" in again.out
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_duration_of_zero_evaluates_and_saves(runner: Runner) -> None:
    """`0st` trains nothing: the weights are those of the initialisation, evaluated and saved."""
    ran = runner("debug=noop", "device=cpu")

    assert ran.status == 0
    assert ran.result["steps"] == 0
    assert 0 < ran.result["metrics"]["test/accuracy"] < 0.3
    assert (ran.folder / "checkpoints" / "step_00000000.pt").exists()


def test_a_loss_that_is_not_finite_fails_the_run(runner: Runner) -> None:
    """The step is named, the exit status is 1, and `result.json` says so; nothing broken was saved."""
    ran = runner(*SHORT, "optimizer.lr=1e20", "train.duration=4ep")
    folder = next(Path("outputs/digits_cnn").iterdir())
    result = read_result(folder)

    assert ran.status == 1
    assert result["status"] == "failed"
    assert "at step" in result["error"]
    assert "Traceback" not in ran.out + ran.err
    assert "Traceback" in (folder / "log.txt").read_text()


class Mute(Exception):
    """An error that cannot be printed."""

    def __str__(self) -> str:
        """Raises."""
        raise ValueError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError("no caf\udce9.png"), "FileNotFoundError: no caf\\udce9.png"),
        (Mute(), "Mute, which has no text"),
    ],
)
def test_an_error_without_words_is_recorded_all_the_same(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    """A file name that is no UTF-8, an exception whose text raises."""

    def fail(_run: object) -> None:
        raise error

    monkeypatch.setattr(loop, "fit", fail)
    assert runner(*SHORT).status == 1
    folder = next(Path("outputs/digits_cnn").iterdir())

    assert read_result(folder)["error"].partition(" (/")[0] == said
    assert "Traceback" in (folder / "log.txt").read_text()


def test_what_the_data_refuses_fails_the_run_in_one_paragraph(runner: Runner) -> None:
    """A download that cannot be had is an error of the run, with the config recorded."""
    ran = runner("experiment=cifar10_resnet18", "device=cpu")
    folder = next(Path("outputs/cifar10_resnet18").iterdir())

    assert ran.status == 1
    assert "Traceback" not in ran.out + ran.err
    assert "cifar-10-python.tar.gz" in ran.err
    assert {"config.yaml", "provenance.json", "result.json"} <= {file.name for file in folder.iterdir()}
    assert read_result(folder)["status"] == "failed"


def test_a_launcher_of_hydras_own_trains_each_point_and_gets_the_objective(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each job has a directory of its own with its own config; what Hydra gets back is the objective."""
    returned: list[Any] = []
    multirun = Hydra.multirun

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        batches = multirun(self, *args, **kwargs)
        returned.extend(job.return_value for batch in batches for job in batch)
        return batches

    monkeypatch.setattr(Hydra, "multirun", watched)
    ran = runner("-m", *SHORT, "optimizer.lr=0.1,0.01", "seed=0,1", "hydra/launcher=basic")
    sweep = next(Path("outputs/digits_cnn").iterdir())
    configs = [yaml.safe_load((sweep / str(job) / "config.yaml").read_text()) for job in range(4)]

    assert ran.status == 0
    assert [(c["optimizer"]["lr"], c["seed"]) for c in configs] == [(0.1, 0), (0.1, 1), (0.01, 0), (0.01, 1)]
    results = [read_result(sweep / str(job)) for job in range(4)]
    assert {result["status"] for result in results} == {"completed"}
    assert returned == [result["objective"] for result in results]


def test_a_failing_job_does_not_stop_the_others(runner: Runner) -> None:
    """The other jobs of Hydra's own launcher finish; the exit status is 1."""
    ran = runner("-m", *SHORT, "optimizer.lr=1e20,0.1", "train.check_finite=loss", "hydra/launcher=basic")
    sweep = next(Path("outputs/digits_cnn").iterdir())
    status = [read_result(sweep / str(job))["status"] for job in range(2)]

    assert ran.status == 1
    assert status == ["failed", "completed"]


def test_no_wait_for_the_device_in_a_step(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two log lines nothing is read back: no item(), no tolist(), no float() of a tensor."""
    reads: list[str] = []
    inside = False
    original = {name: getattr(torch.Tensor, name) for name in ("item", "tolist", "__float__", "__bool__", "cpu")}

    def watched(name: str) -> Callable[..., Any]:
        def read(self: torch.Tensor, *args: Any) -> Any:
            if inside:
                reads.append(name)
            return original[name](self, *args)

        return read

    pause = loop.run_due_actions

    def marked(run: Any) -> int:
        nonlocal inside
        inside = False
        due = pause(run)
        inside = run.progress.step < run.rhythm.total_steps
        return due

    for name in original:
        monkeypatch.setattr(torch.Tensor, name, watched(name))
    monkeypatch.setattr(loop, "run_due_actions", marked)
    ran = runner(*SHORT, "log.every=2st", "optimizer.fused=false")

    assert ran.status == 0
    assert reads == []


STREAM = """
import torch


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        for _ in range(100):
            yield torch.zeros(1, 8, 8), 0
"""


def test_a_dataset_without_a_length_needs_steps(runner, tmp_path, monkeypatch):
    """Every span in epochs is named at once."""
    (tmp_path / "streams.py").write_text(STREAM)
    monkeypatch.syspath_prepend(tmp_path)
    plain = [
        "experiment=null",
        "dataset=none",
        "dataset.steps_per_epoch=null",
        "dataset.train={_target_: streams.Stream}",
    ]
    ran = runner(*plain, "train.duration=3st")

    assert ran.status == 1
    assert "in steps (`500st`): train.evaluate_every=1ep, train.checkpoint_every=1ep" in ran.err


def test_partial_as_templates_write_it_changes_nothing(runner: Runner) -> None:
    """`_partial_: true` of whatever the runner completes itself, also with groups of parameters and nested."""
    groups = "param_groups={bias: {match: '.*bias', weight_decay: 0}}"
    chain = (
        "scheduler={_target_: torch.optim.lr_scheduler.SequentialLR, milestones: [1], schedulers: ["
        "{_target_: torch.optim.lr_scheduler.ConstantLR}, {_target_: torch.optim.lr_scheduler.StepLR, step_size: 1}]}"
    )
    asked = ("train.duration=3st", "dataset.limit=100", "device=cpu", groups, "~scheduler.T_max")
    plain = runner(*asked, chain).result
    keys = ("optimizer", "model", "loss", "step", "metrics.accuracy", "dataset.source", "scheduler")
    partial = runner(*asked, chain.replace("LR}", "LR, _partial_: true}"), *(f"+{key}._partial_=true" for key in keys))

    assert partial.status == 0
    assert partial.result["weights_sha256"] == plain["weights_sha256"]
    assert partial.result["metrics"] == plain["metrics"]
