"""Freeze parameters and the statistics of normalisation layers, and unfreeze them later."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from runner.core.errors import ConfigError, Mistake
from runner.core.patterns import compile_pattern, diagnose_no_match


@dataclass(frozen=True)
class FreezeSpan:
    """Patterns of parameters that are frozen from step `start` until step `end`; None: no bound.

    `key` is the place of the patterns in the config.
    """

    patterns: Sequence[str]
    start: int | None = None
    end: int | None = None
    key: str = "freeze.params"

    def holds(self, step: int) -> bool:
        """Return whether the parameters are frozen at a step."""
        return (self.start is None or step >= self.start) and (self.end is None or step < self.end)


@dataclass
class FrozenParameters:
    """Parameters and normalisation layers that `freeze` changes, each parameter with its span.

    Attributes:
        params: by name; those that trained before.
        spans: of the same names.
        norms: normalisation layers that are kept in eval mode while their parameters are frozen.
    """

    params: dict[str, nn.Parameter] = field(default_factory=dict)
    norms: dict[str, nn.Module] = field(default_factory=dict)
    spans: dict[str, FreezeSpan] = field(default_factory=dict)

    @property
    def thawing(self) -> set[str]:
        """Names of parameters that are frozen at first and train later."""
        return {name for name, span in self.spans.items() if span.holds(0) and span.end is not None}

    @property
    def changes(self) -> list[int]:
        """Steps at which something freezes or thaws."""
        return sorted({step for span in self.spans.values() for step in (span.start, span.end) if step})


class _EvalModeTrain:
    """Replacement for a module's `train` that keeps eval mode; it can be copied and pickled."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        return type(self.module).train(self.module, mode=False)


def freeze(
    model: nn.Module,
    patterns: Sequence[str],
    *,
    norm_stats: bool = False,
    start: int | None = None,
    end: int | None = None,
    more: Sequence[FreezeSpan] = (),
) -> FrozenParameters:
    """Freeze the parameters whose names match a pattern: no gradient, no update, no weight decay.

    Args:
        model: on any device, the meta device included.
        patterns: matched with `re.fullmatch` against parameter names; a tied parameter answers to each of its names.
        norm_stats: whether normalisation layers with running statistics whose parameters are all frozen (or that have
            none, and whose `running_mean` matches a pattern) stay in eval mode, whatever `model.train()` is called.
        start: the step from which on they are frozen.
        end: the step from which on they train.
        more: further patterns with spans of their own; a parameter belongs to the first pattern that matches.

    Raises:
        ConfigError: a pattern matches nothing, or nothing that earlier ones do not; `norm_stats` finds no such layer.
            The model is untouched then.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    canonical = {id(parameter): name for name, parameter in model.named_parameters()}
    mistakes: list[Mistake] = []
    chosen: dict[str, nn.Parameter] = {}
    spans: dict[str, FreezeSpan] = {}
    everything = [FreezeSpan(patterns, start, end), *more]
    for span in everything:
        for index, pattern in enumerate(span.patterns):
            key = f"{span.key}[{index}]"
            expression = compile_pattern(key, pattern, mistakes)
            if expression is None:
                continue
            matched = {canonical[id(p)]: p for name, p in named.items() if expression.fullmatch(name)}
            if not matched:
                mistakes.append(diagnose_no_match(key, pattern, list(named), "a parameter"))
            elif not matched.keys() - chosen.keys():
                rule = "must freeze something that earlier patterns do not"
                mistakes.append(Mistake(key, rule, pattern, remedy="leave it out", kind="no-effect"))
            spans |= {name: span for name in matched if name not in chosen}
            chosen |= matched
    patterns = [pattern for span in everything for pattern in span.patterns]
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
    params = {name: p for name, p in chosen.items() if p.requires_grad}
    frozen = FrozenParameters(params, norms, {name: spans[name] for name in params})
    freeze_at(model, frozen, 0)
    return frozen


def freeze_at(model: nn.Module, frozen: FrozenParameters, step: int) -> bool:
    """Freeze or unfreeze each parameter as its span says for a step; return whether one changed.

    The optimizer needs to hold those that thaw (`param_groups.build_groups(…, thawing=frozen.thawing)`): without
    gradients it leaves them alone.
    """
    changed = False
    for name, parameter in frozen.params.items():
        trains = not frozen.spans[name].holds(step)
        if parameter.requires_grad != trains:
            parameter.requires_grad_(trains)
            changed = True
        if not trains:
            parameter.grad = None
    for norm in frozen.norms.values():
        own = list(norm.parameters())
        within = not any(p.requires_grad for p in own) if own else _is_any_on(frozen, step)
        kept = isinstance(norm.__dict__.get("train"), _EvalModeTrain)
        if within and not kept:
            norm.eval()
            norm.train = _EvalModeTrain(norm)  # type: ignore[method-assign]
        elif kept and not within:
            del norm.train
            norm.train(model.training)
    return changed


def _is_any_on(frozen: FrozenParameters, step: int) -> bool:
    """Return whether a layer without parameters is frozen: while any pattern with a span is, or for good."""
    return not frozen.spans or any(span.holds(step) for span in frozen.spans.values())


def unfreeze(model: nn.Module, frozen: FrozenParameters) -> None:
    """Let all that `freeze` froze train; norms take the mode of `model`. Repeating it is harmless."""
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
