"""Trust that a user keeps: for one project, by its path, in a file of the user's own."""

import json
from pathlib import Path

import pytest

from runner.core import user_trust
from runner.core.errors import ConfigError
from tests.support import Ran, write_files


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's configuration directory; the working directory is a project with an installed package beside it."""
    write_files(
        tmp_path / "venv" / "site-packages", {"theirs/__init__.py": "from torch import nn\nclass Net(nn.Module): ..."}
    )
    (tmp_path / "project").mkdir()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.syspath_prepend(tmp_path / "venv" / "site-packages")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "config"


@pytest.fixture
def command(home: Path, capsys: pytest.CaptureFixture[str]):
    """`command("trust", "list")`: a command in that project, in this process."""
    from runner.__main__ import main

    def run(*argv: str) -> Ran:
        capsys.readouterr()
        return Ran(main(list(argv)), *capsys.readouterr())

    return run


THEIRS = ("check", "model=null", "++model._target_=theirs.Net")


def test_a_name_is_trusted_in_the_project_where_the_user_said_so(command, tmp_path, monkeypatch):
    refused = command(*THEIRS)
    added = command("trust", "add", "theirs.*")
    taken = command(*THEIRS)
    (tmp_path / "clone").mkdir()
    monkeypatch.chdir(tmp_path / "clone")
    elsewhere = command(*THEIRS)

    assert "for good: python -m runner trust add 'theirs.Net'" in refused.err + refused.out
    assert "theirs.*\n" == added.out
    assert "theirs.Net" not in taken.out + taken.err
    assert "trust add 'theirs.Net'" in elsewhere.out + elsewhere.err


def test_of_a_line_with_a_mistake_nothing_is_kept(command):
    command("trust", "add", "timm.*", "code/", status := ".")
    listed = command("trust", "list", "--json")
    removed = command("trust", "remove", "timm.*", status)
    unknown = command("trust", "remove", "timm.*")

    assert "is no directory" in command("trust", "add", "code/").err
    assert [] == json.loads(listed.out)["trusted"], "nothing was kept of a line with a mistake"
    assert (2, 2) == (removed.status, unknown.status)


def test_directories_are_kept_by_their_full_path(command, tmp_path):
    (tmp_path / "code").mkdir()

    assert f"timm.*\n{tmp_path / 'code'}/\n" == command("trust", "add", "timm.*", "../code").out
    assert f"{tmp_path / 'code'}/\n" == command("trust", "remove", "timm.*").out
    assert "Nothing is trusted" in command("trust", "remove", "../code").out


def test_the_commands_of_files_are_never_trusted_for_good(command):
    assert "cannot be kept" in command("trust", "add", "on_event").err


def test_a_file_inside_the_project_counts_for_nothing(home, monkeypatch):
    user_trust.add_trusted(["timm.*"])
    kept = (home / user_trust.APPLICATION / "trust.json").read_text()
    write_files(Path.cwd(), {f"mine/{user_trust.APPLICATION}/trust.json": kept})
    monkeypatch.setenv("XDG_CONFIG_HOME", str(Path.cwd() / "mine"))

    assert () == user_trust.read_trusted()
    with pytest.raises(ConfigError, match="lies inside this project"):
        user_trust.add_trusted(["timm.*"])


@pytest.mark.parametrize("text", ["", "[]", '{"projects": {"/x": "timm"}}', "{" * 1000])
def test_a_damaged_file_is_named(home, text):
    write_files(home, {f"{user_trust.APPLICATION}/trust.json": text})

    with pytest.raises(ConfigError, match=r"trust\.json.*\n.*delete it"):
        user_trust.read_trusted()


def test_a_file_that_others_may_write_is_refused(home):
    user_trust.add_trusted(["timm.*"])
    file = home / user_trust.APPLICATION / "trust.json"
    assert 0o600 == file.stat().st_mode & 0o777
    file.chmod(0o622)

    with pytest.raises(ConfigError, match="nobody else may write to it"):
        user_trust.read_trusted()
