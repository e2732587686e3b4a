"""Pictures drawn with Pillow: sheets of samples with their labels, confusion matrices, sprites."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

CELLS_WITH_NUMBERS = 20  # a confusion matrix of more classes shows shades only


LARGEST_ON_SHEET = 160  # pixels of an image's longer side


LARGEST_SPRITE = 8192  # pixels; what TensorBoard's projector takes at most


def encode_png(image: Any) -> bytes:
    """Encode a PIL image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def as_picture(image: Tensor) -> Tensor | None:
    """Convert an image [1 or 3, H, W] to uint8 [3, H, W], scaled to [0, 1] if outside; else None."""
    if image.dim() != 3 or image.shape[0] not in (1, 3):
        return None
    image = image.detach().cpu()
    if image.dtype != torch.uint8:
        image = image.float()
        low, high = float(image.min()), float(image.max())
        if low < 0 or high > 1:
            image = (image - low) / (high - low or 1)
        image = (image * 255).round().to(torch.uint8)
    return image.as_subclass(Tensor).expand(3, -1, -1)


def draw_contact_sheet(
    images: Sequence[Tensor],
    labels: Sequence[Any],
    names: Sequence[str] = (),
    columns: int = 8,
    colours: Sequence[str] = (),
    points: Sequence[Sequence[Sequence[float]]] = (),
) -> Any:
    """Draw images uint8 [3, H, W] in rows, each above its label, as a PIL image; None without images.

    Small ones are magnified by a whole number, large ones reduced to LARGEST_ON_SHEET pixels.

    Args:
        images: of one sheet.
        labels: text, or an index of `names`; None leaves the place empty.
        names: of the classes.
        columns: images in a row.
        colours: of the labels; black where there is none.
        points: x and y of what is marked on each image, in its pixels.
    """
    from PIL import Image, ImageDraw

    if not images:
        return None
    texts = [_format_label(label, names) for label in labels]
    largest = max(max(image.shape[-2:]) for image in images)
    scale = LARGEST_ON_SHEET / largest if largest > LARGEST_ON_SHEET else max(1, math.ceil(64 / largest))
    sizes = [(max(1, round(image.shape[-1] * scale)), max(1, round(image.shape[-2] * scale))) for image in images]
    width, height = max(size[0] for size in sizes) + 4, max(size[1] for size in sizes) + 16
    sheet = Image.new("RGB", (width * min(columns, len(images)), height * math.ceil(len(images) / columns)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, image in enumerate(images):
        left, top = number % columns * width, number // columns * height
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        method = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BILINEAR
        sheet.paste(picture.resize(sizes[number], method), (left, top))
        inside = [(x, y) for x, y in (points[number] if number < len(points) else ()) if _is_on(x, y, image)]
        for x, y in inside:
            across, down = left + (x + 0.5) * scale, top + (y + 0.5) * scale
            draw.ellipse([across - 2, down - 2, across + 2, down + 2], fill="red", outline="white")
        if number < len(texts):
            colour = colours[number] if number < len(colours) else "black"
            draw.text((left + 1, top + height - 14), texts[number], fill=colour)
    return sheet


def _is_on(x: float, y: float, image: Tensor) -> bool:
    return 0 <= x < image.shape[-1] and 0 <= y < image.shape[-2]


def _format_label(label: Any, names: Sequence[str]) -> str:
    if label is None:
        return ""
    return names[label] if isinstance(label, int) and 0 <= label < len(names) else str(label)


def draw_confusion_matrix(counts: Tensor, names: Sequence[str] = ()) -> Any:
    """Draw a confusion matrix int64 [C, C] as a PIL image; rows are true classes, shades row shares."""
    from PIL import Image, ImageDraw

    classes = len(counts)
    shares = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    cell = 34 if classes <= CELLS_WITH_NUMBERS else max(1, 700 // classes)
    # White to a dark blue: the same lightness for the same share in every matrix.
    pixels = np.stack([255 - shares.numpy() * fall for fall in (247, 207, 148)], axis=-1).astype(np.uint8)
    matrix = Image.fromarray(pixels).resize((classes * cell, classes * cell), Image.Resampling.NEAREST)
    labels = [names[i] if i < len(names) else str(i) for i in range(classes)]
    shown = classes <= CELLS_WITH_NUMBERS
    left = 30 + (max(6 * len(label) for label in labels) if shown else 0)
    sheet = Image.new("RGB", (left + classes * cell + 8, 36 + classes * cell + 8), "white")
    sheet.paste(matrix, (left, 36))
    draw = ImageDraw.Draw(sheet)
    draw.text((left, 4), f"predicted class (columns), true class (rows), {int(counts.sum())} in all", fill="black")
    for row in range(classes if shown else 0):
        middle = row * cell + cell // 2
        draw.text((6, 36 + middle - 6), labels[row], fill="black")
        draw.text((left + middle, 20), labels[row][: cell // 6], fill="black", anchor="ma")
        for column in range(classes):
            count = int(counts[row, column])
            place = (left + column * cell + cell // 2, 36 + middle)
            if count:
                draw.text(place, str(count), fill="white" if shares[row, column] > 0.5 else "black", anchor="mm")
    return sheet


def draw_sprite(images: Sequence[Tensor], side: int) -> tuple[Any, int]:
    """Draw images uint8 [3, H, W] in a square PIL image; return it with the images' side, <= `side`."""
    from PIL import Image

    columns = math.ceil(math.sqrt(len(images)))
    side = min(side, LARGEST_SPRITE // columns)
    sheet = Image.new("RGB", (columns * side, columns * side), "white")
    for number, image in enumerate(images):
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        picture = picture.resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(picture, (number % columns * side, number // columns * side))
    return sheet, side
