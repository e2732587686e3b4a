"""Trial run for `find`: built in a temporary folder, and thrown away."""

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.config.nodes import find_member_nodes
from runner.config.schema import Component, Config, Duration, Scheduler
from runner.core import rng
from runner.core.errors import RunError
from runner.experiment.builders import run as run_builder
from runner.experiment.builders.instantiate import Trust
from runner.train import pauses
from runner.train.state import Run


@contextmanager
def open_trial_run(config: Config, steps: int, trust: Trust) -> Iterator[Run]:
    """Open a run without schedule in a temporary folder; restore the global random state afterwards."""
    members = {name: {**node, "scheduler": None} for name, node in find_member_nodes(config.optimizer).items()}
    short = dataclasses.replace(
        config,
        scheduler=Scheduler(),
        optimizer=Component({**config.optimizer, **members}),
        pretrained=dataclasses.replace(config.pretrained, epoch=None),
        train=dataclasses.replace(config.train, duration=Duration(f"{steps}st")),
    )
    with rng.fork_rng(), tempfile.TemporaryDirectory() as folder:
        run = run_builder.build(short, Path(folder), {}, trust)
        rng.seed_all(rng.derive_key(config.seed, "train"))
        run.model.train()
        yield run


def iterate_batches(run: Run) -> Iterator[Any]:
    """Yield the batches of one epoch after another, without end.

    Raises:
        RunError: an epoch has none.
    """
    while True:
        empty = True
        for batch in pauses.iterate_batches(run):
            empty = False
            yield batch
        if empty:
            raise RunError("an epoch of the train split has no batch")
        run.progress.epoch += 1
