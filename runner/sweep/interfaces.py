"""Interfaces of a sweep: a source of points and an executor of jobs, all the controller knows.

Jobs, places and events are plain data, so that they go through a pipe, a queue or a file as JSON: the plugins of other
launchers are imported more than once in a process, and nothing pickled survives that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from runner.sweep.ledger import Cause, JobRecord

OUTPUT = "output.txt"  # in a job's directory: what it prints, and the Python stack of a crash


@dataclass(frozen=True)
class Proposal:
    """Proposed job: the overrides that not all jobs share (`runner.sweep.space.axes.Point.own`).

    `tag` comes back with the job in `Source.ended`; nobody else looks at it.
    """

    overrides: tuple[str, ...]
    tag: Any = None


class Source(Protocol):
    """Source of points: a grid knows all at the start, a search makes one per free slot."""

    known: bool  # whether all points exist at the start: they are checked, and counted, before the first job starts
    total: int | None  # how many jobs there will be, where that is known

    @property
    def judge(self) -> str:
        """Return the address where a job asks whether to stop as pruned; empty without a pruner."""

    def next(self) -> Proposal | None:
        """Return a point for a free slot; None if there is none now (see `done`)."""

    @property
    def done(self) -> bool:
        """Whether no more points will come, whatever happens to the jobs that run."""

    @property
    def has_more(self) -> bool:
        """Whether the next point is of the batch of the last one, and comes before any job starts."""

    def started(self, point: Proposal, job: JobRecord) -> None:
        """Attach a point to its job; `ended` follows at once if the job needs no run."""

    def ended(self, point: Proposal, job: JobRecord) -> None:
        """Report that a job completed, failed, was interrupted or was pruned, as its row says."""

    def refused(self, point: Proposal, problem: str) -> None:
        """Report a point with a wrong config; a known point is refused before any job starts."""

    def close(self) -> None:
        """Release resources after the last job."""


@dataclass(frozen=True)
class JobSpec:
    """Specification of one attempt of a job. Plain data: `dataclasses.asdict` is its JSON.

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
        memory: GiB that its processes may hold together, as those of a stack; None without a limit of its own.
        judge: where it asks whether to stop as pruned; empty where there is nobody to ask.
        members: of a stack: the specifications of its jobs, as plain data; the stack's own `folder` is the first's.
        timed: whether the stack is compared with its jobs one after the other, and left where it is slower.
        share: stacks that run at a time, and so share the memory.
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
    members: list[dict[str, Any]] = field(default_factory=list)
    timed: bool = False
    share: int = 1


@dataclass(frozen=True)
class Event:
    """Event that an executor reports: a job started or ended, or the jobs of a stack were tried as one.

    Attributes:
        kind: `started` (with host, slot and pid), `ended`, or `tried`.
        job: its id.
        exit: the exit status, minus the signal's number where a signal ended it; None where it is not known. Of a
            trial: EXIT_APART where the jobs do not train as one.
        cause: what the executor itself did to it or knows: `timeout`, `memory`, `killed`, `lost`; else empty.
        error: what there is to say about that.
        member: of a stack that was tried, the job that its process goes on with where they do not train as one.
    """

    kind: Literal["started", "ended", "tried"]
    job: str
    host: str = ""
    slot: int | None = None
    pid: int | None = None
    exit: int | None = None
    cause: Cause | Literal[""] = ""
    error: str = ""
    member: str = ""


class Executor(Protocol):
    """Executor of jobs; the directory of a job says how it ended, an event only that it did."""

    def prepare(self) -> None:
        """Prepare to run jobs after their examination, which has imported what they need."""

    def has_room(self, job: JobSpec) -> bool:
        """Return whether `start` would begin the job at once or, with a queue, soon enough."""

    def start(self, job: JobSpec) -> None:
        """Start a job."""

    def wait(self, seconds: float) -> Sequence[Event]:
        """Return events as soon as there are some, or none after `seconds`; a signal ends the wait."""

    def stop(self, job: str) -> None:
        """Ask a job to save and end (SIGTERM, where there are signals)."""

    def kill(self) -> None:
        """Kill all jobs at once; their `ended` events may be missing."""

    def close(self) -> None:
        """Release all resources after the last job."""
