"""Profiler of a few steps by torch's profiler, with a table of the slowest operators."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROWS = 12  # of the table


class StepProfiler:
    """Profiler of `active` steps after `wait` idle and `warmup` discarded ones, `repeat` times.

    A trace is `profile/steps_<first>_<last>.pt.trace.json.gz` of the run directory: Chrome's format, which Perfetto
    (ui.perfetto.dev), chrome://tracing and TensorBoard's profiler plugin open.

    Args:
        folder: the run directory.
        device: whose kernels are traced beside the CPU's operators.
        wait: steps to let pass first.
        warmup: steps traced and thrown away, since the first one pays for the tracing itself.
        active: steps of a trace.
        repeat: how many traces.
        options: of `torch.profiler.profile`: record_shapes, profile_memory, with_stack.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        *,
        wait: int,
        warmup: int,
        active: int,
        repeat: int = 1,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.folder, self.device = folder / "profile", device
        self.schedule = {"wait": wait, "warmup": warmup, "active": active, "repeat": repeat}
        self.options = options or {}
        self.left = (wait + warmup + active) * repeat  # steps until it is over
        self.step = 0
        self.profiler: Any = None

    def start(self, step: int) -> None:
        """Start the profiler at optimizer step `step`."""
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes of itself to standard error
        from torch.profiler import ProfilerActivity, profile, schedule

        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
        self.step, self.tables = step, list[str]()
        self.profiler = profile(
            activities=activities, schedule=schedule(**self.schedule), on_trace_ready=self._write, **self.options
        )
        self.profiler.start()

    def advance(self, step: int, say: Callable[[str], None]) -> None:
        """Advance the profiler after optimizer step `step`; pass the table to `say` after the last trace."""
        if self.profiler is None:
            return
        self.step = step
        self.left -= 1
        self.profiler.step()
        if not self.left:
            self.stop(say)

    def stop(self, say: Callable[[str], None]) -> None:
        """Stop the profiler, also before its last step."""
        self.left = 0
        if self.profiler is not None:
            self.profiler.stop()
            self.profiler = None
            say("\n".join(self.tables) or "log.profile: training ended before there was a step to trace")

    def _write(self, profiler: Any) -> None:
        self.folder.mkdir(exist_ok=True)
        first = self.step - self.schedule["active"] + 1
        path = self.folder / f"steps_{first}_{self.step}.pt.trace.json.gz"
        profiler.export_chrome_trace(str(path))
        key = f"self_{self.device.type}_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=key, row_limit=ROWS, max_name_column_width=40)
        self.tables.append(f"steps {first} to {self.step}, operators by their own time:\n{table}{path}")
