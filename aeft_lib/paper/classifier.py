"""The classifier whose weights are also its class activation maps: backbone -> CAM head -> pooling.

``f = fc9(relu(fc8(x)))`` is the signed CAM itself, so no gradient and no weight of a last layer is
needed to read it.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor, nn

from aeft_lib.engine.samples import Batch, forward
from aeft_lib.paper import losses
from aeft_lib.paper.gpp import Gap, PooledPrediction, Pyramid


class CamOutput(NamedTuple):
    """cam: (B, K, h, w) signed, at feature size.  logits: (B, K).

    attention: (B, K, h, w) signed, None for GAP.
    """

    cam: Tensor
    logits: Tensor
    attention: Tensor | None


class CamHead(nn.Module):
    """Two 1x1 convolutions without biases: features (B, C, h, w) -> signed CAM (B, K, h, w)."""

    def __init__(self, *, in_channels: int, num_classes: int, hidden: int = 256) -> None:
        super().__init__()
        self.fc8 = nn.Conv2d(in_channels, hidden, kernel_size=1, bias=False)
        self.fc9 = nn.Conv2d(hidden, num_classes, kernel_size=1, bias=False)
        for layer in (self.fc8, self.fc9):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc9(self.fc8(features).relu())


class CamClassifier(nn.Module):
    """Multi-label classifier over K classes, read as a CAM.

    backbone: has ``trunk``, ``tail`` and ``out_channels`` (see `networks.backbone`).
    pooling: `gpp.GlobalAveragePooling` or `gpp.PyramidPooling` built for the same K.
    """

    def __init__(
        self, *, backbone: nn.Module, pooling: nn.Module, num_classes: int, hidden: int = 256
    ) -> None:
        """Raises ValueError where the pooling layer was built for another K."""
        super().__init__()
        k = getattr(pooling, "num_classes", num_classes)
        if k != num_classes:
            problem = f"the pooling layer was built for K={k}, the classifier for K={num_classes}"
            raise ValueError(problem)
        self.num_classes, self.backbone, channels = num_classes, backbone, backbone.out_channels
        self.head = CamHead(in_channels=channels, num_classes=num_classes, hidden=hidden)
        self.pooling = pooling

    def forward(self, images: Tensor) -> CamOutput:
        """Images (B, 3, H, W) in the backbone's range -> CAM at its stride, logits, attention."""
        return self.from_trunk(self.backbone.trunk(images))

    def from_trunk(self, features: Tensor) -> CamOutput:
        """As `forward`, from features of the frozen trunk (cached, perhaps in half precision)."""
        cam = self.cam(features)
        pooled: PooledPrediction = self.pooling(cam)
        return CamOutput(cam, pooled.logits, pooled.attention)

    def cam(self, features: Tensor) -> Tensor:
        """The signed CAM (B, K, h, w) alone: inference needs no pooling."""
        return self.head(self.backbone.tail(features.to(self.head.fc8.weight.dtype)))


@dataclass(frozen=True)
class CamMethod:
    """What methods on a `CamClassifier` share: how the network is built and read as a CAM."""

    pooling: Gap | Pyramid = Gap()
    needs = ()

    def build(self, backbone: nn.Module, num_classes: int) -> CamClassifier:
        """The network on a backbone; head and gates come from the global random stream."""
        pooling = self.pooling.build(num_classes)
        return CamClassifier(backbone=backbone, pooling=pooling, num_classes=num_classes)

    def cam(self, network: CamClassifier, batch: Batch) -> Tensor:
        """The signed CAM (B, K, h, w) of images, or of cached features."""
        trunk = network.backbone.trunk
        return network.cam(trunk(batch.images) if batch.features is None else batch.features)

    def fitted(self, side: int, strength: float = 1.0) -> "CamMethod":
        """The method for a map of `side` cells; strength: of what a second phase adds."""
        return replace(self, pooling=self.pooling.fitted(side))


@dataclass(frozen=True)
class Classification(CamMethod):
    """Tags alone, L_cls: the paper's first phase, and every baseline of its first table."""

    def measure(self, network: CamClassifier, batch: Batch) -> dict[str, Tensor]:
        """``logits`` and ``tags``, (B, K) each."""
        return {"logits": forward(network, batch).logits, "tags": batch.tags}

    def combine(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of the whole batch."""
        return {"classification": losses.classification(measures["logits"], measures["tags"])}
