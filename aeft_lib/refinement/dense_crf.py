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

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CLIP = 1e-5
BLOCK = 1 << 14  # pixels whose labels stay in a CPU's cache: 0.5 MB for two problems of four


class Simplices(NamedTuple):
    """The simplex around each of N points, in coordinates of the lattice's hyperplane.

    nearest: (d, N) float, the first d coordinates of the nearest vertex of colour 0, in units of
    d + 1.  order: (d + 1, N) int8, coordinates by falling remainder.  weights: (N, d + 1),
    barycentric, by colour.
    """

    nearest: Tensor
    order: Tensor
    weights: Tensor


class Splat(NamedTuple):
    """Sums over the points of every vertex, and of a last row without any: `embedding_bag`'s.

    starts: (M + 2,) int32, where a vertex begins in points and weights, (N · (d + 1),).
    """

    starts: Tensor
    points: Tensor
    weights: Tensor


class Numbering(NamedTuple):
    """Vertices as integers, digits of a mixed radix, ``colour · cells + sum_i (m_i - low_i) · r_i``

    with m the first d coordinates in units of d + 1, less the colour.  It leaves room for all
    neighbours.  low: (d,) float.  radix: (d + 1,) int64; the last coordinate, which the others
    determine, has 0.
    """

    low: Tensor
    radix: Tensor
    cells: int


class Lattice:
    """The permutohedral lattice of N points in d dimensions, with unit standard deviations.

    features: (N, d) float, already divided by the kernel's standard deviations.  The lattice keeps
    splat; index and weights, (N, d + 1), by which a point slices; and per axis the rows of both
    neighbours of every vertex.  Row M, of zeros, stands for absent neighbours.
    """

    def __init__(self, features: Tensor) -> None:
        """Raises ValueError where features are not a finite (N, d) float tensor."""
        floating = features.ndim == 2 and features.is_floating_point()
        if not floating or not bool(features.isfinite().all()):
            kind = f"{features.dtype} {tuple(features.shape)}"
            raise ValueError(f"features must be a finite (N, d) float tensor, got {kind}")
        n, d = features.shape
        # The C++ library takes four points at a time and fills up with points at the origin.  They
        # carry nothing, but their vertices let the blur of near points pass: up to 0.02 in single
        # dark pixels, so they are kept.
        if n % 4:
            features = torch.cat([features, features.new_zeros(-n % 4, d)])
        simplices = _simplices(features)
        simplices.weights[n:] = 0
        numbering = _numbering(simplices.nearest)
        keys, index, self.splat = _vertices(simplices, numbering)
        self.splat.points.clamp_(max=n - 1)  # what fills up has weight 0 and no values
        self.neighbours = _neighbours(keys, numbering)
        self.index, self.weights = index[:n], simplices.weights[:n].div_(1 + 2.0**-d)
        del simplices, features
        self._normalise()

    def _normalise(self) -> None:
        """D^-1/2 on both sides of the kernel."""
        norm = self.apply(torch.ones_like(self.weights[:, :1]))
        root = (norm + 1e-20).rsqrt_()
        self.weights *= root
        colours = self.weights.shape[1]  # one after the other: a temporary as long as the points
        parts = (part.view(colours, -1) for part in self.splat[1:])
        for points, weights in zip(*parts, strict=True):
            weights *= root[:, 0].index_select(0, points)

    def apply(self, values: Tensor) -> Tensor:
        """The symmetrically normalised kernel times values (N, L)."""
        return self.sliced(self.blurred(values), slice(None))

    def blurred(self, values: Tensor) -> Tensor:
        """Values (N, L), splatted and blurred: (M + 1, L)."""
        starts, points, weights = self.splat
        on_lattice = F.embedding_bag(
            points, values, starts, mode="sum", per_sample_weights=weights, include_last_offset=True
        )
        for before, after in self.neighbours:
            beside = on_lattice.index_select(0, before).add_(on_lattice.index_select(0, after))
            on_lattice = on_lattice.add_(beside, alpha=0.5)
        return on_lattice

    def sliced(self, on_lattice: Tensor, rows: slice) -> Tensor:
        """Values of these points, (n, L)."""
        index, weights = self.index[rows], self.weights[rows]
        return F.embedding_bag(index, on_lattice, mode="sum", per_sample_weights=weights)


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
        colours = torch.from_numpy(image.copy()).to(device).reshape(-1, 3)
        places = _places(*self.size, colours.device)
        features = torch.cat([places / bilateral[0], colours / bilateral[1]], dim=1)
        appearance = Lattice(features)  # first: its construction needs the most memory
        del places, features
        spatial = _spatial_lattice(*self.size, float(gaussian[0]), torch.device(device))
        self.kernels = ((spatial, gaussian[1]), (appearance, bilateral[2]))

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
        energy = unary.float().reshape(-1, pixels)
        q = torch.empty(pixels, len(energy), device=unary.device)  # the lattice wants labels last
        for rows in _blocks(q):
            q[rows] = _posterior(-energy[:, rows], labels)
        for iteration in range(iterations):
            on_lattice = [(kernel, weight * kernel.blurred(q)) for kernel, weight in self.kernels]
            if iteration == iterations - 1:
                q = torch.empty_like(energy).T  # the result has pixels last
            for rows in _blocks(q):
                message = sum(kernel.sliced(values, rows) for kernel, values in on_lattice)
                q[rows] = _posterior(message.T.contiguous().sub_(energy[:, rows]), labels)
        return q.T.reshape(unary.shape)


def unary_of(scores: Tensor) -> Tensor:
    """Negative logarithm of scores (L, H, W) in 0..1, clipped at 1e-5, as in the reference."""
    return scores.clamp(CLIP, 1).log_().neg_()


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
    unaries = cam.new_empty(len(alphas), len(cam) + 1, *cam.shape[1:])
    for i, alpha in enumerate(alphas):
        unaries[i] = unary_of(with_background(cam, alpha))
    return list(crf.infer(unaries, iterations=iterations))


def _posterior(scores: Tensor, labels: int) -> Tensor:
    """Softmax over the labels of each problem, (A · L, n) -> (n, A · L).

    It works with pixels last: over a short last axis, softmax is twenty times slower.
    """
    return scores.reshape(-1, labels, scores.shape[1]).softmax(dim=1).flatten(0, 1).T


def _places(height: int, width: int, device: torch.device) -> Tensor:
    """(H·W, 2): x and y of every pixel."""
    sides = (torch.arange(side, device=device, dtype=torch.float32) for side in (height, width))
    y, x = torch.meshgrid(*sides, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


@lru_cache(maxsize=8)
def _spatial_lattice(height: int, width: int, deviation: float, device: torch.device) -> Lattice:
    with torch.inference_mode(False):  # it is kept, and may serve a caller outside that mode
        return Lattice(_places(height, width, device) / deviation)


def _blocks(points: Tensor) -> list[slice]:
    """Slices of the first axis: all points on a GPU, parts that stay in the cache on a CPU."""
    size = BLOCK if points.device.type == "cpu" else max(len(points), 1)
    return [slice(start, start + size) for start in range(0, len(points), size)]


def _simplices(features: Tensor) -> Simplices:
    n, d = features.shape
    nearest = features.new_empty(d, n)
    order = torch.empty(d + 1, n, dtype=torch.int8, device=features.device)
    weights = features.new_empty(n, d + 1)
    for rows in _blocks(features):
        near, order[:, rows], weight = _enclosing_simplex(features[rows])
        nearest[:, rows], weights[rows] = near[:d], weight.T
    return Simplices(nearest, order, weights)


def _enclosing_simplex(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """nearest, order and weights of points (n, d), (d + 1, n) each, see `Simplices`."""
    n, d = features.shape
    steps = torch.arange(1, d + 1, device=features.device, dtype=features.dtype)
    scaled = (features * ((2 / 3) ** 0.5 * (d + 1) / (steps * (steps + 1)).sqrt())).T
    # Into the hyperplane of d + 1 coordinates with sum 0.
    elevated = features.new_zeros(d + 1, n)
    for step in range(d, 0, -1):
        torch.sub(elevated[0], scaled[step - 1], alpha=step, out=elevated[step])
        elevated[0] += scaled[step - 1]
    # The nearest point whose coordinates are multiples of d + 1, and the order of what remains.
    nearest = (elevated / (d + 1)).round_()
    remainder = elevated.sub_(nearest, alpha=d + 1)
    rank = _descending_rank(remainder).add_(nearest.sum(dim=0).to(torch.int8))
    shift = (rank < 0).view(torch.int8) - (rank > d).view(torch.int8)
    rank = rank.add_(shift, alpha=d + 1).clamp_(0, d).long()  # clamped: floats of a huge lattice
    nearest += shift
    remainder.sub_(shift, alpha=d + 1).div_(d + 1)
    # Barycentric coordinates from the sorted remainders.
    falling = torch.empty_like(remainder).scatter_(0, rank, remainder)
    weights = torch.cat([1 + falling[d:] - falling[:1], (falling[:-1] - falling[1:]).flip(0)])
    coordinates = torch.arange(d + 1, dtype=torch.int8, device=rank.device)[:, None]
    order = torch.empty_like(shift).scatter_(0, rank, coordinates.expand_as(shift))
    return nearest, order, weights


def _descending_rank(values: Tensor) -> Tensor:
    """Place of every value in its column, (d + 1, n) int8, the largest first, ties in order.

    It is faster than sorting.
    """
    places = torch.arange(len(values), dtype=torch.int8, device=values.device)
    rank = places[:, None].repeat(1, values.shape[1])
    for i in range(len(values)):
        for j in range(i + 1, len(values)):
            later = (values[i] < values[j]).view(torch.int8)
            rank[i] += later
            rank[j] -= later
    return rank


def _numbering(nearest: Tensor) -> Numbering:
    """Raises ValueError where the points lie so far apart that int64 does not hold the keys."""
    low = nearest.amin(dim=1) - 2
    span = (nearest.amax(dim=1) + 2 - low).double()
    if span.log2().sum() > 58:
        problem = f"the lattice is too large, {span.long().tolist()} cells"
        raise ValueError(f"{problem}: the standard deviations are too small")
    products = span.long().cumprod(0)
    ends = torch.ones_like(products[:1]), torch.zeros_like(products[:1])
    return Numbering(low, torch.cat([ends[0], products[:-1], ends[1]]), int(products[-1]))


def _vertices(simplices: Simplices, numbering: Numbering) -> tuple[Tensor, Tensor, Splat]:
    """Keys (M,) int64, ascending; every point's vertices by colour (N, d + 1) int32; and splat.

    No two colours share a vertex, so the points are sorted colour by colour.
    """
    weights = simplices.weights
    index = torch.empty_like(weights, dtype=torch.int32)
    points, splatted = (part.new_empty(part.shape[::-1]) for part in (index, weights))
    keys, starts, count = [], [], 0
    for colour, key in enumerate(_keys(simplices, numbering)):
        key, order = key.sort(stable=True)
        first = torch.ones_like(key, dtype=torch.bool)
        torch.ne(key[1:], key[:-1], out=first[1:])
        place = first.cumsum(0, dtype=torch.int32).add_(count - 1)
        index[:, colour].scatter_(0, order, place)
        points[colour], splatted[colour] = order, weights[:, colour].take(order)
        begins = first.nonzero()[:, 0]
        keys.append(key.index_select(0, begins).long() + colour * numbering.cells)
        starts.append(begins + colour * len(key))
        count += len(begins)
    starts.append(starts[0].new_full((2,), points.numel()))  # the last end, and the row of none
    splat = Splat(torch.cat(starts).int(), points.flatten(), splatted.flatten())
    return torch.cat(keys), index, splat


def _keys(simplices: Simplices, numbering: Numbering) -> Iterator[Tensor]:
    """Every point's vertex of colour 0, 1, .., d: (N,) keys without their colour.

    The vertex of colour k lies k above the nearest point in every coordinate, less d + 1 in the k
    coordinates of highest rank.  The tensor is changed in place.
    """
    low, radix, cells = numbering
    kind = torch.int32 if cells < 2**31 else torch.int64
    key = torch.zeros_like(simplices.nearest[0], dtype=kind)
    for coordinate, lowest, factor in zip(simplices.nearest, low, radix.tolist(), strict=False):
        key += (coordinate - lowest).to(kind) * factor
    yield key
    for coordinate in simplices.order[1:].flip(0):
        key -= radix.to(kind).index_select(0, coordinate.int())
        yield key


def _neighbours(keys: Tensor, numbering: Numbering) -> list[tuple[Tensor, Tensor]]:
    """Per axis the rows of both neighbours of every vertex; len(keys) where there is none.

    Along an axis a vertex moves by 1 in every coordinate, less d + 1 in that of the axis; so its
    colour moves by 1, and from the last one to the first in the next cell.
    """
    _, radix, cells = numbering
    absent, d = len(keys), len(radix) - 1
    rows = torch.arange(absent, device=keys.device, dtype=torch.int32)
    step = torch.where(keys < d * cells, cells, int(radix.sum()) - d * cells)
    neighbours = []
    for factor in radix.tolist():
        wanted = keys + step - factor
        place = torch.searchsorted(keys, wanted, out_int32=True).clamp_(max=absent - 1)
        present = keys[place] == wanted
        before, after = (rows.new_full((absent + 1,), absent) for _ in range(2))
        after[:-1][present] = place[present]
        before[place[present]] = rows[present]
        neighbours.append((before, after))
    return neighbours
