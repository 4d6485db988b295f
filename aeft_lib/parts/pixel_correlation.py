"""Pixel correlation, SEAM's refinement of a CAM by what looks alike (PCM; Wang et al., CVPR 2020).

    A_ij = relu(<g_i, g_j> / (|g_i| |g_j|)),    r_j = sum_i m_i A_ij / sum_i A_ij

g are features of a pixel: colour and two taps of the backbone, each through a 1x1 convolution.  m
is the CAM, stretched.  No gradient reaches the backbone: taps and m are constants, so a loss on r
trains the three convolutions alone.
Shapes: B images, K classes, N = h w pixels; channel 0 of K + 1 is the background.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.parts.map_losses import foreground_maxima, with_background

EPS = 1e-5
WIDTHS = (64, 128)  # the authors', for taps of 512 and 1024 channels
COLOURS = 3
HALVES = (torch.bfloat16, torch.float16)


class PixelCorrelation(nn.Module):
    """Three 1x1 convolutions without biases, and the weighted mean.

    tap_channels: of the two taps.  widths: what each is brought to; for a tap of fewer channels the
        largest power of two that it holds (40 and 112 channels: 32 and 64).
    """

    def __init__(self, *, tap_channels: tuple[int, int], widths: tuple[int, int] = WIDTHS) -> None:
        super().__init__()
        self.tap_channels = tuple(tap_channels)
        widths = [
            width if width <= given else 1 << given.bit_length() - 1
            for given, width in zip(tap_channels, widths, strict=True)
        ]
        self.f8_3, self.f8_4 = (
            nn.Conv2d(given, width, kernel_size=1, bias=False)
            for given, width in zip(tap_channels, widths, strict=True)
        )
        self.f9 = nn.Conv2d(COLOURS + sum(widths), sum(widths), kernel_size=1, bias=False)
        for layer in (self.f8_3, self.f8_4):
            nn.init.kaiming_normal_(layer.weight)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def stack(self, taps: Tensor) -> Tensor:
        """What f9 reads, (B, 3 + widths, h, w).  taps: (B, 3 + tap_channels, h, w), as `Tapped`."""
        taps = taps.detach().to(self.f9.weight.dtype)
        colours, low, high = taps.split([COLOURS, *self.tap_channels], dim=1)
        return torch.cat([colours, self.f8_3(low).relu(), self.f8_4(high).relu()], dim=1)

    def forward(self, maps: Tensor, taps: Tensor) -> Tensor:
        """r, (B, K + 1, h, w), not negative.  maps: m of `stretched_maps`."""
        return correlated(maps, self.f9(self.stack(taps)))


def correlated(maps: Tensor, features: Tensor) -> Tensor:
    """r: each pixel's mean of the maps, weighted by the likeness of its features to the others'.

    maps: (B, M, h, w).  features: (B, C, h, w), g.  Raises ValueError where B or sizes differ.
    """
    if maps.shape[0] != features.shape[0] or maps.shape[2:] != features.shape[2:]:
        shapes = f"{tuple(maps.shape)} and {tuple(features.shape)}"
        raise ValueError(f"maps and features must have one batch and size, got {shapes}")
    with torch.autocast(features.device.type, enabled=False):  # half precision has no 1e-5
        g = features.to(maps.dtype).flatten(2)
        g = g / (g.norm(dim=1, keepdim=True) + EPS)
        affinity = torch.bmm(g.transpose(1, 2), g).relu()  # (B, N, N), symmetric
        affinity = affinity / (affinity.sum(dim=1, keepdim=True) + EPS)
        return torch.bmm(maps.flatten(2), affinity).reshape_as(maps)


def stretched_maps(cam: Tensor, tags: Tensor | None = None) -> Tensor:
    """m, (B, K + 1, h, w) in 0..1, detached: each class over its peak, and the background.

    ``fg = relu(relu(f) - 1e-5) / (max + 1e-5)``,  ``bg = 1 - max fg``;  then fg stays only where it
    is its pixel's largest class.  cam: (B, K, h, w) signed.
    tags: (B, K), 0 or 1: classes that are not in the image are 0 before the background is formed;
        None, the release: they compete at every pixel.
    """
    positive = cam.detach().relu()
    positive = positive.float() if positive.dtype in HALVES else positive
    foreground = F.relu(positive - EPS) / (positive.amax(dim=(2, 3), keepdim=True) + EPS)
    if tags is not None:
        foreground = foreground * tags[:, :, None, None].to(foreground.dtype)
    return foreground_maxima(with_background(foreground))
