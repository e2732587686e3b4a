"""Loan of what components may ask for while they are built: training progress, steps of durations."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.core.durations import Duration
from runner.core.errors import RunError
from runner.core.progress import TrainingProgress, bind_progress
from runner.train.fitting import FittedParts

OF_DATA = ("dataset", "transform", "loader")  # whose progress is that of the batch that a sample is for
CALLED = ("step", "loss", "transform", "loader.collate_fn", "actions")  # a call of what is built may ask, too
STAND_IN = 1000  # steps of an epoch where its length is not known (yet): what is only tried keeps its proportions


@dataclass
class Loan:
    """Progress of training and length of an epoch, as the components of one run get them.

    Attributes:
        progress: of what trains.
        of_data: of datasets, samplers and transforms.
        steps_per_epoch: optimizer steps; None while the data is not built, 0 where its length is not known.
        waiting: keys of durations in epochs that a stand-in was given for, because that was None.
        takers: keys of the components that got a progress.
        fitted: objects of the data that are fitted to the training split.
        shared: fitted transforms by name and arguments: training and evaluation have the same one.
        tries: whether what is built is only tried, or shown: with stand-ins, and all transforms on.
    """

    folder: Path = field(default_factory=Path)
    progress: TrainingProgress = field(init=False)
    of_data: TrainingProgress = field(init=False)
    steps_per_epoch: int | None = None
    waiting: list[str] = field(default_factory=list)
    takers: list[str] = field(default_factory=list)
    tries: bool = False
    fitted: FittedParts = field(default_factory=FittedParts)
    shared: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.progress, self.of_data = TrainingProgress(self.folder), TrainingProgress(self.folder)

    def set_lengths(self, steps_per_epoch: int, total_steps: int) -> None:
        """Set the lengths, once they are known."""
        self.steps_per_epoch = steps_per_epoch
        self.progress.lengths = self.of_data.lengths = (steps_per_epoch, total_steps)

    def give(self, key: str) -> TrainingProgress:
        """Give the progress to the component at a key."""
        self.takers.append(key)
        return self._choose(key)

    def _choose(self, key: str) -> TrainingProgress:
        evaluates = key.startswith("transform.views")  # beside the model, whose time it has
        return self.of_data if key.startswith(OF_DATA) and not evaluates else self.progress

    def bind(self, made: Any, key: str) -> Any:
        """Bind the progress to what is called later, if its calls ask for it."""
        if not key.startswith(CALLED):
            return made
        bound, asked = bind_progress(made, self._choose(key))
        self.takers += [key] * asked
        return bound

    def note(self, made: Any, key: str) -> None:
        """Note an object of the data that is to be fitted."""
        if key.startswith(OF_DATA):
            self.fitted.note(key, made)

    def asks(self, key: str) -> bool:
        """Return whether a component at a key, or nested in it, got the progress."""
        return any(taker == key or taker.startswith(f"{key}.") for taker in self.takers)

    def count_steps(self, text: str, key: str) -> int:
        """Count the optimizer steps of a duration in an argument.

        Raises:
            RunError: it is in epochs, of which the dataset has no length.
        """
        duration = Duration.parse(text)
        if self.steps_per_epoch is None and duration.unit == "ep":
            self.waiting.append(key)
        if self.steps_per_epoch == 0 and duration.unit == "ep":
            raise RunError(f"{key}={text}: an iterable dataset has no length, so it must be in steps (`500st`)")
        return duration.steps(STAND_IN if self.steps_per_epoch is None else self.steps_per_epoch)


LENT: ContextVar[Loan | None] = ContextVar("lent", default=None)


def get_loan() -> Loan:
    """Return what the run under construction lends; where nothing is built to train, stand-ins."""
    return LENT.get() or lend_stand_ins()


def lend_stand_ins() -> Loan:
    """Return a loan for what is only tried, or shown."""
    loan = Loan(tries=True)
    loan.set_lengths(STAND_IN, 10 * STAND_IN)
    return loan


@contextmanager
def lend(loan: Loan) -> Iterator[Loan]:
    """Lend this to all components that are built inside, however deep they are nested."""
    token = LENT.set(loan)
    try:
        yield loan
    finally:
        LENT.reset(token)
