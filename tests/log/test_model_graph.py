import random

import pytest
import torch
from tensorboard.compat.proto.graph_pb2 import GraphDef
from torch import nn

from models.cnn import SmallCNN
from runner.log.model_graph import record_graph
from runner.model.meta import copy_to_meta, to_meta


def nodes(model, call):
    """As TensorBoard itself reads them: name → inputs."""
    return {node.name: list(node.input) for node in GraphDef.FromString(record_graph(model, call)).node}


def test_a_graph_has_the_functions_called_below_the_modules_that_called_them():
    model = SmallCNN()

    found = nodes(model, lambda: model(torch.rand(2, 1, 8, 8)))

    assert found["conv1/conv2d"] == ["input", "conv1/weight", "conv1/bias"]
    assert found["relu"] == ["conv1/conv2d"]
    assert found["fc/linear"] == ["flatten", "fc/weight", "fc/bias"]
    assert found["output"] == ["fc/linear"]


def test_every_input_of_a_node_is_a_node_and_names_are_unique():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.relu = nn.BatchNorm1d(4), nn.ReLU(inplace=True)

        def forward(self, x):
            for _ in range(3):
                x = self.relu(self.norm(x + x.T.T))
            return {"a": x, "b": (x.sum(), 3)}

    model = Block()
    graph = GraphDef.FromString(record_graph(model, lambda: model(torch.rand(5, 4))))
    names = [node.name for node in graph.node]

    assert len(names) == len(set(names))
    assert {name for node in graph.node for name in node.input} <= set(names)
    (shape,) = graph.node[0].attr["_output_shapes"].list.shape
    assert (graph.node[0].name, [dim.size for dim in shape.dim]) == ("input", [5, 4])


def test_control_flow_by_numbers_and_random_lengths_are_no_hindrance():
    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            for _ in range(random.choice([2])):
                x = self.layer(x)
            return x if x.sum() > 1e9 else -x

    model = Random()

    assert [name for name in nodes(model, lambda: model(torch.rand(2, 4))) if "linear" in name] == [
        "layer/linear",
        "layer/linear_1",
    ]


def test_a_graph_leaves_modes_hooks_and_statistics_as_they_were():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    model[2].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    record_graph(model, lambda: model(torch.rand(8, 4)))

    assert [module.training for module in model] == [True, True, False]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_that_is_not_called_has_no_graph():
    with pytest.raises(ValueError, match="the model was not called"):
        record_graph(nn.Linear(1, 1), lambda: None)


def test_a_copy_on_the_meta_device_keeps_ties_and_what_trains():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "n": nn.BatchNorm1d(4)})
    model["b"].weight = model["a"].weight
    model["a"].bias.requires_grad_(False)

    copy = copy_to_meta(model)

    assert all(tensor.is_meta for tensor in copy.state_dict().values())
    assert copy["a"].weight is copy["b"].weight
    assert [p.requires_grad for p in copy.parameters()] == [p.requires_grad for p in model.parameters()]
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    assert to_meta({"x": [torch.rand(2, 3), 4]})["x"][0].is_meta
