"""The segmentation network of the last stage: DeepLab-LargeFOV (Chen et al., 2015) on any of our backbones.

Not in the reference, whose author points to the setting of MCTformer: two 3 x 3 convolutions with dilation 12 at stride 8,
4096 -> 512 -> K + 1, bilinear to image size.  On a backbone of another stride the dilation keeps the same field of view, 96
pixels from the centre to the outer taps.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.maps.labels import VOID

REACH = 96  # pixels: dilation 12 at stride 8


class LargeFOV(nn.Module):
    """Features (B, C, h, w) -> logits (B, K + 1, h, w), background first."""

    def __init__(self, *, in_channels: int, num_classes: int, dilation: int, hidden: int = 512) -> None:
        super().__init__()
        self.conv6 = nn.Conv2d(in_channels, hidden, kernel_size=3, padding=dilation, dilation=dilation)
        self.conv7 = nn.Conv2d(hidden, num_classes + 1, kernel_size=3, padding=dilation, dilation=dilation)
        for layer in (self.conv6, self.conv7):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv7(self.conv6(features).relu())


class Segmenter(nn.Module):
    """Images in the backbone's range (B, 3, H, W) -> logits (B, K + 1, H, W), background first.

    backbone: has ``trunk``, ``tail``, ``out_channels`` and ``stride`` (see `aeft_lib.backbones`).  num_classes: K, without
    background.
    """

    def __init__(self, *, backbone: nn.Module, num_classes: int, hidden: int = 512) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = backbone
        dilation = max(1, REACH // backbone.stride)
        self.head = LargeFOV(in_channels=backbone.out_channels, num_classes=num_classes, dilation=dilation, hidden=hidden)

    def forward(self, images: Tensor) -> Tensor:
        coarse = self.head(self.backbone(images))
        return F.interpolate(coarse, size=images.shape[-2:], mode="bilinear", align_corners=False)


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, the mean over all pixels that are not void; 0 where all are.  Errors as `segmentation_sum`."""
    summed, known = segmentation_sum(logits, labels)
    return summed / known.clamp(min=1)


def segmentation_sum(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over all pixels that are not void, and how many there are: parts of a batch add up.

    logits: (B, K + 1, H, W).  labels: (B, H, W) integer, 0 background, class + 1, 255 void.
    Raises ValueError for another shape; on a CPU for a label beyond K too (files are checked as they are read, and a look at
    the labels in every step would make a GPU wait).
    """
    if logits.ndim != 4 or labels.shape != (len(logits), *logits.shape[2:]) or labels.is_floating_point():
        raise ValueError(
            f"logits (B, K + 1, H, W) and integer labels (B, H, W) are needed, got {tuple(logits.shape)} and "
            f"{labels.dtype} {tuple(labels.shape)}"
        )
    try:
        summed = F.cross_entropy(logits, labels.long(), ignore_index=VOID, reduction="sum")
    except IndexError as error:
        raise ValueError(f"labels must lie in 0..{logits.shape[1] - 1} or be void ({VOID}): {error}") from error
    return summed, (labels != VOID).sum()


@torch.inference_mode()
def multi_scale_probabilities(network: nn.Module, images: Tensor, scales: Sequence[float]) -> Tensor:
    """Mean of the softmax over scales, each plain and mirrored, (B, K + 1, H, W), sums to 1 over classes.

    network: images -> logits at image size.  images: (B, 3, H, W) in the network's range.
    Raises ValueError for no scales, or one that is not positive.
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales must be positive, and at least one, got {tuple(scales)}")
    size, total = images.shape[-2:], 0
    for scale in scales:
        sides = [max(1, round(side * scale)) for side in size]
        scaled = F.interpolate(images, size=sides, mode="bilinear", align_corners=False, antialias=scale < 1)
        for mirrored in (False, True):
            logits = network(scaled.flip(-1) if mirrored else scaled)
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
            total = total + (logits.flip(-1) if mirrored else logits).softmax(dim=1)
    return total / (2 * len(scales))
