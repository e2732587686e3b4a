"""Match checkpoint tensors with the model's: names, shapes, dtypes, and the mistakes among them."""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from runner.core.errors import Mistake
from runner.core.patterns import compile_pattern, diagnose_no_match
from runner.model.pretrained import rename as renaming
from runner.model.pretrained.plan import (
    SHOWN,
    LoadPlan,
    Options,
    ReparametrizedTensor,
    TensorRow,
    find_reparametrized,
    get_dtype_name,
    get_shape,
)
from runner.model.pretrained.shapes import ADAPT
from runner.model.pretrained.strategies import STRATEGIES, Selection, check_options

MOST_EXPANDED = 1 << 28  # bytes that a tensor may have beyond those of the file, by strides of 0 (`expand`)


class TensorMatching:
    """Matching of a file's names and tensors with a model's, and its mistakes."""

    def __init__(self, model: nn.Module, state: Mapping[str, Any], options: Options) -> None:
        self.options, self.state, self.strategy = options, state, STRATEGIES[options.strategy]
        self.target: dict[str, Any] = dict(model.state_dict(keep_vars=True))
        self.parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self.mistakes: list[Mistake] = []
        self.without_effect: list[Mistake] = []
        self.rows: list[TensorRow] = []
        self.tensors: dict[str, Any] = {}
        self.names: dict[str, str] = {}  # the file's names after prefixes and rename rules → as they are in the file
        self.chosen: set[str] | None = None  # those of them that `include` and `exclude` let through

    def run(self) -> None:
        """Fill in rows, tensors and mistakes."""
        self._refuse_contradictions()
        names = self.names = self._renamed()
        pairs = self._pairs(names)
        if self.mistakes:
            return
        used: dict[str, TensorRow] = {}
        for target, source in pairs.items():
            used[target] = self._fit(target, source)
        self._finish_tied(used)
        ends = {name.rpartition(".")[2] for name in names}
        old_format = "running_mean" in ends and "num_batches_tracked" not in ends
        for name, wanted in self.target.items():
            row = used.get(name)
            if row is None:
                absent = old_format and name.endswith("num_batches_tracked")
                row = TensorRow(
                    name, "absent" if absent else "left", shape=get_shape(wanted), dtype=get_dtype_name(wanted)
                )
            self.rows.append(row)
        taken = {row.source for row in used.values() if row.action != "left"}
        unused = [original for original in names.values() if original not in taken]
        self.rows += [
            TensorRow(
                "",
                "unused",
                original,
                source_shape=get_shape(self.state[original]),
                source_dtype=get_dtype_name(self.state[original]),
            )
            for original in unused
        ]

    def _refuse_contradictions(self) -> None:
        options = self.options
        if not self.state:
            self.mistakes.append(
                Mistake("pretrained.path", "must hold tensors, but its state_dict is empty", kind="file")
            )
        self.mistakes += check_options(options)
        if isinstance(options.expect_loaded, float) and options.expect_loaded > 1:
            rule = "must be a fraction up to 1.0, or a whole number of tensors"
            self.mistakes.append(Mistake("pretrained.expect.loaded", rule, options.expect_loaded))

    def reparametrized(self) -> list["ReparametrizedTensor"]:
        """Return tensors that the file stores in parts and the model does not."""
        now = {name: here for here, name in self.names.items()}
        own = {name for layer in find_reparametrized(self.target) for name in layer.stored}
        # What the model holds in parts too is matched part by part.
        return [
            layer for layer in find_reparametrized(self.state) if not any(now.get(n, n) in own for n in layer.stored)
        ]

    def _renamed(self) -> dict[str, str]:
        """Map the names after prefixes and rename rules to the names in the file."""
        options = self.options
        names = {name: name for name in self.state}  # in the file → here
        if options.strip_prefix:
            prefix = options.strip_prefix
            if not any(name.startswith(prefix) for name in names):
                rule = f"must be the beginning of a name, but they begin like {', '.join(list(names)[:3])}"
                self.without_effect.append(Mistake("pretrained.strip_prefix", rule, prefix, kind="no-effect"))
            names = {name: name.removeprefix(prefix) for name in names}
        if options.add_prefix:
            names = {name: options.add_prefix + now for name, now in names.items()}
        for index, (pattern, replacement) in enumerate(options.rename):
            key = f"pretrained.rename[{index}]"
            expression = compile_pattern(f"{key}.from", pattern, self.mistakes)
            if expression is None:
                continue
            try:
                renamed = {name: expression.sub(replacement, now) for name, now in names.items()}
            except (re.error, IndexError) as error:
                self.mistakes.append(
                    Mistake(f"{key}.to", f"must be a replacement for `re.sub` ({error})", replacement, kind="syntax")
                )
                continue
            if renamed == names:
                rule = f"must change a name, but they are like {', '.join(list(names.values())[:3])}"
                self.without_effect.append(Mistake(f"{key}.from", rule, pattern, kind="no-effect"))
            names = renamed
        here: dict[str, str] = {}
        for name, now in names.items():
            if now in here:
                rule = f"must keep names apart, but `{here[now]}` and `{name}` both become `{now}`"
                self.mistakes.append(Mistake("pretrained.rename", rule, kind="conflict"))
            here[now] = name
        return here

    def _pairs(self, names: Mapping[str, str]) -> dict[str, str]:
        """Map the model's names to the file's names for the tensors to load."""
        selection = Selection(self.options, names, self.target, self.mistakes, self.without_effect)
        pairs = self.strategy.select(selection)
        self.chosen = selection.chosen
        return pairs

    def _fit(self, target: str, source: str) -> TensorRow:
        """Bring one tensor of the file into the shape of one of the model."""
        value, wanted = self.state[source], self.target[target]
        row = TensorRow(
            target, "loaded", source, get_shape(wanted), get_shape(value), get_dtype_name(wanted), get_dtype_name(value)
        )
        if (
            not isinstance(wanted, Tensor) or is_lazy(wanted) or not isinstance(value, Tensor)
        ):  # or a module's extra state
            self.tensors[target] = value
            return row
        if problem := explain_unusable(value):
            self.mistakes.append(
                Mistake("pretrained.path", f"must hold plain tensors, but {source} {problem}", kind="file")
            )
            return row
        if row.shape != row.source_shape:
            adapted = self._adapt(row, value, wanted)
            if adapted is None:
                return row
            value = adapted
        if problem := _explain_lossy(value, wanted, parameter=target in self.parameters):
            self.mistakes.append(
                Mistake("pretrained.path", f"must hold numbers for {target}, but {source} {problem}", kind="file")
            )
        self.tensors[target] = value
        return row

    def _adapt(self, row: TensorRow, value: Tensor, wanted: Tensor) -> Tensor | None:
        mode = self._mode(row.name)
        if mode == "skip":
            row.action, row.note = "skipped", "its shape differs"
            return None
        if mode == "error":
            row.action = "mismatch"
            return None
        try:
            adapted, row.note = ADAPT[mode](value, wanted.shape)
        except ValueError as error:
            rule = f"{mode} cannot bring {row.source} {row.source_shape} to {row.name} {row.shape}: {error}"
            self.mistakes.append(Mistake("pretrained.shape_mismatch", rule, kind="refused"))
            return None
        row.action = mode
        return adapted

    def _mode(self, name: str) -> str:
        modes = self.options.shape_mismatch
        if isinstance(modes, str):
            return modes
        return next((mode for pattern, mode in modes.items() if re.fullmatch(pattern, name)), "error")

    def _finish_tied(self, used: dict[str, TensorRow]) -> None:
        """Complete tied tensors from one loaded name; refuse two names with different values."""
        groups: dict[int, list[str]] = {}
        for name, value in self.target.items():
            if isinstance(value, Tensor):
                groups.setdefault(id(value), []).append(name)
        for group in groups.values():
            having = [name for name in group if name in self.tensors]
            for other in having[1:]:
                if not torch.equal(self.tensors[having[0]], self.tensors[other]):
                    first, second = used[having[0]].source, used[other].source
                    rule = f"must agree: {having[0]} and {other} are one tensor, but {first} and {second} differ"
                    self.mistakes.append(Mistake("pretrained.path", rule, kind="file"))
            for name in group:
                if having and name not in self.tensors and name not in used:
                    row = used[having[0]]
                    used[name] = TensorRow(
                        name, "tied", row.source, row.shape, row.source_shape, row.dtype, row.source_dtype
                    )
                    used[name].note = f"is {having[0]}"

    def shortfall(self, made: LoadPlan) -> list[Mistake]:
        """Diagnose expected tensors that did not load."""
        options = self.options
        missing = [
            r.name
            for r in made.rows
            if r.name and r.action in {"left", "skipped"} and not r.note.startswith("files of")
        ]
        total = made.loaded + len(missing)
        mistakes: list[Mistake] = []
        allowed = [e for i, p in enumerate(options.expect_missing) if (e := self._expected(i, p)) is not None]
        unexpected = [name for name in missing if not any(e.fullmatch(name) for e in allowed)]
        if unexpected and (self.strategy.must_load_all or options.expect_missing):
            which = (
                "other than `pretrained.expect.missing`"
                if options.expect_missing
                else f"with the strategy {options.strategy}"
            )
            rule = f"must leave no tensor of the model missing {which}, but {len(unexpected)} of {total} are"
            mistakes.append(
                Mistake(
                    "pretrained.path",
                    f"{rule}: {', '.join(unexpected[:3])}{', …' if unexpected[3:] else ''}",
                    kind="no-match",
                )
            )
        unused = [row.source for row in made.rows if row.action == "unused"]
        if unused and self.strategy.must_load_all:
            rule = (
                f"must use every tensor of the file with the strategy {options.strategy}, but {len(unused)} are unused"
            )
            mistakes.append(
                Mistake(
                    "pretrained.path", f"{rule}: {', '.join(unused[:3])}{', …' if unused[3:] else ''}", kind="no-match"
                )
            )
        wanted = options.expect_loaded
        least = 1 if wanted is None else wanted if isinstance(wanted, int) else math.ceil(wanted * total - 1e-9)
        mismatched = any(row.action == "mismatch" for row in made.rows)  # reported as such
        told = mistakes or (self.strategy.needs and self.without_effect)
        if made.loaded < least and not mismatched and not (told and wanted is None):
            key = "pretrained.path" if wanted is None else "pretrained.expect.loaded"
            mistakes.append(
                Mistake(key, f"must load at least {least} of {total} tensors, but loads {made.loaded}", kind="no-match")
            )
        return mistakes

    def _expected(self, index: int, pattern: str) -> re.Pattern[str] | None:
        key = f"pretrained.expect.missing[{index}]"
        expression = compile_pattern(key, pattern, self.mistakes)
        if expression is not None and not any(expression.fullmatch(name) for name in self.target):
            self.without_effect.append(diagnose_no_match(key, pattern, list(self.target), "a tensor of the model"))
        return expression


def diagnose_mismatch(rows: Sequence[TensorRow]) -> Mistake:
    """Make the mistake of tensors whose shapes differ, with the ways to adapt them."""
    differing = [row for row in rows if row.action == "mismatch"]
    lines = [f"{row.name} {row.shape} from {row.source} {row.source_shape}" for row in differing[:SHOWN]]
    lines += [f"… and {len(differing) - SHOWN} more"] if differing[SHOWN:] else []
    ways = "`pretrained.shape_mismatch` may be skip, slice, sum, repeat or interpolate, for all or by pattern:"
    pattern = re.escape(differing[0].name.rpartition(".")[0] or differing[0].name).replace("'", "''")
    example = f"pretrained:\n  shape_mismatch: {{'{pattern}.*': skip}}"
    rule = f"must hold the model's shapes, but {len(differing)} of them differ"
    return Mistake("pretrained.path", rule, remedy="\n".join([*lines, ways, example]), kind="no-match")


def explain_unusable(value: Tensor) -> str:
    """Explain why a tensor has no data that can be copied; empty if it has."""
    if value.is_meta:
        return "has no data (it was saved from the meta device)"
    if value.layout == torch.strided and not value.is_nested:
        claimed, held = value.numel() * value.element_size(), value.untyped_storage().nbytes()
        if claimed > max(held, MOST_EXPANDED):
            return f"claims {claimed:,} bytes, of which the file has {held:,}"
    if value.layout != torch.strided or value.is_nested:
        return f"is not dense ({value.layout})"
    return "is quantized" if value.is_quantized else ""


def _name_kind(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "truth values"
    return "floating point" if dtype.is_floating_point else "complex numbers" if dtype.is_complex else "whole numbers"


def _explain_lossy(value: Tensor, wanted: Tensor, *, parameter: bool) -> str:
    """Explain why the model's dtype cannot hold a tensor's numbers; floating-point rounding is allowed."""
    old, new = _name_kind(value.dtype), _name_kind(wanted.dtype)
    cast = value.to(wanted.dtype) if old == new or {old, new} <= {"truth values", "whole numbers"} else None
    if cast is None:
        # Quantized weights come as whole numbers with a scale beside them: without it they would be silently wrong.
        return f"has {old} ({get_dtype_name(value)}) where the model has {new} ({get_dtype_name(wanted)})"
    if new in {"truth values", "whole numbers"}:
        return "" if torch.equal(cast.to(value.dtype), value) else f"does not fit into {get_dtype_name(wanted)}"
    cast = cast.float() if cast.dtype.itemsize == 1 else cast  # float8 cannot be asked
    if cast.isnan().any():
        return "holds NaN"
    if parameter and cast.isinf().any():  # a buffer may: attention masks do
        overflow = value.isfinite().all()
        return f"has numbers too large for {get_dtype_name(wanted)}" if overflow else "holds infinities"
    return ""


def propose_rename(matching: TensorMatching) -> tuple[str, str, int]:
    """Propose rename rules that load more: a text, an override and the new count; empty without any."""
    target = {n: tuple(get_shape(v)) for n, v in matching.target.items() if isinstance(v, Tensor)}
    here = {name: now for now, name in matching.names.items()}
    ours = {name for layer in find_reparametrized(matching.target) for name in layer.stored}
    theirs = {here[name] for layer in find_reparametrized(matching.state) for name in layer.stored}
    # Parts of a weight go to parts of one, never to the whole, nor the whole to a part.
    open_to = {name: shape for name, shape in target.items() if theirs or name not in ours}
    source = {
        now: tuple(get_shape(matching.state[name]))
        for now, name in matching.names.items()
        if (matching.chosen is None or now in matching.chosen) and (ours or now not in theirs)
    }
    rules = renaming.propose(source, open_to)
    crossed = ((name, renaming.apply(rules, name)) for name in source)
    if not rules or any(new in target and (name in theirs) != (new in ours) for name, new in crossed):
        return "", "", 0
    loads = sum(target.get(renaming.apply(rules, name)) == shape for name, shape in source.items())
    every = [*matching.options.rename, *rules]
    block, argument = renaming.as_yaml(every), renaming.as_argument(every)
    return f"\nto load {loads} of {len(target)}:\n{block}\nor the argument {shlex.quote(argument)}", argument, loads
