"""Backbones by name, as a spec that a stage can keep."""

import os
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from aeft_lib.networks.efficientnet_lite import EfficientNetLite0
from aeft_lib.networks.generic import STRIDES, TORCHVISION, timm_backbone, torchvision_backbone
from aeft_lib.networks.resnet38d import ResNet38d
from aeft_lib.networks.weights import load_mxnet_resnet38d

VARIABLE = "AEFT_RESNET38D_PARAMS"
WEIGHTS = ("imagenet", "none")
TIMM = "timm:"


@dataclass(frozen=True)
class BackboneSpec:
    """name: efficientnet_lite0, resnet38d, resnet50, resnet101, or timm:NAME.

    trained_stages: of efficientnet_lite0, from its end; the others train what the paper trains, or all but the first stage.
    output_stride: of the ResNets of torchvision and of timm's networks.
    weights: "imagenet", or "none" for random ones (tests).
    """

    name: str = "efficientnet_lite0"
    trained_stages: int = 0
    output_stride: int = 16
    weights: str = "imagenet"

    def __post_init__(self) -> None:
        if self.name not in ("efficientnet_lite0", "resnet38d", *TORCHVISION) and not self.name.startswith(TIMM):
            names = ", ".join(("efficientnet_lite0", "resnet38d", *TORCHVISION))
            raise ValueError(f"unknown backbone {self.name!r}; there are {names} and {TIMM}NAME for one of timm's")
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {self.weights!r}")
        if self.output_stride not in STRIDES:
            raise ValueError(f"output_stride must be one of {STRIDES}, got {self.output_stride}")

    @property
    def stride(self) -> int:
        """Pixels of the image along a cell of the feature map."""
        return {"efficientnet_lite0": EfficientNetLite0.stride, "resnet38d": ResNet38d.stride}.get(
            self.name, self.output_stride
        )


def build_backbone(spec: BackboneSpec, *, dropout: tuple[float, float] = (0.2, 0.2), checkpointing: bool = False) -> nn.Module:
    """The backbone of a spec, with its weights.

    dropout: of ResNet38d's last blocks; the others have none.  checkpointing: see `FrozenNorms`.
    Raises ValueError where weights do not fit or are not there, with what to do.
    """
    pretrained = spec.weights == "imagenet"
    if spec.name == "efficientnet_lite0":
        backbone = EfficientNetLite0(trained_stages=spec.trained_stages, pretrained=pretrained)
    elif spec.name == "resnet38d":
        backbone = ResNet38d(dropout=dropout)
        if pretrained:
            load_mxnet_resnet38d(backbone, resnet38d_file())
    elif spec.name.startswith(TIMM):
        backbone = timm_backbone(spec.name.removeprefix(TIMM), stride=spec.output_stride, pretrained=pretrained)
    else:
        backbone = torchvision_backbone(spec.name, stride=spec.output_stride, pretrained=pretrained)
    backbone.checkpointing = checkpointing
    return backbone


def resnet38d_file() -> Path:
    """The MXNet file of ResNet38d's ImageNet weights, which ``AEFT_RESNET38D_PARAMS`` names.  Raises ValueError without it."""
    named = os.environ.get(VARIABLE)
    if not named or not Path(named).is_file():
        raise ValueError(
            f"the ImageNet weights of ResNet38d are an MXNet file, ilsvrc-cls_rna-a1_cls1000_ep-0001.params (480 MB), that the "
            f"authors of AffinityNet publish: point {VARIABLE} at it (now {named!r})"
        )
    return Path(named)
