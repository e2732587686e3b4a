"""Composition through Hydra's loader: everything arrives, every mistake is collected, nothing of torch is imported."""

import subprocess
import sys

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from runner.config.check.check import Check, check
from runner.config.compose import compose
from runner.config.hydra_repository import CONFIG_NAME, find_our_conf
from runner.core.errors import ConfigError
from runner.sweep.examine import examine_sweep
from runner.sweep.space.request import make_request


def rules(*overrides, folder=None):
    composed = compose([*overrides], folder)
    return {mistake.key: mistake for mistake in [*composed.mistakes, *Check(composed).at_once]}


@pytest.mark.parametrize(
    "overrides", [[], ["experiment=digits_mlp"], ["~experiment", "optimizer=adam"], ["scheduler=step"]]
)
def test_config_is_what_hydra_composes(overrides):
    with initialize_config_dir(str(find_our_conf()), version_base="1.3"):
        expected = OmegaConf.to_container(hydra_compose(CONFIG_NAME, overrides), resolve=True)

    assert expected == compose(overrides).config


def test_a_config_is_written_as_omegaconf_writes_it():
    """Section by section, with those of the config before: numbers, texts and truth values that look alike."""
    lines = [["+log.own=1", "name='on'"], ["+log.own=1.0"], ["+log.own='1'"], ["+log.own=true", "name='${seed}'"]]
    known = {}
    for line in lines:
        composed = compose([*line, "experiment=digits_cnn"])

        assert OmegaConf.to_yaml(composed.unresolved) == composed.format_unresolved(known)


def test_a_group_can_be_switched_off_with_null():
    assert "run" != compose([]).config["name"]
    assert "name" not in compose(["experiment=null"]).config


def test_every_unknown_option_and_unreadable_argument_is_named():
    found = rules("model=mpl", "optimizer=adma", "experiment=nosuchthing", "a=b c=[", "seed=1,2")

    assert {"model", "optimizer", "experiment", "seed"} <= set(found)
    assert "mlp" == found["model"].suggestion
    assert "argument `optimizer=adma`" == found["optimizer"].where


def test_a_project_is_searched_before_our_conf(tmp_path):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mlp.yaml").write_text("_target_: mine.Net\n")

    assert "mine.Net" == compose(["model=mlp"], tmp_path).config["model"]["_target_"]


@pytest.mark.parametrize(
    ("text", "line", "rule"),
    [
        ("a: 1\nb: [1, 2\n", 3, "cannot be read as YAML"),
        ("a: 1\n\tb: 2\n", 2, "cannot be read as YAML"),
        ("a: 1\nb: 2\na: 3\n", 3, "`a` is already set in line 1"),
        ("- 1\n- 2\n", 1, "must be a mapping"),
        ("a: &a\n  b: *a\n", 1, "inside of"),
        ("a: " + "[" * 500 + "]" * 500, 1, "nested deeper"),
        ("a: !!python/object/apply:os.system [id]\n", 1, "cannot be read as YAML"),
    ],
)
def test_an_unreadable_file_is_named_with_its_line(text, line, rule, tmp_path):
    file = tmp_path / "conf" / "model" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    composed = compose(["model=mine"], tmp_path)

    (mistake,) = composed.mistakes
    assert rule in mistake.rule
    assert mistake.where.startswith(f"conf/model/mine.yaml:{line}")


def test_a_wrong_entry_of_a_defaults_list_is_named_with_its_line(tmp_path):
    file = tmp_path / "conf" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(
        "# @package _global_\ndefaults:\n  - override /modle: mlp\n  - override /optimizer: addam\nseed: 3\n"
    )
    found = {mistake.key: mistake for mistake in compose(["experiment=mine"], tmp_path).mistakes}

    assert ("conf/experiment/mine.yaml:3", "model") == (found["modle"].where, found["modle"].suggestion)
    assert ("conf/experiment/mine.yaml:4", "adam") == (found["optimizer"].where, found["optimizer"].suggestion)


def test_on_is_a_key_and_not_true(tmp_path):
    file = tmp_path / "conf" / "transform" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("on: sample\ntrain: {}\n")

    assert "sample" == compose(["transform=mine"], tmp_path).config["transform"]["on"]


def test_an_interpolation_of_a_schema_default_is_followed():
    assert "10ep" == compose(["experiment=null", "scheduler=cosine"]).config["scheduler"]["T_max"]


def test_a_circle_of_interpolations_is_a_mistake():
    assert "train.evaluate_every" in rules(
        "train.evaluate_every='${train.checkpoint_every}'", "train.checkpoint_every='${train.evaluate_every}'"
    )


def test_sweep_jobs_are_what_each_job_composes(tmp_path):
    overrides = ["optimizer.lr=0.1,0.2", "seed=range(0,2)", "model=small_cnn,mlp", "name=choice(a,b)"]
    points = list(make_request(overrides, find_our_conf().parent).jobs())

    assert 16 == len(points)
    for job in (point.composed for point in points):
        assert job.config == compose(job.overrides).config


TRICKY = (
    ("model=mlp,small_cnn,lenet", "model.width=8,16"),
    ("optimizer=sgd,adamw", "optimizer.lr=0.1,1e-1,'0.1'", "optimizer.weight_decay=null,0"),
    ("transform.train.shift=null,{_target_: datasets.transforms.RandomShift, pixels: 1}", "seed=1,2"),
    ("transform.train.shift.pixels=1,2", "transform=shift,none"),
    ("scheduler=none,cosine,step", "train.duration=1ep,3ep", "scheduler.warmup=null,1ep"),
    ("scheduler.T_max='${train.duration}',5ep", "train.duration=2ep,4ep", "scheduler=cosine"),
    ("experiment=digits_mlp,digits_lenet,null", "loader.batch_size=16,32"),
    ("+freeze.params=[],['conv1.*']", "++dataset.sample.shape=[1,8,8],[1,6,6]"),
    ("metrics=none,classification", "train.objective=val/loss,null", "log=quiet,default"),
    ("param_groups=none,no_decay", "++param_groups.head.match='fc.*','conv.*'", "++param_groups.head.lr_mult=2,3"),
    ("debug=null,noop,one_batch", "train.evaluate_every=null,2st"),
    ("init=kaiming,xavier", "++init.rules.more={name: fc, bias: 0},{name: conv1, bias: 1}"),
)


EVERYDAY = (0, 3, 6)  # of the tricky ones; each is composed a dozen times


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(line, marks=[] if number in EVERYDAY else [pytest.mark.exhaustive], id=line[0])
        for number, line in enumerate(TRICKY)
    ],
)
def test_jobs_composed_on_a_shared_base_are_what_each_composes_alone(overrides):
    """To the order of their keys, interpolations kept and followed, and with the same mistakes."""
    for job in make_request(list(overrides), find_our_conf().parent).jobs():
        alone = compose(list(job.point.overrides))
        alone.unresolved["sweep"] = {}

        assert alone.unresolved_yaml == job.composed.unresolved_yaml
        assert alone.config == job.composed.config
        assert [(m.key, m.rule) for m in alone.mistakes] == [(m.key, m.rule) for m in job.composed.mistakes]


def test_sweep_over_a_glob_and_parameters_from_our_files():
    assert len(list(find_our_conf().glob("optimizer/*.yaml"))) == len(
        list(make_request(["optimizer=glob(*)"], find_our_conf().parent).jobs())
    )
    assert 4 == len(list(make_request(["sweep=lr_grid"], find_our_conf().parent).jobs()))


def test_a_wrong_point_of_a_sweep_is_found_before_the_first_starts():
    mistakes = examine_sweep(["optimizer.lr=0.1,ten", "loader.batch_size=64,0", "model=mlp,mpl"], ())

    assert {"optimizer.lr", "loader.batch_size", "model"} == {mistake.key for mistake in mistakes}
    assert 3 == len(mistakes)


def test_mistakes_beside_a_sweep_are_found_too():
    with pytest.raises(ConfigError) as error:
        examine_sweep(["seed=0,-1", "a b", "optimizer.lr=interval(0,1)"], ())
    assert {"a b", "optimizer.lr"} == {mistake.key for mistake in error.value.mistakes}

    mistakes = examine_sweep(["seed=0,-1", "model=mpl", "+train.epocs=3"], ())
    assert {"seed", "model", "train.epocs"} == {mistake.key for mistake in mistakes}


def test_checking_keys_needs_no_torch():
    code = """
import sys
from runner.__main__ import main
from runner.config.check.check import Check
from runner.config.compose import compose

Check(compose(["+train.epocs=3"])).at_once
main(["why", "optimizer.lr"])
sys.exit("torch" in sys.modules)
"""

    assert 0 == subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode


def test_recorded_config_is_read_back():
    from runner.config.check.check import parse, to_resolved_data

    config = check(compose(["init=constant", "scheduler=plateau", "loader=workers"]))

    assert config == parse(to_resolved_data(config))
