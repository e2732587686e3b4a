"""The same job and the same sweep have the same name, and another one has another."""

import pytest

from runner.config.check.check import Check, to_resolved_data
from runner.config.compose import compose
from runner.config.hydra_repository import find_our_conf
from runner.config.identity import compute_job_id, compute_replicate_id, compute_sweep_id
from runner.sweep.space.request import make_request

CWD = find_our_conf().parent


def config_of(*overrides):
    return to_resolved_data(Check(compose(list(overrides), CWD), ()).config)


def sweep_of(*overrides):
    sweep = make_request(overrides, CWD)
    return compute_sweep_id(to_resolved_data(Check(sweep.base).config), sweep.space.keys)


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer.lr=2e-1",),
        ("loader.num_workers=2",),
        ("log=quiet",),
        ("log.every=1st", "train.keep=1"),
        ("name=other",),
        ("sweep.id=mine",),
        ("seed=0",),
    ],
)
def test_what_cannot_change_a_result_is_no_other_job(overrides):
    assert compute_job_id(config_of()) == compute_job_id(config_of(*overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer.lr=0.3",),
        ("seed=1",),
        ("device.threads=2",),
        ("device=cpu",),
        ("model=mlp",),
        ("train.duration=11ep",),
        ("+model.more=1",),
    ],
)
def test_what_may_change_a_result_is_another_job(overrides):
    assert compute_job_id(config_of()) != compute_job_id(config_of(*overrides))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("optimizer.lr=1", "optimizer.lr=1.0"),
        ("optimizer.momentum=0", "optimizer.momentum=0.0"),
        ("train.clip_norm=1", "train.clip_norm=1.0"),
        ("optimizer=adamw optimizer.betas=[0,0.9]", "optimizer=adamw optimizer.betas=[0.0,0.9]"),
        ("+loss.label_smoothing=0", "+loss.label_smoothing=0.0"),
    ],
)
def test_a_float_has_one_identity_however_it_is_spelt(one, other):
    assert compute_job_id(config_of(*one.split())) == compute_job_id(config_of(*other.split()))
    assert sweep_of(*one.split(), "seed=0,1") == sweep_of(*other.split(), "seed=0,1")


def test_an_integer_and_a_float_are_two_where_nobody_says_what_is_meant():
    def ids(target, name):
        return {compute_job_id({"model": {"_target_": target, name: value}}) for value in (1, 1.0)}

    assert [len(ids(*of)) for of in (("f", "a"), ("models.cnn.SmallCNN", "width"), ("torch.optim.SGD", "lr"))] == [
        2,
        2,
        1,
    ]
    assert compute_job_id(config_of("optimizer.lr=1")) != compute_job_id(config_of("optimizer.lr=true"))


def test_the_index_of_a_device_is_no_other_job():
    assert compute_job_id(config_of("device.type=cuda:1")) == compute_job_id(config_of("device.type=cuda"))


def test_keyword_arguments_have_no_order_and_transforms_do():
    def two(first, second):
        return ({"_target_": "f", first: 1, second: 1}, {first: {"_target_": "f"}, second: {"_target_": "g"}})

    (arguments, transforms), (turned, _) = two("a", "b"), two("b", "a")
    other = {"b": transforms["b"], "a": transforms["a"]}

    assert compute_job_id({"model": arguments}) == compute_job_id({"model": turned})
    assert compute_job_id({"transform": transforms}) != compute_job_id({"transform": other})


def test_replicates_differ_in_their_seed_alone():
    assert compute_replicate_id(config_of("seed=1")) == compute_replicate_id(config_of("seed=2"))
    assert compute_replicate_id(config_of("seed=1")) != compute_replicate_id(config_of("seed=1", "optimizer.lr=0.3"))


def test_a_sweep_with_other_values_of_the_same_keys_is_the_same_sweep():
    line = sweep_of("optimizer.lr=0.1,0.2", "model=mlp,small_cnn", "train.duration=1ep")

    assert line == sweep_of("model=mlp,small_cnn,lenet", "train.duration=1ep", "optimizer.lr=choice(0.3)")
    assert line == sweep_of("optimizer.lr=1,2", "model=mlp,lenet", "train.duration=1ep", "log=quiet")
    assert line != sweep_of("optimizer.lr=0.1,0.2", "model=mlp,small_cnn", "train.duration=2ep")
    assert line != sweep_of("optimizer.lr=0.1,0.2", "model=mlp,small_cnn", "train.duration=1ep", "seed=0,1")
    assert line != sweep_of("optimizer.lr=0.1,0.2", "train.duration=1ep", "model=mlp")


def test_grids_in_a_file_count_as_those_on_the_line():
    assert sweep_of("sweep=lr_grid") == sweep_of("optimizer.lr=1,2")
