"""Color transforms on a batch: jitter, grayscale and the adjustments that they are made of."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from runner.data.batched.geometry import is_v2
from runner.data.batched.steps import ChainState, How, NotBatched, TransformStep
from runner.data.batched.values import make_batch_call, make_random_form


def make_grayscale(transform: Any, state: ChainState) -> list[TransformStep]:
    """Make Grayscale: PIL images, grey ones too, get the channels asked for; tensors as torchvision's."""
    wanted = transform.num_output_channels
    if not state.pil:
        return make_batch_call(transform, state)
    if state.sample.shape[1] == 3:
        return [
            TransformStep(0, lambda images, _: _compute_luma(images, "pil").to(images.dtype).repeat(1, wanted, 1, 1))
        ]
    return [TransformStep(0, lambda images, _: images[:, :1].expand(-1, wanted, -1, -1).contiguous())]


def make_random_grayscale(transform: Any, state: ChainState) -> list[TransformStep]:
    """Make the steps of RandomGrayscale: grey images where the draw is below `p`."""
    from torchvision.transforms import functional as v1
    from torchvision.transforms.v2 import functional as v2

    def grey(images: Tensor) -> Tensor:
        if state_pil and images.shape[1] == 3:
            return _compute_luma(images, "pil").to(images.dtype).repeat(1, 3, 1, 1)
        made: Tensor = (v2 if is_v2(transform) else v1).rgb_to_grayscale(images, images.shape[1])
        return made

    state_pil = state.pil
    return make_random_form(lambda _: grey)(transform, state)


def make_color_jitter(transform: Any, state: ChainState) -> list[TransformStep]:
    """Make ColorJitter: uniforms 0 to 3 give an image's four factors, 4 to 7 their order."""
    ranges = [getattr(transform, name) for name in ("brightness", "contrast", "saturation", "hue")]
    how: How = "pil" if state.pil else "v2" if is_v2(transform) else "v1"
    changes = [partial(change, how=how) for change in ADJUSTMENTS]
    _get_hsv_functions(how)
    if state.sample.shape[1] != 3:
        raise NotBatched("ColorJitter of images that have not three channels")

    def run(images: Tensor, uniforms: Tensor) -> Tensor:
        order = uniforms[:, 4:].argsort(dim=1, stable=True)
        images = images.clone()
        for turn in range(4):
            for number, (limits, change) in enumerate(zip(ranges, changes, strict=True)):
                chosen = (order[:, turn] == number).nonzero()[:, 0]
                if limits is None or not len(chosen):
                    continue
                factors = limits[0] + uniforms[chosen, number] * (limits[1] - limits[0])
                rows = chosen.to(images.device)
                factors = factors.to(images.device).view(-1, 1, 1, 1)
                images[rows] = change(images[rows], factors)
        return images

    return [TransformStep(8, run)]


def _blend(images: Tensor, other: Tensor, factors: Tensor, how: How) -> Tensor:
    """Compute `factors * images + (1 - factors) * other`, clamped, with the rounding of Pillow, v1 or v2.

    One grey level more or less in one adjustment becomes several in the next one.
    """
    if how == "pil":  # Blend.c
        mixed = other + factors * (images.float() - other)
    else:
        rest = (1 - factors.double()).float()
        mixed = images * factors
        if how == "v2":  # `Tensor.add_` with an `alpha` multiplies and adds at once
            return _cut((mixed.double() + rest.double() * other.double()).float(), images.dtype)
        mixed = mixed + rest * other
    return _cut(mixed, images.dtype)


def _cut(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.clamp_(0, 1 if dtype.is_floating_point else 255).to(dtype)


def _compute_luma(images: Tensor, how: How) -> Tensor:
    """Compute ITU-R 601-2 luma, float32 [N, 1, H, W]; whole numbers for bytes, Pillow's for PIL."""
    if images.dtype == torch.uint8 and how == "pil":
        red, green, blue = images.int().unbind(1)
        return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16)[:, None].float()
    red, green, blue = images.float().unbind(1)
    if how == "v1":  # rounds each product
        luma = (red * 0.2989 + green * 0.587 + blue * 0.114)[:, None]
    else:
        luma = (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)[:, None]
    return luma if images.is_floating_point() else luma.floor_()


def adjust_brightness(images: Tensor, factors: Tensor, how: How = "pil") -> Tensor:
    """Adjust the brightness of images [N, 3, H, W] by factors [N, 1, 1, 1]: 0 is black, 1 no change."""
    return _blend(images, torch.zeros((), device=images.device), factors, how)


def adjust_contrast(images: Tensor, factors: Tensor, how: How = "pil") -> Tensor:
    """Adjust the contrast of images [N, 3, H, W] by factors [N, 1, 1, 1]: 0 is mean grey, 1 no change."""
    mean = _compute_luma(images, how).mean((1, 2, 3), keepdim=True)
    return _blend(images, (mean + 0.5).floor() if images.dtype == torch.uint8 and how == "pil" else mean, factors, how)


def adjust_saturation(images: Tensor, factors: Tensor, how: How = "pil") -> Tensor:
    """Adjust the saturation of images [N, 3, H, W] by factors [N, 1, 1, 1]: 0 is grey, 1 no change."""
    return _blend(images, _compute_luma(images, how), factors, how)


def adjust_hue(images: Tensor, factors: Tensor, how: How = "pil") -> Tensor:
    """Shift the hue of images [N, 3, H, W] by [N, 1, 1, 1] in [-0.5, 0.5] of the circle of hues.

    Of a PIL image's bytes in bytes, so by 256ths of the circle; of a tensor in numbers, with torchvision's functions.
    """
    if images.dtype == torch.uint8 and how == "pil":
        return _adjust_hue_bytes(images, factors)
    to_hsv, to_rgb = _get_hsv_functions(how)
    hue, saturation, value = to_hsv(images if images.is_floating_point() else images.float() / 255).unbind(1)
    changed: Tensor = to_rgb(torch.stack(((hue + factors[:, 0]) % 1.0, saturation, value), 1))
    return changed if images.is_floating_point() else changed.mul_(256 - 1e-3).to(images.dtype)


ADJUSTMENTS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def _get_hsv_functions(how: How) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return torchvision's own conversions to and from HSV, which take batches but are not public.

    Raises:
        NotBatched: this torchvision has none of these names.
    """
    try:
        if how == "v1":
            from torchvision.transforms import _functional_tensor as functional

            found = functional._rgb2hsv, functional._hsv2rgb  # noqa: SLF001  see above
        else:
            from torchvision.transforms.v2.functional import _color

            found = _color._rgb_to_hsv, _color._hsv_to_rgb  # noqa: SLF001
    except (ImportError, AttributeError) as error:
        raise NotBatched(f"this torchvision has other colour functions ({error})") from error
    return found


def _adjust_hue_bytes(images: Tensor, factors: Tensor) -> Tensor:
    """Shift the hue of bytes in Pillow's HSV bytes (Convert.c, rgb2hsv and hsv2rgb)."""
    values = images.float()
    highest, lowest = values.amax(1), values.amin(1)
    span = highest - lowest
    grey = span == 0
    red, green, blue = ((highest[:, None] - values) / torch.where(grey, 1.0, span)[:, None]).double().unbind(1)
    is_red, is_green = values[:, 0] == highest, values[:, 1] == highest
    sector = torch.where(is_red, blue - green, torch.where(is_green, 2 + red - blue, 4 + green - red))
    hue = torch.where(grey, 0.0, torch.fmod(sector.float().double() / 6 + 1, 1).float().double())
    saturation = torch.where(grey, 0.0, span / torch.where(grey, 1.0, highest)).double()
    saturation = (saturation * 255).floor() / 255
    hue = torch.remainder((hue * 255).floor() + torch.trunc(factors[:, 0].double() * 255), 256) * (6 / 255)
    whole = hue.floor()
    part = hue - whole
    rest = (1 - saturation, 1 - saturation * part, 1 - saturation * (1 - part))
    p, q, t = ((highest * share + 0.5).floor().float() for share in rest)
    sextant = torch.remainder(whole, 6).long()[:, None, None]
    choices = torch.stack(
        [
            torch.stack(colour, 1)
            for colour in (
                (highest, t, p),
                (q, highest, p),
                (p, highest, t),
                (p, q, highest),
                (t, p, highest),
                (highest, p, q),
            )
        ],
        1,
    )
    chosen = choices.gather(1, sextant.expand(-1, 1, 3, -1, -1))[:, 0]
    chosen = torch.where(grey[:, None], values, chosen)
    return chosen.clamp_(0, 255).to(images.dtype)
