"""Report of a preflight, and the conversion of exceptions to mistakes."""

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
from runner.experiment.builders.instantiate import InstantiationError
from runner.model.init import InitRow
from runner.model.pretrained.plan import LoadPlan


@dataclass
class Preflight:
    """Report of a preflight: meta model, meta batches of two samples, mistakes, notes, data plan."""

    model: nn.Module | None = None
    batch: Any = None
    eval_batch: Any = None  # where training's transforms and evaluation's make different things
    train_shapes: list[str] = field(default_factory=list)  # of that batch, where this one is of an evaluation
    init_rows: list[InitRow] = field(default_factory=list)
    pretrained: LoadPlan | None = None
    mistakes: list[Mistake] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what is left for the first real batch to show, and why
    left_open: bool = False  # whether the target is assumed, and would be spread: the first real batch shows it
    plan: list[str] = field(default_factory=list)  # which transforms run on whole batches, and why not all

    def inputs(self, config: Config) -> Any:
        """Return the model's inputs: the member or members of the batch that the step's `input` names."""
        place = config.step.get("input", 0)
        if isinstance(place, dict):
            return {name: self.batch[member] for name, member in place.items()}
        return [self.batch[member] for member in place] if isinstance(place, list) else self.batch[place]

    def one_sample(self, config: Config) -> Any:
        """Return the model's inputs for a batch of one sample."""
        inputs = self.inputs(config)
        if isinstance(inputs, dict):
            return {name: member[:1] for name, member in inputs.items()}
        return [member[:1] for member in inputs] if isinstance(inputs, list) else inputs[:1]

    @contextmanager
    def catching(self, key: str) -> Iterator[None]:
        """Record the exception of a constructor as a mistake."""
        try:
            yield
        except InstantiationError as error:
            self.mistakes.append(to_mistake(error))
        except ConfigError as error:
            self.mistakes += error.mistakes
        except (RunError, ValueError, TypeError, ArithmeticError) as error:
            self.mistakes.append(Mistake(key, f"is refused ({type(error).__name__}: {error})", kind="refused"))


def to_mistake(error: InstantiationError) -> Mistake:
    """Turn an InstantiationError into a mistake at the argument that its message names, if only one."""
    scalars, named, valued = find_named_arguments(error.node, error.cause)
    rule, where = f"is refused ({error.said})", locate_user_code(error.cause)
    for candidates in (named & valued, valued, named):
        if len(candidates) == 1:
            name = candidates.pop()
            return Mistake(f"{error.key}.{name}", rule, scalars[name], where, kind="refused")
    return Mistake(error.key, rule, error.node["_target_"], where, kind="refused")


def find_named_arguments(node: Mapping[str, Any], error: Exception) -> tuple[dict[str, Any], set[str], set[str]]:
    """Return a node's plain arguments, and those whose name, or whose value, stands in the message."""
    words = set(re.findall(r"[^\s:,;=()'\"`]+", str(error)))
    scalars = {name: value for name, value in node.items() if isinstance(value, bool | int | float | str)}
    scalars.pop("_target_", None)
    named = {name for name in scalars if name in words}
    return scalars, named, {name for name, value in scalars.items() if str(value) in words}


def locate_user_code(error: BaseException) -> str:
    """Return `file:line` of the innermost user code that an error passed through; empty without any."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).is_relative_to(Path.cwd()) and "site-packages" not in f.filename]
    theirs = [f for f in own if not Path(f.filename).is_relative_to(PACKAGE)]
    return f"{theirs[-1].filename}:{theirs[-1].lineno}" if theirs else ""


def has_any(wrong: Container[str], *keys: str) -> bool:
    """Return whether any of the config keys is among those that have mistakes."""
    return any(key in wrong for key in keys)


def is_meta_error(error: BaseException | None) -> bool:
    """Return whether an error only says that meta tensors have no numbers."""
    without_forward = 'missing the required "forward"' in str(error)
    return (isinstance(error, NotImplementedError) and not without_forward) or "meta" in str(error).lower()


def describe_shapes(batch: Any) -> list[str]:
    """Describe the tensors of a batch: place, shape and dtype of each."""
    items = batch.items() if isinstance(batch, dict) else enumerate(batch)
    return [f"{place}: {list(member.shape)} {member.dtype}" for place, member in items if hasattr(member, "shape")]
