"""A run directory of a stranger: what its record says is judged, and its files are read within limits."""

import shutil
from pathlib import Path

import pytest
import yaml

from runner.core.errors import ConfigError
from runner.experiment.record.recorded import load_recorded_config

BEFORE = Path(__file__).parent / "recorded" / "before_the_house"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A recorded run below a working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(next(BEFORE.iterdir()), "run", symlinks=True)
    return Path("run")


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("to", "models/evil.py"),
        ("to", "../x"),
        ("to", ".git/hooks/pre-commit"),
        ("to", "conf/model/x.yaml"),
        ("unpack", "/etc/x"),
        ("unpack", "away/x"),
    ],
)
def test_a_records_downloads_lie_where_composed_ones_do(key, place, run):
    Path("away").symlink_to("/tmp")
    data = yaml.safe_load((run / "config.yaml").read_text())
    node = {"url": "https://host.org/x", "sha256": "0" * 64, "to": "data/x", key: place}
    data["dataset"]["downloads"] = {"a": node}
    (run / "config.yaml").write_text(yaml.safe_dump(data))

    with pytest.raises(ConfigError) as refused:
        load_recorded_config(run)

    assert [mistake.key for mistake in refused.value.mistakes] == [f"dataset.downloads.a.{key}"]


def test_a_record_with_overrides_sends_no_environment_away(run, monkeypatch):
    """Overrides are applied to `.hydra/config.yaml`, whose interpolations are then followed."""
    monkeypatch.setenv("WHERE", "secret")
    data = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())
    node = {"url": "https://host.org/${oc.env:WHERE}", "sha256": "0" * 64, "to": "data/x"}
    data["dataset"]["downloads"] = {"a": node}
    (run / ".hydra" / "config.yaml").write_text(yaml.safe_dump(data))

    with pytest.raises(ConfigError) as refused:
        load_recorded_config(run, ["train.keep=2"])

    assert [mistake.key for mistake in refused.value.mistakes] == ["dataset.downloads.a.url"]
    assert "secret" not in str(refused.value)
