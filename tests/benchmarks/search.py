"""How many training steps a search with pruning needs to reach what random search reaches, on the default experiment.

usage: python -m tests.benchmarks.search [--seeds N] [--points N]
Both choose from the space of `conf/sweep/optuna_asha.yaml`, one job after another, by the accuracy on the validation
set. Random search trains each of its points to the end; what Optuna with ASHA trains is counted up to the end of the
first job that is at least as good as the best of those.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from runner.sweep.ledger import JobRecord, Ledger

ROOT = Path(__file__).parents[2]
COMMON = ("-m", "sweep=optuna_asha", "sweep.slots=1", "log=quiet")
RANDOM = ("sweep.search.sampler={_target_: optuna.samplers.RandomSampler}", "sweep.search.pruner=null")


def sweep(folder: Path, *arguments: str) -> list[tuple[JobRecord, int]]:
    """Each job of a sweep that is run in `folder`, in the order in which they ended, with its steps of training."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "runner", *COMMON, *arguments]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    (place,) = folder.glob("outputs/*/*")
    with Ledger(place, read_only=True) as ledger:
        rows = sorted((row for row in ledger.jobs() if row.end is not None), key=lambda row: row.end or 0.0)
    return [(row, json.loads((place / row.path / "result.json").read_text())["steps"]) for row in rows]


def measure(folder: Path, seed: int, points: int) -> dict[str, Any]:
    """Best objective and steps of random search; steps until Optuna with ASHA has it too."""
    own = f"sweep.search.sampler.seed={seed}"
    random = sweep(_made(folder / f"random_{seed}"), *RANDOM, f"+{own}", f"sweep.search.trials={points}")
    best = max(row.objective or 0.0 for row, _ in random)
    total = sum(steps for _, steps in random)
    place, trials, spent, reached = _made(folder / f"asha_{seed}"), points, 0, None
    while reached is None and spent < total:
        spent = 0
        for row, steps in sweep(place, f"+{own}", f"sweep.search.trials={trials}"):
            spent += steps
            if row.status == "completed" and (row.objective or 0.0) >= best:
                reached = (spent, row.objective)
                break
        trials += points
    return {"seed": seed, "best": best, "steps": total, "reached": reached}


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--points", type=int, default=20)
    arguments = parser.parse_args()
    print(f"seed  best of {arguments.points} random points  TPE with ASHA: steps until as good, value, share")
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1, arguments.seeds + 1):
            row = measure(Path(folder), seed, arguments.points)
            found = row["reached"]
            shares.append(found[0] / row["steps"] if found else float("inf"))
            told = f"{found[0]:>8,}  {found[1]:.6f}  {shares[-1]:.0%}" if found else "   not with as many steps"
            print(f"{seed:>4}  {row['best']:.6f} in {row['steps']:,} steps  {told}", flush=True)
    print(f"median share of steps: {statistics.median(shares):.0%} (wanted: at most 50%)")


if __name__ == "__main__":
    main()
