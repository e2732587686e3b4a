"""K-fold cross-validation in one line: a job a fold, their mean, and the recipe without a fold."""

import json
import statistics

import pytest

from tests.experiment.scripts.harness import QUIET, call, find_results, install
from tests.support import read_result


@pytest.mark.exhaustive
def test_a_sweep_over_folds_gives_their_mean_and_a_recipe_for_all_of_them(tmp_path, capsys):
    with install("kfold", tmp_path):
        statuses = [call(["-m", "experiment=kfold", *QUIET, "dataset.fold=range(0,3)", "optimizer.lr=0.0001,0.1"])]
        (sweep,) = tmp_path.glob("outputs/*/*")
        capsys.readouterr()
        statuses.append(call(["report", str(sweep), "--json"]))
        best, _ = json.loads(capsys.readouterr().out)["entries"]
        results = [result["metrics"]["val/accuracy"] for result in find_results(sweep)]
        statuses.append(call(["promote", str(sweep), "--name", "found"]))
        before = set(tmp_path.glob("outputs/*/*"))
        statuses.append(call(["experiment=found", *QUIET]))
        (folder,) = set(tmp_path.glob("outputs/*/*")) - before
    assert statuses == [0] * 4
    assert (best["n"], best["values"]) == (3, {"optimizer.lr": 0.1})
    assert best["objective"] == pytest.approx(statistics.mean(results[number] for number in best["jobs"]))
    assert read_result(folder)["steps"] == 24
