"""Differences between two recorded states of a run: code, packages, hardware, threads, data and plan."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from runner.experiment.record.provenance import WING, get_plan_kinds

UNKNOWN = "not known"


@dataclass(frozen=True)
class StateDifference:
    """Difference in one fact of two provenances.

    Attributes:
        kind: `code`, `package`, `hardware`, `threads`, `data` or `plan`.
        name: of the fact: a module, a package, a split.
        was: its value in the first record.
        now: its value in the second one.
    """

    kind: str
    name: str
    was: Any
    now: Any

    def __str__(self) -> str:
        if self.kind == "code" and self.name != "git commit":
            how = "has another source" if self.was and self.now else "is new" if self.now else "is not used any more"
            return f"code: {self.name} {how}"
        return f"{self.kind}: {self.name} was {_cut(self.was)}, is {_cut(self.now)}"

    def as_json(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        return asdict(self)


def find_state_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[StateDifference]:
    """Find in what two provenances differ; a fact that one of them does not know is left out.

    Both may be a stranger's: a part of another form counts as not known.
    """
    return [
        *_find_code_differences(before, now),
        *_compare("package", _get(before, "versions"), _get(now, "versions")),
        *_compare("hardware", _describe_machine(before), _describe_machine(now)),
        *_compare("threads", _pick(before, "threads", "processes"), _pick(now, "threads", "processes")),
        *_compare("data", _describe_data(before), _describe_data(now)),
        *_compare("plan", _get_kinds(before), _get_kinds(now)),
    ]


def find_unknown_parts(record: Mapping[str, Any]) -> list[str]:
    """List the parts that a provenance lacks, so that they cannot be compared."""
    parts = {
        "code": _get(_get(record, "modules"), "files"),
        "packages": _get(record, "versions"),
        "hardware": _get(record, "hardware"),
        "threads": record.get("threads"),
        "data": _get(record, "data"),
    }
    return [name for name, value in parts.items() if not value]


def _find_code_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[StateDifference]:
    commits = [_get(record, "git").get("commit") for record in (before, now)]
    if all(commits) and commits[0] != commits[1]:
        yield StateDifference("code", "git commit", *commits)
    old, new = (_get(_get(record, "modules"), "files") for record in (before, now))
    of_other_layout = any(_is_runner(name) for name in old) and WING not in old
    for name in old:
        if name in new and old[name] != new[name] and not (of_other_layout and _is_runner(name)):
            yield StateDifference("code", name, old[name], new[name])
    if old and new:
        for name in (old.keys() ^ new.keys()) - {"__main__"}:
            if not _is_runner(name):  # imports what a command needs
                yield StateDifference("code", name, old.get(name), new.get(name))


def _compare(kind: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[StateDifference]:
    for name, was in before.items():
        value = now.get(name)
        if was is not None and value is not None and was != value:
            yield StateDifference(kind, name, was, value)


def _describe_machine(record: Mapping[str, Any]) -> dict[str, Any]:
    hardware = _get(record, "hardware")
    gpus = hardware.get("gpus")
    names = [gpu.get("name") for gpu in gpus if isinstance(gpu, Mapping)] if isinstance(gpus, list) else None
    machine = {"cpu": hardware.get("cpu"), "gpus": names, "gpu driver": hardware.get("gpu_driver")}
    return machine | {"device": record.get("device"), "machine": _get(record, "platform").get("machine")}


def _describe_data(record: Mapping[str, Any]) -> dict[str, Any]:
    splits = _get(record, "data")
    return {
        name: {"samples": data.get("samples"), "sha256": data.get("sha256")}
        for name, data in splits.items()
        if isinstance(data, Mapping)
    }


def _get_kinds(record: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {name: str(kind) for name, kind in get_plan_kinds(record).items()}
    except (AttributeError, TypeError, KeyError):
        return {}


def _get(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = record.get(name)
    return value if isinstance(value, Mapping) else {}


def _pick(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: record.get(name) for name in names}


def _is_runner(name: str) -> bool:
    return name.partition(".")[0] == "runner"


def _cut(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cut(member)}" for name, member in value.items())
    text = str(value)
    return f"{text[:12]}…" if len(text) >= 40 and text.isalnum() else text
