"""CONTA (Zhang et al., NeurIPS 2020): rounds with a context map, against what comes together.

What co-occurs with a class confounds its tags and its pixels.  The paper replaces P(Y | X) by the
adjusted sum over contexts c of P(Y | X, f(X, c)) P(c), and moves the sum inside.  Round 0 is the
host: classifier, refinement, a segmentation network, and its masks of all training images.  A round
after it begins with a classifier that reads an image and its context map M (`parts.context_map`),
a mean of the contexts of all classes, and goes on as the host.

What is known.  The method was never released.  Equation 3, M, agrees to rounding with the one
related function in the authors' repository; shapes, and that the loss is BCE over the tags, are
from their answers there.  Where nothing is known a switch has our choice as its default:
`mask_query`, `projection` and `joined_at` here; `class_members`, `restart` and the `tags` of
`parts.context_masks.ContextMasks`; and the number of rounds, which is how many rows follow each
other (three after the first, from memory).  A classifier alone can go on (`restart`): segmentation
networks start anew.

The channel of M starts with weight 0, as the host begins.  So a round without M (`context` off, the
control "iterate only") is the host bit for bit where it starts anew: in CONTA nothing but M passes
from round to round.  Exchanging whole contexts changes nothing either, since P is even; the control
"classes shuffled" gives each mask to a class at random before the means are taken.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.engine.fields import choice, whole
from aeft_lib.engine.samples import Batch, forward
from aeft_lib.paper import losses
from aeft_lib.paper.classifier import CamClassifier, CamMethod
from aeft_lib.parts.context_map import PROJECTIONS, QUERIES, ContextMap

PLACES = ("features", "trunk")
PROBE = 64  # side of an image that shows how many channels a trunk has


class ContextOutput(NamedTuple):
    """cam: (B, K, h, w) signed.  logits: (B, K).

    alpha: (B, K), detached.  share: (B,), the mean size of what M adds against what is there.
    """

    cam: Tensor
    logits: Tensor
    alpha: Tensor
    share: Tensor


class ContextClassifier(CamClassifier):
    """A `CamClassifier` that reads a context map as one channel more; without it, it is the host.

    A layer on [x, M] is the layer on x plus one on M: ``joined``, which starts at 0.
    side, mask_query, projection: of the `ContextMap`.  joined_at: see `Conta`.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        pooling: nn.Module,
        num_classes: int,
        side: int,
        mask_query: str,
        projection: str,
        joined_at: str,
    ) -> None:
        super().__init__(backbone=backbone, pooling=pooling, num_classes=num_classes)
        self.joined_at = joined_at
        self.context = ContextMap(
            num_classes=num_classes, side=side, mask_query=mask_query, projection=projection
        )
        channels = self.head.fc8.out_channels
        if joined_at == "trunk":
            with torch.no_grad():
                channels = backbone.trunk(torch.zeros(1, 3, PROBE, PROBE)).shape[1]
        self.joined = nn.Conv2d(1, channels, kernel_size=1, bias=False)
        nn.init.zeros_(self.joined.weight)

    def with_context(self, batch: Batch) -> ContextOutput:
        """A batch's images, or cached features, with its label maps (B, H, W) as ``labels``."""
        trunk = self.backbone.trunk
        features = trunk(batch.images) if batch.features is None else batch.features
        features = features.to(self.head.fc8.weight.dtype)
        context, alpha = self.context(batch.labels)
        if self.joined_at == "trunk":
            features, share = self._join(features, context)
        hidden = self.head.fc8(self.backbone.tail(features))
        if self.joined_at == "features":
            hidden, share = self._join(hidden, context)
        cam = self.head.fc9(hidden.relu())
        return ContextOutput(cam, self.pooling(cam).logits, alpha.detach(), share)

    def _join(self, maps: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Maps with M joined to them, and the share (B,) of what it adds."""
        options = {"mode": "bilinear", "align_corners": False}
        added = self.joined(F.interpolate(context, size=maps.shape[-2:], **options))
        own, other = (m.detach().float().abs().mean(dim=(1, 2, 3)) for m in (added, maps))
        return maps + added, own / other.clamp(min=torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class Conta(CamMethod):
    """context: False leaves M out, the control "iterate only".

    mask_query, projection: see `parts.context_map.ContextMap`.
    joined_at: M is a channel of the last "features", before the head, or is added to what the
        frozen "trunk" gives, before all stages that are trained.
    side: of M in cells; `fitted` sets it.
    """

    context: bool = True
    mask_query: str = "objects"
    projection: str = "learned"
    joined_at: str = "features"
    side: int = 0

    def __post_init__(self) -> None:
        choice(self, mask_query=QUERIES, projection=PROJECTIONS, joined_at=PLACES)
        choice(self, context=(False, True))
        whole(self, "side")

    def fitted(self, side: int, strength: float = 1.0) -> "Conta":
        """For a map of `side` cells, as many as M has."""
        return replace(super().fitted(side, strength), side=side)

    def build(self, backbone: nn.Module, num_classes: int) -> ContextClassifier:
        """The network; its random weights begin as the host's.

        Raises ValueError where the side is not set.
        """
        if not self.side:
            raise ValueError("side is 0: `fitted` sets it, or a number of cells from 1 on")
        return ContextClassifier(
            backbone=backbone,
            pooling=self.pooling.build(num_classes),
            num_classes=num_classes,
            side=self.side,
            mask_query=self.mask_query,
            projection=self.projection,
            joined_at=self.joined_at,
        )

    def measure(self, network: ContextClassifier, batch: Batch) -> dict[str, Tensor]:
        """Logits, and what M does.  batch: with label maps (B, H, W) as ``labels``."""
        output = self._read(network, batch)
        measures = {"logits": output.logits, "tags": batch.tags}
        return measures | {"share": output.share, "spread": evenness(output.alpha)}

    def combine(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """BCE over the tags; logged too: ``context_share``, what M adds against what is there.

        ``context_spread``: entropy of alpha in 0..1, 1 where all contexts count alike.
        """
        return {
            "classification": losses.classification(measures["logits"], measures["tags"]),
            "context_share": measures["share"].mean(),
            "context_spread": measures["spread"].mean(),
        }

    def cam(self, network: ContextClassifier, batch: Batch) -> Tensor:
        """The signed CAM (B, K, h, w) of a batch with its label maps."""
        return self._read(network, batch).cam

    def _read(self, network: ContextClassifier, batch: Batch) -> ContextOutput:
        """Raises ValueError where M is to be read, and there are no label maps."""
        if self.context:
            if batch.labels is None:
                raise ValueError("a context map needs the batch's label maps, got none")
            return network.with_context(batch)
        host = forward(network, batch)
        count, classes = host.logits.shape
        alpha = host.logits.new_full((count, classes), 1 / classes)
        return ContextOutput(host.cam, host.logits, alpha, host.logits.new_zeros(count))


def evenness(alpha: Tensor) -> Tensor:
    """The entropy of alpha (B, K), which sums to 1, over its largest, (B,) in 0..1.

    >>> evenness(torch.tensor([[0.5, 0.5], [1.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    return torch.special.entr(alpha).sum(dim=1) / math.log(max(alpha.shape[1], 2))
