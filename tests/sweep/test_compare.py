"""`compare`: two groups of runs, paired by seed where seeds match, and the exit status that decides."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from runner.sweep.ledger import JobRecord, Ledger
from runner.sweep.report.comparison import compare_numbers
from tests.support import make_result, write_run


def write_group(name, values, seeds=None, **config):
    """A run for each value, below `outputs/<name>`."""
    for number, value in enumerate(values):
        seed = number if seeds is None else seeds[number]
        result = make_result(value, weights_sha256=f"{name}{number}")
        write_run(f"outputs/{name}/r{number}", {"name": name, "seed": seed} | config, result)


def ask(runner, *argv):
    ran = runner("compare", *argv, "--json")
    assert ran.status in (0, 1), ran.err
    said = json.loads(ran.out)
    assert said["better"] == (ran.status == 0)
    return said


A, B = "name == a", "name == b"


def test_intervals_and_p_values_are_those_of_scipy(seed):
    generator = np.random.default_rng(seed)
    for number in range(50):
        n, m = (int(size) for size in generator.integers(2, 12, 2))
        paired = bool(number % 2)
        m = n if paired else m
        a = generator.normal(0.5, 10.0 ** generator.integers(-3, 3), n)
        b = generator.normal(0.6, 10.0 ** generator.integers(-3, 3), m)
        found = compare_numbers(list(a), list(b), paired=paired, alpha=0.01)
        right = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
        interval = right.confidence_interval(0.95)
        assert found.p == pytest.approx(right.pvalue, rel=1e-12)
        assert found.interval == pytest.approx((interval.low, interval.high), rel=1e-12)
        assert found.difference == pytest.approx(a.mean() - b.mean(), rel=1e-9)


@pytest.mark.parametrize("paired", [True, False])
def test_equal_distributions_are_seldom_called_better(seed, paired):
    generator = np.random.default_rng(seed + paired)
    draws = generator.normal(0.9, 0.01, (1_000, 2, 5))
    said = [compare_numbers(list(a), list(b), paired=paired, alpha=0.01).is_better(1) for a, b in draws]
    assert sum(said) <= 15


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("difference", [0.3, 1.0, 3.0])
def test_the_seeds_that_are_needed_show_the_difference_four_times_in_five(seed, paired, difference):
    """By simulation with the number that is named, and not with one seed less."""
    generator = np.random.default_rng(seed)
    pattern = np.array([-1.0, 1.0]) / math.sqrt(2)  # of standard deviation 1
    noise = [list(difference + pattern), [0.0, 0.0]] if paired else [list(difference + pattern), list(pattern)]
    needed = compare_numbers(*noise, paired=paired, alpha=0.01).needed
    shares = []
    for n in (needed, needed - 1):
        a = generator.normal(difference, 1, (4_000, n))
        test = stats.ttest_1samp(a, 0, axis=1) if paired else None
        test = test or stats.ttest_ind(a, generator.normal(0, 1, (4_000, n)), axis=1, equal_var=False)
        shares.append(float(np.mean((test.pvalue < 0.01) & (test.statistic > 0))))
    assert shares[0] > 0.78
    assert shares[1] < 0.82


def test_groups_with_the_same_seeds_are_paired(elsewhere, runner):
    a, b = [0.91, 0.93, 0.95, 0.94], [0.90, 0.92, 0.938, 0.931]
    write_group("a", a)
    write_group("b", b)
    said = ask(runner, A, B)
    right = stats.ttest_rel(a, b)
    assert (said["test"], said["seeds"], said["metric"], said["mode"]) == (
        "paired",
        [0, 1, 2, 3],
        "val/accuracy",
        "max",
    )
    assert said["p"] == pytest.approx(right.pvalue)
    assert said["better"] is bool(right.pvalue < 0.01)
    assert ask(runner, A, B, "--unpaired")["p"] == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)


def test_seeds_without_a_partner_are_left_out_and_named(elsewhere, runner):
    write_group("a", [0.9, 0.8, 0.7], [1, 2, 3])
    write_group("b", [0.5, 0.45, 0.1], [2, 1, 7])
    said = ask(runner, A, B)
    assert (said["seeds"], said["difference"]) == ([1, 2], pytest.approx(0.375))
    assert said["b"]["left_out"] == [{"path": "outputs/b/r2", "reason": "no run of the other group has its seed, 7"}]


@pytest.mark.parametrize(
    ("seeds", "why"),
    [
        ([5, 6, 7], "not paired: no seed in both"),
        ([0, 6, 7], "not paired: 1 seed in both"),
        ([0, 0, 1], "of B have the seed 0"),
    ],
)
def test_other_groups_are_not_paired(elsewhere, runner, seeds, why):
    write_group("a", [0.9, 0.8, 0.7])
    write_group("b", [0.5, 0.4, 0.3], seeds)
    said = ask(runner, A, B)
    assert said["test"] == "welch"
    assert why in said["paired"]


def test_a_folder_is_the_group_of_the_runs_below_it(elsewhere, runner):
    write_group("a", [0.9, 0.8])
    write_group("b", [0.5, 0.4])
    assert ask(runner, "outputs/a", "outputs/b/")["difference"] == pytest.approx(0.4)
    assert ask(runner, A, " or ".join([B] * 40))["difference"] == pytest.approx(0.4)


@pytest.mark.parametrize(("p", "status"), [("0.05", 0), ("0.0001", 1)])
def test_the_exit_status_decides_at_p(elsewhere, runner, p, status):
    write_group("a", [0.91, 0.93, 0.95, 0.94], [10, 11, 12, 13])
    write_group("b", [0.80, 0.84, 0.88, 0.79])
    ran = runner("compare", A, B, "--p", p)
    assert (ran.status, ("A is better" in ran.out.splitlines()[-1])) == (status, status == 0)
    assert runner("compare", B, A, "--p", p).status == 1
    assert ("A is worse (p < 0.05)" in runner("compare", B, A, "--p", "0.05").out) is True


def test_less_of_a_loss_is_better(elsewhere, runner):
    for name, loss in (("a", 0.1), ("b", 0.9)):
        for number in range(4):
            result = make_result(0.5, metrics={"val/loss": loss + number / 100, "val/accuracy": 0.5})
            write_run(f"outputs/{name}/r{number}", {"name": name, "seed": number}, result)
    assert (ask(runner, A, B, "--metric", "val/loss")["mode"], ask(runner, A, B, "--metric", "val/loss")["better"]) == (
        "min",
        True,
    )
    assert ask(runner, A, B, "--metric", "val/loss", "--mode", "max")["better"] is False


def test_runs_that_did_not_complete_do_not_count_and_are_named(elsewhere, runner):
    write_group("a", [0.9, 0.8, "NaN"])
    write_run("outputs/a/bad", {"name": "a", "seed": 9}, make_result(None, "failed", cause="memory"))
    write_run("outputs/a/none", {"name": "a", "seed": 8}, {"status": "completed", "metrics": {}, "objective": None})
    write_group("b", [0.7, 0.6])
    left_out = {one["path"].removeprefix("outputs/a/"): one["reason"] for one in ask(runner, A, B)["a"]["left_out"]}
    assert left_out == {"bad": "failed (memory)", "none": "has no val/accuracy", "r2": "its val/accuracy is nan"}


def test_the_same_experiment_twice_counts_once(elsewhere, runner):
    """Copies with one seed have no noise between them, and would make everything better."""
    for number in range(5):
        write_run(f"outputs/a/r{number}", {"name": "a"}, make_result(0.9, weights_sha256="same"))
    write_group("b", [0.1, 0.2, 0.15])
    said = ask(runner, A, B)
    assert (said["better"], said["a"]["mean"]["n"], len(said["a"]["left_out"])) == (False, 1, 4)


@pytest.mark.parametrize(
    ("a", "b", "p", "better"),
    [
        ([0.9], [0.1], None, False),
        ([0.9], [0.1, 0.2, 0.3], None, False),
        ([0.9] * 3, [0.1] * 3, 0.0, True),
        ([0.9] * 3, [0.9] * 3, 1.0, False),
    ],
)
def test_one_run_and_no_noise_are_no_crash(elsewhere, runner, a, b, p, better):
    write_group("a", a)
    write_group("b", b, range(100, 100 + len(b)))
    said = ask(runner, A, B)
    assert (said["p"], said["better"]) == (p, better)
    assert runner("compare", A, B).status == (0 if better else 1)


def test_a_group_of_failures_is_not_better(elsewhere, runner):
    write_run("outputs/a/bad", {"name": "a"}, make_result(None, "failed"))
    write_group("b", [0.7, 0.6])
    ran = runner("compare", A, B)
    assert (ran.status, ran.out.splitlines()[-1]) == (1, "A is not shown to be better: a group has no run that counts")


def test_sweeps_jobs_with_their_replicates_and_runs_are_groups(elsewhere, runner):
    with_ids = {}
    for number in range(6):
        path = f"{number}_0000000{number}"
        write_run(f"outputs/s/sweep_1/{path}", {"seed": number % 3}, make_result(0.5 + number / 10))
        with_ids[path] = JobRecord(path, number, [], path, replicate_of=str(number // 3), status="completed")
    with Ledger(elsewhere / "outputs/s/sweep_1") as ledger:
        ledger.add(with_ids.values())
    said = ask(runner, "sweep_1:4", "sweep_1:0")
    assert [run["path"][-10:] for run in said["a"]["runs"]] == ["3_00000003", "4_00000004", "5_00000005"]
    assert said["difference"] == pytest.approx(0.3)
    one = ask(runner, "sweep_1:4-4", "outputs/s/sweep_1/0_00000000")
    assert (len(one["a"]["runs"]), len(one["b"]["runs"])) == (1, 1)
    write_group("b", [0.1, 0.2, 0.15])
    whole = ask(runner, "sweep_1", B)
    assert ([run["seed"] for run in whole["a"]["runs"]], "several runs of A" in whole["paired"]) == (
        [0, 1, 2] * 2,
        True,
    )


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([A, A], "both have the run"),
        ([A, "name == c"], "B names no run"),
        ([A, "nope"], "and there is none of that name"),
        ([A], "B is missing"),
        ([A, B, "--metric", "val/acuracy"], "did you mean `val/accuracy`?"),
        ([A, B, "--p", "2"], "must be a number between 0 and 1"),
        ([A, "name == other"], "have different objectives (val/accuracy, val/loss)"),
    ],
)
def test_a_wrong_request_is_refused(elsewhere, runner, argv, said):
    write_group("a", [0.9, 0.8])
    write_group("b", [0.5, 0.4])
    write_group("other", [0.5, 0.4], train={"objective": "val/loss", "mode": "min"})
    ran = runner("compare", *argv)
    assert (ran.status, said in ran.err) == (2, True), ran.err


def test_settings_beside_the_seed_are_said(elsewhere, runner):
    write_group("a", [0.9, 0.8])
    write_run("outputs/a/r1", {"name": "a", "seed": 1, "optimizer": {"lr": 3}}, make_result(0.8))
    write_group("b", [0.5, 0.4])
    assert ask(runner, A, B)["a"]["notes"] == ["its runs differ in optimizer.lr, not in the seed alone"]
    assert "its runs differ in optimizer.lr" in runner("compare", A, B).out
