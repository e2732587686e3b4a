"""Find definitions and argument defaults in source files, without importing them."""

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

from runner.core.shipped import find_shipped

_MOST_FILES = 40  # a name is followed through at most so many re-exporting files


@dataclass(frozen=True)
class Default:
    """Default of a parameter (source text where it is no plain value) and its line."""

    value: Any
    where: str


def find_signature_default(target: str, name: str) -> Default | None:
    """Return the default of argument `name` of class or function `target`; None where unreadable."""
    found = _find_parameter(target, name)
    return None if found is None else _read_default(found)


def _read_default(found: "_Parameter") -> Default | None:
    if found.default is None:
        return None
    try:
        value = ast.literal_eval(found.default)
    except ValueError:
        value = ast.unparse(found.default)
    return Default(value, f"{_trim_path(found.file)}:{found.argument.lineno}")


@cache
def takes_floats(target: str, name: str) -> bool:
    """Return whether argument `name` of `target` is annotated with `float` and not with `int`."""
    found = _find_parameter(target, name)
    if found is None or found.argument.annotation is None:
        return False
    kinds = {node.id for node in ast.walk(found.argument.annotation) if isinstance(node, ast.Name)}
    return "float" in kinds and "int" not in kinds


def find_docstring(target: str) -> str:
    """Return the docstring of the class (with its constructor's) or function `target`; empty without one."""
    found = _find_definition(target, [])
    if found is None or not isinstance(found[2], ast.ClassDef | ast.FunctionDef):
        return ""
    tree = _parse_file(found[0])
    apart = [node.value for node in tree.body if _is_docstring_of(node, found[2].name)] if tree else []
    if apart:  # `SGD.__doc__ = …`, of several texts
        parts = (part.value for part in ast.walk(apart[0]) if isinstance(part, ast.Constant))
        return "".join(part for part in parts if isinstance(part, str))
    made = [n for n in getattr(found[2], "body", []) if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    return "\n\n".join(filter(None, (ast.get_docstring(node) for node in (found[2], *made))))


def _is_docstring_of(node: ast.stmt, name: str) -> TypeGuard[ast.Assign]:
    target = node.targets[0] if isinstance(node, ast.Assign) else None
    owner = target.value if isinstance(target, ast.Attribute) and target.attr == "__doc__" else None
    return isinstance(owner, ast.Name) and owner.id == name


@dataclass(frozen=True)
class _Parameter:
    file: Path
    argument: ast.arg
    default: ast.expr | None


def _find_parameter(target: str, name: str) -> _Parameter | None:
    """Find argument `name` of the class or function `target`; None where it cannot be read."""
    return next((parameter for parameter in _list_parameters(target) if parameter.argument.arg == name), None)


def _list_parameters(target: str) -> Iterator[_Parameter]:
    """Yield the parameters of a class or function, as far as they can be read.

    Those that only `**kwargs` takes are of the class that a function returns, or of a class's bases.
    """
    found = _find_definition(target, [])
    for _ in range(_MOST_FILES):
        if found is None:
            return
        file, module, node = found
        function = node
        if isinstance(node, ast.ClassDef):
            function = next(
                (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name in ("__init__", "__new__")), node
            )
        if isinstance(function, ast.FunctionDef):
            yield from _list_own_parameters(function, file)
            if function.args.kwarg is None:
                return
        behind = node.returns if isinstance(node, ast.FunctionDef) else next(iter(getattr(node, "bases", [])), None)
        if isinstance(behind, ast.Subscript):
            behind = behind.value
        found = _find_definition(f"{module}.{behind.id}", []) if isinstance(behind, ast.Name) else None


def list_arguments(target: str) -> dict[str, tuple[str, Default | None]]:
    """Map each argument of a class or function to its annotation and default, as far as they can be read."""
    found: dict[str, tuple[str, Default | None]] = {}
    for parameter in _list_parameters(target):
        kind = ast.unparse(parameter.argument.annotation) if parameter.argument.annotation else ""
        found.setdefault(parameter.argument.arg, (kind, _read_default(parameter)))
    return found


def _list_own_parameters(function: ast.FunctionDef, file: Path) -> Iterator[_Parameter]:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    without = [None] * (len(positional) - len(arguments.defaults))
    by_position = zip(positional, [*without, *arguments.defaults], strict=True)
    for argument, default in [*by_position, *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]:
        yield _Parameter(file, argument, default)


def _trim_path(file: Path) -> str:
    """Return a path relative to site-packages or the working directory where it lies below one."""
    parts = file.parts
    if "site-packages" in parts:
        return "/".join(parts[parts.index("site-packages") + 1 :])
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


@cache
def _parse_file(file: Path) -> ast.Module | None:
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None


def _find_definition(target: str, seen: list[str]) -> tuple[Path, str, ast.stmt] | None:
    """Find the file, module and statement that define a dotted name, through re-exports."""
    if target in seen or len(seen) > _MOST_FILES:
        return None
    seen.append(target)
    module, _, name = target.rpartition(".")
    file = _find_file(module)
    tree = _parse_file(file) if file else None
    if file is None or tree is None:
        return None
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef) and statement.name == name:
            return file, module, statement
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    for statement in imports:
        base = ".".join(package.split(".")[: len(package.split(".")) - statement.level + 1]) if statement.level else ""
        source = ".".join(part for part in (base, statement.module) if part)
        for alias in statement.names:
            if (alias.asname or alias.name) == name or alias.name == "*":
                found = _find_definition(f"{source}.{name if alias.name == '*' else alias.name}", seen)
                if found:
                    return found
    return None


def _find_file(module: str) -> Path | None:
    """Find the source file of a module; only the first package is looked up, the rest is folders."""
    if (ours := find_shipped(module)) is not None and ours.origin:
        return Path(ours.origin)
    first, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return None
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        return None
    base = (
        Path(next(iter(spec.submodule_search_locations))) if spec.submodule_search_locations else Path(str(spec.origin))
    )
    place = base.joinpath(*rest)
    for file in (place.with_suffix(".py"), place / "__init__.py", place):
        if file.is_file():
            return file
    return None
