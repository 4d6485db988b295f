"""BES, boundary exploration (Chen et al., ECCV 2020): attention pooling, and edges from labels.

Its edges learn from labels of the boundary itself (`parts.boundary`), not from pairs; refiner and
walk are IRNet's (`parts.edge_refiner`).  Its classifier pools, while it is trained, each channel by
an attention of its own, which has no gradient::

    w_cp = softmax over positions p of (k x_cp),      pooled_c = sum_p w_cp x_cp

k = 0 is GAP, a large k the maximum.  CAMs are read without it.

Departures.  The release pools the backbone's last map x in front of one linear layer.  The harness
has two layers, so x is what goes into the second, linear one; then GAP is still k = 0.  The scale k
multiplies activations as they are, and the release's 1e-3 is all but GAP: ``attention_peak``, the
mean over channels of the largest w times the number of positions, is 1 for GAP.
"""

from dataclasses import dataclass

from torch import Tensor

from aeft_lib.engine.fields import number
from aeft_lib.engine.samples import Batch
from aeft_lib.paper import losses
from aeft_lib.paper.classifier import CamClassifier, CamMethod

# Of the refiner, in place of IRNet's: thresholds (foreground, background), beta of the walk, reach
# of the CRF that the release adds in the end, batch size of the edges' training.
THRESHOLDS, BETA, REACH, BATCH = (0.30, 0.07), 5.0, 20.0, 16


def attention_pool(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Each channel of x (B, C, h, w), weighed by its own softmax: (B, C), and the weights.

    scale: k.  The weights (B, C, h w) have no gradient and sum to 1.  Raises ValueError by shape.

    >>> import math, torch
    >>> x = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    >>> round(attention_pool(x, math.log(3))[0].item(), 4)
    0.75
    """
    if x.ndim != 4:
        raise ValueError(f"x must be (B, C, h, w), got shape {tuple(x.shape)}")
    flat = x.flatten(2)
    weights = (scale * flat.detach()).softmax(dim=-1)
    return (weights * flat).sum(dim=-1), weights


@dataclass(frozen=True)
class Bes(CamMethod):
    """The classifier.  attention_scale: k."""

    attention_scale: float = 1e-3

    def __post_init__(self) -> None:
        number(self, "attention_scale")

    def measure(self, network: CamClassifier, batch: Batch) -> dict[str, Tensor]:
        """``logits`` and ``tags``, (B, K) each; ``peak`` (B,) of the attention."""
        backbone, head = network.backbone, network.head
        x = backbone.trunk(batch.images) if batch.features is None else batch.features
        x = head.fc8(backbone.tail(x.to(head.fc8.weight.dtype))).relu()
        pooled, weights = attention_pool(x, self.attention_scale)
        peak = (weights.amax(dim=-1) * weights.shape[-1]).mean(dim=1)
        logits = head.fc9(pooled[..., None, None]).flatten(1)
        return {"logits": logits, "tags": batch.tags, "peak": peak}

    def combine(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """The classification loss; logged too: ``attention_peak``."""
        loss = losses.classification(measures["logits"], measures["tags"])
        return {"classification": loss, "attention_peak": measures["peak"].mean().detach()}
