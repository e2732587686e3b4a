"""Model card of an export: what the model is, its data and metrics, its licence, and how to load it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from runner.config.check.check import to_resolved_data
from runner.core.errors import RunError
from runner.core.escape import cut_name, make_printable
from runner.core.files import read_small
from runner.experiment.builders.instantiate import Trust
from runner.experiment.inference.preprocessing import CodeWriter, NoCode
from runner.experiment.record.recorded_run import RecordedRun

if TYPE_CHECKING:
    from runner.experiment.inference.export import Export

SHOWN = ("dataset", "transform", "model", "step", "loss", "metrics", "optimizer", "scheduler", "train", "device")
MOST_CLASSES_NAMED = 1000


def find_licence() -> str:
    """Return the first line of the project's LICENSE file, with its name; empty without one."""
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING"):
        try:
            text = read_small(Path(name), 1_000_000).decode(errors="replace")
        except OSError:
            continue
        first = next((line.strip("# ").strip() for line in text.splitlines() if line.strip("# ").strip()), "")
        return f"{first} ({name} of the project)" if first else ""
    return ""


def write_card(export: "Export", trust: Trust = (), *, licence: str = "", intervals: Sequence[str] = ()) -> str:
    """Write the card as Markdown."""
    trained = export.trained
    parts = [
        _write_head(export),
        f"# {_quote(trained.config.name)}",
        _describe_origin(export),
        "## How to load it",
        _write_loading(export, trust),
        _write_interface(export),
        "## Metrics",
        "\n".join(_list_metrics(export, intervals)),
        "## Data",
        "\n".join(_list_data(export)),
        "## Licence",
        _quote(licence) if licence else "None is stated. Ask whoever trained the model, and mind that of the data.",
        "## Check",
        "\n".join(_list_checks(export)),
        "## Config",
        f"```yaml\n{_format_config(export)}```",
    ]
    return make_printable("\n\n".join(part for part in parts if part)) + "\n"


def _describe_origin(export: "Export") -> str:
    trained = export.trained
    averaged = ", with averaged weights" if trained.weights == "ema" else ""
    run = _quote(trained.folder.resolve().name)
    return f"The model of the run {run} after {trained.step:,} optimizer steps{averaged}, exported as `{export.to}`."


def _write_head(export: "Export") -> str:
    """Write the front matter that model hubs read."""
    head = {"library_name": "pytorch", "tags": [export.to, *(["onnx"] if export.to == "onnx" else [])][:1]}
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---"


def _quote(text: str) -> str:
    """Escape a stranger's text for Markdown: it stays text, on one line."""
    said = cut_name(text).replace("\\", "\\\\")
    for mark in "`*_[]<>|#":
        said = said.replace(mark, f"\\{mark}")
    return said


def _write_loading(export: "Export", trust: Trust) -> str:
    trained = export.trained
    names = [given["name"] for given in export.inputs] or ["input"]
    call = ", ".join(name if name.isidentifier() else f"input_{at}" for at, name in enumerate(names))
    if export.to == "torch_export":
        load = f'model = torch.export.load("{export.file}").module()'
        return f"```python\nimport torch\n\n{load}\noutput = model({call})\n```"
    if export.to == "onnx":
        fed = ", ".join(f"{name!r}: {word}" for name, word in zip(names, call.split(", "), strict=True))
        return (
            f'```python\nimport onnxruntime\n\nsession = onnxruntime.InferenceSession("{export.file}")\n'
            f"outputs = session.run(None, {{{fed}}})  # NumPy arrays\n```"
        )
    writer = CodeWriter(trust)
    try:
        made = writer.write_node({n: v for n, v in trained.config.model.items() if n != "_partial_"}, call=True)
    except (NoCode, RunError) as error:
        return f"The model is `{trained.config.model['_target_']}`; its arguments stand in the config below ({error})."
    writer.modules.add("torch")
    if export.to == "safetensors":
        writer.modules.add("safetensors.torch")
        load = f'safetensors.torch.load_file("{export.file}")'
    else:
        load = f'torch.load("{export.file}", weights_only=True)'
    lines = [writer.write_imports(), "", f"model = {made}", f"model.load_state_dict({load})", "model.eval()"]
    foreign = sorted(m for m in writer.modules if m.partition(".")[0] not in ("torch", "torchvision", "safetensors"))
    needs = f"\n\nIt needs the model's code, `{foreign[0]}`, and not the runner." if foreign else ""
    return "```python\n" + "\n".join(lines) + f"\n```{needs}"


def _write_interface(export: "Export") -> str:
    lines = [f"- input `{one['name']}`: {one['dtype']} {_format_shape(one['shape'])}" for one in export.inputs]
    lines += [f"- output `{name}`" for name in export.outputs]
    output = export.trained.config.step.get("output")
    if output is not None and isinstance(output, int | str):
        lines.append(f"- the loss was computed on the output `{_quote(str(output))}`")
    said = {
        "graph": "The evaluation transforms are in the graph: it takes raw samples.",
        "preprocess.py": "`preprocess.py` makes the input of one raw sample: `from preprocess import preprocess`.",
        "none": "A raw sample of the dataset is the input: the run has no evaluation transforms.",
    }
    lines.append("- " + said.get(export.preprocessing, "The transforms of the evaluation stand in the config."))
    classes = export.trained.classes
    if classes:
        named = ", ".join(f"{at} {_quote(name)}" for at, name in enumerate(classes[:MOST_CLASSES_NAMED]))
        lines.append(f"- classes: {named}{', …' * (len(classes) > MOST_CLASSES_NAMED)}")
    return "\n".join(lines)


def _format_shape(shape: Sequence[Any]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _list_metrics(export: "Export", intervals: Sequence[str]) -> Iterator[str]:
    trained = export.trained
    result = RecordedRun(trained.folder).read_result()
    known: Any = {}
    best = result.get("best")
    if trained.step == result.get("steps"):
        known = result.get("metrics")
    elif isinstance(best, dict) and best.get("step") == trained.step:
        known = best.get("metrics")
    numbers = known if isinstance(known, Mapping) else {}
    training = trained.config.train
    has_average = training.ema is not None or training.average is not None
    if trained.weights == "raw" and has_average:
        yield "None are recorded of the raw weights: training evaluated their average."
    elif not numbers:
        yield f"None are recorded of step {trained.step:,}: `python -m runner evaluate RUN` computes them."
    else:
        yield "| metric | value |"
        yield "|---|---|"
        for name, value in numbers.items():
            yield (
                f"| {_quote(str(name))} | {value:.6g} |"
                if isinstance(value, int | float)
                else f"| {_quote(str(name))} | {_quote(str(value))} |"
            )
        yield ""
        yield f"Of this one run (seed {trained.config.seed}): they say nothing of the spread between seeds."
    if intervals:
        yield ""
        yield "Replicates of the run, which differ in their seed alone:"
        yield ""
        yield from (f"- {_quote(line)}" for line in intervals)


def _list_data(export: "Export") -> Iterator[str]:
    trained = export.trained
    chosen = trained.config.dataset
    nodes = {name: getattr(chosen, name) for name in ("source", "train", "val", "test")}
    for name, node in nodes.items():
        if node is not None:
            yield f"- {name}: `{node['_target_']}`"
    record = RecordedRun(trained.folder).read_part("provenance.json")
    data = record.get("data") if isinstance(record, dict) else None
    if not isinstance(data, dict):
        yield "- its fingerprint is not recorded: provenance.json is missing or damaged"
        return
    for name, facts in data.items():
        if isinstance(facts, dict):
            sha = str(facts.get("sha256") or "unknown")[:16]
            yield f"- {_quote(str(name))}: {facts.get('samples', '?')} samples, fingerprint `{_quote(sha)}`"


def _list_checks(export: "Export") -> Iterator[str]:
    if export.difference is not None:
        yield (
            f"- read back and compared with the run's model on {_quote(export.checked)}, in batches of several sizes: "
            f"the largest difference is {export.difference:.3g}"
        )
    else:
        yield "- read back: every tensor is the same"
    device = export.trained.config.device
    precision = device.precision if device.precision in ("bf16", "fp16") else device.weights
    if precision in ("bf16", "fp16"):
        yield f"- the run computed in {precision}, and the exported model computes in fp32"
    for note in export.notes:
        yield f"- {_quote(note)}"


def _format_config(export: "Export") -> str:
    plain = to_resolved_data(export.trained.config)
    kept = {"name": plain["name"], "seed": plain["seed"]} | {name: plain[name] for name in SHOWN if plain.get(name)}
    text: str = yaml.safe_dump(_drop_empty(kept), sort_keys=False, allow_unicode=True)
    return text.replace("```", "'''")


def _drop_empty(tree: Any) -> Any:
    """Leave out keys without a value."""
    if isinstance(tree, dict):
        kept = {name: _drop_empty(member) for name, member in tree.items()}
        return {name: member for name, member in kept.items() if member not in (None, {}, [])}
    return tree
