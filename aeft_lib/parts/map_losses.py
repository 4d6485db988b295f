"""Losses on maps, an image at a time: SEAM (Wang et al., CVPR 2020), CPN (Zhang et al., ICCV 2021).

Every loss is (B,), so that a batch may be cut into parts; a method takes the mean.
Shapes: B images, K classes without background, K + 1 with it, which is then channel 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, K, h, w) at another size, bilinear with corners aligned, as SEAM and CPN have it.

    `maps.seeds.combine_scales` has half-pixel centres instead.
    """
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)


def with_background(foreground: Tensor) -> Tensor:
    """(B, K, h, w) in 0..1 -> (B, K + 1, h, w): channel 0 is 1 minus the largest class.

    >>> with_background(torch.tensor([0.25, 0.75]).reshape(1, 2, 1, 1)).flatten().tolist()
    [0.25, 0.25, 0.75]
    """
    return torch.cat([1 - foreground.amax(dim=1, keepdim=True), foreground], dim=1)


def only_maxima(maps: Tensor) -> Tensor:
    """Each pixel's largest channel keeps its value, ties all; the others are 0.

    >>> z = torch.tensor([0.25, 0.125, 0.25]).reshape(1, 3, 1, 1)
    >>> only_maxima(z).flatten().tolist()
    [0.25, 0.0, 0.25]
    """
    return maps * (maps == maps.amax(dim=1, keepdim=True))


def foreground_maxima(maps: Tensor) -> Tensor:
    """(B, K + 1, h, w): the background as it is, and `only_maxima` of the classes."""
    return torch.cat([maps[:, :1], only_maxima(maps[:, 1:])], dim=1)


def l1(first: Tensor, second: Tensor) -> Tensor:
    """The mean of |first - second| of every image, (B,).  Raises ValueError by shape."""
    _check_same(first, second)
    return (first - second).abs().flatten(1).mean(dim=1)


def top_fraction_mean(values: Tensor, fraction: float) -> Tensor:
    """The mean of every image's largest entries over all channels and pixels, (B,).

    fraction: of the entries, rounded down.  Raises ValueError where that is no entry.
    """
    flat = values.flatten(1)
    return flat.topk(_count(fraction, flat.shape[1], values), dim=1).values.mean(dim=1)


def lowest_mean(maps: Tensor, fraction: float = 0.25) -> Tensor:
    """SEAM's L_min, (B,): of the largest class of every pixel, the mean of the lowest, if positive.

    ``mean(relu(the lowest fraction of max over classes))``.  maps: (B, K, h, w), untagged classes
    0.  fraction: of the pixels, rounded down.  Raises ValueError where that is no pixel.
    """
    largest = maps.amax(dim=1).flatten(1)
    count = _count(fraction, largest.shape[1], maps)
    return largest.topk(count, dim=1, largest=False).values.relu().mean(dim=1)


def _count(fraction: float, total: int, maps: Tensor) -> int:
    count = int(fraction * total)
    if not 0 < count <= total:
        raise ValueError(
            f"a fraction of {fraction:g} of {total} values is {count}: maps of shape "
            f"{tuple(maps.shape)} are too small, or the fraction is not in 0..1; use larger images"
        )
    return count


def _check_same(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"maps that are compared must have one shape, got {shapes}")
