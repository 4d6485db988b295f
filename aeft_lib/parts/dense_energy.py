"""Dense energy of a segmentation: probabilities that differ where the image does not (RRM).

Over all pairs of pixels of an image, with the kernel k of places and colours and a gate g::

    E = -sum_k sum_i g_i S_ik (k S)_ik,      k_ij = exp(-(|xy|^2 / s_xy^2 + |rgb|^2 / s_rgb^2) / 2)

The kernel is that of the permutohedral lattice without its normalisation, about half of the exact
sum, as in the authors' release (zbf1991/RRM).  Its gradient there is *defined*, ``-2 g (k S)``: as
if k were symmetric and g in front of either S.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from aeft_lib.maps.labels import VOID
from aeft_lib.refinement.dense_crf import Lattice

GRADIENTS = ("defined", "exact")


class Kernel(Lattice):
    """The lattice's kernel as a plain sum over the points: nothing is normalised."""

    def _normalise(self) -> None:
        """Left out."""


class Halved(NamedTuple):
    """What the energy sees, at half the size: h = H // 2, w = W // 2.

    probabilities: (B, L, h, w), 0 in padding.  pictures: (B, 3, h, w) in 0..255.
    gate: (B, h, w), constant.
    """

    probabilities: Tensor
    pictures: Tensor
    gate: Tensor


def halved(logits: Tensor, pictures: Tensor, labels: Tensor, valid: Tensor) -> Halved:
    """All of a batch at half its size; the gate is 1 on void pixels, elsewhere what is not certain.

    logits: (B, L, H, W).  pictures: (B, 3, H, W) uint8 RGB.  labels: (B, H, W), 255 void.
    valid: (B, H, W), 0 in padding.
    """
    size = [side // 2 for side in logits.shape[-2:]]
    options = {"mode": "bilinear", "align_corners": False}
    inside, marks = (_nearest(m[:, None], size)[:, 0] for m in (valid, labels))
    probabilities = F.interpolate(logits.softmax(dim=1), size=size, **options)
    probabilities = probabilities * inside[:, None].to(probabilities.dtype)
    sure = probabilities.detach().amax(dim=1)
    gate = torch.where(marks == VOID, 1.0, (inside - sure).clamp(min=0))
    return Halved(probabilities, _nearest(pictures, size), gate.to(probabilities.dtype))


def dense_energy(
    seen: Halved, *, s_xy: float, s_rgb: float, gradient: str = GRADIENTS[0]
) -> Tensor:
    """E of every image, (B,), not positive.

    s_xy: in pixels of the half-size maps.  s_rgb: in grey levels.  gradient: "defined", see the
    module, or "exact", ``-(g (k S) + k (g S))``, for which k is taken as symmetric.
    Raises ValueError for another gradient.
    """
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}, got {gradient!r}")
    given = zip(seen.probabilities, seen.pictures, seen.gate, strict=True)
    return torch.stack(
        [_Energy.apply(s, kernel_of(p, s_xy, s_rgb), g, gradient) for s, p, g in given]
    )


def kernel_of(picture: Tensor, s_xy: float, s_rgb: float) -> Kernel:
    """The kernel of a picture (3, h, w) in 0..255."""
    height, width = picture.shape[-2:]
    where = picture.device
    y, x = torch.meshgrid(
        torch.arange(height, device=where), torch.arange(width, device=where), indexing="ij"
    )
    places = torch.stack([x, y], dim=-1).reshape(-1, 2).float()
    colours = picture.float().flatten(1).T
    return Kernel(torch.cat([places / s_xy, colours / s_rgb], dim=1))


def filtered(kernel: Kernel, maps: Tensor) -> Tensor:
    """The kernel times maps (L, h, w); in float32, as the lattice is."""
    rows = maps.detach().float().flatten(1).T.contiguous()
    return kernel.apply(rows).T.reshape(maps.shape).to(maps.dtype)


class _Energy(torch.autograd.Function):
    """E of one image, a scalar, with its gradient in the probabilities alone."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, kernel: Kernel, gate: Tensor, gradient: str) -> Tensor:
        first = gate * filtered(kernel, s)
        other = first if gradient == "defined" else filtered(kernel, gate * s)
        ctx.save_for_backward(-(first + other))
        return -(s * first).sum()

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return above * slope, None, None, None


def _nearest(maps: Tensor, size: list[int]) -> Tensor:
    return F.interpolate(maps.float(), size=size, mode="nearest")
