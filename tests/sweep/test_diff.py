"""`diff`: settings with their places, code with uncommitted changes, packages, data, results and curves."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from runner.log.trace_file import pack_losses
from runner.sweep.difference import sides
from runner.sweep.difference.code import compare_code
from runner.sweep.ledger import JobRecord, Ledger
from tests.support import list_files, make_result, run_git, write_files, write_run

A, B = "outputs/own/a", "outputs/own/b"


EXPERIMENT = """# @package _global_
name: own
model:
  _target_: mine.Net
  width: 32
optimizer:
  lr: 0.1
"""


FACTS = {"versions": {"torch": "2.1", "numpy": "1.0"}, "threads": 1, "hardware": {"cpu": "x", "gpus": []}}


@pytest.fixture
def repository(elsewhere):
    write_files(
        elsewhere, {"mine.py": "one\ntwo\nthree\n", "conf/experiment/own.yaml": EXPERIMENT, ".gitignore": "outputs\n"}
    )
    run_git(elsewhere, "init", "-q")
    return commit(elsewhere)


def commit(folder):
    run_git(folder, "add", "-A")
    run_git(folder, "commit", "-qm", "x")
    return folder


def record_state(folder):
    """What a run records of git."""
    return {
        "commit": run_git(folder, "rev-parse", "HEAD"),
        "dirty": bool(run_git(folder, "status", "--porcelain")),
        "diff": run_git(folder, "diff", "HEAD") + "\n",
        "diff_complete": True,
        "untracked": [],
    }


def make_config(**model):
    return {
        "model": {"_target_": "mine.Net"} | model,
        "optimizer": {"_target_": "o", "lr": 0.1},
        "loss": {"_target_": "l"},
    }


def ask(runner, *argv):
    ran = runner("diff", *argv, "--json")
    assert ran.status == 0, ran.err
    return json.loads(ran.out)


# ---- settings


def test_each_setting_that_differs_has_the_place_that_set_it(repository, runner):
    command = ["python", "-m", "runner", "experiment=own"]
    write_run(A, make_config(width=32) | {"name": "own"}, provenance={"command": command})
    write_run(
        B, make_config(width=64) | {"name": "own", "seed": 3}, provenance={"command": [*command, "model.width=64"]}
    )
    found = {one["key"]: one for one in ask(runner, A, B)["config"]}
    assert set(found) == {"model.width", "seed"}
    assert found["model.width"] == {
        "key": "model.width",
        "a": 32,
        "b": 64,
        "place_a": "conf/experiment/own.yaml:5",
        "place_b": "argument `model.width=64`",
        "has_effect": True,
    }
    assert "(default)" in found["seed"]["place_a"]
    assert found["seed"]["place_b"] == f"{B}/config.yaml:1"  # nothing that is recorded says who set it


def test_a_setting_of_a_resume_and_of_a_job_has_its_argument(repository, runner):
    resumed = [{"command": ["python", "-m", "runner", "resume", A, "seed=2"]}]
    write_run(A, make_config(width=32) | {"seed": 2}, provenance={"resumed": resumed})
    sweep = Path("outputs/own/sweep_1")
    write_run(sweep / "0_00000000", make_config(width=8))
    with Ledger(sweep) as ledger:
        ledger.set(base=["experiment=own"])
        ledger.add([JobRecord("0", 0, ["model.width=8"], "0_00000000")])
    found = {one["key"]: one for one in ask(runner, A, "sweep_1:0")["config"]}
    assert found["seed"]["place_a"] == "argument `seed=2` of a resume"
    assert found["model.width"]["place_b"] == "argument `model.width=8`"


def test_a_file_that_has_changed_since_is_not_blamed(repository, runner):
    write_run(A, make_config(width=16), provenance={"command": ["python", "-m", "runner", "experiment=own"]})
    write_run(B, make_config(width=32))
    (found,) = [one for one in ask(runner, A, B)["config"] if one["key"] == "model.width"]
    assert found["place_a"] == f"{A}/config.yaml:1"


def test_what_changes_no_result_is_marked(repository, runner):
    write_run(A, make_config() | {"log": {"every": "10st"}})
    write_run(B, make_config() | {"log": {"every": "20st"}})
    assert [(one["key"], one["has_effect"]) for one in ask(runner, A, B)["config"]] == [("log.every", False)]
    assert "changes no result" in runner("diff", A, B).out


# ---- code


def test_uncommitted_changes_count_and_the_repository_stays_as_it_is(repository, runner):
    first = record_state(repository)
    write_files(repository, {"mine.py": "one\n2\nthree\n"})
    dirty = record_state(repository)
    write_files(repository, {"mine.py": "one\n2\nthree\nfour\n", "new.py": "new\n"})
    third = record_state(commit(repository))
    before = run_git(repository, "count-objects", "-v"), run_git(repository, "status", "--porcelain")
    states = {"a": first, "b": dirty, "c": third}
    for name, state in states.items():
        write_run(f"outputs/own/{name}", make_config(), provenance={"git": state})
    assert "-two\n+2\n" in ask(runner, A, B)["code"]["text"]
    code = ask(runner, B, "outputs/own/c")["code"]
    assert ("+four" in code["text"], "new.py" in code["stat"], "-two" in code["text"]) == (True, True, False)
    assert ask(runner, A, A)["code"]["is_same"] is True
    assert (run_git(repository, "count-objects", "-v"), run_git(repository, "status", "--porcelain")) == before


def test_the_difference_leads_from_one_tree_to_the_other(repository, tmp_path_factory, seed):
    """Applied to the files of A it gives those of B, for states at random."""
    import random

    draw, states, trees = random.Random(seed), [], []
    for _ in range(4):
        for name in ("mine.py", "other.py", "päth with space.py"):
            write_files(repository, {name: "".join(f"{draw.randrange(4)}\n" for _ in range(draw.randrange(1, 9)))})
        commit(repository)
        write_files(repository, {"mine.py": "".join(f"{draw.randrange(4)}\n" for _ in range(5))})
        states.append(record_state(repository))
        trees.append({path.name: path.read_text() for path in repository.glob("*.py")})
    for number in range(3):
        found = compare_code({"git": states[number]}, {"git": states[number + 1]}, repository)
        folder = tmp_path_factory.mktemp("applied")
        write_files(folder, trees[number])
        write_files(folder, {"change.diff": found.text})
        run_git(folder, "init", "-q")
        run_git(folder, "apply", "change.diff")
        assert {path.name: path.read_text() for path in folder.glob("*.py")} == trees[number + 1]
        assert found.notes == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"commit": "0" * 40}, "is not in the repository here"),
        ({"commit": "--output=stolen"}, "without a git commit"),
        ({"commit": None}, "without a git commit"),
        (
            {"diff": "diff --git a/mine.py b/mine.py\n--- a/mine.py\n+++ b/mine.py\n@@ -1 +1 @@\n-no\n+yes\n"},
            "do not apply",
        ),
        ({"diff": "diff --git a/x b/x\n--- /dev/null\n+++ b/../../../x\n@@ -0,0 +1 @@\n+yes\n"}, "do not apply"),
        ({"diff": "diff --git a/m.png b/m.png\nindex 1..2\nBinary files a/m.png and b/m.png differ\n"}, "binary files"),
        ({"diff_complete": False, "diff": "\nx"}, "cut off"),
        ({"untracked": ["new.py"]}, "did not track, whose content is not recorded: new.py"),
        ({"diff": 3, "dirty": True}, ""),
    ],
)
def test_code_that_cannot_be_compared_says_why(repository, change, said):
    state = record_state(repository)
    before = list_files()
    found = compare_code({"git": state}, {"git": state | change}, repository)
    assert said in "\n".join(found.notes)
    assert list_files() == before


def test_without_a_repository_modules_are_compared(elsewhere, runner):
    for name, digest in (("a", "1"), ("b", "2")):
        modules = {"total": digest, "files": {"mine": digest, "same": "0", f"only_{name}": "0"}}
        write_run(f"outputs/own/{name}", make_config(), provenance={"modules": modules, "git": None})
    out = runner("diff", A, B).out
    assert "modules with another source: mine\n" in out
    assert "modules of A alone: only_a\n  modules of B alone: only_b\n" in out
    assert "A was recorded without a git commit" in out


# ---- the rest


def test_packages_hardware_data_and_results_are_compared(elsewhere, runner):
    data = {"train": {"samples": 10, "sha256": "a" * 64}}
    other = {"versions": {"torch": "2.2", "numpy": "1.0"}, "threads": 2, "hardware": {"cpu": "y", "gpus": []}}
    write_run(A, make_config(), make_result(0.5, weights_sha256="1"), FACTS | {"data": data})
    changed = {"train": {"samples": 11, "sha256": "b" * 64}}
    write_run(B, make_config(), make_result(0.75, weights_sha256="2"), other | {"data": changed})
    found = ask(runner, A, B)
    assert [(one["name"], one["was"], one["now"]) for one in found["packages"]] == [("torch", "2.1", "2.2")]
    assert {one["name"] for one in found["hardware"]} == {"cpu", "threads"}
    assert [one["name"] for one in found["data"]] == ["train"]
    assert {one["name"]: one["change"] for one in found["results"]}["val/accuracy"] == 0.25
    assert (found["same_weights"], found["not_known"]["a"]) == (False, ["code"])
    assert "+0.25" in runner("diff", A, B).out


def test_curves_are_drawn_over_each_other(elsewhere, runner):
    for name, slope in (("a", 1), ("b", 2)):
        lines = [json.dumps({"step": step, "train/loss": slope / step, "val/accuracy": "NaN"}) for step in (1, 2, 3)]
        write_files(write_run(f"outputs/own/{name}", make_config()), {"metrics.jsonl": "\n".join([*lines, '{"st'])})
    (file,) = ask(runner, A, B)["files"]
    assert file == "outputs/diff/own_a--own_b/curves.svg"
    picture = Path(file).read_text()
    assert (picture.count("<polyline"), "train/loss" in picture, "val/accuracy" in picture) == (2, True, False)


def test_the_first_step_whose_loss_differs_is_named(elsewhere, runner):
    """By the bits of the traces, of runs and of a record."""
    losses = {"a": [1.0, 0.5, 0.25, 0.125], "b": [1.0, 0.5, 0.25 + 1e-16 + 2**-54, 0.1]}
    lines = {name: [{"step": 4, "loss": pack_losses(values)}] for name, values in losses.items()}
    for name in "ab":
        write_files(write_run(f"outputs/own/{name}", make_config()), {"trace.jsonl": json.dumps(lines[name][0]) + "\n"})
    parts = {"config": make_config(), "result": {}, "provenance": {}, "metrics": [], "trace": lines["a"]}
    write_files(elsewhere, {"a.record.json": json.dumps(parts)})
    assert ask(runner, A, B)["losses"] == {"steps": 4, "first": 3, "largest": pytest.approx(0.2), "largest_at": 4}
    assert ask(runner, A, "a.record.json")["losses"] == {"steps": 4, "first": None, "largest": 0.0, "largest_at": None}
    assert "losses: they differ from step 3 on, by 0.2 of their size at most (step 4)" in runner("diff", A, B).out
    assert "loss of each step" in Path("outputs/diff/own_a--own_b/curves.svg").read_text()


def test_a_record_is_a_side_and_says_what_it_lacks(elsewhere, runner):
    provenance = FACTS | {"command": ["python", "-m", "runner"]}
    record = {"config": make_config(width=3) | {"name": "made"}, "result": make_result(0.5), "provenance": provenance}
    record |= {"metrics": [{"step": 1, "val/accuracy": 0.5}], "trace": []}
    write_files(elsewhere, {"mine.record.json": json.dumps(record), "bad.record.json": '{"config": 3}'})
    write_run(A, make_config(width=4) | {"name": "made"}, make_result(0.5), FACTS)
    found = ask(runner, A, "mine.record.json")
    assert [(one["key"], one["a"], one["b"]) for one in found["config"] if "model" in one["key"]] == [
        ("model.width", 4, 3)
    ]
    assert (found["b"]["kind"], found["packages"]) == ("record", [])
    assert "`result` of bad.record.json is missing" in " ".join(ask(runner, A, "bad.record.json")["b"]["missing"])


def test_an_experiment_is_what_it_would_be_now(elsewhere, runner):
    own = "# @package _global_\ndefaults: [override /model: mlp]\nname: own\noptimizer: {lr: 0.3}\n"
    write_files(elsewhere, {"conf/experiment/own.yaml": own})
    found = ask(runner, "conf/experiment/own.yaml", "experiment=own optimizer.lr=0.4 name=own")
    assert [(one["key"], one["a"], one["place_a"], one["place_b"]) for one in found["config"]] == [
        ("optimizer.lr", 0.3, "conf/experiment/own.yaml:4", "argument `optimizer.lr=0.4`")
    ]
    assert (found["results"], found["b"]["kind"]) == ([], "experiment")
    assert "it has not run" in found["a"]["missing"][0]


def test_a_terminal_is_told_that_an_experiment_loads_torch(elsewhere, runner, monkeypatch):
    write_run(A, make_config(), make_result(0.5), FACTS)
    side = sides.ComparedSide("B", "digits_mlp", "experiment", "experiment")
    monkeypatch.setattr(sides, "sys", SimpleNamespace(modules={}))
    monkeypatch.setattr(sides, "_open_experiment", lambda *_: side)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    said = [runner("diff", *words).err for words in ((A, "digits_mlp"), (A, "digits_mlp", "--json"), (A, A))]

    assert ["Reading the config, loading torch …\n", "", ""] == said


def test_a_damaged_run_tells_what_is_left(elsewhere, runner):
    write_run(A, make_config(), make_result(0.5), FACTS)
    write_files(elsewhere, {f"{B}/config.yaml": "a: [", f"{B}/result.json": "{", f"{B}/provenance.json": "[]"})
    found = ask(runner, A, B)
    assert (found["config"], len(found["b"]["missing"])) == ([], 5)
    assert "config: not known of both" in runner("diff", A, B).out


def test_a_strangers_run_runs_nothing(elsewhere, runner):
    """Neither names of its config nor programs of its provenance; its characters are spelled out."""
    config = {"model": {"_target_": "os.system", "command": "touch stolen"}, "name": "\x1b[2J"}
    git = {"commit": "0" * 40, "diff": "x", "dirty": True, "untracked": ["\x1b[2J"]}
    command = ["python", "-m", "runner", "hydra.searchpath=[file:///]", "+x=${oc.env:HOME}", "--trust", "os"]
    write_run(A, config, {"status": "\x1b[2J"}, {"git": git, "command": command, "versions": {"\x1b[2J": "1"}})
    write_run(B, make_config(), make_result(0.5), {"versions": {"\x1b[2J": "2"}})
    ran = runner("diff", A, B)
    assert (ran.status, "\x1b" in ran.out, "touch stolen" in ran.out, Path("stolen").exists()) == (
        0,
        False,
        True,
        False,
    )
    (Path(B) / "checkpoints").symlink_to("/etc")
    assert runner("diff", A, B).status == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["outputs/own/sweep_1"], "but is the folder of a sweep"),
        (["sweep_1:0-1"], "must name one job, and names 2"),
        (["outputs/own/c"], "did you mean `outputs/own/a`?"),
        (["seed == 3"], "there is none of that name"),
    ],
)
def test_a_wrong_word_is_refused(elsewhere, runner, words, said):
    write_run(A, make_config())
    for number in range(2):
        write_run(f"outputs/own/sweep_1/{number}_0000000{number}", make_config())
    Ledger(elsewhere / "outputs/own/sweep_1").close()
    ran = runner("diff", A, *words)
    assert (ran.status, said in ran.err) == (2, True), ran.err
