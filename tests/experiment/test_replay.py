"""A replay gives the same bits, or names the first step that differs and its cause."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.experiment.plants import FILES, PLANTS, SAMPLES, Plant
from tests.support import Ran, write_files


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
