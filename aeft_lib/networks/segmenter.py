"""The segmentation network of the last stage: DeepLab-LargeFOV (Chen et al., 2015) on any backbone.

Not in the reference, whose author points to the setting of MCTformer: two 3 x 3 convolutions with
dilation 12 at stride 8, 4096 -> 512 -> K + 1, bilinear to image size.  On a backbone of another
stride the dilation keeps the field of view, 96 pixels from the centre to the outer taps.
"""

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.engine.fields import whole
from aeft_lib.engine.samples import Batch
from aeft_lib.maps.labels import VOID

REACH = 96  # pixels: dilation 12 at stride 8


class LargeFovHead(nn.Module):
    """Features (B, C, h, w) -> logits (B, K + 1, h, w), background first."""

    def __init__(
        self, *, in_channels: int, num_classes: int, dilation: int, hidden: int = 512
    ) -> None:
        super().__init__()
        options = {"kernel_size": 3, "padding": dilation, "dilation": dilation}
        self.conv6 = nn.Conv2d(in_channels, hidden, **options)
        self.conv7 = nn.Conv2d(hidden, num_classes + 1, **options)
        for layer in (self.conv6, self.conv7):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv7(self.conv6(features).relu())


class Segmenter(nn.Module):
    """Images in the backbone's range (B, 3, H, W) -> logits (B, K + 1, H, W), background first.

    backbone: has ``trunk``, ``tail``, ``out_channels`` and ``stride`` (`networks.backbone`).
    num_classes: K, without background.
    """

    def __init__(self, *, backbone: nn.Module, num_classes: int, hidden: int = 512) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = backbone
        sizes = {"in_channels": backbone.out_channels, "num_classes": num_classes}
        dilation = max(1, REACH // backbone.stride)
        self.head = LargeFovHead(**sizes, dilation=dilation, hidden=hidden)

    def forward(self, images: Tensor) -> Tensor:
        size = images.shape[-2:]
        return F.interpolate(self.coarse(images), size=size, mode="bilinear", align_corners=False)

    def coarse(self, images: Tensor) -> Tensor:
        """Logits (B, K + 1, h, w) at the backbone's stride."""
        return self.head(self.backbone(images))


@dataclass(frozen=True)
class LargeFov:
    """A segmentation network and its loss, as a value.

    hidden: channels of its head, 512 in the paper; 0 is the profile's number.
    """

    hidden: int = 0

    def __post_init__(self) -> None:
        whole(self, "hidden")

    def fitted(self, hidden: int) -> "LargeFov":
        """With the profile's number of channels where it names none."""
        return self if self.hidden else replace(self, hidden=hidden)

    def build(self, backbone: nn.Module, num_classes: int) -> Segmenter:
        """The network on a backbone, its head drawn from the global random stream."""
        return Segmenter(backbone=backbone, num_classes=num_classes, hidden=self.hidden or 512)

    def measure(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sum and count of the batch's known pixels, (1,) each."""
        summed, known = segmentation_sum(network(batch.images).float(), batch.labels)
        return {"summed": summed[None], "known": known[None]}

    def combine(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean cross-entropy over all known pixels of a batch."""
        known = measures["known"].sum().clamp(min=1)
        return {"segmentation": measures["summed"].sum() / known}


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, the mean over all pixels that are not void; 0 where all are.

    Errors as `segmentation_sum`.
    """
    summed, known = segmentation_sum(logits, labels)
    return summed / known.clamp(min=1)


def segmentation_sum(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over pixels that are not void, and their number: parts add up.

    logits: (B, K + 1, H, W).  labels: (B, H, W) integer, 0 background, class + 1, 255 void.
    Raises ValueError for another shape; on a CPU for a label beyond K too (files are checked as
    they are read, and a check in every step would make a GPU wait).
    """
    shape = (len(logits), *logits.shape[2:])
    if logits.ndim != 4 or labels.shape != shape or labels.is_floating_point():
        rule = "logits (B, K + 1, H, W) and integer labels (B, H, W) are needed"
        given = f"{tuple(logits.shape)} and {labels.dtype} {tuple(labels.shape)}"
        raise ValueError(f"{rule}, got {given}")
    try:
        summed = F.cross_entropy(logits, labels.long(), ignore_index=VOID, reduction="sum")
    except IndexError as error:
        rule = f"labels must lie in 0..{logits.shape[1] - 1} or be void ({VOID})"
        raise ValueError(f"{rule}: {error}") from error
    return summed, (labels != VOID).sum()
