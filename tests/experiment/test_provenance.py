import hashlib
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from runner.experiment.record import provenance
from runner.experiment.record.provenance import collect, hash_modules
from tests.support import run_git

ROOT = Path(__file__).parents[2]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    run_git(tmp_path, "init", "-q", "-b", "main")
    (tmp_path / "a.txt").write_text("one\n")
    run_git(tmp_path, "add", ".")
    run_git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def record(folder, **given):
    return collect(folder, command=["python", "-m", "runner", "seed=3"], seed=3, **given)


def test_it_is_plain_data_with_what_was_given(tmp_path):
    found = record(tmp_path, data={"train": "abc"}, plan={"train": "gathered"})

    assert json.loads(json.dumps(found)) == found
    assert found["command"][-1] == "seed=3"
    assert (found["seed"], found["data"], found["plan"]) == (3, {"train": "abc"}, {"train": "gathered"})


def test_it_has_the_versions_and_the_machine(tmp_path):
    found = record(tmp_path)

    assert found["versions"]["python"] == sys.version.split()[0]
    assert found["versions"]["tensorboardX"]
    assert found["hardware"]["cores"] >= found["hardware"]["cores_available"] >= 1
    assert found["hardware"]["memory_bytes"] > 1 << 28


def test_the_time_has_a_zone(tmp_path):
    from datetime import datetime

    assert datetime.fromisoformat(record(tmp_path)["time"]).tzinfo is not None


def test_a_clean_repository(repository):
    found = record(repository)["git"]

    assert found == {
        "commit": run_git(repository, "rev-parse", "HEAD"),
        "branch": "main",
        "dirty": False,
        "untracked": [],
        "diff": "",
        "diff_complete": True,
    }


def test_the_diff_makes_the_tree_again(repository, tmp_path_factory):
    (repository / "a.txt").write_text("two ä\n")
    (repository / "b c.txt").write_text("new\n")
    run_git(repository, "add", "a.txt")  # what is staged counts as well

    found = record(repository)["git"]

    assert found["dirty"]
    assert found["untracked"] == ["b c.txt"]
    clone = tmp_path_factory.mktemp("clone")
    run_git(clone, "clone", "-q", str(repository), ".")
    (clone / "patch").write_text(found["diff"])
    run_git(clone, "apply", "patch")
    assert (clone / "a.txt").read_text() == "two ä\n"


def test_a_folder_below_the_top_is_of_the_repository_too(repository):
    (repository / "below").mkdir()
    (repository / "a.txt").write_text("two\n")

    found = record(repository / "below")["git"]

    assert found["commit"]
    assert "+two" in found["diff"]


def test_a_huge_diff_is_cut(repository, monkeypatch):
    monkeypatch.setattr(provenance, "DIFF_BYTES", 1000)
    (repository / "a.txt").write_text("line\n" * 100_000)

    found = record(repository)["git"]

    assert len(found["diff"]) == 1000
    assert not found["diff_complete"]


def test_without_a_commit_there_is_a_branch(tmp_path):
    run_git(tmp_path, "init", "-q", "-b", "main")

    found = record(tmp_path)["git"]

    assert (found["branch"], found["diff"], found["diff_complete"]) == ("main", "", False)


def test_without_a_repository_or_git_it_is_absent(tmp_path, monkeypatch):
    assert record(tmp_path)["git"] is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert record(ROOT)["git"] is None


def test_a_git_that_hangs_is_given_up(tmp_path, monkeypatch):
    (tmp_path / "git").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(provenance, "GIT_SECONDS", 0.2)

    assert record(tmp_path)["git"] is None, "after the minute it would have said that nothing has changed"


def test_the_repositorys_own_programs_are_not_run(repository):
    called = repository / "called"
    script = repository / "program"
    script.write_text(f"#!/bin/sh\ntouch {called}\n")
    script.chmod(0o755)
    (repository / ".gitattributes").write_text("*.txt diff=mine\n")
    for key in ("core.fsmonitor", "diff.external", "diff.mine.textconv", "diff.mine.command"):
        run_git(repository, "config", key, str(script))
    (repository / "a.txt").write_text("two\n")

    assert "+two" in record(repository)["git"]["diff"]
    assert not called.exists()


# ---- modules


def imported(name, path, monkeypatch):
    module = types.ModuleType(name)
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, name, module)


def test_a_module_counts_by_its_content_and_its_name(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text("a = 1\n")
    imported("mine", file, monkeypatch)

    first = hash_modules(tmp_path)
    assert first["files"]["mine"] == hashlib.sha256(b"a = 1\n").hexdigest()
    file.write_text("a = 2\n")
    assert first == hash_modules(tmp_path), "what runs is what was imported"
    imported("mine", file, monkeypatch)
    second = hash_modules(tmp_path)
    assert second["total"] != first["total"]
    assert {n for n in second["files"] if second["files"][n] != first["files"][n]} == {"mine"}


def test_modules_are_found_whenever_and_however_often_they_are_imported(tmp_path, monkeypatch):
    """Only what is new is looked at: what was imported again, behind a newer one, is new as well."""
    names = ["first", "second", "third"]
    for name in names:
        (tmp_path / f"{name}.py").write_text(name)
    found = []
    for step in (["first"], ["second"], ["first", "third", "second"]):
        for name in step:
            sys.modules.pop(name, None)
            imported(name, tmp_path / f"{name}.py", monkeypatch)
        found.append([name for name in hash_modules(tmp_path)["files"] if name in names])
    del sys.modules["first"]
    found.append([name for name in hash_modules(tmp_path)["files"] if name in names])

    assert found == [["first"], ["first", "second"], names, names[1:]]


def test_the_runner_counts_wherever_one_works_and_what_is_installed_does_not(tmp_path, monkeypatch):
    for folder in ("lib/site-packages/other", "site-packages-of-mine"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "m.py").write_text("")
    imported("other.m", tmp_path / "lib/site-packages/other/m.py", monkeypatch)
    imported("mine.m", tmp_path / "site-packages-of-mine/m.py", monkeypatch)

    found = hash_modules(tmp_path)["files"]

    assert "runner.experiment.record.provenance" in found
    assert "mine.m" in found
    assert "other.m" not in found
    assert not {"torch", "json", "numpy", "pytest"} & set(found)


def test_an_installed_runner_counts(tmp_path, monkeypatch):
    site = tmp_path / "lib/site-packages"
    for package in ("runner", "models", "other"):
        (site / package).mkdir(parents=True)
        (site / package / "__init__.py").write_text("")
        imported(package, site / package / "__init__.py", monkeypatch)
    monkeypatch.setattr(provenance, "PACKAGE", site / "runner")

    found = hash_modules(tmp_path / "elsewhere")["files"]

    assert {"runner", "models"} <= set(found)
    assert "other" not in found


def test_a_working_directory_behind_a_link_is_the_same_one(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real/mine.py").write_text("")
    for spelled, root in (("real", "link"), ("link", "link")):
        imported("mine", tmp_path / spelled / "mine.py", monkeypatch)
        assert "mine" in hash_modules(tmp_path / root)["files"]


def test_the_module_that_was_started_goes_by_its_own_name(tmp_path):
    (tmp_path / "main.py").write_text(
        "import pathlib\nfrom runner.experiment.record.provenance import hash_modules\n"
        "print(list(hash_modules(pathlib.Path.cwd())['files']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "main"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "'main'" in done.stdout
    assert "__main__" not in done.stdout
