"""The losses and maps of an intra-class discriminator (ICD; Fan et al., CVPR 2020).

A direction w_k for each class separates the pixels of its images into two groups.  Shapes: B
images, K classes without background, C channels, (h, w) the map, J superpixels.  From the authors'
code (js-fan/ICD).  Losses are (B,), summed over the classes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from aeft_lib.maps.labels import VOID

EPS = 1e-5
SURE = 0.2  # of a normalised score, from which on it is a target
MOMENTUM = 0.9


def projected(features: Tensor, directions: Tensor) -> Tensor:
    """s, (B, K, h, w): features (B, C, h, w) along directions (K, C) of length 1."""
    return torch.einsum("kc,bchw->bkhw", F.normalize(directions, dim=1), features)


def bottom_up(scores: Tensor, tags: Tensor, *, single_tag_only: bool = True) -> Tensor:
    """``-(10 / 2) sum_k y_k mean_p s_k^2``: makes a direction principal for its class's pixels.

    single_tag_only: images with one tag alone.

    >>> w = torch.tensor([[1.0, 0.0]])
    >>> pixels = torch.tensor([[2.0, -2.0], [0.0, 0.0]]).reshape(1, 2, 1, 2)
    >>> bottom_up(projected(pixels, w), torch.ones(1, 1)).tolist()
    [-20.0]
    """
    counted = tags.to(scores.dtype)
    if single_tag_only:
        counted = counted * (counted.sum(dim=1, keepdim=True) < 1.001)
    return -5 * (counted * scores.square().mean(dim=(2, 3))).sum(dim=1)


def moved(pair: Tensor, scores: Tensor, cam: Tensor, tags: Tensor) -> Tensor:
    """The moving pair (K, 2) after a batch: of the mean CAM where s > 0, and where s < 0.

    The mean is over the images that have the class; a class that none has keeps its pair.
    pair: (K, 2).  scores, cam: (B, K, h, w).  tags: (B, K).
    """
    has, raised = tags.to(scores.dtype), cam.relu()
    sides = torch.stack([scores > 0, scores < 0], dim=-1).to(scores.dtype)
    means = (raised[..., None] * sides).sum(dim=(2, 3)) / sides.sum(dim=(2, 3)).clamp(min=1)
    images = has.sum(dim=0)
    batch = (has[..., None] * means).sum(dim=0) / images.clamp(min=1)[:, None]
    return torch.where(images[:, None] > 0, MOMENTUM * pair + (1 - MOMENTUM) * batch, pair)


def signs(pair: Tensor) -> Tensor:
    """(K,): -1 where the CAM is higher on the side s < 0, else 1.

    >>> signs(torch.tensor([[0.02, 0.05], [0.0, 0.0]])).tolist()
    [-1.0, 1.0]
    """
    return torch.where(pair[:, 0] < pair[:, 1], -1.0, 1.0).to(pair.dtype)


def memberships(superpixels: Tensor, size: tuple[int, int], count: int) -> Tensor:
    """o, (B, J, h, w): how much a cell belongs to each superpixel, bilinear with corners aligned.

    superpixels: (B, H, W) uint8, numbered from 0; `VOID` belongs to none.  count: J.
    """
    (top, bottom, down), (left, right, across) = (
        _between(few, many, superpixels.device)
        for few, many in zip(size, superpixels.shape[-2:], strict=True)
    )
    down, hot = down[:, None], 0
    for row, y in ((top, 1 - down), (bottom, down)):
        for column, x in ((left, 1 - across), (right, across)):
            number = superpixels[:, row][:, :, column].long()
            inside = number != VOID
            corner = F.one_hot(number.masked_fill(~inside, 0), count).permute(0, 3, 1, 2)
            hot = hot + corner * (y * x * inside.to(x.dtype))[:, None]
    return hot


def _between(few: int, many: int, where: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The two of `many` places beside each of `few` spread from the first to the last, the share of
    the second."""
    places = torch.arange(few, device=where, dtype=torch.float64)
    places = places * ((many - 1) / max(few - 1, 1))
    first = places.floor().clamp(max=max(many - 2, 0)).long()
    return first, (first + 1).clamp(max=many - 1), (places - first).float()


def smoothed(scores: Tensor, owners: Tensor, tags: Tensor) -> Tensor:
    """Scores (B, K, h, w), one value for every superpixel and class, written back by membership.

    A superpixel in whose sum any class is positive belongs to the class of the largest share.  That
    class has the mean of its positive part there, the others have the mean of their negative part.
    owners: o, (B, J, h, w).
    """
    scores = scores * tags.to(scores.dtype)[:, :, None, None]
    size = owners.sum(dim=(2, 3)).clamp(min=EPS)[:, :, None]

    def mean(maps: Tensor) -> Tensor:
        return torch.einsum("bjhw,bkhw->bjk", owners, maps) / size

    votes = torch.einsum("bjhw,bkhw->bjk", owners, scores.sign())
    inside = (votes > EPS).any(dim=2)
    positive = scores.relu()
    share = mean(positive / scores.amax(dim=1, keepdim=True).clamp(min=EPS))
    own = F.one_hot(share.argmax(dim=2), scores.shape[1]).bool() & tags.bool()[:, None]
    own = own & inside[:, :, None]
    values = torch.where(own, mean(positive), mean(scores.clamp(max=0)))
    return torch.einsum("bjhw,bjk->bkhw", owners, values)


def top_down(logits: Tensor, refined: Tensor, tags: Tensor) -> Tensor:
    """``sum_k y_k mean_p [|r| > 0.2] BCE(t_k, [r > 0])``, r over its largest value of either sign.

    logits: t, (B, K, h, w).  refined: constant.
    """
    high = refined.relu() / refined.amax(dim=(2, 3), keepdim=True).clamp(min=EPS)
    low = (-refined).relu() / (-refined).amax(dim=(2, 3), keepdim=True).clamp(min=EPS)
    target = (high > 0).to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    counted = (torch.maximum(high, low) > SURE).to(logits.dtype)
    return (tags.to(logits.dtype) * (loss * counted).mean(dim=(2, 3))).sum(dim=1)


def warm_up(done: float) -> float:
    """``exp(-10 (1 - done))``, 1 from done = 1 on.  done: part of the warm-up.

    >>> round(warm_up(0.0), 6), warm_up(2.0)
    (4.5e-05, 1.0)
    """
    return math.exp(-10 * max(0.0, 1 - done))
