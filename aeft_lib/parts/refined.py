"""A CAM classifier with a refinement head beside its CAM, and how seeds are read of it.

SEAM's skeleton, which CPN has too (`RefinedMethod`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from aeft_lib.engine.fields import choice
from aeft_lib.engine.samples import Batch, forward
from aeft_lib.networks.tapped import Tapped
from aeft_lib.paper.classifier import CamClassifier, CamHead, CamMethod
from aeft_lib.paper.gpp import GlobalAveragePooling
from aeft_lib.parts.map_losses import lowest_mean
from aeft_lib.parts.pixel_correlation import PixelCorrelation, stretched_maps
from aeft_lib.stages.method import Method, Reading
from aeft_lib.stages.reading import MultiScale

EPS = 1e-5
SIZES = ("map", "image")


class RefinedOutput(NamedTuple):
    """cam: (B, K, h, w) signed.  logits: (B, K).  attention: None.

    taps: (B, S, h, w), what the refinement reads of the image, detached.
    """

    cam: Tensor
    logits: Tensor
    attention: None
    taps: Tensor


class RefinedClassifier(CamClassifier):
    """backbone: hands on its taps.  refinement: (maps, taps) -> maps, such as `PixelCorrelation`.

    unused: channels before the CAM's that the head has and nothing reads, as in SEAM's release.
    """

    def __init__(
        self, *, backbone: Tapped, refinement: nn.Module, num_classes: int, unused: int = 0
    ) -> None:
        pooling = GlobalAveragePooling()
        super().__init__(backbone=backbone, pooling=pooling, num_classes=num_classes)
        if unused:
            channels = backbone.out_channels
            self.head = CamHead(in_channels=channels, num_classes=unused + num_classes)
        self.refinement = refinement

    def forward(self, images: Tensor) -> RefinedOutput:
        """Images (B, 3, H, W) in the backbone's range, in one pass, also where taps are trained."""
        return self._output(*self.backbone.tapped(images))

    def from_trunk(self, features: Tensor) -> RefinedOutput:
        """As `forward`, from cached features with taps (`Tapped.trunk`)."""
        features = features.to(self.head.fc8.weight.dtype)
        return self._output(self.backbone.tail(features), self.backbone.taps_of(features))

    def cam(self, features: Tensor) -> Tensor:
        """The signed CAM (B, K, h, w) alone."""
        return super().cam(features)[:, -self.num_classes :]

    def refined(self, maps: Tensor, output: RefinedOutput) -> Tensor:
        """Maps (B, K + 1, h, w), refined by what the image looks like."""
        return self.refinement(maps, output.taps)

    def _output(self, features: Tensor, taps: Tensor) -> RefinedOutput:
        cam = self.head(features)[:, -self.num_classes :]
        return RefinedOutput(cam, self.pooling(cam).logits, None, taps)


@dataclass(frozen=True)
class RefinedMethod(CamMethod):
    """A method with a refinement.

    logit_from: "map", or the map at the "image"'s size.  compared_at: maps are compared at the size
    of the "map" or of the "image".  background_channel: the head has one channel more, which
    nothing trains.  l_min: SEAM's L_min is a term.  tags_in_refinement: it sees tagged classes
    alone.
    """

    logit_from: str = "map"
    compared_at: str = "map"
    background_channel: bool = False
    l_min: bool = False
    tags_in_refinement: bool = True
    needs = ("images", "taps")

    def __post_init__(self) -> None:
        choice(self, logit_from=SIZES, compared_at=SIZES)
        switches = ("background_channel", "l_min", "tags_in_refinement")
        choice(self, **dict.fromkeys(switches, (False, True)))

    def correlation(self, tap_channels: tuple[int, int]) -> nn.Module:
        """The refinement: (maps, taps) -> maps."""
        return PixelCorrelation(tap_channels=tap_channels)

    def build(self, backbone: nn.Module, num_classes: int) -> RefinedClassifier:
        """The classifier with its refinement; random weights come from the global stream."""
        return RefinedClassifier(
            backbone=backbone,
            refinement=self.correlation(backbone.tap_channels),
            num_classes=num_classes,
            unused=int(self.background_channel),
        )

    def cam(self, network: RefinedClassifier, batch: Batch) -> Tensor:
        """R of the K classes, (B, K, h, w), not negative.  batch: its tags, where it has some."""
        return self.read(network, batch)[0]

    def read(
        self, network: RefinedClassifier, batch: Batch, refined: bool = True
    ) -> tuple[Tensor, Tensor]:
        """R, or the signed C, (B, K, h, w), and the tag logits (B, K)."""
        output = forward(network, batch)
        maps = self.refined(network, output, batch.tags)[:, 1:] if refined else output.cam
        return maps, output.logits

    def refined(
        self, network: RefinedClassifier, output: RefinedOutput, tags: Tensor | None
    ) -> Tensor:
        """R, (B, K + 1, h, w), of a view."""
        tags = tags if self.tags_in_refinement else None
        return network.refined(stretched_maps(output.cam, tags), output)


def lowest_of(refined: Tensor, tags: Tensor) -> Tensor:
    """L_min of R, (B, K + 1, H, W), of the tagged classes, (B,)."""
    return lowest_mean(refined[:, 1:] * tags[:, :, None, None].to(refined.dtype))


def view(network: nn.Module, images: Tensor) -> Any:
    """The network on another view of the batch's scenes: on images, never on the cache."""
    return forward(network, Batch(images=images))


@dataclass(frozen=True)
class RefinedMaps(MultiScale):
    """Reads refined maps over scales and mirror images; each class is stretched to 0..1.

    Tags are known when seeds are read, so the refinement may use them.  refined: False reads the
    CAM before its refinement, in the same way.
    """

    refined: bool = True

    def from_images(
        self,
        method: Method,
        network: nn.Module,
        images: Sequence[np.ndarray],
        class_ids: Sequence[Tensor],
        precision: str = "fp32",
    ) -> list[Reading]:
        """As `MultiScale`."""
        told = _Told(method, class_ids, self.refined)
        return self._stretched(
            super().from_images(told, network, images, class_ids, precision), told
        )

    def from_features(
        self,
        method: Method,
        network: nn.Module,
        features: Mapping[float, Tensor],
        class_ids: Sequence[Tensor],
        size: tuple[int, int],
        precision: str = "fp32",
    ) -> list[Reading]:
        """As `MultiScale`."""
        told = _Told(method, class_ids, self.refined)
        readings = super().from_features(told, network, features, class_ids, size, precision)
        return self._stretched(readings, told)

    def _stretched(self, readings: Sequence[Reading], told: "_Told") -> list[Reading]:
        logits = told.logits[self.scales.index(1)]
        return [
            Reading(stretched(cam).clamp(min=0), own)
            for (cam, _), own in zip(readings, logits, strict=True)
        ]


class _Told:
    """A method that is told the tags of a batch; logits: of the plain images, pass by pass."""

    def __init__(self, method: Method, class_ids: Sequence[Tensor], refined: bool) -> None:
        self.method, self.class_ids, self.refined = method, class_ids, refined
        self.logits: list[Tensor] = []

    def cam(self, network: nn.Module, batch: Batch) -> Tensor:
        where = next(network.parameters()).device
        tags = torch.zeros(len(self.class_ids), network.num_classes, device=where)
        for own, ids in zip(tags, self.class_ids, strict=True):
            own[ids] = 1
        # Plain and mirrored take turns.
        batch = batch._replace(tags=tags.repeat_interleave(2, dim=0))
        maps, logits = self.method.read(network, batch, self.refined)
        self.logits.append(logits[::2].float().cpu())
        return maps


def stretched(total: Tensor) -> Tensor:
    """Each class's map, (K, H, W) and not negative, from its minimum to its maximum: at most 1.

    ``(s - min - 1e-5) / (max - min + 1e-5)``, where s is 0 below min + 1e-5, so that it is just
    below 0 there; a class that never fires is -1 everywhere, as in SEAM's release.
    """
    low, high = total.amin(dim=(1, 2), keepdim=True), total.amax(dim=(1, 2), keepdim=True)
    kept = torch.where(total < low + EPS, 0.0, total)
    return (kept - low - EPS) / (high - low + EPS)
