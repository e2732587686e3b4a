"""Statistics of batch normalisation for averaged weights, computed anew over the training data."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from runner.core import rng
from runner.data.sharding import ShardedBatches
from runner.train.distributed.sync_batchnorm import find_batch_norms
from runner.train.state import Run
from runner.train.state_dict import find_sampler
from runner.train.steps import needs_input_and_target


def update_statistics(run: Run) -> None:
    """Compute the statistics of averaged weights that have changed since the last time.

    As `torch.optim.swa_utils.update_bn`: one pass over the training batches, of which each counts the same. The epoch
    is the one under way, or the one that has ended; its order and augmentation are drawn again, and dropout from
    streams of its own. The average keeps them, so that a checkpoint holds them.
    """
    average = run.average
    if average is None or not average.update_bn or average.refreshed == average.updates:
        return
    with torch.no_grad(), average.in_model(), rng.fork_rng(), _keep_sampler(run):
        compute_statistics(run)
    average.refreshed = average.updates


def compute_statistics(run: Run) -> None:
    """Replace the running statistics by their means over the training batches; all but frozen ones."""
    progress, split = run.progress, run.splits["train"]
    run.model.train()
    norms = [norm for norm in find_batch_norms(run.model) if norm.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    if not needs_input_and_target(run.step):  # a step of one's own may train where the model does
        run.model.eval()
        for norm in norms:
            norm.train()
    epoch = progress.epoch - (progress.batch == 0 and progress.epoch > 0)
    batches = split.iterate_aside(epoch) if isinstance(split, ShardedBatches) else split.batches(epoch)
    for number, batch in enumerate(batches):
        rng.seed_all(rng.derive_key(run.seed, "update_bn", *run.team.stream, epoch, number))
        run.update.evaluate(batch, run.model)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        _join_processes(run, norm)
    run.model.train()


def _join_processes(run: Run, norm: nn.Module) -> None:
    if run.team.world > 1:
        for name in ("running_mean", "running_var"):
            buffer = getattr(norm, name)
            buffer.copy_(run.team.total(buffer) / run.team.world)


@contextmanager
def _keep_sampler(run: Run) -> Iterator[None]:
    sampler: Any = find_sampler(run)
    saved = None if sampler is None else deepcopy(sampler.state_dict())
    yield
    if sampler is not None:
        sampler.load_state_dict(saved)
