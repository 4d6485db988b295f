"""ResNet-50 of IRNet's family: no dilation, trained norms with fixed statistics, frozen stages."""

import pytest
import torch
import torchvision
from torch import nn

from aeft_lib.networks.resnet50 import PUBLISHED, ResNet50Spec


def build(**options) -> nn.Module:
    """Tensors without contents, which costs nothing."""
    with torch.device("meta"):
        return ResNet50Spec(weights="none", **options).build()


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d)]


def test_stride_16_without_dilation():
    backbone = build()
    assert {m.dilation for m in convolutions(backbone)} == {(1, 1)}
    features = backbone(torch.zeros(1, 3, 64, 96, device="meta"))
    assert features.shape == (1, 2048, 4, 6)
    assert (backbone.stride, backbone.tap_channels) == (16, (512, 1024, 2048))


def test_it_is_torchvision_own_but_for_one_stride():
    with torch.device("meta"):
        plain = torchvision.models.resnet50()
    pairs = list(zip(convolutions(build()), convolutions(plain), strict=True))
    assert all(ours.weight.shape == theirs.weight.shape for ours, theirs in pairs)
    assert all(ours.padding == theirs.padding for ours, theirs in pairs)
    other = [theirs for ours, theirs in pairs if ours.stride != theirs.stride]
    assert other == [plain.layer4[0].conv2, plain.layer4[0].downsample[0]]


@pytest.mark.parametrize(("trained", "first"), [(2, 3), (4, 1), (1, 4)])
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
    backbone = build(trained_stages=1).to_empty(device="cpu").train()
    with torch.no_grad():
        for tensor in backbone.state_dict().values():
            tensor.fill_(0.01 if tensor.is_floating_point() else 0)
    norm = backbone._tail[-1][-1].bn3
    backbone(torch.ones(1, 3, 32, 32)).sum().backward()
    assert norm.weight.grad.abs().max() > 0
    assert norm.bias.grad.abs().max() > 0
    for statistics in (norm.running_mean, norm.running_var):
        assert torch.equal(statistics, torch.full_like(statistics, 0.01))


def test_the_first_published_weights_are_asked_for(monkeypatch):
    asked, plain = [], torchvision.models.resnet50

    def made(weights):
        asked.append(weights)
        return plain()

    monkeypatch.setattr(torchvision.models, "resnet50", made)
    with torch.device("meta"):
        ResNet50Spec().build()
    assert asked == [PUBLISHED]
    assert PUBLISHED.name.endswith("V1")


@pytest.mark.parametrize("wrong", [{"trained_stages": 5}, {"trained_stages": 0}, {"weights": "v2"}])
def test_wrong_specs_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ResNet50Spec(**wrong)
