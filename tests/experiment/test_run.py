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

Runner = Callable[..., Any]
SHORT = ("train.duration=2ep", "dataset.limit=200", "device=cpu")


def events(folder: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


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


def test_the_run_directory_is_whole(runner: Runner) -> None:
    """A run leaves every file of the contract, and each says what it should."""
    ran = runner(*SHORT)
    folder = ran.folder
    config = yaml.safe_load((folder / "config.yaml").read_text())
    provenance = json.loads((folder / "provenance.json").read_text())
    manifest = json.loads((folder / "checkpoints" / "manifest.json").read_text())

    assert ran.status == 0
    assert folder.parent == Path("outputs/digits_cnn")
    assert config["train"]["duration"] == "2ep"
    assert config["seed"] == 0, "defaults are filled in"
    assert "${train.duration}" in (folder / ".hydra" / "config.yaml").read_text()
    assert {"seed", "threads", "command", "data", "plan", "versions"} <= provenance.keys()
    assert len(provenance["data"]["train"]["sha256"]) == 64
    assert [entry["step"] for entry in manifest["entries"]] == [4, 8]
    assert (folder / "checkpoints" / "last.pt").resolve() == (folder / "checkpoints" / "step_00000008.pt").resolve()
    assert (folder / "checkpoints" / "best.pt").exists()
    assert list((folder / "tb").glob("events.out.tfevents.*"))
    assert "test/accuracy" in (folder / "log.txt").read_text()
    assert ran.result["status"] == "completed"
    assert ran.result["steps"] == 8
    assert {"val/loss", "val/accuracy", "test/loss", "test/accuracy"} == ran.result["metrics"].keys()
    assert ran.result["objective"] == ran.result["metrics"]["val/accuracy"]
    assert [event["step"] for event in events(folder)] == [4, 8]


def test_a_checkpoint_opens_without_this_package(runner: Runner) -> None:
    """Plain torch reads a checkpoint with `weights_only=True`, and finds the keys of the contract."""
    saved = torch.load(runner(*SHORT).folder / "checkpoints" / "last.pt", weights_only=True)
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
def test_watching_changes_no_bit(runner: Runner, other: tuple[str, ...]) -> None:
    """Logging, evaluating and saving at any rhythm, or hardly, leaves the weights bitwise the same."""
    expected = runner(*SHORT).result["weights_sha256"]

    assert expected == runner(*SHORT, *other).result["weights_sha256"]
    assert expected != runner(*SHORT, "seed=1").result["weights_sha256"]


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
    result = json.loads((folder / "result.json").read_text())
    assert stopped.status == 75
    assert result["status"] == "interrupted"
    assert result["steps"] == step
    resumed = runner("resume", str(folder))

    assert resumed.status == 0
    assert whole.result["weights_sha256"] == resumed.result["weights_sha256"]
    assert events(whole.folder) == events(folder)
    assert whole.result["metrics"] == resumed.result["metrics"]
    assert whole.result["best"] == resumed.result["best"]


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
    assert json.loads((folder / "result.json").read_text())["status"] == "completed"


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
    result = json.loads((folder / "result.json").read_text())

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

    assert json.loads((folder / "result.json").read_text())["error"].partition(" (/")[0] == said
    assert "Traceback" in (folder / "log.txt").read_text()


def test_what_the_data_refuses_fails_the_run_in_one_paragraph(runner: Runner) -> None:
    """A download that cannot be had is an error of the run, with the config recorded."""
    ran = runner("experiment=cifar10_resnet18", "device=cpu")
    folder = next(Path("outputs/cifar10_resnet18").iterdir())

    assert ran.status == 1
    assert "Traceback" not in ran.out + ran.err
    assert "cifar-10-python.tar.gz" in ran.err
    assert (folder / "config.yaml").exists()
    assert (folder / "provenance.json").exists()
    assert json.loads((folder / "result.json").read_text())["status"] == "failed"


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
    results = [json.loads((sweep / str(job) / "result.json").read_text()) for job in range(4)]
    assert {result["status"] for result in results} == {"completed"}
    assert returned == [result["objective"] for result in results]


def test_a_failing_job_does_not_stop_the_others(runner: Runner) -> None:
    """The other jobs of Hydra's own launcher finish; the exit status is 1."""
    ran = runner("-m", *SHORT, "optimizer.lr=1e20,0.1", "train.check_finite=loss", "hydra/launcher=basic")
    sweep = next(Path("outputs/digits_cnn").iterdir())
    status = [json.loads((sweep / str(job) / "result.json").read_text())["status"] for job in range(2)]

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
        inside = run.progress.step < run.total_steps
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
