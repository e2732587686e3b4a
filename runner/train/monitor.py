"""Optional monitoring: open the instruments of `log/` for a step, collect their numbers."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runner.core import rng
from runner.core.copies import copy_owned
from runner.core.durations import Duration, compute_next_due
from runner.log.logger import Logger
from runner.log.model_graph import record_graph
from runner.log.module_statistics import ModuleStatistics
from runner.log.predictions import ConfusionMatrix, Features, PRCurves, Samples
from runner.log.profiler import StepProfiler
from runner.log.throughput import DataWaitTimer, compute_rates, count_flops, measure_memory
from runner.model.meta import copy_to_meta, to_meta
from runner.train.optimizer_step.base import OptimizerStep

NO_BATCH: Any = object()


@dataclass
class EvaluationViews:
    """Settings of the evaluation views in TensorBoard."""

    folder: Path  # of the run
    place: Any = 0  # of the model's input in a batch: an index, a key, or several of them
    names: Sequence[str] = ()  # of the classes
    images: int = 0  # samples shown with their predictions
    confusion_matrix: bool = False
    pr_curves: bool = False
    embeddings: int = 0  # samples whose features the projector gets, from the last evaluation

    def looks(self, split: str, say: Callable[[str], None]) -> list[Any]:
        """Make new monitors for an evaluation of a split, see `runner.log.predictions`."""
        looks: list[Any] = []
        if self.images:
            looks.append(Samples(split, self.images, self.place, self.names, say))
        if self.confusion_matrix:
            looks.append(ConfusionMatrix(split, self.names, say))
        if self.pr_curves:
            looks.append(PRCurves(split, self.names, say))
        if self.embeddings:
            looks.append(Features(split, self.embeddings, self.place, self.names, self.folder / "tb", say))
        return looks


@dataclass
class ThroughputMeter:
    """Meter of throughput, MFU, data wait and memory between two log lines."""

    device: torch.device
    throughput: bool = False
    memory: bool = False
    waiting: DataWaitTimer | None = None
    mfu: bool = False
    peak_flops: float | None = None  # of the device, in FLOP/s
    flops: float | None = None  # of forward and backward of a sample
    mark: tuple[int, float, float] = (0, 0.0, 0.0)  # step, samples and seconds at the last line

    def scalars(self, step: int, samples: float, seconds: float) -> dict[str, float]:
        """Return the values since the last log line: `samples` seen, `seconds` of training so far."""
        values: dict[str, float] = {}
        begun, early, start = self.mark
        took = seconds - start
        if took <= 0:
            return values
        measured = compute_rates(step - begun, samples - early, took)
        if self.throughput:
            values |= measured
        if self.mfu and self.flops and self.peak_flops:
            values["throughput/mfu"] = measured["throughput/samples_per_second"] * self.flops / self.peak_flops
        if self.waiting is not None:
            values["throughput/data_wait"] = self.waiting.seconds / took
            self.waiting.seconds = 0.0
        if self.memory:
            values |= measure_memory(self.device)
        self.mark = (step, 0.0, seconds)
        return values


@dataclass
class Monitor:
    """All monitors of a run; by default there is none, and every method returns at once."""

    model: nn.Module
    update: OptimizerStep
    inside: ModuleStatistics | None = None
    every: Duration | None = None  # rhythm of norms and hooks
    histograms: Duration | None = None  # their rhythm
    graph: bool = False
    evaluation: EvaluationViews | None = None
    measured: ThroughputMeter | None = None
    profile: StepProfiler | None = None
    grouped: bool = False  # whether the loop's batches are lists of micro-batches
    undo: Callable[[], object] | None = None  # while a step is looked into

    # ---- the step under way

    def pauses(self, step: int, steps_per_epoch: int) -> Iterator[int]:
        """Yield steps after `step` at which the loop must pause: before and after a monitored step."""
        if self.profile is not None and self.profile.left:
            yield step + 1
        for every in (self.every, self.histograms):
            due = compute_next_due(every, step, steps_per_epoch)
            if due is not None:
                yield max(due - 1, step + 1)

    def open(self, step: int, steps_per_epoch: int) -> None:
        """Arm the hooks for the step after `step`, if that step is due for monitoring."""
        if self.inside is None:
            return
        numbers, histograms = (
            compute_next_due(every, step, steps_per_epoch) == step + 1 for every in (self.every, self.histograms)
        )
        if numbers or histograms:
            self.inside.open(numbers=numbers, histograms=histograms)
            self.undo = self.update.watch(self.inside.look)

    def close(self, step: int, log: Logger) -> dict[str, float]:
        """Return the numbers of a monitored step by name; log its histograms to TensorBoard."""
        if self.profile is not None:
            self.profile.advance(step, log.say)
        if self.inside is None or self.undo is None:
            return {}
        self.undo()
        self.undo = None
        numbers, shown = self.inside.close(self.update.scale)
        if shown:
            log.show(step, shown)
        return numbers

    # ---- the whole training

    def begin(self, step: int, samples: float, seconds: float) -> None:
        """Start at `step`, with the samples and seconds since the last log line."""
        if self.profile is not None:
            self.profile.start(step)
        if self.measured is not None:
            self.measured.mark = (step, samples, seconds)

    def end(self, log: Logger) -> None:
        """Stop the profiler and remove the hooks."""
        if self.profile is not None:
            self.profile.stop(log.say)
        if self.undo is not None and self.inside is not None:
            self.undo()
            self.inside.close()
            self.undo = None

    def batches(self, coming: Iterator[Any], log: Logger) -> Iterator[Any]:
        """Pass batches on; time the wait for them, and use the first for the model's graph and FLOPs."""
        if self.measured is not None and self.measured.waiting is not None:
            coming = self.measured.waiting.timed(coming)
        measured = self.measured if self.measured is not None and self.measured.mfu else None
        counts = measured is not None and measured.flops is None
        batch = next(coming, NO_BATCH) if self.graph or counts else NO_BATCH
        if batch is NO_BATCH:
            return coming
        first = batch[0] if self.grouped else batch
        hung = self.inside is not None and self.inside.take_down()  # a copy of the model would have them too
        if self.graph:
            self.graph = False
            self._draw(first, log)
        if measured is not None and counts:
            self._count(measured, first, log)
        if self.inside is not None and hung:
            self.inside.hang()
        return chain([batch], coming)

    def _draw(self, batch: Any, log: Logger) -> None:
        """Log the model's graph, traced on the meta device or, failing that, on a copy with weights."""
        problem = ""
        for copied, moved in ((copy_to_meta, to_meta), (deepcopy, copy_owned)):
            try:
                with _suppress_side_effects():
                    model, call = self._probe(copied, moved(batch))
                    log.graph(record_graph(model, call))
                    return
            except Exception as error:  # noqa: BLE001  a user's model may raise anything
                problem = problem or f"{type(error).__name__}: {error}"
        log.say(f"log.graph: the model could not be drawn ({problem})")

    def _count(self, measured: ThroughputMeter, batch: Any, log: Logger) -> None:
        """Count training FLOPs per sample: three times the forward's (Chowdhery 2022: backward is two)."""
        measured.flops = 0.0
        try:
            with _suppress_side_effects():
                _, call = self._probe(copy_to_meta, to_meta(batch))
                flops, samples = count_flops(call)
        except Exception as error:  # noqa: BLE001  a user's model may raise anything
            log.say(f"log.mfu: the FLOPs of the model cannot be counted ({type(error).__name__}: {error})")
            return
        measured.flops = 3 * flops / samples
        if not flops:
            log.say("log.mfu: the model has no products or convolutions to count")
        if measured.peak_flops is None:
            log.say(f"log.mfu: the peak of this {measured.device.type} is not known: give it as log.peak_flops")

    def _probe(self, copied: Callable[[Any], Any], batch: Any) -> tuple[nn.Module, Callable[[], Mapping[str, Any]]]:
        """Return a copy of the model in eval mode, and a function that evaluates a batch with it."""
        model, update = copied(self.model).eval(), copy(self.update)
        if isinstance(update.loss, nn.Module):
            update.loss = copied(update.loss)
        return model, lambda: update.evaluate(batch, model)

    def scalars(self, step: int, samples: float, seconds: float) -> dict[str, float]:
        """Return the meter's values since the last log line, see `ThroughputMeter.scalars`."""
        return {} if self.measured is None else self.measured.scalars(step, samples, seconds)

    def at_evaluation(self, split: str, log: Logger) -> list[Any]:
        """Return the monitors for an evaluation of a split."""
        return [] if self.evaluation is None else self.evaluation.looks(split, log.say)


@contextmanager
def _suppress_side_effects() -> Iterator[None]:
    """Restore the random generators afterwards and suppress warnings: training will repeat them."""
    with rng.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
