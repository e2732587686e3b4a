"""Mistakes made on purpose: every shipped config, one edit at a time, with what the report must say about it."""

import dataclasses
import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from runner.config import document
from runner.config.check.check import Check
from runner.config.compose import compose
from runner.config.hydra_repository import find_our_conf
from runner.config.origins import list_schema_keys
from runner.core.errors import Mistake
from runner.experiment.examine import examine

# Names that a user chooses: a typing error in one is no mistake.
CHOSEN = (
    *("transform.train", "transform.eval", "metrics", "init.rules", "dataset.sample", "dataset.downloads"),
    *("dataset.evaluate", "param_groups", "datasets", "log.hooks", "transform.batch"),
)
# Arguments without which a target cannot be called.
NEEDED = {
    "models.mlp.MLP": ("sizes",),
    "torch.optim.lr_scheduler.CosineAnnealingLR": ("T_max",),
    "torch.optim.lr_scheduler.StepLR": ("step_size",),
    "torchvision.transforms.v2.Normalize": ("mean", "std"),
    "torchvision.transforms.v2.RandomCrop": ("size",),
    "torchvision.datasets.CIFAR10": ("root",),
}
SLOTS = {
    "model": "torch.optim.SGD",
    "optimizer": "torch.nn.Linear",
    "loss": "torch.optim.Adam",
    "scheduler": "torch.nn.ReLU",
    "dataset": "torch.nn.Conv2d",
    "transform": "torch.optim.Adam",
    "metrics": "torch.nn.Linear",
    "step": "torch.nn.Linear",
}


@dataclass(frozen=True)
class Case:
    """One mistake: the edited file (or none), the arguments, and what the report must say."""

    kind: str
    file: str
    text: str
    arguments: tuple[str, ...]
    key: str
    where: str
    suggestion: str | None = None
    span: tuple[int, int] | None = None  # of the wrong value in the text, for applying a fix


def typos(name: str, chance: random.Random) -> list[str]:
    """One letter deleted, doubled, replaced, swapped with the next."""
    place = chance.randrange(1, max(2, len(name) - 1))
    letter = chance.choice([c for c in string.ascii_lowercase if c != name[place : place + 1]])
    made = [
        name[:place] + name[place + 1 :],
        name[:place] + letter + name[place:],
        name[:place] + letter + name[place + 1 :],
        name[:place] + name[place + 1 : place + 2] + name[place : place + 1] + name[place + 2 :],
    ]
    return [word for word in dict.fromkeys(made) if word not in ("", name)]


def choose(file: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The arguments that bring a shipped file into play, and the package of its keys."""
    group = str(file.relative_to(find_our_conf()).parent)
    if group == "experiment":
        return (f"experiment={file.stem}",), ()
    if group in ("debug", "sweep"):
        package = () if "@package _global_" in file.read_text() else (group,)
        return (f"{group}={file.stem}",), package
    return ("experiment=null", f"{group}={file.stem}"), tuple(group.split("/"))


@cache
def is_built(file: Path) -> bool:
    """Whether a shipped option says nothing about a feature that does not exist yet."""
    return not Check(compose(choose(file)[0])).at_once


def entries(node: yaml.Node | None, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], yaml.Node, yaml.Node]]:
    """Every key of a document with its node and its value's, outside of lists."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value not in ("defaults", "hydra") and "<<" not in key.value:
                yield (*path, key.value), key, value
                yield from entries(value, (*path, key.value))


def cases(seed: int) -> list[Case]:
    """The corpus. The same for the same seed."""
    chance = random.Random(seed)
    found: list[Case] = []
    for file in sorted(find_our_conf().rglob("*.yaml")):
        if file.is_relative_to(find_our_conf() / "hydra"):
            continue  # a project may not have files of Hydra's groups
        if file.name != "config.yaml" and is_built(file):
            found += _of_file(file, chance)
    return [*found, *_of_arguments(chance)]


def _of_file(file: Path, chance: random.Random) -> Iterator[Case]:
    loaded, name = document.load(file), str(file.relative_to(find_our_conf()))
    arguments, package = choose(file)
    text = loaded.text

    def case(kind: str, key: str, node: yaml.Node, new: str, suggestion: str | None = None) -> Case:
        begin, end = node.start_mark.index, node.end_mark.index
        line = node.start_mark.line + 1
        changed = text[:begin] + new + text[end:]
        return Case(kind, name, changed, arguments, key, f"conf/{name}:{line}", suggestion, (begin, begin + len(new)))

    nodes: dict[int, Any] = {}
    for path, key_node, value_node in entries(loaded.root, package):  # what an alias repeats is one place
        nodes.setdefault(id(key_node), (path, key_node, value_node))
    seen = list(nodes.values())
    for path, key_node, value_node in seen:
        key = ".".join(path)
        parent = ".".join(path[:-1])
        siblings = {p[-1] for p, _, _ in seen if p[:-1] == path[:-1]} | {
            k.rpartition(".")[2] for k in list_schema_keys() if k.rpartition(".")[0] == parent
        }
        if parent not in CHOSEN and not parent.startswith(("init.rules.", "dataset.sample")):
            for typo in typos(path[-1], chance):
                if typo not in siblings:
                    wrong = f"{parent}.{typo}" if parent else typo
                    yield case("typo in a key", wrong, key_node, typo, key)
        yield from _of_value(case, path, key, value_node, chance)
        if (
            isinstance(value_node, yaml.MappingNode)
            and value_node.value
            and not key.startswith(("init.rules", *CHOSEN))
        ):
            first = value_node.value[0][0]
            stray = Case(
                "stray key",
                name,
                text[: first.start_mark.index] + "qwxyz: 1, " + text[first.start_mark.index :],
                arguments,
                f"{key}.qwxyz",
                f"conf/{name}:{first.start_mark.line + 1}",
            )
            if value_node.flow_style:
                yield stray
    block_style = isinstance(loaded.root, yaml.MappingNode) and not loaded.root.flow_style
    if package and block_style and package[0] not in CHOSEN:
        where = f"conf/{name}:{text.count(chr(10)) + 1}"
        yield Case("stray key", name, text + "qwxyz: 1\n", arguments, f"{package[0]}.qwxyz", where)


def _of_value(case: Any, path: tuple[str, ...], key: str, node: yaml.Node, chance: random.Random) -> Iterator[Case]:
    if not isinstance(node, yaml.ScalarNode):
        if isinstance(node, yaml.SequenceNode) and key.rpartition(".")[2] in ("sizes", "mean", "std"):
            yield case("wrong type", key, node, "{a: 1}")
        return
    tag = node.tag.rpartition(":")[2]
    if path[-1] == "_target_":
        yield from _of_target(case, path, key, node, chance)
    elif key == "scheduler.T_max":
        yield case("broken interpolation", key, node, "'${train.duratoin}'", "${train.duration}")
    else:
        yield case("broken interpolation", key, node, "'${no.such.place}'")
    if tag in ("int", "float", "bool") and path[0] != "step":  # a batch may be a mapping: its keys are texts
        yield case("wrong type", key, node, "banana")
    if key in ("loader.batch_size", "loader.prefetch_factor", "dataset.limit"):
        yield case("out of range", key, node, "0")
    if key in ("train.duration", "log.every", "train.evaluate_every"):
        yield from (case("out of range", key, node, wrong) for wrong in ("-3ep", "0.5st", "10", "ten"))
    if key.endswith("_fraction"):
        yield case("out of range", key, node, "1.5")
    if key == "loader.num_workers":
        yield case("out of range", key, node, "-1")


def _of_target(case: Any, path: tuple[str, ...], key: str, node: yaml.Node, chance: random.Random) -> Iterator[Case]:
    module, _, last = node.value.rpartition(".")
    for typo in typos(last, chance):
        yield case("typo in a target", key, node, f"{module}.{typo}", node.value)
    parts = module.split(".")
    for typo in typos(parts[-1], chance)[:2]:
        if len(parts[-1]) > 2:
            yield case("typo in a target", key, node, ".".join([*parts[:-1], typo, last]), node.value)
    for typo in typos(parts[0], chance)[:2]:
        yield case("typo in a target", key, node, ".".join([typo, *parts[1:], last]), node.value)
    wrong = SLOTS.get(path[0])
    if wrong:
        yield case("wrong slot", key, node, wrong)
    yield case("untrusted", key, node, "os.system")
    yield case("missing", key, node, "'???'")


def _of_arguments(  # noqa: C901  as above
    chance: random.Random,
) -> Iterator[Case]:
    """Mistakes on the command line: groups, options, keys, missing arguments."""

    def case(kind: str, argument: str, key: str, suggestion: str | None = None, more: tuple[str, ...] = ()) -> Case:
        return Case(kind, "", "", (*more, argument), key, f"argument `{argument}`", suggestion)

    groups = sorted(
        folder.name for folder in find_our_conf().iterdir() if any(folder.glob("*.yaml"))
    )  # not those of Hydra
    for group in groups:
        options = sorted(file.stem for file in (find_our_conf() / group).glob("*.yaml"))
        built = [option for option in options if is_built(find_our_conf() / group / f"{option}.yaml")]
        for typo in typos(group, chance):
            if typo not in groups:
                yield case("typo in a group", f"{typo}={built[0]}", typo, group)
        for option in built:
            for typo in typos(option, chance):
                if typo not in options:
                    yield case("typo in an option", f"{group}={typo}", group, option)
    for target, names in NEEDED.items():
        slot = {"models": "model", "torch": "scheduler"}.get(target.split(".")[0])
        for name in names if slot else ():
            option = {"sizes": "mlp", "T_max": "cosine", "step_size": "step"}[name]
            yield dataclasses.replace(
                case(
                    "missing",
                    f"~{slot}.{name}",
                    f"{slot}.{name}",
                    more=("experiment=null", "train.duration=3ep", f"{slot}={option}"),
                ),
                where=f"{find_our_conf()}/{slot}/{option}.yaml:2",
            )
    for key in sorted(list_schema_keys()):
        parent, _, last = key.rpartition(".")
        if parent in CHOSEN or not parent or parent in ("model", "optimizer", "loss", "step"):
            continue
        taken = {k.rpartition(".")[2] for k in list_schema_keys() if k.rpartition(".")[0] == parent}
        for typo in typos(last, chance):
            if typo not in taken and not (parent == "scheduler" and len(last) <= 4):
                yield case("typo in a key", f"+{parent}.{typo}=1", f"{parent}.{typo}", key)


def fixed(case: Case, mistake: Mistake) -> Case | None:
    """The case with the suggestion put in the place of what is wrong; None where nothing is suggested."""
    right = mistake.suggestion
    if not right:
        return None
    if "key" in case.kind:
        right = right.rpartition(".")[2]
    if not case.file:
        *more, wrong = case.arguments
        key, _, value = wrong.partition("=")
        argument = f"{mistake.suggestion}={value}" if "key" in case.kind or "group" in case.kind else f"{key}={right}"
        return dataclasses.replace(case, arguments=(*more, argument))
    if case.span is None:  # a line left out: there is no text to put the suggestion in the place of
        return None
    begin, end = case.span
    text = f"'{right}'" if right.startswith("${") else right
    return dataclasses.replace(case, text=case.text[:begin] + text + case.text[end:])


def report(case: Case, folder: Path, extra: tuple[str, ...] = (), *, meta: bool = False) -> list[Mistake]:
    """What the runner says of a case, in a project of its own in `folder`; with `meta`, the meta model too."""
    if case.file:
        place = folder / "conf" / case.file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(case.text)
    try:
        composed = compose([*case.arguments, *extra], folder)
        checked = Check(composed)
        found = [*checked.at_once, *checked.by_import()]
        return examine(composed, ()).mistakes if meta and not found else found
    finally:
        if case.file:
            place.unlink()
