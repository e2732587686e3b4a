"""Throughput of jobs trained as one, against the same jobs one after the other, on one device.

usage: python -m tests.benchmarks.stacks [--device cuda] [--small] [--repeats 3]
64 small CNNs (HFTA, MLSys 2021, reports up to 15.1 times), 64 MLPs, 8 ResNet-18 at CIFAR's size. Steps of training
only, without start-up and evaluation: samples/s of all jobs together. Memory is the most that torch held, a job.
The jobs alone also run with `device.compile`; a stack does not take it (its planning says so).
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from runner.config.check.check import Check, to_resolved_data
from runner.config.compose import compose
from runner.sweep.executors.attempt import run_attempt
from runner.sweep.executors.stack_attempt import run_stack_attempt
from runner.sweep.interfaces import JobSpec

COMMON = ("log=quiet", "train.evaluate_every=null", "train.checkpoint_every=null", "loader.num_workers=0")
CIFAR = ("experiment=null", "dataset=synthetic")  # random images of its size
CASES: dict[str, tuple[int, float, tuple[str, ...], tuple[str, ...]]] = {  # jobs, target, overrides, those of --small
    "small CNN": (64, 15.1, ("experiment=digits_cnn", "train.duration=400st"), ("train.duration=30st",)),
    "MLP": (64, 40.0, ("experiment=digits_mlp", "train.duration=400st"), ("train.duration=30st",)),
    "ResNet-18": (
        8,
        1.0,
        ("model=resnet18", "model.num_classes=10", *CIFAR, "loader.batch_size=64", "train.duration=100st"),
        ("train.duration=4st", "loader.batch_size=4"),
    ),
}


def make_spec(folder: Path, overrides: list[str]) -> JobSpec:
    """Make the specification of one job."""
    composed = compose(overrides)
    folder.mkdir(parents=True)
    config = to_resolved_data(Check(composed, ()).config)
    return JobSpec(folder.name, str(folder), composed.unresolved_yaml, config, ["-m"])


@contextlib.contextmanager
def measure_memory(found: dict[str, float], device: str) -> Iterator[None]:
    """Measure the most MiB that torch held; 0 on a CPU."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield
    found["memory"] = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else 0.0


def run_case(name: str, args: argparse.Namespace, *, stacked: bool, compiled: bool = False) -> dict[str, float]:
    """Train the jobs of a case; return samples/s of all together, and MiB a job."""
    jobs, _, overrides, small = CASES[name]
    if args.small:
        jobs = max(4, jobs // 8)
    count = jobs if stacked else min(jobs, 4)  # jobs alone are alike: some stand for all
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(io.StringIO()):
        line = [*overrides, *(small if args.small else ()), *COMMON, f"device.type={args.device}"]
        line += ["device.compile=true"] if compiled else []
        specs = [make_spec(Path(place) / str(job), [*line, f"seed={job}"]) for job in range(count)]
        with measure_memory(found, args.device):
            if stacked:
                status, said = run_stack_attempt(
                    JobSpec("stack 0", specs[0].folder, "", {}, [], members=[asdict(spec) for spec in specs])
                )
                assert status == 0, said
            else:
                assert all(run_attempt(spec) == 0 for spec in specs)
        results: list[dict[str, Any]] = [json.loads((Path(s.folder) / "result.json").read_text()) for s in specs]
    rates = [result["steps_per_second"] * specs[0].config["loader"]["batch_size"] for result in results]
    found["rate"] = sum(rates) if stacked else statistics.median(rates)
    found["memory"] /= count if stacked else 1
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.stacks", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="few jobs and steps, to see that it runs")
    parser.add_argument("--compile", action="store_true", help="also the jobs alone with device.compile")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=[*CASES], default=[*CASES])
    args = parser.parse_args()
    print(f"{'':<12} {'as one':>14} {'one by one':>14} {'ratio':>7} {'range':>14} {'target':>7} {'MiB a job':>16}")
    for name in args.cases:
        for compiled in (False, True) if args.compile else (False,):
            rounds = [
                (run_case(name, args, stacked=True), run_case(name, args, stacked=False, compiled=compiled))
                for _ in range(args.repeats)
            ]
            ratios = [one["rate"] / other["rate"] for one, other in rounds]
            ours, theirs = (statistics.median(each[i]["rate"] for each in rounds) for i in (0, 1))
            memory = " / ".join(f"{rounds[0][i]['memory']:.0f}" for i in (0, 1))
            label = f"{name}, compiled" if compiled else name
            print(
                f"{label:<12} {ours:>12.0f}/s {theirs:>12.0f}/s {statistics.median(ratios):>7.2f} "
                f"{min(ratios):>6.2f} to {max(ratios):.2f} {CASES[name][1]:>7} {memory:>16}",
                flush=True,
            )


if __name__ == "__main__":
    main()
