"""Public training scripts, moved to YAML: each a folder here, held against the loop that its script is.

A folder NAME has `NAME.py` (plain classes of its own, nothing of `runner`), `NAME.yaml` (`experiment=NAME`) and
`loop.py`, the plain script: `train(streams, plain)` gives its loss step by step, and may say

- `SWEEP`: what `-m` gets, two points; otherwise two seeds
- `TOLERANCE`: of a loss against that of the loop, where it cannot be equal to the bit
- `OVERRIDES`: arguments of the command line, besides `experiment=NAME`

`test_scripts.py` finds the folders.
"""

import importlib
import importlib.util
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.core import rng
from runner.data.samples import EpochOrder, Stream, draw_sampler
from runner.data.splitting import split_indices
from runner.train import loop
from runner.train.state import Run
from tests.experiment.scripts.plain import Plain
from tests.support import read_metrics, read_result, write_files

HERE = Path(__file__).parent
NAMES = sorted(folder.name for folder in HERE.iterdir() if (folder / "loop.py").exists())
QUIET = ("device=cpu", "log.every=1st", "log.progress=false", "log.tensorboard=false", "log.model_table=false")
QUIET += ("log.hparams=false",)


class Streams:
    """Where a run draws from, so that a loop by hand draws the same: weights, order, splits, dropout."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def build(self, make: Callable[[], Any], *slot: str) -> Any:
        """What the config's `slot` (a key, else `model`) builds."""
        with rng.stream(rng.derive_key(self.seed, *(slot or ("model",)))):
            return make()

    def begin(self) -> None:
        """The step draws dropout and the like from here on."""
        rng.seed_all(rng.derive_key(self.seed, "train"))

    def order(self, epoch: int, count: int) -> torch.Tensor:
        """The shuffled positions of an epoch of training."""
        return torch.from_numpy(EpochOrder(count, Stream(self.seed, "train"), shuffle=True)(epoch))

    def draw(self, sampler: Any, epoch: int) -> list[Any]:
        """What a sampler gives in an epoch of training."""
        return draw_sampler(sampler, Stream(self.seed, "train"), epoch)

    def sample(self, epoch: int, index: int, name: str = "dataset") -> Any:
        """A context in which the sample (or its transform `name`) draws."""
        return rng.stream(rng.derive_key(self.seed, epoch, index, name))

    def split(self, count: int, *, folds: int | None = None, fold: int | None = None, **fractions: float) -> Any:
        """Indices by split, as the dataset's `source` is split."""
        parts = split_indices(count, fractions, 0, folds=folds, fold=fold)
        return {name: torch.from_numpy(rows) for name, rows in parts.items()}


class Script:
    """A script in an empty project of its own, which is the working directory."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.loop = load(HERE / name / "loop.py", f"loop_of_{name}")
        self.overrides = tuple(getattr(self.loop, "OVERRIDES", ()))

    def run(self, *more: str, status: int = 0) -> Path:
        """Run it by its YAML in this process; the run directory."""
        before = set(self.folder.glob("outputs/*/*"))
        assert call([f"experiment={self.name}", *QUIET, *self.overrides, *more]) == status
        (made,) = set(self.folder.glob("outputs/*/*")) - before
        return made

    def by_hand(self, seed: int = 0, **arguments: Any) -> list[float]:
        """The losses of the plain script."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        losses: list[float] = self.loop.train(Streams(seed), Plain(self.folder / "plain"), **arguments)
        torch.set_num_threads(threads)
        return losses

    def stop(self, step: int, monkeypatch: pytest.MonkeyPatch, *more: str) -> Path:
        """Run it, with a SIGTERM in the middle of that optimizer step; the run directory."""
        batches = loop.iterate_batches

        def counted(run: Run) -> Iterator[Any]:
            for batch in batches(run):
                if run.progress.step + 1 == step:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        with monkeypatch.context() as patch:
            patch.setattr(loop, "iterate_batches", counted)
            folder = self.run(*more, status=75)
        assert read_result(folder)["steps"] == step
        return folder

    def resume(self, folder: Path, *more: str) -> None:
        """Run it to its end, in what is as good as another process."""
        torch.manual_seed(54321)
        sys.modules.pop(self.name)
        assert call(["resume", str(folder), *more]) == 0

    def check_losses(self, folder: Path, **arguments: Any) -> None:
        """Its losses are those of the plain script."""
        losses, tolerance = read_losses(folder), getattr(self.loop, "TOLERANCE", 0)
        expected = self.by_hand(**arguments)
        if tolerance:
            assert expected == pytest.approx(losses, rel=tolerance, abs=tolerance)
        else:
            assert expected == losses


def call(argv: list[str]) -> int:
    """`python -m runner ARGV` in this process."""
    from runner.__main__ import main

    return main(argv)


def load(file: Path, name: str) -> Any:
    """The module of a file, which no other module can import by name."""
    specification = importlib.util.spec_from_file_location(name, file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@contextmanager
def install(name: str, folder: Path) -> Iterator[Script]:
    """Write the script's module and its YAML into a folder, which is the working directory while the block lasts."""
    source = HERE / name
    texts = {f"{name}.py": source / f"{name}.py", f"conf/experiment/{name}.yaml": source / f"{name}.yaml"}
    write_files(folder, {place: file.read_text() for place, file in texts.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        sys.modules.pop(name, None)
        yield Script(name, folder)
        sys.modules.pop(name, None)


def read_losses(folder: Path) -> list[float]:
    """The loss of each step of a run, from its log."""
    return [line["train/loss"] for line in read_metrics(folder) if "train/loss" in line]


def half(folder: Path) -> int:
    """A step in the middle of a run that is done, and of an epoch where it has several."""
    return max(1, math.ceil(read_result(folder)["steps"] / 2) - 1)


def find_results(folder: Path) -> list[dict[str, Any]]:
    """The results of all jobs of the sweeps in a folder."""
    return [read_result(file.parent) for file in sorted(folder.rglob("result.json"))]


# ---- how long it is

COMMENT = re.compile(r"\s*(#(?! @package).*)?")


def count_lines(file: Path) -> int:
    """Lines of code: without blank lines, comments and docstrings."""
    text = re.sub(r'^ *"""[\s\S]*?"""\n', "", file.read_text(), flags=re.MULTILINE)
    return sum(COMMENT.fullmatch(line) is None for line in text.splitlines())


def count_both(name: str) -> tuple[int, int]:
    """Lines of Python and YAML together, and lines of the plain script with the same classes."""
    source = HERE / name
    own = count_lines(source / f"{name}.py")
    by_hand = own + count_lines(source / "loop.py") + count_lines(HERE / "plain.py")
    return own + count_lines(source / f"{name}.yaml"), by_hand
