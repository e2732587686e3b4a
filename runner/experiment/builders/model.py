"""Preparation of a model for training: init rules, pretrained weights, freezing, parameter groups.

The same functions plan it on a meta model (`check`, `explain`) and do it to a live one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from runner.config.check.imports import import_object
from runner.config.parsing import read_members
from runner.config.schema import Config, ParamGroup
from runner.core.errors import ConfigError, Mistake
from runner.experiment.builders.instantiate import Trust, instantiate
from runner.experiment.builders.lending import get_loan
from runner.model import init, param_groups
from runner.model.freeze import FreezeSpan, FrozenParameters, freeze
from runner.model.pretrained.load import load, prepare
from runner.model.pretrained.plan import LoadPlan, Options
from runner.train.optimizer_step.closure import has_parameter


@dataclass
class PreparedModel:
    """Record of a model's preparation: init rows, changed tensors, load plan, frozen parameters."""

    init_rows: list[init.InitRow] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)  # the tensors that `init.apply` changed
    pretrained: LoadPlan | None = None
    frozen: FrozenParameters = field(default_factory=FrozenParameters)


def make_model(config: Config, trust: Trust = ()) -> nn.Module:
    """Build the model on the default device, drawing from the random stream `(seed, 'model')`."""
    model: nn.Module = instantiate(config.model, "model", trust=trust, seed=config.seed)
    return model


def prepare_model(
    config: Config,
    model: nn.Module,
    trust: Trust = (),
    *,
    weights: bool = True,
    batch: Callable[[], Any] | None = None,
) -> PreparedModel:
    """Initialize the model, load pretrained weights unless `weights` is false, freeze, in this order.

    `batch` gives training samples to an `init.apply` that asks for them; without it, or where the weights come from a
    checkpoint, such a function is left out.

    Raises:
        ConfigError: a rule, a file or a pattern is wrong.
        RunError: a download failed, a function refused a tensor.
    """
    done = PreparedModel()
    if config.init.apply is not None:  # before the rules: they are the more particular
        function = instantiate(config.init.apply, "init.apply", trust=trust, call=False, seed=config.seed)
        if not has_parameter(function, "batch"):
            done.changed = init.apply_function(model, function, config.seed)
        elif weights and batch is not None:
            done.changed = init.apply_function(model, partial(function, batch=batch()), config.seed)
    if config.init.rules:
        done.init_rows = init.apply_rules(model, make_init_rules(config, trust), config.seed)
    done.pretrained = plan_pretrained(config, model, download=True) if weights else None
    if done.pretrained is not None:
        load(model, done.pretrained)
    done.frozen = freeze_model(config, model)
    return done


def freeze_model(config: Config, model: nn.Module) -> FrozenParameters:
    """Freeze what `freeze` says, with the steps of its durations.

    Raises:
        ConfigError: a pattern matches nothing, or a setting has no effect.
    """
    chosen, loan = config.freeze, get_loan()

    def count(text: str | None, key: str) -> int | None:
        return None if text is None else loan.count_steps(text, key)

    sets = [
        FreezeSpan(
            part.params,
            count(part.from_, f"freeze.sets.{name}.from"),
            count(part.until, f"freeze.sets.{name}.until"),
            f"freeze.sets.{name}.params",
        )
        for name, part in chosen.sets.items()
        if part is not None
    ]
    start, end = count(chosen.from_, "freeze.from"), count(chosen.until, "freeze.until")
    return freeze(model, chosen.params, norm_stats=chosen.norm_stats, start=start, end=end, more=sets)


def make_init_rules(config: Config, trust: Trust = ()) -> list[init.Rule]:
    """Make the config's init rules in order, with their module types and functions imported."""
    rules = []
    for label, rule in config.init.rules.items():
        if rule is None:
            continue
        tensors = {
            name: instantiate(value, f"init.rules.{label}.{name}", trust=trust, call=False, seed=config.seed)
            if isinstance(value, Mapping)
            else value
            for name, value in rule.tensors.items()
            if value is not None
        }
        named = [rule.module] if isinstance(rule.module, str) else rule.module or []
        modules = tuple(import_object(path, trust) for path in named)
        rules.append(init.Rule(label, modules or None, rule.name, tensors, rule.optional, rule.last))
    return rules


def plan_pretrained(config: Config, model: nn.Module, *, download: bool) -> LoadPlan | None:
    """Plan the load of pretrained weights; None for strategy `none`, or a file not yet downloaded.

    Raises:
        ConfigError: the file, its content or the settings are wrong.
        RunError: the download failed.
    """
    chosen = config.pretrained
    if chosen.strategy == "none":
        return None
    if chosen.path is None:
        rule, remedy = f"must be given for the strategy {chosen.strategy}", "`pretrained.path=w.pt`, or a run directory"
        raise ConfigError([Mistake("pretrained.path", rule, remedy=remedy, kind="missing")])
    mismatch = chosen.shape_mismatch
    options = Options(
        strategy=chosen.strategy,
        strip_prefix=chosen.strip_prefix,
        add_prefix=chosen.add_prefix,
        rename=[(rule.from_, rule.to) for rule in chosen.rename],
        include=chosen.include,
        exclude=chosen.exclude,
        layers=chosen.layers,
        shape_mismatch=mismatch if isinstance(mismatch, str) else {str(name): how for name, how in mismatch.items()},
        expect_loaded=chosen.expect.loaded,
        expect_missing=chosen.expect.missing,
        optional=chosen.optional,
    )
    made = prepare(
        model,
        chosen.path,
        options,
        key=chosen.key,
        sha256=chosen.sha256,
        builder=config.model["_target_"],
        download=download,
        optimizer=chosen.optimizer,
    )
    if made is not None and made.epoch is not None:
        made.begins += describe_epoch(made.epoch, chosen.epoch, continues=made.optimizer is not None)
    return made


def describe_epoch(named: int, begins_at: int | None, *, continues: bool) -> list[str]:
    """Compare a file's saved epoch with `pretrained.epoch`; return notes for the user.

    Scripts save the last epoch done, counted from 0, or the number of those done: which of the two is not in the file.
    """
    if begins_at is None and continues:
        ways = f"{named + 1} where that was the last epoch done, counted from 0, or {named} where it counts those done"
        return [f"the file says epoch {named}, and training begins at 0: to go on there, pretrained.epoch={ways}"]
    if begins_at is not None and begins_at not in (named, named + 1):
        return [f"the file says epoch {named}, and training begins after {begins_at} (pretrained.epoch)"]
    return []


def make_groups(
    config: Config, model: nn.Module, frozen: FrozenParameters, trust: Trust = (), loss: Any = None
) -> list[dict[str, Any]]:
    """Make the optimizer's named parameter groups from the parameters of the model and of the loss.

    Raises:
        ConfigError: a pattern without match, a group without trainable parameter, nothing to train.
    """
    settings = {name: value for name, value in config.optimizer.items() if not name.startswith("_")}
    own = loss if isinstance(loss, nn.Module) else None
    thawing = frozen.thawing
    shared = _make_groups(config.param_groups)
    target = import_object(config.optimizer["_target_"], trust)
    chosen = read_members(config.optimizer)
    if not chosen:
        return param_groups.build_groups(model, shared, target, settings, thawing, own)
    members = [
        param_groups.Member(
            name,
            [member.match] if isinstance(member.match, str) else member.match,
            import_object(member.arguments["_target_"], trust),
            {key: value for key, value in member.arguments.items() if not key.startswith("_")},
            _make_groups(member.param_groups, name),
            member.min_dims,
            member.max_dims,
        )
        for name, member in chosen.items()
    ]
    return param_groups.build_members(model, members, shared, thawing, own)


def _make_groups(groups: Mapping[str, ParamGroup | None], owner: str = "") -> list[param_groups.Group]:
    return [
        param_groups.Group(
            label,
            [group.match] if isinstance(group.match, str) else group.match,
            group.settings,
            group.lr_mult,
            group.layer_decay,
            group.max_dims,
            group.optional,
            place=f"optimizer.{owner}.param_groups" if owner else "param_groups",
        )
        for label, group in groups.items()
        if group is not None
    ]


def find_member_optimizers(config: Config) -> dict[str, dict[str, Any]]:
    """Return the member optimizers' own nodes by name; empty for a single optimizer."""
    return {name: member.arguments for name, member in read_members(config.optimizer).items()}
