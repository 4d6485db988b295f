"""EfficientNet-Lite0 as a CAM backbone: output stride 16, ImageNet weights, a frozen trunk.

The laptop's stand-in for ResNet38d (not in the paper).  The stride of stage 5 is set to 1, which
gives a map twice as fine without dilation: dilated depthwise convolutions are slow on a CPU.
"""

from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn

from aeft_lib.engine.fields import choice, whole
from aeft_lib.networks.backbone import WEIGHTS, check_images
from aeft_lib.networks.frozen_norms import FrozenNorms
from aeft_lib.networks.weights import efficientnet_lite0_file, load_in_order

N_STAGES = 7


class EfficientNetLite0(FrozenNorms):
    """Images in -1..1 (B, 3, H, W) -> features (B, 1280, H/16, W/16).

    trained_stages: how many of the seven stages, counted from the last, are trained, and the final
        1x1 convolution with them; 0 freezes all.  The frozen part is the ``trunk``: it has no
        gradient and no randomness, so its output can be cached.
    pretrained: load the ImageNet weights.
    """

    out_channels = 1280
    stride = 16
    # Places among stem, seven stages and final convolution that an affinity network taps.
    tap_stages = (3, 5, 8)
    tap_channels = (40, 112, 1280)

    def __init__(self, *, trained_stages: int, pretrained: bool = True) -> None:
        """Raises ValueError where trained_stages is outside 0..7."""
        super().__init__()
        if not 0 <= trained_stages <= N_STAGES:
            raise ValueError(f"trained_stages must be 0..{N_STAGES}, got {trained_stages}")
        net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        if pretrained:
            load_in_order(net, efficientnet_lite0_file())
        net.blocks[5][0].conv_dw.stride = (1, 1)
        stages: list[nn.Module] = [
            nn.Sequential(net.conv_stem, net.bn1),
            *net.blocks,
            nn.Sequential(net.conv_head, net.bn2),
        ]
        first_trained = len(stages) - (trained_stages + 1 if trained_stages else 0)
        self._trunk = nn.Sequential(*stages[:first_trained]).requires_grad_(False)
        self._tail = nn.Sequential(*stages[first_trained:])
        self.freeze_norms()

    def trunk(self, images: Tensor) -> Tensor:
        """Features of the frozen stages; a gradient reaches images alone (a mask not detached)."""
        check_images(images)
        return self._through(self._trunk, images)

    def tail(self, features: Tensor) -> Tensor:
        """The trunk's output -> (B, 1280, H/16, W/16)."""
        return self._through(self._tail, features)

    def taps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Three maps (B, tap_channels[i], h, w), the finest at stride 8, the others at 16."""
        check_images(images)
        taps = []
        for i, stage in enumerate((*self._trunk, *self._tail)):
            images = self.run(stage, images)
            if i in self.tap_stages:
                taps.append(images)
        return tuple(taps)

    def _through(self, stages: nn.Sequential, x: Tensor) -> Tensor:
        for stage in stages:
            x = self.run(stage, x)
        return x

    @staticmethod
    def normalise(images: Tensor) -> Tensor:
        """As the function `normalise`."""
        return normalise(images)


def normalise(images: Tensor) -> Tensor:
    """uint8 0..255 (B, 3, H, W) -> the range of the ImageNet weights, (x - 127) / 128, float32.

    Raises ValueError for another type.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 0..255, got {images.dtype}")
    return (images.float() - 127) / 128


@dataclass(frozen=True)
class EfficientNetLiteSpec:
    """EfficientNet-Lite0.  trained_stages: of its seven, counted from the last; 0 freezes all."""

    trained_stages: int = 0
    weights: str = "imagenet"
    stride = EfficientNetLite0.stride

    def __post_init__(self) -> None:
        whole(self, "trained_stages", most=N_STAGES)
        choice(self, weights=WEIGHTS)

    def build(self, *, dropout: tuple[float, float] = (0.0, 0.0)) -> EfficientNetLite0:
        """The backbone; it has no dropout.  Raises FileNotFoundError without its weights."""
        pretrained = self.weights == "imagenet"
        return EfficientNetLite0(trained_stages=self.trained_stages, pretrained=pretrained)

    def check(self) -> None:
        """Raises FileNotFoundError where the package with its weights is not installed."""
        if self.weights == "imagenet":
            efficientnet_lite0_file()
