"""A step of a pair of views up its class, and what it did to the map (AdvCAM, Lee et al.).

Pure functions of N pairs, each of a plain and a mirrored view with a class of its own.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

TINY = 1e-12


def of_class(maps: Tensor, class_ids: Tensor) -> Tensor:
    """Of maps (N, 2, K, h, w) those of the pair's own class, (N, 2, h, w)."""
    return maps[torch.arange(len(maps), device=maps.device), :, class_ids]


def attribution(maps: Tensor, class_ids: Tensor, weights: Tensor | None = None) -> Tensor:
    """A of each view, (N, 2, h, w), not negative, the second still mirrored.

    maps: (N, 2, K, h, w) signed CAMs.  weights: C of the classes, (N,), for the release's; None:
    relu(z_c).  Pairs of which no pixel fires are 0.
    """
    positive = of_class(maps, class_ids).relu()
    if weights is None:
        return positive
    fires = (positive > 0).to(positive).sum(dim=(2, 3), keepdim=True)
    share = fires / (fires.sum(dim=1, keepdim=True) * weights[:, None, None, None] + TINY)
    return positive * share


def positive_weights(head: Any) -> Tensor:
    """C of every class, (K,): the positive weights of a head of one 1x1 convolution.

    Raises ValueError for another head.
    """
    if not isinstance(head, nn.Conv2d):
        kind = type(head).__name__
        raise ValueError(f'"grad_cam" needs a head of one 1x1 convolution, got {kind}: take "relu"')
    return (head.weight.detach() > 0).flatten(1).sum(dim=1).to(head.weight.dtype)


def gain(maps: Tensor, class_ids: Tensor, competing: Tensor) -> Tensor:
    """Sum over the pair of ``y_c - sum of y_k`` over the other classes that compete, (N,).

    maps: (N, 2, K, h, w) signed; the ReLU comes before the mean.  competing: (N, K), 0 or 1.

    >>> maps = torch.tensor([[[3.0, 1.0], [2.0, -5.0]]]).reshape(1, 2, 2, 1, 1)
    >>> gain(maps, torch.tensor([0]), torch.ones(1, 2)).item()
    4.0
    """
    y = maps.relu().mean(dim=(3, 4))
    pairs = torch.arange(len(y), device=y.device)
    others = competing.to(y).clone()
    others[pairs, class_ids] = 0
    return (y[pairs, :, class_ids] - (y * others[:, None]).sum(dim=2)).sum(dim=1)


def drift(total: Tensor, first: Tensor, threshold: float) -> Tensor:
    """``M |A - A0|``, (N, h, w); M, a constant, is 1 where A is above the threshold of its maximum.

    total: A, (N, h, w).  first: A0.  Where A is 0 everywhere, so is M.
    """
    peak = total.detach().amax(dim=(1, 2), keepdim=True)
    mask = total.detach() / peak.clamp(min=torch.finfo(total.dtype).tiny) > threshold
    return mask.to(total.dtype) * (total - first).abs()


def stepped(views: Tensor, gradient: Tensor, rate: float, *, clamped: bool = True) -> Tensor:
    """Pairs (N, 2, 3, H, W) a step on; the largest change of a pair is the rate.

    clamped: to the values that the pair has.

    >>> pair, slope = torch.tensor([0.0, 1.0]), torch.tensor([2.0, -4.0])
    >>> stepped(*(x.reshape(1, 2, 1, 1, 1) for x in (pair, slope)), 0.08).flatten().tolist()
    [0.03999999910593033, 0.9200000166893005]
    """
    axes = tuple(range(1, views.ndim))
    steepest = gradient.abs().amax(dim=axes, keepdim=True)
    moved = views + rate * gradient / (steepest + TINY)
    if not clamped:
        return moved
    return moved.clamp(views.amin(dim=axes, keepdim=True), views.amax(dim=axes, keepdim=True))


def amplification(first: Tensor, last: Tensor) -> dict[str, float]:
    """How much the rest of a map (below half its first maximum) grew, and its peak; their ratio.

    first, last: (h, w), not negative.  NaN where a part is 0 at first.

    >>> amplification(torch.tensor([[4.0, 1.0]]), torch.tensor([[8.0, 3.0]]))
    {'amplification_ratio': 1.5, 'amplified_rest': 3.0, 'amplified_peak': 2.0}
    """
    peak = first >= 0.5 * first.max()
    rest_was, rest_is = float(first[~peak].sum()), float(last[~peak].sum())
    peak_was, peak_is = float(first[peak].sum()), float(last[peak].sum())
    rest = rest_is / rest_was if rest_was > 0 else math.nan
    top = peak_is / peak_was if peak_was > 0 else math.nan
    ratio = rest / top if top > 0 else math.nan
    return {"amplification_ratio": ratio, "amplified_rest": rest, "amplified_peak": top}
