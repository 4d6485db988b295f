"""The network that finds edges between objects (IRNet, Ahn, Cho and Kwak, CVPR 2019).

The maps of a frozen backbone, from the stem to the last, are projected to 32 channels each,
brought to a quarter of the image's size, and joined to one logit a cell::

    edge = sigmoid(W6 [relu(up(GN(W1 x1))); ..; relu(up(GN(W5 x5)))] + b)

Up-sampling stands before the ReLU, as in the code of the authors.  Departure: a map finer than a
quarter (other backbones) is averaged over cells first.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CELL = 4  # pixels of the image along a side of a grid cell
WIDTH, GROUPS = 32, 4
STRIDE = 16  # images are padded to whole cells of the coarsest map


class EdgeHead(nn.Module):
    """Maps of a backbone, (B, C_i, h_i, w_i) each -> edge logits (B, 1, h, w).

    channels, strides: of the maps.  A map is brought from its stride to `CELL` and cropped at the
    right and below.
    """

    def __init__(self, *, channels: Sequence[int], strides: Sequence[int]) -> None:
        """Raises ValueError for a stride that `CELL` neither divides nor is divided by."""
        super().__init__()
        if wrong := [stride for stride in strides if stride % CELL and CELL % stride]:
            raise ValueError(f"strides must divide {CELL} or be divided by it, got {wrong}")
        self.strides = tuple(strides)
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, WIDTH, 1, bias=False), nn.GroupNorm(GROUPS, WIDTH))
            for c in channels
        )
        self.joined = nn.Conv2d(WIDTH * len(self.levels), 1, kernel_size=1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """size: (h, w) of the grid."""
        levels = zip(self.levels, maps, self.strides, strict=True)
        return self.joined(torch.cat([_level(*level, size) for level in levels], dim=1))


def _level(layer: nn.Module, maps: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    if stride < CELL:
        maps = F.avg_pool2d(maps, CELL // stride, ceil_mode=True)
    projected = layer(maps)
    if stride > CELL:
        factor = stride // CELL
        projected = F.interpolate(
            projected, scale_factor=factor, mode="bilinear", align_corners=False
        )
    return projected.relu()[..., : size[0], : size[1]]


class EdgeNet(nn.Module):
    """Images in the backbone's range (B, 3, H, W) -> edge logits (B, 1, ceil(H/4), ceil(W/4)).

    backbone: frozen; gives its maps, and has ``channels`` and ``strides`` (`networks.levels`).
    """

    def __init__(self, *, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.head = EdgeHead(channels=backbone.channels, strides=backbone.strides)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            maps = self.backbone(images)
        return self.head(maps, grid_of(images.shape[-2:]))

    def both_ways(self, images: Tensor, *, least: int = 0) -> Tensor:
        """Logits (B, ceil(H/4), ceil(W/4)), means of each image and its mirror image.

        least: sides are padded with zeros at the right and below to so many pixels (512 in the
            release, whose group norms see the padding).  Larger images keep their size, padded to
            whole cells; the release crops them.
        """
        h, w = images.shape[-2:]
        sides = [max(least, side) for side in (h, w)]
        pad = [side + -side % STRIDE - own for side, own in zip(sides, (h, w), strict=True)]
        both = F.pad(torch.cat([images, images.flip(-1)]), (0, pad[1], 0, pad[0]))
        logits = self(both.contiguous(memory_format=torch.channels_last)).float()
        return merged(logits, grid_of((h, w)))


def grid_of(size: Sequence[int]) -> tuple[int, int]:
    """The grid (h, w) of an image of (H, W) pixels.

    >>> grid_of((47, 58))
    (12, 15)
    """
    return tuple(-(-side // CELL) for side in size)


def merged(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (2 B, 1, h', w') of images, then of their mirror images -> (B, h, w).

    Cropped to `size` (h, w), mirrored back and averaged, all before the sigmoid.
    """
    plain, mirrored = logits[:, 0, : size[0], : size[1]].chunk(2)
    return (plain + mirrored.flip(-1)) / 2


def at_quarter(labels: Tensor) -> Tensor:
    """Labels (..., H, W) on a grid of cells of 4 pixels, (..., H / 4, W / 4): the nearest pixel.

    Raises ValueError where H or W is no multiple of 4.

    >>> at_quarter(torch.arange(64).reshape(8, 8)).tolist()
    [[18, 22], [50, 54]]
    """
    if any(side % CELL for side in labels.shape[-2:]):
        size = tuple(labels.shape[-2:])
        raise ValueError(f"labels must have sides that are multiples of {CELL}, got {size}")
    return labels[..., CELL // 2 :: CELL, CELL // 2 :: CELL]
