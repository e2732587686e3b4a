"""Importances of a sweep's settings by Optuna's PED-ANOVA, computed by a process of its own.

Optuna imports scikit-learn for another evaluator, where it is there: a second that the process leaves out.
"""

import contextlib
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from runner.core.paths import BOOTSTRAP, encode_child_path
from runner.sweep.report.html.columns import ReportColumn

FEWEST = 20  # finished jobs: the evaluator compares the best tenth with all


SECONDS = 60


SAID = (
    "PED-ANOVA of Optuna (S. Watanabe, A. Bansal, F. Hutter, IJCAI 2023): how much the best tenth of the jobs differs "
    "from all of them in each setting"
)


class PendingImportances:
    """Importances that a process computes while the report is made; None of it where it cannot.

    Args:
        columns: settings that differ.
        values: the objective of each run; None where it has none.
        sign: 1 where more is better, else -1.
    """

    def __init__(self, columns: Sequence[ReportColumn], values: Sequence[float | None], sign: int) -> None:
        done = [number for number, value in enumerate(values) if value is not None]
        self.why = ""
        self._process: subprocess.Popen[str] | None = None
        if not columns:
            self.why = "no setting differs"
        elif len(done) < FEWEST:
            self.why = f"they need at least {FEWEST} finished runs, and there are {len(done)}"
        elif find_spec("optuna") is None:
            self.why = "they need Optuna: pip install 'yaml-experiment-runner[optuna]'"
        if self.why:
            return
        question = {
            "values": [values[number] for number in done],
            "settings": {c.name: [c.values[number] for number in done] for c in columns},
            "sign": sign,
        }
        command = [sys.executable, "-c", f"{BOOTSTRAP}from {__name__} import main; main()", encode_child_path()]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)  # noqa: S603  this file
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has failed: its last line says why
            self._process.stdin.write(json.dumps(question))
            self._process.stdin.close()
        self._process.stdin = None

    def collect(self) -> dict[str, Any]:
        """Wait for the importances: `{"values": [[name, share], …], "said": …}`, or `{"why": …}` without them."""
        if self._process is None:
            return {"why": self.why}
        try:
            out, err = self._process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return {"why": f"Optuna took more than {SECONDS} s"}
        if self._process.returncode:
            return {"why": f"Optuna failed: {(err.strip().splitlines() or ['without a word'])[-1][:300]}"}
        return {"values": json.loads(out), "said": SAID}


def main() -> None:
    """Read values and settings from standard input, and write the importances to standard output."""
    modules: dict[str, Any] = sys.modules
    modules.setdefault("sklearn", None)  # for Optuna it is not installed
    question = json.load(sys.stdin)
    sys.stdout.write(json.dumps(compute_importances(question["settings"], question["values"], question["sign"])))


def compute_importances(settings: dict[str, list[Any]], values: list[float], sign: int) -> list[tuple[str, float]]:
    """Compute the share of each setting in what makes the best runs, the greatest first."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {name: _make_distribution(given) for name, given in settings.items()}
    study = optuna.create_study(direction="maximize" if sign > 0 else "minimize")
    for number, value in enumerate(values):
        params = {
            name: given[number] if _is_number(distributions[name]) else str(given[number])
            for name, given in settings.items()
        }
        trial = optuna.trial.create_trial(params=params, distributions=distributions, value=value)
        study.add_trial(trial)
    found = optuna.importance.get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return [(name, round(share, 4)) for name, share in found.items()]


def _make_distribution(given: Sequence[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if all(isinstance(value, int | float) and math.isfinite(value) for value in given):
        low, high = min(given), max(given)
        if low < high:
            return FloatDistribution(low, high, log=low > 0 and high / low >= 30)
    return CategoricalDistribution(sorted({str(value) for value in given}))


def _is_number(distribution: Any) -> bool:
    return hasattr(distribution, "low")
