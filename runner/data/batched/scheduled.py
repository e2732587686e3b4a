"""Transform of a certain time: on from a step, or until a step."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from runner.core.progress import TrainingProgress


class ScheduledTransform:
    """Transform that is left out before step `start` and from step `end` on; None: never.

    Without a `progress` it is always on, for what is only tried.
    """

    def __init__(
        self,
        transform: Callable[[Any], Any],
        progress: TrainingProgress | None,
        start: int | None = None,
        end: int | None = None,
    ) -> None:
        self.transform, self.progress, self.start, self.end = transform, progress, start, end
        self.draws = getattr(transform, "draws", 0)

    def is_due(self) -> bool:
        """Return whether it is on now."""
        if self.progress is None:
            return True
        step = self.progress.step
        return (self.start is None or step >= self.start) and (self.end is None or step < self.end)

    def __call__(self, value: Any) -> Any:
        return self.transform(value) if self.is_due() else value

    @property
    def batched(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """Batched form of the transform; None where it has none."""
        form: Callable[[Tensor, Tensor], Tensor] | None = getattr(self.transform, "batched", None)
        return form if form is None or self.is_due() else lambda images, _: images
