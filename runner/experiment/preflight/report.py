"""The report of a preflight: a model that the checks share, and mistakes told from exceptions."""

import re
import traceback
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from runner.config.schema import Config
from runner.core.errors import ConfigError, Mistake, RunError
from runner.core.paths import PACKAGE
from runner.experiment.builders.instantiate import Refused
from runner.model.init import Row
from runner.model.pretrained.plan import Plan


@dataclass
class Preflight:
    """What was found: the model and a batch of two samples on the meta device, if possible; mistakes; notes."""

    model: nn.Module | None = None
    batch: Any = None
    eval_batch: Any = None  # where training's transforms and evaluation's make different things
    train_shapes: list[str] = field(default_factory=list)  # of that batch, where this one is of an evaluation
    init_rows: list[Row] = field(default_factory=list)
    pretrained: Plan | None = None
    mistakes: list[Mistake] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what is left for the first real batch to show, and why
    left_open: bool = False  # whether the target is assumed, and would be spread: the first real batch shows it
    plan: list[str] = field(default_factory=list)  # which transforms run on whole batches, and why not all

    def inputs(self, config: Config) -> Any:
        """What the model is called with: the member or members of the batch that the step's `input` names."""
        place = config.step.get("input", 0)
        if isinstance(place, dict):
            return {name: self.batch[member] for name, member in place.items()}
        return [self.batch[member] for member in place] if isinstance(place, list) else self.batch[place]

    def one_sample(self, config: Config) -> Any:
        """The same for a batch of one."""
        inputs = self.inputs(config)
        if isinstance(inputs, dict):
            return {name: member[:1] for name, member in inputs.items()}
        return [member[:1] for member in inputs] if isinstance(inputs, list) else inputs[:1]

    @contextmanager
    def catching(self, key: str) -> Iterator[None]:
        """Turn what a constructor refuses into a mistake."""
        try:
            yield
        except Refused as error:
            self.mistakes.append(refusal(error))
        except ConfigError as error:
            self.mistakes += error.mistakes
        except (RunError, ValueError, TypeError, ArithmeticError) as error:
            self.mistakes.append(Mistake(key, f"is refused ({type(error).__name__}: {error})", kind="refused"))


def refusal(error: Refused) -> Mistake:
    """What a constructor refused, at the argument that its message speaks of by name or by value, if that is one."""
    scalars, named, valued = _spoken_of(error.node, error.cause)
    rule, where = f"is refused ({error.said})", raised_in(error.cause)
    for candidates in (named & valued, valued, named):
        if len(candidates) == 1:
            name = candidates.pop()
            return Mistake(f"{error.key}.{name}", rule, scalars[name], where, kind="refused")
    return Mistake(error.key, rule, error.node["_target_"], where, kind="refused")


def _spoken_of(node: Mapping[str, Any], error: Exception) -> tuple[dict[str, Any], set[str], set[str]]:
    """A component's plain arguments, and those of them whose name or whose value stands in an error's message."""
    words = set(re.findall(r"[^\s:,;=()'\"`]+", str(error)))
    scalars = {name: value for name, value in node.items() if isinstance(value, bool | int | float | str)}
    scalars.pop("_target_", None)
    named = {name for name in scalars if name in words}
    return scalars, named, {name for name, value in scalars.items() if str(value) in words}


def raised_in(error: BaseException) -> str:
    """`file:line` of the last line of the user's own code that an error passed through; empty where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).is_relative_to(Path.cwd()) and "site-packages" not in f.filename]
    theirs = [f for f in own if not Path(f.filename).is_relative_to(PACKAGE)]
    return f"{theirs[-1].filename}:{theirs[-1].lineno}" if theirs else ""


def _any(wrong: Container[str], *keys: str) -> bool:
    return any(key in wrong for key in keys)


def _about_meta(error: BaseException | None) -> bool:
    """Whether an error only says that there are no numbers on the meta device."""
    without_forward = 'missing the required "forward"' in str(error)
    return (isinstance(error, NotImplementedError) and not without_forward) or "meta" in str(error).lower()


def _shapes(batch: Any) -> list[str]:
    items = batch.items() if isinstance(batch, dict) else enumerate(batch)
    return [f"{place}: {list(member.shape)} {member.dtype}" for place, member in items if hasattr(member, "shape")]
