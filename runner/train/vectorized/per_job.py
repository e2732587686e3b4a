"""Numbers that differ among the jobs of a stack, in the place of one float of a module."""

import math
from collections.abc import Sequence
from typing import Any, NoReturn, Self


class PerJobNumberError(TypeError):
    """Use of a number that differs among jobs where torch or Python takes one number."""


class PerJobNumber(float):
    """Float of a module's attribute that stands for one value a job.

    A rule of `vmap_rules` reads `values`. Whatever else looks at it fails: its own value is NaN, and arithmetic and
    comparisons raise an error, so that no job trains with the number of another.
    """

    values: tuple[float, ...]

    def __new__(cls, values: Sequence[float]) -> Self:
        made = super().__new__(cls, math.nan)
        made.values = tuple(values)
        return made

    def __deepcopy__(self, _memo: Any) -> Self:
        return self

    def _refuse(self, *_: Any) -> NoReturn:
        message = "a number that differs among the jobs is used where no rule can take one value a job"
        raise PerJobNumberError(message)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __pow__ = __rpow__ = __neg__ = __abs__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _refuse
    __bool__ = __float__ = __int__ = __round__ = __repr__ = __str__ = __format__ = _refuse
    __hash__ = float.__hash__
