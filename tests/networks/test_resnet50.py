"""ResNet-50 of IRNet's family: no dilation, trained norms with fixed statistics, frozen stages."""

import pytest
import torch
import torchvision
from torch import nn

from aeft_lib.networks.frozen_norms import unfold
from aeft_lib.networks.resnet50 import PUBLISHED, ResNet50Spec


def build(**options) -> nn.Module:
    torch.manual_seed(0)
    return ResNet50Spec(weights="none", **options).build()


def test_stride_16_without_dilation():
    backbone = build()
    convolutions = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert {m.dilation for m in convolutions} == {(1, 1)}
    assert backbone(torch.zeros(1, 3, 64, 96)).shape == (1, 2048, 4, 6)
    assert (backbone.stride, backbone.tap_channels) == (16, (512, 1024, 2048))


def test_the_map_is_torchvision_own_with_a_stride_left_out():
    backbone = unfold(build()).eval()
    torch.manual_seed(0)
    plain = torchvision.models.resnet50().eval()
    for layer in (plain.layer4[0].conv2, plain.layer4[0].downsample[0]):
        layer.stride = (1, 1)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        x = plain.maxpool(plain.relu(plain.bn1(plain.conv1(images))))
        for stage in (plain.layer1, plain.layer2, plain.layer3, plain.layer4):
            x = stage(x)
        assert torch.equal(backbone(images), x)


@pytest.mark.parametrize(("trained", "first"), [(2, 3), (4, 1), (0, 5)])
def test_norms_are_trained_where_their_stage_is(trained, first):
    backbone = build(trained_stages=trained)
    blocks = [*backbone._trunk, *backbone._tail]
    for place, block in enumerate(blocks):
        parameters = list(block.parameters())
        assert parameters
        assert all(p.requires_grad == (place >= first) for p in parameters)
    backbone.train()
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)


def test_folded_norms_learn_and_keep_their_statistics():
    backbone = build().train()
    norm = backbone._tail[-1][-1].bn3
    before = norm.running_mean.clone(), norm.running_var.clone()
    backbone(torch.rand(2, 3, 64, 64)).square().mean().backward()
    assert norm.weight.grad.abs().max() > 0
    assert norm.bias.grad.abs().max() > 0
    assert torch.equal(norm.running_mean, before[0])
    assert torch.equal(norm.running_var, before[1])


def test_the_first_published_weights_are_asked_for(monkeypatch):
    asked = []
    plain = torchvision.models.resnet50

    def made(weights):
        asked.append(weights)
        return plain()

    monkeypatch.setattr(torchvision.models, "resnet50", made)
    ResNet50Spec().build()
    assert asked == [PUBLISHED]
    assert "v1" in str(PUBLISHED).lower()


@pytest.mark.parametrize("wrong", [{"trained_stages": 5}, {"weights": "v2"}])
def test_wrong_specs_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ResNet50Spec(**wrong)
