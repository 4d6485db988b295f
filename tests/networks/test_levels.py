"""Maps of all levels of a frozen backbone: channels, strides, and that they are the network's own."""

import pytest
import torch

from aeft_lib.networks.efficientnet_lite import EfficientNetLiteSpec
from aeft_lib.networks.generic import TimmSpec, TorchvisionSpec
from aeft_lib.networks.levels import LevelsSpec
from aeft_lib.networks.resnet38d import ResNet38dSpec
from aeft_lib.networks.resnet50 import ResNet50Spec

RESNET = (64, 256, 512, 1024, 2048)
SPECS = {
    "resnet50": (ResNet50Spec(weights="none"), RESNET, (4, 4, 8, 16, 16)),
    "dilated": (TorchvisionSpec(weights="none"), RESNET, (4, 4, 8, 16, 16)),
    "lite": (EfficientNetLiteSpec(weights="none"), (16, 24, 40, 112, 1280), (2, 4, 8, 16, 16)),
    "lite_trained": (
        EfficientNetLiteSpec(trained_stages=3, weights="none"),
        (16, 24, 40, 112, 1280),
        (2, 4, 8, 16, 16),
    ),
    "timm": (TimmSpec("resnet18", weights="none"), (128, 256, 512), (8, 16, 16)),
}


@pytest.mark.parametrize("name", SPECS)
def test_maps_have_their_channels_and_strides(name):
    spec, channels, strides = SPECS[name]
    levels = LevelsSpec(spec).build().eval()
    assert (levels.channels, levels.strides) == (channels, strides)
    images = torch.rand(1, 3, 64, 96)
    maps = levels(images)
    for level, count, stride in zip(maps, channels, strides, strict=True):
        assert level.shape == (1, count, 64 // stride, 96 // stride)
        assert not level.requires_grad
    assert not any(p.requires_grad for p in levels.parameters())
    assert torch.equal(maps[-1], levels.plain(images))
    # No hook is left behind.
    assert len(levels(images)) == len(channels)


def test_places_of_resnet38d():
    with torch.device("meta"):
        levels = LevelsSpec(ResNet38dSpec(weights="none")).build()
    assert levels.channels == (128, 256, 512, 1024, 4096)
    assert levels.strides == (2, 4, 8, 8, 8)


def test_the_spec_speaks_for_the_plain_one():
    spec = LevelsSpec(ResNet50Spec(weights="none"))
    spec.check()
    assert (spec.stride, spec.weights) == (16, "none")
    assert spec.build().checkpointing is False
