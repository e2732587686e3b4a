"""What a config of a project may take from the environment, and where it may have a run lie."""

import ast
from pathlib import Path

import pytest
import torchvision

from runner.config import expansion
from runner.config.check.check import Check
from runner.config.check.own_downloads import UNVERIFIED, check_own_download, find_own_downloads
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


def test_a_bomb_of_interpolations_whose_names_are_put_together_ends(said, monkeypatch):
    """The names of what it points to stand nowhere, so that only counting ends it: 2^40 evaluations."""
    monkeypatch.setattr(expansion, "MAX_EVALUATIONS", 100)
    twice = '${oc.select:"model.${name}%d"}${oc.select:"model.${name}%d"}'
    lines = [f"  b{n}: '{twice % (n + 1, n + 1)}'\n" for n in range(40)]

    keys, _ = said(f"name: b\nmodel:\n  _target_: torch.nn.Linear\n{''.join(lines)}  b40: y\n")

    assert keys == ["model.b0"]


def find_refused(node, arguments=(), trust=()):
    """The keys that are refused of a dataset, where the command line says those of `arguments`."""
    found = list(find_own_downloads(("dataset", "train"), node, trust))
    return [m.key for own in found for m in check_own_download(own, lambda path: path[-1] in arguments, trust)]


MNIST = {"_target_": "torchvision.datasets.MNIST", "root": "data", "download": True}


def test_torchvision_downloads_to_no_place_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "away").symlink_to("/srv")
    key, elsewhere = "dataset.train.root", ("../x", "/srv/x", ".git/hooks", "conf/x", "away/x")
    nested = {"_target_": "torch.utils.data.ConcatDataset", "datasets": [MNIST, {**MNIST, "root": "../x"}]}
    positional = {"_target_": MNIST["_target_"], "_args_": ["../x", True, None, None, True]}

    assert [find_refused({**MNIST, "root": root}) for root in elsewhere] == [[key]] * len(elsewhere)
    assert find_refused(nested) == ["dataset.train.datasets.1.root"]
    assert find_refused(positional) == [key]


def test_torchvision_downloads_to_folders_of_data_and_those_that_the_user_names():
    outside = {**MNIST, "root": "../x"}

    assert [find_refused({**MNIST, "root": root}) for root in ("data", ".", "data/sets")] == [[], [], []]
    assert find_refused(outside, arguments=["root"]) == []  # what the user types is the user's own
    assert find_refused({**outside, "download": False}) == []
    assert find_refused({**MNIST, "root": "/srv/x"}, trust=("/srv/",)) == []


def test_what_torchvision_verifies_is_said(said, tmp_path):
    """MD5 at most; what has no checksum is fetched where the command line says so."""
    node = "{_target_: torchvision.datasets.MNIST, root: data, download: true}"
    aircraft = {**MNIST, "_target_": "torchvision.datasets.FGVCAircraft"}
    said(f"defaults: [override /dataset: none]\ndataset: {{train: {node}}}\n")
    checked = Check(compose(["experiment=x"], tmp_path))

    assert checked.by_import() == []
    assert ["by MD5 alone" in note for note in checked.notes] == [True]
    assert find_refused(aircraft) == ["dataset.train.download"]
    assert find_refused(aircraft, arguments=["download"]) == []


def test_the_list_of_what_has_no_checksum_is_that_of_torchvision():
    """Each class whose code calls a download of torchvision's without an `md5`."""
    found = set()
    folder = Path(torchvision.datasets.__file__).parent
    for file in folder.glob("*.py"):
        for owner in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ClassDef)):
            calls = [node for node in ast.walk(owner) if isinstance(node, ast.Call)]
            loads = [
                call
                for call in calls
                if "download_" in ast.unparse(call.func) and len(call.args) + len(call.keywords) > 1
            ]
            if any("md5" not in ast.unparse(call) for call in loads):
                found.add(owner.name)

    assert {"LFWPairs", "LFWPeople"} | found - {"_LFW"} == UNVERIFIED
