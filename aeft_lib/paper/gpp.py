"""Pooling of class activation maps: GAP, and the paper's Gated Pyramid Pooling layer (GPP).

GPP (the poster's first idea, poster Eq. 5) pools the signed CAM ``f`` at several levels, fuses the
levels coarse to fine through one gate per sign, and lets the fused pyramid attend ``f``::

    P_r    = up(adaptive_avg_pool(f, r x r))                                  r in levels
    G(x,y) = (relu(x) a1 + relu(y) a2) / 2 - (relu(-x) b1 + relu(-y) b2) / 2
    logit  = GAP(relu(f) relu(P^)) - GAP(relu(-f) relu(-P^))                  P^ = last fused map

Departures from the reference: none in the numbers of the paper's layer.  Two predictions
(`VARIANTS`) and the gates' gain are ours.  Pooling and bilinear up-sampling are linear and
separable, so each axis is one small matrix: the same result, and deterministic on CUDA, where the
backward of both operators is not.

Shapes: B images, K classes (no background), h x w feature map.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from operator import index
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAPER_LEVELS = (2, 4, 8, 16)
PAPER_SIDE = 40  # cells along one side of the paper's map
FUSIONS = ("gated", "average", "inverse", "single")
PREDICTIONS = ("sign_preserving", "positive_only", "attention_off")
VARIANTS = ("square_root", "normalised")  # predictions of ours, see notebook 8
ROOT_EPS = 1e-4  # bounds the gradient of a root near 0


class PooledPrediction(NamedTuple):
    """A pooled CAM (B, K, h, w).

    logits: (B, K), before the sigmoid.
    attention: (B, K, h, w) signed map that weighs the CAM (the paper's P^_16); None for GAP.
    pyramid: the pooled levels P_r, coarse to fine, each (B, K, h, w); empty for GAP.
    fused: the maps after each fusion step, the last is ``attention``; empty without fusion.
    """

    logits: Tensor
    attention: Tensor | None
    pyramid: tuple[Tensor, ...]
    fused: tuple[Tensor, ...]


class GateMaps(NamedTuple):
    """Gates of a fusion step, (B, 2, h, w) in 0..1: channel 0 for its first map, 1 its second."""

    positive: Tensor
    negative: Tensor


def check_cam(cam: Tensor, num_classes: int | None = None) -> None:
    """Raises ValueError for no floating (B, K, h, w) map, or another K than `num_classes`."""
    if cam.ndim != 4 or not cam.is_floating_point():
        kind = f"{cam.dtype} of shape {tuple(cam.shape)}"
        raise ValueError(f"cam must be a floating (B, K, h, w) tensor, got {kind}")
    k = cam.shape[1]
    if num_classes not in (None, k):
        raise ValueError(f"cam has K={k} classes, this layer was built for K={num_classes}")


@lru_cache(maxsize=256)
def _level_matrix(side: int, level: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(side, side) matrix M: x @ M averages the last axis over `level` bins, stretched back.

    Made in float64, on the CPU, once for each size, device and type.
    """
    with torch.inference_mode(False), torch.no_grad():
        cells = torch.eye(side, dtype=torch.float64, device="cpu")[None]
        bins = F.adaptive_avg_pool1d(cells, level)
        matrix = F.interpolate(bins, size=side, mode="linear", align_corners=False)[0]
        return matrix.to(device, dtype)


@torch.compiler.assume_constant_result
def _constant_matrix(*arguments: Any) -> Tensor:
    """As `_level_matrix`; in a compiled graph a constant, and not how it is made."""
    return _level_matrix(*arguments)


def pool_level(cam: Tensor, level: int) -> Tensor:
    """P_r: the CAM averaged over level x level bins, bilinear back to its size.

    cam: (B, K, h, w) signed.  Returns the same shape.  A level above h or w is allowed, as in the
    reference: bins then repeat cells, and the map comes back slightly smoothed.
    """
    h, w = map(index, cam.shape[-2:])  # plain integers, also where torch.compile has symbols
    rows, columns = (_constant_matrix(side, level, cam.device, cam.dtype) for side in (h, w))
    return rows.mT @ cam @ columns


def scaled_levels(
    side: int, levels: Sequence[int] = PAPER_LEVELS, paper_side: int = PAPER_SIDE
) -> tuple[int, ...]:
    """The paper's levels for a map of another side: the same cells per bin.

    Rounded, at least 1 and strictly increasing, so that every row of the paper's table keeps a
    counterpart:

    >>> scaled_levels(40), scaled_levels(20), scaled_levels(16), scaled_levels(6)
    ((2, 4, 8, 16), (1, 2, 4, 8), (1, 2, 3, 6), (1, 2, 3, 4))
    """
    scaled: list[int] = []
    for level in levels:
        scaled.append(max(round(level * side / paper_side), scaled[-1] + 1 if scaled else 1))
    return tuple(scaled)


def sign_preserving_prediction(cam: Tensor, attention: Tensor) -> Tensor:
    """Poster Eq. 5, (B, K): positive evidence attended by positive attention, minus the negative.

    >>> f = torch.tensor([[[[2.0, -1.0]]]])
    >>> sign_preserving_prediction(f, f).item()        # (2*2 - 1*1) / 2
    1.5
    """
    signed = cam.relu() * attention.relu() - (-cam).relu() * (-attention).relu()
    return signed.mean(dim=(2, 3))


def square_root_prediction(cam: Tensor, attention: Tensor) -> Tensor:
    """Eq. 5 with the geometric mean of CAM and attention, not their product (ours), (B, K).

    Twice the CAM is twice the logit, where Eq. 5 gives four times: bright positions do not outweigh
    the others as squares do.

    >>> f = torch.tensor([[[[2.0, -1.0]]]])
    >>> round(square_root_prediction(f, f).item(), 2)        # (2 - 1) / 2
    0.5
    """

    def root(product: Tensor) -> Tensor:
        return (product + ROOT_EPS).sqrt() - ROOT_EPS**0.5

    signed = root(cam.relu() * attention.relu()) - root((-cam).relu() * (-attention).relu())
    return signed.mean(dim=(2, 3))


def normalised_prediction(cam: Tensor, attention: Tensor) -> Tensor:
    """Eq. 5 over the sum of the attention: a weighted mean of the CAM (ours), (B, K).

    Where signs differ the CAM counts as 0, as in Eq. 5; with the same attention everywhere it is
    GAP of the agreeing part.

    >>> f = torch.tensor([[[[2.0, -1.0]]]])
    >>> round(normalised_prediction(f, f).item(), 2)        # (2*2 - 1*1) / (2 + 1)
    1.0
    """
    signed = cam.relu() * attention.relu() - (-cam).relu() * (-attention).relu()
    return signed.sum(dim=(2, 3)) / (attention.abs().sum(dim=(2, 3)) + 1e-6)


PRODUCTS = {
    "sign_preserving": sign_preserving_prediction,
    "square_root": square_root_prediction,
    "normalised": normalised_prediction,
}


class GlobalAveragePooling(nn.Module):
    """The baseline: logit = GAP(f), every position with the same weight.

    >>> GlobalAveragePooling()(torch.tensor([[[[2.0, -1.0]]]])).logits.item()
    0.5
    """

    def forward(self, cam: Tensor) -> PooledPrediction:
        """cam: (B, K, h, w) signed.  Raises ValueError for another shape or an integer type."""
        check_cam(cam)
        return PooledPrediction(cam.mean(dim=(2, 3)), None, (), ())


class SignedGate(nn.Module):
    """G(x, y): a pair of gates per sign, shared by all classes, from a 3x3 convolution over both.

    ``a = sigmoid(W+ * [relu(x); relu(y)]),  b = sigmoid(W- * [relu(-x); relu(-y)])``, 2K -> 2
    channels without bias.

    gain: 1 is the paper's.  Gates begin near one half, so each step halves the maps it joins; with
        2 it begins as the mean of both.
    """

    def __init__(self, *, num_classes: int, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.positive = nn.Conv2d(2 * num_classes, 2, kernel_size=3, padding=1, bias=False)
        self.negative = nn.Conv2d(2 * num_classes, 2, kernel_size=3, padding=1, bias=False)

    def gates(self, x: Tensor, y: Tensor) -> GateMaps:
        """The two gate maps for x and y, both (B, K, h, w) signed."""
        both = torch.cat([x, y], dim=1)
        convolved = self.positive(both.relu()), self.negative((-both).relu())
        return GateMaps(*(maps.sigmoid() for maps in convolved))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The gated mean of x and y, sign by sign.  (B, K, h, w)."""
        a, b = self.gates(x, y)
        positive = x.relu() * a[:, :1] + y.relu() * a[:, 1:]
        negative = (-x).relu() * b[:, :1] + (-y).relu() * b[:, 1:]
        return self.gain * (positive - negative) / 2


class PyramidPooling(nn.Module):
    """The GPP layer and the rivals of the poster's first table.

    fusion: "gated" fuses coarse to fine (the paper's G), "inverse" fine to coarse (G_I), "average"
        is the plain mean of the levels (A), "single" takes one level and has no fusion.
    prediction: "sign_preserving" is Eq. 5; "positive_only" drops its negative half; "attention_off"
        averages the fused pyramid as it is, without attending the CAM; "square_root" and
        "normalised" are linear in the size of the CAM.
    gate_gain: of `SignedGate`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        levels: Sequence[int] = PAPER_LEVELS,
        fusion: str = "gated",
        prediction: str = "sign_preserving",
        gate_gain: float = 1.0,
    ) -> None:
        """Raises ValueError for an argument that is out of range or levels that do not increase."""
        super().__init__()
        levels = tuple(levels)
        self.num_classes, self.levels = num_classes, levels
        self.fusion, self.prediction, self.gate_gain = fusion, prediction, gate_gain
        known = {"fusion": FUSIONS, "prediction": (*PREDICTIONS, *VARIANTS)}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"{name} must be one of {', '.join(values)}, got {getattr(self, name)!r}"
                )
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if not isinstance(gate_gain, int | float) or not 0 < gate_gain < math.inf:
            raise ValueError(f"gate_gain must be positive and finite, got {gate_gain!r}")
        if not levels or levels[0] < 1 or any(a >= b for a, b in pairwise(levels)):
            rule = "positive and strictly increasing (coarse to fine)"
            raise ValueError(f"levels must be {rule}, got {levels}")
        if (fusion == "single") != (len(levels) == 1):
            problem = f"fusion={fusion!r} with levels {levels}"
            raise ValueError(f'fusion="single" goes with exactly one level, got {problem}')
        n_gates = len(levels) - 1 if fusion in ("gated", "inverse") else 0
        gates = (SignedGate(num_classes=num_classes, gain=gate_gain) for _ in range(n_gates))
        self.gates = nn.ModuleList(gates)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, fusion={self.fusion!r}, prediction={self.prediction!r}"

    def forward(self, cam: Tensor) -> PooledPrediction:
        """cam: (B, K, h, w) signed.  Raises ValueError for another shape, K, or an integer type."""
        pyramid = self.pool(cam)
        fused = self._fuse(pyramid)
        attention = fused[-1] if fused else pyramid[0]
        if self.prediction == "attention_off":
            logits = attention.mean(dim=(2, 3))
        elif self.prediction == "positive_only":
            logits = (cam.relu() * attention.relu()).mean(dim=(2, 3))
        else:
            logits = PRODUCTS[self.prediction](cam, attention)
        return PooledPrediction(logits, attention, pyramid, fused)

    def pool(self, cam: Tensor) -> tuple[Tensor, ...]:
        """The pyramid P_r of a signed CAM, coarse to fine."""
        check_cam(cam, self.num_classes)
        return tuple(pool_level(cam, level) for level in self.levels)

    def gate_maps(self, cam: Tensor) -> tuple[GateMaps, ...]:
        """The gates of every fusion step for a signed CAM, in order; empty without gates."""
        if not self.gates:
            return ()
        pyramid = self.pool(cam)
        levels = self._fusion_order(pyramid)
        pairs = zip((levels[0], *self._fuse(pyramid)[:-1]), levels[1:], strict=True)
        return tuple(gate.gates(*pair) for gate, pair in zip(self.gates, pairs, strict=True))

    def _fusion_order(self, pyramid: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return pyramid[::-1] if self.fusion == "inverse" else pyramid

    def _fuse(self, pyramid: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """All fusion steps, in order."""
        if self.fusion == "single":
            return ()
        if self.fusion == "average":
            return (torch.stack(pyramid).mean(dim=0),)
        first, *rest = self._fusion_order(pyramid)
        fused: list[Tensor] = []
        for gate, level in zip(self.gates, rest, strict=True):
            fused.append(gate(fused[-1] if fused else first, level))
        return tuple(fused)


@dataclass(frozen=True)
class Gap:
    """Global average pooling, as a value."""

    def build(self, num_classes: int) -> GlobalAveragePooling:
        """The layer; it is the same for every K."""
        return GlobalAveragePooling()

    def fitted(self, side: int) -> "Gap":
        """Itself: it has no bins."""
        return self


@dataclass(frozen=True)
class Pyramid:
    """The GPP layer or one of its rivals, as a value; fields as of `PyramidPooling`.

    levels: bins of the paper's 40x40 map, which `fitted` turns into those of the map at hand;
    printed: they are bins of the map at hand already.
    """

    fusion: str = "gated"
    levels: tuple[int, ...] = PAPER_LEVELS
    prediction: str = "sign_preserving"
    gate_gain: float = 1.0
    printed: bool = False

    def build(self, num_classes: int) -> PyramidPooling:
        """The layer for K classes.  Raises ValueError as `PyramidPooling` does."""
        names = ("levels", "fusion", "prediction", "gate_gain")
        fields = {name: getattr(self, name) for name in names}
        return PyramidPooling(num_classes=num_classes, **fields)

    def fitted(self, side: int) -> "Pyramid":
        """The layer for a map of `side` cells: the same cells per bin; printed bins where they fit.

        >>> Pyramid(levels=(2, 16)).fitted(16).levels, Pyramid(printed=True).fitted(12).levels
        ((1, 6), (2, 4, 8))
        """
        if self.printed:
            return replace(self, levels=tuple(level for level in self.levels if level <= side))
        scaled = dict(zip(PAPER_LEVELS, scaled_levels(side), strict=True))
        levels = tuple(scaled[level] for level in self.levels)
        if levels[-1] > side:
            problem = f"a {side}x{side} map has no room for levels {levels}"
            raise ValueError(f"{problem}: take larger scenes")
        return replace(self, levels=levels, printed=True)
