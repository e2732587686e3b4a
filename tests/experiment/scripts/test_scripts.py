"""Each training script moved to YAML: the loop's losses, the same end after a stop, a sweep, and how long it is."""

import statistics

import pytest

from tests.experiment.scripts.harness import (
    NAMES,
    QUIET,
    call,
    count_both,
    find_results,
    half,
    install,
    read_losses,
)
from tests.support import read_result


@pytest.mark.parametrize("name", NAMES)
def test_its_losses_are_those_of_the_plain_script_and_a_stop_changes_none(name, tmp_path, monkeypatch):
    with install(name, tmp_path) as script:
        whole = script.run()
        script.check_losses(whole)
        stopped = script.stop(half(whole), monkeypatch)
        script.resume(stopped)

    assert read_losses(whole) == read_losses(stopped)
    assert read_result(whole)["weights_sha256"] == read_result(stopped)["weights_sha256"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
def test_two_points_of_it_are_a_sweep(name, tmp_path):
    with install(name, tmp_path) as script:
        axis = getattr(script.loop, "SWEEP", "seed=0,1")
        assert call(["-m", f"experiment={name}", *QUIET, *script.overrides, axis, "sweep.slots=2"]) == 0
    results = find_results(tmp_path / "outputs")

    assert ["completed"] * 2 == [result["status"] for result in results]
    assert len({result["weights_sha256"] for result in results}) == 2


def test_half_of_them_are_shorter_than_a_third_of_the_plain_script():
    shares = {name: ours / plain for name, (ours, plain) in ((name, count_both(name)) for name in NAMES)}
    assert statistics.median(shares.values()) < 1 / 3, shares
