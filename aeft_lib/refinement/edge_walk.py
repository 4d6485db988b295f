"""CAMs walk where no edge stops them, on a grid of a quarter of the image (IRNet, CVPR 2019).

A walk as AffinityNet's (`random_walk`), its affinities from edges (`path_affinity`)::

    scores = (cam (1 - edge)) T^steps,      enlarged, divided by their maximum

Departure: scores that are zero everywhere stay so; the code of the authors divides 0 by 0.
Shapes: K' present classes, h x w grid, H x W image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from aeft_lib.refinement import random_walk
from aeft_lib.refinement.edge_net import CELL
from aeft_lib.refinement.path_affinity import WALK_RADIUS, path_matrix


def walk(
    cam: Tensor,
    edge: Tensor,
    *,
    beta: float = 10,
    steps: int = 256,
    radius: int = WALK_RADIUS,
    suppress: bool = True,
) -> Tensor:
    """CAMs (K', h, w) after a walk that edges stop, (K', h, w) not negative.

    edge: (h, w) in 0..1.  suppress: an edge cell itself starts with ``cam (1 - edge)``.
    Raises ValueError as `path_matrix` and `random_walk.propagate` do.

    An edge in the middle: nothing passes, and its own cell is empty.

    >>> edge, cam = torch.tensor([[0.0, 0, 1, 0, 0]]), torch.tensor([[[1.0, 0, 0, 0, 0]]])
    >>> walk(cam, edge).flatten().tolist()
    [0.5, 0.5, 0.0, 0.0, 0.0]
    """
    start = cam * (1 - edge) if suppress else cam
    return random_walk.propagate(path_matrix(edge, radius), start, beta=beta, steps=steps)


def enlarged(
    walked: Tensor, size: tuple[int, int], *, joint: bool = True, cell: int = CELL
) -> Tensor:
    """Walked scores (K', h, w) at image size, (K', H, W) in 0..1.

    Bilinear, cropped at the right and below, divided by the maximum of all classes together.
    joint: False divides each class by its own, so that a weak class is not lost below a threshold.
    Scores that are zero everywhere stay so (the release divides 0 by 0).
    Raises ValueError where the grid does not cover the image.
    """
    h, w = walked.shape[1:]
    if h * cell < size[0] or w * cell < size[1]:
        raise ValueError(f"a grid of {h} x {w} cells of {cell} does not cover an image of {size}")
    if not len(walked):
        return walked.new_zeros(0, *size)
    whole = (h * cell, w * cell)
    full = F.interpolate(walked[None], size=whole, mode="bilinear", align_corners=False)[0]
    full = full[:, : size[0], : size[1]]
    largest = full.amax() if joint else full.amax(dim=(1, 2), keepdim=True)
    return full / largest.clamp(min=torch.finfo(full.dtype).tiny)
