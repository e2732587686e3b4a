"""Evaluation monitors: predictions on samples, confusion matrix, PR curves, features.

Each look has `begin(model)`; `add(batch, outcome)`, called with each batch of the split and what the step said of it;
`end()`; and `values()`, called once where the evaluation was not cut short: TensorBoard's messages.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runner.log import images as log_images
from runner.log import summaries

CURVES = 20  # classes with a PR curve of their own


SPRITE = 32  # pixels of an image in the projector


def as_classes(output: Any, target: Any) -> tuple[Tensor, Tensor] | None:
    """Return probabilities [N, C] and class indices [N] of a classification; None for other outputs.

    Taken for one: outputs [N, C, ...] with integer targets [N, ...], or with shares of classes of the same shape that
    add up to 1; outputs [N] or [N, 1] with targets 0 and 1 (two classes). Outputs are probabilities where they look
    like some, else logits.
    """
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or not output.is_floating_point():
        return None
    output, target = output.detach().float(), target.detach()
    if output.dim() > 1 and output.shape[1] > 1:
        if target.is_floating_point():
            if target.shape != output.shape or not bool(((target.sum(1) - 1).abs() < 1e-3).all()):
                return None
            target = target.argmax(1)
        if target.shape != output.shape[:1] + output.shape[2:]:
            return None
        scores = output.movedim(1, -1).reshape(-1, output.shape[1])
        rows = scores.sum(1)
        given = bool((scores >= 0).all()) and bool(((rows - 1).abs() < 1e-3).all())
        return scores if given else scores.softmax(1), target.reshape(-1).long()
    if output.numel() != target.numel() or not bool(((target == 0) | (target == 1)).all()):
        return None
    scores = output.reshape(-1)
    scores = scores if bool(((scores >= 0) & (scores <= 1)).all()) else scores.sigmoid()
    return torch.stack([1 - scores, scores], dim=1), target.reshape(-1).long()


class EvaluationMonitor:
    """Base of the evaluation monitors, with a `begin` and an `end` that do nothing.

    Attributes:
        near: whether it needs the batch; of several processes that evaluate together it then sees those of the first.
    """

    near = False

    def begin(self, model: nn.Module) -> None:
        """Begin an evaluation of `model`."""

    def end(self) -> None:
        """End the evaluation, also an interrupted one."""


class ConfusionMatrix(EvaluationMonitor):
    """Confusion matrix of a split, as the picture `<split>/confusion_matrix`."""

    def __init__(self, split: str, names: Sequence[str], say: Callable[[str], None]) -> None:
        self.split, self.names, self.say = split, names, say
        self.counts: Tensor | None = None

    def add(self, _batch: Any, outcome: Mapping[str, Any]) -> None:
        found = as_classes(outcome.get("output"), outcome.get("target"))
        if found is None:
            return
        scores, target = found
        classes = scores.shape[1]
        cells = target.clamp(0, classes - 1) * classes + scores.argmax(1)
        cells = cells[(target >= 0) & (target < classes)]  # what a loss ignores (-100) is no class
        counts = torch.bincount(cells, minlength=classes**2).view(classes, classes)
        self.counts = counts if self.counts is None else self.counts + counts

    def values(self) -> list[Any]:
        if self.counts is None:
            self.say(f"log.confusion_matrix: outputs and targets of {self.split} are no classes, so there is none")
            return []
        return [
            _make_image(
                f"{self.split}/confusion_matrix", log_images.draw_confusion_matrix(self.counts.cpu(), self.names)
            )
        ]


class PRCurves(EvaluationMonitor):
    """PR curves of each class against the rest, and of all together (`<split>/pr/micro`)."""

    def __init__(self, split: str, names: Sequence[str], say: Callable[[str], None]) -> None:
        self.split, self.names, self.say = split, names, say
        self.counts: Tensor | None = None  # [2, C, THRESHOLDS]: of samples of other classes, and of the class

    def add(self, _batch: Any, outcome: Mapping[str, Any]) -> None:
        found = as_classes(outcome.get("output"), outcome.get("target"))
        if found is None:
            return
        scores, target = found
        classes, size = scores.shape[1], summaries.THRESHOLDS
        sound = (target >= 0) & (target < classes)
        scores, target = scores[sound], target[sound]
        buckets = (scores.clamp(0, 1) * (size - 1)).long()
        positive = torch.nn.functional.one_hot(target, classes)
        places = (positive * classes + torch.arange(classes, device=scores.device)) * size + buckets
        counts = torch.bincount(places.flatten(), minlength=2 * classes * size).view(2, classes, size)
        self.counts = counts if self.counts is None else self.counts + counts

    def values(self) -> list[Any]:
        if self.counts is None:
            self.say(f"log.pr_curves: outputs and targets of {self.split} are no classes, so there are none")
            return []
        negatives, positives = self.counts.cpu()
        classes = len(positives)
        labels = [self.names[i] if i < len(self.names) else str(i) for i in range(classes)]
        chosen = range(1, 2) if classes == 2 else range(min(classes, CURVES))
        if classes > CURVES:
            self.say(f"log.pr_curves: {classes} classes, the first {CURVES} of them have a curve of their own")
        curves = [
            summaries.make_pr_curve(f"{self.split}/pr/{_escape_tag(labels[i])}", positives[i], negatives[i])
            for i in chosen
        ]
        return [summaries.make_pr_curve(f"{self.split}/pr/micro", positives.sum(0), negatives.sum(0)), *curves]


class Samples(EvaluationMonitor):
    """First samples of a split with their predictions: `<split>/predictions`.

    Images are a sheet, right predictions green and wrong ones red; other inputs a table among the texts.
    """

    near = True

    def __init__(self, split: str, number: int, place: Any, names: Sequence[str], say: Callable[[str], None]) -> None:
        self.split, self.number, self.place, self.names, self.say = split, number, place, names, say
        self.kept: list[tuple[Any, Any, Any]] = []  # input, output, target of a batch
        self.missing = number

    def add(self, batch: Any, outcome: Mapping[str, Any]) -> None:
        if self.missing <= 0 or not isinstance(outcome.get("output"), Tensor):
            return
        output, target = outcome["output"][: self.missing].detach(), outcome.get("target")
        target = target[: self.missing] if isinstance(target, Tensor) else None
        self.kept.append((get_input(batch, self.place, len(output)), output, target))
        self.missing -= len(output)

    def values(self) -> list[Any]:
        rows = [row for kept in self.kept for row in _make_rows(*kept)]
        if not rows:
            self.say(f"log.images: the step says no `output` of {self.split} that is a tensor")
            return []
        tag = f"{self.split}/predictions"
        drawn = [image for image, _, _ in rows if image is not None]
        if len(drawn) < len(rows):
            lines = ["| sample | target | predicted |", "|---|---|---|"]
            lines += [
                f"| {i} | {_format_label(true, self.names)} | {_format_label(said, self.names)} |"
                for i, (_, true, said) in enumerate(rows)
            ]
            return [summaries.make_text(tag, "\n".join(lines))]
        labels = [f"{_format_label(true, self.names)}: {_format_label(said, self.names)}" for _, true, said in rows]
        colours = ["black" if true is None else "green" if true == said else "red" for _, true, said in rows]
        return [_make_image(tag, log_images.draw_contact_sheet(drawn, labels, colours=colours))]


def _format_label(label: Any, names: Sequence[str]) -> str:
    """Return a class's name or another prediction as text, without tabs and line ends."""
    known = isinstance(label, int) and 0 <= label < len(names)
    return "" if label is None else " ".join((names[label] if known else str(label)).split())


def _make_rows(value: Any, output: Tensor, target: Tensor | None) -> list[tuple[Tensor | None, Any, Any]]:
    """Return each sample's picture, target and prediction: class indices or rounded numbers."""
    images: list[Tensor | None] = [None] * len(output)
    if isinstance(value, Tensor) and value.dim() == 4:
        images = [log_images.as_picture(image) for image in value]
    found = as_classes(output, target)
    if found is not None and len(found[1]) == len(output):
        return list(zip(images, found[1].tolist(), found[0].argmax(1).tolist(), strict=True))
    true: list[Any] = [None] * len(output) if target is None else [_format_numbers(row) for row in target]
    return list(zip(images, true, [_format_numbers(row) for row in output], strict=True))


def _format_numbers(row: Tensor) -> str:
    values = row.detach().flatten()[:8].tolist()
    return ", ".join(f"{value:.4g}" for value in values) + ", …" * (row.numel() > 8)


class Features(EvaluationMonitor):
    """Inputs of the model's last layer for a split's first samples, for TensorBoard's projector.

    That layer is the last module with parameters of its own to be called, whichever the model has. The files stand in
    `tb/projector/`, and are those of the last evaluation.
    """

    near = True

    def __init__(
        self, split: str, number: int, place: Any, names: Sequence[str], folder: Path, say: Callable[[str], None]
    ) -> None:
        self.split, self.number, self.place, self.names, self.folder, self.say = (
            split,
            number,
            place,
            names,
            folder,
            say,
        )
        self.last: Any = None
        self.kept: list[tuple[Tensor, Any, Any, Any]] = []  # features, input, output, target
        self.missing = number
        self.hooks: list[Any] = []

    def begin(self, model: nn.Module) -> None:
        """Register the hooks, until the wanted number of samples has been seen."""
        weighted = [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]
        self.hooks = [module.register_forward_pre_hook(self._note) for module in weighted]

    def _note(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        self.last = next((value for value in args if isinstance(value, Tensor)), self.last)

    def add(self, batch: Any, outcome: Mapping[str, Any]) -> None:
        output = outcome.get("output")
        if self.missing > 0 and isinstance(self.last, Tensor) and isinstance(output, Tensor):
            size = min(self.missing, len(output), len(self.last))
            target = outcome.get("target")
            value = get_input(batch, self.place, size)
            target = target[:size] if isinstance(target, Tensor) else None
            self.kept.append((self.last[:size].detach().float().flatten(1), value, output[:size].detach(), target))
            self.missing -= size
        if self.missing <= 0:
            self.end()

    def end(self) -> None:
        """Remove the hooks."""
        for hook in self.hooks:
            hook.remove()
        self.hooks, self.last = [], None

    def values(self) -> list[Any]:
        """Write the projector's files; return no messages for the event file."""
        if not self.kept or len({kept[0].shape[1] for kept in self.kept}) > 1:
            self.say(f"log.embeddings: {self.split} shows no features of one size before the model's last layer")
            return []
        features = torch.cat([kept[0] for kept in self.kept]).cpu()
        rows = [row for _, *kept in self.kept for row in _make_rows(*kept)]
        place = f"projector/{self.split}"
        folder = self.folder / place
        folder.mkdir(parents=True, exist_ok=True)
        numbers = ["\t".join(f"{number:.6g}" for number in row) for row in features.tolist()]
        (folder / "tensors.tsv").write_text("\n".join(numbers) + "\n")
        words = [f"{_format_label(true, self.names)}\t{_format_label(said, self.names)}" for _, true, said in rows]
        (folder / "metadata.tsv").write_text("\n".join(["target\tpredicted", *words]) + "\n")
        lines = [
            "embeddings {",
            f'  tensor_name: "{self.split}/features"',
            f'  tensor_path: "{place}/tensors.tsv"',
            f'  metadata_path: "{place}/metadata.tsv"',
        ]
        images = [image for image, _, _ in rows if image is not None]
        if len(images) == len(rows):
            sheet, side = log_images.draw_sprite(images, SPRITE)
            sheet.save(folder / "sprite.png", compress_level=1)  # 60 ms less than at the usual level, for 256 images
            lines += [
                "  sprite {",
                f'    image_path: "{place}/sprite.png"',
                *[f"    single_image_dim: {side}"] * 2,
                "  }",
            ]
        (folder / "config.pbtxt").write_text("\n".join([*lines, "}"]) + "\n")
        parts = sorted((self.folder / "projector").glob("*/config.pbtxt"))
        (self.folder / "projector_config.pbtxt").write_text("".join(part.read_text() for part in parts))
        return []


def get_input(batch: Any, place: Any, size: int) -> Any:
    """Return `size` rows of a batch's model input; of several inputs the first image, else tensor."""
    if not isinstance(place, int | str):
        members = place.values() if isinstance(place, Mapping) else place
        found = [value for member in members if isinstance(value := get_input(batch, member, size), Tensor)]
        return next((value for value in found if value.dim() == 4), found[0] if found else None)
    with suppress(LookupError, TypeError):
        value = batch[place]
        return value[:size] if isinstance(value, Tensor) else None
    return None


def _make_image(tag: str, picture: Any) -> Any:
    return summaries.make_image(tag, log_images.encode_png(picture), picture.width, picture.height)


def _escape_tag(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-._" else "_" for letter in name)
