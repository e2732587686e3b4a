"""The points of a grid, a file or a random sample, one after the other."""

from collections.abc import Sequence

from runner.sweep.interfaces import Point
from runner.sweep.ledger import Row


class Listed:
    """A source that knows all of its points: a grid."""

    known, judge = True, ""

    def __init__(self, points: Sequence[Point]) -> None:
        self._points = list(reversed(points))
        self.total: int | None = len(points)

    def next(self) -> Point | None:
        return self._points.pop() if self._points else None

    @property
    def done(self) -> bool:
        return not self._points

    def started(self, point: Point, job: Row) -> None:
        pass

    def ended(self, point: Point, job: Row) -> None:
        pass

    def refused(self, point: Point, problem: str) -> None:
        pass

    def close(self) -> None:
        pass
