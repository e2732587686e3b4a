"""What a sweep goes over: grids, pairs, points from a file, random points, replicates."""

import math
from pathlib import Path

import pytest

from runner.config.compose import compose
from runner.config.hydra_repository import find_our_conf
from runner.core.errors import ConfigError
from runner.sweep.space.axes import draw_uniform
from runner.sweep.space.request import make_request

HERE = find_our_conf().parent


def points(*overrides, cwd=HERE):
    return [point.values for point in make_request(overrides, cwd).space.points()]


def mistakes(*overrides, cwd=HERE):
    with pytest.raises(ConfigError) as error:
        make_request(overrides, cwd)
    return error.value.mistakes


def test_the_last_argument_of_a_grid_changes_fastest():
    found = points("optimizer.lr=0.1,0.2", "seed=range(0,3)", "train.duration=1ep")

    assert [(0.1, 0), (0.1, 1), (0.1, 2), (0.2, 0), (0.2, 1), (0.2, 2)] == [tuple(point.values()) for point in found]


def test_pairs_change_together():
    found = points("optimizer.lr=0.1,0.2", "seed=0,1", "model=mlp,lenet", "sweep.zip=[optimizer.lr,model]")

    assert [(0.1, "mlp", 0), (0.1, "mlp", 1), (0.2, "lenet", 0), (0.2, "lenet", 1)] == [
        tuple(point[key] for key in ("optimizer.lr", "model", "seed")) for point in found
    ]


def test_two_pairs():
    found = points(
        "optimizer.lr=1,2", "seed=0,1", "model=mlp,lenet", "name=a,b", "sweep.zip=[[optimizer.lr,model],[seed,name]]"
    )

    assert 4 == len(found)
    assert {(1, "mlp"), (2, "lenet")} == {(point["optimizer.lr"], point["model"]) for point in found}
    assert {(0, "a"), (1, "b")} == {(point["seed"], point["name"]) for point in found}


@pytest.mark.parametrize(
    ("zipped", "said"),
    [
        ("[optimizer.lr,seed]", "`optimizer.lr` has 2, `seed` has 3"),
        ("[optimizer.lr]", "at least two keys"),
        ("[optimizer.lr,seeed]", "`seeed`, which is not swept over"),
        ("[optimizer.lr,optimizer.lr]", "twice"),
        ("[[optimizer.lr,model],[model,seed]]", "names `model` twice"),
        ("[optimizer.lr,optimizer.momentum]", "an interval and no list"),
    ],
)
def test_pairs_that_cannot_be_made_are_said(zipped, said):
    arguments = ["optimizer.lr=1,2", "seed=0,1,2", "model=mlp,lenet", "optimizer.momentum=interval(0,1)"]
    found = mistakes(*arguments, f"sweep.zip={zipped}", "sweep.random=2")

    assert any(m.key == "sweep.zip" and said in m.rule for m in found), found
    assert all(m.where == f"argument `sweep.zip={zipped}`" for m in found)


FILES = {
    "points.yaml": "- {optimizer.lr: 0.1, model: mlp}\n- optimizer: {lr: 1e-2, betas: [0.9, 0.99]}\n  model: lenet\n",
    "points.csv": 'optimizer.lr, model, optimizer.betas\n0.1, mlp,\n1e-2, lenet, "[0.9,0.99]"\n',
    "points.jsonl": '{"optimizer.lr": 0.1, "model": "mlp"}\n\n'
    '{"optimizer": {"lr": 1e-2, "betas": [0.9, 0.99]}, "model": "lenet"}\n',
}


@pytest.mark.parametrize("name", FILES)
def test_points_from_a_file(name, tmp_path):
    (tmp_path / name).write_text(FILES[name])
    found = points(f"sweep.points={name}", "seed=0,1", cwd=tmp_path)

    first = {"optimizer.lr": 0.1, "model": "mlp"}
    second = {"optimizer.lr": 0.01, "optimizer.betas": [0.9, 0.99], "model": "lenet"}
    assert [first | {"seed": s} for s in (0,)] == [p for p in found if p["seed"] == 0 and p["model"] == "mlp"]
    assert [second | {"seed": s} for s in (1,)] == [p for p in found if p["seed"] == 1 and p["model"] == "lenet"]
    assert 4 == len(found)


@pytest.mark.parametrize(
    "value",
    ["a b", "1", "null", "it's", 'say "x"', "back\\slash\\", "a,b", "choice(1,2)", "[1", "é", "", "a\nb", "x:y"],
)
def test_a_text_of_a_file_stays_what_it_is(value, tmp_path):
    import json

    (tmp_path / "points.jsonl").write_text(json.dumps({"model": {"x": value, "y": [value]}}))
    (job,) = make_request(["sweep.points=points.jsonl"], tmp_path).jobs()

    assert (value, [value]) == (job.composed.config["model"]["x"], job.composed.config["model"]["y"])


@pytest.mark.parametrize(
    ("name", "text", "where", "said"),
    [
        ("p.csv", "optimizer.lr,seed\n0.1,1\n0.2\n", "p.csv:3", "has 1 cells where the first line has 2"),
        ("p.csv", "optimizer.lr,optimizer.lr\n1,2\n", "p.csv:1", "stands twice"),
        ("p.csv", "optimizer.lr;seed\n1;2\n", "p.csv:1", "is not a key"),
        ("p.csv", 'model.x,seed\n"a\nb",1\n3,4,5\n', "p.csv:4", "has 3 cells"),
        ("p.csv", "", "p.csv:1", "has no point"),
        ("p.jsonl", '{"seed": 1}\n{"seed": 2\n', "p.jsonl:2", "cannot be read as JSON"),
        ("p.jsonl", '{"seed": 1, "seed": 2}\n', "p.jsonl:1", "`seed` is given twice"),
        ("p.jsonl", "[1]\n", "p.jsonl:1", "no object"),
        ("p.yaml", "- {seed: 1}\n- {seed: 1, seed: 2}\n", "p.yaml:2", "already set"),
        ("p.yaml", "seed: 1\n", "p.yaml:1", "must be a list"),
        ("p.yaml", "- {seed: 1}\n- 3\n", "p.yaml:2", "no mapping"),
        ("p.yaml", "- {seed: 1}\n- {}\n", "p.yaml:2", "sets no key"),
        ("p.yaml", "- {seed: 1}\n- {sweep.seeds: 2}\n", "p.yaml:2", "cannot be swept over"),
        ("p.yaml", "- {seed: 1}\n- {hydra.run.dir: x}\n", "p.yaml:2", "cannot be swept over"),
        ("p.yaml", "- {seed: 1}\n- {name: x}\n- {'a b': x}\n", "p.yaml:3", "is not a key"),
        ("p.yaml", "- {train.duration: 1ep}\n", "p.yaml:1", "on the command line too"),
        ("p.txt", "seed: 1\n", "argument `sweep.points=p.txt`", "ends in"),
        ("nowhere.csv", None, "argument `sweep.points=nowhere.csv`", "must be an existing file"),
    ],
)
def test_a_wrong_file_of_points_is_blamed_on_its_line(name, text, where, said, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    found = mistakes(f"sweep.points={name}", "train.duration=2ep", cwd=tmp_path)

    assert [where] == [m.where for m in found]
    assert said in found[0].rule


@pytest.mark.parametrize("argument", ["optimizer.lr: fast", "model: mpl", "train.epocs: 3", "freeze.params: ['(']"])
def test_a_wrong_value_of_a_point_is_blamed_on_its_line(argument, tmp_path, monkeypatch):
    from runner.sweep.examine import examine_sweep

    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(f"- seed: 1\n- {argument}\n")
    (found,) = examine_sweep(["sweep.points=p.yaml"], ())

    assert "p.yaml:2" == found.where


RANDOM = (
    "optimizer.lr='tag(log, interval(1e-4, 1e-1))'",
    "loader.batch_size='int(interval(8, 65))'",
    "model=mlp,lenet",
)
RANDOM = tuple(argument.replace("'", "") for argument in RANDOM)


def test_random_points_are_drawn_from_everything():
    found = points(*RANDOM, "sweep.random=200")
    rates, sizes = [p["optimizer.lr"] for p in found], [p["loader.batch_size"] for p in found]

    assert 200 == len(found)
    assert all(1e-4 <= rate < 1e-1 for rate in rates)
    assert all(isinstance(size, int) and 8 <= size < 65 for size in sizes)
    assert 70 < sum(p["model"] == "mlp" for p in found) < 130
    below = sum(rate < 10**-2.5 for rate in rates)  # half of a logarithmic scale
    assert 70 < below < 130
    assert all(len(f"{rate:.10g}".replace(".", "").lstrip("0").replace("e-05", "")) <= 5 for rate in rates)


def test_more_random_points_and_another_key_leave_the_others_as_they_are():
    few, many = points(*RANDOM, "sweep.random=5"), points(*RANDOM, "sweep.random=20", "seed=range(0,9)")

    assert few == [{key: value for key, value in point.items() if key != "seed"} for point in many[:5]]
    assert few != points(*RANDOM, "sweep.random=5", "sweep.random_seed=1")


def test_random_points_of_a_grid_are_different():
    found = points("model=mlp,lenet", "seed=range(0,4)", "sweep.random=8")

    assert 8 == len({tuple(point.values()) for point in found})


def test_a_range_on_a_logarithmic_scale():
    found = [
        p["train.keep"] for p in points("train.keep=tag(log, range(1, 1025))", "seed=range(0,999)", "sweep.random=300")
    ]

    assert 100 < sum(value <= 32 for value in found) < 200


def test_draws_are_uniform():
    numbers = [draw_uniform(0, ["x"], i) for i in range(2000)]

    assert 0 <= min(numbers)
    assert max(numbers) < 1
    assert abs(sum(numbers) / 2000 - 0.5) < 4 / math.sqrt(12 * 2000)


def test_seeds_are_replicates_of_each_point():
    found = points("optimizer.lr=0.1,0.2", "sweep.seeds=3", "seed=7")

    assert [(0.1, 7), (0.1, 8), (0.1, 9), (0.2, 7), (0.2, 8), (0.2, 9)] == [tuple(p.values()) for p in found]


@pytest.mark.parametrize(
    ("arguments", "key", "said"),
    [
        (["seed=0,1", "sweep.seeds=2"], "sweep.seeds", "must not stand beside"),
        (["optimizer.lr=interval(0,1)"], "optimizer.lr", "an interval has no list of values"),
        (["optimizer.lr=tag(log,choice(0.1,0.2))"], "optimizer.lr", "without effect"),
        (["optimizer.lr=tag(log,interval(0,1))", "sweep.random=2"], "optimizer.lr", "above 0"),
        (["optimizer.lr=interval(1,0)", "sweep.random=2"], "optimizer.lr", "up to a larger one"),
        (["optimizer.lr=tag(lgo,interval(1,2))", "sweep.random=2"], "optimizer.lr", "`lgo` is no tag"),
        (["model=tag(log,choice(mlp,lenet))", "sweep.random=2"], "model", "numbers above 0"),
        (["optimizer.lr=0.1", "sweep.random=2"], "sweep.random", "nothing to draw from"),
        (["optimizer.lr=0.1,0.2", "sweep.random=3"], "sweep.random", "at most 2"),
        (["optimizer.lr=0.1,0.2", "sweep.random_seed=3"], "sweep.random_seed", "no effect"),
        (["seed=range(0,2000)", "train.keep=range(1,2000)"], "sweep", "at most 1,000,000 points"),
        (["seed=range(0,3,0)"], "seed", "cannot be enumerated"),
        (["seed=range(3,0)"], "seed", "no value at all"),
        (["sweep.slots=1,2"], "sweep.slots", "cannot be swept over"),
        (["sweep.seedz=2"], "sweep.seedz", "not a key"),
        (["sweep.seeds=0"], "sweep.seeds", "at least 1"),
        (["run=a,b"], "run", "cannot be swept over"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(arguments, key, said):
    found = mistakes(*arguments)

    assert [key] == [m.key for m in found]
    assert said in found[0].rule
    assert found[0].where or key == "sweep"


def test_all_that_is_wrong_with_a_sweep_is_said_at_once():
    found = mistakes("optimizer.lr=1,2", "model=mlp,lenet", "sweep.zip=[optimizer.lr,mode]", "sweep.seed=3", "seed=[0,")

    assert {"sweep.zip", "sweep.seed", "seed"} == {m.key for m in found}


def test_sweep_settings_without_m_are_refused(runner):
    ran = runner("check", "sweep.seeds=3", "sweep=lr_grid")

    assert 2 == ran.status
    assert "sweep.seeds has no effect without `-m`" in ran.out
    assert "sweep has no effect without `-m`" in ran.out


def test_a_sweep_preset_of_ones_own(tmp_path):
    file = tmp_path / "conf" / "sweep" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(
        "# @package _global_\nhydra: {sweeper: {params: {optimizer.lr: '0.1,0.2'}}}\n"
        "sweep: {seeds: 2}\nloader: {batch_size: 7}\n"
    )
    found = list(make_request(["sweep=mine"], tmp_path).jobs())

    assert 4 == len(found)
    assert {7} == {job.composed.config["loader"]["batch_size"] for job in found}
    assert ("sweep=mine", "seed=1") == (found[1].point.overrides[1], found[1].point.overrides[2])


AXES = [
    "optimizer.lr=0.1,1e-2", "seed=range(0,2)", "model=mlp,small_cnn", "name=choice(a,'b c')", "scheduler=none,cosine",
    "freeze.params=[],['fc\\..*']", "+model.width=8,16", "train.duration=1ep,'${train.evaluate_every}'",
    "model.hidden=[8],[16,8]", "log={every: 5st},{every: 6st}", "experiment=null,digits_mlp",
]  # fmt: skip


@pytest.mark.parametrize("number", [0, 1, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in range(2, 20))])
def test_jobs_are_composed_as_runs_of_their_own_would_be(number, tmp_path):
    """What is composed once and changed, and what is composed for each job, are the same config and the same blame."""
    import random

    draw = random.Random(number)
    arguments = draw.sample(AXES, 3) + draw.sample(["transform.train.shift.pixels=2", "optimizer=adamw", "seed=3"], 1)
    if number % 3 == 0:
        (tmp_path / "p.jsonl").write_text('{"loader": {"batch_size": 32}, "loss": "mse"}\n{"loader.batch_size": 16}\n')
        arguments.append("sweep.points=p.jsonl")
    found = list(make_request(arguments, tmp_path).jobs())

    assert len(found) >= 4
    for job in draw.sample(found, 4):
        alone = compose(list(job.point.overrides), tmp_path)
        assert alone.config == job.composed.config
        assert alone.choices == job.composed.choices
        assert [m.rule for m in alone.mistakes] == [m.rule for m in job.composed.mistakes]
        assert Path(tmp_path) == job.composed.layers.cwd


def test_a_point_is_found_again_by_what_is_its_own(tmp_path):
    (tmp_path / "p.csv").write_text("optimizer.lr\n0.1\n0.2\n")
    sweep = make_request(["sweep.points=p.csv", "train.duration=1ep", "seed=0,1"], tmp_path)
    found = list(sweep.points())

    assert [("seed=0", "optimizer.lr=0.1"), ("seed=0", "optimizer.lr=0.2")] == [point.own for point in found[:2]]
    assert found == [sweep.point(point.own) for point in found]
    made_up = sweep.point(["optimizer.lr=0.3"])
    assert ("train.duration=1ep", "optimizer.lr=0.3") == made_up.overrides
    assert {"optimizer.lr": 0.3} == made_up.values


def test_a_value_that_points_to_a_default_is_composed_as_a_run_of_its_own_would_be(tmp_path):
    first, _ = make_request(["train.checkpoint_every=${train.evaluate_every},2ep"], tmp_path).jobs()

    assert "1ep" == first.composed.config["train"]["checkpoint_every"]
    assert compose(list(first.point.overrides), tmp_path).config == first.composed.config


@pytest.mark.parametrize(
    ("argument", "most"),
    [
        ("seed=int(interval(1, 4))", 3),
        ("seed=1,1,2", 2),
        ("train.keep=tag(log, choice(1, 2, 2))", 2),
        ("optimizer.lr=interval(0.1, 0.2)", None),
    ],
)
def test_as_many_points_are_drawn_as_there_are_different_ones(argument, most):
    """To ask for more is a mistake and no endless search for them."""
    if most is None:
        assert 2000 == len({p["optimizer.lr"] for p in points(argument, "sweep.random=2000")})
    else:
        assert most == len({tuple(p.values()) for p in points(argument, f"sweep.random={most}")})
        (found,) = mistakes(argument, f"sweep.random={most + 1}")
        assert (f"must be at most {most}", str(most)) == (found.rule.partition(":")[0], found.suggestion)


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("p.csv", "seed,+seed\n1,2\n3,4\n", "p.csv:1"),
        ("p.yaml", "- {seed: 1}\n- {optimizer: {lr: 1}, optimizer.lr: 2}\n", "p.yaml:2"),
        ("p.jsonl", '{"seed": 1, "+seed": 2}\n', "p.jsonl:1"),
    ],
)
def test_a_key_that_a_point_sets_twice_is_refused(name, text, where, tmp_path):
    (tmp_path / name).write_text(text)
    (found,) = mistakes(f"sweep.points={name}", cwd=tmp_path)

    assert (where, True) == (found.where, "twice" in found.rule)


@pytest.mark.parametrize(("name", "near"), [("pionts.csv", "points.csv"), ("points.cvs", "points.csv")])
def test_the_file_of_points_that_was_meant_is_named(name, near, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "points.csv").write_text("seed\n1\n")
    (found,) = mistakes(f"sweep.points=sub/{name}", cwd=tmp_path)

    assert f"sub/{near}" == found.suggestion


@pytest.mark.parametrize("text", ["é", "naïve", "中文", "x\u00a0y"])
def test_a_text_of_a_file_may_have_any_letters(text, tmp_path):
    (tmp_path / "p.csv").write_text(f"model.x\n{text}\n", encoding="utf-8")
    (tmp_path / "p.yaml").write_text(f"- model: {{x: {text}}}\n", encoding="utf-8")
    found = [
        job.composed.config["model"]["x"]
        for name in ("p.csv", "p.yaml")
        for job in make_request([f"sweep.points={name}"], tmp_path).jobs()
    ]

    assert [text, text] == found


@pytest.mark.parametrize(
    ("arguments", "key", "near"),
    [
        (["run=x", "seed=0,1"], "run", ""),
        (["seed=x", "sweep.seeds=2"], "seed", "0"),
        (["hydra/sweeper=optuna", "seed=0,1"], "hydra/sweeper", "sweep=optuna_asha"),
        (["hydra/launcher=joblib", "seed=0,1"], "hydra/launcher", "sweep.slots"),
        (["sweep.seeds=1000000000"], "sweep.seeds", ""),
        (["seed=range(0,100)", "sweep.random=1000000000"], "sweep.random", ""),
    ],
)
def test_what_no_job_has_as_it_is_said_is_judged_all_the_same(arguments, key, near):
    assert [(key, near)] == [(m.key, m.suggestion) for m in mistakes(*arguments)]


def test_what_a_function_says_is_the_reason():
    (found,) = mistakes("optimizer.lr=interval(0.1)")

    assert found.rule.endswith("missing a required argument: 'end'")


def test_a_range_of_wrong_values_is_a_few_mistakes(tmp_path, monkeypatch):
    from runner.sweep.examine import examine_sweep

    monkeypatch.chdir(tmp_path)
    assert 3 == len(examine_sweep(["seed=range(-100,0)"], ()))


def test_a_row_that_stands_twice_is_blamed_on_its_first_line(tmp_path):
    (tmp_path / "p.csv").write_text("seed\n1\n1\n")
    sweep = make_request(["sweep.points=p.csv"], tmp_path)
    first, _ = sweep.points()

    assert {"seed=1": "p.csv:2"} == sweep.point(first.own).places
