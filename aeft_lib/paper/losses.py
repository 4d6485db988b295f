"""Losses of the triplet (poster, middle column): classification, attract (soft, rigid) and repel.

``L = L_cls + lambda_att L_att + lambda_rep L_rep``.  Pure functions of logits and embeddings (see
`erasing`); none of them waits for the device.  Shapes: B images, K classes.
"""

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

DISTANCES = ("absolute", "squared")


class Repulsion(NamedTuple):
    """loss: scalar.  distances: (B,) squared.  hard: (B,) bool, anchors nearer than the margin."""

    loss: Tensor
    distances: Tensor
    hard: Tensor


def classification(logits: Tensor, tags: Tensor) -> Tensor:
    """L_cls: binary cross entropy with logits, the mean over all B x K entries.

    logits: (B, K), before the sigmoid.  tags: (B, K), 0 or 1, any type.
    Raises ValueError where the shapes differ.

    >>> import torch
    >>> round(classification(torch.zeros(1, 2), torch.tensor([[1, 0]])).item(), 4)     # log 2
    0.6931
    """
    if logits.shape != tags.shape:
        shapes = f"logits {tuple(logits.shape)} and tags {tuple(tags.shape)}"
        raise ValueError(f"{shapes} must have the same (B, K) shape")
    return F.binary_cross_entropy_with_logits(logits, tags.to(logits.dtype))


def attract_soft(positive: Tensor, anchor: Tensor, *, distance: str = "absolute") -> Tensor:
    """L_att of the paper: the mean over B x K of |e_P - e_A|.

    positive, anchor: (B, K) embeddings of the masked and of the whole image (`erasing.embeddings`).
    distance: "absolute", or "squared" as in the first release, the mean over B of |e_P - e_A|_2^2.
    Gradients flow into both.  Raises ValueError where the shapes differ or a distance is unknown.

    >>> import torch
    >>> e_p, e_a = torch.tensor([[0.25, 0.0]]), torch.tensor([[0.75, 0.0]])
    >>> attract_soft(e_p, e_a).item(), attract_soft(e_p, e_a, distance="squared").item()
    (0.25, 0.25)
    """
    _check_pair("positive", positive, anchor)
    if distance not in DISTANCES:
        raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")
    difference = positive - anchor
    if distance == "squared":
        return difference.square().sum(dim=1).mean()
    return difference.abs().mean()


def attract_rigid(logits: Tensor, tags: Tensor) -> Tensor:
    """The rival that over-expands: the *masked* image must still have the unchanged tags.

    logits: (B, K) of the masked image.  It asks for the object even where none of it is left.
    """
    return classification(logits, tags)


def repel(
    anchor: Tensor,
    negative: Tensor,
    *,
    margin: float = 0.5,
    min_hard: int = 0,
    valid: Tensor | None = None,
) -> Repulsion:
    """L_rep: the mean of ``margin - d`` over hard anchors, those with ``d = |a - n|^2 < margin``.

    anchor, negative: (B, K) embeddings, row i of one against row i of the other.
    min_hard: the loss is 0 unless more anchors than this are hard; the reference has 4.
    valid: (B,) bool, anchors that have a negative at all; None is all.
    Raises ValueError where the shapes differ, for a negative margin or a negative min_hard.

    >>> import torch
    >>> a, n = torch.tensor([[0.5, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.5]])
    >>> loss, d, hard = repel(a, n)
    >>> d.tolist(), hard.tolist(), loss.item()
    ([0.25, 1.25], [True, False], 0.25)
    """
    _check_pair("negative", negative, anchor)
    if not (math.isfinite(margin) and margin >= 0):
        raise ValueError(f"margin must be finite and not negative, got {margin}")
    if min_hard < 0:
        raise ValueError(f"min_hard must not be negative, got {min_hard}")
    if valid is not None and valid.shape != anchor.shape[:1]:
        rule = f"({len(anchor)},), one flag an anchor"
        raise ValueError(f"valid must be {rule}, got shape {tuple(valid.shape)}")
    distances = (anchor - negative).square().sum(dim=1)
    hard = distances < margin if valid is None else (distances < margin) & valid
    count = hard.sum()
    mean = ((margin - distances).relu() * hard).sum() / count.clamp(min=1)
    return Repulsion(mean * (count > min_hard), distances, hard)


def _check_pair(name: str, other: Tensor, anchor: Tensor) -> None:
    if anchor.ndim != 2 or other.shape != anchor.shape:
        shapes = f"anchor {tuple(anchor.shape)} and {name} {tuple(other.shape)}"
        raise ValueError(f"{shapes} must have the same (B, K) shape")
