"""Plain functions that several test files need; fixtures stand in `conftest.py`.

Whoever needs no torch does not wait for it: it is imported inside the functions.
"""

import contextlib
import importlib
import io
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# ---- folders and files


def write_files(folder: Path, texts: Mapping[str, str]) -> None:
    """Write texts below a folder, each by its path."""
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def list_names(folder: Path) -> list[str]:
    """List the names of a folder's entries, sorted."""
    return sorted(path.name for path in folder.iterdir())


def list_files() -> set[str]:
    """List all files below the working directory."""
    return {str(path) for path in Path().rglob("*") if path.is_file()}


def read_lines(file: Path) -> list[Any]:
    """Read a file of JSON lines."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def run_git(folder: Path, *arguments: str) -> str:
    """Run git in a folder, as somebody; its output."""
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


# ---- pages of the documentation


NUMBER = r"[-+]?\d[\d.,:e+-]*"
NOISE = re.compile(r"  within noise of the best \(p = [\d.e-]+\)")  # another processor may see a difference


def is_shown(shown: str, printed: str) -> bool:
    """Whether a page shows what is printed: any number for a number, anything for `…`, any amount of space."""
    lines = []
    for line in NOISE.sub("", shown).strip().splitlines():
        words = re.sub(r"\d{4}-\d\d-\d\d_[\d-]+_[0-9a-f]+|(?:sweep|blame)_[0-9a-f]+|\d+_[0-9a-f]{8}", "\0", line)
        parts = re.split(rf"(\0|…|\s+|{NUMBER})", words)
        known = {"\0": r"\w[\w-]*", "…": ".*"}
        masked = [
            known.get(part) or (r"\s+" if part.isspace() else NUMBER if re.fullmatch(NUMBER, part) else re.escape(part))
            for part in parts
        ]
        lines.append(r"(?:.*\n)*?" if line == "…" else "".join(masked) + r"\s*?\n")
    return re.fullmatch("".join(lines), NOISE.sub("", printed).rstrip() + "\n") is not None


# ---- shipped experiments

EXTRAS = {"finetune_timm": "timm", "text_classifier_hf": "transformers"}  # experiment: what it is of
SLOW = {"detection", "imagenet_resnet50", "segmentation"}  # seconds a test


def list_experiments(*, slow: bool = True) -> list[str]:
    """List the shipped experiments that need no extra, sorted; `slow`: also those that take seconds a test."""
    names = {path.stem for path in (Path(__file__).parents[1] / "conf" / "experiment").glob("*.yaml")}
    return sorted(names - set(EXTRAS) - (set() if slow else SLOW))


def mark_slow(names: Iterable[str]) -> list[Any]:
    """Return parameters of a test: the slow experiments among them are for `make test-all`."""
    import pytest

    return [pytest.param(name, marks=[pytest.mark.exhaustive] if name in SLOW else []) for name in names]


# ---- runs


@contextlib.contextmanager
def keep_process_state() -> Iterator[None]:
    """Leave torch's global settings, the environment, the working directory and the import path as they were."""
    environment, cwd, path = dict(os.environ), Path.cwd(), list(sys.path)
    torch: Any = sys.modules.get("torch")  # a test that needs no torch does not wait seconds for it
    before = _read_settings(torch) if torch else None
    yield
    if before:
        threads, deterministic, warn_only, fill, grad, generator = before
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.set_grad_enabled(grad)
        torch.set_rng_state(generator)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[:] = path


def _read_settings(torch: Any) -> tuple[Any, ...]:
    return (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.is_grad_enabled(),
        torch.get_rng_state(),
    )


class Ran(NamedTuple):
    """How a command ended: its exit status and what it printed."""

    status: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        """The run directory, which a run prints last."""
        return Path(self.out.strip().splitlines()[-1])

    @property
    def result(self) -> dict[str, Any]:
        """Its `result.json`."""
        return read_result(self.folder)


def run_in(folder: Path, *argv: str) -> Ran:
    """Run `python -m runner ARGV` in a folder, in this process, for a fixture that several tests share.

    The last line of what it prints, the run directory, is made absolute.
    """
    import torch  # noqa: F401  its settings are to be put back

    from runner.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    said = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with keep_process_state(), contextlib.chdir(folder), said[0], said[1]:
        status = main(list(argv))
    *lines, last = out.getvalue().splitlines() or [""]
    return Ran(status, "\n".join([*lines, str(folder / last)]), err.getvalue())


def write_run(
    folder: Path | str,
    config: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write a made-up run directory: a config (`seed: 0` and an objective unless told), a result, a provenance."""
    given = {"name": "made", "seed": 0, "train": {"objective": "val/accuracy", "mode": "max"}} | dict(config or {})
    parts = {"result.json": result, "provenance.json": provenance}
    texts = {"config.yaml": json.dumps(given)} | {name: json.dumps(part) for name, part in parts.items() if part}
    write_files(Path(folder), texts)
    return Path(folder)


def make_result(objective: float | str | None, status: str = "completed", **more: Any) -> dict[str, Any]:
    """Make the content of a `result.json` with `val/accuracy` as its objective."""
    metrics = {} if objective is None else {"val/accuracy": objective}
    return {"status": status, "objective": objective, "metrics": metrics, "steps": 10} | more


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's `metrics.jsonl`."""
    return read_lines(run / "metrics.jsonl")


def read_result(run: Path) -> dict[str, Any]:
    """Read a run's `result.json`."""
    result: dict[str, Any] = json.loads((run / "result.json").read_text())
    return result


def find_newest(project: Path) -> Path:
    """Find the run directory of `experiment=hard` that was written to last."""
    return max((project / "outputs" / "hard").iterdir(), key=lambda path: path.stat().st_ctime_ns)


def find_mistakes(*overrides: str) -> list[Any]:
    """Find the mistakes of a command line, those that only an import shows among them."""
    from runner.config.check.check import Check
    from runner.config.compose import compose

    checked = Check(compose([*overrides]))
    return [*checked.at_once, *checked.by_import()]


@contextlib.contextmanager
def install_project(folder: Path, name: str, code: str, conf: Mapping[str, str]) -> Iterator[Any]:
    """Write the module `name` and files below `conf/`; the module, to be imported while the block lasts."""
    import pytest
    import torch

    write_files(folder, {f"{name}.py": code} | {f"conf/{file}": text for file, text in conf.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        torch.set_num_threads(1)  # as ours runs
        sys.modules.pop(name, None)
        yield importlib.import_module(name)
        sys.modules.pop(name, None)


def say(what: object) -> None:
    """Write a line to whoever started this process."""
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


# ---- data


class Noise:
    """A transform of one sample's tensor that draws from all three generators."""

    def __call__(self, image: Any) -> Any:
        import numpy as np
        import torch

        return image + torch.rand(1) + float(np.random.rand()) + random.random()


def make_cifar(labels: Sequence[int]) -> Any:
    """Make torchvision's CIFAR10 over random pixels, without its files: PIL images."""
    import numpy as np
    from torchvision import datasets

    dataset: Any = datasets.CIFAR10.__new__(datasets.CIFAR10)
    dataset.data = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    dataset.targets = list(labels)
    dataset.transform = dataset.target_transform = dataset.transforms = None
    return dataset


def set_workers(number: int, *, persistent: bool = False) -> dict[str, Any]:
    """Settings of a loader that reads sample by sample, in so many workers."""
    options = {"persistent_workers": persistent, "prefetch_factor": 2, "timeout": 60} if number else {}
    return {"num_workers": number, "options": options, "in_memory": False}


def read_epochs(split: Any, count: int = 3, start: int = 0) -> list[list[Any]]:
    """Read all batches of some epochs, of each from batch `start` on."""
    return [list(batch) for epoch in range(count) for batch in split.batches(epoch, start)]


def same_batches(left: list[list[Any]], right: list[list[Any]]) -> bool:
    """Whether two lists of batches are bitwise equal."""
    import torch

    return len(left) == len(right) and all(
        torch.equal(a, b) for one, two in zip(left, right, strict=True) for a, b in zip(one, two, strict=True)
    )


# ---- training


def make_state(step: int, size: int = 100) -> dict[str, Any]:
    """Make what a checkpoint of this step holds."""
    import torch

    generator = torch.Generator().manual_seed(step)
    return {"model": {"w": torch.randn(size, generator=generator)}, "progress": {"step": step}}


def check_step(loaded: Mapping[str, Any]) -> int:
    """The step of a loaded state, whose numbers must be those of `make_state`."""
    import torch

    step: int = loaded["progress"]["step"]
    assert torch.equal(loaded["model"]["w"], make_state(step)["model"]["w"])
    return step


def fail_from(patch: Any, number: int, error: Callable[[], BaseException], calls: list[tuple[Any, str]]) -> list[int]:
    """Let the call of that number and all after it fail; `calls` are owners and attributes. How many there were."""
    count = [0]

    def guard(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] >= number:
                raise error()
            return real(*args, **kwargs)

        return call

    for owner, name in calls:
        patch.setattr(owner, name, guard(getattr(owner, name)))
    return count


def record_operators() -> Any:
    """A context in which torch's operators are counted; their names stand in its `names`."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Operators(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(str(operator))
            return operator(*args, **(kwargs or {}))

    return Operators()
