"""A project's own files that stand in for the runner's are named."""

import json

import pytest

from runner.config.replaced import list_replaced
from runner.core.paths import find_our_conf
from tests.support import write_files


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, []),
        ({"models/mine.py": "", "conf/model/mlp.yaml": "", "datasets/__init__.py": ""}, []),
        ({"models/cnn.py": ""}, ["models/cnn.py of this project replaces"]),
        ({"datasets/table/__init__.py": ""}, ["datasets/table of this project replaces"]),
        ({"runner.py": ""}, ["runner.py of this project is what `python -m runner` starts"]),
        ({"runner/__init__.py": ""}, ["runner/__init__.py of this project is what"]),
        ({"conf/config.yaml": "defaults: [_self_]\n"}, ["conf/config.yaml of this project replaces"]),
        ({"conf/config.yaml": "defaults: 3\n"}, ["conf/config.yaml of this project replaces"]),
        ({"conf/config.yaml": "[\n"}, ["conf/config.yaml of this project replaces"]),
    ],
)
def test_each_replaced_file_is_named(files, said, elsewhere):
    write_files(elsewhere, files)
    assert said == [one[: len(text)] for one, text in zip(list_replaced(), said, strict=True)]


def test_a_root_config_that_lacks_a_group_says_which(elsewhere):
    text = (find_our_conf() / "config.yaml").read_text().replace("  - log: default\n", "")
    write_files(elsewhere, {"conf/config.yaml": text})
    assert list_replaced()[0].endswith("; it leaves out log")


def test_a_copy_of_an_earlier_root_config_with_its_help_page_is_right(runner, elsewhere):
    text = (find_our_conf() / "config.yaml").read_text() + "  help: {app_name: runner, header: Hello}\n"
    write_files(elsewhere, {"conf/config.yaml": text})
    assert 0 == runner("check").status


def test_our_own_folder_replaces_nothing(monkeypatch):
    monkeypatch.chdir(find_our_conf().parent)
    assert [] == list_replaced()


def test_check_says_what_is_replaced(runner, elsewhere):
    write_files(elsewhere, {"models/gan.py": ""})
    notes = json.loads(runner("check", "--json").out)["notes"]
    assert ["models/gan.py of this project replaces the runner's own module of the name"] == notes
