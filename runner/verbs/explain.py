"""`python -m runner explain [--json] [overrides]`, or `explain RUN`: one row per tensor, and who decided it."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from runner.config.blame import as_path
from runner.config.compose import Composed, compose
from runner.config.recorded import is_run, no_run, recorded
from runner.config.schema import Config
from runner.errors import ConfigError, Mistake, RunError
from runner.examine import examine
from runner.verbs.train import split_trust

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
class Row:
    """One parameter or buffer; empty or None where something does not concern it."""

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
        """The text of a row."""
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


def main(argv: Sequence[str]) -> int:
    """Print the rows; without data, and without training; 1 where weights cannot be downloaded.

    Raises:
        ConfigError: whatever `check` finds.
    """
    rest, trust = split_trust(argv)
    as_json, rest = "--json" in rest, [argument for argument in rest if argument != "--json"]
    folder = Path(rest[0]) if rest and is_run(Path(rest[0])) else None
    composed = None
    if folder is None:
        if rest and "=" not in rest[0] and not rest[0].startswith(("~", "-")):
            if Path(rest[0]).exists() or "/" in rest[0]:
                raise ConfigError([no_run(Path(rest[0]), "explain")])
            rule = "must be an override (`key=value`) or a run directory, which has a `config.yaml`"
            raise ConfigError([Mistake(rest[0], rule, where=f"argument `{rest[0]}`")])
        composed = compose(rest)
        examined = examine(composed, trust)
        if examined.mistakes:
            raise ConfigError(examined.mistakes)
        config = examined.config
    else:
        config, _ = recorded(folder, rest[1:], trust, verb="explain")
    try:
        if folder is None:
            rows, groups = explain(config, composed, folder, trust)
        else:
            from runner.diagnosis import of_a_record

            with of_a_record(folder):
                rows, groups = explain(config, composed, folder, trust)
    except ConfigError as error:
        raise ConfigError(composed.blame(error.mistakes) if composed else error.mistakes) from error
    except RunError as error:  # a download, or a function of the user's
        print(error, file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps({"tensors": [asdict(row) for row in rows], "groups": groups}))
    else:
        print(_table([HEAD, *(row.cells() for row in rows)]))
        print()
        print("\n".join(_spell_group(group) for group in groups))
        states = [f"{row.name}: {', '.join(f'{n} {v}' for n, v in row.state.items())}" for row in rows if row.state]
        print("\n".join(["", "optimizer state", *states]) if states else "", end="\n" if states else "")
    return 0


def explain(
    config: Config, composed: Composed | None, folder: Path | None, trust: tuple[str, ...]
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Build model and optimizer as a run would, and say of each tensor what they hold.

    Args:
        config: the checked config.
        composed: knows the file:line of each key; None for a recorded run.
        folder: a run whose last checkpoint is put in first, if it has one.
        trust: patterns of names trusted on the command line.

    Returns:
        A row for each parameter and buffer, and the optimizer's groups: their names, settings and parameters.
    """
    import torch

    from runner import build, surgery
    from runner.checkpoint import Checkpoints
    from runner.component import component
    from runner.state import compare_model

    warn = lambda text: print(text, file=sys.stderr)  # noqa: E731
    checkpoints = None if folder is None else Checkpoints(folder / "checkpoints", warn=warn)
    saved = checkpoints.load("last") if checkpoints is not None and checkpoints.entries() else None
    model = surgery.make_model(config, trust)
    done = surgery.operate(config, model, trust, weights=saved is None)
    loss = None if config.loss is None else component(config.loss, "loss", trust=trust, call=False)
    groups = surgery.make_groups(config, model, done.frozen, trust, loss)
    optimizer = build.make_optimizer(config, groups, torch.device("cpu"), trust)
    if saved is not None:
        compare_model(model, saved["model"])
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    place = _places(composed)
    settings = {name: group for group in optimizer.param_groups for name in group["param_names"]}
    rules = {row.tensor: row for row in done.init_rows}
    loaded = {row.name: row for row in _report(done.pretrained, folder)}
    rows = []
    for kind, name, tensor in _tensors(model):
        group, rule, source = settings.get(name), rules.get(name), loaded.get(name)
        floating = tensor.is_floating_point() and tensor.numel() > 0
        values = tensor.detach().double() if floating else None
        row = Row(
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
            row.where["frozen"] = place(_freezing(config, name, model))
        if group is not None:
            row.where["group"] = place(_group_key(config, group["name"]))
        if kind == "parameter" and tensor in optimizer.state:
            row.state = {key: _spell_state(value) for key, value in optimizer.state[tensor].items()}
        rows.append(row)
    return rows, [{k: v for k, v in group.items() if k != "params"} for group in optimizer.state_dict()["param_groups"]]


def _report(weights: Any, folder: Path | None) -> list[Any]:
    """What became of each tensor in the file of pretrained weights: now, or as the run recorded it."""
    from runner.pretrained import Row as WeightsRow

    if weights is not None or folder is None or not (folder / "pretrained.json").is_file():
        return weights.rows if weights is not None else []
    return [WeightsRow(**row) for row in json.loads((folder / "pretrained.json").read_text())["tensors"]]


def _tensors(model: Any) -> Iterable[tuple[str, str, Any]]:
    """Parameters and buffers in the order of the modules, each once, under the first of its names."""
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


def _places(composed: Composed | None) -> Callable[[str], str]:
    if composed is None:
        return lambda key: f"config.yaml: {key}"
    return lambda key: composed.layers.blame(as_path(key), follow=False).partition(" (")[0]


def _freezing(config: Config, name: str, model: Any) -> str:
    names = {n for n, p in model.named_parameters(remove_duplicate=False) if p is model.get_parameter(name)}
    for index, pattern in enumerate(config.freeze.params):
        if any(re.fullmatch(pattern, n) for n in names):
            return f"freeze.params[{index}]"
    return "model"


def _group_key(config: Config, name: str) -> str:
    """The key of a group; one that was split by layers has its layer's number behind it."""
    for label in (name, name.rpartition("_")[0]):
        if config.param_groups.get(label) is not None:
            return f"param_groups.{label}"
    return f"optimizer.{name}" if isinstance(config.optimizer.get(name), dict) else "optimizer"


def _spell_state(value: Any) -> str:
    if getattr(value, "ndim", 0) == 0:
        return f"{float(value):g}"
    return f"std {value.double().std(correction=0).item():.3g}"


def _spell_group(group: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{k} {v}" for k, v in group.items() if k not in {"params", "param_names", "name"})
    return f"group {group['name']}: {len(group['param_names'])} parameters, {settings}"


def _table(cells: Sequence[Sequence[str]]) -> str:
    used = [place for place in range(len(HEAD)) if any(line[place] for line in cells[1:])]
    widths = {place: max(len(line[place]) for line in cells) for place in used}
    return "\n".join("  ".join(line[place].ljust(widths[place]) for place in used).rstrip() for line in cells)
