"""Fitting of transforms, vocabularies and datasets to the training split, before anything is trained.

Any object of the data with a method `fit(train_split)` is fitted once: it gets the raw samples of the training split
(of a fold, those of the other folds). What it learnt is its own `state_dict` where it has one, else the attributes that
`fit` has set or changed. A checkpoint holds that, and a resume or an evaluation puts it back without fitting again.
"""

import inspect
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from runner.core import rng
from runner.core.errors import RunError, describe_error
from runner.data.file_guard import watch_reading
from runner.data.fingerprint import hash_value
from runner.train.accumulators import get_accumulators, set_accumulators

CPU = torch.device("cpu")
SHOWN = 16  # numbers of a learnt tensor that provenance has one by one


def needs_fit(part: Any) -> bool:
    """Return whether an object has a method `fit` with one argument, the training split."""
    method = getattr(part, "fit", None)
    if isinstance(part, type) or not inspect.ismethod(method):
        return False
    needed = [
        parameter
        for parameter in inspect.signature(method).parameters.values()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]
    return len(needed) == 1 and needed[0].kind is not inspect.Parameter.KEYWORD_ONLY


@dataclass
class FittedParts:
    """Objects of the data that are fitted to the training split, by the key that each was built at.

    Attributes:
        seed: of what a `fit` draws.
        recall: gives the state to be put back in place of fitting, by key; None: all is to be fitted.
        parts: in the order in which they were built, nested ones first.
        learnt: names of the attributes that each has learnt; empty of one with a `state_dict` of its own.
    """

    seed: int = 0
    recall: Callable[[], Mapping[str, Any] | None] = lambda: None
    parts: dict[str, Any] = field(default_factory=dict)
    learnt: dict[str, list[str]] = field(default_factory=dict)

    def note(self, key: str, part: Any) -> None:
        """Note an object that was built, if it is to be fitted."""
        if needs_fit(part) and all(part is not known for known in self.parts.values()):
            self.parts[key] = part

    def clear(self) -> None:
        """Forget all: the data is built anew."""
        self.parts.clear()
        self.learnt.clear()

    def fit(self, train_split: Any) -> None:
        """Fit those that are not fitted yet, or put back what they had learnt.

        Raises:
            RunError: one raises an error, or learns what no checkpoint can hold; or the checkpoint has no state of it.
        """
        waiting = {key: part for key, part in self.parts.items() if key not in self.learnt}
        saved = self.recall() if waiting else None
        for key, part in waiting.items():
            if saved is not None:
                known = next((name for name in (key, *_list_twins(key)) if name in saved), None)
                if known is None:
                    raise RunError(f"the checkpoint has nothing of what {key} had learnt by `fit`")
                self._put_back(key, part, saved[known])
                continue
            if train_split is None:
                raise RunError(
                    f"{key} has to be fitted to the training split, and no checkpoint has what it had learnt"
                )
            before = {} if _has_own_state(part) else {name: hash_value(value) for name, value in _list_attributes(part)}
            try:
                with rng.stream(rng.derive_key(self.seed, "fit", key)), watch_reading():
                    part.fit(train_split)
            except Exception as error:
                raise RunError(f"{key}: `fit` of {type(part).__name__} failed: {describe_error(error)}") from error
            changed = [] if _has_own_state(part) else _list_attributes(part)
            self.learnt[key] = [name for name, value in changed if before.get(name) != hash_value(value)]

    def state_dict(self) -> dict[str, Any]:
        """Return what each has learnt, as plain data and tensors."""
        return {key: self._collect(key, part) for key, part in self.parts.items()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Do nothing: the state was put back while the data was built, before anything read it."""

    def _collect(self, key: str, part: Any) -> dict[str, Any]:
        if _has_own_state(part):
            return get_accumulators(part, key)
        return get_accumulators(types.SimpleNamespace(**{name: getattr(part, name) for name in self.learnt[key]}), key)

    def _put_back(self, key: str, part: Any, saved: Mapping[str, Any]) -> None:
        if _has_own_state(part):
            part.load_state_dict(saved)
            self.learnt[key] = []
            return
        holder = types.SimpleNamespace(**{name: getattr(part, name, None) for name in saved})
        set_accumulators(holder, saved, CPU)
        for name, value in vars(holder).items():
            setattr(part, name, value)
        self.learnt[key] = list(saved)

    def describe(self) -> dict[str, Any]:
        """Describe what each has learnt, for provenance: a hash, and numbers where they are few."""
        return {
            key: {
                "sha256": hash_value(state),
                "learnt": {name: _describe_value(value) for name, value in state.items()},
            }
            for key, state in self.state_dict().items()
        }


def _list_twins(key: str) -> list[str]:
    """List the key of the same transform in training: written the same, both are one object."""
    return [key.replace("transform.eval.", "transform.train.", 1)] if key.startswith("transform.eval.") else []


def _has_own_state(part: Any) -> bool:
    module = str(getattr(getattr(type(part), "state_dict", None), "__module__", ""))
    both = all(callable(getattr(part, name, None)) for name in ("state_dict", "load_state_dict"))
    return both and not module.startswith("torch.nn.")


def _list_attributes(part: Any) -> list[tuple[str, Any]]:
    own = dict(vars(part))
    if isinstance(part, nn.Module):
        own = {name: value for name, value in own.items() if name not in vars(nn.Module())}
        own |= dict(part.named_buffers(recurse=False)) | dict(part.named_parameters(recurse=False))
    return list(own.items())


def _describe_value(value: Any) -> Any:
    """Return a short form of a learnt value: itself where it is a number or few, else its type and size."""
    if isinstance(value, Tensor):
        few = value.numel() <= SHOWN and not value.is_complex()
        return _replace_non_finite(value.tolist()) if few else f"tensor {list(value.shape)} {value.dtype}"
    if isinstance(value, bool | int | float | str | None):
        return value if not isinstance(value, str) else value[:100]
    if isinstance(value, Mapping):
        plain = value.get("value", value)
        size = len(plain[0]) if isinstance(plain, list) and plain and isinstance(plain[0], list) else len(plain)
        return f"{value.get('kind', 'mapping')} of {size}"
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__


def _replace_non_finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_replace_non_finite(member) for member in value]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)
