"""What a sweep is made of: a source of points, and an executor that runs jobs. The controller knows no more of either.

Jobs, places and events are plain data, so that they go through a pipe, a queue or a file as JSON: the plugins of other
launchers are imported more than once in a process, and nothing pickled survives that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from runner.sweep.ledger import Cause, Row

OUTPUT = "output.txt"  # in a job's directory: what it prints, and the Python stack of a crash


@dataclass(frozen=True)
class Point:
    """One job that is asked for: the arguments that not all jobs share (`runner.sweep.space.axes.Point.own`).

    `tag` comes back with the job in `Source.ended`; nobody else looks at it.
    """

    overrides: tuple[str, ...]
    tag: Any = None


class Source(Protocol):
    """Where points come from. A grid knows all of them at the start; a search makes one for each slot that is free."""

    known: bool  # whether all points exist at the start: they are checked, and counted, before the first job starts
    total: int | None  # how many jobs there will be, where that is known

    @property
    def judge(self) -> str:
        """Return the address where a job asks whether to stop as pruned; empty without a pruner."""

    def next(self) -> Point | None:
        """A point for a slot that is free now; None where there is none now (see `done`)."""

    @property
    def done(self) -> bool:
        """Whether no more points will come, whatever happens to the jobs that run."""

    def started(self, point: Point, job: Row) -> None:
        """The point is this job, which may have run before: then `ended` follows at once, without a run."""

    def ended(self, point: Point, job: Row) -> None:
        """The job is completed, failed, interrupted or pruned: its row says how, with its objective and metrics."""

    def refused(self, point: Point, problem: str) -> None:
        """The point is no job: its config is wrong. A known point is refused before anything starts."""

    def close(self) -> None:
        """No job runs any more."""


@dataclass(frozen=True)
class Job:
    """Everything that is needed to run one attempt of a job, anywhere. Plain data: `dataclasses.asdict` is its JSON.

    Attributes:
        id: of the row.
        folder: the run directory, absolute; it exists.
        unresolved: the composed config as YAML, interpolations kept.
        config: the resolved config, every default filled in.
        argv: the command line, for the record.
        trust: patterns of names trusted on the command line.
        anew: whether to put what an earlier attempt left aside and start at step 0: `never` continues, or refuses where
            that cannot be done exactly; `if_changed` starts anew where it cannot; `always`.
        retry: whether the attempt before failed: then its log is put aside.
        processes: that train together, and in each a rank of `device.parallel`.
        cores: CPU cores that it takes, and `gpus` GPUs; `gpu` the index of one that the config asks for by name.
        timeout: seconds until it is stopped for good; None for ever.
        memory: GiB that its processes may hold together; None without a limit of its own.
        judge: where it asks whether to stop as pruned; empty where there is nobody to ask.
    """

    id: str
    folder: str
    unresolved: str
    config: dict[str, Any]
    argv: list[str]
    trust: list[str] = field(default_factory=list)
    anew: Literal["never", "if_changed", "always"] = "never"
    retry: bool = False
    processes: int = 1
    cores: int = 1
    gpus: int = 0
    gpu: int | None = None
    timeout: float | None = None
    memory: float | None = None
    judge: str = ""


@dataclass(frozen=True)
class Event:
    """What an executor has to say about a job.

    Attributes:
        kind: `started` (with host, slot and pid) or `ended`.
        job: its id.
        exit: the exit status, minus the signal's number where a signal ended it; None where it is not known.
        cause: what the executor itself did to it or knows: `timeout`, `memory`, `killed`, `lost`; else empty.
        error: what there is to say about that.
    """

    kind: Literal["started", "ended"]
    job: str
    host: str = ""
    slot: int | None = None
    pid: int | None = None
    exit: int | None = None
    cause: Cause | Literal[""] = ""
    error: str = ""


class Executor(Protocol):
    """Runs jobs. How a job ended is read from its directory, so that an event need say no more than that it did."""

    def prepare(self) -> None:
        """The jobs were examined, so that what they import is imported in this process."""

    def has_room(self, job: Job) -> bool:
        """Whether `start` would begin with it at once, or where there is a queue, soon enough."""

    def start(self, job: Job) -> None:
        """Begin with a job."""

    def wait(self, seconds: float) -> Sequence[Event]:
        """What has happened, as soon as something has, or nothing after so many seconds. A signal ends the wait."""

    def stop(self, job: str) -> None:
        """Ask a job to save and end (SIGTERM, where there are signals)."""

    def kill(self) -> None:
        """End all jobs at once; their `ended` events need not come any more."""

    def close(self) -> None:
        """No job runs any more: give everything back."""
