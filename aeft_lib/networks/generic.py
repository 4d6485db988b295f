"""ResNets of torchvision and networks of timm as CAM backbones, stride 8 or 16 (not in the paper).

Dependency choice: torchvision's ResNets are the field's second baseline, timm has the rest; both
bring their own weights.
"""

from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torchvision
from torch import Tensor, nn

from aeft_lib.engine.fields import choice
from aeft_lib.networks import resnet38d
from aeft_lib.networks.backbone import WEIGHTS, check_images
from aeft_lib.networks.frozen_norms import FrozenNorms
from aeft_lib.networks.weights import check_named_digest

STRIDES = (8, 16)
TORCHVISION = {
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V2,
    "resnet101": torchvision.models.ResNet101_Weights.IMAGENET1K_V2,
}


class GenericBackbone(FrozenNorms):
    """Normalised images (B, 3, H, W) -> features (B, out_channels, H/stride, W/stride).

    blocks: stem and stages in order; the first `frozen` are the trunk: no gradient, no randomness.
    taps, tap_channels: of the last three blocks, for an affinity network.
    """

    def __init__(
        self, blocks: list[nn.Module], *, channels: list[int], stride: int, frozen: int = 2
    ) -> None:
        super().__init__()
        self._trunk = nn.Sequential(*blocks[:frozen]).requires_grad_(False)
        self._tail = nn.Sequential(*blocks[frozen:])
        self.stride, self.out_channels = stride, channels[-1]
        self.tap_channels = tuple(channels[-3:])
        self.freeze_norms()

    def trunk(self, images: Tensor) -> Tensor:
        """Features of the frozen blocks.  Raises ValueError for images of another shape."""
        check_images(images)
        return self._trunk(images)

    def tail(self, features: Tensor) -> Tensor:
        """The trunk's output -> features."""
        return self._outputs(features)[-1]

    def taps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the last three blocks."""
        return tuple(self._outputs(self.trunk(images))[-3:])

    def _outputs(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for block in self._tail:
            x = self.run(block, x)
            outputs.append(x)
        return outputs

    @staticmethod
    def normalise(images: Tensor) -> Tensor:
        """uint8 0..255 (B, 3, H, W) -> ImageNet's normalisation."""
        return resnet38d.normalise(images)


class TimmBackbone(FrozenNorms):
    """As `GenericBackbone`, without a frozen trunk: timm's networks are not alike inside.

    checkpointing: timm's own; setting it raises ValueError where the network has none.
    """

    def __init__(self, net: nn.Module, *, stride: int) -> None:
        super().__init__()
        self.net, self.stride = net, stride
        self.tap_channels = tuple(net.feature_info.channels()[-3:])
        self.out_channels = self.tap_channels[-1]
        self.freeze_norms()

    @property
    def checkpointing(self) -> bool:
        """Whether block inputs alone are kept for the backward pass."""
        return bool(getattr(self.net, "grad_checkpointing", False))

    @checkpointing.setter
    def checkpointing(self, wanted: bool) -> None:
        if wanted and not hasattr(self.net, "set_grad_checkpointing"):
            remedy = "set checkpointing=False in the profile's Compute"
            raise ValueError(f"this network of timm's cannot be checkpointed: {remedy}")
        if wanted or self.checkpointing:
            self.net.set_grad_checkpointing(wanted)

    def trunk(self, images: Tensor) -> Tensor:
        """The images: nothing is frozen.  Raises ValueError for images of another shape."""
        check_images(images)
        return images

    def tail(self, features: Tensor) -> Tensor:
        """Images -> features."""
        return self.net(features)[-1]

    def taps(self, images: Tensor) -> tuple[Tensor, ...]:
        """The last three of the network's maps."""
        return tuple(self.net(self.trunk(images))[-3:])

    @staticmethod
    def normalise(images: Tensor) -> Tensor:
        """uint8 0..255 (B, 3, H, W) -> ImageNet's normalisation."""
        return resnet38d.normalise(images)


@dataclass(frozen=True)
class TorchvisionSpec:
    """ResNet-50 or ResNet-101, its last stages dilated to an output stride of 8 or 16."""

    name: str = "resnet50"
    output_stride: int = 16
    weights: str = "imagenet"

    def __post_init__(self) -> None:
        choice(self, name=tuple(TORCHVISION), output_stride=STRIDES, weights=WEIGHTS)

    @property
    def stride(self) -> int:
        """Pixels of the image along a cell of the feature map."""
        return self.output_stride

    def build(self, *, dropout: tuple[float, float] = (0.0, 0.0)) -> GenericBackbone:
        """The backbone; it has no dropout.  Raises ValueError where its weights are damaged."""
        make, weights = getattr(torchvision.models, self.name), TORCHVISION[self.name]
        dilated = [False, self.output_stride == 8, True]
        weights = weights if self.weights == "imagenet" else None
        if weights:
            check_named_digest(Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name))
        net = make(weights=weights, replace_stride_with_dilation=dilated)
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        blocks = [stem, net.layer1, net.layer2, net.layer3, net.layer4]
        channels = [64, 256, 512, 1024, 2048]
        return GenericBackbone(blocks, channels=channels, stride=self.output_stride)

    def check(self) -> None:
        """Nothing: torchvision brings its weights when they are asked for."""


@dataclass(frozen=True)
class TimmSpec:
    """A network of timm that gives features, by its name there."""

    name: str
    output_stride: int = 16
    weights: str = "imagenet"

    def __post_init__(self) -> None:
        choice(self, output_stride=STRIDES, weights=WEIGHTS)

    @property
    def stride(self) -> int:
        """Pixels of the image along a cell of the feature map."""
        return self.output_stride

    def build(self, *, dropout: tuple[float, float] = (0.0, 0.0)) -> TimmBackbone:
        """The backbone.  Raises ValueError for a network without features at this stride."""
        self.check()
        pretrained, stride = self.weights == "imagenet", self.output_stride
        options = {"pretrained": pretrained, "features_only": True, "output_stride": stride}
        refused = (TypeError, NotImplementedError, AssertionError, RuntimeError, AttributeError)
        try:
            net = timm.create_model(self.name, **options)
        except refused as error:
            reason = str(error) or type(error).__name__
            message = f"timm:{self.name} gives no features at stride {stride} ({reason})"
            raise ValueError(message) from error
        reduction = net.feature_info.reduction()
        if reduction[-1] != stride or len(reduction) < 3:
            problem = f"gives features at strides {reduction}, not {stride}"
            raise ValueError(f"timm:{self.name} {problem}")
        return TimmBackbone(net, stride=stride)

    def check(self) -> None:
        """Raises ValueError for a name that timm does not know."""
        if self.name not in timm.list_models(pretrained=False):
            remedy = "timm.list_models() has the names of timm's"
            raise ValueError(f"unknown backbone 'timm:{self.name}'; {remedy}")
