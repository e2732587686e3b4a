"""`rm` and `archive`: what goes, what stays and why, and that an interruption leaves whole runs."""

import json
import shutil
from pathlib import Path

import pytest

from runner.core.errors import RunError
from runner.core.lock import Lock
from runner.sweep.ledger import JobRecord, Ledger
from runner.sweep.runs import archiving, removal
from tests.support import fail_from, list_files, make_result, make_state, read_result, write_files, write_run

ROOT = Path("outputs")
SWEEP = ROOT / "s/sweep_1"


@pytest.fixture
def runs(elsewhere):
    """Two failed runs, a completed one, and a sweep of two jobs."""
    for name in ("f0", "f1"):
        write_run(ROOT / f"a/{name}", {}, make_result(None, "failed"))
    write_run(ROOT / "a/good", {}, make_result(0.9))
    for number in range(2):
        write_run(SWEEP / f"{number}_0000000{number}", {"seed": number}, make_result(0.5))
    with Ledger(SWEEP) as ledger:
        ledger.add([JobRecord(f"{n}", n, [], f"{n}_0000000{n}", status="completed") for n in range(2)])
    return elsewhere


def find_left():
    return sorted(str(path.parent.relative_to(ROOT)) for path in ROOT.rglob("config.yaml"))


def ask(runner, *argv):
    ran = runner(*argv, "--json")
    return ran.status, json.loads(ran.out)


ALL = ["a/f0", "a/f1", "a/good", "s/sweep_1/0_00000000", "s/sweep_1/1_00000001"]


def test_without_yes_it_only_tells(runs, runner):
    before = list_files()
    ran = runner("rm", "status == failed")
    assert (ran.status, find_left()) == (0, ALL)
    assert ran.out.splitlines()[-1].startswith("2 runs, ")
    assert ran.out.endswith("would be removed: again with --yes to do it\n")
    assert list_files() - before == {"outputs/.index.sqlite"}


def test_with_yes_the_selected_runs_are_gone(runs, runner):
    status, said = ask(runner, "rm", "status == failed", "--yes")
    assert (status, said["done"], said["runs"]) == (0, True, ["outputs/a/f0", "outputs/a/f1"])
    assert find_left() == ["a/good", *ALL[3:]]
    assert said["bytes"] > 100
    assert runner("rm", "outputs/a/good", "--yes").out.splitlines()[-1].endswith("removed")
    assert not (ROOT / "a").exists()  # it held nothing any more


def test_a_run_in_progress_stays(runs, runner):
    with Lock(ROOT / "a/f0"):
        status, said = ask(runner, "rm", "status == failed or status == running", "--yes")
        assert (status, [one["reason"] for one in said["kept"]]) == (0, ["it is in progress"])
        named = runner("rm", "outputs/a/f0", "--yes")
    assert find_left() == ["a/f0", "a/good", *ALL[3:]]
    assert (named.status, "must stay: it is in progress" in named.err) == (2, True)


def test_a_run_that_begins_between_plan_and_removal_stays(runs):
    plan = removal.plan_removal(["status == failed"])
    with Lock(ROOT / "a/f0"):
        gone = removal.remove_planned(plan)
    assert [row.path for row in gone] == ["outputs/a/f1"]
    assert "must not be in progress" in plan.failed[0]


def test_what_a_sweep_needs_stays_without_force(runs, runner):
    status, said = ask(runner, "rm", "seed == 1", "--yes")
    assert (status, said["runs"], find_left()) == (0, [], ALL)
    assert said["kept"][0]["reason"] == "the ledger of outputs/s/sweep_1 needs it"
    named = runner("rm", str(SWEEP / "1_00000001"), "--yes")
    assert (named.status, "`--force` takes it all the same" in named.err) == (2, True)
    assert ask(runner, "rm", "seed == 1", "--yes", "--force")[1]["runs"] == ["outputs/s/sweep_1/1_00000001"]


def test_a_sweep_that_is_named_goes_as_a_whole(runs, runner):
    status, said = ask(runner, "rm", str(SWEEP), "--yes")
    assert (status, said["sweeps"], len(said["runs"])) == (0, [str(SWEEP)], 2)
    assert (find_left(), (ROOT / "s").exists()) == (ALL[:3], False)


def test_a_sweep_in_progress_stays_with_all_its_jobs(runs, runner):
    with Lock(SWEEP):
        said = ask(runner, "rm", "outputs", "--yes", "--force")[1]
    assert {one["reason"] for one in said["kept"]} == {"its sweep outputs/s/sweep_1 is in progress"}
    assert (find_left(), said["sweeps"]) == (ALL[3:], [])


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"pretrained": {"path": "outputs/a/f0"}}, "pretrained.path"),
        ({"pretrained": {"path": "outputs/a/../a/f0/checkpoints/best.pt"}}, "pretrained.path"),
        ({"pretrained": {"path": "weights/link.pt"}}, "pretrained.path"),
        ({"model": {"teacher": ["x", "./outputs/a/f0/best.pt"]}}, "model.teacher"),
        ({"run": "outputs/a/f0"}, "run"),
    ],
)
def test_what_another_run_needs_stays_without_force(runs, runner, config, key):
    write_files(runs, {"outputs/a/f0/checkpoints/best.pt": ""})
    (runs / "weights").mkdir()
    (runs / "weights/link.pt").symlink_to(runs / "outputs/a/f0/checkpoints/best.pt")
    write_run(ROOT / "b/heir", config, make_result(0.9))
    said = ask(runner, "rm", "status == failed", "--yes")[1]
    assert [(one["path"], one["reason"]) for one in said["kept"]] == [
        ("outputs/a/f0", f"{key} of outputs/b/heir needs it")
    ]
    assert find_left()[:2] == ["a/f0", "a/good"]
    both = ask(runner, "rm", "path ~ 'outputs/(a/f0|b/heir)'", "--yes")[1]
    assert both["runs"] == ["outputs/a/f0", "outputs/b/heir"]  # nobody who stays needs it


def test_a_run_that_stays_keeps_what_it_needs_itself(runs, runner):
    write_run(ROOT / "b/heir", {"pretrained": {"path": "outputs/a/f0"}}, make_result(None, "failed"))
    write_files(runs, {"conf/experiment/next.yaml": "pretrained:\n  path: outputs/b/heir/checkpoints/best.pt\n"})
    said = ask(runner, "rm", "status == failed", "--yes")[1]
    assert said["runs"] == ["outputs/a/f1"]
    assert [one["needs"][0]["by"] for one in said["kept"]] == ["conf/experiment/next.yaml", "outputs/b/heir"]


def test_what_a_job_asks_for_that_has_not_begun_stays(runs, runner):
    with Ledger(SWEEP) as ledger:
        ledger.add([JobRecord("9", 9, ["pretrained.path='outputs/a/f0/checkpoints/best.pt'"], "9_00000009")])
        ledger.set(base=["model.teacher=outputs/a/f1"])
    said = ask(runner, "rm", "status == failed", "--yes")[1]
    assert [one["reason"] for one in said["kept"]] == [
        f"pretrained.path of the jobs of {SWEEP} needs it",
        f"model.teacher of the jobs of {SWEEP} needs it",
    ]
    both = ask(runner, "rm", "outputs/a", str(SWEEP), "--yes")[1]
    assert (both["kept"], both["sweeps"]) == ([], [str(SWEEP)])


def test_a_run_or_a_sweep_goes_by_its_name(runs, runner):
    write_run(ROOT / "b/2026-01-01_00-00-00_abcdef")
    assert ask(runner, "rm", "2026-01-01_00-00-00_abcdef", "--yes")[1]["runs"] == [
        "outputs/b/2026-01-01_00-00-00_abcdef"
    ]
    assert ask(runner, "rm", "sweep_1", "--yes")[1]["sweeps"] == [str(SWEEP)]
    assert runner("rm", "2026-01-01_00-00-00_abcdef", "--yes").status == 2  # it is gone


def test_no_link_is_followed(runs, runner):
    write_files(runs, {"precious/file": "mine", "precious/.lock": ""})
    (ROOT / "a/f0/tb").symlink_to(runs / "precious")
    (ROOT / "a/f0/.lock").symlink_to(runs / "precious/.lock")
    (ROOT / "a/linked").symlink_to(ROOT.absolute() / "a/good")
    said = ask(runner, "rm", "status == failed or status == damaged", "--yes")[1]
    assert said["runs"] == ["outputs/a/f0", "outputs/a/f1"]
    assert (runs / "precious/file").read_text() == "mine"
    assert (ROOT / "a/good/config.yaml").exists()


def test_an_interrupted_removal_leaves_nothing_half(runs, runner, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        assert runner("rm", "status == failed", "--yes").status == 130
    assert find_left()[:3] == ["a/.removed_f0_" + find_left()[0][-12:-4] + ".tmp", "a/f1", "a/good"]
    assert [run["path"] for run in ask(runner, "ls", "outputs/a")[1]["runs"]] == ["outputs/a/f1", "outputs/a/good"]
    ask(runner, "rm", "path == outputs/a/f1", "--yes")
    assert find_left() == ["a/good", *ALL[3:]]


def test_what_cannot_be_removed_is_said(runs, runner, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    status, said = ask(runner, "rm", "status == failed", "--yes")
    assert (status, "cannot be removed: Permission denied" in said["failed"][0]) == (1, True)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "needs a filter, a run or a folder"),
        (["statsu == failed"], "did you mean `status`?"),
        (["nope/x"], "neither"),
    ],
)
@pytest.mark.parametrize("verb", ["rm", "archive"])
def test_a_wrong_line_is_refused(runs, runner, verb, argv, said):
    ran = runner(verb, *argv, "--yes")
    assert (ran.status, said in ran.err, find_left()) == (2, True, ALL)


# ---- archive


def save_checkpoints(folder, metrics, keep=9):
    from runner.train.checkpoint import Checkpoints

    checkpoints = Checkpoints(folder / "checkpoints", keep=keep, mode="max")
    for step, metric in enumerate(metrics, 1):
        checkpoints.save(make_state(step), step, metric)
    write_files(
        folder, {"tb/events": "x" * 100, "profile/trace": "x", "mine.txt": "mine", "trace.jsonl": "", "log.txt": ""}
    )
    return folder


def list_checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_config_metrics_record_and_best_checkpoint_stay(runs, runner):

    folder = save_checkpoints(ROOT / "a/good", [0.2, 0.9, 0.5])
    write_files(folder, {"metrics.jsonl": "{}", "provenance.json": "{}", ".hydra/config.yaml": ""})
    told = runner("archive", "outputs/a/good").out
    assert (len(list_checkpoints(folder)), "would be archived" in told) == (6, True)
    status, said = ask(runner, "archive", "objective > 0.8", "--yes")
    assert (status, said["runs"][0]["checkpoints"]) == (0, ["step_00000002.pt"])
    assert list_checkpoints(folder) == ["best.pt", "manifest.json", "step_00000002.pt"]
    kept = ["config.yaml", "log.txt", "metrics.jsonl", "mine.txt", "provenance.json", "result.json", "trace.jsonl"]
    assert sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != ".lock") == kept


def test_an_archived_run_says_so_and_has_its_age(runs, runner):
    from runner.train.checkpoint import Checkpoints

    folder = save_checkpoints(ROOT / "a/good", [0.2, 0.9, 0.5])
    before = (folder / "result.json").stat().st_mtime_ns
    ask(runner, "archive", "objective > 0.8", "--yes")
    checkpoints = Checkpoints(folder / "checkpoints", mode="max")
    assert checkpoints.load("best")["progress"]["step"] == 2
    with pytest.raises(
        RunError, match=r"has removed the last checkpoint of .* that of step 3; the best one, of step 2"
    ):
        checkpoints.load("last")
    assert read_result(folder)["archived"]["checkpoints"] == ["step_00000002.pt"]
    assert (folder / "result.json").stat().st_mtime_ns == before
    assert ask(runner, "archive", "objective > 0.8", "--yes")[1]["runs"] == []  # there is nothing left to drop


def test_the_last_checkpoint_of_a_run_that_can_be_resumed_stays(runs, runner):
    from runner.train.checkpoint import Checkpoints

    folder = save_checkpoints(ROOT / "a/f0", [0.2, 0.9, 0.5])
    ask(runner, "archive", "status == failed", "--yes")
    assert list_checkpoints(folder) == ["best.pt", "last.pt", "manifest.json", "step_00000002.pt", "step_00000003.pt"]
    assert Checkpoints(folder / "checkpoints", mode="max").load("last")["progress"]["step"] == 3


def test_a_checkpoint_that_is_not_whole_lets_nothing_go(runs, runner):
    folder = save_checkpoints(ROOT / "a/good", [0.9, 0.5])
    with (folder / "checkpoints/step_00000001.pt").open("r+b") as file:
        file.write(b"x")
    status, said = ask(runner, "archive", "outputs/a/good", "--yes")
    assert (status, "is damaged" in said["failed"][0], len(list_checkpoints(folder))) == (1, True, 5)
    (folder / "checkpoints/manifest.json").unlink()
    ran = runner("archive", "outputs/a/good", "--yes")
    assert (ran.status, "manifest of its checkpoints is missing" in ran.err) == (2, True)


def test_a_checkpoint_that_another_run_names_stays(runs, runner):
    folder = save_checkpoints(ROOT / "a/good", [0.2, 0.9, 0.5])
    heir = write_run(ROOT / "b/heir", {"pretrained": {"path": f"{folder}/last.pt"}}, make_result(0.1))
    said = ask(runner, "archive", "path ~ '.*good'", "--yes")[1]
    assert said["kept"][0]["reason"] == "pretrained.path of outputs/b/heir needs its last.pt"
    write_run(heir, {"pretrained": {"path": f"{folder}/checkpoints/best.pt"}}, make_result(0.1))
    assert ask(runner, "archive", "path ~ '.*good'", "--yes")[1]["kept"] == []


@pytest.mark.parametrize("number", range(1, 7))
def test_an_archive_that_is_cut_off_anywhere_is_a_whole_run(runs, monkeypatch, number):
    """At each rename, removal and write."""
    from runner.core import files
    from runner.train.checkpoint import Checkpoints

    folder = save_checkpoints(ROOT / "a/good", [0.2, 0.9, 0.5])
    calls = [(Path, "rename"), (Path, "replace"), (Path, "unlink"), (shutil, "rmtree"), (files, "sync_folder")]
    plan = archiving.plan_archive(["outputs/a/good"])
    with monkeypatch.context() as patch:
        fail_from(patch, number, KeyboardInterrupt, calls)
        with pytest.raises(KeyboardInterrupt):
            archiving.keep_planned(plan)
    assert Checkpoints(folder / "checkpoints", mode="max").load("best")["progress"]["step"] == 2
    archiving.keep_planned(archiving.plan_archive(["outputs/a/good"]))
    assert list_checkpoints(folder) == ["best.pt", "manifest.json", "step_00000002.pt"]
    assert not (folder / "tb").exists()


def test_an_archived_run_is_evaluated_and_not_resumed(runner):
    folder = runner("experiment=digits_mlp", "train.duration=3ep", "train.objective=val/loss", "train.mode=max").folder
    before = json.loads(runner("evaluate", str(folder), "--checkpoint", "best", "--json").out)
    assert before["step"] < read_result(folder)["steps"]  # the loss falls, and its greatest is called the best here
    assert runner("archive", str(folder), "--yes").status == 0
    assert json.loads(runner("evaluate", str(folder), "--checkpoint", "best", "--json").out) == before
    last = runner("evaluate", str(folder))
    assert (last.status, "`--checkpoint best`" in last.err) == (1, True)
    again = runner("resume", str(folder), "train.duration=4ep", "--schedule", "constant")
    assert (again.status, "has removed the last checkpoint" in again.err) == (1, True), again
