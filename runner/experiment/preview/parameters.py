"""Preview of the parameters: shape, init rule, pretrained source, frozen, group, rate of each."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from runner.config.compose import compose
from runner.config.composed import Composed
from runner.config.origins import as_path
from runner.config.parsing import read_members
from runner.config.schema import Config
from runner.core import safe_io
from runner.core.errors import ConfigError, Mistake, RunError
from runner.experiment.examine import require_valid
from runner.experiment.record.recorded import is_run, load_recorded_config, make_no_run_mistake
from runner.experiment.record.recorded_run import RecordedRun, print_to_stderr
from runner.experiment.record.stacked import describe_stacks, read_stacks

HEAD = (
    "tensor",
    "shape",
    "dtype",
    "count",
    "init",
    "mean",
    "std",
    "pretrained",
    "frozen",
    "group",
    "lr",
    "decay",
    "set by",
)


@dataclass
class ParameterRow:
    """Row of one parameter or buffer in the table; fields that do not apply are empty or None."""

    name: str
    kind: str  # parameter or buffer
    shape: list[int]
    dtype: str
    count: int
    init: str  # the rule's label and what it does, `init.apply`, or empty: left as its module made it
    mean: float | None  # of the numbers that it has when training starts
    std: float | None
    pretrained: str  # its name in the file, and how it was brought into shape
    frozen: bool
    group: str
    lr: float | None
    weight_decay: float | None
    where: dict[str, str] = field(default_factory=dict)  # init, pretrained, frozen, group → file:line of the rule
    state: dict[str, str] = field(default_factory=dict)  # of a run: the optimizer's state

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the row as text."""
        number: Callable[[float | None], str] = lambda value: "" if value is None else f"{value:.3g}"  # noqa: E731
        return (
            self.name,
            "x".join(map(str, self.shape)) or "1",
            self.dtype,
            f"{self.count:,}",
            self.init,
            number(self.mean),
            number(self.std),
            self.pretrained,
            "frozen" if self.frozen else "",
            self.group,
            number(self.lr),
            number(self.weight_decay),
            ", ".join(dict.fromkeys(self.where.values())),
        )


@dataclass
class Explanation:
    """Table of every tensor and every parameter group of a config or a run; `str()` is for people."""

    rows: list[ParameterRow]
    groups: list[dict[str, Any]]
    stacks: list[dict[str, Any]] = field(default_factory=list)  # of a run that has trained as one model with others

    def as_json(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        return {"tensors": [asdict(row) for row in self.rows], "groups": self.groups, "stacks": self.stacks}

    def __str__(self) -> str:
        table = _format_table([HEAD, *(row.cells() for row in self.rows)])
        blocks = [table, "\n".join(map(_format_group, self.groups))]
        states = [f"{row.name}: {_format_state(row.state)}" for row in self.rows if row.state]
        blocks += ["\n".join(["optimizer state", *states])] if states else []
        blocks += [describe_stacks(self.stacks)] if self.stacks else []
        return "\n\n".join(blocks)


def explain(words: Sequence[str], trust: tuple[str, ...] = ()) -> Explanation:
    """Build model and optimizer as a run does, and describe each tensor and each parameter group.

    Raises:
        ConfigError: the config has mistakes, or the first word is neither an override nor a run.
        RunError: weights cannot be downloaded.
    """
    first = words[0] if words else ""
    if first and is_run(Path(first)):
        return explain_run(Path(first), words[1:], trust)
    if first and "=" not in first and not first.startswith(("~", "-")):
        if Path(first).exists() or "/" in first:
            raise ConfigError([make_no_run_mistake(Path(first), "explain")])
        rule = "must be an override (`key=value`) or a run directory, which has a `config.yaml`"
        raise ConfigError([Mistake(first, rule, where=f"argument `{first}`", kind="syntax")])
    composed = compose(words)
    config = require_valid(composed, trust).config
    try:
        return describe_parameters(config, composed, None, trust)
    except ConfigError as error:
        raise ConfigError(composed.blame(error.mistakes)) from error


def explain_run(folder: Path, overrides: Sequence[str] = (), trust: tuple[str, ...] = ()) -> Explanation:
    """Explain a run with the weights and the optimizer's state of its last checkpoint."""
    config, _ = load_recorded_config(folder, overrides, trust, verb="explain")
    from runner.experiment.diagnosis import convert_record_errors  # imports torch

    with convert_record_errors(folder):
        return replace(describe_parameters(config, None, folder, trust), stacks=read_stacks(folder))


def describe_parameters(
    config: Config, composed: Composed | None, folder: Path | None, trust: tuple[str, ...]
) -> Explanation:
    """Build model and optimizer as a run does, and describe each tensor and each parameter group.

    Args:
        config: the checked config.
        composed: knows the file:line of each key; None for a recorded run.
        folder: a run whose last checkpoint is put in first, if it has one.
        trust: patterns of names trusted on the command line.

    Returns:
        A row for each parameter and buffer, and the optimizer's groups: their names, settings and parameters.
    """
    import torch

    from runner.experiment.builders import data as data_builder
    from runner.experiment.builders import model as model_builder
    from runner.experiment.builders import train as train_builder
    from runner.experiment.builders.instantiate import instantiate
    from runner.train.state_dict import compare_model

    checkpoints = None if folder is None else RecordedRun(folder).open_checkpoints(warn=print_to_stderr)
    saved = checkpoints.load("last") if checkpoints is not None and checkpoints.entries() else None
    model = model_builder.make_model(config, trust)
    batch = partial(_read_init_batch, config, trust) if data_builder.is_downloaded(config) else None
    done = model_builder.prepare_model(config, model, trust, weights=saved is None, batch=batch)
    loss = None if config.loss is None else instantiate(config.loss, "loss", trust=trust, call=False, seed=config.seed)
    groups = model_builder.make_groups(config, model, done.frozen, trust, loss)
    optimizer = train_builder.make_optimizer(config, groups, torch.device("cpu"), trust)
    if saved is not None:
        compare_model(model, saved["model"])
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    place = _make_locator(composed)
    settings = {name: group for group in optimizer.param_groups for name in group["param_names"]}
    rules = {row.tensor: row for row in done.init_rows}
    loaded = {row.name: row for row in _read_pretrained_rows(done.pretrained, folder)}
    rows = []
    for kind, name, tensor in _iterate_tensors(model):
        group, rule, source = settings.get(name), rules.get(name), loaded.get(name)
        floating = tensor.is_floating_point() and tensor.numel() > 0
        values = tensor.detach().double() if floating else None
        row = ParameterRow(
            name=name,
            kind=kind,
            shape=list(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            count=tensor.numel(),
            init=f"{rule.rule}: {rule}" if rule and rule.rule else "init.apply" if name in done.changed else "",
            mean=None if values is None else values.mean().item(),
            std=None if values is None else values.std(correction=0).item(),
            pretrained="",
            frozen=kind == "parameter" and not tensor.requires_grad,
            group="" if group is None else group["name"],
            lr=None if group is None or "lr" not in group else float(group["lr"]),
            weight_decay=None if group is None or "weight_decay" not in group else float(group["weight_decay"]),
        )
        if rule and rule.rule:
            row.where["init"] = place(f"init.rules.{rule.rule}")
        elif row.init:
            row.where["init"] = place("init.apply")
        if source is not None and source.source and source.action not in {"skipped", "left"}:
            row.pretrained = source.source + ("" if source.action == "loaded" else f" ({source.action})")
            row.where["pretrained"] = place("pretrained.strategy")
        if row.frozen:
            row.where["frozen"] = place(_find_freeze_key(config, name, model))
        if group is not None:
            row.where["group"] = place(_find_group_key(config, group["name"]))
        if kind == "parameter" and tensor in optimizer.state:
            row.state = {key: _spell_state(value) for key, value in optimizer.state[tensor].items()}
        rows.append(row)
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.state_dict()["param_groups"]]
    return Explanation(rows, groups)


def _read_init_batch(config: Config, trust: tuple[str, ...]) -> Any:
    from runner.experiment.builders import data as data_builder

    return data_builder.make_init_batch(config, data_builder.make_parts(config, trust), trust)


def _read_pretrained_rows(weights: Any, folder: Path | None) -> list[Any]:
    """Return the pretrained load plan's rows: those of `weights`, or those that the run recorded."""
    from runner.model.pretrained.plan import TensorRow as WeightsRow

    if weights is not None or folder is None or not (folder / "pretrained.json").is_file():
        return weights.rows if weights is not None else []
    file = folder / "pretrained.json"
    try:
        return [WeightsRow(**row) for row in safe_io.read_json(file)["tensors"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"{file} is damaged ({error}): move it away, and no tensor is said to come from it") from error


def _iterate_tensors(model: Any) -> Iterable[tuple[str, str, Any]]:
    """Yield parameters and buffers in the order of the modules, each once, under its first name."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for kind, own in (
            ("parameter", module.named_parameters(prefix, recurse=False)),
            ("buffer", module.named_buffers(prefix, recurse=False)),
        ):
            for name, tensor in own:
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield kind, name, tensor


def _make_locator(composed: Composed | None) -> Callable[[str], str]:
    if composed is None:
        return lambda key: f"config.yaml: {key}"
    return lambda key: composed.layers.blame(as_path(key), follow=False).partition(" (")[0]


def _find_freeze_key(config: Config, name: str, model: Any) -> str:
    names = {n for n, p in model.named_parameters(remove_duplicate=False) if p is model.get_parameter(name)}
    sets = {
        f"freeze.sets.{label}.params": part.params for label, part in config.freeze.sets.items() if part is not None
    }
    for key, patterns in {"freeze.params": config.freeze.params, **sets}.items():
        for index, pattern in enumerate(patterns):
            if any(re.fullmatch(pattern, n) for n in names):
                return f"{key}[{index}]"
    return "model"


def _find_group_key(config: Config, name: str) -> str:
    """Find the config key of a group; a group that was split by layers ends in a layer number."""
    members = read_members(config.optimizer)
    owner, _, group = name.partition("/") if members else ("", "", name)
    places = [("param_groups.", config.param_groups)]
    if owner:
        places.insert(0, (f"optimizer.{owner}.param_groups.", members[owner].param_groups))
    for place, groups in places:
        for label in (group, group.rpartition("_")[0]):
            if groups.get(label) is not None:
                return f"{place}{label}"
    return f"optimizer.{owner}" if owner else "optimizer"


def _spell_state(value: Any) -> str:
    if getattr(value, "ndim", 0) == 0:
        return f"{float(value):g}"
    return f"std {value.double().std(correction=0).item():.3g}"


def _format_group(group: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{k} {v}" for k, v in group.items() if k not in {"params", "param_names", "name"})
    return f"group {group['name']}: {len(group['param_names'])} parameters, {settings}"


def _format_table(cells: Sequence[Sequence[str]]) -> str:
    used = [place for place in range(len(HEAD)) if any(line[place] for line in cells[1:])]
    widths = {place: max(len(line[place]) for line in cells) for place in used}
    return "\n".join("  ".join(line[place].ljust(widths[place]) for place in used).rstrip() for line in cells)


def _format_state(state: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in state.items())
