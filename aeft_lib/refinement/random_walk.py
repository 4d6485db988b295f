"""Random walk: scores flow between pixels of the same object (AffinityNet, CVPR 2018).

The affinities of pixel pairs become the transitions of a walk, of which many steps are taken::

    A_ij <- a_ij^beta,  A_ii = 1,      T_ij = A_ij / sum_i A_ij,      scores <- scores T^steps

Departure from the reference: it squares the dense n x n matrix T six times and multiplies once, for
all classes.  Here `steps` sparse products are taken on the present classes: the same result to
1e-5, without the dense matrix and its drift.
"""

import math

import torch
from torch import Tensor

from aeft_lib.refinement import sparse
from aeft_lib.refinement.affinity import SparseAffinity


def propagate(
    affinity: SparseAffinity, scores: Tensor, *, beta: float = 8, steps: int = 64
) -> Tensor:
    """Scores after a walk, (L, h, w), not negative where the scores given are not.

    A column of T sums to 1, a row need not: each new score is a mean over the pixel and its
    partners, weighted by affinity, so a constant map stays constant, and no map leaves its range.

    affinity: of the h x w grid, values in 0..1 (see `affinity.sparse_affinity`).
    scores: (L, h, w) float, of the present classes and the background; classes do not mix.
    beta: elementwise power; a large one lets near-equal pixels alone exchange scores.
    steps: 64 in AEFT's reference (six squarings), 256 in AffinityNet's paper; 0 returns the scores.
    Raises ValueError for scores of another size than the grid, NaN or infinity, affinities outside
    0..1, pairs outside the grid, beta that is not positive and finite, or steps that are no integer
    from 0 on.

    >>> pair = SparseAffinity(torch.tensor([0]), torch.tensor([1]), torch.tensor([1.0]), (1, 2))
    >>> propagate(pair, torch.tensor([[[1.0, 0.0]]]), steps=1).tolist()
    [[[0.5, 0.5]]]
    """
    _check_walk(beta, steps)
    _check_affinity(affinity)
    _check_scores(scores, affinity.size)
    matrix = _symmetric(affinity, beta, scores)
    flat = scores.flatten(1).T
    column_sums = matrix @ torch.ones_like(flat[:, :1])
    for _ in range(steps):
        flat = (matrix @ flat) / column_sums
    return flat.T.reshape(scores.shape)


def reach(
    affinity: SparseAffinity, row: int, column: int, *, steps: int, beta: float = 8
) -> Tensor:
    """Where the score of one cell is after a walk: (h, w) in 0..1, the largest is 1.

    Raises ValueError for a cell outside the grid.
    """
    h, w = affinity.size
    if not (0 <= row < h and 0 <= column < w):
        raise ValueError(f"cell ({row}, {column}) is outside the {h} x {w} grid")
    start = torch.zeros(1, h, w)
    start[0, row, column] = 1
    flow = propagate(affinity, start, beta=beta, steps=steps)[0]
    return flow / flow.max()


def _symmetric(affinity: SparseAffinity, beta: float, like: Tensor) -> Tensor:
    """A^beta with its unit diagonal, (n, n) CSR, in the type of `like`."""
    n = math.prod(affinity.size)
    value, here = affinity.value.to(like.dtype) ** beta, torch.arange(n, device=like.device)
    rows = torch.cat([affinity.index_from, affinity.index_to, here])
    columns = torch.cat([affinity.index_to, affinity.index_from, here])
    values = torch.cat([value, value, torch.ones_like(here, dtype=like.dtype)])
    return sparse.from_entries(rows, columns, values, (n, n))


def _check_walk(beta: float, steps: int) -> None:
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta must be positive and finite, got {beta}")
    if not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps must be an integer from 0 on, got {steps}")


def _check_affinity(affinity: SparseAffinity) -> None:
    index_from, index_to, value, size = affinity
    alike = value.shape == index_from.shape == index_to.shape
    if value.ndim != 1 or not alike:
        shapes = ", ".join(str(tuple(part.shape)) for part in affinity[:3])
        raise ValueError(f"index_from, index_to and value must be (E,) alike, got {shapes}")
    if not value.numel():
        return
    if not bool((value >= 0).all() and (value <= 1).all()):
        raise ValueError(f"affinities must lie in 0..1, got {value.amin():.3g}..{value.amax():.3g}")
    index = torch.stack([index_from, index_to])
    low, high = int(index.amin()), int(index.amax())
    if low < 0 or high >= math.prod(size) or bool((index_from == index_to).any()):
        rule = f"join two pixels of the {size} grid"
        raise ValueError(f"pairs must {rule}, got positions {low}..{high}")


def _check_scores(scores: Tensor, size: tuple[int, int]) -> None:
    if scores.ndim != 3 or tuple(scores.shape[1:]) != tuple(size) or not scores.is_floating_point():
        expected = f"a floating (L, {size[0]}, {size[1]}) tensor like the affinity's grid"
        raise ValueError(f"scores must be {expected}, got {scores.dtype} {tuple(scores.shape)}")
    if not bool(scores.isfinite().all()):
        raise ValueError("scores hold NaN or infinity")
