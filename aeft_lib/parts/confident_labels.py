"""Labels from two thresholds, and the dense CRF that begins with a label map (IRNet, CVPR 2019).

A label map is cut from CAMs twice, at a high and at a low threshold, and a CRF smooths each.  Where
the high one says a class, that class is sure; where both say background, background is; the rest is
void::

    rows(t) = CRF(argmax over [t; CAM])
    label   = rows(t_fg) where not 0;   0 where rows(t_fg) = rows(t_bg) = 0;   else 255

The CRF knows no scores.  A pixel's label has probability 0.7, and the n - 1 others share the rest.

The two thresholds come as powers of the background that cross there (`refinement.background`), so
a profile can lay them around a threshold of its own, at the release's distance in logits.
Source: code of the authors of IRNet, which BES, CDA, AdvCAM and RIB use too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aeft_lib.engine.fields import number, whole
from aeft_lib.maps.labels import VOID
from aeft_lib.maps.seeds import Seed
from aeft_lib.refinement.background import crossing
from aeft_lib.refinement.dense_crf import DenseCRF

CERTAINTY = 0.7  # probability of the label that a pixel has
GAUSSIAN = (3.0, 3.0)  # standard deviation in pixels, weight
COLOURS, WEIGHT = 5.0, 10.0  # of the bilateral kernel: grey levels, weight


def hard_unary(rows: Tensor, count: int) -> Tensor:
    """``-log p`` of every label, (..., L, H, W): p is 0.7 for the label that a pixel has.

    rows: (..., H, W) int64 in 0..L-1.  count: L, at least 2.  Raises ValueError for another.

    >>> p = (-hard_unary(torch.tensor([[2]]), 3)).exp().flatten()
    >>> [round(value, 2) for value in p.tolist()]
    [0.15, 0.15, 0.7]
    """
    if count < 2 or not bool(((rows >= 0) & (rows < count)).all()):
        limits = f"{int(rows.min())}..{int(rows.max())}"
        raise ValueError(f"rows must lie in 0..{count - 1} of at least 2 labels, got {limits}")
    ours, others = -math.log(CERTAINTY), -math.log((1 - CERTAINTY) / (count - 1))
    chosen = rows[..., None, :, :] == torch.arange(count, device=rows.device)[:, None, None]
    return torch.where(chosen, ours, others)


@dataclass(frozen=True)
class HardCrf:
    """A dense CRF from label maps, and a label maker: scores, cut at a threshold, then this CRF.

    reach: standard deviation of the bilateral kernel in pixels.  iterations: of mean field.
    """

    reach: float = 50.0
    iterations: int = 10

    def __post_init__(self) -> None:
        number(self, "reach", positive=True)
        whole(self, "iterations")

    def refined(self, image: np.ndarray, rows: Tensor, count: int) -> Tensor:
        """Label maps (A, H, W) int64, rows in 0..count-1, after the CRF; they share its lattice."""
        bilateral = (self.reach, COLOURS, WEIGHT)
        crf = DenseCRF(image, gaussian=GAUSSIAN, bilateral=bilateral, device=rows.device)
        unary = hard_unary(rows, count)
        return crf.infer(unary, iterations=self.iterations).argmax(dim=1)

    def label(
        self, image: np.ndarray, seed: Seed, background: Mapping[str, float]
    ) -> tuple[np.ndarray, dict[str, float]]:
        """See `label_seeds.LabelMaker`; ``changed``: the part of the pixels that the CRF moved."""
        rows = rows_at(seed.cam, background["threshold"])
        refined = self.refined(image, rows[None], len(seed.cam) + 1)[0]
        changed = float((refined != rows).float().mean())
        return label_map_of(refined, seed.class_ids), {"changed": changed}


@dataclass(frozen=True)
class ConfidentLabels:
    """The label maker (`label_seeds`).  crf: of both label maps."""

    crf: HardCrf = HardCrf()

    def label(
        self, image: np.ndarray, seed: Seed, background: Mapping[str, float]
    ) -> tuple[np.ndarray, dict[str, float]]:
        """The label map of an image, void where neither is sure.

        background: its ``low`` power crosses at the threshold that is sure of the foreground, its
        ``high`` one at that of the background.  The numbers have both, and the parts of the image.
        Raises ValueError where the thresholds are out of order.
        """
        sure = {name: crossing(background[name]) for name in ("low", "high")}
        if not sure["high"] <= sure["low"]:
            rule = f"{sure['low']:.3f} for the foreground and {sure['high']:.3f} for the background"
            raise ValueError(f"the foreground's threshold must not be the lower one, got {rule}")
        rows = torch.stack([rows_at(seed.cam, sure[name]) for name in ("low", "high")])
        foreground, both = self.crf.refined(image, rows, len(seed.cam) + 1)
        labels = combined(foreground, both, seed.class_ids)
        parts = {"background": labels == 0, "unsure": labels == VOID}
        numbers = {name: float(part.mean()) for name, part in parts.items()}
        return labels, numbers | {"t_foreground": sure["low"], "t_background": sure["high"]}


def rows_at(cam: Tensor, threshold: float) -> Tensor:
    """Rows (H, W) int64 of [threshold; CAMs (K', H, W)]: 0 background, which wins ties."""
    return torch.cat([torch.full_like(cam[:1], threshold), cam]).argmax(dim=0)


def combined(foreground: Tensor, background: Tensor, class_ids: Tensor) -> np.ndarray:
    """The label map (H, W) uint8 of rows sure of the foreground, and rows sure of the background.

    >>> rows = torch.tensor([[1, 0, 0]]), torch.tensor([[1, 1, 0]])
    >>> combined(*rows, torch.tensor([6])).tolist()
    [[7, 255, 0]]
    """
    labels = label_map_of(foreground, class_ids)
    unsure = (foreground == 0) & (background != 0)
    labels[unsure.cpu().numpy()] = VOID
    return labels


def label_map_of(rows: Tensor, class_ids: Tensor) -> np.ndarray:
    """Rows (H, W) of an image's classes -> labels (H, W) uint8, 0 background, class + 1."""
    names = torch.cat([class_ids.new_zeros(1), class_ids + 1])
    return names.to(rows.device)[rows].to(torch.uint8).cpu().numpy()
