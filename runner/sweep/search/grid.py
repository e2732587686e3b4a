"""Grid source: the points of a grid, a file or a random sample, in order."""

from collections.abc import Sequence

from runner.sweep.interfaces import Proposal
from runner.sweep.ledger import JobRecord


class Grid:
    """Source that knows all of its points at the start."""

    known, judge, has_more = True, "", False

    def __init__(self, points: Sequence[Proposal]) -> None:
        self._points = list(reversed(points))
        self.total: int | None = len(points)

    def next(self) -> Proposal | None:
        return self._points.pop() if self._points else None

    @property
    def done(self) -> bool:
        return not self._points

    def started(self, point: Proposal, job: JobRecord) -> None:
        pass

    def ended(self, point: Proposal, job: JobRecord) -> None:
        pass

    def refused(self, point: Proposal, problem: str) -> None:
        pass

    def close(self) -> None:
        pass
