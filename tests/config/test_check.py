"""The verbs `check` and `why`: what they print, and where they say a value comes from."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from runner.__main__ import main
from runner.config.check.check import Check, check
from runner.config.compose import compose
from runner.config.nodes import order_transforms
from runner.config.reading import Reading
from runner.core.errors import KINDS, Kind
from tests.support import find_mistakes

ROOT = Path(__file__).parents[2]


def at_once(*overrides):
    return {mistake.key: mistake for mistake in Check(compose([*overrides])).at_once}


def test_check_prints_numbered_mistakes_and_one_count(capsys):
    assert 2 == main(["check", "+train.epocs=3", "optimizer.lrr=1"])
    out = capsys.readouterr().out

    assert out.startswith("1. train.epocs ")
    assert "\n2. optimizer.lrr " in out
    assert out.endswith("2 mistakes.\n")
    assert "Traceback" not in out


def test_check_of_what_is_right_says_so(capsys):
    assert 0 == main(["check"])
    assert capsys.readouterr().out.endswith("\nNo mistakes.\n")


def test_check_json(capsys):
    assert 2 == main(["check", "--json", "loader.batch_size=0"])
    report = json.loads(capsys.readouterr().out)

    assert 1 == report["count"]
    assert {"key", "rule", "value", "where", "remedy", "suggestion", "kind"} == set(report["mistakes"][0])
    assert ("loader.batch_size", 0, "1") == tuple(
        report["mistakes"][0][name] for name in ("key", "value", "suggestion")
    )


@pytest.mark.parametrize(
    ("override", "kind"),
    [
        ("+train.epocs=3", "unknown-key"),
        ("+optimizer.lrr=1", "unknown-argument"),
        ("model=small_cn", "unknown-option"),
        ("--fast", "unknown-option"),
        ("model._target_=torch.nn.Linaer", "unknown-target"),
        ("model._target_=os.system", "untrusted"),
        ("~model._target_", "missing"),
        ("optimizer.lr=fast", "type"),
        ("seed=a", "type"),
        ("loader.batch_size=0", "value"),
        ("loss._target_=torch.nn.Linear", "missing"),
        ("optimizer._target_=torch.nn.Linear", "slot"),
        ("+train.split_on_oom=true device.parallel=ddp", "conflict"),
        ("train.max_faults=7", "no-effect"),
        ("sweep.seeds=3", "no-effect"),
        ("freeze.params=[nothing]", "no-match"),
        ("freeze.params=['(']", "syntax"),
        ("optimizer.lr", "syntax"),
        ("+model=mlp", "composition"),
        ("name=${nowhere}", "interpolation"),
        ("pretrained=full pretrained.path=no.pt", "file"),
        ("optimizer.lr=-1", "refused"),
    ],
)
def test_json_tells_the_kind_of_a_mistake(capsys, override, kind):
    main(["check", "--json", *override.split()])
    kinds = {mistake["kind"] for mistake in json.loads(capsys.readouterr().out)["mistakes"]}
    assert {kind} == kinds


def test_every_kind_is_documented():
    table = (ROOT / "docs" / "reference" / "mistakes.md").read_text()
    assert list(KINDS.items()) == re.findall(r"^\| `(\S+)` \| (.*) \|$", table, re.MULTILINE)


def test_every_kind_is_used():
    source = "".join(path.read_text() for path in (ROOT / "runner").rglob("*.py"))
    unused = {kind for kind in get_args(Kind) if f'kind="{kind}"' not in source}
    assert unused <= {"value", "unknown-target"}  # the defaults of `Mistake` and of `TargetError`


def test_check_of_a_sweep(capsys):
    assert 2 == main(["check", "-m", "loader.batch_size=0,64"])
    assert "1 mistake." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "key", "suggestion"),
    [
        ("+train.epochs=3", "train.epochs", "train.duration"),
        ("+lr=0.1", "lr", "optimizer.lr"),
        ("+batch_size=3", "batch_size", "loader.batch_size"),
        ("+train.batch_size=3", "train.batch_size", "loader.batch_size"),
        ("+Seed=3", "Seed", "seed"),
        ("train.duration=10", "train.duration", "10ep"),
        ("train.duration=10epochs", "train.duration", "10ep"),
        ("train.duration=500steps", "train.duration", "500st"),
        ("train.evaluate_every=0st", "train.evaluate_every", "1st"),
        ("seed='3'", "seed", "3"),
        ("seed=3.0", "seed", "3"),
        ("loader.shuffle='True'", "loader.shuffle", "true"),
        ("loader.in_memory=atuo", "loader.in_memory", "auto"),
        ("device.type=gpu", "device.type", "cuda"),
        ("device=cuda:1", "device", "device.type=cuda:1"),
        ("train.objective=accuracy", "train.objective", "val/accuracy"),
        ("train.objective=val_accuracy", "train.objective", "val/accuracy"),
        ("train.objective=valid/loss", "train.objective", "val/loss"),
        ("++scheduler.monitor=val/loss", "scheduler.monitor", "null"),
        ("train.check_finite=step", "train.check_finite", "loss"),
        ("model=models.mlp.MLP", "model", "model._target_=models.mlp.MLP"),
        ("optimizer._target_=Adam", "optimizer._target_", "torch.optim.Adam"),
        ("dataset.sample.dtype=flot32", "dataset.sample.dtype", "float32"),
        ("+optimizer=adam", "optimizer", "optimizer=adam"),
    ],
)
def test_what_people_get_wrong(override, key, suggestion):
    assert suggestion == at_once(override)[key].suggestion


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["loader.persistent_workers=true"], "loader.persistent_workers"),
        (["++loader.prefetch_factor=2"], "loader.prefetch_factor"),
        (["loader.timeout=5"], "loader.timeout"),
        (["device=cpu", "loader.pin_memory=true"], "loader.pin_memory"),
        (["pretrained.path=w.pt"], "pretrained.path"),
        (["experiment=null", "train.mode=max"], "train.mode"),
        (["train.checkpoint_every=null", "train.keep=5"], "train.keep"),
        (["train.max_faults=5"], "train.max_faults"),
        (["experiment=synthetic", "dataset.stratify=true"], "dataset.stratify"),
        (
            ["++init.rules={a: {module: torch.nn.Conv2d, weight: 0}, b: {module: torch.nn.Conv2d, weight: 1}}"],
            "init.rules.b",
        ),
        (["scheduler=plateau", "scheduler.monitor=null"], "scheduler.monitor"),
        (["loader=workers", "loader.in_memory=true"], "loader.in_memory"),
        (["dataset.val_fraction=0.6", "dataset.test_fraction=0.6"], "dataset.val_fraction"),
    ],
)
def test_settings_without_effect_and_contradictions(overrides, key):
    assert key in at_once(*overrides)


@pytest.mark.parametrize("exempt", ["train.duration=0st", "debug=one_batch"])
def test_settings_without_effect_are_let_pass_where_one_only_tries(exempt):
    assert {} == at_once(exempt, "loader.timeout=5")


def why(capsys, *arguments):
    assert 0 == main(["why", *arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def test_why_names_every_layer_in_order_the_winner_last(capsys):
    answer = why(capsys, "optimizer.lr", "experiment=digits_cnn", "optimizer.lr=0.5")

    assert 0.5 == answer["value"]
    places = [layer["where"].rpartition(":")[0] or layer["where"] for layer in answer["layers"]]
    assert places[-3:] == ["conf/optimizer/sgd.yaml", "conf/experiment/digits_cnn.yaml", "argument `optimizer.lr=0.5`"]
    assert "argument `experiment=digits_cnn`" == answer["layers"][-2]["chosen"]


def test_why_of_a_default_names_the_schema_or_the_signature(capsys):
    assert why(capsys, "train.keep")["layers"][0]["where"].startswith("schema/train.py:")
    assert "torch/optim/sgd.py" in why(capsys, "optimizer.nesterov")["layers"][0]["where"]


def test_why_of_an_interpolation_names_what_it_points_to(capsys):
    layers = why(capsys, "scheduler.T_max", "train.duration=3ep")["layers"]

    assert layers[0]["where"].startswith("conf/scheduler/cosine.yaml:")
    assert "argument `train.duration=3ep`" == layers[-1]["where"]


def test_why_of_a_sweep(capsys):
    assert (
        "argument `optimizer.lr=0.1,0.2`"
        == why(capsys, "optimizer.lr", "-m", "optimizer.lr=0.1,0.2")["layers"][-1]["where"]
    )
    assert why(capsys, "optimizer.lr", "-m", "sweep=lr_grid")["layers"][-1]["where"].startswith(
        "conf/sweep/lr_grid.yaml:"
    )


def test_why_of_an_unknown_key_gives_the_nearest(capsys):
    assert 2 == main(["why", "train.duratoin"])
    assert "train.duration" in capsys.readouterr().err


def test_blame_of_a_missing_argument_is_the_line_of_its_target():
    checked = Check(compose(["experiment=null", "model=mlp", "~model.sizes"]))
    (mistake,) = checked.by_import()

    assert ("model.sizes", "conf/model/mlp.yaml:2") == (mistake.key, mistake.where.partition(" ")[0])
    assert "argument `model=mlp`" in mistake.where


@pytest.mark.parametrize(
    ("question", "value"),
    [
        (["optimizer", "optimizer.lr=3", "experiment=null"], {"_target_": "torch.optim.SGD", "lr": 3, "momentum": 0.9}),
        (["transform.train", "~transform.train.shift"], {}),
        (["train.objective", "~train.objective"], None),
    ],
)
def test_why_says_what_a_key_is_in_the_end(capsys, question, value):
    assert 0 == main(["why", *question, "--json"])
    assert value == json.loads(capsys.readouterr().out)["value"]


def test_what_needs_no_torch_is_said_of_every_job_first(monkeypatch):
    from runner.sweep import examine

    said = []
    monkeypatch.setattr(examine, "examine", lambda *_: said.append("torch"))
    sweep = ["seed=1,x", "optimizer.lr=0.1,0.2"]
    examine.examine_sweep(sweep, (), lambda mistakes: said.extend(m.key for m in mistakes))

    assert ["seed", "torch", "torch"] == said, "once for both seeds"


def test_settings_inside_a_setting_without_effect_are_named(runner):
    """A group of settings under one without effect (`pretrained.expect`) is reported key by key, not as a crash."""
    ran = runner("check", "++pretrained.expect.loaded=0.5", "++dataset.source=null", "++dataset.val_fraction=0.1")

    assert 2 == ran.status
    assert "pretrained.expect.loaded has no effect while `pretrained.strategy` is none, but is 0.5" in ran.out
    assert "leave it at `null`" in ran.out
    assert "leave it at `0.0`" in ran.out


@pytest.mark.parametrize("preset", ["debug=noop", "debug=one_batch", "debug=fast", "train.duration=0st"])
def test_weights_without_a_strategy_are_a_mistake_also_in_a_short_run(runner, preset):
    ran = runner("check", "pretrained.path=w.pt", preset)
    assert ran.status == 2
    assert "pretrained.path has no effect while `pretrained.strategy` is none" in ran.out
    assert "`pretrained=full` loads every tensor" in ran.out


def test_control_characters_of_a_config_are_spelt_out_on_the_console(tmp_path, monkeypatch, capsys):
    from runner.__main__ import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    text = '_target_: models.mlp.MLP\n"si\\ezes\\e[2J": [1]\n"\\x9b2J\\u202e": 2\n'
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(text)
    status = main(["check", "model=mine"])
    said = capsys.readouterr()

    assert status == 2
    assert [c for c in said.out + said.err if not c.isprintable() and c != "\n"] == []
    assert "\\x1b" in said.out


def test_a_transform_goes_before_the_one_that_it_names() -> None:
    added = "transform.train.mirror={_target_: torchvision.transforms.v2.RandomHorizontalFlip, _before_: flip}"
    composed = compose(["experiment=cifar10_resnet18", f"++{added}", "transform.train.normalize._before_=crop"])
    transforms = check(composed).transform.train

    assert list(transforms) == ["normalize", "crop", "mirror", "flip", "image", "scale"]
    assert not any("_before_" in (node or {}) for node in transforms.values())


@pytest.mark.parametrize("other", ["flop", "[flip]", "flip.x"])
def test_a_transform_goes_before_no_other_than_one_of_its_list(other: str) -> None:
    (mistake,) = find_mistakes("experiment=cifar10_resnet18", f"transform.train.crop._before_={other}")

    assert mistake.key == "transform.train.crop._before_"
    assert mistake.rule == "must name another transform of transform.train (flip, image, scale, normalize)"


def order(**before):
    """The order of transforms of which each names the one that it goes before, and the mistakes."""
    nodes = {name: {"_target_": "mine.T", **({"_before_": other} if other else {})} for name, other in before.items()}
    reading = Reading()
    return [*order_transforms(reading, nodes, ("transform", "train"))], [mistake for _, mistake in reading.mistakes]


@pytest.mark.parametrize(
    ("before", "ordered"),
    [
        ({"a": "c", "b": "", "c": "b"}, ["a", "c", "b"]),
        ({"a": "d", "b": "a", "c": "", "d": "c"}, ["b", "a", "d", "c"]),
        ({"p": "", "q": "", "x": "p", "y": "p"}, ["x", "y", "p", "q"]),
        ({"a": "c", "b": "", "c": ""}, ["b", "a", "c"]),
    ],
)
def test_each_transform_goes_before_the_one_that_it_names_whoever_else_moves(before, ordered):
    assert (ordered, []) == order(**before)


def test_transforms_that_go_round_before_each_other_are_refused_once():
    ordered, (mistake,) = order(a="b", b="c", c="b", d="")

    assert ["a", "b", "c", "d"] == sorted(ordered)
    assert ("transform.train.c._before_", "c before b before c") == (mistake.key, mistake.rule.split(": ")[-1])
