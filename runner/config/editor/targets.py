"""Targets: what may stand behind `_target_` in each slot, with the parameters of each."""

import ast
import importlib
import inspect
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.config.check import allowed
from runner.config.check.components import _CALL, _CONSTRUCTOR
from runner.config.check.imports import LIBRARIES, import_object, is_user_code
from runner.config.check.signature import CallableParameters, inspect_parameters
from runner.config.check.slots import _FITS, explain_misplaced
from runner.config.component_settings import ACTION_ARGUMENTS
from runner.config.moved import MOVED
from runner.core import shipped

# Modules by which people name what a slot takes; a shorter name is shown, the others are taken too.
_FACES = (
    *("torch.nn", "torch.nn.functional", "torch.nn.init", "torch.optim", "torch.optim.lr_scheduler"),
    *("torch.optim.swa_utils", "torch.utils.data", "torch.nn.utils.parametrizations", "torchvision.models"),
    *("torchvision.models.detection", "torchvision.models.segmentation", "torchvision.models.video"),
    *("torchvision.ops", "torchvision.transforms.v2", "torchvision.transforms", "torchvision.datasets"),
    *("torchvision.datasets.samplers", "torchmetrics", "optuna.samplers", "optuna.pruners"),
    *("runner.train.metrics", "runner.train.steps", "runner.train.filter_muon", "runner.log.trackers"),
    "runner.train.optimizer_step.several_optimizers",
)
SLOTS = tuple(_FITS)
MOST_FILES = 500  # of a project, that are looked through for its classes and functions
_NO_CODE = ("outputs", "docs", "node_modules", "build", "dist", "data", "conf")


@dataclass
class Target:
    """Class or function that a config may name.

    Attributes:
        name: as it is shown and completed.
        takes: its parameters; None where Python cannot see them.
        docstring: of the class with that of its constructor, or of the function.
        slots: where it fits.
        aliases: other names of it.
        is_class: whether it is a class.
    """

    name: str
    takes: CallableParameters | None
    docstring: str
    slots: frozenset[str]
    aliases: set[str] = field(default_factory=set)
    is_class: bool = True


def list_targets(named: Sequence[str] = (), trust: Sequence[str] = ()) -> list[Target]:
    """List the targets of the libraries, of the runner and of the user's own code.

    User code that a config names is imported, as it is for a run; other user code is only read.

    Args:
        named: the targets that the project's own files name.
        trust: patterns of trusted names.
    """
    found = [*_list_library_targets(), *_list_shipped_targets()]
    known = {name for target in found for name in (target.name, *target.aliases)}
    for name in dict.fromkeys(named):
        if name not in known:
            target = _import_target(name, trust)
            found += [target] if target is not None else []
            known |= {name}
    return [*found, *(target for target in _read_user_targets() if target.name not in known)]


def _is_shown(name: str, value: Any) -> bool:
    return not name.startswith("_") and isinstance(value, type | types.FunctionType | types.BuiltinFunctionType)


def _list_library_targets() -> Iterator[Target]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for face in _FACES:
            with suppress(ImportError):
                importlib.import_module(face)
    names: dict[int, list[str]] = {}
    objects: dict[int, Any] = {}
    tops = tuple(dict.fromkeys(face.partition(".")[0] for face in _FACES))
    for module_name, module in sorted(sys.modules.items()):
        inside = any(f"{module_name}.".startswith(f"{face}.") for face in _FACES)
        if not inside or any(part.startswith("_") for part in module_name.split(".")) or module is None:
            continue
        for name, value in list(vars(module).items()):
            if _is_shown(name, value) and str(getattr(value, "__module__", "")).partition(".")[0] in tops:
                names.setdefault(id(value), []).append(f"{module_name}.{name}")
                objects[id(value)] = value
    for full in (name for group in allowed.NAMED.values() for name in group):
        module_name, _, name = full.rpartition(".")
        value = getattr(sys.modules.get(module_name), name, None)
        if value is not None:
            names.setdefault(id(value), []).append(full)
            objects[id(value)] = value
    for key, spelled in names.items():
        best = min(spelled, key=lambda name: (name.count("."), name not in _FACES, len(name)))
        slots = frozenset(slot for slot in SLOTS if not _is_refused(slot, objects[key], best))
        if slots:
            earlier = {f"{before}.{best.rpartition('.')[2]}" for before, now in MOVED.items() if f"{now}." in best}
            yield _make_target(best, objects[key], slots, {*spelled, *earlier} - {best})


def _is_refused(slot: str, value: Any, name: str) -> bool:
    if slot in ("search_sampler", "pruner") and not name.startswith("optuna."):
        return True
    return bool(explain_misplaced(slot, value, name, ()))


def _list_shipped_targets() -> Iterator[Target]:
    for first in shipped.NAMES:
        for file in sorted((shipped.FOLDER / first).glob("[!_]*.py")):
            name = f"{first}.{file.stem}"
            if is_user_code(first, ()):  # of the user's own, which hides ours
                continue
            with suppress(Exception):  # an extra that is not installed
                module = shipped.import_shipped(name)
                yield from _list_own(module, name)


def _list_own(module: Any, name: str) -> Iterator[Target]:
    for shown, value in list(vars(module).items()):
        if _is_shown(shown, value) and value.__module__ == module.__name__:
            slots = frozenset(slot for slot in SLOTS if not explain_misplaced(slot, value, f"{name}.{shown}", ()))
            yield _make_target(f"{name}.{shown}", value, slots)


def _import_target(name: str, trust: Sequence[str]) -> Target | None:
    try:
        value = import_object(name, trust)
    except (Exception, SystemExit):  # noqa: BLE001  the check says what is wrong with it
        return None
    if not callable(value):
        return None
    return _make_target(
        name, value, frozenset(slot for slot in SLOTS if not explain_misplaced(slot, value, name, trust))
    )


def _make_target(name: str, value: Any, slots: frozenset[str], aliases: set[str] | None = None) -> Target:
    said = [value.__doc__]
    if isinstance(value, type):
        said.append(getattr(inspect.getattr_static(value, "__init__"), "__doc__", ""))
    docstring = "\n\n".join(inspect.cleandoc(text) for text in said if isinstance(text, str))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        takes = inspect_parameters(value)
    return Target(name, takes, docstring, slots, aliases or set(), isinstance(value, type))


def is_users(target: Target) -> bool:
    """Return whether a target is code of the user's own, or shipped as such."""
    return target.name.partition(".")[0] not in (*LIBRARIES, "runner")


_CLASSES = ("model", "optimizer", "scheduler", "dataset", "sampler", "metric", "search_sampler", "pruner")


def is_likely(slot: str, target: Target) -> bool:
    """Return whether a target is worth being offered: user code fits any slot that it may be for."""
    if not is_users(target):
        return True
    if not target.is_class:
        return slot not in _CLASSES
    return len(target.slots) < len(SLOTS) - 4 or slot in ("transform", "metric", "loss", "action")


def list_filled(slot: str, target: Target, *, at_once: bool = False) -> list[str]:
    """List the parameters that the runner fills, as the check of components has it.

    Args:
        slot: of the component.
        target: class or function.
        at_once: with `_partial_: false`, where a function makes what the slot wants.
    """
    takes = target.takes
    assert takes is not None
    if at_once and not target.is_class:
        return []
    own = slot.removeprefix("nested ")
    by_name = {"scheduler": "optimizer", "sampler": "data_source"}.get(own)
    if slot == "nested optimizer":
        return takes.positional[:1]
    if own == "action":
        return [] if target.is_class else [name for name in takes.named if name in ACTION_ARGUMENTS]
    if own == "step" and not target.is_class:
        return [*takes.positional[:3], *(name for name in ("optimizer", "update") if name in takes.named)]
    if own == "module_function" and not target.is_class and "batch" in takes.named:
        return [*takes.positional[:1], "batch"]
    if by_name in takes.own:
        return [str(by_name)]
    count = _CONSTRUCTOR.get(own, 0 if target.is_class else _CALL.get(own, 0)) if own == slot else 0
    return takes.positional[:count]


# ---- user code that no config names yet, read without running it


def _read_user_targets() -> Iterator[Target]:
    for count, file in enumerate(_list_user_files(Path.cwd())):
        if count >= MOST_FILES:
            return
        name = ".".join(file.relative_to(Path.cwd()).with_suffix("").parts).removesuffix(".__init__")
        if not all(part.isidentifier() for part in name.split(".")) or not is_user_code(name.partition(".")[0], ()):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            continue
        for statement in tree.body:
            if isinstance(statement, ast.ClassDef | ast.FunctionDef) and not statement.name.startswith("_"):
                yield _read_definition(f"{name}.{statement.name}", statement)


def _list_user_files(folder: Path, depth: int = 0) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith((".", "test", "conftest", "setup")) or entry.is_symlink():
            continue
        if entry.suffix == ".py":
            yield entry
        elif entry.is_dir() and depth < 3 and entry.name not in _NO_CODE and not (entry / "pyvenv.cfg").exists():
            yield from _list_user_files(entry, depth + 1)


_BASES = {"Dataset": ("dataset",), "Optimizer": ("optimizer",), "LRScheduler": ("scheduler",), "Sampler": ("sampler",)}
_OF_MODULES = ("model", "loss", "transform", "metric", "action")


def _read_definition(name: str, node: ast.ClassDef | ast.FunctionDef) -> Target:
    docstring = ast.get_docstring(node) or ""
    if isinstance(node, ast.FunctionDef):
        return Target(name, _read_parameters(node, skip=0), docstring, frozenset(SLOTS), is_class=False)
    made = next((s for s in node.body if isinstance(s, ast.FunctionDef) and s.name == "__init__"), None)
    bases = [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases]
    ends = tuple(slots for word, slots in _BASES.items() if any(base.endswith(word) for base in bases))
    fits: Sequence[str] | None = next(iter(ends), None)
    fits = fits or (_OF_MODULES if "Module" in bases else SLOTS)
    takes = _read_parameters(made, skip=1) if made is not None else None
    said = (ast.get_docstring(made) if made is not None else "") or ""
    return Target(name, takes, f"{docstring}\n\n{said}".strip(), frozenset(fits))


_KINDS = {"int": int, "float": float, "str": str, "bool": bool}


def _read_parameters(node: ast.FunctionDef, skip: int) -> CallableParameters:
    empty = inspect.Parameter.empty
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [*[None] * (len(positional) - len(given.defaults)), *given.defaults]
    pairs = [*zip(positional, defaults, strict=True)][skip:]
    own: dict[str, inspect.Parameter] = {}
    kinds = inspect.Parameter
    named: list[tuple[ast.arg, ast.expr | None, Any]] = [(a, d, kinds.POSITIONAL_OR_KEYWORD) for a, d in pairs]
    named += [(a, d, inspect.Parameter.KEYWORD_ONLY) for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    for argument, default, kind in named:
        value: Any = empty
        if default is not None:
            try:
                value = ast.literal_eval(default)
            except ValueError:
                value = ...
        annotation = _KINDS.get(ast.unparse(argument.annotation), empty) if argument.annotation else empty
        own[argument.arg] = inspect.Parameter(argument.arg, kind, default=value, annotation=annotation)
    if given.vararg:
        own[given.vararg.arg] = inspect.Parameter(given.vararg.arg, inspect.Parameter.VAR_POSITIONAL)
    return CallableParameters(own, {}, open=given.kwarg is not None)
