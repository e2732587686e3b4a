"""Check the names in a config before importing them, because importing executes code.

User code is a file that the import system takes from the working directory or from a directory named on the command
line (`--trust DIR`). Of torch, torchvision, torchmetrics and optuna only the parts below are imported; what a slot
takes of them is in `allowed.py`. Everything else needs `--trust NAME`.
"""

import fnmatch
import importlib.util
import inspect
import itertools
import os
import re
import sys
import traceback
import types
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from runner.config.suggestions import find_nearest, format_suggestion
from runner.core import shipped
from runner.core.paths import PACKAGE
from runner.core.shared_answers import ask_once

LIBRARIES = ("torch", "torchvision", "torchmetrics", "optuna")


EXTRAS = {  # what a run can do without
    "torchmetrics": "metrics",
    "optuna": "optuna",
    "submitit": "slurm",
    "ray": "ray",
    "timm": "hf",
    "transformers": "hf",
}


OURS = ("runner", "models", "datasets")
_COMPONENTS = (
    "runner.train.metrics",
    "runner.train.steps",
    "runner.train.filter_muon",
    "runner.train.optimizer_step.several_optimizers",
    "runner.log.trackers",
)


# What of a library may be imported and be led through; other parts may do anything when they are imported
# (torch.utils.cpp_extension looks for a compiler with a subprocess) and hold functions that do anything.
_PARTS = (
    "torch.nn",
    "torch.optim",
    "torch.utils.data",
    "torchvision.models",
    "torchvision.transforms",
    "torchvision.datasets",
    "torchvision.ops",
    "torchmetrics",
    "optuna.samplers",
    "optuna.pruners",
    *_COMPONENTS,
)


_NO_PARTS = ("torch.utils.data.datapipes",)


_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


class TargetError(ValueError):
    """Refused or unresolvable name: `rule` in words, `suggestion` the nearest name in full."""

    def __init__(
        self,
        rule: str,
        suggestion: str = "",
        remedy: str = "",
        where: str = "",
        kind: Literal["unknown-target", "untrusted"] = "unknown-target",
    ) -> None:
        self.rule, self.suggestion, self.where, self.kind = rule, suggestion, where, kind
        self.remedy = remedy or format_suggestion(suggestion)
        super().__init__(f"{rule}. {self.remedy}" if self.remedy else rule)


def list_user_directories(trust: Sequence[str] = ()) -> list[Path]:
    """Return the directories of user code: the working directory and those named by `--trust`."""
    named = [Path(word).resolve() for word in trust if os.sep in word or word in (os.curdir, os.pardir)]
    return [Path.cwd(), *(path for path in named if path.is_dir())]


def check_name(path: str, trust: Sequence[str] = ()) -> None:
    """Raise TargetError for a name that may not be imported; import nothing."""
    if not _NAME.fullmatch(path):
        message = f"`{path}` is no dotted path (`package.module.Name`)"
        raise TargetError(message)
    if path in OLD_NAMES:
        message = f"is an old name: it is `{OLD_NAMES[path]}` now"
        raise TargetError(message, OLD_NAMES[path])
    if is_trusted(path, trust):
        return
    first = path.partition(".")[0]
    private = next((part for part in path.split(".") if part.startswith("__" if first not in LIBRARIES else "_")), None)
    if private is not None and (first in (*LIBRARIES, *OURS) or is_user_code(first, trust)):
        message = f"`{path}` leads through `{private}`, which is private"
        raise TargetError(message, remedy=describe_trust(path), kind="untrusted")
    if is_shipped_name(path, trust):
        return
    if is_user_code(first, trust):
        _check_files(path, trust)
        return
    if first in shipped.NAMES:
        raise _make_not_shipped_error(path)
    if first not in (*LIBRARIES, *OURS):
        raise _make_untrusted_error(path, first, trust)
    if first == "runner" and not path.startswith(tuple(f"{name}." for name in _COMPONENTS)):
        homes = f"only {', '.join(_COMPONENTS)} have components"
        message = f"`{path}` is part of the runner itself; {homes}"
        raise TargetError(message, _suggest_component(path), kind="untrusted")
    _require_installed(first)


def is_shipped_name(path: str, trust: Sequence[str] = ()) -> bool:
    """Return whether a dotted path names a shipped module that the user's own code does not replace."""
    first, second, *_ = [*path.split("."), ""]
    if shipped.find_shipped(f"{first}.{second}") is None:
        return False
    if not is_user_code(first, trust):
        return True
    folders = [*map(str, list_user_directories(trust)), *sys.path]
    users = importlib.machinery.PathFinder.find_spec(first, folders)
    inside = users.submodule_search_locations if users else None
    return inside is None or importlib.machinery.PathFinder.find_spec(second, list(inside)) is None


def _make_not_shipped_error(path: str) -> TargetError:
    """Return the error for a module that is not among the shipped ones."""
    first, second, *rest = path.split(".")
    names = [entry.stem for entry in (shipped.FOLDER / first).glob("[!_]*")]
    right = find_nearest(second, names)
    place = next(iter(getattr(importlib.machinery.PathFinder.find_spec(first), "submodule_search_locations", ())), "")
    other = bool(place) and Path(place) != shipped.FOLDER / first
    message = f"the runner's own `{first}` have no module `{second}`"
    if other and not right:
        message += f", and the installed package {place} is not trusted"
        return TargetError(message, remedy=describe_trust(path), kind="untrusted")
    return TargetError(
        message, ".".join([first, right, *rest]) if right else "", "" if right else describe_missing(first)
    )


def describe_missing(first: str) -> str:
    """Describe the extra that has a package which is not there; empty where none has."""
    if first == "datasets":
        return f"for Hugging Face's `datasets`, {describe_install('hf')}"
    return describe_install(EXTRAS[first]) if first in EXTRAS else ""


def _make_untrusted_error(path: str, first: str, trust: Sequence[str]) -> TargetError:
    """Return the error for a package that nobody has trusted."""
    if first in EXTRAS and _find_spec(first) is None:
        _require_installed(first)
    known = find_nearest(first, [*LIBRARIES, *OURS, *_list_user_packages(trust)])
    if known:
        message = f"`{first}` is neither a trusted package nor code under the working directory"
        return TargetError(message, f"{known}{path[len(first) :]}", kind="untrusted")
    if _find_spec(first) is None:
        return TargetError(f"there is no module `{first}` (neither installed nor under the working directory)")
    message = f"`{first}` is neither one of {', '.join((*LIBRARIES, *OURS))} nor code under the working directory"
    return TargetError(message, remedy=describe_trust(path), kind="untrusted")


def _suggest_component(path: str) -> str:
    """Return the nearest component of the runner; empty where none is near."""
    name = path.rpartition(".")[2]
    module = find_nearest(path.rpartition(".")[0].rpartition(".")[2], ["metrics", "steps"])
    return f"runner.train.{module}.{name}" if module else ""


def _require_installed(first: str) -> None:
    if _find_spec(first) is None:
        message = f"there is no module `{first}`: it is not installed"
        raise TargetError(message, remedy=describe_missing(first))


def describe_trust(path: str) -> str:
    """Describe how a name is trusted: for one command, or in this project for good."""
    return f"if you trust it: --trust '{path}', or for good: python -m runner trust add '{path}'"


def describe_install(extra: str) -> str:
    """Describe the `pip` command that installs an extra of the runner."""
    return f"install it: pip install 'yaml-experiment-runner[{extra}]'"


def _find_spec(name: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None


def is_user_code(first: str, trust: Sequence[str]) -> bool:
    """Return whether importing `first` loads it from a user directory and not from the runner."""
    directories = list_user_directories(trust)
    if any(_is_ours(directory) for directory in directories) and first in OURS:
        return False
    if first in sys.builtin_module_names or first in sys.stdlib_module_names or first == "outputs":
        return False
    # A folder without `__init__.py` gives way to a package further down the path, or is merged with its like there.
    found = importlib.machinery.PathFinder.find_spec(first, [*map(str, directories), *sys.path])
    return found is not None and _is_users_module(found, directories) and not _is_loaded_from_elsewhere(first)


def _is_users_module(found: importlib.machinery.ModuleSpec, directories: Sequence[Path]) -> bool:
    """Return whether all files of a module lie in user directories and outside environments."""
    files = [found.origin] if found.origin else list(found.submodule_search_locations or ())
    return bool(files) and all(_is_users_file(Path(file), directories) for file in files)


def _is_users_file(file: Path, directories: Sequence[Path]) -> bool:
    file = file.resolve()
    if not _INSTALLED.isdisjoint(file.parts):
        return False
    for directory in directories:
        if file.is_relative_to(directory):
            between = [p for p in (file, *file.parents) if p != directory and p.is_relative_to(directory)]
            if not any((folder / "pyvenv.cfg").exists() for folder in between):
                return True
    return False


_INSTALLED = frozenset({"site-packages", "dist-packages"})


def _is_loaded_from_elsewhere(first: str) -> bool:
    """Return whether `sys.modules` already holds an installed package of that name."""
    file = getattr(sys.modules.get(first), "__file__", None)
    return file is not None and not _INSTALLED.isdisjoint(Path(file).resolve().parts)


def _check_files(path: str, trust: Sequence[str]) -> None:
    """Raise TargetError where a part of a user-code name would load from a foreign file.

    The files are found as the import system finds them, but no package is imported for it.
    """
    directories = list_user_directories(trust)
    parts = path.split(".")
    folders = [*map(str, directories), *sys.path]
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        found = importlib.machinery.PathFinder.find_spec(parts[count - 1], folders)
        if found is None:
            return
        if not _is_users_module(found, directories):
            place = found.origin or next(iter(found.submodule_search_locations or ()), "")
            message = f"`{name}` is {place}, which is no code of this project's"
            raise TargetError(message, remedy=describe_trust(path), kind="untrusted")
        if found.submodule_search_locations is None:
            return
        folders = list(found.submodule_search_locations)


@cache  # a fifth of what examining a job takes: it is asked 40 times a job
def _is_ours(directory: Path) -> bool:
    return directory.resolve() == PACKAGE.parent.resolve()


def _list_user_packages(trust: Sequence[str]) -> list[str]:
    entries = [entry for directory in list_user_directories(trust) for entry in directory.iterdir()]
    names = {entry.stem for entry in entries if entry.suffix == ".py" or (entry.is_dir() and any(entry.glob("*.py")))}
    return sorted(name for name in names if name.isidentifier())


def import_object(path: str, trust: Sequence[str] = ()) -> Any:
    """Import the object that a dotted path names, after checking the name.

    Raises:
        TargetError: the name is not trusted; no such module; no such attribute (with the nearest one); an error inside
            the user's own file while it is imported (with its line).
    """
    return ask_once(("object", path, tuple(trust)), lambda: _import_object(path, trust))


def _import_object(path: str, trust: Sequence[str]) -> Any:
    check_name(path, trust)
    _make_importable(path, trust)
    parts = path.split(".")
    found, known = _import_first(path, trust)
    for count, part in enumerate(parts[known:], known + 1):
        name = ".".join(parts[:count])
        inner = inspect.getattr_static(found, part, None) if isinstance(found, types.ModuleType) else None
        hidden = sys.modules.get(name.rpartition(".")[0])
        if not isinstance(found, types.ModuleType) and hidden is not None and not hasattr(found, part):
            found = hidden  # torchvision.models.alexnet is a function, and the module that defines it
        if inner is None and isinstance(found, types.ModuleType) and _is_submodule(found, name):
            _check_module(name, path, trust)
            found = _import(name)
        else:
            found = _get_attribute(found, part, name, path)
        if isinstance(found, types.ModuleType):
            _check_module(found.__name__, path, trust)
    if isinstance(found, types.ModuleType):
        message = f"`{path}` is a module"
        raise TargetError(message, _find_nearest_inside(found, parts[-1], path + "."))
    return found


def _import_first(path: str, trust: Sequence[str]) -> tuple[Any, int]:
    """Import the first module of a dotted path; return it and how many of the names it took."""
    first, second, *_ = path.split(".")
    if is_shipped_name(path, trust) and not (is_user_code(first, trust) and hasattr(_import(first), second)):
        try:
            return shipped.import_shipped(f"{first}.{second}"), 2
        except Exception as error:
            raise _make_import_error(f"{first}.{second}", error) from error
    return _import(first), 1


def _check_module(module: str, path: str, trust: Sequence[str]) -> None:
    """Raise TargetError where a dotted path leads through a module that configs may not use."""
    first = path.partition(".")[0]
    if is_trusted(path, trust):
        return
    if module.partition(".")[0] != first:
        message = f"`{path}` leads out of `{first}` into the module `{module}`"
        raise TargetError(message, kind="untrusted")
    if first not in (*LIBRARIES, "runner"):
        return
    if any(part.startswith("_") for part in module.split(".")):
        message = f"`{path}` leads through `{module}`, which is private"
        raise TargetError(message, remedy=describe_trust(path), kind="untrusted")
    above = any(part.startswith(f"{module}.") for part in _PARTS)
    inside = any(f"{module}.".startswith(f"{part}.") for part in _PARTS)
    if not above and (not inside or any(f"{module}.".startswith(f"{part}.") for part in _NO_PARTS)):
        message = f"`{module}` is not among the parts of `{first}` that a config may import"
        raise TargetError(message, remedy=describe_trust(path), kind="untrusted")


def is_trusted(path: str, trust: Sequence[str]) -> bool:
    """Return whether a `--trust` pattern matches a dotted path."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in trust)


def _make_importable(path: str, trust: Sequence[str]) -> None:
    first = path.partition(".")[0]
    if is_user_code(first, trust):
        for directory in list_user_directories(trust):
            names = {str(directory), ""} if directory == Path.cwd() else {str(directory)}
            if names.isdisjoint(_list_before_installed(sys.path)):
                sys.path.insert(0, str(directory))


def _list_before_installed(folders: Sequence[str]) -> list[str]:
    """Return the folders of a search path that precede those of installed packages."""
    return list(itertools.takewhile(lambda folder: _INSTALLED.isdisjoint(Path(folder).parts), folders))


def _is_submodule(package: types.ModuleType, name: str) -> bool:
    return hasattr(package, "__path__") and name not in sys.modules and _find_spec(name) is not None


def _import(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            message = f"there is no module `{error.name}`"
            raise TargetError(message, remedy=describe_missing(error.name) if "." not in name else "") from error
        raise _make_import_error(name, error) from error
    except SystemExit as error:
        message = f"`{name}` ends the process when it is imported"
        raise TargetError(message) from error


def _make_import_error(name: str, error: BaseException) -> TargetError:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    if isinstance(error, SyntaxError) and error.filename:
        place, problem = f"{error.filename}:{error.lineno}", f"SyntaxError: {error.msg}"
    else:
        inside = [frame for frame in frames if not frame.filename.startswith("<") and frame.filename != __file__]
        place = f"{inside[-1].filename}:{inside[-1].lineno}" if inside else ""
        problem = f"{type(error).__name__}: {error}"
    return TargetError(f"`{name}` cannot be imported: {problem}", where=place)


def _get_attribute(owner: Any, part: str, name: str, path: str) -> Any:
    try:
        return getattr(owner, part)
    except AttributeError:
        pass
    except Exception as error:
        raise _make_import_error(name, error) from error
    before = name.rpartition(".")[0]
    after = path[len(name) :]
    right = OLD_NAMES.get(name) or _find_nearest_inside(owner, part, before + ".")
    kind = "module" if isinstance(owner, types.ModuleType) else "class"
    message = f"the {kind} `{before}` has no `{part}`"
    other = "" if right or before != "datasets" or getattr(owner, "__file__", None) else describe_missing(before)
    raise TargetError(message, right + after if right else "", other)


def _find_nearest_inside(owner: Any, part: str, prefix: str) -> str:
    names = [name for name in dir(owner) if not name.startswith("_")]
    if isinstance(owner, types.ModuleType) and hasattr(owner, "__path__"):
        names += [entry.stem for folder in owner.__path__ for entry in Path(folder).glob("[!_]*")]
    right = find_nearest(part, names)
    return prefix + right if right else ""


_INIT = (
    "uniform",
    "normal",
    "constant",
    "eye",
    "dirac",
    "xavier_uniform",
    "xavier_normal",
    "kaiming_uniform",
    "kaiming_normal",
    "orthogonal",
    "sparse",
)


_V1, _METRICS = "torchvision.transforms", "torchmetrics"


# Names of earlier releases; some still resolve and warn, some are gone.
OLD_NAMES: dict[str, str] = {
    **{f"torch.nn.init.{name}": f"torch.nn.init.{name}_" for name in _INIT},
    f"{_V1}.RandomSizedCrop": f"{_V1}.RandomResizedCrop",
    f"{_V1}.Scale": f"{_V1}.Resize",
    f"{_V1}.v2.RandomSizedCrop": f"{_V1}.v2.RandomResizedCrop",
    f"{_V1}.v2.Scale": f"{_V1}.v2.Resize",
    f"{_V1}.v2.ToImageTensor": f"{_V1}.v2.ToImage",
    f"{_V1}.v2.ConvertDtype": f"{_V1}.v2.ToDtype",
    f"{_V1}.v2.ToImagePIL": f"{_V1}.v2.ToPILImage",
    "torch.nn.CrossEntropyLoss2d": "torch.nn.CrossEntropyLoss",
    "torch.nn.parallel.deprecated.DistributedDataParallel": "torch.nn.parallel.DistributedDataParallel",
    "torch.optim.lr_scheduler._LRScheduler": "torch.optim.lr_scheduler.LRScheduler",
    f"{_METRICS}.F1": f"{_METRICS}.F1Score",
    f"{_METRICS}.FBeta": f"{_METRICS}.FBetaScore",
    f"{_METRICS}.IoU": f"{_METRICS}.JaccardIndex",
    f"{_METRICS}.AUC": f"{_METRICS}.AUROC",
    f"{_METRICS}.PSNR": f"{_METRICS}.PeakSignalNoiseRatio",
    f"{_METRICS}.SSIM": f"{_METRICS}.StructuralSimilarityIndexMeasure",
    f"{_METRICS}.MatthewsCorrcoef": f"{_METRICS}.MatthewsCorrCoef",
    f"{_METRICS}.Hinge": f"{_METRICS}.HingeLoss",
    f"{_METRICS}.PearsonCorrcoef": f"{_METRICS}.PearsonCorrCoef",
    f"{_METRICS}.SpearmanCorrcoef": f"{_METRICS}.SpearmanCorrCoef",
}
