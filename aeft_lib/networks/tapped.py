"""A backbone that hands on, beside its features, what a refinement head reads of an image.

That is the image itself and the first two of the backbone's three taps, at the size of its map.
Where the taps lie in the frozen trunk they are cached with its features, as further channels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.networks.backbone import BackboneSpec

PROBE = 64  # side of an image that shows whether taps are trained


class Tapped(nn.Module):
    """A backbone with taps: its ``trunk`` gives the plain trunk's channels, then the taps'.

    tap_channels: of the two taps; before them come the three of the image.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.plain = backbone
        self.tap_channels = tuple(backbone.tap_channels[:2])
        self.out_channels, self.stride = backbone.out_channels, backbone.stride
        self.normalise = backbone.normalise
        self._frozen: bool | None = None

    @property
    def checkpointing(self) -> bool:
        """As of the plain backbone."""
        return self.plain.checkpointing

    @checkpointing.setter
    def checkpointing(self, wanted: bool) -> None:
        self.plain.checkpointing = wanted

    def forward(self, images: Tensor) -> Tensor:
        """Images -> features, without taps."""
        return self.plain(images)

    def tapped(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, h, w), and the taps (B, 3 + sum of tap_channels, h, w), detached."""
        low, high, features = self.plain.taps(images)
        return features, _stacked(images, (low, high), features.shape[-2:])

    def trunk(self, images: Tensor) -> Tensor:
        """Features of the frozen trunk with the taps as further channels, to be cached.

        Raises ValueError where the taps are trained, or the trunk's map has another size.
        """
        if self._frozen is None:
            self._frozen = self._taps_are_frozen(images)
        features, taps = self.plain.trunk(images), self.tapped(images)[1]
        if not self._frozen or features.shape[-2:] != taps.shape[-2:]:
            raise ValueError(
                f"{type(self.plain).__name__}: its taps are trained, so they cannot be cached; "
                "train fewer stages, or on views of photos"
            )
        return torch.cat([features, taps], dim=1)

    def tail(self, packed: Tensor) -> Tensor:
        """What `trunk` gave -> features (B, C, h, w)."""
        return self.plain.tail(packed[:, : packed.shape[1] - self._width])

    def taps_of(self, packed: Tensor) -> Tensor:
        """The taps of what `trunk` gave."""
        return packed[:, packed.shape[1] - self._width :]

    @property
    def _width(self) -> int:
        return 3 + sum(self.tap_channels)

    def _taps_are_frozen(self, images: Tensor) -> bool:
        probe = images.new_zeros(1, 3, PROBE, PROBE)
        with torch.enable_grad():
            return not any(tap.requires_grad for tap in self.plain.taps(probe)[:2])


def _stacked(images: Tensor, taps: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
    """Colours by bilinear, corners aligned, as SEAM has them; finer taps by their mean."""
    colours = F.interpolate(images, size=size, mode="bilinear", align_corners=True)
    maps = [F.adaptive_avg_pool2d(tap, size) for tap in taps]
    return torch.cat([colours, *maps], dim=1).detach()


@dataclass(frozen=True)
class TappedSpec:
    """A backbone's spec, with its taps handed on."""

    plain: BackboneSpec

    @property
    def stride(self) -> int:
        """Of the plain backbone."""
        return self.plain.stride

    @property
    def weights(self) -> str:
        """Of the plain backbone."""
        return self.plain.weights

    def build(self, **options: tuple[float, float]) -> Tapped:
        """The backbone.  options: of the plain spec's `build`, whose errors it raises."""
        return Tapped(self.plain.build(**options))

    def check(self) -> None:
        """As the plain spec."""
        self.plain.check()
