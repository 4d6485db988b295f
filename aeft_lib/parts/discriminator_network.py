"""The network of ICD (Fan et al., CVPR 2020): a CAM branch, and beside it a discriminator."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aeft_lib.paper.gpp import GlobalAveragePooling
from aeft_lib.parts.discriminator import EPS, MOMENTUM


class CentredNorm(nn.Module):
    """A batch norm with a learned shift and without a scale.

    Its running statistics are parameters that get no gradient, so that they are stored with what is
    trained.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.mean = nn.Parameter(torch.zeros(channels))
        self.variance = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.mean.detach(), self.variance.detach()
        if self.training:
            variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
            if torch.is_grad_enabled():  # once, where a batch goes through in parts
                with torch.no_grad():
                    self.mean.lerp_(mean.to(self.mean), 1 - MOMENTUM)
                    self.variance.lerp_(variance.to(self.variance), 1 - MOMENTUM)
        scale = (variance + EPS).rsqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + self.shift[:, None, None]


class IcdOutput(NamedTuple):
    """cam: (B, K, h, w) signed.  logits: (B, K).  attention: None.

    features: f, (B, C, h, w).  icd: the logits t, (B, K, h, w).
    """

    cam: Tensor
    logits: Tensor
    attention: None
    features: Tensor
    icd: Tensor


class IcdClassifier(nn.Module):
    """A CAM branch and a discriminator on one backbone.

    moving: the pair (K, 2) of `discriminator.moved`, stored as a parameter without gradient.
    """

    def __init__(
        self, *, backbone: nn.Module, num_classes: int, width: int = 256, side: int = 3
    ) -> None:
        super().__init__()
        self.num_classes, self.backbone, channels = num_classes, backbone, backbone.out_channels
        self.pooling, self.pool = GlobalAveragePooling(), nn.Identity()
        self.fc6 = nn.Conv2d(channels, width, side, padding=side // 2)
        self.fc7 = nn.Conv2d(width, width, 1)
        self.fc8 = nn.Conv2d(width, num_classes, 1)
        self.dropout = nn.Dropout(0.5)
        self.norm = CentredNorm(channels)
        self.icd6, self.icd7 = (copy.deepcopy(layer) for layer in (self.fc6, self.fc7))
        self.icd8 = nn.Conv2d(channels + 2 * width, num_classes, 1, bias=False)
        self.moving = nn.Parameter(torch.zeros(num_classes, 2))
        # Trained at the backbone's rate, so it has a place there.
        backbone.register_parameter("directions", nn.Parameter(torch.empty(num_classes, channels)))
        nn.init.normal_(backbone.directions, std=0.01)

    def forward(self, images: Tensor) -> IcdOutput:
        """Images (B, 3, H, W) in the backbone's range -> maps at its stride."""
        return self.from_trunk(self.backbone.trunk(images))

    def from_trunk(self, features: Tensor) -> IcdOutput:
        """As `forward`, from features of the frozen trunk (cached, perhaps in half precision)."""
        maps = self._maps(features)
        cam, f = self._cam(maps), self.norm(maps.relu())
        f1 = self.icd6(f).relu()
        icd = self.icd8(torch.cat([f, f1, self.icd7(f1).relu()], dim=1))
        return IcdOutput(cam, self.pooling(cam).logits, None, f, icd)

    def cam(self, features: Tensor) -> Tensor:
        """The signed CAM (B, K, h, w) alone, from the trunk's features."""
        return self._cam(self._maps(features))

    def _maps(self, features: Tensor) -> Tensor:
        return self.backbone.tail(features.to(self.fc8.weight.dtype))

    def _cam(self, maps: Tensor) -> Tensor:
        hidden = self.dropout(self.fc6(self.pool(maps)).relu())
        return self.fc8(self.dropout(self.fc7(hidden).relu()))
