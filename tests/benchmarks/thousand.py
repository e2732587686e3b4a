"""A sweep of 1,000 points: trained as one, in slots, and by Hydra's basic launcher.

usage: python -m tests.benchmarks.thousand [--seeds 10] [--ways stacks slots hydra]
Learning rate x weight decay x seeds of the digits MLP, 20 epochs each, with the report. Wall time of the whole command.
Hydra's launcher runs jobs one after the other in one process: 20 of them, less what one takes, extrapolated.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
RATES = "0.01,0.02,0.03,0.05,0.07,0.1,0.15,0.2,0.3,0.5"
DECAYS = "0,0.00001,0.00003,0.0001,0.0003,0.001,0.003,0.01,0.03,0.1"
LINE = ("experiment=digits_mlp", "train.duration=20ep", "loader.batch_size=32", "device.type=cpu", "log=quiet")


def run_sweep(*overrides: str) -> float:
    """Seconds of the whole command, its report included."""
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, "-m", "runner", "-m", *LINE, *overrides]
        begun = time.monotonic()
        subprocess.run(
            line, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, stdout=subprocess.DEVNULL
        )
        return time.monotonic() - begun


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.thousand", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="100 points of each; 10 make 1,000")
    parser.add_argument("--ways", nargs="+", choices=("stacks", "slots", "hydra"), default=["stacks", "slots", "hydra"])
    args = parser.parse_args()
    jobs, grid = (
        100 * args.seeds,
        (f"optimizer.lr={RATES}", f"optimizer.weight_decay={DECAYS}", f"sweep.seeds={args.seeds}"),
    )
    took: dict[str, float] = {}
    for way in args.ways:
        if way == "hydra":
            launcher = ("hydra/launcher=basic",)
            one = run_sweep(*launcher, "seed=0")
            each = (run_sweep(*launcher, "seed=range(0,20)") - one) / 19
            took[way] = one + (jobs - 1) * each
        else:
            took[way] = run_sweep(*grid, f"sweep.vectorize={'on' if way == 'stacks' else 'off'}")
        note = ", extrapolated from 20 jobs" if way == "hydra" else ""
        first = took[args.ways[0]]
        print(
            f"{way:<8}{took[way]:8.0f} s for {jobs:,} jobs{note}; {took[way] / first:.1f} times the first", flush=True
        )


if __name__ == "__main__":
    main()
