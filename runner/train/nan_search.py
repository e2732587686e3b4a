"""After a fault: train again from the last checkpoint in a copy, every tensor looked at, and say where it began."""

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
from runner.train import loop
from runner.train.finite import Fault, Finding, bad_value, infinite_buffers, is_finite, not_finite, tensors_of
from runner.train.optimizer_step.base import Step
from runner.train.state import Run


class Found(Exception):
    """The first bad tensor, in words; its value; its module; the bad rows of the batch, where only some are."""

    def __init__(self, tensor: str, value: str, module: str | None = None, rows: list[int] | None = None) -> None:
        super().__init__(tensor)
        self.tensor, self.value, self.module, self.rows = tensor, value, module, rows


def answer(run: Run, fault: Fault, rebuild: Callable[[], Run], policy: str, max_faults: int) -> Run:
    """Say where the fault began; then raise it, or give a run that stands at the last checkpoint and avoids it.

    Args:
        run: the run that it happened in; not to be used any more.
        fault: what was noticed.
        rebuild: builds the run anew, as it was at the last checkpoint.
        policy: `stop`; `skip` leaves out the update of the step, `rollback` the batch.
        max_faults: how many faults may be answered so.

    Raises:
        Fault: the policy says stop, it has happened too often, or it does not show again.
    """
    with suppress(RunError):
        run.checkpoints.wait()
    scratch = rebuild()
    scratch.progress.left_out = list(run.progress.left_out)
    begun_at = scratch.progress.step
    run.log.say(f"{fault}; looking for its beginning from step {begun_at} on")
    scratch.stop = run.stop
    try:
        finding = find(scratch, fault.step)
    except Exception as error:
        raise Fault(f"{fault}. Training again from step {begun_at} failed: {error}", fault.step) from error
    if finding is None and run.stop.signal is not None:
        raise fault
    if finding is None:
        raise Fault(
            f"{fault}. Training again from step {begun_at} did not show it: something is not deterministic, or a "
            "component keeps a state that no checkpoint holds (`python -m runner check resume` looks for it)",
            fault.step,
        ) from fault
    run.log.say(str(finding))
    if policy == "stop" or len(run.progress.left_out) >= max_faults:
        often = f" This was fault {len(run.progress.left_out) + 1} (train.max_faults={max_faults})." * (
            policy != "stop"
        )
        remedy = " Often the learning rate is too high. train.on_fault=skip leaves such a step out."
        raise Fault(f"{finding}.{often}{remedy}", finding.step, finding) from fault
    again = rebuild()
    again.progress.left_out = [*run.progress.left_out, [finding.epoch, finding.batch, int(policy == "skip")]]
    what = "the update of that step" if policy == "skip" else "that batch"
    run.log.say(f"back to step {begun_at}; {what} is left out (train.on_fault={policy})")
    return again


def find(run: Run, until: int) -> Finding | None:
    """Train `run` up to step `until` with every check on; where the first number that is none appeared, if any did."""
    progress = run.progress
    if progress.step == run.first_step:
        rng.seed_all(rng.derive_key(run.seed, "train"))
    skip = infinite_buffers(run.model)
    run.model.train()
    with watched(run, skip) as watch:
        while progress.step < until and run.stop.signal is None:
            begun_at = (progress.step, progress.epoch)
            for batch in loop.batches(run):
                try:
                    train_step(run, batch, skip, watch)
                except Found as found:
                    return finding_of(run, found, watch.micro_batch)
                progress.step += 1
                progress.batch += 1
                if progress.batch == run.steps_per_epoch:
                    loop.end_epoch(run)
                if progress.step >= until or run.stop.signal is not None:
                    return None
            if progress.batch:  # the end of data of unknown length
                loop.end_epoch(run)
            if (progress.step, progress.epoch) == begun_at:
                return None
    return None


@dataclass
class Watch:
    """Which micro-batch of a step is under way; None where it is all of them."""

    micro_batch: int | None = None


def train_step(run: Run, batch: Any, skip: tuple[str, ...], watch: Watch) -> None:
    """One step of `fit.fit`, each part looked at.

    Raises:
        Found: the first number that is none.
    """
    watch.micro_batch = -1
    run.update(batch)
    watch.micro_batch = None
    tensors = tensors_of(run.model, run.optimizer, skip, run.loss)
    bad = not_finite(tensors)
    if bad:
        module = bad[0].split("`")[1].rpartition(".")[0] if bad[0].startswith("parameter") else ""
        raise Found(f"{bad[0]} in its update", bad_value(tensors[bad[0]]), _type_of(run.model, module))
    run.schedule.step()


def checked_step(
    run: Run, skip: tuple[str, ...], watch: Watch, step: Step, batch: Any, *rest: Any, **named: Any
) -> Any:
    """The run's step, its batch, its loss and the model's buffers looked at.

    Raises:
        Found: the first number that is none.
    """
    whole = getattr(run.update, "parts", 1) == 1  # else it is unknown which part of which micro-batch this is
    watch.micro_batch = (watch.micro_batch or 0) + 1 if run.accumulate > 1 and whole else None
    check_input(batch)
    outcome = step(batch, *rest, **named)
    for name, tensor in run.model.named_buffers():
        if name not in skip and not is_finite(tensor):
            raise Found(f"buffer `{name}`", bad_value(tensor), _type_of(run.model, name.rpartition(".")[0]))
    if not is_finite(outcome["loss"]):
        raise Found("the loss", bad_value(outcome["loss"]))
    return outcome


def check_input(batch: Any, at: str = "batch") -> None:
    """Raise Found where the batch that came from the data has a number that is none, with the rows that have it."""
    if isinstance(batch, Tensor):
        if not is_finite(batch):
            raise Found(f"the input `{at}`", bad_value(batch), rows=_bad_rows(batch))
    elif isinstance(batch, dict | list | tuple):
        for name, member in batch.items() if isinstance(batch, dict) else enumerate(batch):
            check_input(member, f"{at}[{name!r}]")


@contextmanager
def uncompiled() -> Iterator[None]:
    """Compiled models run as they are written: hooks that come later would not be called in compiled code."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def watched(run: Run, skip: tuple[str, ...]) -> Iterator[Watch]:
    """Hooks that raise Found at the first bad input or output of a module and the first bad gradient."""
    watch = Watch()
    with ExitStack() as stack:
        stack.enter_context(uncompiled())
        stack.callback(setattr, run.update, "step", run.update.step)
        run.update.step = partial(checked_step, run, skip, watch, run.update.step)
        for name, module in run.model.named_modules():
            stack.callback(module.register_forward_pre_hook(partial(check_arguments, run.model, name)).remove)
            stack.callback(module.register_forward_hook(partial(check_output, run.model, skip, name)).remove)
        for name, parameter in run.model.named_parameters():
            if parameter.requires_grad:
                hook = parameter.register_post_accumulate_grad_hook(partial(check_gradient, run, name))
                stack.callback(hook.remove)
        yield watch


def check_arguments(model: nn.Module, name: str, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Raise Found where a module is given a bad tensor: what computed it is no module, or the step itself."""
    for member in inputs:
        if not is_finite(member):
            what = f"the input of `{name}`" if name else "the model's input"
            rows = None if name else _bad_rows(member)  # further in, the first dimension may be another
            raise Found(what, bad_value(member), _type_of(model, name), rows)


def _bad_rows(tensor: Tensor) -> list[int] | None:
    """The places along the first dimension that have a number that is none."""
    bad = ~torch.isfinite(tensor)
    return bad.reshape(len(tensor), -1).any(1).nonzero().flatten().tolist() if tensor.dim() else None


def check_output(
    model: nn.Module, skip: tuple[str, ...], name: str, module: nn.Module, _inputs: Any, output: Any
) -> None:
    """Raise Found where a module's output is bad: at its own parameter or buffer, where that is."""
    members = output if isinstance(output, tuple | list) else [output]
    bad = next((member for member in members if not is_finite(member)), None)
    if bad is None:
        return
    for own, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        full = f"{name}.{own}" if name else own
        if full not in skip and not is_finite(tensor):
            what = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
            raise Found(f"{what} `{full}`", bad_value(tensor), _type_of(model, name))
    raise Found(f"the output of `{name}`" if name else "the model's output", bad_value(bad), _type_of(model, name))


def check_gradient(run: Run, name: str, parameter: Tensor) -> None:
    """Raise Found where a parameter's gradient is bad; infinite ones are no fault while a scaler may still help."""
    if run.scaler is not None and run.scaler.grad_scaler.get_scale() > 1:
        return
    if parameter.grad is not None and not is_finite(parameter.grad):
        value = bad_value(parameter.grad)
        raise Found(f"the gradient of `{name}`", value, _type_of(run.model, name.rpartition(".")[0]))


def _type_of(model: nn.Module, name: str) -> str:
    kind = type(model.get_submodule(name)).__name__
    return f"{name} ({kind})" if name else kind


def finding_of(run: Run, found: Found, micro_batch: int | None = None) -> Finding:
    """Where in the run it was found, and with which samples: those of one micro-batch, or of all of the step."""
    progress = run.progress
    first, split = progress.batch * run.accumulate, run.splits["train"]
    last = first + run.accumulate if split.num_batches is None else min(first + run.accumulate, split.num_batches)
    batches = range(first, last)
    if micro_batch is not None:
        batches = range(first + micro_batch, first + micro_batch + 1)
    members = [split.sample_indices(progress.epoch, batch) for batch in batches]
    samples = None if None in members else [index for member in members if member is not None for index in member]
    if samples is not None and found.rows is not None and getattr(run.update, "parts", 1) == 1:
        samples = [samples[row] for row in found.rows if row < len(samples)]
    return Finding(
        step=progress.step + 1,
        epoch=progress.epoch,
        batch=progress.batch,
        tensor=found.tensor,
        module=found.module,
        value=found.value,
        samples=samples,
    )
