"""Erasing as a triplet, the paper's second idea: masks, embeddings, and partners to compare.

Three images (poster, middle column): the anchor ``I_A``; the positive ``I_P``, which is the anchor
with its most active region erased; the negative ``I_N``, an image that shares no class with the
anchor.  What the reference does otherwise is an argument here, and so is what the authors' first
release did (`triplet.FIRST_RELEASE`).

Shapes: B images, K classes (no background), H x W image, h x w feature map.  Tags are (B, K), 0 or
1, of any type.  Nothing here waits for the device: no ``.item()``, no boolean indexing, no Python
loop over samples.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
KEEPS = ("ring", "all")
LONELY = ("leave_out", "borrow")


class Erasure(NamedTuple):
    """A batch after erasing.

    images: (B, 3, H, W), the masked images I_P, in the range of the images given.
    mask: (B, 1, H, W) in 0..1, what the images were multiplied by.
    foreground: (B, 1, H, W) in 0..1, the largest normalised activation of any tagged class.
    """

    images: Tensor
    mask: Tensor
    foreground: Tensor


class Partners(NamedTuple):
    """index: (B,) int64, the negative sample of each anchor.  valid: (B,) bool, False without."""

    index: Tensor
    valid: Tensor


def max_norm(maps: Tensor) -> Tensor:
    """Scale the positive part of every map to 0..1 over its own positions.

    ``z = relu(maps);  out = relu(z - min - 1e-5) / (max - min + 1e-5)``

    maps: (B, K, h, w) signed.  Returns (B, K, h, w) in 0..1, zeros for a constant or all-negative
    map.  Raises ValueError where maps is not four-dimensional.  Source: AEFT's reference.

    >>> max_norm(torch.tensor([[[[-1.0, 0.0], [1.0, 2.0]]]])).round(decimals=3).flatten().tolist()
    [0.0, 0.0, 0.5, 1.0]
    """
    if maps.ndim != 4:
        raise ValueError(f"maps must be (B, K, h, w), got shape {tuple(maps.shape)}")
    z = maps.relu()
    low, high = z.amin(dim=(2, 3), keepdim=True), z.amax(dim=(2, 3), keepdim=True)
    return (z - low - EPS).relu() / (high - low + EPS)


def erase(
    images: Tensor,
    cam: Tensor,
    tags: Tensor,
    *,
    threshold: float = 0.6,
    keep: str = "ring",
    gradient: bool = False,
) -> Erasure:
    """Erase the most active region of every image, as the anchor's own CAM sees it (paper Eq. 7).

    ``A = max_norm(up(relu(f))) y;   A_fg = max over classes;   m = A_fg [A_fg < t_H];   I_P = I m``

    images: (B, 3, H, W), normalised, so that zero is a mean colour.
    cam: (B, K, h, w) signed, up-sampled bilinearly.
    threshold: t_H, 0..1; 0 erases everything, 1 nothing, or just the peaks where a CAM is large.
    keep: "ring" is Eq. 7: the active region *and* the background go, the ring between stays, dimmed
        by its activation.  "all" is the first release: everything below the threshold stays as it
        is, the background too: ``m = [A_fg < t_H]``.
    gradient: let gradients flow through the mask into the CAM, as the reference does; only "ring"
        has any.
    Raises ValueError for shapes that do not fit, a threshold outside 0..1 or an unknown `keep`.
    """
    check_threshold(threshold)
    if keep not in KEEPS:
        raise ValueError(f"keep must be one of {', '.join(KEEPS)}, got {keep!r}")
    if images.ndim != 4 or len(images) != len(cam):
        raise ValueError(
            f"images must be (B, 3, H, W) for B={len(cam)} CAMs, got shape {tuple(images.shape)}"
        )
    check_tags(cam, tags)
    cam = cam if gradient else cam.detach()
    full = F.interpolate(cam.relu(), size=images.shape[-2:], mode="bilinear", align_corners=False)
    foreground = (max_norm(full) * tags[:, :, None, None].to(cam.dtype)).amax(dim=1, keepdim=True)
    below = (foreground < threshold).to(cam.dtype)
    mask = foreground * below if keep == "ring" else below
    return Erasure(images * mask, mask, foreground)


def embeddings(maps: Tensor, tags: Tensor, *, unit: bool = False) -> Tensor:
    """Where anchor and positive are compared: ``e = GAP(relu(maps)) y``, (B, K), not negative.

    maps: (B, K, h, w) signed: the GPP layer's attention (the paper's metric space), or the CAM.
    unit: the L2 norm over all K classes is made 1 before the tags are applied, as in the first
        release, so that a common factor of the maps does not count.
    Raises ValueError where maps and tags differ in B or K.
    """
    check_tags(maps, tags)
    pooled = maps.relu().mean(dim=(2, 3))
    return (F.normalize(pooled, dim=1) if unit else pooled) * tags.to(maps.dtype)


def residual_region(cam: Tensor, tags: Tensor, *, threshold: float = 0.2) -> Tensor:
    """Where the tagged classes are hardly active: ``max_norm(f) y < t_L``, (B, K, h, w) bool.

    cam: (B, K, h, w) signed.  threshold: t_L, 0..1.  The whole map for classes without a tag.
    """
    check_threshold(threshold)
    check_tags(cam, tags)
    return max_norm(cam) * tags[:, :, None, None].to(cam.dtype) < threshold


def region_embeddings(maps: Tensor, region: Tensor | None = None) -> Tensor:
    """Where anchor and negative are compared: the mean of g over a region, (B, K) in -1..1.

    ``g = maps / (max|maps| + 1e-5)``.  maps: (B, K, h, w) signed.
    region: (B, K, h, w) bool; None is the whole map; an empty region gives 0.
    """
    scaled = maps / (maps.abs().amax(dim=(2, 3), keepdim=True) + EPS)
    inside = torch.ones_like(maps) if region is None else region.to(maps.dtype)
    return (scaled * inside).sum(dim=(2, 3)) / (inside.sum(dim=(2, 3)) + EPS)


def unit_embeddings(maps: Tensor, region: Tensor | None = None) -> Tensor:
    """`region_embeddings` of the first release: ``GAP(maps [region])`` with L2 norm 1 over K.

    maps: (B, K, h, w) signed.  region: (B, K, h, w) bool; positions outside it count as zeros; None
    is the whole map.  Returns (B, K) in -1..1, zeros where every class's mean is 0.
    """
    inside = maps if region is None else maps * region.to(maps.dtype)
    return F.normalize(inside.mean(dim=(2, 3)), dim=1)


def disjoint(tags: Tensor) -> Tensor:
    """Which pairs of samples share no class, (B, B) bool.

    >>> disjoint(torch.tensor([[1, 0], [0, 1], [1, 1]])).int().tolist()
    [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    """
    present = tags.to(torch.float32)
    return present @ present.T == 0


def partners(tags: Tensor, noise: Tensor, *, lonely: str = "leave_out") -> Partners:
    """A random negative for every anchor among the samples that share no class with it.

    noise: (B, B) in 0..1; each anchor takes the allowed sample with the largest entry in its row.
    lonely: what becomes of an anchor without such a sample.  "leave_out": it is not compared.
        "borrow": it takes the next anchor's partner, which may share its class, as happens in the
        reference; the last of a batch, where the reference ends the run with a size error, is left
        out.
    Raises ValueError for noise of another shape or an unknown `lonely`.
    """
    if lonely not in LONELY:
        raise ValueError(f"lonely must be one of {', '.join(LONELY)}, got {lonely!r}")
    if noise.shape != (len(tags), len(tags)):
        expected = f"{(len(tags), len(tags))} for B={len(tags)} samples"
        raise ValueError(f"noise must be {expected}, got shape {tuple(noise.shape)}")
    itself = torch.eye(len(tags), dtype=torch.bool, device=tags.device)
    allowed = disjoint(tags) & ~itself  # an untagged image shares no class with itself
    index = noise.masked_fill(~allowed, -1).argmax(dim=1)
    valid = allowed.any(dim=1)
    if lonely == "borrow":
        places = torch.arange(len(tags), device=tags.device)
        following = torch.where(valid, places, len(tags)).flip(0).cummin(dim=0).values.flip(0)
        valid = following < len(tags)
        index = index[following.clamp(max=len(tags) - 1)]
    return Partners(index, valid)


def check_threshold(value: float) -> None:
    """Raises ValueError outside 0..1."""
    if not 0 <= value <= 1:
        raise ValueError(f"threshold must lie in 0..1, got {value}")


def check_tags(maps: Tensor, tags: Tensor) -> None:
    """Raises ValueError where tags are not (B, K) for maps (B, K, h, w)."""
    if maps.ndim != 4 or tags.shape != maps.shape[:2]:
        raise ValueError(
            f"maps {tuple(maps.shape)} and tags {tuple(tags.shape)} must be (B, K, h, w) and (B, K)"
        )
