"""A segmentation network with detectors of differences, and what it predicts with tags: SSDD.

Shapes: B images, K classes without background; maps are a quarter of the image.  From the authors'
code (shimoda-uec/ssdd); the heads are the harness's own.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.networks.segmenter import LargeFovHead, Segmenter
from aeft_lib.parts.difference import Detector
from aeft_lib.parts.in_step import posterior

CELL = 4  # pixels of the image along a cell of the detectors' maps
TAGGED = 1e-4  # what a tagged class has of every pixel at least


class Head(NamedTuple):
    """A head at the detectors' size.  logits: (B, K + 1, h, w).  features: (B, C, h, w)."""

    logits: Tensor
    features: Tensor


class DifferenceNetwork(Segmenter):
    """A `Segmenter` with a detector, and in the dynamic stage a second head and detector."""

    def __init__(
        self,
        *,
        backbone: nn.Module,
        num_classes: int,
        hidden: int,
        width: int,
        norm: str,
        heads: int,
    ) -> None:
        super().__init__(backbone=backbone, num_classes=num_classes, hidden=hidden)
        dilation, channels = self.head.conv6.dilation[0], backbone.out_channels
        sizes = {"in_channels": channels, "num_classes": num_classes, "hidden": hidden}
        self.others = nn.ModuleList(
            LargeFovHead(**sizes, dilation=dilation) for _ in range(heads - 1)
        )
        reads = (hidden, backbone.tap_channels[0])
        sizes = {"channels": reads, "classes": num_classes + 1, "width": width, "norm": norm}
        self.detectors = nn.ModuleList(Detector(**sizes) for _ in range(heads))

    def read(self, images: Tensor) -> tuple[list[Head], list[Tensor]]:
        """Every head, and what its detector reads: its own features and low-level ones, detached.

        images: (B, 3, H, W); maps are H / 4 x W / 4.
        """
        size = tuple(side // CELL for side in images.shape[-2:])
        taps = self.backbone.taps(images)
        low, heads, seen = at_size(taps[0], size), [], []
        for head in (self.head, *self.others):
            features = head.conv6(taps[-1]).relu()
            logits = F.interpolate(head.conv7(features), size=size, mode="bilinear")
            heads.append(Head(logits, at_size(features, size)))
            seen.append(torch.cat([heads[-1].features, low], dim=1).detach())
        return heads, seen


def at_size(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, C, H, W) at a size: the mean of finer ones, bilinear of coarser ones."""
    if maps.shape[-1] >= size[1] and maps.shape[-2] >= size[0]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def with_background(tags: Tensor) -> Tensor:
    """(B, K) -> (B, K + 1): the background is in every image."""
    return F.pad(tags.float(), (1, 0), value=1.0)


def tagged_scores(logits: Tensor, tags: Tensor) -> Tensor:
    """Probabilities of classes with a tag, (B, K + 1, h, w): ``softmax y + 1e-4 y``."""
    present = with_background(tags)[:, :, None, None]
    return (logits.softmax(dim=1) + TAGGED) * present


def tagged_argmax(logits: Tensor, tags: Tensor) -> Tensor:
    """What is predicted of an image with its tags, (B, h, w) uint8."""
    return tagged_scores(logits, tags).argmax(dim=1).to(torch.uint8)


@torch.no_grad()
def crf_masks(logits: Tensor, tags: Tensor, pictures: Tensor, iterations: int) -> Tensor:
    """A0, (B, h, w) uint8: a CRF on the softmax over the present classes of every image.

    logits: (B, K + 1, h, w).  pictures: (B, 3, h, w) uint8.
    """
    masks = []
    for own, present, picture in zip(logits, with_background(tags), pictures, strict=True):
        classes = present.nonzero()[:, 0]
        scores = posterior(picture, own[classes].softmax(dim=0), iterations=iterations)
        masks.append(classes[scores.argmax(dim=0)].to(torch.uint8))
    return torch.stack(masks)
