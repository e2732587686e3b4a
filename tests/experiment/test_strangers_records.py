"""A run directory of a stranger: what its record says is judged, and its files are read within limits."""

import os
import re
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml

from runner.core.errors import ConfigError, RunError
from runner.core.safe_io import refuse_foreign_jobs
from runner.core.tensor_files import load_tensors
from runner.data.bad_samples import BadSamples
from runner.experiment.diagnosis import describe_changed_modules
from runner.experiment.preview import parameters
from runner.experiment.record.recorded import load_recorded_config
from runner.experiment.record.recorded_run import RecordedRun
from runner.experiment.resume import is_completed
from runner.sweep import outcome, promote, pruning
from runner.sweep.ledger import JobRecord
from runner.sweep.report.results import Report, ReportEntry, read_curves
from runner.sweep.search.journal import Journal
from runner.train import checkpoint

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


def read_or_refuse(read):
    """What a reader gives, or None where it says in words that the file cannot be read."""
    with suppress(OSError, RunError):
        return read()
    return None


RECORDS = {
    "link": lambda file: (file.rename("mine"), file.symlink_to(Path("mine").absolute())),
    "pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "nested": lambda file: file.write_text("[" * 200_000 + "]" * 200_000),
    "values": lambda file: file.write_text("[" + "1," * 1_100_000 + "1]"),
    "large": lambda file: os.truncate(file, 2**31),
    "a list": lambda file: file.write_text("[1]"),
}


@pytest.mark.parametrize("what", list(RECORDS))
def test_the_files_of_a_run_are_read_within_limits_by_whoever_reads_them(what, run, tmp_path):
    """Each reader answers as if the file were not there, or says that it is damaged."""
    folder = run / "checkpoints"
    for name in ("result.json", "provenance.json", "metrics.jsonl", "checkpoints/manifest.json"):
        RECORDS[what](run / name)
    for name in ("bad_samples.jsonl", "study.jsonl", "pretrained.json"):
        (run / name).write_text("{}\n")
        RECORDS[what](run / name)

    found = {
        "result.json": is_completed(run) or RecordedRun(run).read_saved_steps(),
        "provenance.json": RecordedRun(run).read_provenance() or describe_changed_modules(run),
        "a job's result.json": outcome.read_json(run / "result.json"),
        "metrics.jsonl": pruning.read_values(run / "metrics.jsonl", "val/loss"),
        "curves": read_curves(run / "metrics.jsonl", ["val/loss"])["val/loss"],
        "bad_samples.jsonl": read_or_refuse(lambda: BadSamples(folder=run).found),
        "study.jsonl": read_or_refuse(lambda: list(Journal(run / "study.jsonl").read_logs(0))),
        "pretrained.json": read_or_refuse(lambda: parameters._read_pretrained_rows(None, run)),
    }

    assert {name: value for name, value in found.items() if value} == {}
    assert promote._read_commit(run).startswith("not known")
    with pytest.raises(RunError, match=r"manifest\.json"):
        checkpoint._read_manifest(folder)


def test_what_a_ledger_says_stays_inside_of_a_promoted_files_comment():
    """A line feed would end the comment, and what follows would be keys of the experiment."""
    evil = "x\nmodel: {_target_: evil.Model}\r\u2028y: 1"
    row = JobRecord(evil, 0, [], "0_x", values={evil: evil}, status="completed", objective=1.0, start=0.0, end=1.0)
    entry = ReportEntry((row,), {}, None, 1.0)
    settings = {"id": evil, "name": evil, "objective": evil, "argv": [evil]}
    report = Report(Path(evil), settings, [row])

    header = promote.format_header(report, promote.Winner(row, entry), "x", Path("nowhere"))

    assert [line[:2] for line in header.splitlines()] == ["# "] * len(header.splitlines())
    assert yaml.safe_load(header) is None


def rewrite(checkpoint, change, compression=zipfile.ZIP_STORED):
    """Pack a checkpoint anew, each record changed by `change(name, content)`."""
    with zipfile.ZipFile(checkpoint) as old:
        records = {record.filename: old.read(record) for record in old.infolist()}
    with zipfile.ZipFile(checkpoint, "w", compression) as new:
        for name, content in records.items():
            new.writestr(name, change(name, content))


@pytest.mark.parametrize("what", ["a compressed archive", "a bytearray", "overlap"])
def test_a_checkpoint_asks_for_no_more_memory_than_it_has_bytes(what, tmp_path):
    """Torch reads compressed records, and makes a bytearray of any length that a pickle names."""
    file = tmp_path / "step_00000001.pt"
    torch.save({"a": bytearray(b"x") if what == "a bytearray" else torch.zeros(2**20)}, file)
    if what == "a compressed archive":
        rewrite(file, lambda _, content: content, zipfile.ZIP_DEFLATED)
    elif what == "overlap":
        content = bytearray(file.read_bytes())
        for at in (match.start() for match in re.finditer(b"PK\x01\x02", bytes(content))):
            content[at + 24 : at + 28] = content[at + 20 : at + 24] = (2**22 + 100).to_bytes(4, "little")
        file.write_bytes(content)

    with pytest.raises(RunError, match=what):
        load_tensors(file)
    with pytest.raises(RunError, match=what):
        checkpoint._verify_archive(file)


def test_an_old_file_with_a_bytearray_is_found_too(tmp_path):
    torch.save({"a": bytearray(b"x")}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(RunError, match="a bytearray"):
        load_tensors(tmp_path / "old.pt")


@pytest.mark.parametrize("name", ["output.txt", "log.txt", "checkpoints"])
def test_a_job_of_a_sweep_whose_files_lead_elsewhere_is_refused(name, tmp_path):
    """The worker appends to `output.txt` before the run itself is looked at."""
    (tmp_path / "sweep" / "0_0123abcd").mkdir(parents=True)
    (tmp_path / "sweep" / "1_0123abcd").mkdir()
    (tmp_path / "sweep" / "1_0123abcd" / name).symlink_to(tmp_path / "mine")

    with pytest.raises(ConfigError) as refused:
        refuse_foreign_jobs(tmp_path / "sweep")

    assert f"1_0123abcd/{name}" in str(refused.value)
