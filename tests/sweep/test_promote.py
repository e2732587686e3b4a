"""The winner of a sweep as an experiment file: composed, it is the winner's config, to the last key."""

import json
from pathlib import Path

import pytest
import yaml

from runner.__main__ import main
from runner.config.check.check import Check, to_resolved_data
from runner.config.compose import compose
from runner.config.identity import compute_job_id, compute_replicate_id
from runner.sweep.ledger import JobRecord, Ledger
from runner.sweep.report.results import gather
from runner.sweep.report.table import format_report
from runner.sweep.space.request import make_request
from tests.support import read_result


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """`sweep(["optimizer.lr=0.1,0.2"], [0.5, 0.7])`: the folder of a sweep with these objectives, its jobs recorded."""
    monkeypatch.chdir(tmp_path)

    def make(overrides, objectives, trust=(), **columns):
        folder = Path("outputs") / "digits" / "sweep_1"
        folder.mkdir(parents=True)
        asked = make_request(overrides, tmp_path, trust)
        rows = []
        for number, (job, objective) in enumerate(zip(asked.jobs(), objectives, strict=True)):
            checked = Check(job.composed, trust)
            assert not checked.at_once
            config = to_resolved_data(checked.config)
            row = JobRecord(compute_job_id(config), number, list(job.point.own), f"{number}_x", dict(job.point.values))
            row.replicate_of, row.objective, row.start, row.end = compute_replicate_id(config), objective, 1.0, 5.0
            row.status = "failed" if objective is None else "completed"
            rows.append(JobRecord(**{**vars(row), **columns.get(f"job{number}", {})}))
            (folder / row.path / ".hydra").mkdir(parents=True)
            (folder / row.path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
            (folder / row.path / ".hydra" / "config.yaml").write_text(job.composed.unresolved_yaml)
            git = {"git": {"commit": "c0ffee", "dirty": True, "diff": ""}}
            (folder / row.path / "provenance.json").write_text(json.dumps(git))
        with Ledger(folder) as ledger:
            base = [setting.text for setting in asked.space.fixed]
            command = ["python", "-m", "runner", "-m", *overrides]
            ledger.set(id="sweep_1", name="digits", command=command, base=base, objective="val/accuracy", mode="max")
            ledger.add(rows)
        return folder

    return make


def recorded(folder, number):
    return yaml.safe_load((folder / f"{number}_x" / "config.yaml").read_text())


def composed(name):
    checked = Check(compose([f"experiment={name}"]))
    assert [] == checked.at_once
    return to_resolved_data(checked.config)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(["optimizer.lr=0.1,0.3"], marks=pytest.mark.exhaustive),
        ["optimizer.lr=0.1,1e-5", "experiment=null"],
        ["model=mlp,lenet", "transform=resize32", "optimizer=adamw"],
        ["experiment=digits_lenet,digits_frozen_embedding"],
        pytest.param(["experiment=digits_mlp", "model.hidden=[8],[16,8]", "seed=3"], marks=pytest.mark.exhaustive),
        ["transform.train.shift.pixels=1,2", "+transform.train.more={_target_: torchvision.transforms.RandomErasing}"],
        ["scheduler=step,cosine", "scheduler.interval=epoch,step"],
        ["train.duration=2ep,3ep", "log.every='${train.evaluate_every}'"],
        pytest.param(["freeze.params=['conv1\\..*'],[]", "freeze.until=5ep"][:1], marks=pytest.mark.exhaustive),
        ["param_groups={head: {match: 'fc\\..*', lr_mult: 2}},{head: {match: 'fc\\..*', lr_mult: 3}}"],
        ["debug=noop,one_batch"],
        pytest.param(
            ["init=kaiming,orthogonal", "loader=workers", "device=cpu", "log=quiet"], marks=pytest.mark.exhaustive
        ),
        ["name='1e-3'", "seed=4", "loss.label_smoothing=0,1e-3"],
        pytest.param(["experiment=digits_data_parallel", "loader.batch_size=32,16"], marks=pytest.mark.exhaustive),
    ],
)
def test_the_experiment_is_the_config_of_the_winner(overrides, sweep):
    count = sum(1 for _ in make_request(overrides, Path.cwd()).points())
    folder = sweep(overrides, [*range(count)])

    assert 0 == main(["promote", str(folder), "--name", "winner"])
    assert recorded(folder, count - 1) == composed("winner")
    assert compute_job_id(recorded(folder, count - 1)) == compute_job_id(composed("winner"))


def test_a_finished_job_that_is_no_longer_asked_for_is_promoted_by_its_number(sweep):
    folder = sweep(["optimizer.lr=0.1,0.3"], [0.5, 0.9], job1={"active": False})

    assert 0 == main(["promote", str(folder), "--name", "winner"])
    assert recorded(folder, 0) == composed("winner")
    assert 0 == main(["promote", str(folder), "--name", "other", "--job", "1"])
    assert recorded(folder, 1) == composed("other")


def test_a_sweep_that_was_run_with_trust_is_promoted_with_it(sweep, capsys):
    """Not by what the ledger says was trusted: that may come from a stranger."""
    more = "+transform.train.more={_target_: rich.text.Text}"
    folder = sweep([more, "optimizer.lr=0.1,0.3"], [0.5, 0.9], trust=("rich.*",))

    assert 2 == main(["promote", str(folder), "--name", "winner"])
    assert "--trust" in capsys.readouterr().err
    assert 0 == main(["promote", str(folder), "--name", "winner", "--trust", "rich.*"])
    text = Path("conf/experiment/winner.yaml").read_text()
    assert "rich.text.Text" in text


@pytest.mark.parametrize("content", [None, b"\0\xff{", b""])
def test_a_job_with_damaged_files_is_promoted_all_the_same(sweep, content):
    """Its config is there twice, and the rest is for the header."""
    folder = sweep(["optimizer.lr=0.1,0.3"], [0.5, 0.9])
    wanted = recorded(folder, 1)
    for name in ("config.yaml", "provenance.json"):
        (folder / "1_x" / name).unlink()
        if content is not None:
            (folder / "1_x" / name).write_bytes(content)
    (folder / "1_x" / "checkpoints").mkdir()
    (folder / "1_x" / "checkpoints" / "step_00000001.pt").write_bytes(b"")

    assert 0 == main(["promote", str(folder), "--name", "winner"])
    assert wanted == composed("winner")
    said = "missing" if content is None else "damaged"
    assert f"# commit:  not known: provenance.json is {said}" in Path("conf/experiment/winner.yaml").read_text()


@pytest.fixture
def promoted(sweep, capsys):
    """The text of the file that the best of two jobs was promoted to, and what was said."""
    folder = sweep(["model=mlp,lenet", "transform=resize32", "optimizer.lr=0.1"], [0.9, 0.8])
    main(["promote", str(folder)])
    return Path("conf/experiment/digits_best.yaml").read_text(), capsys.readouterr().out


def test_the_file_says_where_it_comes_from(promoted):
    text, said = promoted

    assert text.startswith("# @package _global_\n# The best of 2 points of a sweep.\n")
    for line in ("command", "time", "result", "sweep", "job", "commit", "date"):
        assert f"\n# {line}:" in text
    assert "val/accuracy 0.9 (seed 0)" in text
    assert "c0ffee with uncommitted changes" in text
    assert "python -m runner experiment=digits_best" in said


def test_the_file_is_minimal(promoted):
    data = yaml.safe_load(promoted[0])

    assert {"override /model": "mlp", "override /transform": "resize32"}.items() <= {
        key: value for entry in data["defaults"] for key, value in entry.items()
    }.items()
    assert {"lr": 0.1, "weight_decay": 0.001, "fused": True} == data["optimizer"]
    assert {"defaults", "name", "optimizer", "train", "device"} == set(data)


def test_the_best_mean_is_promoted_and_not_the_best_seed(sweep):
    folder = sweep(["optimizer.lr=0.1,0.3", "sweep.seeds=3", "seed=5"], [0.99, 0.1, 0.2, None, 0.7, 0.72])
    main(["promote", str(folder), "--name", "mean"])
    text = Path("conf/experiment/mean.yaml").read_text()

    assert recorded(folder, 4) == composed("mean")
    assert (0.3, 6) == (composed("mean")["optimizer"]["lr"], composed("mean")["seed"])
    assert "0.71 ± 0.13 (mean and 95% interval of 2 seeds: 6, 7)" in text


def test_what_is_within_noise_of_the_winner_is_said(sweep, capsys):
    scores = [0.70, 0.74, 0.71, 0.73, 0.1, 0.12]
    folder = sweep(["optimizer.lr=0.1,0.3,0.4", "seed='${train.keep}',4"], scores)
    main(["promote", str(folder), "--name", "mean"])
    text = Path("conf/experiment/mean.yaml").read_text()

    assert "\n# noise:   within it optimizer.lr=0.3 (p = 1)\n" in text
    assert "2 seeds: 3, 4)" in text
    assert "within noise of it: optimizer.lr=0.3" in capsys.readouterr().out


def test_nothing_is_overwritten(sweep, capsys):
    folder = sweep(["optimizer.lr=0.1,0.3"], [0.1, 0.2])
    main(["promote", str(folder), "--name", "a"])
    before = Path("conf/experiment/a.yaml").read_text()

    assert 2 == main(["promote", str(folder), "--name", "a"])
    assert "must be a new file" in capsys.readouterr().err
    assert before == Path("conf/experiment/a.yaml").read_text()
    assert 2 == main(["promote", str(folder), "--name", "digits_lenet"])
    assert "shipped experiment" in capsys.readouterr().err


def test_a_pruned_job_is_promoted_by_name(sweep):
    pruned = {"job1": {"status": "pruned"}}
    folder = sweep(["optimizer.lr=0.1,0.3"], [0.1, 0.2], **pruned)

    assert 0 == main(["promote", str(folder), "--name", "first"])
    assert recorded(folder, 0) == composed("first")
    assert 0 == main(["promote", str(folder), "--job", "1", "--name", "cut"])
    assert recorded(folder, 1) == composed("cut")
    assert "val/accuracy (0.2), pruned" in Path("conf/experiment/cut.yaml").read_text()


def test_what_a_yaml_said_then_is_kept_when_it_changes(sweep, tmp_path):
    file = tmp_path / "conf" / "model" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("_target_: models.mlp.MLP\nin_features: 64\nhidden: [32]\nclasses: 10\n")
    folder = sweep(["model=mine,mlp"], [0.9, 0.1])
    file.write_text("_target_: models.mlp.MLP\nin_features: 64\nhidden: [99]\nclasses: 10\n")

    assert 0 == main(["promote", str(folder), "--name", "then"])
    assert [32] == composed("then")["model"]["hidden"]


def test_an_interpolation_that_leads_elsewhere_now_is_written_out(sweep, monkeypatch):
    monkeypatch.setenv("STUDY", "then")
    folder = sweep(["name=${oc.env:STUDY}", "train.duration=3ep,4ep", "scheduler=cosine"], [0.1, 0.9])
    main(["promote", str(folder), "--name", "same"])
    assert "${oc.env:STUDY}" in Path("conf/experiment/same.yaml").read_text()

    monkeypatch.setenv("STUDY", "now")
    assert 0 == main(["promote", str(folder), "--name", "kept"])
    assert ("then", "4ep") == (composed("kept")["name"], composed("kept")["scheduler"]["T_max"])


def test_a_projects_own_experiments_are_taken_for_what_they_were(sweep, tmp_path):
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: mlp\n"
        "name: study\nmodel: {hidden: [8]}\noptimizer: {lr: 0.5}\n"
    )
    made = sweep(["experiment=study", "optimizer.lr=0.1,0.2", "debug=overfit"], [0.9, 0.1])

    assert 0 == main(["promote", str(made), "--name", "found"])
    assert recorded(made, 0) == composed("found")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--job", "7"], "must be the number of a job, 0 to 1"),
        (["--job", "1"], "job 1 is failed"),
        (["--name", "a/b"], "must be at most 100 letters"),
        (["--name", "né"], "must be at most 100 letters"),
        (["--name", "x" * 300], "must be at most 100 letters"),
        (["--name", "null"], "must be at most 100 letters"),
        (["--name"], "needs a value"),
        (["--nme", "x"], "did you mean `--name`?"),
        (["more"], "SWEEP must be one, but there are 2"),
    ],
)
def test_what_cannot_be_promoted_is_refused(words, said, sweep, capsys):
    folder = sweep(["optimizer.lr=0.1,0.3"], [0.1, None])

    assert 2 == main(["promote", str(folder), *words])
    assert said in capsys.readouterr().err
    assert not Path("conf").exists()


def test_a_promotion_is_told_to_programs(sweep, capsys):
    made = sweep(["optimizer.lr=0.1,0.3"], [0.1, 0.2])
    capsys.readouterr()

    assert 0 == main(["promote", str(made), "--name", "found", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert ("conf/experiment/found.yaml", "") == (told["file"], told["noise"])
    assert told["command"].endswith(" experiment=found")


def test_a_sweep_without_a_result_has_no_winner(sweep, capsys):
    assert 2 == main(["promote", str(sweep(["optimizer.lr=0.1,0.3"], [None, None]))])
    assert "has no completed job" in capsys.readouterr().err


def test_of_several_objectives_one_must_choose(sweep, capsys):
    scores = {f"job{n}": {"metrics": {"val/accuracy": 0.5 - n, "cost": 1.0 + (n == 2)}} for n in range(3)}
    folder = sweep(["optimizer.lr=0.1,0.3,0.2"], [0.5, -0.5, -1.5], **scores)
    with Ledger(folder) as ledger:
        ledger.set(objectives={"val/accuracy": "max", "cost": "max"})

    assert 2 == main(["promote", str(folder)])
    assert "on the Pareto front are the jobs 0, 2" in capsys.readouterr().err
    assert 0 == main(["promote", str(folder), "--job", "2"])


def test_a_key_that_was_taken_away_cannot_be_promoted_and_leaves_no_file(sweep, capsys):
    folder = sweep(["~transform.train.shift", "optimizer.lr=0.1,0.3"], [0.1, 0.3])

    assert 2 == main(["promote", str(folder)])
    assert "transform.train.shift was taken away" in capsys.readouterr().err
    assert not list(Path().glob("conf/experiment/*"))


def test_folds_are_replicates_of_a_point_and_none_of_them_is_promoted(sweep):
    """Their mean decides, not the best fold; the file trains on all of them, and can be swept over folds again."""
    folds = ["dataset.folds=3", "dataset.fold=0,1,2", "dataset.val_fraction=0"]
    folder = sweep(["optimizer.lr=0.1,0.3", *folds], [0.99, 0.1, 0.2, 0.7, 0.72, 0.74])
    report = gather(folder)

    assert [3, 3] == [len(entry.rows) for entry in report.entries]
    assert (["optimizer.lr"], 0.3) == (report.keys, report.entries[0].values["optimizer.lr"])
    assert "interval of n folds (Student's t)" in format_report(report)
    assert 0 == main(["promote", str(folder), "--name", "folded"])
    assert "(mean and 95% interval of 3 folds: 0, 1, 2)" in Path("conf/experiment/folded.yaml").read_text()
    assert (3, None) == (composed("folded")["dataset"]["folds"], composed("folded")["dataset"]["fold"])


def test_a_sweep_its_report_and_its_winner(runner):
    """The whole way: two points of two seeds are trained, reported and promoted, and the file trains the winner."""
    ran = runner("-m", "optimizer.lr=0.001,0.2", "sweep.seeds=2", "train.duration=30st", "model=mlp", "device=cpu")
    assert 0 == ran.status
    (folder,) = Path("outputs/digits_cnn").iterdir()
    plain = json.loads(runner("report", str(folder), "--json").out)
    assert ([2, 3], {"completed": 4}) == (plain["best"], plain["counts"])
    assert {"ledger.sqlite", "report.csv", "report.json"} <= {path.name for path in folder.iterdir()}

    assert 0 == runner("promote", str(folder), "--name", "winner").status
    (first,) = folder.glob("2_*")
    assert yaml.safe_load((first / "config.yaml").read_text()) == composed("winner")
    again = runner("experiment=winner")
    assert read_result(first)["weights_sha256"] == again.result["weights_sha256"]
