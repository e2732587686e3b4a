"""The parser of the verbs' options: the same handling of every option by every verb."""

import importlib
import json
import shlex
from importlib import metadata

import pytest

import runner
from runner.__main__ import VERBS, main
from runner.cli import train
from runner.cli.options import COUNT, JSON, MULTIRUN, SIZE, TRUST, Option, Verb, choose_subject, find_trust
from runner.core.errors import ConfigError

DECLARED = [verb for module in VERBS.values() for verb in importlib.import_module(module).VERBS] + [*train.VERBS]
VERB = Verb(
    "test",
    words=("RUN",),
    options=(
        Option("--steps", "steps", "K", COUNT),
        Option("--memory", "memory", "SIZE", SIZE),
        Option("--which", "one of two", "WHICH", choices=("raw", "ema")),
        MULTIRUN,
        JSON,
        TRUST,
    ),
)


def mistakes(*argv, verb=VERB):
    with pytest.raises(ConfigError) as caught:
        verb.parse(argv)
    return [(mistake.key, mistake.kind, mistake.suggestion) for mistake in caught.value.mistakes]


@pytest.mark.parametrize(
    "argv", [["--steps", "3", "r", "a=1"], ["r", "--steps=3", "a=1"], ["r", "a=1", "--steps", "3"]]
)
def test_an_option_stands_anywhere_and_has_its_value_after_a_space_or_an_equals_sign(argv):
    given = VERB.parse(argv)
    assert (3, ("r",), ["a=1"]) == (given.get("--steps"), given.words, given.overrides)


def test_a_repeatable_option_keeps_every_value():
    assert ("a", "b=c") == VERB.parse(["r", "--trust", "a", "--trust=b=c"]).trust


def test_an_option_that_is_not_given_has_its_default():
    given = VERB.parse(["r"])
    assert (5, (), False) == (given.get("--steps", 5), given.trust, given.as_json)


@pytest.mark.parametrize("spelling", ["-m", "--multirun"])
def test_a_short_spelling_is_the_option(spelling):
    assert "--multirun" in VERB.parse([spelling, "r"])


def test_a_value_may_begin_with_one_dash():
    assert [("--steps", "value", "")] == mistakes("r", "--steps", "-1")


def test_sizes_have_units():
    assert 4 * 2**30 == VERB.parse(["r", "--memory", "4GiB"]).get("--memory")


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (["r", "--steps"], ("--steps", "missing", "")),
        (["r", "--steps="], ("--steps", "missing", "")),
        (["r", "--steps", "--json"], ("--steps", "missing", "")),
        (["r", "--trust="], ("--trust", "missing", "")),
        (["r", "--steps", "0"], ("--steps", "value", "")),
        (["r", "--steps", "1.5"], ("--steps", "value", "")),
        (["r", "--memory", "much"], ("--memory", "value", "")),
        (["r", "--which", "emma"], ("--which", "value", "ema")),
        (["r", "--steps=1", "--steps=2"], ("--steps", "conflict", "")),
        (["r", "--json=1"], ("--json", "value", "")),
        (["r", "--jsn"], ("--jsn", "unknown-option", "--json")),
        (["r", "--stesp=3"], ("--stesp", "unknown-option", "--steps")),
        (["r", "--hlep"], ("--hlep", "unknown-option", "--help")),
        (["r", "-versoin"], ("-versoin", "unknown-option", "--version")),
        ([], ("RUN", "missing", "")),
    ],
)
def test_a_wrong_argument_is_a_mistake(argv, found):
    assert [found] == mistakes(*argv)


def test_all_mistakes_are_told_at_once():
    assert ["--jsn", "--steps", "RUN"] == [key for key, _, _ in mistakes("--jsn", "--steps", "none")]


def test_a_key_with_dashes_is_left_to_the_composition():
    assert ["--seed", "3"] == VERB.parse(["r", "--seed", "3"]).overrides


def test_without_overrides_there_is_no_other_argument():
    verb = Verb("test", words=("RUN",), options=(JSON,), takes_overrides=False)
    assert [("--seed", "unknown-option", ""), ("RUN", "value", "")] == mistakes("a", "--seed", "3", verb=verb)


def test_a_verb_without_words_takes_none():
    verb = Verb("trust list", options=(JSON,), takes_overrides=False)
    assert [("trust list", "value", "")] == mistakes("foo", verb=verb)


@pytest.mark.parametrize(("argv", "suggestion"), [(["modle"], "show model"), (["x=1"], ""), ([], "")])
def test_a_verb_with_subjects_names_them(argv, suggestion):
    with pytest.raises(ConfigError, match="data or model") as caught:
        choose_subject("show", argv, ["data", "model"])
    assert suggestion == caught.value.mistakes[0].suggestion


def test_another_process_finds_what_is_trusted_in_any_command_line():
    assert ("a", "b") == find_trust(["resume", "r", "--trust", "a", "--inexact", "x=1", "--trust=b", "--trust"])


@pytest.mark.parametrize("verb", DECLARED, ids=lambda verb: verb.name or "train")
def test_every_verb_has_the_same_mistake_for_the_same_option(verb):
    words = ["word"] * len(verb.words)
    for option in verb.options:
        if option.value and option.default is None:
            assert [(option.name, "missing", "")] == mistakes(*words, option.name, verb=verb)
        else:
            assert option.name in verb.parse([*words, option.name])


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("name", ["", *VERBS])
def test_help_lists_usage_options_and_examples_of_the_verb(name, option, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert 0 == main([*filter(None, [name]), option])
    shown = capsys.readouterr().out
    for verb in (importlib.import_module(VERBS[name]) if name else train).VERBS:
        assert f"usage: {' '.join(['python -m runner', *verb.name.split(), *verb.words])}" in shown
        assert [] == [option.help for option in verb.options if option.help not in shown]
        assert [] == [line for line, _ in verb.examples if f"  python -m runner {line}".rstrip() not in shown]


@pytest.mark.parametrize("argv", [["show", "model", "--help"], ["help", "show", "model"]])
def test_help_of_one_subject_is_that_of_no_other(argv, capsys):
    assert 0 == main(argv)
    shown = capsys.readouterr().out
    assert ("show model" in shown, "show data" in shown) == (True, False)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["help", "show", "modl"], "did you mean `show model`?"),
        (["show", "modl", "--help"], "did you mean `show model`?"),
        (["help", "check", "resum"], "did you mean `check resume`?"),
        (["help", "ls", "why"], "takes one verb"),
        (["help", "show", "model", "data"], "takes one verb"),
        (["evaluat", "--help"], "did you mean `evaluate`?"),
        (["nosuch", "--version"], "is no verb"),
        (["-V", "evaluat"], "did you mean `evaluate`?"),
        (["show", "modl", "--version"], "did you mean `show model`?"),
        (["check", "resum", "--version"], "did you mean `check resume`?"),
    ],
)
def test_help_ignores_no_word(argv, said, capsys):
    status = main(argv)
    shown = capsys.readouterr()
    assert (2, True, "") == (status, said in shown.err, shown.out)


@pytest.mark.parametrize(
    "argv", [["show", "model=mlp", "--help"], ["check", "a=1", "-h"], ["optimizer.lr", "0.1", "-h"], ["ls", "x", "-h"]]
)
def test_help_is_given_in_the_middle_of_any_command_line(argv, capsys):
    assert 0 == main(argv)
    assert "usage: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["show", "model", "--help"], ["show model"]),
        (["help", "show", "model"], ["show model"]),
        (["-h", "show", "model"], ["show model"]),
        (["ls", "-h"], ["ls"]),
        (["--help"], [verb.name for verb in (*train.VERBS, *DECLARED[: -len(train.VERBS)])]),
    ],
)
def test_a_program_gets_the_help_as_json(argv, names, capsys):
    assert 0 == main([*argv, "--json"])
    assert names == [verb["name"] for verb in json.loads(capsys.readouterr().out)["verbs"]]


@pytest.mark.parametrize("verb", DECLARED, ids=lambda verb: verb.name or "train")
def test_every_example_of_a_verb_is_a_command_line_of_it(verb):
    lines = [shlex.split(line) for line, _ in verb.examples]
    assert lines
    for line in lines:
        words = verb.name.split()
        assert words == line[: len(words)]
        assert len(verb.words) == len(verb.parse(line[len(words) :]).words)


def test_the_version_is_read_without_torch(capsys):
    assert 0 == main(["--version"])
    assert f"runner {runner.__version__}, python 3." in capsys.readouterr().out
    assert 0 == main(["-V", "--json"])
    assert metadata.version("torch") == json.loads(capsys.readouterr().out)["torch"]


def test_hydras_own_completion_leads_to_ours(capsys):
    assert 2 == main(["-sc", "install=bash"])
    assert "register-python-argcomplete yexp" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--inexact", "--schedule=follow"])
def test_a_sweep_has_no_option_of_a_resumed_run(option, capsys):
    assert 2 == main(["-m", "seed=0,1", option])
    assert "has no effect with `-m`" in capsys.readouterr().err
