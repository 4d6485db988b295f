"""Pooling of class activation maps: GAP, and the paper's Gated Pyramid Pooling layer (GPP).

GPP (the poster's first idea, poster Eq. 5) pools the signed CAM ``f`` at several levels, fuses the
levels coarse to fine through one gate per sign, and lets the fused pyramid attend ``f``::

    P_r    = up(adaptive_avg_pool(f, r x r))                                  r in levels
    G(x,y) = (relu(x) a1 + relu(y) a2) / 2 - (relu(-x) b1 + relu(-y) b2) / 2
    logit  = GAP(relu(f) relu(P^)) - GAP(relu(-f) relu(-P^))                  P^ = last fused map

Departures from the reference: none in the numbers of the paper's layer; two predictions and a gain
    are ours, and say so.
Pooling and bilinear up-sampling are linear and separable, so each axis is one small matrix: the
same result, and deterministic on CUDA, where the backward of both operators is not.

Shapes: B images, K classes (no background), h x w feature map.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAPER_LEVELS = (2, 4, 8, 16)
PAPER_SIDE = 40  # cells along one side of the paper's map
FUSIONS = ("gated", "average", "inverse", "single")
PREDICTIONS = ("sign_preserving", "positive_only", "attention_off")
VARIANTS = ("square_root", "normalised")  # predictions of ours, see notebook 8
ROOT_EPS = (
    1e-4  # below it a product of CAM and attention has no root to speak of, and a bounded gradient
)


class PooledPrediction(NamedTuple):
    """What a pooling layer makes of a signed CAM (B, K, h, w).

    logits: (B, K), before the sigmoid.
    attention: (B, K, h, w) signed map that weighs the CAM (the paper's P^_16); None for GAP, which
        weighs nothing.
    pyramid: the pooled levels P_r, coarse to fine, each (B, K, h, w); empty for GAP.
    fused: the maps after each fusion step, the last one is ``attention``; empty where nothing is
        fused.
    """

    logits: Tensor
    attention: Tensor | None
    pyramid: tuple[Tensor, ...]
    fused: tuple[Tensor, ...]


class GateMaps(NamedTuple):
    """Gates of one fusion step, each (B, 2, h, w) in 0..1:

    channel 0 weighs the first map, channel 1 the second.
    """

    positive: Tensor
    negative: Tensor


def check_cam(cam: Tensor, num_classes: int | None = None) -> None:
    """Refuse what is not a floating (B, K, h, w) map, or has another K than `num_classes`."""
    if cam.ndim != 4 or not cam.is_floating_point():
        raise ValueError(
            f"cam must be a floating (B, K, h, w) tensor, got {cam.dtype} of shape {tuple(cam.shape)}"
        )
    if num_classes is not None and cam.shape[1] != num_classes:
        raise ValueError(
            f"cam has K={cam.shape[1]} classes, this layer was built for K={num_classes}"
        )


@lru_cache(maxsize=256)
def _level_matrix(side: int, level: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(side, side) matrix M:

    x @ M averages x over `level` bins along its last axis and stretches them back.
    """
    with torch.inference_mode(False), torch.no_grad():
        bins = F.adaptive_avg_pool1d(torch.eye(side, dtype=torch.float64)[None], level)
        return F.interpolate(bins, size=side, mode="linear", align_corners=False)[0].to(
            device, dtype
        )


def pool_level(cam: Tensor, level: int) -> Tensor:
    """P_r: the CAM averaged over level x level bins, bilinear back to its own size
    (align_corners=False).

    cam: (B, K, h, w) signed.  Returns the same shape.  A level above h or w is allowed, as in the
        reference: bins then
    repeat cells, and the map comes back slightly smoothed.
    """
    h, w = cam.shape[-2:]
    rows, columns = (_level_matrix(side, level, cam.device, cam.dtype) for side in (h, w))
    return rows.mT @ cam @ columns


def scaled_levels(
    side: int, levels: Sequence[int] = PAPER_LEVELS, paper_side: int = PAPER_SIDE
) -> tuple[int, ...]:
    """The paper's levels for a map of another side: the same cells per bin (16 bins on 40 cells are
    2.5 cells each).

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
    """Poster Eq. 5: positive evidence attended by positive attention, minus negative by negative.
    Returns (B, K).

    >>> f = torch.tensor([[[[2.0, -1.0]]]])
    >>> sign_preserving_prediction(f, f).item()        # (2*2 - 1*1) / 2
    1.5
    """
    signed = cam.relu() * attention.relu() - (-cam).relu() * (-attention).relu()
    return signed.mean(dim=(2, 3))


def square_root_prediction(cam: Tensor, attention: Tensor) -> Tensor:
    """Eq. 5 with the geometric mean of CAM and attention in place of their product (not the
    paper's).  Returns (B, K).

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
    """Eq. 5 over the sum of the attention: a mean of the CAM with weights that add up to 1 (not the
    paper's).  Returns (B, K).

    Where signs differ the CAM counts as 0, as in Eq. 5; with the same attention everywhere it is
    GAP of what agrees.

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
    """G(x, y): one pair of gates per sign, shared by all classes, from a 3x3 convolution over both
    maps.

    a = sigmoid(W+ * [relu(x); relu(y)]),  b = sigmoid(W- * [relu(-x); relu(-y)]),  2K -> 2
    channels, no bias.

    gain: 1 is the paper's.  Gates begin near one half, so each step halves what it joins; with 2 it
        begins as the mean of both.
    """

    def __init__(self, *, num_classes: int, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.positive = nn.Conv2d(2 * num_classes, 2, kernel_size=3, padding=1, bias=False)
        self.negative = nn.Conv2d(2 * num_classes, 2, kernel_size=3, padding=1, bias=False)

    def gates(self, x: Tensor, y: Tensor) -> GateMaps:
        """The two gate maps for x and y, both (B, K, h, w) signed."""
        both = torch.cat([x, y], dim=1)
        return GateMaps(
            self.positive(both.relu()).sigmoid(), self.negative((-both).relu()).sigmoid()
        )

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
        """Raises ValueError for an unknown fusion or prediction, levels that do not increase, a level or gain not above 0."""
        super().__init__()
        levels = tuple(levels)
        if fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, got {fusion!r}")
        if prediction not in (*PREDICTIONS, *VARIANTS):
            raise ValueError(
                f"prediction must be one of {', '.join((*PREDICTIONS, *VARIANTS))}, got {prediction!r}"
            )
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if not levels or levels[0] < 1 or any(a >= b for a, b in pairwise(levels)):
            raise ValueError(
                f"levels must be positive and strictly increasing (coarse to fine), got {levels}"
            )
        if not isinstance(gate_gain, int | float) or not 0 < gate_gain < math.inf:
            raise ValueError(f"gate_gain must be positive and finite, got {gate_gain!r}")
        if (fusion == "single") != (len(levels) == 1):
            raise ValueError(
                f'fusion="single" goes with exactly one level, got fusion={fusion!r} with levels {levels}'
            )
        self.num_classes, self.levels, self.fusion, self.prediction = (
            num_classes,
            levels,
            fusion,
            prediction,
        )
        n_gates = len(levels) - 1 if fusion in ("gated", "inverse") else 0
        self.gates = nn.ModuleList(
            SignedGate(num_classes=num_classes, gain=gate_gain) for _ in range(n_gates)
        )

    def extra_repr(self) -> str:
        return f"levels={self.levels}, fusion={self.fusion!r}, prediction={self.prediction!r}"

    def forward(self, cam: Tensor) -> PooledPrediction:
        """cam: (B, K, h, w) signed.

        Raises ValueError for another shape, an integer type or another K.
        """
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
        """The gates of every fusion step for a signed CAM, in the order of the steps; empty without gates."""
        if not self.gates:
            return ()
        pyramid = self.pool(cam)
        levels = self._fusion_order(pyramid)
        carried = (levels[0], *self._fuse(pyramid)[:-1])
        return tuple(
            gate.gates(x, y) for gate, x, y in zip(self.gates, carried, levels[1:], strict=True)
        )

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
        return PyramidPooling(
            num_classes=num_classes,
            levels=self.levels,
            fusion=self.fusion,
            prediction=self.prediction,
            gate_gain=self.gate_gain,
        )

    def fitted(self, side: int) -> "Pyramid":
        """The layer for a map of `side` cells: the same cells per bin; printed bins where they fit.

        >>> Pyramid(levels=(2, 16)).fitted(16).levels, Pyramid(printed=True).fitted(12).levels
        ((1, 6), (2, 4, 8))
        """
        scaled = dict(zip(PAPER_LEVELS, scaled_levels(side), strict=True))
        if self.printed:
            return replace(self, levels=tuple(level for level in self.levels if level <= side))
        levels = tuple(scaled[level] for level in self.levels)
        if levels[-1] > side:
            raise ValueError(
                f"a {side}x{side} map has no room for levels {levels}: take larger scenes"
            )
        return replace(self, levels=levels, printed=True)
