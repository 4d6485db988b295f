"""Affinities from edges: two pixels belong together where no edge lies between them (IRNet, 2019).

The path of a pair has all cells of the box between its two ends that are nearer than one cell to
the line through them, both ends included.  One strong edge on it is enough to part the pair::

    a_ij = 1 - max over the path from i to j of edge_k

In training the pairs are `affinity.pairs`' (starts keep a margin); in a walk all pairs of the grid
within the radius.  The authors' release walks on a padded grid, to the same pairs.  Departure:
none in the numbers.  Of equal edges on a path the first gets the gradient.

Shapes: B images, h x w grid, O offsets, P starting pixels.
Source: Ahn, Cho and Kwak, CVPR 2019; constants from the code of the authors.
"""

import torch
from torch import Tensor

from aeft_lib.refinement.affinity import SparseAffinity, offsets

RADIUS = 10  # of the pairs in training
WALK_RADIUS = 5


def path(dy: int, dx: int) -> list[tuple[int, int]]:
    """The cells (y, x) of the path of a pair, from its start; dy is not negative.

    >>> path(0, 2), path(1, 1), len(path(2, -1))
    ([(0, 0), (0, 1), (0, 2)], [(0, 0), (0, 1), (1, 0), (1, 1)], 6)
    """
    box = ((y, x) for y in range(dy + 1) for x in range(min(dx, 0), max(dx, 0) + 1))
    return [(y, x) for y, x in box if (dy * x - dx * y) ** 2 < dy * dy + dx * dx]


def fitting_radius(size: tuple[int, int], radius: int = RADIUS) -> int:
    """The radius in training on an h x w grid: the largest up to `radius` that has a pair.

    >>> fitting_radius((20, 24)), fitting_radius((64, 64), 5), fitting_radius((16, 12))
    (10, 5, 6)
    """
    return min(radius, size[0], (size[1] + 1) // 2)


def path_affinity(edges: Tensor, radius: int = RADIUS) -> Tensor:
    """``1 - max edge`` of every pair, (B, O, P) in 0..1, in the order of `affinity.pairs`.

    edges: (B, h, w) floating, in 0..1.  Raises ValueError for another shape, integers, or a grid
    that has no such pair.
    """
    if edges.ndim != 3 or not edges.is_floating_point():
        kind = f"{edges.dtype} {tuple(edges.shape)}"
        raise ValueError(f"edges must be a floating (B, h, w) tensor, got {kind}")
    (h, w), margin = edges.shape[1:], max(radius - 1, 0)
    if h <= margin or w <= 2 * margin:
        remedy = f"take {fitting_radius((h, w), radius)}"
        raise ValueError(f"a grid of {h} x {w} has no pairs at radius {radius}: {remedy}")
    starts = slice(0, h - margin), slice(margin, w - margin)
    cells = [_strongest(edges.detach(), step, *starts) for step in offsets(radius)]
    if not cells:
        return edges.new_zeros(len(edges), 0, (h - margin) * (w - 2 * margin))
    strongest = torch.stack(cells, dim=1)
    return 1 - edges.flatten(1).gather(1, strongest.flatten(1)).reshape(strongest.shape)


def path_matrix(edge: Tensor, radius: int = WALK_RADIUS) -> SparseAffinity:
    """The affinity matrix of one image: all pairs of its grid within the radius, each once.

    edge: (h, w) floating, in 0..1.  Raises ValueError for another shape, or values outside 0..1.
    """
    if edge.ndim != 2 or not edge.is_floating_point():
        raise ValueError(f"edge must be a floating (h, w) tensor, got {tuple(edge.shape)}")
    if not bool((edge >= 0).all() and (edge <= 1).all()):
        raise ValueError(f"an edge must lie in 0..1, got {edge.amin():.3g}..{edge.amax():.3g}")
    h, w = edge.shape
    places = torch.arange(h * w, device=edge.device).reshape(h, w)
    empty = places.new_zeros(0)
    ends, strongest = [(empty, empty)], [empty]
    for dy, dx in offsets(radius):
        if dy >= h or abs(dx) >= w:
            continue
        rows, columns = slice(0, h - dy), slice(max(0, -dx), w - max(0, dx))
        start = places[rows, columns].flatten()
        ends.append((start, start + dy * w + dx))
        strongest.append(_strongest(edge[None], (dy, dx), rows, columns)[0])
    index_from, index_to = (torch.cat(side) for side in zip(*ends, strict=True))
    value = 1 - edge.flatten()[torch.cat(strongest)]
    return SparseAffinity(index_from, index_to, value, (h, w))


def _strongest(edges: Tensor, step: tuple[int, int], rows: slice, columns: slice) -> Tensor:
    """Where on the path the largest edge of each pair lies: flat positions (B, P) int64.

    rows, columns: of the starting pixels.
    """
    h, w = edges.shape[1:]
    cells = path(*step)
    views = [
        edges[:, rows.start + y : rows.stop + y, columns.start + x : columns.stop + x]
        for y, x in cells
    ]
    places = torch.arange(h * w, device=edges.device).reshape(h, w)[rows, columns]
    moves = torch.tensor([y * w + x for y, x in cells], device=edges.device)
    return (places + moves[torch.stack(views).argmax(dim=0)]).flatten(1)
