"""NaN search: train a copy from the last checkpoint, check every tensor and report the first NaN."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from runner.core import rng
from runner.core.errors import RunError
from runner.core.layouts import is_strided
from runner.train import pauses
from runner.train.finite import (
    NonFiniteError,
    NonFiniteReport,
    collect_tensors,
    describe_bad_value,
    describe_parameter,
    find_infinite_buffers,
    find_non_finite,
    is_finite,
)
from runner.train.optimizer_step.base import Step
from runner.train.state import Run


class NonFiniteFound(Exception):
    """First non-finite tensor: description, value, module, and its rows of the batch if only some."""

    def __init__(self, tensor: str, value: str, module: str | None = None, rows: list[int] | None = None) -> None:
        super().__init__(tensor)
        self.tensor, self.value, self.module, self.rows = tensor, value, module, rows


def answer(run: Run, fault: NonFiniteError, rebuild: Callable[[], Run], policy: str, max_faults: int) -> Run:
    """Find and log the origin of a NaN; then raise it, or return a run from the last checkpoint.

    Args:
        run: the run that it happened in; not to be used any more.
        fault: what was noticed.
        rebuild: builds the run anew, as it was at the last checkpoint.
        policy: `stop`; `skip` leaves out the update of the step, `rollback` the batch.
        max_faults: how many faults may be answered so.

    Raises:
        NonFiniteError: the policy says stop, it has happened too often, or it does not show again.
    """
    with suppress(RunError):
        run.checkpoints.wait()
    scratch = rebuild()
    scratch.progress.left_out = list(run.progress.left_out)
    begun_at = scratch.progress.step
    run.log.alert(f"{fault}; looking for its beginning from step {begun_at} on")
    scratch.stop = run.stop
    try:
        finding = find(scratch, fault.step)
    except Exception as error:
        raise NonFiniteError(f"{fault}. Training again from step {begun_at} failed: {error}", fault.step) from error
    if finding is None and run.stop.reason:
        raise fault
    if finding is None:
        raise NonFiniteError(
            f"{fault}. Training again from step {begun_at} did not show it: something is not deterministic, or a "
            "component keeps a state that no checkpoint holds (`python -m runner check resume` looks for it)",
            fault.step,
        ) from fault
    run.log.alert(str(finding))
    if policy == "stop" or len(run.progress.left_out) >= max_faults:
        often = f" This was fault {len(run.progress.left_out) + 1} (train.max_faults={max_faults})." * (
            policy != "stop"
        )
        remedy = " Often the learning rate is too high. train.on_fault=skip leaves such a step out."
        raise NonFiniteError(f"{finding}.{often}{remedy}", finding.step, finding) from fault
    again = rebuild()
    again.progress.left_out = [*run.progress.left_out, [finding.epoch, finding.batch, int(policy == "skip")]]
    what = "the update of that step" if policy == "skip" else "that batch"
    run.log.say(f"back to step {begun_at}; {what} is left out (train.on_fault={policy})")
    return again


def find(run: Run, until: int) -> NonFiniteReport | None:
    """Train `run` up to step `until` with every check on; report the first non-finite number, if any."""
    progress = run.progress
    if progress.step == run.rhythm.first_step:
        rng.seed_all(rng.derive_key(run.seed, "train"))
    skip = find_infinite_buffers(run.model)
    run.model.train()
    with watch_run(run, skip) as watch:
        while progress.step < until and not run.stop.reason:
            begun_at = (progress.step, progress.epoch)
            for batch in pauses.iterate_batches(run):
                try:
                    train_step(run, batch, skip, watch)
                except NonFiniteFound as found:
                    return make_report(run, found, watch.micro_batch)
                progress.step += 1
                progress.batch += 1
                if progress.batch == run.rhythm.steps_per_epoch:
                    pauses.end_epoch(run)
                if progress.step >= until or run.stop.reason:
                    return None
            if progress.batch:  # the end of data of unknown length
                pauses.end_epoch(run)
            if (progress.step, progress.epoch) == begun_at:
                return None
    return None


@dataclass
class MicroBatchWatch:
    """Index of the micro-batch under way; None for the whole step."""

    micro_batch: int | None = None


def train_step(run: Run, batch: Any, skip: tuple[str, ...], watch: MicroBatchWatch) -> None:
    """Take one training step with all its tensors checked.

    Raises:
        NonFiniteFound: the first non-finite number.
    """
    watch.micro_batch = -1
    run.update(batch)
    watch.micro_batch = None
    tensors = collect_tensors(run.model, run.optimizer, skip, run.loss)
    bad = find_non_finite(tensors)
    if bad:
        parameters = {describe_parameter(name): name for name, _ in run.model.named_parameters()}
        module = parameters.get(bad[0], "").rpartition(".")[0]
        raise NonFiniteFound(
            f"{bad[0]} in its update", describe_bad_value(tensors[bad[0]]), _describe_module(run.model, module)
        )
    run.schedule.step()


def check_step(
    run: Run, skip: tuple[str, ...], watch: MicroBatchWatch, step: Step, batch: Any, *rest: Any, **named: Any
) -> Any:
    """Call the run's step; check the batch, the loss and the model's buffers.

    Raises:
        NonFiniteFound: the first non-finite number.
    """
    whole = run.update.parts == 1  # else it is unknown which part of which micro-batch this is
    watch.micro_batch = (watch.micro_batch or 0) + 1 if run.rhythm.accumulate > 1 and whole else None
    check_input(batch)
    outcome = step(batch, *rest, **named)
    for name, tensor in run.model.named_buffers():
        if name not in skip and not is_finite(tensor):
            raise NonFiniteFound(
                f"buffer `{name}`", describe_bad_value(tensor), _describe_module(run.model, name.rpartition(".")[0])
            )
    if not is_finite(outcome["loss"]):
        raise NonFiniteFound("the loss", describe_bad_value(outcome["loss"]))
    return outcome


def check_input(batch: Any, at: str = "batch") -> None:
    """Raise NonFiniteFound with the rows if a batch of the data has a non-finite number."""
    if isinstance(batch, Tensor):
        if not is_finite(batch):
            raise NonFiniteFound(f"the input `{at}`", describe_bad_value(batch), rows=_find_bad_rows(batch))
    elif isinstance(batch, dict | list | tuple):
        for name, member in batch.items() if isinstance(batch, dict) else enumerate(batch):
            check_input(member, f"{at}[{name!r}]")


@contextmanager
def run_eagerly() -> Iterator[None]:
    """Run compiled models eagerly: compiled code would not call hooks that are added later."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def watch_run(run: Run, skip: tuple[str, ...]) -> Iterator[MicroBatchWatch]:
    """Hook NonFiniteFound onto the first bad module input or output and the first bad gradient."""
    watch = MicroBatchWatch()
    with ExitStack() as stack:
        stack.enter_context(run_eagerly())
        stack.callback(setattr, run.update, "step", run.update.step)
        run.update.step = partial(check_step, run, skip, watch, run.update.step)
        for name, module in run.model.named_modules():
            stack.callback(module.register_forward_pre_hook(partial(check_arguments, run.model, name)).remove)
            stack.callback(module.register_forward_hook(partial(check_output, run.model, skip, name)).remove)
        for name, parameter in run.model.named_parameters():
            if parameter.requires_grad:
                hook = parameter.register_post_accumulate_grad_hook(partial(check_gradient, run, name))
                stack.callback(hook.remove)
        yield watch


def check_arguments(model: nn.Module, name: str, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Raise NonFiniteFound if a module's input is bad: the step or plain code computed it."""
    for member in inputs:
        if not is_finite(member):
            what = f"the input of `{name}`" if name else "the model's input"
            rows = None if name else _find_bad_rows(member)  # further in, the first dimension may be another
            raise NonFiniteFound(what, describe_bad_value(member), _describe_module(model, name), rows)


def _find_bad_rows(tensor: Tensor) -> list[int] | None:
    """Return the indices along the first dimension that have a non-finite number."""
    if not is_strided(tensor):
        return None
    bad = ~torch.isfinite(tensor)
    return bad.reshape(len(tensor), -1).any(1).nonzero().flatten().tolist() if tensor.dim() else None


def check_output(
    model: nn.Module, skip: tuple[str, ...], name: str, module: nn.Module, _inputs: Any, output: Any
) -> None:
    """Raise NonFiniteFound if a module's output is bad, at its own bad parameter or buffer if any."""
    members = output if isinstance(output, tuple | list) else [output]
    bad = next((member for member in members if not is_finite(member)), None)
    if bad is None:
        return
    for own, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        full = f"{name}.{own}" if name else own
        if full not in skip and not is_finite(tensor):
            what = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
            raise NonFiniteFound(f"{what} `{full}`", describe_bad_value(tensor), _describe_module(model, name))
    raise NonFiniteFound(
        f"the output of `{name}`" if name else "the model's output",
        describe_bad_value(bad),
        _describe_module(model, name),
    )


def check_gradient(run: Run, name: str, parameter: Tensor) -> None:
    """Raise NonFiniteFound if a gradient is bad, unless the fp16 scaler can still lower its scale."""
    if run.scaler is not None and run.scaler.grad_scaler.get_scale() > 1:
        return
    if parameter.grad is not None and not is_finite(parameter.grad):
        value = describe_bad_value(parameter.grad)
        raise NonFiniteFound(f"the gradient of `{name}`", value, _describe_module(run.model, name.rpartition(".")[0]))


def _describe_module(model: nn.Module, name: str) -> str:
    kind = type(model.get_submodule(name)).__name__
    return f"{name} ({kind})" if name else kind


def make_report(run: Run, found: NonFiniteFound, micro_batch: int | None = None) -> NonFiniteReport:
    """Make the report of a finding, with the samples of the micro-batch or of the whole step."""
    progress, split, count = run.progress, run.splits["train"], run.rhythm.accumulate
    first = progress.batch * count
    last = first + count if split.num_batches is None else min(first + count, split.num_batches)
    batches = range(first, last)
    if micro_batch is not None:
        batches = range(first + micro_batch, first + micro_batch + 1)
    members = [split.sample_indices(progress.epoch, batch) for batch in batches]
    samples = None if None in members else [index for member in members if member is not None for index in member]
    if samples is not None and found.rows is not None and run.update.parts == 1:
        samples = [samples[row] for row in found.rows if row < len(samples)]
    return NonFiniteReport(
        step=progress.step + 1,
        epoch=progress.epoch,
        batch=progress.batch,
        tensor=found.tensor,
        module=found.module,
        value=found.value,
        samples=samples,
    )
