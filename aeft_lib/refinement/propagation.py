"""From a seed to posteriors, the way of one image: background, grid, walk, full size, CRF."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aeft_lib.refinement import dense_crf, random_walk
from aeft_lib.refinement.affinity import SparseAffinity

CELL = 8  # pixels of the image along a side of a grid cell


def padded(images: Tensor, cell: int = CELL) -> Tensor:
    """Maps (..., H, W) with zeros at the right and below up to whole cells; black in images."""
    h, w = images.shape[-2:]
    return F.pad(images, (0, -w % cell, 0, -h % cell))


def refine_by_walk(
    image: np.ndarray,
    cam: Tensor,
    affinity: SparseAffinity,
    *,
    alpha: float,
    beta: float,
    steps: int,
    crf_iterations: int,
    cell: int = CELL,
) -> Tensor:
    """Posteriors (1 + K', H, W) of an image, background first, sum 1.

    image: (H, W, 3) uint8 RGB.  cam: (K', H, W) in 0..1, of the present classes.
    affinity: of the grid of the padded image.  alpha: background power.  beta, steps: of the walk.
    crf_iterations: of the CRF after it, on the image as it was taken; 0 leaves it out.
    Raises ValueError where sizes do not fit or a number is out of range; the parts say which.
    """
    size = image.shape[:2]
    if tuple(cam.shape[1:]) != tuple(size):
        raise ValueError(f"cam is {tuple(cam.shape[1:])}, its image {tuple(size)}")
    scores = padded(dense_crf.with_background(cam, alpha), cell)
    coarse = F.avg_pool2d(scores[None], cell)[0]
    walked = random_walk.propagate(affinity, coarse, beta=beta, steps=steps)[None]
    full = F.interpolate(walked, size=scores.shape[1:], mode="bilinear", align_corners=False)[0]
    full = full[:, : size[0], : size[1]]
    if crf_iterations:
        crf = dense_crf.DenseCRF(image, device=cam.device)
        return crf.infer(dense_crf.unary_of(full), iterations=crf_iterations)
    return full / full.sum(dim=0, keepdim=True).clamp(min=torch.finfo(full.dtype).tiny)
