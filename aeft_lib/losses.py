"""Losses.  So far classification from image tags (SPEC section 4, term 1)."""

import torch.nn.functional as F
from torch import Tensor


def classification(logits: Tensor, tags: Tensor) -> Tensor:
    """L_cls: binary cross entropy with logits, the mean over all B x K entries.

    logits: (B, K), before the sigmoid.  tags: (B, K), 0 or 1, any type.  Raises ValueError where the shapes differ.

    >>> import torch
    >>> round(classification(torch.zeros(1, 2), torch.tensor([[1, 0]])).item(), 4)     # log 2
    0.6931
    """
    if logits.shape != tags.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and tags {tuple(tags.shape)} must have the same (B, K) shape")
    return F.binary_cross_entropy_with_logits(logits, tags.to(logits.dtype))
