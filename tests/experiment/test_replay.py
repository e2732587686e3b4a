"""A replay gives the same bits, or names the first step that differs and its cause."""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from runner.log.trace_file import read_trace, read_trace_lines
from tests.experiment.plants import FILES, PLANTS, SAMPLES, Plant
from tests.support import Ran, list_experiments, write_files


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The project of the plants, as the working directory."""
    import numpy as np

    write_files(tmp_path, FILES)
    for name, count in (("points", SAMPLES), ("val", 20)):
        draw = np.random.default_rng(count)
        labels = np.arange(count) % 3
        np.save(tmp_path / f"{name}.npy", np.c_[draw.normal(size=(count, 4)) + labels[:, None], labels])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    forget_modules()
    yield tmp_path
    forget_modules()


def forget_modules() -> None:
    """Forget the project's modules, so that their files are read again."""
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if name.startswith("plant_") and name != "plant_moody"]:
        del sys.modules[name]


def set_key(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key."""
    *above, last = key.split(".")
    for name in above:
        config = config[name]
    config[last] = value


def put_plant(plant: Plant, run: Path) -> None:
    """Change the project or the run as a plant says."""
    for file, before, after in plant.files:
        text = Path(file).read_text()
        assert before in text
        Path(file).write_text(text.replace(before, after, 1))
    config = yaml.safe_load((run / "config.yaml").read_text())
    for key, value in plant.config.items():
        set_key(config, key, value)
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    if plant.change is not None:
        plant.change(run)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    "plant",
    [pytest.param(plant, id=plant.name, marks=[] if plant.everyday else pytest.mark.exhaustive) for plant in PLANTS],
)
def test_a_plant_is_found_at_its_step_with_its_cause(plant: Plant, runner: Callable[..., Ran]) -> None:
    """Whatever is changed after a run, its replay names the first step that differs, what of it, and the cause."""
    run = runner("experiment=plants", *plant.overrides).folder
    put_plant(plant, run)
    forget_modules()

    ran = runner("replay", str(run), "--json")

    answer = json.loads(ran.out)
    causes = [*answer.get("evidence", []), json.dumps(answer["before"]), json.dumps(answer["config"]), answer["answer"]]
    told = runner("replay", str(run)).out if plant.step is None else " ".join(causes)
    assert (answer.get("step"), answer.get("phase", "")) == (plant.step, plant.phase), answer["answer"]
    assert plant.said.lower() in told.lower()
    assert ran.status == (0 if plant.step is None else 1)


CONF = Path(__file__).parents[2] / "conf" / "experiment"
EXPERIMENTS = list_experiments()
EVERY_DAY = ("digits_cnn", "digits_gan", "minimise")
SMALL = ("log.every=2st", "device.type=cpu", "train.checkpoint_every=3st", "train.evaluate_every=null")


def list_settings(name: str) -> list[str]:
    """List what makes a shipped experiment short: six steps."""
    settings = [f"experiment={name}", "train.duration=6st", *SMALL]
    if "override /dataset: none" not in (CONF / f"{name}.yaml").read_text():
        settings += ["dataset.limit=24", "loader.batch_size=8", "train.accumulate=1"]
    if name == "imagenet_resnet50_strong":
        settings += ["scheduler.warmup=1st", "optimizer.lr=0.01"]
    if name == "digits_frozen_embedding":
        settings.append("freeze.until=4st")
    if name.startswith("airbench94"):
        settings.append("freeze.sets.whitening_bias.from=1ep")
    if name == "airbench94":
        settings.append("train.average.every=3st")  # before the first update nothing can be continued
    return settings


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in EVERY_DAY else pytest.mark.exhaustive) for name in EXPERIMENTS],
)
@pytest.mark.usefixtures("cifar10", "binary_cifar10", "image_folder", "resnet18_weights")
def test_a_shipped_experiment_replays_bitwise(name: str, runner: Callable[..., Ran]) -> None:
    """Each shipped experiment gives the same bits again, from its beginning and from a checkpoint in its middle."""
    run = runner(*list_settings(name)).folder

    answers = [json.loads(runner("replay", str(run), "--json", *more).out) for more in ((), ("--from", "3"))]

    assert [(answer["answer"], answer["missing"]) for answer in answers] == [
        ("Steps 1 to 6 are bitwise the same.", []),
        ("Steps 4 to 6 are bitwise the same.", []),
    ]


def cut_run(run: Path, step: int) -> None:
    """Leave a run as a kill after the checkpoint of a step does."""
    from runner.experiment.record.recorded_run import RecordedRun

    (run / "result.json").unlink()
    checkpoints = RecordedRun(run).open_checkpoints(keep=9)
    (entry,) = [entry for entry in checkpoints.entries() if entry.step == step]
    checkpoints.save(checkpoints.load(checkpoints.folder / entry.file), step, entry.metric)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "digits_cnn" else pytest.mark.exhaustive) for name in EXPERIMENTS],
)
@pytest.mark.usefixtures("cifar10", "binary_cifar10", "image_folder", "resnet18_weights")
def test_a_resumed_run_replays_bitwise(name: str, runner: Callable[..., Ran]) -> None:
    """A run that was stopped between two log lines and resumed has one trace, and gives the same bits again."""
    run = runner(*list_settings(name)).folder
    before = read_trace(read_trace_lines(run))
    cut_run(run, 3)
    assert runner("resume", str(run)).status == 0

    after = read_trace(read_trace_lines(run))
    ran = runner("replay", str(run))

    assert after.steps == before.steps
    assert "Steps 1 to 6 are bitwise the same." in ran.out
    assert ran.status == 0


PAGE = (Path(__file__).parents[2] / "docs" / "cookbook" / "guides" / "replay.md").read_text()


@pytest.mark.exhaustive
def test_the_page_does_what_it_says(runner: Callable[..., Ran]) -> None:
    """Each command of `docs/cookbook/guides/replay.md` runs, in order; the printed answers are those of the page."""
    lines = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    said, statuses = "", []
    for line in lines:
        if not line.startswith("python -m runner"):
            subprocess.run(["bash", "-c", line], check=True)
            continue
        words = [
            path
            for word in line.removesuffix("|| true").split()[3:]
            for path in [*map(str, Path().glob(word))] or [word]
        ]
        ran = runner(*words)
        said += ran.out
        statuses.append(ran.status == 0 or line.endswith("|| true"))

    shown = [block.strip() for block in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)][:2]
    assert all(statuses)
    assert [block for block in shown if block not in said] == []
