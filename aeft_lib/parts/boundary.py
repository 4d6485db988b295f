"""Labels of the boundary, and a loss on them (BES, Chen et al., ECCV 2020).

In a window around every pixel, b is the part of background and f1 >= f2 >= .. those of the classes,
of *all* its pixels, void ones too.  With s = .3 and d = .1, later lines override::

    background   b  > 2 s  and  b - f1 >= 2 d
    foreground   f1 > 2 s  and  f1 - b >= 2 d
    boundary     min(f1, b) > s  and  |f1 - b| < d,      or, between classes, f2 > s and f1 - f2 < d

An edge logit learns from them, p in [1e-4, 1 - 1e-4]::

    L = 1/2 mean_bg(-log(1 - p)) + 1/2 mean_fg(-log(1 - p)) + mean_boundary(-log p sqrt(p))

The root is a weight without gradient: boundaries that are found already count more, doubtful ones
less.  Each mean is a sum over the count + 1.

A straight line is seen where d > 1 / window, so the window cannot be made smaller alone: it is 13,
or 7 with d = 1.3 / 7.
Departures: the line between classes is the release's, not the paper's; windows are counted in whole
pixels, so a tie is one.  `reduce` "max" is ours: on a grid of four, nearest keeps an axis-parallel
line of two pixels only half of the time.  Source: the code of the authors.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from aeft_lib.engine.fields import choice, fraction, whole
from aeft_lib.maps.labels import VOID
from aeft_lib.refinement.edge_net import CELL, at_quarter

# Labels; VOID is what no line names.
BACKGROUND, FOREGROUND, BOUNDARY, BETWEEN = range(4)
CLAMP = 1e-4
WEIGHTS = ("sqrt", "none")
REDUCTIONS = ("nearest", "max")


class Shares(NamedTuple):
    """Of the window around each pixel, whole pixels as float64, (H, W) each.

    background; first and second: the two largest classes, 0 where there is none.  area: all of it.
    """

    background: Tensor
    first: Tensor
    second: Tensor
    area: Tensor


def window_shares(labels: Tensor, window: int) -> Shares:
    """What the window around each pixel holds; at the border, what of it lies in the image.

    labels: (H, W) uint8, 0 background, class + 1, 255 void.  window: its odd side in pixels.
    """
    present = [int(label) for label in labels.unique() if label not in (0, VOID)]
    maps = torch.stack([labels == label for label in (0, *present)])
    background, *classes = _sums(maps, window)
    classes = torch.stack([*classes, *[torch.zeros_like(background)] * 2])
    first, second = classes.topk(2, dim=0).values
    (area,) = _sums(torch.ones_like(maps[:1]), window)
    return Shares(background, first, second, area)


def _sums(maps: Tensor, window: int) -> Tensor:
    """Sums over the window around each pixel, (n, H, W) float64, of bool maps."""
    sums = F.pad(maps.double(), [window // 2 + 1, window // 2] * 2).cumsum(-1).cumsum(-2)
    rows = sums[..., window:, :] - sums[..., :-window, :]
    return rows[..., window:] - rows[..., :-window]


@dataclass(frozen=True)
class BoundaryLoss:
    """BES's labels and loss (`stages.train_edges.EdgeLoss`).

    window: odd side in pixels.  large, near: s and d, parts of the window.
    boundary_between_classes: two classes that touch have a boundary too.
    boundary_weight: "sqrt", as above, or "none".
    reduce: to the grid, "nearest", or "max": a cell with a boundary pixel is boundary.
    """

    window: int = 13
    large: float = 0.3
    near: float = 0.1
    boundary_between_classes: bool = True
    boundary_weight: str = "sqrt"
    reduce: str = "nearest"

    def __post_init__(self) -> None:
        whole(self, "window", least=3)
        fraction(self, "large", "near", most=0.5)
        choice(self, boundary_weight=WEIGHTS, reduce=REDUCTIONS)
        choice(self, boundary_between_classes=(False, True))
        if self.window % 2 == 0:
            raise ValueError(f"window must be odd, got {self.window}")

    def targets(self, labels: Tensor) -> Tensor:
        """The boundary labels (H, W) uint8 of a label map (H, W) uint8."""
        background, first, second, area = window_shares(labels, self.window)
        large, near = self.large * area, self.near * area
        made = torch.full_like(labels, VOID)
        made[(background > 2 * large) & (background - first >= 2 * near)] = BACKGROUND
        made[(first > 2 * large) & (first - background >= 2 * near)] = FOREGROUND
        close = (first - background).abs() < near
        made[(torch.minimum(first, background) > large) & close] = BOUNDARY
        if self.boundary_between_classes:
            made[(second > large) & (first - second < near)] = BETWEEN
        return made

    def reduced(self, targets: Tensor) -> Tensor:
        """On the grid, (..., H / 4, W / 4)."""
        nearest = at_quarter(targets)
        if self.reduce == "nearest":
            return nearest
        for label in (BOUNDARY, BETWEEN):
            maps = (targets == label).float().reshape(1, -1, *targets.shape[-2:])
            some = F.max_pool2d(maps, CELL).reshape(nearest.shape) > 0
            nearest = torch.where(some, label, nearest)
        return nearest

    def described(self, targets: Tensor) -> dict[str, float]:
        """``known``: the part of the grid with a label; ``boundary``: that with a boundary."""
        parts = {"known": targets != VOID, "boundary": _is_boundary(targets)}
        return {name: float(part.float().mean()) for name, part in parts.items()}

    def measure(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums and counts, (1, 3) each, of background, foreground and boundary.

        Raises ValueError where logits and targets differ in shape.
        """
        if logits.shape != targets.shape:
            shapes = f"{tuple(logits.shape)} and {tuple(targets.shape)}"
            raise ValueError(f"logits and targets must have one shape, got {shapes}")
        p = logits.sigmoid().clamp(CLAMP, 1 - CLAMP)
        weight = p.sqrt().detach() if self.boundary_weight == "sqrt" else 1
        inside, edge = -(1 - p).log(), -p.log() * weight
        kinds = (targets == BACKGROUND, targets == FOREGROUND, _is_boundary(targets))
        losses = zip(kinds, (inside, inside, edge), strict=True)
        sums = torch.stack([(kind.to(loss) * loss).sum() for kind, loss in losses])
        return {"sums": sums[None], "counts": torch.stack([kind.sum() for kind in kinds])[None]}

    def combine(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """The three terms of the whole batch."""
        means = measures["sums"].sum(dim=0) / (measures["counts"].sum(dim=0) + 1)
        return {"background": means[0] / 2, "foreground": means[1] / 2, "boundary": means[2]}


def _is_boundary(targets: Tensor) -> Tensor:
    return (targets == BOUNDARY) | (targets == BETWEEN)
