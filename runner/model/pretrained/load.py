"""Plan which checkpoint tensors the model takes, and load them."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from runner.core.errors import ConfigError, Mistake, RunError
from runner.model.pretrained.contents import find_place, find_state
from runner.model.pretrained.files import read
from runner.model.pretrained.locate import locate
from runner.model.pretrained.matching import TensorMatching, diagnose_mismatch, propose_rename
from runner.model.pretrained.optimizer_state import describe_rest, find_epoch, read_optimizer
from runner.model.pretrained.plan import (
    LOADED,
    SHOWN,
    LoadPlan,
    Options,
    ReparametrizedTensor,
    TensorRow,
    find_reparametrized,
)


def prepare(
    model: nn.Module,
    path: str,
    options: Options,
    *,
    key: str | None = None,
    sha256: str | None = None,
    builder: str = "",
    download: bool = True,
    optimizer: bool | str = False,
) -> LoadPlan | None:
    """Find, read and match weights; the model (on the meta device too) stays unchanged.

    Args:
        model: what they are for, without a wrapper.
        path: see `locate.locate`, as `sha256`, `builder` and `download`.
        options: what to take over.
        key: see `contents.find_state`.
        sha256: of the file.
        builder: the dotted path of the model's function, for short torchvision names.
        download: whether to fetch what is not on this machine.
        optimizer: whether to read the optimizer's state too, or its key in the file.

    Returns:
        The plan; None where the file would have to be downloaded first.

    Raises:
        ConfigError: whatever is wrong with the file, its content or the options.
        RunError: the download failed.
    """
    located = locate(path, sha256=sha256, builder=builder, download=download)
    if located is None:
        return None
    raw = read(located)
    state, said = find_state(raw, key)
    made = plan(model, state, options, file=str(located.file), said=[*located.said, *said])
    place = find_place(raw, key)
    made.epoch = find_epoch(raw, place)
    if optimizer:
        try:
            made.optimizer = read_optimizer(raw, optimizer, place, made, state)
        except ConfigError as error:
            if not options.optional:
                raise
            made.notes += [f"{mistake.key} {mistake.rule}" for mistake in error.mistakes]
    made.said += describe_rest(raw, place, None if made.optimizer is None else made.optimizer.place)
    return made


def plan(
    model: nn.Module, state: Mapping[str, Any], options: Options, *, file: str = "", said: Sequence[str] = ()
) -> LoadPlan:
    """Match a state_dict with the model's.

    Args:
        model: on any device, the meta device included.
        state: the file's names and tensors.
        options: what to take over.
        file: for the report.
        said: how the tensors were found, for the report.

    Raises:
        ConfigError: options that contradict each other or have no effect, tensors that hold NaN or no numbers, shapes
            or dtypes that differ, less than was expected; with a table, and rename rules where these would help.
    """
    matching = TensorMatching(model, state, options)
    matching.run()
    made = LoadPlan(file, list(said), matching.rows, matching.tensors)
    made.sources = {now: name for now, name in matching.names.items() if now in matching.target}
    made.buffers = frozenset(matching.target.keys() - matching.parameters)
    shortfall = matching.shortfall(made) if made.rows else []
    if options.optional:
        made.notes += [f"{mistake.key} {mistake.rule}" for mistake in [*matching.without_effect, *shortfall]]
        shortfall, matching.without_effect = [], []
    mistakes = [*matching.mistakes, *matching.without_effect]
    if any(row.action == "mismatch" for row in made.rows):
        mistakes.append(diagnose_mismatch(made.rows))
    layers = matching.reparametrized()
    if shortfall:
        proposal, suggestion, _ = propose_rename(matching)
        last = shortfall.pop()
        remedy = made.table(SHOWN) + "".join(f"\n{line}" for line in _describe_reparametrized(layers)) + proposal
        mistakes += [*shortfall, replace(last, remedy=remedy, suggestion=suggestion)]
    elif not mistakes and made.rows:
        mistakes += _check_parts(made.rows, matching)
        made.notes += _describe_reparametrized(layers)
        if "include" in matching.strategy.allows and not options.expects:
            mistakes += _suggest_rename(matching, made)
    if mistakes:
        raise ConfigError(mistakes)
    return made


def load(model: nn.Module, made: LoadPlan) -> None:
    """Load the plan's tensors through `model.load_state_dict`; restore the model if it refuses them.

    Raises:
        RunError: the model refuses; it is as it was before.
    """
    live = model.state_dict()
    before = {n: value.clone() for n, value in live.items() if isinstance(value, Tensor) and not is_lazy(value)}
    incoming: OrderedDict[str, Any] = OrderedDict(made.tensors)
    for row in made.rows:
        if row.action == "slice":
            whole = before[row.name].clone()
            whole[tuple(map(slice, incoming[row.name].shape))] = incoming[row.name].to(whole)
            incoming[row.name] = whole
    incoming._metadata = getattr(live, "_metadata", {})  # type: ignore[attr-defined]  # noqa: SLF001  names are today's
    try:
        unexpected = model.load_state_dict(incoming, strict=False).unexpected_keys
        if unexpected:
            raise RuntimeError(f"its own hook for loading does not know {', '.join(unexpected[:3])}")
    except Exception as error:
        with torch.no_grad():
            for name, value in before.items():
                live[name].copy_(value)
        raise RunError(f"pretrained: the model refuses the weights: {error}") from error


def _describe_reparametrized(layers: Sequence[ReparametrizedTensor]) -> list[str]:
    """Describe, in one line per method, the layers that the file stores reparametrized."""
    lines = []
    for how in dict.fromkeys(layer.how for layer in layers):
        of_it = [layer for layer in layers if layer.how == how]
        names = ", ".join(f"`{layer.tensor}`" for layer in of_it[:3]) + (", …" if of_it[3:] else "")
        first = of_it[0]
        lines.append(
            f"the file does not hold {names} but {', '.join(name.rpartition('.')[2] for name in first.stored)}: "
            f"written under {how}, {first.tensor.rpartition('.')[2]} = {first.formula}, which no rename gives; "
            f"where it was saved, call {first.remedy} before the save"
        )
    return lines


def _check_parts(rows: Sequence[TensorRow], matching: TensorMatching) -> list[Mistake]:
    """Diagnose loads of a reparametrized part into a whole weight, or of a whole weight into a part."""
    theirs, ours = (
        {name: layer for layer in find_reparametrized(state) for name in layer.stored}
        for state in (matching.state, matching.target)
    )
    mistakes = []
    for row in rows:
        if row.action not in LOADED or (row.source in theirs) == (row.name in ours):
            continue
        layer = theirs.get(row.source) or ours[row.name]
        whole = f"{layer.tensor.rpartition('.')[2]} = {layer.formula}"
        side, remedy = "the model", f"call {layer.remedy} before it is loaded, and apply {layer.how} again after it"
        if row.source in theirs:
            side, remedy = "the file", f"where it was saved, call {layer.remedy} before the save"
        rule = f"must not take {row.source} for {row.name}: {side} has it under {layer.how}, where {whole}"
        mistakes.append(Mistake("pretrained.path", rule, remedy=remedy))
    return mistakes


def _suggest_rename(matching: "TensorMatching", made: LoadPlan) -> list[Mistake]:
    """Suggest a rename that loads more: a mistake if it at least doubles what loads, else a note."""
    left = [row.name for row in made.rows if row.action == "left"]
    if not left or not any(row.action == "unused" for row in made.rows):
        return []
    proposal, suggestion, loads = propose_rename(matching)
    gained = loads - made.loaded
    if gained <= 0:
        return []
    total = sum(bool(row.name) for row in made.rows)
    if gained < made.loaded:
        made.notes.append(f"{gained} more would load with {suggestion}")
        return []
    meant = f"\nif no more is meant to load: pretrained.expect.loaded={made.loaded}"
    rule = f"loads {made.loaded} of {total} tensors, and a rename would load {loads}"
    return [Mistake("pretrained.path", rule, remedy=made.table(SHOWN) + proposal + meant, suggestion=suggestion)]
