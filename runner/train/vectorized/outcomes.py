"""Step outputs of a stack, kept until a pause: each job takes those of many steps at once."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from runner.train.state import Run
from runner.train.vectorized.stack import split_rows

MOST_BYTES = 2**22  # of outputs that are kept


class StackOutcomes:
    """Step outputs of the steps since the last pause.

    Attributes:
        kept: tensors [jobs, ...] by name, and what is no tensor, a step.
    """

    def __init__(self) -> None:
        self.kept: list[tuple[dict[str, Tensor], Mapping[str, Any]]] = []
        self._bytes = 0

    def add(self, outcome: Mapping[str, Tensor], rest: Mapping[str, Any], runs: Sequence[Run]) -> None:
        """Add the outputs of a step; the runs take them where they have become many."""
        detached = {name: value.detach() for name, value in outcome.items()}
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
                for run, own in zip(runs, split_rows(outcome, rest, len(runs)), strict=True):
                    run.losses.add(own)
                    for take in run.inputs["train"]:
                        take(own)
            return
        sizes = [rest.get("size", 1) for _, rest in kept]
        for run, own in zip(runs, split_rows(joined, {}, len(runs)), strict=True):
            run.losses.add_many(own["loss"], sizes)
            for take in run.inputs["train"]:
                take(own)


def takes_joined(run: Run) -> bool:
    """Return whether the metrics of training may be given the batches of several steps as one."""
    return all(take.whole and getattr(take.metric, "joins_batches", False) for take in run.inputs["train"])


def join_steps(kept: Sequence[tuple[Mapping[str, Tensor], Mapping[str, Any]]]) -> dict[str, Tensor] | None:
    """Join outputs [jobs, N, ...] of steps to [jobs, N of all, ...], losses [jobs] to [jobs, steps].

    Returns:
        None where a step has others than the first, or one without samples.
    """
    first = kept[0][0]
    joined = {"loss": torch.stack([outcome["loss"] for outcome, _ in kept], 1)}
    for name, value in first.items():
        if name == "loss":
            continue
        column = [outcome.get(name) for outcome, _ in kept]
        if any(one is None or one.dim() < 2 or one.shape[2:] != value.shape[2:] for one in column):
            return None
        joined[name] = torch.cat([one for one in column if one is not None], 1)
    return joined
