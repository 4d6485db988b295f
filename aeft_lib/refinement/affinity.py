"""Affinities of neighbouring pixels, their labels and their loss (AffinityNet, CVPR 2018).

On an h x w grid every pixel i is paired with the pixels j of a half disc around it, so that each
pair occurs once; f are features, and equal ones have affinity 1::

    a_ij = exp(-mean_c |f_i - f_j|)

Two CRFs label the pairs: one is sure of the foreground (small background power alpha), one of the
background (large alpha).  The loss weighs three kinds of pairs::

    L = L_bg / 4 + L_fg / 4 + L_neg / 2
    L_bg, L_fg = mean of -log(a + 1e-5),      L_neg = mean of -log(1 + 1e-5 - a)

Departures from the reference: none in the numbers.  Pairs are shifted views of the grid; no index
is stored for them.

Shapes: B images, C channels, h x w grid, O offsets, P starting pixels.  ``radius`` is in grid
cells, not included itself.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
RADIUS = 5
VOID = 255  # as in label maps


class Pairs(NamedTuple):
    """Flat positions, int64.  index_from: (P,) starting pixels.  index_to: (O, P) partners."""

    index_from: Tensor
    index_to: Tensor


class SparseAffinity(NamedTuple):
    """A symmetric affinity matrix over the h·w pixels of a grid: its pairs, each once.

    index_from, index_to: (E,) int64, flat positions.  value: (E,) in 0..1.  size: (h, w).
    """

    index_from: Tensor
    index_to: Tensor
    value: Tensor
    size: tuple[int, int]


class PairLabels(NamedTuple):
    """Kinds of pairs, (..., O, P) bool; pairs with a void pixel are none of the three.

    background: both are.  foreground: both of the same class.  negative: of different classes.
    """

    background: Tensor
    foreground: Tensor
    negative: Tensor


class AffinityLoss(NamedTuple):
    """loss, and its means background, foreground, negative: scalars.  counts: (3,) pairs + 1e-5."""

    loss: Tensor
    background: Tensor
    foreground: Tensor
    negative: Tensor
    counts: Tensor


def offsets(radius: int = RADIUS) -> list[tuple[int, int]]:
    """(dy, dx) with dx² + dy² < radius²: to the right of the pixel, then the rows below.

    Raises ValueError for a negative radius.

    >>> offsets(2), len(offsets(5))
    ([(0, 1), (1, -1), (1, 0), (1, 1)], 34)
    """
    if radius < 0:
        raise ValueError(f"radius must not be negative, got {radius}")
    beside = [(0, dx) for dx in range(1, radius)]
    below = [(dy, dx) for dy in range(1, radius) for dx in range(1 - radius, radius)]
    return beside + [(dy, dx) for dy, dx in below if dy * dy + dx * dx < radius * radius]


def effective_radius(size: tuple[int, int], radius: int = RADIUS) -> int:
    """The network's radius on a grid: (shorter side - 1) // 2 where that is less.

    >>> effective_radius((56, 56)), effective_radius((9, 11)), effective_radius((1, 1))
    (5, 4, 0)
    """
    return min(radius, (min(size) - 1) // 2)


def pairs(size: tuple[int, int], radius: int = RADIUS) -> Pairs:
    """All pairs of an h x w grid whose partners lie on it at every offset; starts in reading order.

    The last radius - 1 rows, and as many columns on both sides, start no pair, so a few pixels in
    the corners are in none.  Radius 0 and 1 have no offset.
    Raises ValueError where the grid is so small that no pixel starts a pair.

    >>> pairs((2, 3), 2).index_from.tolist(), pairs((2, 3), 2).index_to.flatten().tolist()
    ([1], [2, 3, 4, 5])
    """
    starts = _starts(torch.arange(size[0] * size[1]).reshape(size), radius).flatten()
    steps = torch.tensor([dy * size[1] + dx for dy, dx in offsets(radius)], dtype=torch.int64)
    return Pairs(starts, starts + steps[:, None])


def _starts(maps: Tensor, radius: int, dy: int = 0, dx: int = 0) -> Tensor:
    """The starting pixels of maps (..., h, w), or their partners at an offset, a view."""
    (h, w), margin = maps.shape[-2:], max(radius - 1, 0)
    if h <= margin or w <= 2 * margin:
        remedy = f"the network uses {effective_radius((h, w))} there"
        raise ValueError(f"a grid of {h} x {w} has no pairs at radius {radius}; {remedy}")
    return maps[..., dy : dy + h - margin, margin + dx : w - margin + dx]


def pair_affinity(features: Tensor, radius: int = RADIUS) -> Tensor:
    """``a = exp(-mean_c |f_i - f_j|)`` of every pair, (B, O, P) in 0..1, in the order of `pairs`.

    features: (B, C, h, w) float, after the network's last ELU.  For the backward pass autograd
        keeps B·C·O·P numbers (152 MB an image of 448 channels on 56 x 56).
    Raises ValueError for another shape, integers, or a grid too small for the radius.
    """
    if features.ndim != 4 or not features.is_floating_point():
        kind = f"{features.dtype} {tuple(features.shape)}"
        raise ValueError(f"features must be a floating (B, C, h, w) tensor, got {kind}")
    starts = _starts(features, radius)
    distances = [
        (_starts(features, radius, dy, dx) - starts).abs().mean(dim=1).flatten(1)
        for dy, dx in offsets(radius)
    ]
    if not distances:
        return features.new_zeros(len(features), 0, starts.shape[-2] * starts.shape[-1])
    return (-torch.stack(distances, dim=1)).exp()


def sparse_affinity(values: Tensor, size: tuple[int, int], radius: int = RADIUS) -> SparseAffinity:
    """The matrix of one image from its pairs' affinities (O, P), see `pair_affinity`.

    Raises ValueError where values do not fit the grid and the radius.
    """
    index_from, index_to = pairs(size, radius)
    if values.shape != index_to.shape:
        rule = f"{tuple(index_to.shape)} for {size} at radius {radius}"
        raise ValueError(f"values must be {rule}, got {tuple(values.shape)}")
    ends = (index_from.expand_as(index_to), index_to)
    index_from, index_to = (index.flatten().to(values.device) for index in ends)
    return SparseAffinity(index_from, index_to, values.flatten(), tuple(size))


def affinity_labels(low: Tensor, high: Tensor, *, cell: int = 8) -> Tensor:
    """The grid's label map from two CRFs, (H / cell, W / cell) uint8.

    Labels are rows of the scores, 0 background, 255 void.  Scores are averaged over cells:
    background where it wins in `high`, else the foreground that wins in `low`, else void; void too
    where no score of either reaches 1e-5 (the padding of a crop).

    low, high: (L, H, W) posteriors of the CRF with the small and with the large background power,
        background first.
    Raises ValueError where their shapes differ, H or W is no multiple of the cell, there are more
    rows than labels, or for NaN.
    """
    if low.shape != high.shape or low.ndim != 3:
        shapes = f"low {tuple(low.shape)} and high {tuple(high.shape)}"
        raise ValueError(f"{shapes} must have the same (L, H, W) shape")
    if cell < 1 or any(side % cell for side in low.shape[1:]):
        raise ValueError(f"scores of {tuple(low.shape[1:])} do not divide into cells of {cell}")
    if not 1 <= len(low) <= VOID:
        raise ValueError(f"scores must have 1..{VOID} rows, got {len(low)}")
    if bool(low.isnan().any() or high.isnan().any()):
        raise ValueError("scores hold NaN")
    low, high = (F.avg_pool2d(scores[None], cell)[0] for scores in (low, high))
    label = low.argmax(dim=0).to(torch.uint8)
    label[label == 0] = VOID
    label[high.argmax(dim=0) == 0] = 0
    label[torch.maximum(low, high).amax(dim=0) < EPS] = VOID
    return label


def pair_labels(label_map: Tensor, radius: int = RADIUS) -> PairLabels:
    """The kinds of the pairs of a label map (..., h, w), in the order of `pairs`.

    label_map: integer, 0 background, 255 void.
    Raises ValueError for a float map, or a grid too small for the radius.
    """
    if label_map.ndim < 2 or label_map.is_floating_point():
        kind = f"{label_map.dtype} {tuple(label_map.shape)}"
        raise ValueError(f"label_map must be an integer (..., h, w) tensor, got {kind}")
    start = _starts(label_map, radius)
    ends = [_starts(label_map, radius, dy, dx).flatten(-2) for dy, dx in offsets(radius)]
    start = start.flatten(-2)[..., None, :]
    end = torch.stack(ends, dim=-2) if ends else start[..., :0, :]
    known, equal = (start != VOID) & (end != VOID), start == end
    return PairLabels(known & equal & (start == 0), known & equal & (start != 0), known & ~equal)


def affinity_loss(affinity: Tensor, labels: PairLabels) -> AffinityLoss:
    """L = L_bg / 4 + L_fg / 4 + L_neg / 2, means over all pairs of a kind in the batch, or 0.

    affinity: (..., O, P) in 0..1.  Raises ValueError where labels have another shape.

    One start, whose pairs are 1 background and 2 negative: log 2 / 4 + log 2 / 2.

    >>> labels = pair_labels(torch.tensor([[0, 0, 1], [0, 255, 1]]), 2)
    >>> round(affinity_loss(torch.full((4, 1), 0.5), labels).loss.item(), 3)
    0.52
    """
    return mean_loss(*loss_sums(affinity, labels))


def loss_sums(affinity: Tensor, labels: PairLabels) -> tuple[Tensor, Tensor]:
    """Sums of the kinds' losses and numbers of their pairs, (3,) each; parts of a batch add up.

    Raises ValueError as `affinity_loss`.
    """
    for name, kind in labels._asdict().items():
        if kind.shape != affinity.shape:
            shapes = f"affinity {tuple(affinity.shape)} and {name} labels {tuple(kind.shape)}"
            raise ValueError(f"{shapes} must have the same shape")
    together, apart = -(affinity + EPS).log(), -(1 + EPS - affinity).log()
    background, foreground, negative = (kind.to(affinity.dtype) for kind in labels)
    counts = torch.stack([kind.sum() for kind in (background, foreground, negative)])
    sums = torch.stack(
        [(background * together).sum(), (foreground * together).sum(), (negative * apart).sum()]
    )
    return sums, counts


def mean_loss(sums: Tensor, counts: Tensor) -> AffinityLoss:
    """The loss from sums and counts of all parts of a batch, (3,) each."""
    counts = counts + EPS
    means = sums / counts
    return AffinityLoss(means[0] / 4 + means[1] / 4 + means[2] / 2, *means, counts)
