"""Editing JSON with comments: only what is set changes."""

import json
import re

import pytest

from runner.core.jsonc import parse, set_members

MINE = """{
    // a comment of mine: "yaml.schemas": {}
    "editor.rulers": [100, 120], /* keep */
    "yaml.schemas": {
        "https://example.org/x.json": "ci.yml", // mine, too
        "./ours/old.json": "conf/old.yaml",
    },
}
"""


def test_members_are_set_and_stale_ones_removed_and_all_else_stays():
    text = set_members(MINE, ("yaml.schemas",), {"./ours/a.json": ["conf/a/**/*.yaml"]}, stale="./ours/")

    assert (
        MINE.replace(
            '        "./ours/old.json": "conf/old.yaml",\n',
            '        "./ours/a.json": [\n            "conf/a/**/*.yaml"\n        ]\n',
        )
        == text
    )


def test_what_is_set_already_is_left_as_it_is():
    once = set_members(MINE, ("yaml.schemas",), {"./ours/a.json": "x"})

    assert once == set_members(once, ("yaml.schemas",), {"./ours/a.json": "x"})


@pytest.mark.parametrize("text", ["", "\n", "{}", "{ }", '{"a": 1}', '{"a": {"b": 2}}', "// mine\n{}", '{"a": 1,}'])
def test_objects_on_the_path_are_made(text):
    made = set_members(text, ("lsp", "yaml"), {"k": [1, 2]})

    plain = json.loads(re.sub(r",(\s*})", r"\1", re.sub(r"//.*", "", made)))
    assert {"yaml": {"k": [1, 2]}} == plain["lsp"]
    assert set(plain) >= {"lsp"} | ({"a"} if "a" in text else set())


@pytest.mark.parametrize("text", ['{"a": }', '{"a" 1}', "[1,", '{"a": 1} x', '{"a": tru}', "{" * 300])
def test_what_is_no_json_is_refused_with_its_line(text):
    with pytest.raises(ValueError, match="line 1 is no JSON"):
        parse(text)


def test_a_member_that_is_no_object_is_not_replaced():
    with pytest.raises(ValueError, match=r"`yaml\.schemas` is no object"):
        set_members('{"yaml.schemas": [1]}', ("yaml.schemas",), {"a": 1})


@pytest.mark.parametrize("text", [MINE, "{}\n", '{"a": 1}\n', '{"yaml.schemas": {}}\n', '{\n    "a": [1],\n}\n'])
def test_the_line_endings_of_a_file_stay(text):
    made = {"./ours/a.json": ["x", "y"], "./ours/b.json": "z"}
    plain = set_members(text, ("yaml.schemas",), made, stale="./ours/")

    windows = set_members(text.replace("\n", "\r\n"), ("yaml.schemas",), made, stale="./ours/")
    assert plain.replace("\n", "\r\n") == windows
