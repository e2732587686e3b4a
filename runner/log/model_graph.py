"""Model graph for TensorBoard: the function calls of one forward, grouped by module.

It is recorded while the model runs, and nothing is compiled or traced by torch, so whatever runs can be drawn: control
flow by numbers, loops of random length, dictionaries as arguments.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn, no_grad
from torch.overrides import TorchFunctionMode

NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_.\\/-]")


def record_graph(model: nn.Module, call: Callable[[], object]) -> bytes:
    """Record the GraphDef of a call of the model without gradients, in eval mode; restore the modes.

    A node is a torch function or tensor method that gave a tensor, or a parameter or buffer that one took; its name
    begins with the module that called it (`layer1/0/conv1/conv2d`). What happens outside the model is left out.

    Raises:
        ValueError: the model was not called.
    """
    training = [module for module in model.modules() if module.training]
    recorder = _Recorder(model)
    with ExitStack() as stack:
        for module in training:
            stack.callback(setattr, module, "training", True)
        model.eval()
        for name, module in model.named_modules():
            scope = name.replace(".", "/")
            enter, leave = partial(recorder.enter, scope), partial(recorder.leave, scope)
            stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        stack.enter_context(no_grad())
        stack.enter_context(recorder)
        call()
    if not recorder.nodes:
        raise ValueError("the model was not called")
    return recorder.serialised()


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        named = [*model.named_parameters(), *model.named_buffers()]
        self.stored = {id(tensor): name for name, tensor in named}
        self.buffers = {name for name, _ in model.named_buffers()}
        self.scopes: list[str] = []
        self.nodes: list[dict[str, Any]] = []
        self.names: Counter[str] = Counter()
        self.made_by: dict[int, str] = {}
        self.kept: list[Tensor] = []  # so that no other tensor gets the identity of one that is gone

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        made = [*_iterate_tensors(output)]
        if self.scopes and made:
            name = getattr(func, "__name__", "call")
            if name == "__get__":  # of a property: `x.T`
                name = getattr(func.__self__, "__name__", name)
            taken = [self.source(tensor) for tensor in _iterate_tensors((args, kwargs))]
            self.add(self.here(name.strip("_")), name, taken, made, _format_arguments(args, kwargs or {}))
        return output

    def enter(self, scope: str, _module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self.scopes:
            for tensor in _iterate_tensors((args, kwargs)):
                if id(tensor) not in self.made_by:
                    self.add("input", "Input", [], [tensor])
        self.scopes.append(scope)

    def leave(self, _scope: str, _module: nn.Module, _args: Any, output: Any) -> None:
        self.scopes.pop()
        if not self.scopes:
            for tensor in _iterate_tensors(output):
                self.add("output", "Output", [self.source(tensor)], [])

    def source(self, tensor: Tensor) -> str:
        """Return the name of the node that a tensor comes from."""
        if id(tensor) not in self.made_by:
            stored = self.stored.get(id(tensor))
            if stored is None:
                self.add(self.here("constant"), "Constant", [], [tensor])
            else:
                kind = "Buffer" if stored in self.buffers else "Parameter"
                self.add(stored.replace(".", "/"), kind, [], [tensor])
        return self.made_by[id(tensor)]

    def here(self, name: str) -> str:
        """Return a name below the module under way."""
        return f"{self.scopes[-1]}/{name}" if self.scopes and self.scopes[-1] else name

    def add(self, name: str, operation: str, taken: list[str], made: list[Tensor], arguments: str = "") -> None:
        name = NOT_IN_A_NAME.sub("_", name)
        number = self.names[name]
        self.names[name] += 1
        name = f"{name}_{number}" if number else name
        shapes = [list(tensor.shape) for tensor in made]
        self.nodes.append({"name": name, "op": operation, "input": taken, "shapes": shapes, "arguments": arguments})
        for tensor in made:
            self.made_by[id(tensor)] = name
            self.kept.append(tensor)

    def serialised(self) -> bytes:
        from tensorboardX.proto.attr_value_pb2 import AttrValue
        from tensorboardX.proto.graph_pb2 import GraphDef
        from tensorboardX.proto.node_def_pb2 import NodeDef
        from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto

        def shape(sizes: list[int]) -> Any:
            return TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in sizes])

        nodes = []
        for node in self.nodes:
            attributes = {"_output_shapes": AttrValue(list=AttrValue.ListValue(shape=map(shape, node["shapes"])))}
            if node["arguments"]:
                attributes["arguments"] = AttrValue(s=node["arguments"].encode())
            nodes.append(NodeDef(name=node["name"], op=node["op"], input=node["input"], attr=attributes))
        graph: bytes = GraphDef(node=nodes).SerializeToString()
        return graph


def _iterate_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for member in value.values():
            yield from _iterate_tensors(member)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from _iterate_tensors(member)


def _format_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Format the arguments that hold no tensors."""
    parts = [repr(value) for value in args if not any(True for _ in _iterate_tensors(value))]
    parts += [f"{name}={value!r}" for name, value in kwargs.items() if not any(True for _ in _iterate_tensors(value))]
    return ", ".join(parts)[:200]
