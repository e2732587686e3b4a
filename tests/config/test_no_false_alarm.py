"""What is right is not refused: shipped configs in every combination, public classes in their slots."""

import enum
import inspect
import itertools
from typing import Literal, get_args, get_origin

import pytest
import torch

from runner.config.check.check import check, parse, to_resolved_data
from runner.config.check.components import PlacedMistakes, check_component
from runner.config.check.imports import check_name
from runner.config.check.signature import inspect_parameters
from runner.config.compose import compose
from runner.config.hydra_repository import find_our_conf
from runner.core.errors import ConfigError
from tests.support import list_experiments, mark_slow

GROUPS = ("loader", "init", "optimizer", "scheduler", "log", "debug")
# Required arguments that an annotation does not tell.
VALUES = {
    "cutoffs": [10, 20],
    "milestones": [3],
    "input_size": [64, 64],
    "block_channels": [8],
    "block_layers": [1],
    "layers": [1, 1],
    "stages_repeats": [1],
    "stages_out_channels": [8],
    "patch_size": [4, 4],
    "depths": [2],
    "num_heads": [2],
    "mean": [0.5],
    "std": [0.5],
    "target_size": [8, 8],
}

OBJECTS = {
    "Metric": "torchmetrics.MeanMetric",
    "Tensor": "torch.ones",
    "Layer": "torch.nn.Identity",
    "Module": "torch.nn.Identity",
}


def options(group):
    return sorted(file.stem for file in (find_our_conf() / group).glob("*.yaml"))


@pytest.mark.parametrize("experiment", mark_slow(list_experiments()))
def test_shipped_experiment_passes_and_survives_being_recorded(experiment):
    config = check(compose([f"experiment={experiment}", "device=cpu"]))

    assert config == parse(to_resolved_data(config))


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_of_a_group_passes(group):
    for option in options(group):
        alone = ["experiment=null"] if option in {"lbfgs", "gan"} else []  # the default experiment sets SGD's own keys
        check(compose(["device=cpu", f"{group}={option}", *alone]))


# What an experiment rightly refuses: no validation while it trains, no data, several rates, or large batches.
MANY_RATES = [(f"optimizer={name}", "scheduler=one_cycle") for name in ("gan", "muon")]  # it follows the one rate
FEW = {"debug=fast", "debug=one_batch", "debug=overfit"}
REFUSED = {
    "airbench94": {"scheduler=plateau"} | FEW,
    "airbench94_muon": {"scheduler=plateau", "scheduler=one_cycle"} | FEW,
    "digits_gan": {"scheduler=one_cycle"},
    "dynamic_net": {"scheduler=plateau", "log=inside"},
    "minimise": {"scheduler=plateau", "log=inside", "loader=balanced", "loader=workers"},
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("experiment", list_experiments(slow=False))
def test_every_experiment_with_every_option(experiment):
    """What an experiment takes one by one it takes two by two."""
    refused = REFUSED.get(experiment, set())
    taken = {group: [f"{group}={option}" for option in options(group)] for group in GROUPS}
    assert refused <= set(itertools.chain(*taken.values()))
    for option in refused:
        with pytest.raises(ConfigError):
            check(compose([f"experiment={experiment}", "device=cpu", option]))
    for first, second in itertools.combinations(GROUPS, 2):
        for pair in itertools.product(taken[first], taken[second]):
            if not refused & {*pair} and pair not in MANY_RATES:
                check(compose([f"experiment={experiment}", "device=cpu", *pair]))


def example(parameter):
    """A value that a required parameter takes."""
    text = str(parameter.annotation)
    if "torch.dtype" in text:
        return "torch.float32"
    if parameter.name in VALUES and parameter.annotation is not int:
        return VALUES[parameter.name]
    if "Callable" in text:
        return {"_target_": "torch.nn.ReLU"}
    if get_origin(parameter.annotation) is Literal:
        return get_args(parameter.annotation)[0]
    for word, value in (("ict", {"a": 1}), ("int", 3), ("float", 0.5), ("str", "x"), ("bool", True)):
        if word in text:
            return value
    for word, target in OBJECTS.items():
        if word in text:
            return {"_target_": target, "_args_": [2]} if word == "Tensor" else {"_target_": target}
    return [1, 2]


def refused(slot, name, target, supplied=()):
    """What is said about a target with its required arguments, and with every plain default written out."""
    takes = inspect_parameters(target)
    nodes = [{"_target_": name}]
    if takes is not None:
        unnamed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        own = {n: p for n, p in takes.own.items() if p.kind not in unnamed and n not in supplied}
        nodes[0] |= {n: example(p) for n, p in own.items() if p.default is p.empty}
        plain = {
            n: p.default
            for n, p in own.items()
            if isinstance(p.default, bool | int | float | str | None) and not isinstance(p.default, enum.Enum)
        }
        nodes.append(nodes[0] | plain)
        if "weights_backbone" in own:  # has to be said: its default is a download
            nodes = [{**node, "weights_backbone": None} for node in nodes]
    found = PlacedMistakes()
    check_name(name)
    for node in nodes:
        check_component((slot,), slot, node, (), found)
    return [f"{name}: {mistake}" for _, mistake in found.mistakes]


def public(module):
    return [(name, getattr(module, name)) for name in dir(module) if not name.startswith("_")]


def test_torch_classes_fit_their_slots():
    wrong = []
    for name, kind in public(torch.nn):
        if isinstance(kind, type) and issubclass(kind, torch.nn.Module):
            wrong += refused("loss" if "Loss" in name else "model", f"torch.nn.{name}", kind)
    for name, kind in public(torch.optim):
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
            wrong += refused("optimizer", f"torch.optim.{name}", kind, ("params",))
    for name, kind in public(torch.optim.lr_scheduler):
        if isinstance(kind, type) and issubclass(kind, torch.optim.lr_scheduler.LRScheduler):
            wrong += refused("scheduler", f"torch.optim.lr_scheduler.{name}", kind, ("optimizer",))
    for name, function in public(torch.nn.init):
        if inspect.isfunction(function) and name.endswith("_"):
            wrong += refused("init", f"torch.nn.init.{name}", function, ("tensor",))

    assert [] == wrong


def test_torchvision_classes_fit_their_slots():
    vision = pytest.importorskip("torchvision")
    from torchvision.transforms import v2

    wrong = []
    for name in vision.models.list_models():
        builder = vision.models.get_model_builder(name)
        wrong += refused("model", f"{builder.__module__}.{builder.__name__}", builder)
    for module, place in ((vision.transforms, "torchvision.transforms"), (v2, "torchvision.transforms.v2")):
        for name, kind in public(module):
            if isinstance(kind, type) and not issubclass(kind, enum.Enum):
                wrong += refused("transform", f"{place}.{name}", kind)
    for name, kind in public(vision.datasets):
        if isinstance(kind, type) and "LSUN" not in name:  # they unpickle a file of the working directory
            wrong += refused("dataset", f"torchvision.datasets.{name}", kind)

    assert [] == wrong


@pytest.mark.filterwarnings("ignore")
def test_torchmetrics_classes_fit_their_slot():
    metrics = pytest.importorskip("torchmetrics")

    wrong = []
    for name, kind in public(metrics):
        if isinstance(kind, type):
            wrong += refused("metric", f"torchmetrics.{name}", kind)

    assert [] == wrong


@pytest.mark.parametrize(
    ("slot", "node"),
    [
        ("model", {"_target_": "torchvision.models.resnet18", "num_classes": 10, "zero_init_residual": True}),
        ("model", {"_target_": "torchvision.models.efficientnet_b0", "dropout": 0.1, "num_classes": 3}),
        (
            "model",
            {
                "_target_": "torchvision.models.resnet18",
                "norm_layer": {"_target_": "torch.nn.BatchNorm2d", "_partial_": True},
            },
        ),
        ("model", {"_target_": "torch.nn.Linear", "_args_": [3, 4]}),
        ("model", {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "torch.nn.Linear", "_args_": [3, 4]}]}),
        ("scheduler", {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": "9.5ep"}),
        (
            "metric",
            {"_target_": "torchmetrics.Accuracy", "task": "multiclass", "num_classes": 10, "sync_on_compute": False},
        ),
        ("loss", {"_target_": "torch.nn.functional.cross_entropy", "label_smoothing": 0.1}),
        ("transform", {"_target_": "torchvision.transforms.v2.ToDtype", "dtype": "torch.float32", "scale": True}),
        ("sampler", {"_target_": "torch.utils.data.RandomSampler", "replacement": True}),
        (
            "sampler",
            {
                "_target_": "torch.utils.data.BatchSampler",
                "sampler": {"_target_": "torch.utils.data.RandomSampler"},
                "batch_size": 4,
                "drop_last": True,
            },
        ),
        ("function", {"_target_": "torch.utils.data.default_collate"}),
        (
            "loss",
            {"_target_": "torch.nn.CrossEntropyLoss", "weight": {"_target_": "torch.tensor", "_args_": [[1.0, 2.0]]}},
        ),
    ],
)
def test_right_component_passes(slot, node):
    found = PlacedMistakes()
    check_component((slot,), slot, node, (), found)

    assert [] == found.mistakes


@pytest.mark.parametrize(
    ("slot", "node", "key"),
    [
        ("model", {"_target_": "torchvision.models.resnet18", "num_clases": 10}, "model.num_clases"),
        ("model", {"_target_": "torchvision.models.resnet18", "block": 1}, "model.block"),
        ("model", {"_target_": "torchvision.models.resnet18", "weights": "DEFAULT"}, "model.weights"),
        ("model", {"_target_": "torchvision.models.resnet18", "pretrained": True}, "model.pretrained"),
        ("model", {"_target_": "torch.nn.Linear", "in_features": 3}, "model.out_features"),
        ("model", {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2.5}, "model.out_features"),
        (
            "model",
            {
                "_target_": "torch.nn.Sequential",
                "_args_": [{"_target_": "torch.nn.Linear", "in_featres": 3, "_partial_": True}],
            },
            "model._args_.0.in_featres",
        ),
        ("optimizer", {"_target_": "torch.optim.SGD", "params": []}, "optimizer.params"),
        ("metric", {"_target_": "torchmetrics.Accuracy", "task": "multiclas"}, "metric.task"),
        ("metric", {"_target_": "torchmetrics.MeanMetric", "sync_on_compte": False}, "metric.sync_on_compte"),
        ("transform", {"_target_": "torchvision.transforms.v2.ToDtype", "dtype": "torch.flaot32"}, "transform.dtype"),
        ("loss", {"_target_": "torch.nn.CrossEntropyLoss", "label_smoothing": "x"}, "loss.label_smoothing"),
        ("loss", {"_target_": "torch.nn.functional.gaussian_nll_loss"}, "loss.var"),
        ("loss", {"_target_": "torch.nn.CrossEntropyLoss", "reduction": "men"}, "loss.reduction"),
        ("loss", {"_target_": "torch.nn.CrossEntropyLoss", "weight": [1.0, 2.0]}, "loss.weight"),
    ],
)
def test_wrong_component_is_named(slot, node, key):
    found = PlacedMistakes()
    check_component((slot,), slot, node, (), found)

    assert [key] == [mistake.key for _, mistake in found.mistakes]
