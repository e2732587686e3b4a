"""Speed and start-up against other ways to do the same, as one table of ratios.

usage: python -m tests.benchmarks [--repeats N] [--shared PATH] [--rows speed|startup|cfg|report|data|sweep|… ...]
Every measurement is a process of its own, in a terminal of its own (so that the progress bar is on, as it is for a
user). In each round all take their turn: a busy machine slows them alike, and each round gives one ratio.
"""

import argparse
import dataclasses
import json
import os
import pty
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner.sweep import ledger

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GROUPS = [
    "speed",
    "startup",
    "cfg",
    "report",
    "data",
    "sweep",
    "faults",
    "resume",
    "inside",
    "trace",
    "recipe",
    "vectorized",
    "auto",
]
EPOCHS = 40  # of the default experiment, and so of its peers


@dataclasses.dataclass
class Row:
    """One comparison: `ours` and `peer` each measure one number in `unit`; `more` says which way is better."""

    group: str
    name: str
    unit: str
    ours: Callable[[Path], float]
    peer: Callable[[Path], float]
    target: float
    more: bool


def command(arguments: list[str], folder: Path) -> str:
    """What the process wrote to its terminal. Raises RuntimeError, with the end of that, where it fails."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    written: list[bytes] = []
    reader = threading.Thread(target=_drain, args=(ours, written))
    reader.start()
    streams = {"stdin": subprocess.DEVNULL, "stdout": theirs, "stderr": theirs}
    status = subprocess.call([sys.executable, *arguments], cwd=folder, env=environment, **streams)
    os.close(theirs)
    reader.join()
    os.close(ours)
    text = b"".join(written).decode(errors="replace")
    if status:
        raise RuntimeError(f"{' '.join(arguments)} ended with status {status}:\n{text[-2000:]}")
    return text


def _drain(terminal: int, written: list[bytes]) -> None:
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other end was closed
            return
        if not data:
            return
        written.append(data)


def our_speed(folder: Path, *overrides: str) -> float:
    """Steps per second of the default experiment, everything on that is on by default."""
    command(["-m", "runner", "device.type=cpu", "device.threads=1", f"train.duration={EPOCHS}ep", *overrides], folder)
    (result,) = folder.glob("outputs/*/*/result.json")
    return float(json.loads(result.read_text())["steps_per_second"])


def our_speed_unchecked(folder: Path) -> float:
    """The same without a look at whether the loss is finite."""
    return our_speed(folder, "train.check_finite=off")


HOOKS = "++log.hooks={all: {module: torch.nn.Module, forward: [mean, std, zeros], backward: [mean, std]}}"
INSIDE: dict[str, tuple[Any, ...]] = {  # the target, and what is looked at; an epoch is 17 steps, a log line each 50
    "gradient norms": (1.1, "log.gradient_norm=true"),
    "hooks on all modules": (1.1, HOOKS),
    "histograms each epoch": (1.5, "log.histograms=1ep"),
    "the graph": (1.1, "log.graph=true"),
    "32 predictions each epoch": (2.0, "log.images=32"),
    "confusion matrix each epoch": (2.0, "log.confusion_matrix=true"),
    "PR curves each epoch": (2.0, "log.pr_curves=true"),
    "256 embeddings each epoch": (5.0, "log.embeddings=256"),
    "throughput, memory": (1.1, "log.throughput=true", "log.memory=true"),
    "waiting for data": (1.1, "log.data_wait=true"),
    "share of the peak": (1.1, "log.mfu=true", "log.peak_flops=1e11"),
}


RECIPE: dict[str, tuple[Any, ...]] = {  # the target, and what is added to the default experiment (6,090 weights)
    "2 batches of 32 a step": (1.8, "train.accumulate=2", "loader.batch_size=32"),
    "clipping by norm": (1.3, "train.clip_norm=1"),
    "clipping by value": (1.3, "train.clip_value=1"),
    "average of the weights": (1.3, "train.ema=0.999"),
    "average every 32 steps": (1.1, "train.ema=0.999", "train.ema_every=32st"),
    "ready to split batches": (1.5, "train.split_on_oom=true"),
    "early stopping, a time limit": (1.05, "train.early_stop=100", "train.max_time=1h"),
    "bf16 (on a CPU)": (2.0, "device.precision=bf16"),
    "fp16 (on a CPU)": (10.0, "device.precision=fp16"),
    "torch.compile": (1.1, "device.compile=true"),
}


def looking(*overrides: str) -> Callable[[Path], float]:
    """Milliseconds of processor time a step with something looked at, by `inside.py`."""

    def measure(folder: Path) -> float:
        lines = command([str(HERE / "inside.py"), *overrides], folder).splitlines()
        return float(json.loads(next(line for line in lines if line.startswith("{")))["ms_per_step"])

    return measure


def peer_speed(script: Path, name: str) -> Callable[[Path], float]:
    """Steps per second of a peer's loop, by a script that prints them as a JSON line."""
    arguments = [str(script), name, "--epochs", str(EPOCHS), "--batch", "64", "--threads", "1"]

    def measure(folder: Path) -> float:
        lines = command(arguments, folder).splitlines()
        return float(json.loads(next(line for line in lines if line.startswith("{")))["steps_per_s"])

    return measure


def image_speed(name: str) -> Callable[[Path], float]:
    """Images per second of CIFAR-shaped batches, by `images.py`."""

    def measure(folder: Path) -> float:
        lines = command([str(HERE / "images.py"), name, *(["--epochs", "2"] if name == "pil" else [])], folder)
        return float(json.loads(next(line for line in lines.splitlines() if line.startswith("{")))["images_per_s"])

    return measure


def first_step(*arguments: str) -> Callable[[Path], float]:
    """Seconds from the command to the end of its first optimizer step."""

    def measure(folder: Path) -> float:
        file = folder / "first_step"
        start = time.monotonic()
        command([str(HERE / "first_step.py"), str(file), *arguments], folder)
        return float(file.read_text()) - start

    return measure


def whole(*arguments: str) -> Callable[[Path], float]:
    """Seconds that the whole command takes."""

    def measure(folder: Path) -> float:
        start = time.monotonic()
        command(list(arguments), folder)
        return time.monotonic() - start

    return measure


def resumed_at(step: int) -> Callable[[Path], float]:
    """Seconds that a resume takes which goes on at that step, takes one more and evaluates; 1,079 steps an epoch."""
    settings = ["device.type=cpu", "device.threads=1", "loader.batch_size=1", "loader.in_memory=false", "log=quiet"]

    def measure(folder: Path) -> float:
        rhythm = ["train.evaluate_every=null", "train.checkpoint_every=null"]
        command(["-m", "runner", *settings, *rhythm, f"train.duration={step}st"], folder)
        (run,) = folder.glob("outputs/*/*")
        return whole("-m", "runner", "resume", str(run), f"train.duration={step + 1}st", "--schedule=continue")(folder)

    return measure


def report_of_a_thousand(folder: Path) -> float:
    """Seconds until the report of a sweep of 1,000 jobs that trained nothing is there: five seeds of 200 points."""
    sweep = folder / "outputs" / "noop" / "sweep"
    sweep.mkdir(parents=True)
    metrics = {"val/accuracy": 0.1, "val/loss": 2.3, "test/accuracy": 0.1, "test/loss": 2.3}
    jobs = []
    for number in range(1000):
        values = {"optimizer.lr": 0.001 * (number // 5), "seed": number % 5}
        job = ledger.JobRecord(
            f"{number:016x}", number, [f"{key}={value}" for key, value in values.items()], f"{number}_0"
        )
        job.values, job.replicate_of, job.metrics, job.status = values, str(number // 5), metrics, "completed"
        job.objective = random.random()
        jobs.append(job)
        (sweep / job.path).mkdir()
        (sweep / job.path / "metrics.jsonl").write_text(json.dumps({"step": 0, "epoch": 0.0, **metrics}) + "\n")
    with ledger.Ledger(sweep) as book:
        book.set(id="sweep", name="noop", objective="val/accuracy", mode="max", base=["debug=noop"])
        book.add(jobs)
    start = time.monotonic()
    command(["-m", "runner", "report", str(sweep)], folder)
    return time.monotonic() - start


def each_job(*arguments: str) -> Callable[[Path], float]:
    """Milliseconds that one more job of a sweep takes: of a long sweep and a short one, start-up taken out."""

    def measure(folder: Path) -> float:
        seconds = []
        for count in (10, 50):
            (folder / str(count)).mkdir()  # in the same one the jobs of before would be done
            start = time.monotonic()
            rates = ",".join(f"{number / 1000}" for number in range(1, count + 1))
            command([*arguments, "-m", "debug=noop", f"optimizer.lr={rates}"], folder / str(count))
            seconds.append(time.monotonic() - start)
        return (seconds[1] - seconds[0]) / 40 * 1000

    return measure


# Seconds of a sweep of 32 jobs trained as one, against those of the same sweep in slots.
VECTORIZED: dict[str, tuple[Any, ...]] = {
    "32 MLPs, batches of 32": (1 / 4, "experiment=digits_mlp", "loader.batch_size=32"),
    "32 MLPs, batches of 32, 160 epochs": (
        1 / 4,
        "experiment=digits_mlp",
        "loader.batch_size=32",
        "train.duration=160ep",
    ),
    "32 MLPs, batches of 128": (1 / 2.5, "experiment=digits_mlp", "loader.batch_size=128"),
    "32 CNNs, batches of 32": (1 / 2.5, "experiment=digits_cnn", "loader.batch_size=32"),
    "32 CNNs, batches of 128": (1 / 1.2, "experiment=digits_cnn", "loader.batch_size=128"),
}


RATES = ("optimizer.lr=0.02,0.05,0.1,0.2", "sweep.seeds=8")

# The shipped experiments that need no download, and what makes their jobs short; 16 seeds of each.
AUTO: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("digits_mlp", "digits_cnn", "digits_conv1", "digits_lenet", "digits_gan"),
        ("train.duration=5ep",),
    ),
    "digits_data_parallel": ("train.duration=5ep",),
    "digits_frozen_embedding": ("train.duration=5ep", "freeze.until=3ep"),
    "dynamic_net": (),
    "minimise": (),
    "synthetic": ("train.duration=60st",),
    "text_classifier": ("train.duration=1ep",),
    "segmentation": ("train.duration=2st", "dataset.limit=64"),
    "detection": ("train.duration=2st", "dataset.limit=32"),
}


def sweep_of(vectorize: str, *overrides: str) -> Callable[[Path], float]:
    """Seconds of a whole sweep, with both cores."""

    def measure(folder: Path) -> float:
        place = folder / vectorize
        place.mkdir()
        start = time.monotonic()
        command(["-m", "runner", "-m", *overrides, "device.type=cpu", f"sweep.vectorize={vectorize}"], place)
        return time.monotonic() - start

    return measure


def slots(count: int) -> Callable[[Path], float]:
    """Steps per second of as many one-core jobs of a sweep at once, all together."""

    def measure(folder: Path) -> float:
        seeds = ",".join(map(str, range(count)))
        line = ["-m", "runner", "-m", f"seed={seeds}", f"sweep.slots={count}", f"train.duration={10 * EPOCHS}ep"]
        command([*line, "device.type=cpu", "device.threads=1", "train.evaluate_every=null", "log=quiet"], folder)
        results = [json.loads(path.read_text()) for path in folder.glob("outputs/*/*/*/result.json")]
        return sum(float(result["steps_per_second"]) for result in results)

    return measure


def rows(peers: Path) -> list[Row]:
    """The comparisons, with their targets."""
    startup = first_step("-m", "runner", "device.type=cpu")
    cfg = whole("-m", "runner", "--cfg", "job")
    images = image_speed("ours")
    hydra_job = each_job(str(HERE / "bare_hydra.py"), str(ROOT / "conf"))
    nothing_looked_at = looking()
    bare_hydra = whole(str(HERE / "bare_hydra.py"), str(ROOT / "conf"), "--cfg", "job")
    return [
        *(
            Row("speed", f"training, against {name}", "steps/s", our_speed, peer_speed(peers, name), target, more=True)
            for name, target in {"tensorloop": 1.0, "loop": 1.15, "lightning": 1.45}.items()
        ),
        Row("startup", "first step", "s", startup, first_step(str(HERE / "bare_step.py")), 1.25, more=False),
        Row("cfg", "--cfg job", "s", cfg, bare_hydra, 1.5, more=False),
        Row("report", "1,000 jobs, against 2 s", "s", report_of_a_thousand, lambda _: 2.0, 1.0, more=False),
        Row("data", "CIFAR batches, against PIL", "images/s", images, image_speed("pil"), 10, more=True),
        Row("data", "CIFAR batches, against a gather", "images/s", images, image_speed("gather"), 0.9, more=True),
        Row("sweep", "a job of noop, against Hydra", "ms", each_job("-m", "runner"), hydra_job, 0.5, more=False),
        Row("sweep", "two slots, against one", "steps/s", slots(2), slots(1), 1.9, more=True),
        Row("faults", "a look at each loss", "steps/s", our_speed, our_speed_unchecked, 0.96, more=True),
        *(
            Row("inside", name, "ms", looking(*overrides), nothing_looked_at, target, more=False)
            for name, (target, *overrides) in INSIDE.items()
        ),
        Row("trace", "a trace, against none", "ms", looking(), looking("log.trace=false"), 1.02, more=False),
        *(
            Row("recipe", name, "ms", looking(*overrides), nothing_looked_at, target, more=False)
            for name, (target, *overrides) in RECIPE.items()
        ),
        *(
            Row(
                "vectorized",
                name,
                "s",
                sweep_of("on", *overrides, *RATES),
                sweep_of("off", *overrides, *RATES),
                target,
                more=False,
            )
            for name, (target, *overrides) in VECTORIZED.items()
        ),
        *(
            Row(
                "auto",
                name,
                "s",
                sweep_of("auto", f"experiment={name}", "sweep.seeds=16", *overrides),
                sweep_of("off", f"experiment={name}", "sweep.seeds=16", *overrides),
                1 / 0.95,
                more=False,
            )
            for name, overrides in AUTO.items()
        ),
        Row("resume", "resume at an epoch's last batch", "s", resumed_at(2157), resumed_at(1079), 1.05, more=False),
    ]


def measured(table: list[Row], repeats: int) -> dict[Callable[[Path], float], list[float] | str]:
    """For each thing to measure one number a round, or why there is none; rows that share one share its numbers."""
    numbers: dict[Callable[[Path], float], list[float] | str] = {}
    for group in dict.fromkeys(row.group for row in table):
        things = dict.fromkeys(thing for row in table if row.group == group for thing in (row.ours, row.peer))
        for _ in range(repeats):
            for thing in things:
                so_far = numbers.setdefault(thing, [])
                if isinstance(so_far, str):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    try:
                        so_far.append(thing(Path(folder)))
                    except (RuntimeError, OSError, ValueError, KeyError, StopIteration) as error:
                        numbers[thing] = str(error) or repr(error)
    return numbers


def line(row: Row, ours: list[float] | str, peer: list[float] | str) -> str:
    """The row of the table: medians, the median of the rounds' ratios and their range, the target."""
    target = f"{'>=' if row.more else '<='} {row.target:.2f}"
    if isinstance(ours, str) or isinstance(peer, str):
        return f"{row.name:<31} not measured: {(ours if isinstance(ours, str) else peer).strip()}"
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    ratio = statistics.median(ratios)
    met = ratio >= row.target if row.more else ratio <= row.target
    a, b = (f"{statistics.median(numbers):.{0 if row.more else 2}f} {row.unit}" for numbers in (ours, peer))
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return f"{row.name:<31} {a:>15} {b:>15} {ratio:>7.2f} {spread:>14} {target:>9}  {'met' if met else 'not met'}"


def main() -> None:
    """Measures, then prints the table; the exit status says nothing about the ratios."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds, each with one ratio (5)")
    parser.add_argument("--rows", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--shared", type=Path, metavar="PATH", help="run PATH/bench/peers.py instead of ours")
    args = parser.parse_args()
    peers = args.shared.resolve() / "bench" / "peers.py" if args.shared else HERE / "peers.py"
    table = [row for row in rows(peers) if row.group in args.rows]
    numbers = measured(table, args.repeats)
    print(f"{'':<31} {'ours':>15} {'peer':>15} {'ratio':>7} {'range':>14} {'target':>9}")
    for row in table:
        print(line(row, numbers[row.ours], numbers[row.peer]))


if __name__ == "__main__":
    main()
