"""Time of the data: datasets, samplers and transforms learn epoch and step before a sample is drawn.

The order and the draws of an epoch are keyed, so they need no clock. What changes by itself does: a dataset or a
sampler with `set_epoch`, and whatever has a parameter `progress`.
"""

from typing import Any

from torch.utils.data import IterableDataset

from runner.core import rng
from runner.core.errors import RunError
from runner.core.progress import Moment, TrainingProgress

When = tuple[int, int]  # epoch and optimizer step of a batch

INNER = ("dataset", "datasets", "sampler", "batch_sampler", "samplers")  # where what is wrapped stands


def find_epoch_setters(part: Any) -> list[Any]:
    """Find a dataset or sampler, and all that it wraps, that have a `set_epoch`; the innermost come first."""
    found: dict[int, Any] = {}

    def walk(one: Any, outer: tuple[int, ...]) -> None:
        if one is None or isinstance(one, str | int | float) or id(one) in outer:
            return
        for name in INNER:
            inner = getattr(one, "__dict__", {}).get(name)
            for member in inner if isinstance(inner, list | tuple) else [inner]:
                walk(member, (*outer, id(one)))
        if callable(getattr(one, "set_epoch", None)):
            found.setdefault(id(one), one)

    walk(part, ())
    return list(found.values())


class DataClock:
    """Clock that all splits of a run share.

    Args:
        run: live progress of the run.
        shown: what components of the data see.
        accumulate: batches of the loader in an optimizer step.
        seed: of what a `set_epoch` draws.

    Attributes:
        active: whether anything looks at it; otherwise no sample is told anything.
    """

    def __init__(
        self,
        run: TrainingProgress | None = None,
        shown: TrainingProgress | None = None,
        accumulate: int = 1,
        seed: int = 0,
    ) -> None:
        self.run, self.shown, self.accumulate = run or TrainingProgress(), shown or TrainingProgress(), accumulate
        self.seed = seed
        self.shown.at = Moment()
        self.active = False
        self.setters: list[Any] = []
        self.lengths: list[int | None] = []
        self.told: int | None = None

    def follow(self, dataset: Any, *, timed: bool = False) -> None:
        """Tell a dataset its epochs, if it has a `set_epoch`; `timed` says that something looks at `progress`."""
        for setter in find_epoch_setters(dataset):
            if all(setter is not known for known in self.setters):
                self.setters.append(setter)
                self._tell(setter, self.told or 0)
                self.lengths.append(_find_length(setter))
        self.active |= timed or bool(self.setters)

    def changes(self, dataset: Any) -> bool:
        """Return whether a dataset changes by epoch."""
        return any(setter is known for setter in find_epoch_setters(dataset) for known in self.setters)

    def find_first_step(self, epoch: int) -> int:
        """Return the steps that are done when an epoch of training begins."""
        at = self.run.at
        if epoch != at.epoch:
            return epoch * (self.run.lengths or (0, 0))[0]
        without = sum(1 for of, batch, counts in at.left_out if of == epoch and batch < at.batch and not counts)
        return int(at.step - at.batch + without)

    def when(self, split: str, epoch: int, first: int, batch: int) -> When:
        """Return epoch and step of a batch of training; of another split, those of the run.

        `first` is `find_first_step` of the epoch.
        """
        if split != "train":
            return int(self.run.at.epoch), int(self.run.at.step)
        return epoch, first + batch // self.accumulate

    def set(self, when: When) -> None:
        """Let it be this epoch and step, in this process."""
        epoch, step = when
        self.shown.at.epoch, self.shown.at.step = epoch, step
        if epoch != self.told:
            self.told = epoch
            for setter in self.setters:
                self._tell(setter, epoch)

    def _tell(self, setter: Any, epoch: int) -> None:
        with rng.stream(rng.derive_key(self.seed, epoch, "set_epoch")):
            setter.set_epoch(epoch)

    def begin(self, split: str, epoch: int, start: int = 0) -> int:
        """Let an epoch begin, in the process that trains; return its first step.

        Raises:
            RunError: a dataset has another length now.
        """
        first = self.find_first_step(epoch)
        if self.active:
            self.set(self.when(split, epoch, first, start))
            for setter, length in zip(self.setters, self.lengths, strict=True):
                now = _find_length(setter)
                if now != length:
                    name = type(setter).__name__
                    raise RunError(
                        f"{name} has {now:,} samples in epoch {self.told}, and had {length:,} at first: durations, "
                        "schedules and a resume count on epochs of one length. Let `set_epoch` change what "
                        "its samples are, and a `loader.sampler` choose among them"
                    )
        return first


def _find_length(dataset: Any) -> int | None:
    """Return a map-style dataset's length; None of anything else."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        return None
    return len(dataset)


def tell_samplers(sampler: Any, epoch: int) -> None:
    """Tell a sampler, and those that it wraps, that an epoch begins."""
    for setter in find_epoch_setters(sampler):
        setter.set_epoch(epoch)
