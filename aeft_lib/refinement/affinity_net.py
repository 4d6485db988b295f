"""AffinityNet (Ahn and Kwak, CVPR 2018): features that are close for pixels of the same object.

Three taps of a backbone are projected by 1 x 1 convolutions, joined and mixed by a fourth;
`affinity.pair_affinity` compares the result pixel by pixel::

    f = elu(W9 [elu(W3 tap_1); elu(W4 tap_2); elu(W5 tap_3)])

Departures from the reference: on a backbone whose taps differ in stride the projected maps are
brought, bilinearly, to the finest.  On ResNet38d all have stride 8 and the numbers are the
reference's (a golden test bounds them at 1e-4).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.refinement import affinity

WIDTHS = (64, 128, 256)


class AffinityNet(nn.Module):
    """Images in the backbone's range (B, 3, H, W) -> features (B, 448, h, w) of its finest grid.

    backbone: has ``taps`` and ``tap_channels`` (`networks.backbone`).  The four convolutions carry
        the reference's names.
    """

    def __init__(self, *, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        names = ("f8_3", "f8_4", "f8_5")
        for name, inner, outer in zip(names, backbone.tap_channels, WIDTHS, strict=True):
            layer = nn.Conv2d(inner, outer, kernel_size=1, bias=False)
            nn.init.kaiming_normal_(layer.weight)
            self.add_module(name, layer)
        self.f9 = nn.Conv2d(sum(WIDTHS), sum(WIDTHS), kernel_size=1, bias=False)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def forward(self, images: Tensor) -> Tensor:
        taps = self.backbone.taps(images)
        size = max(tap.shape[-2:] for tap in taps)
        layers = (self.f8_3, self.f8_4, self.f8_5)
        projected = [F.elu(layer(tap)) for layer, tap in zip(layers, taps, strict=True)]
        return F.elu(self.f9(torch.cat([_resized(maps, size) for maps in projected], dim=1)))

    @torch.inference_mode()
    def affinity(
        self, images: Tensor, radius: int = affinity.RADIUS
    ) -> list[affinity.SparseAffinity]:
        """The affinity matrix of every image on its grid, at its `affinity.effective_radius`."""
        features = self(images)
        size = tuple(features.shape[-2:])
        radius = affinity.effective_radius(size, radius)
        values = affinity.pair_affinity(features, radius)
        return [affinity.sparse_affinity(of_image, size, radius) for of_image in values]


def _resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
