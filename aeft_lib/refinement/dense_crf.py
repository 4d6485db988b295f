"""Dense CRF (Krähenbühl and Koltun, NIPS 2011) as sparse linear algebra in torch, CPU and GPU.

Mean field with a Potts model and two Gaussian kernels, one over positions and one over positions
and colours::

    Q <- softmax(-unary + sum_k w_k K_k Q),     K = D^-1/2 (slice blur splat) D^-1/2

A kernel is applied on the permutohedral lattice (Adams et al., Eurographics 2010): pixels are
splatted onto the lattice's vertices, blurred along its d + 1 axes and sliced back.  The lattice
depends on the image alone (the spatial one on its size alone), so it is built once and serves every
background power and every iteration.

Departures from the C++ library that the field uses: none in the numbers (a golden test bounds them
at 1e-3).
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from aeft_lib.refinement import sparse

CLIP = 1e-5


class Lattice:
    """The permutohedral lattice of N points in d dimensions, with unit standard deviations.

    features: (N, d) float, already divided by the kernel's standard deviations.
    """

    def __init__(self, features: Tensor) -> None:
        """Raises ValueError where features are not a finite (N, d) float tensor."""
        floating = features.ndim == 2 and features.is_floating_point()
        if not floating or not bool(features.isfinite().all()):
            kind = f"{features.dtype} {tuple(features.shape)}"
            raise ValueError(f"features must be a finite (N, d) float tensor, got {kind}")
        n, self.d = features.shape
        # The C++ library takes four points at a time and fills up with points at the origin.  They
        # carry nothing, but their vertices let the blur of near points pass: up to 0.02 in single
        # dark pixels, so they are kept.
        filled = torch.cat([features, features.new_zeros(-n % 4, self.d)])
        nearest, rank, weights = _enclosing_simplex(filled)
        keys, radix = _vertex_keys(nearest, rank)
        vertices, index = torch.unique(keys, return_inverse=True)
        self.neighbours = _neighbours(vertices, radix)
        index, weights = index.reshape(weights.shape)[:n], weights[:n]
        self.matrices = _matrices(index, weights, weights / (1 + 2.0**-self.d), len(vertices))
        norm = self.apply(torch.ones(n, 1, dtype=features.dtype, device=features.device))
        self.matrices = _scaled(self.matrices, (norm + 1e-20).rsqrt()[:, 0])

    def apply(self, values: Tensor) -> Tensor:
        """The symmetrically normalised kernel times values (N, L)."""
        splat, slice_ = self.matrices
        on_lattice = splat @ values
        absent = torch.zeros_like(on_lattice[:1])  # a last row for absent neighbours
        padded = torch.cat([on_lattice, absent])
        for before, after in self.neighbours:
            padded[:-1] += 0.5 * (padded[before] + padded[after])
        return slice_ @ padded[:-1]


class DenseCRF:
    """The CRF of one image.

    image: (H, W, 3) uint8 RGB, as it was taken.  gaussian: (standard deviation in pixels, weight).
    bilateral: (standard deviation in pixels, in grey levels, weight).
    """

    def __init__(
        self,
        image: np.ndarray,
        *,
        gaussian: tuple[float, float] = (3, 3),
        bilateral: tuple[float, float, float] = (80, 13, 10),
        device: torch.device | str = "cpu",
    ) -> None:
        """Raises ValueError for no (H, W, 3) uint8 image, or numbers that are not positive."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"image must be (H, W, 3) uint8 RGB, got {image.dtype} {image.shape}")
        for name, numbers in (("gaussian", gaussian), ("bilateral", bilateral)):
            if not all(np.isfinite(number) and number > 0 for number in numbers):
                raise ValueError(f"{name} must hold positive numbers, got {numbers}")
        self.size = image.shape[:2]
        colours = torch.from_numpy(image.copy()).to(device).reshape(-1, 3).float()
        places = _places(*self.size, torch.device(device))
        features = torch.cat([places / bilateral[0], colours / bilateral[1]], dim=1)
        spatial = _spatial_lattice(*self.size, float(gaussian[0]), torch.device(device))
        self.kernels = ((spatial, gaussian[1]), (Lattice(features), bilateral[2]))

    def infer(self, unary: Tensor, *, iterations: int = 10) -> Tensor:
        """Mean field: unary (L, H, W), negative log scores -> posterior (L, H, W) float32, sum 1.

        Several problems of L labels, (A, L, H, W), take hardly more time than one.  unary lies on
        the device of the CRF.  Raises ValueError for one of another size than the image, or not
        finite, or for negative iterations.
        """
        if unary.ndim not in (3, 4) or unary.shape[-2:] != self.size:
            rule = f"(L, {self.size[0]}, {self.size[1]}) like the image"
            raise ValueError(f"unary must be {rule}, got {tuple(unary.shape)}")
        if not bool(unary.isfinite().all()):
            remedy = "clip the scores before taking the logarithm"
            raise ValueError(f"unary holds NaN or infinity: {remedy}")
        if iterations < 0:
            raise ValueError(f"iterations must not be negative, got {iterations}")
        labels, pixels = unary.shape[-3], unary.shape[-2] * unary.shape[-1]
        # Pixels last: softmax over a short last axis is six times slower.
        evidence = -unary.float().reshape(-1, labels, pixels)
        q = evidence.softmax(dim=1)
        for _ in range(iterations):
            columns = q.reshape(-1, pixels).T.contiguous()
            message = sum(weight * kernel.apply(columns) for kernel, weight in self.kernels)
            q = (evidence + message.T.reshape(evidence.shape)).softmax(dim=1)
        return q.reshape(unary.shape)


def unary_of(scores: Tensor) -> Tensor:
    """Negative logarithm of scores (L, H, W) in 0..1, clipped at 1e-5, as in the reference."""
    return -scores.clamp(CLIP, 1).log()


def with_background(cam: Tensor, alpha: float) -> Tensor:
    """Scores (1 + K', H, W) in 0..1: background ``(1 - max cam)^alpha``, then CAMs (K', H, W).

    Raises ValueError for alpha that is not positive and finite, CAMs of another shape, outside
    0..1, or NaN.
    """
    if not 0 < alpha < float("inf"):
        raise ValueError(f"alpha must be positive and finite, got {alpha}")
    if cam.ndim != 3:
        raise ValueError(f"cam must be (K', H, W), got shape {tuple(cam.shape)}")
    if len(cam) and not (cam.amin() >= 0 and cam.amax() <= 1):
        raise ValueError(f"a CAM must lie in 0..1, got {cam.amin():.3g}..{cam.amax():.3g}")
    strongest = cam.amax(dim=0) if len(cam) else cam.new_zeros(cam.shape[1:])
    return torch.cat([(1 - strongest)[None] ** alpha, cam])


def refine(
    image: np.ndarray, cam: Tensor, alphas: Sequence[float], *, iterations: int = 10
) -> list[Tensor]:
    """Posteriors (1 + K', H, W) of a seed's CAMs (K', H, W), one for every background power."""
    crf = DenseCRF(image, device=cam.device)
    unaries = torch.stack([unary_of(with_background(cam, alpha)) for alpha in alphas])
    return list(crf.infer(unaries, iterations=iterations))


def _places(height: int, width: int, device: torch.device) -> Tensor:
    """(H·W, 2): x and y of every pixel."""
    sides = (torch.arange(side, device=device) for side in (height, width))
    y, x = torch.meshgrid(*sides, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2).float()


@lru_cache(maxsize=8)
def _spatial_lattice(height: int, width: int, deviation: float, device: torch.device) -> Lattice:
    with torch.inference_mode(False):  # it is kept, and may serve a caller outside that mode
        return Lattice(_places(height, width, device) / deviation)


def _enclosing_simplex(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex around every point: nearest, int64 in units of d + 1, rank, weights (N, d+1)."""
    n, d = features.shape
    steps = torch.arange(1, d + 1, device=features.device, dtype=features.dtype)
    scaled = features * ((2 / 3) ** 0.5 * (d + 1) / (steps * (steps + 1)).sqrt())
    # Into the hyperplane of d + 1 coordinates with sum 0.
    tails = torch.cat([scaled.flip(1).cumsum(1).flip(1), torch.zeros_like(scaled[:, :1])], dim=1)
    elevated = tails - torch.cat([torch.zeros_like(scaled[:, :1]), steps * scaled], dim=1)
    # The nearest point whose coordinates are multiples of d + 1, and the order of what remains.
    nearest = torch.round(elevated / (d + 1))
    excess = nearest.sum(dim=1, keepdim=True).long()
    rank = _descending_rank(elevated - nearest * (d + 1)) + excess
    below, above = rank < 0, rank > d
    nearest = nearest.long() + below.long() - above.long()
    rank = rank + (d + 1) * (below.long() - above.long())
    # Barycentric coordinates from the sorted remainders.
    distance = (elevated - nearest * (d + 1)) / (d + 1)
    weights = torch.zeros(n, d + 2, dtype=features.dtype, device=features.device)
    weights.scatter_add_(1, d - rank, distance)
    weights.scatter_add_(1, d + 1 - rank, -distance)
    weights[:, 0] += 1 + weights[:, d + 1]
    return nearest, rank, weights[:, : d + 1]


def _descending_rank(values: Tensor) -> Tensor:
    """Place of every value in its row, the largest first, ties in order; faster than sorting."""
    rank = torch.zeros(values.shape, dtype=torch.int64, device=values.device)
    for i in range(values.shape[1]):
        for j in range(i + 1, values.shape[1]):
            later = values[:, i] < values[:, j]
            rank[:, i] += later
            rank[:, j] += ~later
    return rank


def _vertex_keys(nearest: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """The d + 1 vertices of every simplex as an int64 each, keys (N, d+1), and their radix (d,).

    Keys leave room for all neighbours.  The vertex of colour k lies k above the nearest point in
    every coordinate, less d + 1 in the k coordinates of highest rank.
    Raises ValueError where the points lie so far apart that the keys do not fit.
    """
    d = nearest.shape[1] - 1
    base = nearest[:, :d] * (d + 1)
    low = base.amin(dim=0) - 2 * d - 1
    span = base.amax(dim=0) + 2 * d + 1 - low + 1
    if span.double().log2().sum() > 62:
        problem = f"the lattice is too large, {span.tolist()} cells"
        raise ValueError(f"{problem}: the standard deviations are too small")
    radix = torch.cat([torch.ones_like(span[:1]), span[:-1].cumprod(0)])
    by_rank = torch.zeros_like(nearest).scatter_(1, d - rank[:, :d], radix.expand(len(base), d))
    dropped = torch.cat([torch.zeros_like(by_rank[:, :1]), by_rank[:, :d].cumsum(1)], dim=1)
    colours = torch.arange(d + 1, device=nearest.device) * radix.sum()
    return ((base - low) * radix).sum(dim=1, keepdim=True) + colours - (d + 1) * dropped, radix


def _neighbours(vertices: Tensor, radix: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Per axis the rows of both neighbours of every vertex; len(vertices) where there is none."""
    total, d = int(radix.sum()), len(radix)
    neighbours = []
    for axis in range(d + 1):
        step = total - (int(radix[axis]) * (d + 1) if axis < d else 0)
        neighbours.append(tuple(_lookup(vertices, vertices + sign * step) for sign in (-1, 1)))
    return neighbours


def _lookup(vertices: Tensor, wanted: Tensor) -> Tensor:
    place = torch.searchsorted(vertices, wanted).clamp(max=len(vertices) - 1)
    return torch.where(vertices[place] == wanted, place, len(vertices))


def _matrices(
    index: Tensor, splatted: Tensor, sliced: Tensor, n_vertices: int
) -> tuple[Tensor, Tensor]:
    """splat (M, N) and slice (N, M) as CSR; index (N, d+1): vertices, with a weight each way."""
    n, corners = index.shape
    starts = torch.arange(0, n * corners + 1, corners, device=index.device)
    points = torch.arange(n, device=index.device).repeat_interleave(corners)
    index, splatted, sliced = (part.reshape(-1) for part in (index, splatted, sliced))
    slice_ = sparse.from_rows(starts, index, sliced, (n, n_vertices))
    return sparse.from_entries(index, points, splatted, (n_vertices, n)), slice_


def _scaled(matrices: tuple[Tensor, Tensor], root_norm: Tensor) -> tuple[Tensor, Tensor]:
    """splat and slice times D^-1/2 of their points (N,), on both sides of the kernel."""
    splat, slice_ = matrices
    corners = slice_.col_indices().numel() // len(root_norm)
    splat_values = splat.values() * root_norm[splat.col_indices()]
    slice_values = slice_.values() * root_norm.repeat_interleave(corners)
    return (
        sparse.from_rows(splat.crow_indices(), splat.col_indices(), splat_values, splat.shape),
        sparse.from_rows(slice_.crow_indices(), slice_.col_indices(), slice_values, slice_.shape),
    )
