"""Slots of the config (model, optimizer, loss and so on) and the objects that fit each."""

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from runner.config.check import allowed
from runner.config.check.imports import LIBRARIES, is_trusted, is_user_code
from runner.config.check.signature import find_returned_class
from runner.config.suggestions import find_nearest
from runner.core.shipped import is_shipped_file

_ANY = "a module, dataset, sampler, transform, loss, init function, optimizer, scheduler or metric"


_OF_ANY_BASE = ("nested", "loss", "metric", "transform")


_TENSORS = allowed.NAMED["tensor"]


def find_nested_slot(annotation: Any, outer: str) -> str:
    """Return the slot that a parameter's annotation names; `nested` (any slot) where it names none."""
    text = str(annotation)
    if "Callable" in text:
        return "nested"
    if outer.endswith(("search_sampler", "pruner")):
        return "nested pruner" if "Pruner" in text else "nested search_sampler"
    for word, slot in (
        ("Optimizer", "optimizer"),
        ("LRScheduler", "scheduler"),
        ("Sampler", "sampler"),
        ("torch.utils.data.dataset.Dataset", "dataset"),
        ("torchmetrics.metric.Metric", "metric"),
        ("torch.Tensor", "tensor"),
    ):
        if word in text:
            return f"nested {slot}"
    same = next((slot for slot in ("scheduler", "optimizer") if outer.endswith(slot)), "")
    return f"nested {same}".rstrip()


def suggest_elsewhere(slot: str, name: str) -> str:
    """Suggest the same or nearest name in those modules of the slot that are already imported."""
    homes = {
        "loss": ("torch.nn", "torch.nn.functional"),
        "optimizer": ("torch.optim",),
        "scheduler": ("torch.optim.lr_scheduler",),
        "init": ("torch.nn.init",),
        "transform": ("torchvision.transforms.v2",),
        "model": ("torch.nn", "torchvision.models"),
        "dataset": ("torchvision.datasets",),
        "sampler": ("torch.utils.data",),
        "search_sampler": ("optuna.samplers",),
        "pruner": ("optuna.pruners",),
    }
    last = name.rpartition(".")[2]
    for home in homes.get(slot.removeprefix("nested "), ()):
        if home in sys.modules and home != name.rpartition(".")[0]:
            right = last if hasattr(sys.modules[home], last) else find_nearest(last, dir(sys.modules[home]))
            if right and not right.startswith("_"):
                return f"{home}.{right}"
    return ""


def get_defining_module(target: Any) -> str:
    """Return the name of the module in which an object is defined."""
    module = getattr(target, "__module__", None) or type(target).__module__
    return str(module)


def explain_misplaced(slot: str, target: Any, name: str, trust: Sequence[str]) -> str:
    """Explain why a target does not fit its slot; empty where it fits.

    User code fits any slot, unless it is plainly another slot's class. What a library defines must be what the slot is
    for: otherwise a config could call anything that a library can reach.
    """
    if not callable(target):
        return "must be a class or a function"
    own = slot.removeprefix("nested ")
    if is_trusted(name, trust):
        return _describe_other_kind(own, target)
    origin = get_defining_module(target)
    first = origin.partition(".")[0]
    if first not in LIBRARIES and first != "runner":
        if first != name.partition(".")[0] and not _is_user_or_ours(origin, trust):
            return f"is `{origin}.{getattr(target, '__qualname__', name)}`, which is neither trusted nor user code"
        return _describe_other_kind(own, target)
    if any(fits(target, name) for kind, fits in _FITS.items() if own in (kind, "nested")):
        return ""
    words = _ANY if own == "nested" else _WORDS[own]
    refused = allowed.explain_not_allowed(target) if can_fit(own, target) else ""
    return f"must be {words}" if not refused else f"may not be named here: {refused}"


def can_fit(slot: str, target: Any) -> bool:
    """Return whether a library's class or function is of the slot's kind, wherever it is defined."""
    made = target if isinstance(target, type) else find_returned_class(target)
    bases = get_base_classes()
    kinds = [bases[slot]] if slot in bases else list(bases.values()) if slot in _OF_ANY_BASE else []
    return made is not None and issubclass(made, tuple(kinds))


def _is_user_or_ours(module: str, trust: Sequence[str]) -> bool:
    return is_shipped_file(getattr(sys.modules.get(module), "__file__", None)) or is_user_code(
        module.partition(".")[0], trust
    )


def _describe_other_kind(slot: str, target: Any) -> str:
    """Describe a user class that is plainly for another slot; empty for any other target."""
    if not isinstance(target, type):
        return ""
    bases = get_base_classes()
    own = bases.get(slot)
    called = slot in ("function", "module_function", "views", "init", "hook", "gradient_hook")
    if (own is None and not called) or (own is not None and issubclass(target, own)):
        return ""
    other = next((kind for kind, base in bases.items() if kind != slot and issubclass(target, base)), None)
    return f"must be {_WORDS[slot]}, but this is for `{other}`" if other else ""


def get_base_classes() -> dict[str, type]:
    """Return the base class that each slot of classes takes."""
    from torch import nn, optim
    from torch.utils import data

    return {
        "model": nn.Module,
        "optimizer": optim.Optimizer,
        "scheduler": optim.lr_scheduler.LRScheduler,
        "dataset": data.Dataset,
        "sampler": data.Sampler,
    }


def _make_subclass_test(kind: str) -> Callable[[Any, str], bool]:
    return lambda target, _: (
        isinstance(target, type) and issubclass(target, get_base_classes()[kind]) and allowed.takes(kind, target)
    )


def _make_optuna_test(slot: str, base: str) -> Callable[[Any, str], bool]:
    """Return a test for subclasses of an Optuna base class, imported only for names of Optuna's."""

    def fits(target: Any, name: str) -> bool:
        if not name.startswith("optuna.") or not allowed.takes(slot, target):
            return False
        module, _, last = base.rpartition(".")
        return isinstance(target, type) and issubclass(target, getattr(importlib.import_module(module), last))

    return fits


def _is_model(target: Any, _name: str) -> bool:
    made = target if isinstance(target, type) else find_returned_class(target)
    return made is not None and issubclass(made, get_base_classes()["model"]) and allowed.takes("model", target)


def _make_callable_test(slot: str) -> Callable[[Any, str], bool]:
    """Return a test for functions, and classes with `__call__`, on a slot's list."""

    def fits(target: Any, _name: str) -> bool:
        called = not isinstance(target, type) or any("__call__" in vars(base) for base in target.__mro__)
        return called and allowed.takes(slot, target)

    return fits


def _is_metric(target: Any, _name: str) -> bool:
    parts = ("update", "compute", "reset")
    has_parts = isinstance(target, type) and all(callable(getattr(target, part, None)) for part in parts)
    return has_parts and allowed.takes("metric", target)


def _is_loss(target: Any, _name: str) -> bool:
    if not isinstance(target, type):
        return allowed.takes("loss", target)
    taken = allowed.takes("model", target) or allowed.takes("metric", target)
    return taken and issubclass(target, get_base_classes()["model"])


def _make_function_test(slot: str) -> Callable[[Any, str], bool]:
    return lambda target, _: not isinstance(target, type) and allowed.takes(slot, target)


def _is_torch_module(target: Any) -> bool:
    """Return whether a target is a module class of torch.nn, which is called as a function of tensors."""
    modules = get_defining_module(target).startswith("torch.nn.modules.")
    return modules and isinstance(target, type) and allowed.takes("model", target)


_FITS: dict[str, Callable[[Any, str], bool]] = {
    "model": _is_model,
    "optimizer": _make_subclass_test("optimizer"),
    "scheduler": _make_subclass_test("scheduler"),
    "dataset": _make_subclass_test("dataset"),
    "sampler": _make_subclass_test("sampler"),
    "transform": lambda target, name: _make_callable_test("transform")(target, name) or _is_torch_module(target),
    "loss": _is_loss,
    "metric": _is_metric,
    "init": _make_function_test("init"),
    "function": _make_function_test("function"),
    "module_function": _make_function_test("module_function"),
    "views": lambda _target, _name: False,  # no library has one
    "hook": lambda _target, _name: False,  # no library has one
    "gradient_hook": lambda _target, _name: False,
    "action": lambda _target, _name: False,
    "tracker": lambda target, _name: hasattr(target, "scalars") and allowed.takes("tracker", target),
    "step": _make_function_test("step"),
    "tensor": _make_function_test("tensor"),
    "search_sampler": _make_optuna_test("search_sampler", "optuna.samplers.BaseSampler"),
    "pruner": _make_optuna_test("pruner", "optuna.pruners.BasePruner"),
}


_WORDS = {
    "model": "an nn.Module or a function annotated to return one",
    "optimizer": "a subclass of torch.optim.Optimizer",
    "scheduler": "a subclass of torch.optim.lr_scheduler.LRScheduler",
    "dataset": "a subclass of torch.utils.data.Dataset",
    "sampler": "a subclass of torch.utils.data.Sampler",
    "transform": "defined in torchvision.transforms, a module of torch.nn, or code of your own",
    "loss": "an nn.Module or a function of torch.nn.functional (or code of your own)",
    "metric": "a class with `update`, `compute` and `reset`",
    "init": "a function of torch.nn.init (or code of your own)",
    "function": f"one of {', '.join(allowed.NAMED['function'])} (or code of your own)",
    "module_function": "a function of your own that takes a module",
    "views": "a function of your own that takes the model's input and gives several (datasets.transforms has some)",
    "hook": "a function of your own that takes a module, its inputs and its output",
    "gradient_hook": "a function of your own that takes a module and the gradient of its output",
    "action": "a function of your own, or an object that is called like one",
    "tracker": "a class with `scalars(step, values)`: runner.log.trackers.WandB, MLflow, Trackio, or one of your own",
    "step": "a function of runner.train.steps (or code of your own)",
    "tensor": f"one of {', '.join(_TENSORS)}",
    "search_sampler": "a subclass of optuna.samplers.BaseSampler",
    "pruner": "a subclass of optuna.pruners.BasePruner",
}
