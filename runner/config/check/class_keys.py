"""Keys that name classes, of a mapping by class: `{torch.nn.Conv2d: 0.1}`."""

from collections.abc import Sequence

from runner.config.check.imports import TargetError, import_object
from runner.config.check.slots import explain_misplaced


def explain_class_key(name: str, trust: Sequence[str]) -> TargetError | None:
    """Explain why a key names no class that may be named in a config; None where it does."""
    try:
        target = import_object(name, trust)
    except TargetError as error:
        return error
    problem = explain_misplaced("nested", target, name, trust)
    if problem or not isinstance(target, type):
        return TargetError(problem or "must be a class: the parameter takes a mapping by class")
    return None
