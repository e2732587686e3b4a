"""Trial of a stack on its first batch: one step of all jobs beside those of some of them alone.

Nothing of it stays: weights, buffers and generators are as they were.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from runner.core import rng
from runner.core.copies import copy_owned
from runner.data.in_memory import InMemoryBatches
from runner.data.per_sample import DataLoaderBatches
from runner.train.state import Run
from runner.train.vectorized import LEAST_STEPS
from runner.train.vectorized.python_state import find_changed_state, read_python_state, restore_step
from runner.train.vectorized.stack import (
    Stack,
    StepModule,
    UnequalJobsError,
    get_tensors,
    release,
    stack_batches,
    suppress_rule_warnings,
)

# Of losses, and of gradients and buffers, relative to their size. Batch norm of few samples makes much of rounding: the
# gradient of ShuffleNet's first layer for two images is off by 1% in a stack, and a wrong rule by all of it.
TOLERANCE = {"fp32": (1e-4, 5e-2), "tf32": (1e-2, 1e-1), "bf16": (5e-2, 2e-1)}
LEAST_GAIN = 0.9  # of the time of the jobs one after the other, which a stack must stay below where both are timed
HOPELESS = 1.2  # times the jobs one after the other: after a first look the steps are not timed again
CLEAR = 0.7  # times the jobs one after the other, below which two looks are enough
REPEATS = 5  # of each way, of which the fastest counts: a busy machine slows single ones
LONG_STEP = 0.05  # seconds of a step of all jobs, from which on what is allocated at first does not count
MOST_SPENT = 0.01  # of the time of all steps to come, after which no further look is taken
ROOM = 2.0  # times the measured seconds of all steps that `sweep.timeout` must leave, for evaluations and saves


class ApartError(UnequalJobsError):
    """Reason found by a trial why jobs do not train as one."""


def try_stack(stack: Stack, batches: Sequence[Any], streams: Sequence[dict[str, Any]], *, timed: float) -> str:
    """Compare a step of the stack with the steps of its first and its last job alone.

    Returns both times in words, if `timed`.

    Args:
        stack: not trained yet, or restored.
        batches: one a job; they are not changed.
        streams: states of the generators of each job.
        timed: seconds that the steps to come may take, where times are compared, too; 0: they are not.

    Raises:
        ApartError: the step cannot be mapped, gives other numbers, draws from a generator of the process, or is slower.
    """
    if timed:
        refuse_short(stack.runs)
    begun = read_clock(stack.device)
    stack.direct = True
    try:
        try_step(stack, batches, streams)
    except Exception:  # noqa: BLE001  an operator without a rule, or whatever a model says of tensors that are none
        stack.direct = False
        try_step(stack, batches, streams)
    return refuse_slow(stack, batches, read_clock(stack.device) - begun, timed) if timed else ""


def try_step(stack: Stack, batches: Sequence[Any], streams: Sequence[dict[str, Any]]) -> None:
    """Compare a step of the stack with the steps of its first and its last job alone."""
    first = stack.runs[0].config["device"]["precision"]
    with rng.fork_rng(), keep_state(stack), suppress_rule_warnings():
        alone = {}
        for row in sorted({0, len(stack) - 1}):  # before the step of all, which changes the buffers of each
            rng.set_state(streams[row])
            alone[row] = compute_alone(stack, row, batches[row])
        outcome = compute_together(stack, batches)
        for row, (module, loss) in alone.items():
            compare(stack, row, module, float(outcome["loss"][row].detach()), loss, TOLERANCE[first])


def map_step(stack: Stack, batches: Sequence[Any]) -> None:
    """Try a step of the stack in both ways, without a comparison; nothing of it stays.

    Raises:
        ApartError: it cannot be mapped, or draws from a generator of the process.
    """
    refused: Exception | None = None
    for stack.direct in (True, False):
        try:
            with rng.fork_rng(), keep_state(stack), suppress_rule_warnings():
                compute_together(stack, batches)
        except Exception as error:  # noqa: BLE001  as in `try_stack`
            refused = error
        else:
            return
    assert refused is not None
    raise refused


def compute_together(stack: Stack, batches: Sequence[Any]) -> dict[str, Tensor]:
    """Compute the gradients of all jobs, and refuse what draws; return the step outputs."""
    rng.seed_all(0)
    before, held = rng.mark_state(), read_python_state(stack.template)
    with name_module(stack.template):
        outcome, _ = stack(*stack_batches([copy_owned(batch) for batch in batches], stack.device))
        outcome["loss"].sum().backward()
    refuse_draws(before)
    if what := find_changed_state(stack.template, held):
        message = f"model: its step changes {what}, which a stack has once and each job for itself"
        raise ApartError(message)
    return outcome


def refuse_draws(before: dict[str, Any]) -> None:
    """Refuse a step that has drawn from a generator of the process: each job has one of its own."""
    now = rng.mark_state()
    for name, of in (("torch", "torch's"), ("numpy", "NumPy's"), ("python", "Python's")):
        if now[name] != before[name]:
            message = f"model: its step draws from {of} generator, of which each job has one of its own"
            raise ApartError(message)


@contextmanager
def keep_state(stack: Stack) -> Iterator[None]:
    """Restore the buffers and the generators of a stack on exit, and clear its gradients."""
    buffers = {name: buffer.clone() for name, buffer in stack.buffers.items()}
    states = [generator.get_state() for generator in stack.generators]
    held = read_python_state(stack.template)
    try:
        yield
    finally:
        restore_step(stack.template, held)
        for parameter in stack.parameters.values():
            parameter.grad = None
        with torch.no_grad():
            for name, buffer in buffers.items():
                stack.buffers[name].copy_(buffer)
        for generator, state in zip(stack.generators, states, strict=True):
            generator.set_state(state)


@contextmanager
def name_module(template: StepModule) -> Iterator[None]:
    """Turn an error of the step into an ApartError that names the module in whose forward it came."""
    inside: list[str] = []
    handles = []
    for path, module in template.named_modules():
        label = f"`{path.removeprefix('model.')}` ({type(module).__name__})" if path else "the step"
        handles.append(module.register_forward_pre_hook(lambda *_, label=label: inside.append(label)))
        handles.append(module.register_forward_hook(lambda *_: inside.pop() and None))
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        where = inside[-1] if inside else "the backward"
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if "randomness error mode" in text:  # as torch says of dropout within its attention, or within an LSTM
            text = "it draws random numbers within one operator, of which each job needs its own"
        raise ApartError(f"model: {where} cannot be mapped over jobs ({text})") from error
    finally:
        for handle in handles:
            handle.remove()


def compute_alone(stack: Stack, row: int, batch: Any) -> tuple[StepModule, float]:
    """Compute the loss and the gradients of one job on copies of its model and its loss."""
    run = stack.runs[row]
    module = StepModule(deepcopy(run.model), deepcopy(run.loss), stack.template.step)
    loss = module(copy_owned(batch))["loss"]
    loss.backward()
    return module, float(loss.detach())


def compare(
    stack: Stack, row: int, module: StepModule, loss: float, alone: float, tolerances: tuple[float, float]
) -> None:
    """Compare loss, gradients and buffers of a job in the stack with those of the job alone."""
    of_loss, tolerance = tolerances
    if not abs(loss - alone) <= of_loss * (1 + abs(alone)):
        message = f"model: its loss is {loss:.6g} in a stack and {alone:.6g} alone"
        raise ApartError(message)
    grads = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    # What is zero but for rounding (a bias before batch norm) is compared with the gradient of all parameters.
    floor = 1e-4 * float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in grads])))
    for name, parameter in module.named_parameters():
        stacked = stack.parameters[name].grad
        if (stacked is None) != (parameter.grad is None):
            message = f"model: `{name.removeprefix('model.')}` has a gradient in one of the two ways only"
            raise ApartError(message)
        if (
            stacked is not None
            and parameter.grad is not None
            and not is_near(stacked[row], parameter.grad, tolerance, floor)
        ):
            message = f"model: the gradient of `{name.removeprefix('model.')}` is another one in a stack"
            raise ApartError(message)
    for name, buffer in module.named_buffers():
        if not is_near(stack.buffers[name][row], buffer, tolerance):
            message = f"model: the buffer `{name.removeprefix('model.')}` is another one in a stack"
            raise ApartError(message)


def is_near(one: Tensor, other: Tensor, tolerance: float, floor: float = 0.0) -> bool:
    """Return whether two tensors differ by less than a share of their norm, or of `floor`."""
    if not other.is_floating_point():
        return bool(torch.equal(one, other))
    if not torch.isfinite(other).all():
        return bool(torch.equal(torch.isfinite(one), torch.isfinite(other)))
    difference, size = (torch.linalg.vector_norm(value.detach().double()) for value in (one - other, other))
    return bool(difference <= tolerance * size + max(floor, 1e-6 * other.numel() ** 0.5))


def try_copies(run: Run, streams: dict[str, Any], jobs: int, timed: float) -> str:
    """Time a stack of as many copies of one run, before the others are built; return the times if it did.

    Nothing of it stays.

    Raises:
        ApartError: as `try_stack` does.
    """
    batch = read_first_batch(run)
    if batch is None:
        return ""
    stack = Stack([run] * jobs)
    try:
        return try_stack(stack, [copy_owned(batch) for _ in range(jobs)], [streams] * jobs, timed=timed)
    finally:
        release(run, *get_tensors(run))


def read_first_batch(run: Run) -> Any | None:
    """Read the next batch of a run, which its training reads again; None where that might count.

    It may from memory, and sample by sample in this process: what a sample is depends on no other that was read. Worker
    processes are not started for it, and transforms that look at the clock, or at whole batches, are left alone.
    """
    split = run.splits["train"]
    plain = isinstance(split, InMemoryBatches) or (
        isinstance(split, DataLoaderBatches) and split.loader.num_workers == 0 and not split.clock.active
    )
    if not plain:
        return None
    with rng.fork_rng():
        return next(iter(split.batches(run.progress.epoch, run.progress.batch * run.rhythm.accumulate)))


def refuse_short(runs: Sequence[Run]) -> None:
    """Refuse jobs that have so few steps to come that nothing is to be gained.

    Raises:
        ApartError: they have.
    """
    steps = max(run.rhythm.total_steps - run.progress.step for run in runs)
    if steps < LEAST_STEPS:
        message = f"sweep.vectorize: {steps:,} steps are too few to try whether they are faster as one"
        raise ApartError(message)


def refuse_slow(stack: Stack, batches: Sequence[Any], spent: float, limit: float) -> str:
    """Refuse a stack whose steps are too few, or take as long as those of its jobs, one by one.

    Returns both times in words.

    Args:
        stack: whose steps to come are counted.
        batches: of its first step.
        spent: seconds that its jobs alone would not have needed.
        limit: seconds that the steps to come may take.
    """

    def step_together() -> None:
        outcome, _ = stack(*stack_batches([copy_owned(batch) for batch in batches], stack.device))
        outcome["loss"].sum().backward()
        for parameter in stack.parameters.values():
            parameter.grad = None

    module = StepModule(deepcopy(stack.runs[0].model), deepcopy(stack.runs[0].loss), stack.template.step)

    def step_one() -> None:
        module(copy_owned(batches[0]))["loss"].backward()
        module.zero_grad()

    steps = max(run.rhythm.total_steps - run.progress.step for run in stack.runs)
    begun = read_clock(stack.device)
    with rng.fork_rng(), keep_state(stack):
        one, together = compare_times(step_one, step_together, len(stack), steps, stack.device)
    spent += read_clock(stack.device) - begun
    alone = one * len(stack)
    ways = f"{len(stack)} of them take {1e3 * together:.3g} ms a step as one, {1e3 * alone:.3g} ms one after the other"
    if together * steps + spent > LEAST_GAIN * alone * steps:
        if together <= LEAST_GAIN * alone:
            ways += f": {steps:,} steps do not make up for the {spent:.2g} s of trying it"
        message = f"sweep.vectorize: {ways}"
        raise ApartError(message)
    if together * steps * ROOM > limit:
        message = f"sweep.timeout: {ways}; {steps:,} steps might take longer than the {limit:g} s of an attempt"
        raise ApartError(message)
    return ways


def compare_times(step_one: Any, step_all: Any, jobs: int, steps: int, device: torch.device) -> tuple[float, float]:
    """Measure the least seconds of a step of one job and of all, in turns, until the verdict is clear.

    A round costs as much as two steps of all. The first does not count where steps are short: it allocates.
    """
    one = together = math.inf
    begun = read_clock(device)
    for turn in range(REPEATS + 1):
        now_one, now_all = measure(step_one, device), measure(step_all, device)
        if turn == 0 and now_all < LONG_STEP:
            continue
        one, together = min(one, now_one), min(together, now_all)
        ratio = together / (one * jobs)
        is_clear = ratio > HOPELESS or (turn > 1 and ratio < CLEAR)
        if is_clear or read_clock(device) - begun > MOST_SPENT * one * jobs * steps:
            break
    return one, together


def measure(step: Any, device: torch.device) -> float:
    """Measure the seconds of a step."""
    begun = read_clock(device)
    step()
    return read_clock(device) - begun


def read_clock(device: torch.device) -> float:
    """Return the seconds of this process; on a CPU those that it computed, however busy the machine."""
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
