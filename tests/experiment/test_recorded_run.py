"""A recorded run is one object: what it holds, and what is missing where it is damaged."""

import shutil
from pathlib import Path

import pytest

from runner.experiment.record.recorded_run import RecordedRun

RECORDED = Path(__file__).parent / "recorded" / "before_the_house"


@pytest.fixture
def run(tmp_path: Path) -> RecordedRun:
    """A run of an earlier release that was interrupted after 34 steps."""
    (folder,) = RECORDED.iterdir()
    return RecordedRun(Path(shutil.copytree(folder, tmp_path / "run", symlinks=True)))


def test_every_part_of_a_run_is_there(run: RecordedRun) -> None:
    events, checkpoints = run.read_events(), run.open_checkpoints()

    assert run.exists()
    assert "interrupted" == run.read_result()["status"]
    assert (34, None) == (run.read_saved_steps(), run.read_final_metrics())
    assert {"train", "val", "test"} == set((run.read_provenance() or {})["plan"])
    assert (34, 34) == (events[-1]["step"], checkpoints.entries()[-1].step)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"status": "completed", "metrics": 3, "steps": "many"}', "null"])
def test_a_damaged_part_is_none_or_empty(run: RecordedRun, text: str) -> None:
    for name in ("result.json", "provenance.json"):
        (run.folder / name).write_text(text)

    assert (None, 0, None) == (run.read_final_metrics(), run.read_saved_steps(), run.read_provenance())


def test_a_folder_without_a_config_is_no_run(tmp_path: Path) -> None:
    assert not RecordedRun(tmp_path).exists()
