"""Keys of a model's weights: `init`, `pretrained`, `freeze` and `param_groups`."""

from dataclasses import dataclass
from typing import Any, Literal

from runner.config.schema.fields import Component, Duration, Pattern, make_field


@dataclass
class InitRule:
    """Initialization of tensors in modules chosen by type (subclasses count) and name pattern.

    Every further key names a parameter or buffer of the module: a number fills it, a component is called with it.
    """

    # Type of the modules, or a list of types: `torch.nn.Conv2d`. Subclasses count. null: any.
    module: str | list[str] | None = None
    # Name of the modules in the model: `fc`, or a pattern such as `layer\d\..*`. null: any.
    name: Pattern | None = None
    # Take only the last of the chosen modules that share a parent, such as the norm that ends a block.
    last: bool = False
    # Allow the rule to find no module. Else that is an error.
    optional: bool = False
    # Parameter or buffer of the modules (`weight`, `bias`) and its values: a number fills it, a function such as
    # `{_target_: torch.nn.init.zeros_}` is called with it.
    tensors: dict[str, float | int | Component | None] = make_field({}, rest=True, slot="init")


@dataclass
class Init:
    # Rules for the tensors of the model, by a name of your own, in order. The first that names a tensor sets it.
    rules: dict[str, InitRule | None] = make_field({})
    # Function of your own for `model.apply`: `fn(module)`, or `fn(module, batch)` to get training samples as well.
    apply: Component | None = make_field(None, slot="module_function")
    # Training samples in the batch for `apply`: the first ones, transformed as for an evaluation.
    samples: int = make_field(1024, at_least=1)


@dataclass
class Rename:
    # Pattern to look for in the names of the file: `^encoder\.`.
    from_: str = make_field(alias="from")
    # Text that takes the place of what the pattern matches, as in `re.sub`: `backbone.`.
    to: str = make_field()


@dataclass
class Expect:
    # Least tensors of the model that must load: a number of them, or a share such as `0.98`. null: one.
    loaded: float | int | None = make_field(None, at_least=0)
    # Patterns of the only tensors of the model that may stay without a value from the file: `head\..*`.
    missing: list[Pattern] = make_field([])


ShapeMismatch = Literal["error", "skip", "slice", "sum", "repeat", "interpolate"]


@dataclass
class Pretrained:
    # Which tensors to load. full: all of the file into all of the model; filtered: those with the same name, chosen by
    # `include` and `exclude`; partial: the same, where at least one must fit; layers: those that `layers` names.
    strategy: Literal["none", "full", "filtered", "layers", "partial"] = "none"
    # Where the weights come from: a file (.pt, .pth, .tar, .safetensors), a run directory, a URL (with `sha256`) or a
    # name of torchvision's such as `IMAGENET1K_V1`.
    path: str | None = None
    # Key of the weights inside the file, such as `state_dict`. null: the usual keys are tried.
    key: str | None = None
    # Text to remove from the beginning of each name in the file, such as `module.` after DataParallel.
    strip_prefix: str | None = None
    # Text to put before each name in the file.
    add_prefix: str | None = None
    # Replacements in the names of the file, in order.
    rename: list[Rename] = make_field([])
    # Patterns of the tensors to load, by their name in the model.
    include: list[Pattern] = make_field([".*"])
    # Patterns of the tensors not to load, by their name in the model: `fc\..*` for a new head.
    exclude: list[Pattern] = make_field([])
    # Tensors or layers to load with `strategy: layers`: a list of names, or a mapping from a name in the file to the
    # name in the model.
    layers: list[str] | dict[str, str] = make_field([])
    # What to do with a tensor of another shape, for all of them or by pattern. error; skip: leave it as it is; slice:
    # copy what both have; sum, repeat: adapt the input channels; interpolate: resize position embeddings.
    shape_mismatch: ShapeMismatch | dict[Pattern, ShapeMismatch] = "error"
    # SHA-256 of the file. A URL needs it; a file with another hash is not used.
    sha256: str | None = make_field(None, regex="[0-9a-f]{64}")
    # What must load, so that a wrong file does not pass unseen.
    expect: Expect = make_field(Expect)
    # Train without the weights where the file does not exist. Else that is an error.
    optional: bool = False
    # Load the optimizer's state as well: true, or its key in the file.
    optimizer: bool | str = False
    # Epochs that the file's training has done. This run begins after them: duration, schedule and log count on.
    epoch: int | None = make_field(None, at_least=0)


@dataclass
class FreezeSet:
    """Further parameters that are frozen, with times of their own."""

    # Patterns of the parameters that do not train: `embedding\..*`.
    params: list[Pattern] = make_field()
    # Time until which they do train: `5ep`. null: they are frozen from the start.
    from_: Duration | None = make_field(None, alias="from")
    # Time from which they train again: `10ep`. null: never.
    until: Duration | None = None


@dataclass
class Freeze:
    # Patterns of the parameters that do not train: `embedding\..*`.
    params: list[Pattern] = make_field([])
    # Keep the running statistics of the normalisation layers whose parameters are frozen.
    norm_stats: bool = False
    # Time until which they do train: `5ep`. null: they are frozen from the start.
    from_: Duration | None = make_field(None, alias="from")
    # Time from which they train again: `10ep`. null: never.
    until: Duration | None = None
    # Further frozen parameters, by a name of your own, each set with times of its own.
    sets: dict[str, FreezeSet | None] = make_field({})


@dataclass
class ParamGroup:
    """Parameters chosen by name pattern, with optimizer settings of their own (`settings`)."""

    # Pattern of the parameters' names, or a list of them: `fc\..*`. The first group that matches a parameter has it.
    match: Pattern | list[Pattern]
    # Learning rate of the group as a multiple of `optimizer.lr`.
    lr_mult: float | None = make_field(None, at_least=0)
    # Make a group of each layer, with so many times the learning rate of the layer after it: `0.75`.
    layer_decay: float | None = make_field(None, above=0)
    # Take only tensors of at most so many dimensions. 1: biases and the weights of norms.
    max_dims: int | None = make_field(None, at_least=0)
    # Allow the group to match no parameter. Else that is an error.
    optional: bool = False
    # Setting of the optimizer for this group alone: `weight_decay: 0`.
    settings: dict[str, Any] = make_field({}, rest=True)
