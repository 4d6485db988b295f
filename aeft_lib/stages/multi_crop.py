"""A reader in windows: the image at several scales, window by window (PMM, Li et al., ICCV 2021).

Small objects fill more of the network's field there.  The maps of all windows, each plain and
mirrored, are brought back to their places, averaged over the windows of a pixel, and stretched per
class to 0..1.

Departures from the authors' release.  Two quirks are switches: all windows but the last of an axis
are as wide as the stride, not as the crop, and each is resized without keeping its aspect.  A
window has 448 px there, at a stride of 300; here 0.9 and 0.6 of any image's longer side, which is
450 and 300 of VOC's 500.  It has ten scales from 0.75 to 3; a laptop has three.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.engine.device import autocast
from aeft_lib.engine.fields import choice, whole
from aeft_lib.engine.samples import Batch
from aeft_lib.stages.method import Method, Reading

EPS = 1e-5


class Box(NamedTuple):
    """A window in pixels of the image, half open."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.bottom - self.top, self.right - self.left


def windows(
    size: tuple[int, int], scale: float, *, crop: int, stride: int, short: bool = False
) -> list[Box]:
    """The windows of an image (H, W) that is scaled, in pixels of the image as it is.

    They are `crop` pixels of the scaled image wide, `stride` apart, the last one at the end; an
    axis that is shorter is one window.  short: all but the last are `stride` wide, as the release.

    >>> windows((256, 256), 1.0, crop=230, stride=154)[0]
    Box(left=0, top=0, right=230, bottom=230)
    >>> len(windows((256, 256), 1.0, crop=230, stride=154))
    4
    """
    wide = stride if short else crop
    spans = []
    for side in (int(size[1] * scale), int(size[0] * scale)):
        inner = math.ceil(max(0, side - crop) / stride)
        starts = [(stride * i, min(side, stride * i + wide)) for i in range(inner)]
        spans.append([*starts, (max(0, side - crop), side)])
    back = [
        [(int(a / scale), max(int(a / scale) + 1, int(b / scale))) for a, b in s] for s in spans
    ]
    return [Box(left, top, right, bottom) for (left, right), (top, bottom) in product(*back)]


def merge(size: tuple[int, int], parts: Iterable[tuple[Box, Tensor]]) -> Tensor:
    """Maps (B, K, H, W) in 0..1 from windows and their maps (B, K, h, w): the mean, min to max.

    size: (H, W).  Each map has the size of its window.  A map that is constant is 0 everywhere.
    """
    total, count = torch.zeros(()), torch.zeros(size)
    for box, maps in parts:
        if not total.ndim:
            total, count = maps.new_zeros(*maps.shape[:2], *size), count.to(maps)
        here = (slice(box.top, box.bottom), slice(box.left, box.right))
        total[(..., *here)] += maps
        count[here] += 1
    mean = total / count.clamp(min=1)
    low, high = mean.amin(dim=(2, 3), keepdim=True), mean.amax(dim=(2, 3), keepdim=True)
    # The release sets what is near the lowest to 0 and then takes the lowest away: negative there.
    return torch.where(mean < low + EPS, 0, (mean - low) / (high - low + EPS))


@dataclass(frozen=True)
class MultiCrop:
    """Reads a classifier in windows of every scale, each plain and mirrored.

    It takes images: windows have no cached features.  Tag logits are those of the whole image.

    crop, stride: of a window in pixels of the scaled image, 448 and 300 in the release; 0: 0.9 and
        0.6 of the image's longer side.
    short_windows, stretch: quirks of the release; without `stretch` a window keeps its aspect, and
        is padded with the mean colour.
    """

    scales: tuple[float, ...] = (0.75, 1.0, 1.5)
    crop: int = 0
    stride: int = 0
    short_windows: bool = False
    stretch: bool = False
    needs_images = True

    def __post_init__(self) -> None:
        whole(self, "crop", "stride")
        choice(self, short_windows=(False, True), stretch=(False, True))
        if not self.scales or any(not 0 < scale < math.inf for scale in self.scales):
            raise ValueError(f"scales must be positive, at least one, got {self.scales!r}")
        if self.crop and self.stride > self.crop:
            raise ValueError(f"stride {self.stride} leaves gaps between windows of {self.crop}")
        if bool(self.crop) != bool(self.stride):
            given = f"{self.crop} and {self.stride}"
            raise ValueError(f"crop and stride go together: both, or 0 and 0, got {given}")

    def fitted(self, scales: Sequence[float]) -> "MultiCrop":
        """Itself: its scales are not the profile's."""
        return self

    def from_images(
        self,
        method: Method,
        network: nn.Module,
        images: Sequence[np.ndarray],
        class_ids: Sequence[Tensor],
        precision: str = "fp32",
    ) -> list[Reading]:
        """Windows are cut out, brought to the crop, and read; see `stages.method.Reader`."""
        size, where = images[0].shape[:2], next(network.parameters()).device
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(where)
        plain = network.backbone.normalise(pixels)

        def cams(views: Tensor) -> Tensor:
            views = views.contiguous(memory_format=torch.channels_last)
            with autocast(precision, where):
                return method.cam(network, Batch(images=views)).float()

        logits = network.pooling(cams(plain)).logits.cpu()
        merged = merge(size, self._parts(cams, plain)).cpu()
        of_each = zip(merged, class_ids, logits, strict=True)
        return [Reading(maps[ids], own) for maps, ids, own in of_each]

    def from_features(self, *_: Any) -> list[Reading]:
        """Raises ValueError: a window's features are not those of the image."""
        raise ValueError("MultiCrop reads images: windows have no cached features")

    def _parts(
        self, cams: Callable[[Tensor], Tensor], images: Tensor
    ) -> Iterator[tuple[Box, Tensor]]:
        """Every window of images (B, 3, H, W), with its maps at its size: plain, then mirrored."""
        size = tuple(images.shape[-2:])
        crop, stride = self.crop or round(0.9 * max(size)), self.stride or round(0.6 * max(size))
        for scale in self.scales:
            for box in windows(size, scale, crop=crop, stride=stride, short=self.short_windows):
                cut = images[..., box.top : box.bottom, box.left : box.right]
                height, width = box.size
                square = (height, width) if self.stretch else (max(box.size),) * 2
                view = F.pad(cut, (0, square[1] - width, 0, square[0] - height))
                view = F.interpolate(view, size=(crop, crop), mode="bilinear", align_corners=False)
                for maps in (cams(view), cams(view.flip(-1)).flip(-1)):
                    full = F.interpolate(maps, size=square, mode="bilinear", align_corners=False)
                    yield box, full[..., :height, :width].relu()
