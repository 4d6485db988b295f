"""The context map of CONTA (Zhang et al., NeurIPS 2020), its equation 3.

A context is the mean mask of a class, c_k.  An image's map M is a mean of contexts, weighted by how
like they are to its own mask x (equation 3)::

    c_k   = mean over the training images of class k of that class's predicted mask, h x w
    alpha = softmax over k of <W1 x, W2 c_k> / sqrt(K),        M = sum_k alpha_k P(c_k) c_k

P is even, so M is at most max(c) / K: a faint map.  Shapes: B images, K classes, Q queries.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.maps.labels import VOID

QUERIES = ("objects", "index", "classes")
PROJECTIONS = ("learned", "frozen", "none")
SPREAD = 0.02  # of W1 and W2 at the start, as in the authors' repository


def similarity(queries: Tensor, keys: Tensor) -> Tensor:
    """``<q, k> / sqrt(K)``, (B, K).  queries: (B, n).  keys: (K, n)."""
    return queries @ keys.T / math.sqrt(len(keys))


def context_map(alpha: Tensor, confounders: Tensor, prior: Tensor | None = None) -> Tensor:
    """M, (B, h, w): ``sum_k alpha_k P(c_k) c_k``.

    alpha: (B, K), each row sums to 1.  confounders: (K, h, w) in 0..1.  prior: P, (K,); None: even.

    >>> c = torch.stack([torch.ones(1, 1), torch.zeros(1, 1)])
    >>> context_map(torch.tensor([[0.5, 0.5]]), c).item()
    0.25
    """
    even = confounders.new_full((len(confounders),), 1 / len(confounders))
    return torch.einsum("bk,khw->bhw", alpha * (even if prior is None else prior), confounders)


class ContextMap(nn.Module):
    """M of a batch's label maps.

    confounders: the buffer C, (K, side, side), zeros until a stage sets it.
    mask_query: the one channel that a mask of several classes is for the query: "objects" against
        background; "index", (class + 1) / K; "classes", a query for each, of which the mean counts.
    projection: W1 and W2 are "learned", "frozen" as they are drawn, or "none": alpha is the softmax
        of the cosine.
    """

    def __init__(self, *, num_classes: int, side: int, mask_query: str, projection: str) -> None:
        super().__init__()
        self.side, self.mask_query = side, mask_query
        self.register_buffer("confounders", torch.zeros(num_classes, side, side))
        self.query = self.key = None
        if projection != "none":
            self.query, self.key = (nn.Linear(side**2, num_classes, bias=False) for _ in range(2))
            for layer in (self.query, self.key):
                nn.init.normal_(layer.weight, std=SPREAD)
                layer.requires_grad_(projection == "learned")

    def forward(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """M, (B, 1, side, side), and alpha, (B, K), the mean over an image's queries.

        labels: (B, H, W) integer, 0 background, class + 1, 255 void.
        """
        masks, weights = self._queries(labels)
        queries, keys = masks.flatten(2).flatten(0, 1), self.confounders.flatten(1)
        if self.query is None:
            alike = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T
        else:
            alike = similarity(self.query(queries), self.key(keys))
        alpha = alike.softmax(dim=1).unflatten(0, masks.shape[:2])
        alpha = (alpha * weights[..., None]).sum(dim=1)
        return context_map(alpha, self.confounders)[:, None], alpha

    def _queries(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """x, (B, Q, side, side), and the weight of each query, (B, Q), which sum to 1."""
        kind, classes = self.confounders.dtype, len(self.confounders)
        if self.mask_query == "classes":
            masks = class_shares(labels, classes, self.side, kind)
            there = masks.amax(dim=(2, 3)) > 0
            there = there | ~there.any(dim=1, keepdim=True)  # no class: all of them, each 0
            return masks, there / there.sum(dim=1, keepdim=True)
        values = torch.where(labels == VOID, 0, labels).to(kind)
        values = values / classes if self.mask_query == "index" else (values > 0).to(kind)
        masks = F.adaptive_avg_pool2d(values[:, None], self.side)
        return masks, masks.new_ones(len(masks), 1)


def class_shares(
    labels: Tensor, num_classes: int, side: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The part of every cell that each class covers, (B, K, side, side) in 0..1.

    labels: as of `ContextMap`; void is no class.
    """
    inside = torch.stack([labels == k + 1 for k in range(num_classes)], dim=1)
    return F.adaptive_avg_pool2d(inside.to(dtype), side)
