"""Random views of training images and their labels, as batches of tensors."""

import torch
import torch.nn.functional as F
from torch import Tensor

from aeft_lib.labels import VOID


def random_views(
    images: Tensor, labels: Tensor, generator: torch.Generator, *, scales: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Each image and its labels at a random scale and place, mirrored half the time, at the size they came in.

    What a smaller image leaves open is zero in the image (the mean colour, where it is normalised) and void in the labels.

    images: (B, C, H, W) float.  labels: (B, H, W) uint8.  generator: on the CPU, decides everything.
    scales: the least and the largest, positive; (1, 1) mirrors alone.
    Raises ValueError for scales that are not positive or not in order.
    """
    low, high = scales
    if not 0 < low <= high:
        raise ValueError(f"scales must be positive and in order, got {scales}")
    scale, x, y, mirror = torch.rand(4, len(images), generator=generator)
    inverse = 1 / (low + (high - low) * scale)
    reach = (1 - inverse).abs()  # how far the middle of the view may lie from the middle of the image
    sides = torch.where(mirror < 0.5, -inverse, inverse)
    zeros = torch.zeros_like(inverse)
    rows = [torch.stack([sides, zeros, (2 * x - 1) * reach]), torch.stack([zeros, inverse, (2 * y - 1) * reach])]
    theta = torch.stack(rows).permute(2, 0, 1).to(images.device)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    views = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # Shifted by one, so that the zeros outside stand for void.
    shifted = F.grid_sample(labels[:, None].float() + 1, grid, mode="nearest", padding_mode="zeros", align_corners=False)[:, 0]
    return views, torch.where(shifted == 0, VOID, shifted - 1).to(torch.uint8)
