"""From a seed to posteriors, the whole way of one image:

background, grid, random walk, full size, CRF.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aeft_lib.refinement import dense_crf, random_walk
from aeft_lib.refinement.affinity import SparseAffinity

CELL = 8  # pixels of the image along a side of a grid cell


def padded(images: Tensor, cell: int = CELL) -> Tensor:
    """Images (..., H, W) with zeros, black before normalisation, at the right and below up to whole cells."""
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
    walked = random_walk.propagate(
        affinity, F.avg_pool2d(scores[None], cell)[0], beta=beta, steps=steps
    )
    full = F.interpolate(walked[None], size=scores.shape[1:], mode="bilinear", align_corners=False)[
        0
    ][:, : size[0], : size[1]]
    if crf_iterations:
        return dense_crf.DenseCRF(image, device=cam.device).infer(
            dense_crf.unary_of(full), iterations=crf_iterations
        )
    return full / full.sum(dim=0, keepdim=True).clamp(min=torch.finfo(full.dtype).tiny)
