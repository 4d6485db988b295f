"""Affinities of neighbouring pixels and what they learn from (AffinityNet, Ahn and Kwak, CVPR
2018); no network here.

On an h x w grid every pixel i is paired with the pixels j of a half disc around it, so that each
pair occurs once::

    a_ij = exp(-mean_c |f_i - f_j|)                                           f = features, 1 for
    equal ones

Two CRFs say which pairs belong together: one is sure of the foreground (small background power
    alpha), one of the background
(large alpha).  The loss weighs three kinds of pairs::

    L = L_bg / 4 + L_fg / 4 + L_neg / 2,      L_bg, L_fg = mean of -log(a + 1e-5),      L_neg = mean
    of -log(1 + 1e-5 - a)

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
    """Flat positions on the grid, int64.  index_from: (P,) starting pixels.  index_to:

    (O, P) partners at every offset.
    """

    index_from: Tensor
    index_to: Tensor


class SparseAffinity(NamedTuple):
    """A symmetric affinity matrix over the h·w pixels of a grid: its pairs, each once; the unit
    diagonal goes without saying.

    index_from, index_to: (E,) int64, flat positions.  value: (E,) in 0..1.  size: (h, w).
    """

    index_from: Tensor
    index_to: Tensor
    value: Tensor
    size: tuple[int, int]


class PairLabels(NamedTuple):
    """What each pair is, (..., O, P) bool: both background, both of one foreground class, or of
    different classes.

    Pairs with a void pixel are none of the three.
    """

    background: Tensor
    foreground: Tensor
    negative: Tensor


class AffinityLoss(NamedTuple):
    """loss: scalar.  background, foreground, negative: its three means, scalars.  counts:

    (3,), pairs of each kind + 1e-5.
    """

    loss: Tensor
    background: Tensor
    foreground: Tensor
    negative: Tensor
    counts: Tensor


# --- pairs
# -----------------------------------------------------------------------------------------------------------


def offsets(radius: int = RADIUS) -> list[tuple[int, int]]:
    """(dy, dx) of the half plane with dx² + dy² < radius²: the row of the pixel itself to the
    right, then the rows below.

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
    """The radius that the network uses on a small grid: (side - 1) // 2 where that is less, side
    being the shorter one.

    >>> effective_radius((56, 56)), effective_radius((9, 11)), effective_radius((1, 1))
    (5, 4, 0)
    """
    return min(radius, (min(size) - 1) // 2)


def pairs(size: tuple[int, int], radius: int = RADIUS) -> Pairs:
    """All pairs of an h x w grid whose partners lie on it at every offset; starts in reading order.

    The last radius - 1 rows, and as many columns on both sides, start no pair, so a few pixels in
    the corners are in none. Radius 0 and 1 have no offset.
    Raises ValueError where the grid is so small that no pixel starts a pair.

    >>> pairs((2, 3), 2).index_from.tolist(), pairs((2, 3), 2).index_to.flatten().tolist()
    ([1], [2, 3, 4, 5])
    """
    starts = _starts(torch.arange(size[0] * size[1]).reshape(size), radius).flatten()
    steps = torch.tensor([dy * size[1] + dx for dy, dx in offsets(radius)], dtype=torch.int64)
    return Pairs(starts, starts + steps[:, None])


def _starts(maps: Tensor, radius: int, dy: int = 0, dx: int = 0) -> Tensor:
    """The starting pixels of maps (..., h, w), or their partners at an offset:

    a view (..., h', w').
    """
    (h, w), margin = maps.shape[-2:], max(radius - 1, 0)
    if h <= margin or w <= 2 * margin:
        raise ValueError(
            f"a grid of {h} x {w} has no pairs at radius {radius}; the network uses {effective_radius((h, w))} there"
        )
    return maps[..., dy : dy + h - margin, margin + dx : w - margin + dx]


# --- affinities
# ------------------------------------------------------------------------------------------------------


def pair_affinity(features: Tensor, radius: int = RADIUS) -> Tensor:
    """``a = exp(-mean_c |f_i - f_j|)`` of every pair, (B, O, P) in 0..1, in the order of `pairs`.

    features: (B, C, h, w) float, after the network's last ELU.  For the backward pass autograd
        keeps B·C·O·P numbers (152 MB
    an image of 448 channels on 56 x 56).  Raises ValueError for another shape, integers, or a grid
    too small for the radius.
    """
    if features.ndim != 4 or not features.is_floating_point():
        raise ValueError(
            f"features must be a floating (B, C, h, w) tensor, got {features.dtype} {tuple(features.shape)}"
        )
    starts = _starts(features, radius)
    distances = [
        (_starts(features, radius, dy, dx) - starts).abs().mean(dim=1).flatten(1)
        for dy, dx in offsets(radius)
    ]
    if not distances:
        return features.new_zeros(len(features), 0, starts.shape[-2] * starts.shape[-1])
    return (-torch.stack(distances, dim=1)).exp()


def sparse_affinity(values: Tensor, size: tuple[int, int], radius: int = RADIUS) -> SparseAffinity:
    """The matrix of one image from the affinities of its pairs, (O, P) as `pair_affinity` gives
    them.

    Raises ValueError where values do not fit the grid and the radius.
    """
    index_from, index_to = pairs(size, radius)
    if values.shape != index_to.shape:
        raise ValueError(
            f"values must be {tuple(index_to.shape)} for {size} at radius {radius}, got {tuple(values.shape)}"
        )
    index_from = index_from.expand_as(index_to).flatten().to(values.device)
    return SparseAffinity(
        index_from, index_to.flatten().to(values.device), values.flatten(), tuple(size)
    )


# --- labels
# ----------------------------------------------------------------------------------------------------------


def affinity_labels(low: Tensor, high: Tensor, *, cell: int = 8) -> Tensor:
    """The grid's label map from two CRFs, (H / cell, W / cell) uint8: rows of the scores, 0 =
    background, 255 = void.

    Scores are averaged over cells; background where `high` says so, else the foreground that `low`
    says, else void; void too where no score of either reaches 1e-5 (the padding of a crop).

    low, high: (L, H, W) posteriors of the CRF with the small and with the large background power,
        background first.
    Raises ValueError where their shapes differ, H or W is no multiple of the cell, there are more
    rows than labels, or for NaN.
    """
    if low.shape != high.shape or low.ndim != 3:
        raise ValueError(
            f"low {tuple(low.shape)} and high {tuple(high.shape)} must have the same (L, H, W) shape"
        )
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
    """What every pair of a label map (..., h, w) is, in the order of `pairs`: (..., O, P) bool
    each.

    label_map: integer, 0 = background, 255 = void.  Raises ValueError for a float map, or a grid
        too small for the radius.
    """
    if label_map.ndim < 2 or label_map.is_floating_point():
        raise ValueError(
            f"label_map must be an integer (..., h, w) tensor, got {label_map.dtype} {tuple(label_map.shape)}"
        )
    index_from, index_to = (
        index.to(label_map.device) for index in pairs(tuple(label_map.shape[-2:]), radius)
    )
    flat = label_map.flatten(-2)
    start, end = flat[..., None, index_from], flat[..., index_to]
    known, equal = (start != VOID) & (end != VOID), start == end
    return PairLabels(known & equal & (start == 0), known & equal & (start != 0), known & ~equal)


def affinity_loss(affinity: Tensor, labels: PairLabels) -> AffinityLoss:
    """L = L_bg / 4 + L_fg / 4 + L_neg / 2: each a mean over all pairs of its kind in the batch, 0
    where there is none.

    affinity: (..., O, P) in 0..1.  Raises ValueError where labels have another shape.

    >>> labels = pair_labels(torch.tensor([[0, 0, 1], [0, 255, 1]]), 2)     # one start; of its
    pairs 1 background, 2 negative
    >>> round(affinity_loss(torch.full((4, 1), 0.5), labels).loss.item(), 3)   # log 2 / 4 + log 2 /
    2
    0.52
    """
    return mean_loss(*loss_sums(affinity, labels))


def loss_sums(affinity: Tensor, labels: PairLabels) -> tuple[Tensor, Tensor]:
    """Sums of the three kinds' losses and numbers of their pairs, (3,) each; errors as
    `affinity_loss`.

    Parts of a batch add up, which means do not.
    """
    for name, kind in labels._asdict().items():
        if kind.shape != affinity.shape:
            raise ValueError(
                f"affinity {tuple(affinity.shape)} and {name} labels {tuple(kind.shape)} must have the same shape"
            )
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
