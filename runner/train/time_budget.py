"""Budget of training time (`train.max_time_counts=training`) without start-up and compilation."""

import threading
import time

from runner.train.state import NoBudget, StopRequest

TIME_IS_UP = "train.max_time is used up"


class TrainingBudget(NoBudget):
    """Seconds of training that a run has left, counted while its training clock runs.

    They begin after this process's first optimizer step, which allocates, compiles and tunes; with `watches_compiler`
    a later compilation (another batch size) is left out too. The run is asked to end once none is left.

    Args:
        stop: of the run.
        seconds: over all resumes.
        used: those of earlier processes.
        watches_compiler: whether `torch.compile` may compile while the clock runs.
    """

    def __init__(self, stop: StopRequest, seconds: float, used: float, *, watches_compiler: bool) -> None:
        self._stop, self._seconds = stop, seconds
        self._watches_compiler = watches_compiler
        self._lock = threading.RLock()  # a backward compiles in a thread of autograd's
        self._since: float | None = None
        self._is_running = self._is_compiling = False
        self._before = used
        self.is_armed = False

    @property
    def used(self) -> float:  # type: ignore[override]
        """Seconds used until now, by earlier processes too."""
        with self._lock:
            return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    def arm(self) -> None:
        """Begin to count: the first step is done."""
        if self.is_armed:
            return
        self.is_armed = True
        if self._watches_compiler:
            from torch._dynamo.callback import callback_handler

            callback_handler.register_start_callback(lambda _: self._note_compilation(begins=True))
            callback_handler.register_end_callback(lambda _: self._note_compilation(begins=False))
        self._update()

    def start(self) -> None:
        self._is_running = True
        self._update()

    def pause(self) -> None:
        self._is_running = False
        self._update()

    def _note_compilation(self, *, begins: bool) -> None:
        self._is_compiling = begins
        self._update()

    def _update(self) -> None:
        """Count from now on, or no more."""
        with self._lock:
            counts = self.is_armed and self._is_running and not self._is_compiling
            if counts and self._since is None:
                self._since = time.perf_counter()
                self._stop.end_in(self._seconds - self._before, TIME_IS_UP)
            elif not counts and self._since is not None:
                self._before = self.used
                self._since = None
                self._stop.cancel()
