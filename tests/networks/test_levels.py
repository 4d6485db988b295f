"""Maps of all levels of a frozen backbone: channels, strides, and that they are its own."""

import pytest
import torch

from aeft_lib.networks.efficientnet_lite import EfficientNetLiteSpec
from aeft_lib.networks.generic import TimmSpec, TorchvisionSpec
from aeft_lib.networks.levels import LevelsSpec
from aeft_lib.networks.resnet38d import ResNet38dSpec
from aeft_lib.networks.resnet50 import ResNet50Spec

RESNET, LITE = (64, 256, 512, 1024, 2048), (16, 24, 40, 112, 1280)
SPECS = {
    "resnet50": (ResNet50Spec(weights="none"), RESNET, (4, 4, 8, 16, 16)),
    "dilated": (TorchvisionSpec(weights="none"), RESNET, (4, 4, 8, 16, 16)),
    "resnet38d": (ResNet38dSpec(weights="none"), (128, 256, 512, 1024, 4096), (2, 4, 8, 8, 8)),
    "lite": (EfficientNetLiteSpec(weights="none"), LITE, (2, 4, 8, 16, 16)),
    "trained": (EfficientNetLiteSpec(trained_stages=3, weights="none"), LITE, (2, 4, 8, 16, 16)),
    "timm": (TimmSpec("resnet18", weights="none"), (128, 256, 512), (8, 16, 16)),
}


@pytest.mark.parametrize("name", SPECS)
def test_maps_have_their_channels_and_strides(name):
    """Shapes alone: tensors without contents."""
    spec, channels, strides = SPECS[name]
    with torch.device("meta"):
        levels = LevelsSpec(spec).build()
        maps = levels(torch.zeros(2, 3, 64, 96))
    assert (levels.channels, levels.strides) == (channels, strides)
    for level, count, stride in zip(maps, channels, strides, strict=True):
        assert level.shape == (2, count, 64 // stride, 96 // stride)
    assert not any(p.requires_grad for p in levels.parameters())


def test_maps_are_the_backbone_own_and_have_no_gradient():
    backbone = LevelsSpec(EfficientNetLiteSpec(weights="none")).build().eval()
    images = torch.rand(1, 3, 64, 64)
    for _ in range(2):  # no hook is left behind
        maps = backbone(images)
        assert len(maps) == 5
    assert not any(level.requires_grad for level in maps)
    assert torch.equal(maps[-1], backbone.plain(images))
    # Stages 3 and 5 are what AffinityNet taps too.
    for ours, tap in zip(maps[2:], backbone.plain.taps(images), strict=True):
        assert torch.equal(ours, tap)


def test_the_spec_speaks_for_the_plain_one():
    spec = LevelsSpec(EfficientNetLiteSpec(weights="none"))
    spec.check()
    assert (spec.stride, spec.weights) == (16, "none")
    assert spec.build().checkpointing is False
