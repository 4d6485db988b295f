"""ResNet38d, the paper's backbone: wide, pre-activated, output stride 8 (Wu et al., 2016).

Dilations are AffinityNet's.  Names of modules and tensors are the reference's, so that published
checkpoints fit.  As there, the first convolution and stage 2 are frozen, and every batch norm keeps
its statistics and its affine parameters, in training too.

Cost of a 320 x 320 image (computed): 411 GFLOP forward; 105.1 M parameters.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from aeft_lib.engine.fields import choice
from aeft_lib.networks.backbone import WEIGHTS, check_images
from aeft_lib.networks.frozen_norms import FrozenNorms
from aeft_lib.networks.weights import load_mxnet_resnet38d

# Name; input, middle, output channels; stride; dilations of the first and second convolution.
BASIC = (
    ("b2", 64, 128, 128, 2, 1, 1),
    ("b2_1", 128, 128, 128, 1, 1, 1),
    ("b2_2", 128, 128, 128, 1, 1, 1),
    ("b3", 128, 256, 256, 2, 1, 1),
    ("b3_1", 256, 256, 256, 1, 1, 1),
    ("b3_2", 256, 256, 256, 1, 1, 1),
    ("b4", 256, 512, 512, 2, 1, 1),
    *((f"b4_{i}", 512, 512, 512, 1, 1, 1) for i in range(1, 6)),
    ("b5", 512, 512, 1024, 1, 1, 2),
    ("b5_1", 1024, 512, 1024, 1, 2, 2),
    ("b5_2", 1024, 512, 1024, 1, 2, 2),
)
BOTTLENECKS = (("b6", 1024, 2048), ("b7", 2048, 4096))
TRUNK = ("b2", "b2_1", "b2_2")
TAIL = tuple(name for name, *_ in (*BASIC, *BOTTLENECKS) if name not in TRUNK)
VARIABLE = "AEFT_RESNET38D_PARAMS"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _PreActivated(nn.Module):
    """A residual block whose first norm and ReLU precede its branch and its projected shortcut."""

    bn_branch2a: nn.BatchNorm2d

    def activate(self, x: Tensor) -> Tensor:
        """The input of both branches, ``relu(bn_branch2a(x))``."""
        return self.bn_branch2a(x).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.from_activated(x, self.activate(x))


class BasicBlock(_PreActivated):
    """Two 3 x 3 convolutions; the shortcut is x, or a 1 x 1 convolution where the shape changes."""

    def __init__(
        self, inner: int, middle: int, outer: int, stride: int, first_dilation: int, dilation: int
    ) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(inner)
        self.conv_branch2a = _conv3(inner, middle, stride=stride, dilation=first_dilation)
        self.bn_branch2b1 = nn.BatchNorm2d(middle)
        self.conv_branch2b1 = _conv3(middle, outer, dilation=dilation)
        if inner != outer or stride != 1:
            self.conv_branch1 = nn.Conv2d(inner, outer, kernel_size=1, stride=stride, bias=False)

    def from_activated(self, x: Tensor, activated: Tensor) -> Tensor:
        """The block's output from x and `activate(x)`."""
        shortcut = self.conv_branch1(activated) if hasattr(self, "conv_branch1") else x
        middle = self.bn_branch2b1(self.conv_branch2a(activated)).relu()
        return self.conv_branch2b1(middle) + shortcut


class Bottleneck(_PreActivated):
    """1 x 1, dilated 3 x 3, 1 x 1, with dropout of whole channels; a 1 x 1 shortcut."""

    def __init__(self, inner: int, outer: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(inner)
        self.conv_branch2a = nn.Conv2d(inner, outer // 4, kernel_size=1, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(outer // 4)
        self.dropout_2b1 = nn.Dropout2d(dropout)
        self.conv_branch2b1 = _conv3(outer // 4, outer // 2, dilation=dilation)
        self.bn_branch2b2 = nn.BatchNorm2d(outer // 2)
        self.dropout_2b2 = nn.Dropout2d(dropout)
        self.conv_branch2b2 = nn.Conv2d(outer // 2, outer, kernel_size=1, bias=False)
        self.conv_branch1 = nn.Conv2d(inner, outer, kernel_size=1, bias=False)

    def from_activated(self, x: Tensor, activated: Tensor) -> Tensor:
        """The block's output from `activate(x)` alone."""
        y = self.dropout_2b1(self.bn_branch2b1(self.conv_branch2a(activated)).relu())
        y = self.dropout_2b2(self.bn_branch2b2(self.conv_branch2b1(y)).relu())
        return self.conv_branch2b2(y) + self.conv_branch1(activated)


class ResNet38d(FrozenNorms):
    """Normalised images (B, 3, H, W) -> features (B, 4096, H/8, W/8), not negative.

    dropout: of b6 and b7; the reference has 0.2 in both for classification, 0.3 and 0.5 in the
        affinity network.
    """

    out_channels = 4096
    stride = 8
    tap_channels = (512, 1024, 4096)

    def __init__(self, *, dropout: tuple[float, float] = (0.2, 0.2)) -> None:
        super().__init__()
        self.conv1a = _conv3(3, 64)
        for name, *numbers in BASIC:
            self.add_module(name, BasicBlock(*numbers))
        for (name, inner, outer), p in zip(BOTTLENECKS, dropout, strict=True):
            self.add_module(name, Bottleneck(inner, outer, dilation=4, dropout=p))
        self.bn7 = nn.BatchNorm2d(4096)
        for module in (self.conv1a, *(self.get_submodule(name) for name in TRUNK)):
            module.requires_grad_(False)
        self.freeze_norms()

    def trunk(self, images: Tensor) -> Tensor:
        """Features of the frozen layers, (B, 128, H/2, W/2).  Raises ValueError by shape."""
        check_images(images)
        x = self.conv1a(images)
        for name in TRUNK:
            x = self.run(self.get_submodule(name), x)
        return x

    def tail(self, features: Tensor) -> Tensor:
        """The trunk's output -> (B, 4096, H/8, W/8)."""
        return self._tail_taps(features)[-1]

    def taps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Inputs of b5 and b6, and the last ReLU: (B, 512 | 1024 | 4096, H/8, W/8)."""
        return self._tail_taps(self.trunk(images))

    def _tail_taps(self, x: Tensor) -> tuple[Tensor, ...]:
        taps = []
        for name in TAIL:
            block = self.get_submodule(name)
            if name in ("b5", "b6"):
                taps.append(block.activate(x))
            x = self.run(block, x)
        return (*taps, self.bn7(x).relu())

    @staticmethod
    def normalise(images: Tensor) -> Tensor:
        """As the function `normalise`."""
        return normalise(images)


def normalise(images: Tensor) -> Tensor:
    """uint8 0..255 (B, 3, H, W) -> ImageNet's normalisation, float32.

    Raises ValueError for another type.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 0..255, got {images.dtype}")
    mean, std = (
        torch.tensor(numbers, device=images.device)[:, None, None] for numbers in (MEAN, STD)
    )
    return (images.float() / 255 - mean) / std


def _conv3(inner: int, outer: int, *, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        inner, outer, kernel_size=3, stride=stride, padding=dilation, dilation=dilation, bias=False
    )


@dataclass(frozen=True)
class ResNet38dSpec:
    """ResNet38d; it trains what the paper trains."""

    weights: str = "imagenet"
    stride = ResNet38d.stride

    def __post_init__(self) -> None:
        choice(self, weights=WEIGHTS)

    def build(self, *, dropout: tuple[float, float] = (0.2, 0.2)) -> ResNet38d:
        """The backbone.  Raises ValueError where its weights are missing or do not fit."""
        backbone = ResNet38d(dropout=dropout)
        if self.weights == "imagenet":
            load_mxnet_resnet38d(backbone, weights_file())
        return backbone

    def check(self) -> None:
        """Raises ValueError where no file of its weights is named."""
        if self.weights == "imagenet":
            weights_file()


def weights_file() -> Path:
    """The MXNet file that ``AEFT_RESNET38D_PARAMS`` names.  Raises ValueError without it."""
    named = os.environ.get(VARIABLE)
    if not named or not Path(named).is_file():
        raise ValueError(
            "the ImageNet weights of ResNet38d are an MXNet file, "
            "ilsvrc-cls_rna-a1_cls1000_ep-0001.params (480 MB), that the authors of AffinityNet "
            f"publish: point {VARIABLE} at it (now {named!r})"
        )
    return Path(named)
