"""ResNet-50 as IRNet's family has it: stride 16 without dilation, and batch norms that learn.

The last stage's stride is left out, and nothing is dilated in its place.  ImageNet's first weights
(V1).  Batch norms keep their statistics; their affine parameters are trained where their stage is.
The stem and the first two stages are frozen, as in IRNet and BES, whose map after the second is
detached; AdvCAM's release trains both stages.  Source: the code of the authors of IRNet.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import nn

from aeft_lib.engine.fields import choice, whole
from aeft_lib.networks.backbone import WEIGHTS
from aeft_lib.networks.generic import GenericBackbone
from aeft_lib.networks.weights import check_named_digest

CHANNELS = [64, 256, 512, 1024, 2048]
PUBLISHED = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
STAGES = 4


class ResNet50(GenericBackbone):
    """Normalised images (B, 3, H, W) -> features (B, 2048, H/16, W/16)."""

    def __init__(self, blocks: list[nn.Module], *, frozen: int) -> None:
        super().__init__(blocks, channels=CHANNELS, stride=16, frozen=frozen)
        for norm in self._tail.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.requires_grad_(True)


@dataclass(frozen=True)
class ResNet50Spec:
    """IRNet's ResNet-50.  trained_stages: of its four, counted from the last; AdvCAM trains all."""

    trained_stages: int = 2
    weights: str = "imagenet"
    stride = 16

    def __post_init__(self) -> None:
        whole(self, "trained_stages", least=1, most=STAGES)
        choice(self, weights=WEIGHTS)

    def build(self, *, dropout: tuple[float, float] = (0.0, 0.0)) -> ResNet50:
        """The backbone; it has no dropout.  Raises ValueError where its weights are damaged."""
        weights = PUBLISHED if self.weights == "imagenet" else None
        if weights:
            check_named_digest(Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name))
        net = torchvision.models.resnet50(weights=weights)
        first = net.layer4[0]
        first.conv2.stride = first.downsample[0].stride = (1, 1)
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        blocks = [stem, net.layer1, net.layer2, net.layer3, net.layer4]
        return ResNet50(blocks, frozen=1 + STAGES - self.trained_stages)

    def check(self) -> None:
        """Nothing: torchvision brings its weights when they are asked for."""
