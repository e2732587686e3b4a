"""Library objects that each slot takes, decided by the defining module and the kind of object.

Rules rather than a list of names, so that a class that a new release of torch adds to `torch.nn` is taken, and one that
it adds elsewhere is not. The names that follow from them stand in `tests/config/allowed_names.txt`; a test compares
them, so that a person reads what a new release adds. What loads, unpickles, compiles, downloads, shells out or writes
by itself, or takes code as text, is below in `NOWHERE`, with the reason.
"""

import sys
import types
from typing import Any

# Slot -> the modules whose own public classes (of the slot's base class), or functions, it takes; submodules included.
CLASSES = {
    "model": (
        "torch.nn.modules",
        "torch.nn.parallel.data_parallel",
        "torchvision.models",
        "torchvision.ops",
    ),
    "optimizer": ("torch.optim", "runner.train.optimizer_step.several_optimizers", "runner.train.filter_muon"),
    "scheduler": ("torch.optim",),
    "dataset": ("torch.utils.data.dataset", "torchvision.datasets"),
    "sampler": ("torch.utils.data.sampler", "torch.utils.data.distributed", "torchvision.datasets.samplers"),
    "transform": ("torchvision.transforms",),
    "metric": ("torchmetrics", "runner.train.metrics"),
    "tracker": ("runner.log.trackers",),
    "search_sampler": ("optuna.samplers",),
    "pruner": ("optuna.pruners",),
}


FUNCTIONS = {
    "model": ("torchvision.models",),
    "transform": ("torchvision.transforms",),
    "loss": ("torch.nn.functional",),
    "init": ("torch.nn.init",),
    "step": ("runner.train.steps",),
}


# Functions of a slot that are few enough to be named.
NAMED = {
    "function": ("torch.utils.data.default_collate", "torch.utils.data.default_convert"),
    "module_function": (
        "torch.nn.utils.spectral_norm",
        "torch.nn.utils.weight_norm",
        "torch.nn.utils.remove_spectral_norm",
        "torch.nn.utils.remove_weight_norm",
        "torch.nn.utils.convert_conv2d_weight_memory_format",
        "torch.nn.utils.convert_conv3d_weight_memory_format",
        "torch.nn.utils.parametrizations.orthogonal",
        "torch.nn.utils.parametrizations.spectral_norm",
        "torch.nn.utils.parametrizations.weight_norm",
    ),
    "tensor": tuple(
        f"torch.{name}" for name in ("tensor", "ones", "zeros", "full", "arange", "linspace", "eye", "rand", "randn")
    ),
}


_FETCHES = "it fetches files by itself and loads them"


# Inside of the modules above, but on no list: the module or the name where it is defined, and why.
NOWHERE = {
    "torch.nn.functional.has_torch_function": "it is torch's own",
    "torch.nn.functional.has_torch_function_unary": "it is torch's own",
    "torch.nn.functional.has_torch_function_variadic": "it is torch's own",
    "torchvision.datasets.lsun": "it unpickles a cache from the working directory",
    "torchvision.models._api": "it takes the name of what it builds as text: write that name as `_target_`",
    "torchvision.models.feature_extraction": "it compiles a model anew",
    "torchvision.transforms.v2.functional._utils.register_kernel": "it registers code",
    "torchmetrics.audio.dnsmos": _FETCHES,
    "torchmetrics.audio.nisqa": _FETCHES,
    "torchmetrics.functional": "it is no metric",
    "torchmetrics.image.arniqa": _FETCHES,
    "torchmetrics.image.dists": _FETCHES,
    "torchmetrics.image.fid": _FETCHES,
    "torchmetrics.image.inception": _FETCHES,
    "torchmetrics.image.kid": _FETCHES,
    "torchmetrics.image.lpip": _FETCHES,
    "torchmetrics.image.mifid": _FETCHES,
    "torchmetrics.image.perceptual_path_length": _FETCHES,
    "torchmetrics.multimodal.clip_iqa": _FETCHES,
    "torchmetrics.multimodal.clip_score": _FETCHES,
    "torchmetrics.text.bert": _FETCHES,
    "torchmetrics.text.infolm": _FETCHES,
    "torchmetrics.text.rouge": _FETCHES,
    "torchmetrics.video.vmaf": _FETCHES,
}


def find_home(target: Any) -> tuple[str, str]:
    """Return the module and name that define a class or function at top level; else empty texts.

    A method, a bound function, a lambda or an instance has no home.
    """
    if not isinstance(target, type | types.FunctionType | types.BuiltinFunctionType):
        return "", ""
    module, name = str(getattr(target, "__module__", "")), str(getattr(target, "__name__", ""))
    if not isinstance(target, types.BuiltinFunctionType) and _has(module, name, target):
        return module, name
    if isinstance(target, type) or not module.startswith("torch"):
        return "", ""
    # Functions of torch's C++ part, and those that torch makes of two, are defined where torch shows them.
    for face in ("torch.nn.functional", "torch"):
        for shown, function in vars(sys.modules[face]).items() if face in sys.modules else ():
            if function is target and not shown.startswith("_"):
                return face, shown
    return "", ""


def _has(module: str, name: str, target: Any) -> bool:
    return name != "" and vars(sys.modules[module]).get(name) is target if module in sys.modules else False


def explain_not_allowed(target: Any) -> str:
    """Explain why an object can be on no list; empty where it may be on one."""
    module, name = find_home(target)
    if not module:
        return "it is no class or function at the top level of a module"
    if is_within(f"{module}.{name}", tuple(NOWHERE)):
        return next(why for place, why in NOWHERE.items() if is_within(f"{module}.{name}", (place,)))
    return ""


def is_within(name: str, modules: tuple[str, ...]) -> bool:
    """Return whether a full name lies in one of the modules."""
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def takes(slot: str, target: Any) -> bool:
    """Return whether a slot's list contains an object; `slots.py` checks the base class."""
    if explain_not_allowed(target):
        return False
    module, _name = find_home(target)
    modules = (CLASSES if isinstance(target, type) else FUNCTIONS).get(slot, ())
    return is_within(module, modules) or any(target is _find_named(full) for full in NAMED.get(slot, ()))


def _find_named(full: str) -> Any:
    module, _, name = full.rpartition(".")
    return vars(sys.modules[module]).get(name, _NOTHING) if module in sys.modules else _NOTHING


_NOTHING = object()
