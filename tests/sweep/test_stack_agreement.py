"""Jobs trained as one and the same jobs alone: whole sweeps, both ways."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from tests.support import read_result
from tests.sweep import project


def run_both(folder: Path, *line: str) -> tuple[dict[Any, Path], dict[Any, Path]]:
    """Run a sweep vectorized and in slots; return the directories of the jobs of both, by point."""
    found = []
    for how in ("on", "off"):
        place = folder / how
        place.mkdir()
        assert project.run(place, "-m", *line, "device.type=cpu", f"sweep.vectorize={how}") == 0, project.said(place)
        found.append({tuple(row.overrides): project.sweep_of(place) / row.path for row in project.rows(place)})
    return found[0], found[1]


def read_losses(job: Path) -> list[float]:
    """The training loss of each step."""
    lines = [json.loads(line) for line in (job / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


EVERY = ("log.every=1st", "train.evaluate_every=null", "log.tensorboard=false")
KINDS = {
    "mlp": ("experiment=digits_mlp", "optimizer.lr=0.01,0.1"),
    "cnn": ("experiment=digits_cnn", "optimizer.lr=0.01,0.05"),
    "adam": ("experiment=digits_mlp", "optimizer=adam", "optimizer.lr=0.0003,0.001"),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_the_losses_of_the_first_hundred_steps_agree(kind: str, tmp_path: Path) -> None:
    """In fp32, within 1e-4 of the serial loss."""
    together, apart = run_both(tmp_path, *KINDS[kind], "seed=0,1,2", "train.duration=100st", *EVERY)

    assert len(together) == 6
    for point, job in together.items():
        ours, theirs = read_losses(job), read_losses(apart[point])
        assert len(ours) == len(theirs) == 100
        worst = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
        assert worst < 1e-4, (point, worst)


@pytest.mark.exhaustive
def test_the_accuracies_of_32_jobs_are_those_of_jobs_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A paired test: the mean difference is no larger than chance makes it, nor than the spread of the seeds."""
    line = ("experiment=digits_mlp", "optimizer.lr=0.02,0.05,0.1,0.2", "sweep.seeds=8", "train.duration=20ep")
    together, apart = run_both(tmp_path, *line)
    pairs = [
        (read_result(job)["metrics"]["test/accuracy"], read_result(apart[point])["metrics"]["test/accuracy"])
        for point, job in together.items()
    ]
    differences = [a - b for a, b in pairs]
    mean, spread = statistics.mean(differences), statistics.stdev(b for _, b in pairs)
    half = 2.04 * statistics.stdev(differences) / math.sqrt(len(pairs))  # Student's t of 31 degrees of freedom, 95%
    with capsys.disabled():
        print(  # noqa: T201
            f"\n32 pairs: test accuracy {statistics.mean(a for a, _ in pairs):.4f} as one, "
            f"{statistics.mean(b for _, b in pairs):.4f} alone; difference {mean:+.5f} ± {half:.5f} (95%), "
            f"spread of the jobs {spread:.4f}, {sum(d == 0 for d in differences)} pairs equal"
        )
    assert len(pairs) == 32
    assert abs(mean) <= max(half, 1e-12)
    assert abs(mean) < spread / 10
