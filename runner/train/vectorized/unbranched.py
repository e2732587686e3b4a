"""Search for branches: a step without any calls the same operators on every batch of one shape.

torch's own modules do. Of a user's module that is shown by its source: a straight line of calls of functions of torch,
of methods of tensors and of its own modules, without a condition, a loop over anything but its modules, a name from
elsewhere, or an attribute that is set. Whatever is not understood is refused.
"""

import ast
import inspect
import linecache
from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from runner.train import steps
from runner.train.optimizer_step.precision import Autocast
from runner.train.vectorized.stack import StepModule

STATIC = (int, float, bool, str, type(None))
CONTAINERS = (nn.ModuleList, nn.Sequential)
EXPRESSIONS = (ast.Constant, ast.BinOp, ast.UnaryOp, ast.Tuple, ast.List, ast.operator, ast.unaryop, ast.expr_context)
OF_A_CALL = ("__call__", "__getattr__", "_call_impl", "_wrapped_call_impl")  # what runs beside a module's forward
READS = frozenset({"tolist", "numpy", "data_ptr", "storage", "untyped_storage", "set_"})  # what no operator shows


class BranchError(ValueError):
    """A step whose operators may be others the next time."""


def refuse_branches(template: StepModule) -> None:
    """Refuse a step that may call other operators the next time, on a batch of the same shape.

    Raises:
        BranchError: it may, or that cannot be seen.
    """
    step = template.step.step if isinstance(template.step, Autocast) else template.step
    if get_function(step) is not steps.supervised:
        message = "a step of the user's own"
        raise BranchError(message)
    if not isinstance(template.loss, nn.Module) and not is_operator(get_function(template.loss)):
        message = "a loss of the user's own"
        raise BranchError(message)
    if has_global_hooks():
        message = "there are hooks of all modules"
        raise BranchError(message)
    for module in (template.model, template.loss):
        for owner in module.modules() if isinstance(module, nn.Module) else ():
            _refuse_module(owner)


def get_function(value: Any) -> Any:
    """Return the function that a `partial` binds arguments of, or the value."""
    return value.func if type(value) is partial else value


def has_global_hooks() -> bool:
    """Return whether there are hooks that torch calls for every module."""
    return bool(nn.modules.module._has_any_global_hook())  # noqa: SLF001  there is nothing public that says it


def _refuse_module(module: nn.Module) -> None:
    kind = type(module)
    hooks = [name for name, value in vars(module).items() if name.endswith("_hooks") and value]
    own = kind.__getattribute__ is not object.__getattribute__ or any(
        getattr(kind, name) is not getattr(nn.Module, name) for name in OF_A_CALL
    )
    if hooks or own or not vars(module).keys().isdisjoint(("forward", "_compiled_call_impl", *OF_A_CALL)):
        message = f"{kind.__name__} has hooks, or a call of its own"
        raise BranchError(message)
    if all(str(one.__module__).startswith("torch.nn.modules.") for one in (kind, kind.forward)):
        return
    StraightLine(module, kind.forward).check()


class StraightLine:
    """Source of a module's forward, read for whatever could make one call another than the last.

    Args:
        module: whose forward.
        function: as its class has it.
    """

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        self.module, self.function = module, function
        self.locals: set[str] = set()
        self.own = ""

    def check(self) -> None:
        """Read the source.

        Raises:
            BranchError: it may go several ways, or cannot be read.
        """
        definition = self._read_source()
        arguments = definition.args
        if arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.defaults:
            self._refuse(definition, "arguments that may be absent")
        names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
        self.own, self.locals = names[0], {*names[1:]}
        for statement in definition.body:
            self._check_statement(statement)

    def _read_source(self) -> ast.FunctionDef:
        """Return the definition, where the file still says what was compiled."""
        function = self.function
        message = f"the source of {type(self.module).__name__}.forward cannot be read"
        if not isinstance(function, FunctionType) or function.__closure__ or hasattr(function, "__wrapped__"):
            raise BranchError(message)
        code = function.__code__
        linecache.checkcache(code.co_filename)
        try:
            tree = ast.parse("".join(linecache.getlines(code.co_filename)))
        except (SyntaxError, ValueError) as error:
            raise BranchError(message) from error
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (node.name, node.lineno) == (code.co_name, code.co_firstlineno):
                if code in iterate_code(compile(tree, code.co_filename, "exec", dont_inherit=True)):
                    return node
                break
        raise BranchError(message)

    def _refuse(self, node: Any, what: str = "") -> None:
        line = f", line {node.lineno} of it" if hasattr(node, "lineno") else ""
        message = f"{type(self.module).__name__}.forward has {what or type(node).__name__}{line}"
        raise BranchError(message)

    def _check_statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Expr(value=ast.Constant()):
                pass
            case ast.Return(value=ast.expr() as value):
                self._check(value)
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                self._check(value)
                self._name(node, name)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                self._check(value)
                self._name(node, name)
            case ast.AugAssign(target=ast.Name(id=name), value=value) if name in self.locals:
                self._check(value)
            case ast.For(target=ast.Name(id=name), iter=ast.Attribute() as over, body=body, orelse=[]):
                if type(self._find(over)) not in CONTAINERS:
                    self._refuse(node)
                self._name(node, name)
                for statement in body:
                    self._check_statement(statement)
            case _:
                self._refuse(node)

    def _name(self, node: ast.AST, name: str) -> None:
        if name == self.own:
            self._refuse(node, "another value for its own name")
        self.locals.add(name)

    def _check(self, node: ast.AST) -> None:
        """Check an expression."""
        match node:
            case ast.Name(id=name):
                if name not in self.locals:
                    self._refuse(node, f"`{name}`")
            case ast.Attribute():
                self._check_attribute(node)
            case ast.Call(func=function, args=arguments, keywords=keywords):
                self._check_called(function)
                for argument in (*arguments, *(keyword.value for keyword in keywords)):
                    self._check(argument)
                if any(keyword.arg is None for keyword in keywords):
                    self._refuse(node, "arguments from a mapping")
            case _ if isinstance(node, EXPRESSIONS):
                for member in ast.iter_child_nodes(node):
                    self._check(member)
            case _:
                self._refuse(node)

    def _check_attribute(self, node: ast.Attribute) -> None:
        """Check an attribute: of a tensor, or of the module, where it is a number or a tensor of its own."""
        if self._is_of_local(node):
            self._check(node.value)
            if not hasattr(Tensor, node.attr) or node.attr.startswith("_") or node.attr in READS:
                self._refuse(node, f"`{node.attr}`")
            return
        if not isinstance(self._find(node), (*STATIC, Tensor)):
            self._refuse(node, f"`{node.attr}`")

    def _check_called(self, node: ast.expr) -> None:
        """Check what is called: a module of its own, a function of torch, or a method of a tensor."""
        match node:
            case ast.Name(id=name) if name in self.locals:  # of a loop over modules; a tensor cannot be called
                return
            case ast.Attribute() if self._is_of_local(node):
                self._check_attribute(node)
                return
            case ast.Attribute() | ast.Name():
                called = self._find(node)
                if not isinstance(called, nn.Module) and not is_operator(called):
                    self._refuse(node, f"`{ast.unparse(node)}`")
            case _:
                self._refuse(node)

    def _is_of_local(self, node: ast.Attribute) -> bool:
        root: ast.expr = node
        while isinstance(root, ast.Attribute):
            root = root.value
        return not isinstance(root, ast.Name) or root.id in self.locals

    def _find(self, node: ast.expr) -> Any:
        """Find what a name with dots stands for: in the module itself, or in torch."""
        match node:
            case ast.Name(id=name) if name == self.own:
                return self.module
            case ast.Name(id=name):
                found = self.function.__globals__.get(name)
                if isinstance(found, ModuleType) and found.__name__.split(".")[0] == "torch":
                    return found
                if is_operator(found):
                    return found
            case ast.Attribute(value=value, attr=name):
                owner = self._find(value)
                if isinstance(owner, ModuleType):
                    return getattr(owner, name, None)
                if isinstance(owner, nn.Module):
                    found = find_member(owner, name)
                    if found is not None:
                        return found[0]
        self._refuse(node, f"`{ast.unparse(node)}`")
        return None


def find_member(owner: nn.Module, name: str) -> tuple[Any] | None:
    """Find what an attribute of a module is each time; None where its class may give another."""
    static, there = inspect.getattr_static(type(owner), name, None), vars(owner)
    if name in there:  # a class may compute it; modules that it does not know of are not read
        computed = hasattr(type(static), "__set__") or hasattr(type(static), "__delete__")
        return None if computed or isinstance(there[name], nn.Module) else (there[name],)
    if static is None:  # else it hides these
        for members in (owner._modules, owner._parameters, owner._buffers):  # noqa: SLF001
            if name in members:
                return (members[name],)
    return None


def is_operator(value: Any) -> bool:
    """Return whether a value is a function of torch on tensors, not one of its settings or its classes."""
    if not callable(value) or isinstance(value, type):
        return False
    places = ("torch.nn.functional", "torch._C._nn", "torch.functional")
    return getattr(value, "__module__", None) in places or value in TORCH_OPERATORS


_functions = torch._C._VariableFunctions  # noqa: SLF001  what torch itself takes its functions of tensors from
TORCH_OPERATORS = frozenset(getattr(torch, name) for name in dir(_functions) if name[0] != "_" and hasattr(torch, name))


def iterate_code(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of every function of a module; of two that are equal, line by line, Python says so."""
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield part
            yield from iterate_code(part)
