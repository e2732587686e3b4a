"""Step outputs of a stack, kept until a pause: each job takes those of many steps at once."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from runner.train.state import Run
from runner.train.vectorized.stack import split_rows

COMPUTED = frozenset({"loss", "output", "target"})  # made by a step, and changed by none
MOST_BYTES = 2**22  # of outputs that are kept


class StackOutcomes:
    """Step outputs of the steps since the last pause.

    Attributes:
        kept: tensors [jobs, ...] by name, and what is no tensor, a step.
        failed: what went wrong in the metrics of a job, by row.
    """

    def __init__(self) -> None:
        self.kept: list[tuple[dict[str, Tensor], Mapping[str, Any]]] = []
        self.failed: dict[int, Exception] = {}
        self._bytes = 0

    def add(self, outcome: Mapping[str, Tensor], rest: Mapping[str, Any], runs: Sequence[Run]) -> None:
        """Add the outputs of a step; the runs take them where they have become many."""
        # A number of the model itself (a scale that is learnt) changes with the next update.
        detached = {
            name: value.detach() if name in COMPUTED else value.detach().clone() for name, value in outcome.items()
        }
        self.kept.append((detached, dict(rest)))
        self._bytes += sum(value.nbytes for value in detached.values())
        if self._bytes >= MOST_BYTES:
            self.hand_out(runs)

    def hand_out(self, runs: Sequence[Run]) -> None:
        """Give each run its losses, and its metrics their inputs."""
        kept, self.kept, self._bytes = self.kept, [], 0
        if not kept:
            return
        joined = join_steps(kept) if all(map(takes_joined, runs)) else None
        if joined is None or not runs[0].losses.reserved.issuperset({*kept[0][0], *kept[0][1]}):
            for outcome, rest in kept:
                for row, own in enumerate(split_rows(outcome, rest, len(runs))):
                    runs[row].losses.add(own)
                    self._update_metrics(row, runs[row], own)
            return
        sizes = [rest.get("size", 1) for _, rest in kept]
        for row, own in enumerate(split_rows(joined, {}, len(runs))):
            runs[row].losses.add_many(own["loss"], sizes)
            self._update_metrics(row, runs[row], own)

    def _update_metrics(self, row: int, run: Run, outcome: Mapping[str, Any]) -> None:
        if row not in self.failed:
            try:
                for take in run.inputs["train"]:
                    take(outcome)
            except Exception as error:  # noqa: BLE001  of this job alone
                self.failed[row] = error


def takes_joined(run: Run) -> bool:
    """Return whether the metrics of training may be given the batches of several steps as one.

    A class must say so of itself: one that is derived from it may look at each batch.
    """
    return all(take.whole and vars(type(take.metric)).get("joins_batches") for take in run.inputs["train"])


def join_steps(kept: Sequence[tuple[Mapping[str, Tensor], Mapping[str, Any]]]) -> dict[str, Tensor] | None:
    """Join outputs [jobs, N, ...] of steps to [jobs, N of all, ...], losses [jobs] to [jobs, steps].

    Returns:
        None where a step has others than the first, or one without samples.
    """
    first = kept[0][0]
    if any(outcome.keys() != first.keys() or rest.keys() != kept[0][1].keys() for outcome, rest in kept):
        return None
    joined = {"loss": torch.stack([outcome["loss"] for outcome, _ in kept], 1)}
    for name, value in first.items():
        if name == "loss":
            continue
        column = [outcome[name] for outcome, _ in kept]
        if any(one.dim() < 2 or one.shape[2:] != value.shape[2:] or one.dtype != value.dtype for one in column):
            return None
        joined[name] = torch.cat(column, 1)
    return joined
