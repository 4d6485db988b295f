"""The batch of samples that one step of training takes, whatever the network and the loss."""

from typing import Any, NamedTuple

from torch import Tensor, nn


class Batch(NamedTuple):
    """Samples as a network takes them; what a loss does not need is None.

    images: (B, 3, H, W), in the backbone's range.  features: of the frozen trunk for these images,
    where they are cached.  tags: (B, K).
    noise: (B, N) in 0..1, where N samples make up the whole batch: each sample's own random
    numbers, the same however the batch is cut into parts or spread over ranks.
    labels: (B, h, w) uint8 label maps, 255 void.
    """

    images: Tensor | None = None
    features: Tensor | None = None
    tags: Tensor | None = None
    noise: Tensor | None = None
    labels: Tensor | None = None


def forward(network: nn.Module, batch: Batch) -> Any:
    """The network on a batch: from its cached features where it has some, else from its images."""
    if batch.features is None:
        return network(batch.images)
    return network.from_trunk(batch.features)
