"""Random views of training images and their labels.

`random_views` works on batches of one size, on the device.  The others take one photo of any size
at a time, as the reference does: `training_view` for the classifier, `paired_crop` for networks
that learn from maps.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from aeft_lib.data.images import resized
from aeft_lib.data.views import ViewSpec
from aeft_lib.maps.labels import VOID

CPU = torch.device("cpu")


def training_view(
    image: np.ndarray,
    generator: torch.Generator,
    view: ViewSpec,
    normalise: Callable[[Tensor], Tensor],
    where: torch.device = CPU,
) -> Tensor:
    """The reference's view for classification: resize, mirror, jitter, normalise, crop.

    The padding comes after the normalisation, so it is the mean colour.
    image: (H, W, 3) uint8.  Returns (3, crop, crop), normalised.
    where: the device that computes all but the resize; random numbers are the CPU's all the same.
    """
    if view.long_side:
        image = _with_long_side(
            image,
            int(torch.randint(view.long_side[0], view.long_side[1] + 1, (), generator=generator)),
        )
    picture = torch.from_numpy(image.copy()).to(where).permute(2, 0, 1)
    if torch.rand((), generator=generator) < 0.5:
        picture = picture.flip(-1)
    if torch.rand((), generator=generator) < view.jitter_probability:
        picture = color_jitter(picture, generator, view.jitter)
    return random_crop([normalise(picture[None])[0]], [0], view.crop, generator)[0]


def paired_crop(
    image: np.ndarray,
    maps: Sequence[Tensor],
    fills: Sequence[float],
    generator: torch.Generator,
    view: ViewSpec,
) -> tuple[Tensor, list[Tensor]]:
    """A random crop of a photo and the same crop of its maps, mirrored together, not resized.

    image: (H, W, 3) uint8.  maps: (..., H, W) each.  fills: what stands in each where the photo
    does not reach.  Returns the photo's crop, (3, crop, crop) uint8 padded black, and the maps'.
    """
    picture = torch.from_numpy(image.copy()).permute(2, 0, 1)
    if torch.rand((), generator=generator) < view.jitter_probability:
        picture = color_jitter(picture, generator, view.jitter)
    cut = random_crop([picture, *maps], [0, *fills], view.crop, generator)
    if torch.rand((), generator=generator) < 0.5:
        cut = [square.flip(-1) for square in cut]
    return cut[0], cut[1:]


def random_crop(
    maps: Sequence[Tensor], fills: Sequence[float], side: int, generator: torch.Generator
) -> list[Tensor]:
    """The same random square of every map (..., H, W).

    Along a side that is too short the map lies at a random place in the square.
    fills: what stands where a map does not reach.
    """
    places = []
    for length in maps[0].shape[-2:]:
        start = int(torch.randint(abs(length - side) + 1, (), generator=generator))
        kept = min(length, side)
        places.append(
            (slice(start, start + kept), slice(kept))
            if length > side
            else (slice(kept), slice(start, start + kept))
        )
    (from_y, to_y), (from_x, to_x) = places
    cut = []
    for source, fill in zip(maps, fills, strict=True):
        square = source.new_full((*source.shape[:-2], side, side), fill)
        square[..., to_y, to_x] = source[..., from_y, from_x]
        cut.append(square)
    return cut


def color_jitter(picture: Tensor, generator: torch.Generator, strength: Sequence[float]) -> Tensor:
    """A picture (3, H, W) uint8 of other brightness, contrast, saturation and hue.

    Each is changed at random, in a random order.
    """
    low_high = [(max(0.0, 1 - s), 1 + s) for s in strength[:3]] + [(-strength[3], strength[3])]
    change = [T.adjust_brightness, T.adjust_contrast, T.adjust_saturation, T.adjust_hue]
    factors = [
        low + (high - low) * float(torch.rand((), generator=generator)) for low, high in low_high
    ]
    for i in torch.randperm(4, generator=generator).tolist():
        picture = change[i](picture, factors[i])
    return picture


def _with_long_side(image: np.ndarray, length: int) -> np.ndarray:
    ratio = length / max(image.shape[:2])
    return resized(image, tuple(max(1, round(side * ratio)) for side in image.shape[:2]))


def random_views(
    images: Tensor, labels: Tensor, generator: torch.Generator, *, scales: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Each image and its labels at a random scale and place, mirrored half the time; sizes stay.

    What a smaller image leaves open is zero in the image (the mean colour, where it is normalised)
    and void in the labels.

    images: (B, C, H, W) float.  labels: (B, H, W) uint8.  generator: on the CPU, draws everything.
    scales: the least and the largest, positive; (1, 1) mirrors alone.
    Raises ValueError for scales that are not positive or not in order.
    """
    drawn = draw_views(len(images), generator, scales=scales)
    return affine_views(images, labels, drawn)


def draw_views(count: int, generator: torch.Generator, *, scales: tuple[float, float]) -> Tensor:
    """What `random_views` draws: an affine map of each of so many images, (B, 2, 3) on the CPU.

    From a view's coordinates to its image's, both -1..1.  Raises ValueError as `random_views`.
    """
    low, high = scales
    if not 0 < low <= high:
        raise ValueError(f"scales must be positive and in order, got {scales}")
    scale, x, y, mirror = torch.rand(4, count, generator=generator)
    inverse = 1 / (low + (high - low) * scale)
    # How far the middle of the view may lie from the middle of the image.
    reach = (1 - inverse).abs()
    sides = torch.where(mirror < 0.5, -inverse, inverse)
    zeros = torch.zeros_like(inverse)
    rows = [
        torch.stack([sides, zeros, (2 * x - 1) * reach]),
        torch.stack([zeros, inverse, (2 * y - 1) * reach]),
    ]
    return torch.stack(rows).permute(2, 0, 1)


def affine_views(images: Tensor, labels: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """The views of images and labels by `draw_views`' maps, as `random_views` gives them.

    Computed where the images lie, all at once; each view is the one that it is alone.
    """
    grid = F.affine_grid(drawn.to(images.device), list(images.shape), align_corners=False)
    views = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # Shifted by one, so that the zeros outside stand for void.
    shifted = F.grid_sample(
        labels[:, None].float() + 1, grid, mode="nearest", padding_mode="zeros", align_corners=False
    )[:, 0]
    return views, torch.where(shifted == 0, VOID, shifted - 1).to(torch.uint8)
