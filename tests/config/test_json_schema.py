"""JSON Schemas for editors: no false alarm, mistakes are seen, and an editor's settings keep what is in them."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator

from runner.__main__ import main
from runner.config import document
from runner.config.editor import project, targets
from runner.config.editor.docstrings import read_arguments
from runner.config.editor.json_schema import PRESET, ROOT, GroupOption, SchemaBuilder
from runner.config.editor.project import is_global, list_config_files
from runner.core.paths import find_our_conf
from tests.config import corpus

FEW = ("torch.optim", "torch.optim.lr_scheduler", "torch.nn.init", "runner.train.metrics", "runner.train.steps")
SEED = 20260101


@pytest.fixture(scope="module")
def few():
    """The schemas of this repository with a few of the libraries' modules: all of them take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(project, "_list_named", lambda _: ())  # those of torchvision
        patch.setattr(
            targets,
            "_FACES",
            (*FEW, "runner.train.optimizer_step.several_optimizers", "runner.train.filter_muon", "runner.log.trackers"),
        )
        return project.make_builder()


@pytest.fixture(scope="module")
def validate(few):
    """`validate(group, text)`: the messages of an editor for a file of a group."""
    made: dict[str, Draft7Validator] = {}

    def run(group, text):
        if group not in made:
            made[group] = Draft7Validator(few.build(group))
        return [error.message for error in made[group].iter_errors(yaml.safe_load(text))]

    return run


def find_group(file):
    """The schema that a shipped file is validated with; None for those of Hydra's groups."""
    inside = file.relative_to(find_our_conf())
    group = project.find_group(inside)
    if group == "experiment" or inside.name == "config.yaml":
        return ROOT
    return PRESET if group == "debug" or (group and is_global(file)) else group


@pytest.mark.parametrize("group", ["optimizer", "scheduler", "init", "loader", "train", "param_groups", "log/to", ROOT])
def test_shipped_files_are_right(few, group):
    validator = Draft7Validator(few.build(group))
    files = [file for file in list_config_files(find_our_conf()) if find_group(file) == group]
    files = [file for file in files if "torchvision" not in file.read_text() and "torch.nn.Mod" not in file.read_text()]

    assert len(files) >= 1
    assert [] == [(file, e.message) for file in files for e in validator.iter_errors(document.load(file).data)]


@pytest.mark.parametrize(
    ("group", "text"),
    [
        ("optimizer", "_target_: torch.optim.SGD\nlrr: 0.1"),
        ("optimizer", "_target_: torch.optim.SDG"),
        ("optimizer", "_target_: tourch.optim.SGD"),
        ("optimizer", "_target_: torch.optim.SGD\nlr: much"),
        ("optimizer", "_target_: os.system"),
        ("optimizer", "_tagret_: torch.optim.SGD"),
        ("optimizer", "_target_: torch.optim.SGD\n_recursive_: false"),
        ("scheduler", "_target_: torch.optim.lr_scheduler.StepLR\nstep_sise: 3"),
        ("scheduler", "_target_: torch.optim.SGD"),
        ("scheduler", "_target_: torch.optim.lr_scheduler.StepLR\ninterval: stepp"),
        ("model", "_target_: models.mlp.MLP\nsize: [1, 2]"),
        ("model", "_target_: models.mpl.MLP"),
        ("train", "duration: 5"),
        ("train", "duration: ten"),
        ("train", "evaluate_every: 0ep"),
        ("train", "accumulate: 0"),
        ("train", "stop_when: {train/loss: {belw: 1}}"),
        ("loader", "shufle: true"),
        ("loader", "in_memory: atuo"),
        ("loader", "eval: {batch_size: -1}"),
        ("init", "rules: {a: {module: torch.nn.Conv2d, wieght: {_target_: torch.nn.init.zero_}}}"),
        ("metrics", "accuracy: {_target_: runner.train.metrics.Acuracy}"),
        ("log/to", "mine: {_target_: runner.log.trackers.WandBB}"),
        ("param_groups", "head: {match: '.*', lr_mlt: 3}"),
        (ROOT, "trian: {duration: 5ep}"),
        (ROOT, "defaults: [{override /optimizer: adma}]"),
        (ROOT, "defaults: [{override /optimizer: adam}]\noptimizer: {momentum: 0.9}"),
        (ROOT, "model: small_cnn"),
        (ROOT, "optimizer: {betas: [0.9, 0.99]}"),  # conf/config.yaml chooses sgd
    ],
)
def test_a_mistake_is_seen(validate, group, text):
    assert validate(group, text) != []


@pytest.mark.parametrize(
    ("group", "text"),
    [
        ("optimizer", "_target_: torch.optim.SGD\nlr: ${base}\nmomentum: ???"),
        ("optimizer", "_target_: torch.optim.sgd.SGD\nlr: 0.1"),
        ("optimizer", "_target_: mine.Optimizer\nanything: 1"),
        ("optimizer", "_target_: timm.optim.Lamb"),
        ("optimizer", "defaults: [sgd, _self_]\nlr: 0.1"),
        ("scheduler", "_target_: torch.optim.lr_scheduler.StepLR\nstep_size: 30ep\nwarmup: 1ep"),
        ("metrics", "accuracy: {_target_: runner.metrics.Accuracy}\nperplexity: {of: loss, as: exp}\nother: null"),
        ("metrics", "accuracy: {_target_: runner.train.metrics.Accuracy, 'on': train, every: 2ep}"),
        ("train", "duration: ${other}\naccumulate: 1_000\nclip_norm: 1e-3\nema: null"),
        ("loader", "shuffle: ${x}\npin_memory: auto\nbatch_size: null"),
        ("model", "_target_: nets.Net\nblock: {_target_: nets.Block, depth: 3}"),
        ("dataset", "train: {_target_: datasets.load_dataset, path: x}"),  # of another package with this name
        ("dataset", "sample: [{shape: [3]}, {dtype: int64}]"),
        ("dataset", "sample: {image: {shape: [3]}, label: {dtype: int64}}"),
        ("param_groups", "no_decay: {match: [a, b], max_dims: 1, weight_decay: 0, betas: [0.9, 0.99], mine: 3}"),
        (ROOT, "defaults: [{override /optimizer: mine}]\noptimizer: {what: 1}"),
        (ROOT, "defaults: [base]\noptimizer: {betas: [0.9, 0.99]}"),
        (ROOT, "optimizer: {_target_: mine.Sgd, what: 1}\nhydra: {sweeper: {params: {seed: '0,1'}}}"),
        (PRESET, "optimizer: {betas: [0.9, 0.99]}"),
    ],
)
def test_what_may_be_right_is_not_refused(validate, group, text):
    assert validate(group, text) == []


def test_a_key_is_described_by_its_comment_and_an_argument_by_its_docstring(few):
    made = few.build("optimizer")["definitions"]["arguments:optimizer:torch.optim.Adam"]
    keep = few.build("train")["properties"]["keep"]

    assert made["properties"]["betas"]["description"].startswith("coefficients used for computing running averages")
    assert (3, "Newest checkpoints to keep, besides the best.") == (keep["default"], keep["description"].split("\n")[0])


def test_own_code_that_no_config_names_is_read_but_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(
        "raise SystemExit('run')\nimport torch\nclass Net(torch.nn.Module):\n"
        '    """Mine.\n\n    Args:\n        width: how wide\n    """\n'
        "    def __init__(self, width: int = 3):\n        pass\n"
    )
    builder = SchemaBuilder(list(targets._read_user_targets()))
    validator = Draft7Validator(builder.build("model"))

    assert builder.definitions["arguments:nets.Net"]["properties"]["width"]["default"] == 3
    assert not validator.is_valid({"_target_": "nets.Net", "widht": 3})
    assert not validator.is_valid({"_target_": "nets.Nett"})
    assert validator.is_valid({"_target_": "nets.Net", "width": 4})


@pytest.mark.parametrize(
    ("node", "seen"),
    [
        ({"_partial_": False, "scale": 2}, False),
        ({"_partial_": "${x}", "scale": 2}, False),
        ({"_partial_": False, "scael": 2}, True),
        ({"scale": 2}, True),  # the runner fills it, with an image
        ({"_partial_": True, "scale": 2}, True),
    ],
)
def test_a_function_that_is_called_at_once_is_given_all_of_its_arguments(tmp_path, monkeypatch, node, seen):
    monkeypatch.chdir(tmp_path)
    Path("noise.py").write_text("def make_noise(scale: float):\n    pass\n")
    builder = SchemaBuilder(list(targets._read_user_targets()))
    file = {"train": {"noise": {"_target_": "noise.make_noise", **node}}}

    assert seen != Draft7Validator(builder.build("transform")).is_valid(file)


def test_what_only_other_files_can_tell_is_not_refused(tmp_path, monkeypatch):
    """A loss that a step of one's own calls with names; an experiment over an option that is called at once."""
    monkeypatch.chdir(tmp_path)
    Path("noise.py").write_text(
        "def make_step(scale, sharp):\n    pass\n\ndef measure(gamma, output, target):\n    pass\n"
    )
    made = [GroupOption("mine", "", "noise.make_step", at_once=True)]
    builder = SchemaBuilder(list(targets._read_user_targets()), {"step": made})
    loss, root = (Draft7Validator(builder.build(group)) for group in ("loss", ROOT))
    wrong = [{"defaults": [{"override /step": "mine"}], "step": {name: 2}} for name in ("scale", "sharp", "shrap")]

    assert loss.is_valid({"_target_": "noise.measure", "gamma": 2})
    assert [True, True, False] == [root.is_valid(file) for file in wrong]


def test_written_schemas_are_entered_in_the_settings_and_what_is_there_stays(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("runner.config.editor.project.make_builder", lambda _: few)
    monkeypatch.chdir(tmp_path)
    settings = Path(".vscode/settings.json")
    settings.parent.mkdir()
    settings.write_text('{\n    "a": 1, // mine\n}\n')
    Path("conf/loss").mkdir(parents=True)
    Path("conf/loss/mine.yaml").write_text("# @package _global_\nloss: null\n")

    assert [0, 0] == [main(["schema", "--write"]), main(["schema", "--write"])]
    text, said = settings.read_text(), capsys.readouterr().out
    assert text.startswith('{\n    "a": 1, // mine\n    "yaml.schemas": {\n')
    assert (
        '"./.yaml-schemas/loss.json": [\n            "conf/loss/**/*.yaml",\n            "!conf/loss/mine.yaml"' in text
    )
    assert said.endswith("0 of them changed: open a file of conf/ in your editor\n")


def test_settings_with_the_line_endings_of_windows_are_written_once(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("runner.config.editor.project.make_builder", lambda _: few)
    monkeypatch.chdir(tmp_path)
    Path(".vscode").mkdir()
    Path(".vscode/settings.json").write_bytes(b'{\r\n    "a": 1\r\n}\r\n')

    assert [0, 0] == [main(["schema", "--write"]), main(["schema", "--write"])]
    assert " 0 of them changed" in capsys.readouterr().out.splitlines()[-1]
    assert b"\n" not in Path(".vscode/settings.json").read_bytes().replace(b"\r\n", b"")


def test_settings_that_cannot_be_read_are_not_replaced(few, tmp_path, monkeypatch):
    monkeypatch.setattr("runner.config.editor.project.make_builder", lambda _: few)
    monkeypatch.chdir(tmp_path)
    Path(".vscode").mkdir()
    Path(".vscode/settings.json").write_text("{ nothing")

    assert main(["schema", "--write"]) == 2
    assert ["settings.json"] == [file.name for file in tmp_path.rglob("*") if file.is_file()]


def test_a_group_is_printed_and_an_unknown_one_is_refused_with_the_nearest(few, monkeypatch, capsys):
    monkeypatch.setattr("runner.config.editor.project.make_builder", lambda _: few)

    assert main(["schema", "loader"]) == 0
    assert "batch_size" in json.loads(capsys.readouterr().out)["properties"]
    assert main(["schema", "loadr"]) == 2
    assert "did you mean `loader`?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "docstring",
    [
        "Mine.\n\nArgs:\n    width (int, optional): how\n        wide\n    depth: how deep\n\nReturns:\n    no: 1",
        "Mine.\n\nParameters\n----------\nwidth : int\n    how\n    wide\ndepth\n    how deep\n\nReturns\n-------\nno",
    ],
)
def test_arguments_are_read_from_docstrings_of_both_styles(docstring):
    assert {"width": "how wide", "depth": "how deep"} == read_arguments(docstring)


@pytest.mark.exhaustive
def test_every_shipped_file_is_right_and_the_corpus_is_seen(tmp_path):
    """Seen: the editor has a message for the edited file. Interpolations need the other files, and count as missed."""
    builder = project.make_builder()
    validators = {}

    def list_errors(file, data):
        group = find_group(file)
        if group not in validators:
            validators[group] = Draft7Validator(builder.build(group))
        return list(validators[group].iter_errors(data))

    files = [file for file in list_config_files(find_our_conf()) if find_group(file)]
    assert [] == [(file, e.message) for file in files for e in list_errors(file, document.load(file).data)]
    cases = [case for case in corpus.cases(SEED) if case.file]
    seen, asked = Counter(), Counter()
    for number, case in enumerate(random.Random(SEED).sample(cases, 1500)):
        copy = tmp_path / f"{number}.yaml"
        copy.write_text(case.text)
        loaded = document.load(copy)
        asked[case.kind] += 1
        seen[case.kind] += bool(loaded.mistake or list_errors(find_our_conf() / case.file, loaded.data))
    print({kind: f"{seen[kind]}/{count}" for kind, count in asked.items()})  # noqa: T201  the measured numbers
    assert seen.total() / asked.total() >= 0.8
