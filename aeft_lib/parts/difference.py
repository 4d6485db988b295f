"""Self-supervised difference detection (Shimoda and Yanai, ICCV 2019), its parts: SSDD.

A refinement turns a mask K into A, partly for the worse.  A detector sees the image and *one* of
the masks, and learns where the two differ.  With its probabilities d::

    w = d(K) - d(A) + bias,        A where w >= 0, else K

Differences that are foreseen from K are systematic.  From the authors' code (shimoda-uec/ssdd).
Masks are label maps: 0 background, class + 1, 255 void.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.maps.labels import VOID

EPS = 1e-3  # of the release's batch norms
NORMS = ("group", "fixed")
GROUPS = 8


class FixedNorm(nn.BatchNorm2d):
    """A batch norm that stays at mean 0 and variance 1, and is not trained: ``x / sqrt(1.001)``.

    A quirk of the release, whose norms are never told that they are trained.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=EPS)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FixedNorm":
        """Stays in eval mode."""
        return super().train(False)


class Convolved(nn.Module):
    """Reflection padding, a convolution without bias, and its norm; and a ReLU where `relu`."""

    def __init__(self, inner: int, outer: int, side: int, norm: str, *, relu: bool = True) -> None:
        super().__init__()
        padding = {"padding": side // 2, "padding_mode": "reflect"} if side > 1 else {}
        self.conv = nn.Conv2d(inner, outer, side, bias=False, **padding)
        if norm == "fixed":
            self.norm = FixedNorm(outer)
        else:
            self.norm = nn.GroupNorm(math.gcd(GROUPS, outer), outer, eps=EPS)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x.relu() if self.relu else x


class Detector(nn.Module):
    """DD: the logit (B, 1, h, w) of a difference, from features of the image and one mask.

    channels: of the features, (high, low).  classes: K + 1.  width: of all its layers.
    norm: "fixed", see `FixedNorm`, or "group".
    """

    def __init__(self, *, channels: tuple[int, int], classes: int, width: int, norm: str) -> None:
        super().__init__()
        self.features = Convolved(sum(channels), width, 3, norm)
        self.mask = Convolved(classes, width, 1, norm)
        self.reduce = Convolved(2 * width, width, 1, norm)
        self.middle = Convolved(width, width, 3, norm)
        self.expand = Convolved(width, width, 1, norm, relu=False)
        self.shortcut = Convolved(2 * width, width, 1, norm, relu=False)
        self.decide = nn.Conv2d(width, 1, 1, bias=False)

    def forward(self, features: Tensor, masks: list[Tensor]) -> list[Tensor]:
        """A logit for each of the masks, (B, h, w) uint8.  features: (B, sum(channels), h, w)."""
        seen = self.features(features)
        return [self._logit(seen, mask) for mask in masks]

    def _logit(self, seen: Tensor, mask: Tensor) -> Tensor:
        hot = one_hot(mask, self.mask.conv.in_channels).to(seen.dtype)
        both = torch.cat([seen, self.mask(hot)], dim=1)
        changed = self.expand(self.middle(self.reduce(both)))
        return self.decide((changed + self.shortcut(both)).relu())


def one_hot(mask: Tensor, classes: int) -> Tensor:
    """(B, h, w) -> (B, K + 1, h, w) bool; void is none of the classes."""
    return mask[:, None] == torch.arange(classes, device=mask.device)[:, None, None]


def flagged(known: Tensor, advised: Tensor, tags: Tensor) -> Tensor:
    """Which classes A loses, (B, K + 1) bool: tagged ones of fewer than half of their pixels in K.

    known, advised: K and A, (B, h, w).  tags: (B, K); the background is never flagged.
    """
    classes = tags.shape[1] + 1
    before, after = (one_hot(m, classes).sum(dim=(2, 3)) for m in (known, advised))
    lost = 2 * after < before.clamp(min=1)
    return lost & F.pad(tags.bool(), (1, 0), value=False)


def merge(
    known: Tensor,
    advised: Tensor,
    d_known: Tensor,
    d_advised: Tensor,
    flags: Tensor,
    *,
    bias: float,
    bg_bias: float = 0.0,
) -> Tensor:
    """The mask (B, h, w): A where w >= 0, else K.

    d_known, d_advised: probabilities (B, 1, h, w).  flags: (B, K + 1) bool; of a flagged class what
    either mask has is kept.  bg_bias: for the background: taken off w where K is background,
    and added where A is.

    >>> k, a = torch.zeros(2, 1, 1, 1, dtype=torch.uint8), torch.ones(2, 1, 1, 1, dtype=torch.uint8)
    >>> d = torch.tensor([[0.7, 0.2], [0.1, 0.6]]).reshape(2, 2, 1, 1, 1)
    >>> none = torch.zeros(1, 2, dtype=torch.bool)
    >>> [merge(k[0], a[0], *own, none, bias=0.4).item() for own in d]
    [1, 0]
    """
    w = (d_known - d_advised)[:, 0] + bias
    w = w + bg_bias * ((advised == 0).to(w.dtype) - (known == 0).to(w.dtype))
    w = w + _has(advised, flags).to(w.dtype) - _has(known, flags).to(w.dtype)
    return torch.where(w >= 0, advised, known)


def _has(mask: Tensor, flags: Tensor) -> Tensor:
    """Where a mask is of one of its image's flagged classes, (B, h, w) bool."""
    return (one_hot(mask, flags.shape[1]) & flags[:, :, None, None]).any(dim=1)


def difference_sums(logits: Tensor, known: Tensor, advised: Tensor) -> dict[str, Tensor]:
    """Binary cross-entropy against K != A of every image, (B,) each.

    ``differs, agrees``: summed over the pixels that differ and that agree; ``n_differs, n_agrees``:
    their numbers.  Void pixels of either mask do not count.  logits: (B, 1, h, w).
    """
    counted = (known != VOID) & (advised != VOID)
    target = (known != advised) & counted
    logits = logits[:, 0].to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
    parts = {"differs": target, "agrees": counted & ~target}
    sums = {name: (loss * part).sum(dim=(1, 2)) for name, part in parts.items()}
    return sums | {f"n_{name}": part.sum(dim=(1, 2)) for name, part in parts.items()}


def balanced(sums: dict[str, Tensor], *, empty: str) -> Tensor:
    """Half the mean over the pixels that differ, and half of that over those that agree.

    sums: of `difference_sums`, of images or of a batch together.  empty: the mean over no pixel is
    "zero", or "nan", as in the release.
    """
    least = 1 if empty == "zero" else 0
    means = [sums[n] / sums[f"n_{n}"].clamp(min=least) for n in ("differs", "agrees")]
    return sum(means) / 2


def nearest(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Label maps (B, M, H, W) uint8 at another size."""
    return F.interpolate(masks.float(), size=size, mode="nearest").to(torch.uint8)
