"""Masks of the triplet.  So far the per-map normalisation that every mask starts from (SPEC section 4)."""

from torch import Tensor

EPS = 1e-5


def max_norm(maps: Tensor) -> Tensor:
    """Scale the positive part of every map to 0..1 over its own positions.

    ``z = relu(maps);  out = relu(z - min - 1e-5) / (max - min + 1e-5)``

    maps: (B, K, h, w) signed.  Returns (B, K, h, w) in 0..1; constant and all-negative maps give zeros.
    Raises ValueError where maps is not four-dimensional.  Source: AEFT's reference implementation.

    >>> import torch
    >>> max_norm(torch.tensor([[[[-1.0, 0.0], [1.0, 2.0]]]])).round(decimals=3).flatten().tolist()
    [0.0, 0.0, 0.5, 1.0]
    """
    if maps.ndim != 4:
        raise ValueError(f"maps must be (B, K, h, w), got shape {tuple(maps.shape)}")
    z = maps.relu()
    low, high = z.amin(dim=(2, 3), keepdim=True), z.amax(dim=(2, 3), keepdim=True)
    return (z - low - EPS).relu() / (high - low + EPS)
