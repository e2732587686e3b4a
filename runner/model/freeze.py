"""Freeze parameters and the statistics of normalisation layers, and unfreeze them later."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from runner.core.errors import ConfigError, Mistake
from runner.core.patterns import compile_pattern, diagnose_no_match


@dataclass
class FrozenParameters:
    """Parameters and normalisation layers that `freeze` changed, for `unfreeze` to restore."""

    params: dict[str, nn.Parameter] = field(default_factory=dict)  # by name; those that trained before
    norms: dict[str, nn.Module] = field(default_factory=dict)  # kept in eval mode


class _EvalModeTrain:
    """Replacement for a module's `train` that keeps eval mode; it can be copied and pickled."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        return type(self.module).train(self.module, mode=False)


def freeze(model: nn.Module, patterns: Sequence[str], *, norm_stats: bool = False) -> FrozenParameters:
    """Freeze the parameters whose names match a pattern: no gradient, no update, no weight decay.

    Args:
        model: on any device, the meta device included.
        patterns: matched with `re.fullmatch` against parameter names; a tied parameter answers to each of its names.
        norm_stats: whether normalisation layers with running statistics whose parameters are all frozen (or that have
            none, and whose `running_mean` matches a pattern) stay in eval mode, whatever `model.train()` is called.

    Raises:
        ConfigError: a pattern matches nothing, or nothing that earlier ones do not; `norm_stats` finds no such layer.
            The model is untouched then.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    canonical = {id(parameter): name for name, parameter in model.named_parameters()}
    mistakes: list[Mistake] = []
    chosen: dict[str, nn.Parameter] = {}
    for index, pattern in enumerate(patterns):
        key = f"freeze.params[{index}]"
        expression = compile_pattern(key, pattern, mistakes)
        if expression is None:
            continue
        matched = {canonical[id(p)]: p for name, p in named.items() if expression.fullmatch(name)}
        if not matched:
            mistakes.append(diagnose_no_match(key, pattern, list(named), "a parameter"))
        elif not matched.keys() - chosen.keys():
            mistakes.append(
                Mistake(
                    key,
                    "must freeze something that earlier patterns do not",
                    pattern,
                    remedy="leave it out",
                    kind="no-effect",
                )
            )
        chosen |= matched
    norms = {} if mistakes or not norm_stats else _find_frozen_norms(model, patterns, {id(p) for p in chosen.values()})
    if norm_stats and not norms and not mistakes:
        rule = "finds no frozen normalisation layer with running statistics"
        mistakes.append(
            Mistake(
                "freeze.norm_stats",
                rule,
                value=True,
                remedy="leave it out, or name such layers in `freeze.params`",
                kind="no-match",
            )
        )
    if mistakes:
        raise ConfigError(mistakes)
    frozen = FrozenParameters({name: p for name, p in chosen.items() if p.requires_grad}, norms)
    for parameter in frozen.params.values():
        parameter.requires_grad_(False)
        parameter.grad = None
    for norm in norms.values():
        norm.eval()
        norm.train = _EvalModeTrain(norm)  # type: ignore[method-assign]
    return frozen


def unfreeze(model: nn.Module, frozen: FrozenParameters) -> None:
    """Let all that `freeze` froze train again; norms take the mode of `model`. Repeating it is harmless.

    The optimizer needs to hold the parameters already (`param_groups.build_groups(…, thawing=frozen.params)`): without
    gradients it has left them alone so far.
    """
    for parameter in frozen.params.values():
        parameter.requires_grad_()
    for norm in frozen.norms.values():
        if isinstance(norm.__dict__.get("train"), _EvalModeTrain):
            del norm.train
        norm.train(model.training)


def _find_frozen_norms(model: nn.Module, patterns: Sequence[str], frozen: set[int]) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if getattr(module, "running_mean", None) is None:  # every batch and instance norm, also other libraries'
            continue
        own = list(module.parameters())
        statistics = f"{name}.running_mean".lstrip(".")
        if all(id(p) in frozen for p in own) if own else any(re.fullmatch(p, statistics) for p in patterns):
            found[name] = module
    return found
