"""How one CAM fits one object: small and large, lone and crowded ones.

The paper has means over a data set alone; by object they show when a mean is large.  Reads masks;
nothing here trains.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from aeft_lib.maps.labels import VOID, label_map
from aeft_lib.maps.seeds import Seed


def object_fits(seed: Seed, mask: np.ndarray) -> list[dict[str, float]]:
    """Per tagged class of one image, free of any threshold sweep, void left out:

    - spill, 0..1: the share of the CAM's activation outside the class's mask (0 is precise);
    - coverage, 0..1: the share of the mask where the CAM is above half its maximum (1 is complete);
    - area, 0..1: the mask as a fraction of the image.

    A CAM without activation has neither spill nor coverage, a tagged class without a pixel no
    coverage: NaN, which medians leave out.
    """
    lines, kept = [], mask != VOID
    for class_id, cam in zip(seed.class_ids.tolist(), seed.cam.numpy(), strict=True):
        inside, total = mask == class_id + 1, float(cam[kept].sum())
        spill = float(cam[kept & ~inside].sum()) / total if total else np.nan
        bright, covered = cam[inside] > 0.5 * cam.max(), total and inside.any()
        coverage = float(bright.mean()) if covered else np.nan
        fit = {"area": float(inside.mean()), "spill": spill, "coverage": coverage}
        lines.append({"class": class_id, **fit})
    return lines


def object_counts(seed: Seed, mask: np.ndarray, threshold: float) -> list[dict[str, float]]:
    """Pixels ``tp, predicted, true`` of a seed at a threshold, per tagged class, void left out."""
    predicted, kept = label_map(*seed, threshold), mask != VOID
    lines = []
    for class_id in seed.class_ids.tolist():
        guess, truth = (predicted == class_id + 1) & kept, mask == class_id + 1
        pixels = {"tp": guess & truth, "predicted": guess, "true": truth}
        lines.append({name: int(marked.sum()) for name, marked in pixels.items()})
    return lines


def spread(cam: Tensor) -> tuple[float, float]:
    """How wide a CAM (H, W) in 0..1 is: (entropy, half_area) in 0..1, NaN without activation.

    entropy: of the CAM as a distribution over positions, over its maximum log(HW); 1 is flat.
    half_area: share of positions above half the maximum; small is peaked.

    >>> spread(torch.ones(2, 2)), spread(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    ((1.0, 1.0), (0.0, 0.25))
    """
    total = cam.sum()
    if total <= 0:
        return float("nan"), float("nan")
    share = cam.flatten() / total
    entropy = float(torch.special.entr(share).sum()) / math.log(share.numel())
    return round(entropy, 6), float((cam > 0.5 * cam.max()).float().mean())


def tagged_iou(labels: np.ndarray, mask: np.ndarray, class_ids: Sequence[int]) -> float:
    """Mean IoU, 0..1, over these classes of a label map (H, W); void of the mask does not count."""
    kept, ious = mask != VOID, []
    for label in (class_id + 1 for class_id in class_ids):
        predicted, truth = (labels == label) & kept, mask == label
        ious.append((predicted & truth).sum() / max((predicted | truth).sum(), 1))
    return float(np.mean(ious))
