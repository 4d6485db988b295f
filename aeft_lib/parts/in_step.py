"""What labels images within a training step: pictures as they were taken, and CRFs on them."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from aeft_lib.refinement.dense_crf import DenseCRF, unary_of


def as_taken(images: Tensor, normalise: Callable[[Tensor], Tensor]) -> Tensor:
    """Normalised images (B, 3, H, W) as pictures, (B, 3, H, W) uint8 RGB.

    normalise: of the backbone, of uint8 images; it is affine in every channel, so two pictures show
    what it does.  What a view does not fill, 0, becomes the mean colour.
    """
    ends = torch.tensor([0, 255], dtype=torch.uint8, device=images.device)
    low, high = normalise(ends.reshape(2, 1, 1, 1).repeat(1, 3, 1, 1)).split(1)
    pictures = (images.detach().float() - low) / (high - low) * 255
    return pictures.round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def posterior(
    picture: Tensor,
    scores: Tensor,
    *,
    iterations: int = 10,
    bilateral: tuple[float, float, float] = (80, 13, 10),
) -> Tensor:
    """The dense CRF of scores (L, H, W), or several problems (A, L, H, W), in 0..1, on a picture.

    picture: (3, H, W) uint8 RGB.  The Gaussian has 3 pixels and weight 3.  Without gradient.
    """
    image = np.ascontiguousarray(picture.permute(1, 2, 0).cpu().numpy())
    crf = DenseCRF(image, bilateral=bilateral, device=scores.device)
    return crf.infer(unary_of(scores.detach().float()), iterations=iterations)
