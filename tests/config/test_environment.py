"""What a config of a project may take from the environment, and where it may have a run lie."""

import pytest

from runner.config.check.check import Check
from runner.config.check.places import find_run_elsewhere
from runner.config.compose import compose


@pytest.fixture
def said(tmp_path, monkeypatch):
    """The keys that are refused of an experiment with these lines and arguments, and the notes."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("HF_TOKEN", "DATA", "WHERE"):
        monkeypatch.setenv(name, name.lower())

    def ask(text, *arguments):
        (tmp_path / "conf" / "experiment" / "x.yaml").write_text(f"# @package _global_\n{text}")
        composed = compose(["experiment=x", *arguments], tmp_path)
        return [mistake.key for mistake in Check(composed).at_once], composed.notes

    return ask


SPELLINGS = [
    "${oc.env:DATA}",
    "${oc.env:DATA,none}",
    "${name}",  # through another key
    "${oc.select:name}",
    '${oc.select:"na${log.hparams.0}"}',  # through a name that is put together
    "${oc.${log.hparams.1}:DATA}",  # through a resolver whose name is
    "${oc.decode:'${oc.env:DATA}'}",
]


def test_no_file_sends_the_environment_away(said):
    """However the interpolation is spelt, a URL of a file does not take what it reads."""
    doubled = [spelt.replace("'", "''") for spelt in SPELLINGS]
    nodes = [
        f"    a{number}: {{url: 'https://host.org/{spelt}', sha256: '{'0' * 64}', to: data/{number}}}\n"
        for number, spelt in enumerate(doubled)
    ]

    keys, notes = said(f"name: ${{oc.env:DATA}}\nlog: {{hparams: [me, env]}}\ndataset:\n  downloads:\n{''.join(nodes)}")

    assert [f"dataset.downloads.a{number}.url" for number in range(len(SPELLINGS))] == keys
    assert any("name takes the variable DATA of the environment" in note for note in notes)


def test_no_file_writes_a_secret_into_the_records(said):
    names = ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "DB_PASSWORD", "SSH_AUTH_SOCK", "DB_PWD"]
    listed = ", ".join(f"'${{oc.env:{name},x}}'" for name in [*names, "PWD", "HOME"])

    assert [f"log.hparams.{number}" for number in range(len(names))] == said(f"log: {{hparams: [{listed}]}}\n")[0]


def test_the_command_line_may_say_it_and_a_path_may_be_taken(said):
    """What its user types is the user's own; folders come from the environment everywhere."""
    url = f"++dataset.downloads.a={{url:'https://host.org/${{oc.env:DATA}}',sha256:'{'0' * 64}',to:data/x}}"
    text = "pretrained: {strategy: full, path: '${oc.env:DATA}/w.pt'}\nname: ${oc.env:HF_TOKEN}\n"

    keys, notes = said(text, "name='r-${oc.env:HF_TOKEN}'", url)

    assert (keys, len(notes)) == ([], 1)


@pytest.mark.parametrize("place", ["../x", "outputs/../../x", "away/x", "/tmp/x"])
def test_a_file_continues_no_run_elsewhere(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "away").symlink_to("/tmp")

    assert find_run_elsewhere(place) is not None
    assert find_run_elsewhere("outputs/x/y") is None


def test_the_command_line_continues_a_run_anywhere(said):
    assert said("run: ../x\n")[0] == ["run"]
    assert said("run: ../x\n", "run=../y")[0] == []
