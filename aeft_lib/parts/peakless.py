"""Pooling without the peak, GNDP, and how much of an image fires (RIB, Lee et al., 2021)."""

import torch
from torch import Tensor

from aeft_lib.parts.climbing import EPS


def gndp(
    maps: Tensor, tags: Tensor, cut: float, *, classes: int | None = None, mean: str = "all"
) -> Tensor:
    """Logits (B, K): the mean of a map without its peak where tagged, of the whole map elsewhere.

    maps: (B, K, h, w) signed.  tags: (B, K).  A map that is negative everywhere changes its sign in
    ``m / max m``, as in the release; one that is 0 everywhere has logit 0.
    cut: positions from this part of the maximum on are left out.  classes: the first so many; the
    others are untagged to it.  mean: over "all" positions, or those "kept".

    >>> gndp(torch.tensor([1.0, 2.0, 4.0]).reshape(1, 1, 1, 3), torch.ones(1, 1), 0.4).item()
    0.3333333432674408
    """
    with torch.no_grad():
        kept = maps / maps.amax(dim=(2, 3), keepdim=True) < cut  # 0/0 is not below
        looked = torch.arange(maps.shape[1], device=maps.device) < (classes or maps.shape[1])
        kept = (kept | ~(tags.bool() & looked)[:, :, None, None]).to(maps.dtype)
    total = (maps * kept).sum(dim=(2, 3))
    if mean == "kept":
        return total / kept.sum(dim=(2, 3)).clamp(min=1)
    return total / (maps.shape[2] * maps.shape[3])


def cover(maps: Tensor, fires: float) -> float:
    """The part of an image that some map (M, h, w) fires in: above `fires` of its peak.

    >>> cover(torch.tensor([[[4.0, 1.0]], [[0.0, 2.0]]]), 0.3)
    1.0
    """
    relative = maps / (maps.amax(dim=(1, 2), keepdim=True) + EPS)
    return float((relative > fires).any(dim=0).float().mean())
