"""Backbones by name: shapes, strides, taps, what is frozen, and every wrong name or number."""

from dataclasses import replace

import pytest
import torch

from aeft_lib.cli import backbone_spec
from aeft_lib.networks import state
from aeft_lib.networks.efficientnet_lite import EfficientNetLiteSpec
from aeft_lib.networks.generic import TimmSpec, TorchvisionSpec
from aeft_lib.networks.resnet38d import ResNet38dSpec
from aeft_lib.networks.segmenter import Segmenter
from aeft_lib.refinement.affinity_net import AffinityNet

NAMES = ["efficientnet_lite0", "resnet50", "timm:resnet18", "timm:mobilenetv3_small_100"]
IMAGES = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def build(name: str, stride: int = 16):
    spec = backbone_spec(name)
    field = "trained_stages" if name == "efficientnet_lite0" else "output_stride"
    return replace(spec, **{field: 1 if field == "trained_stages" else stride}).build().train()


@pytest.mark.parametrize("name", NAMES)
def test_every_backbone_serves_all_three_networks(name):
    backbone = build(name)
    features = backbone(IMAGES)
    assert features.shape == (
        1,
        backbone.out_channels,
        64 // backbone.stride,
        96 // backbone.stride,
    )
    assert torch.equal(features, backbone.tail(backbone.trunk(IMAGES)))
    assert [tap.shape[1] for tap in backbone.taps(IMAGES)] == list(backbone.tap_channels)
    assert AffinityNet(backbone=backbone)(IMAGES).shape[1] == 448
    assert Segmenter(backbone=backbone, num_classes=2, hidden=4)(IMAGES).shape == (1, 3, 64, 96)


@pytest.mark.parametrize("name", ["resnet50", "timm:resnet18"])
@pytest.mark.parametrize("stride", [8, 16])
def test_strides(name, stride):
    backbone = build(name, stride)
    assert backbone.stride == stride
    assert backbone(IMAGES).shape[-2:] == (64 // stride, 96 // stride)


@pytest.mark.parametrize("name", NAMES)
def test_batch_norms_never_move(name):
    backbone = build(name)
    before = {key: t.clone() for key, t in backbone.state_dict().items() if "running" in key}
    backbone(IMAGES).sum().backward()
    assert before
    assert all(
        torch.equal(t, before[key]) for key, t in backbone.state_dict().items() if key in before
    )
    norms = {
        id(p)
        for m in backbone.modules()
        if isinstance(m, torch.nn.BatchNorm2d)
        for p in m.parameters()
    }
    assert not any(p.requires_grad for p in backbone.parameters() if id(p) in norms)


def test_stem_and_first_stage_of_a_resnet_are_frozen():
    backbone = build("resnet50")
    assert not any(p.requires_grad for p in backbone._trunk.parameters())
    assert len(state.trained_state(backbone)) > 30
    assert not backbone.trunk(IMAGES).requires_grad


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet50", "timm:resnet18"])
def test_checkpointing_gives_the_same_gradients(name):
    found = []
    for checkpointing in (False, True):
        backbone = build(name)
        backbone.load_state_dict(
            {key: torch.full_like(t, 0.01) for key, t in backbone.state_dict().items()}
        )
        backbone.checkpointing = checkpointing
        backbone(IMAGES).square().mean().backward()
        found.append([p.grad for p in backbone.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1])
    for plain, again in zip(*found, strict=True):  # 50 layers x 6e-8, of the largest number
        torch.testing.assert_close(again, plain, rtol=0, atol=1e-5 * plain.abs().max().item())


@pytest.mark.parametrize(
    ("spec", "wrong", "message"),
    [
        (
            TorchvisionSpec,
            {"name": "vgg16"},
            "name must be one of resnet50, resnet101, got 'vgg16'",
        ),
        (ResNet38dSpec, {"weights": "mine"}, "weights must be one of imagenet, none, got 'mine'"),
        (TorchvisionSpec, {"output_stride": 32}, "output_stride must be one of 8, 16, got 32"),
        (EfficientNetLiteSpec, {"trained_stages": 8}, "trained_stages must be .* 0 to 7, got 8"),
    ],
)
def test_wrong_specs_are_refused(spec, wrong, message):
    with pytest.raises(ValueError, match=message):
        spec(**wrong)


def test_a_name_that_no_backbone_has_names_those_there_are():
    with pytest.raises(
        ValueError, match=r"unknown backbone 'vgg16'; there are resnet38d, .*timm:NAME"
    ):
        backbone_spec("vgg16")


@pytest.mark.parametrize("name", [*NAMES, "resnet38d"])
def test_a_spec_knows_the_stride_of_what_it_builds(name):
    spec = backbone_spec(name)
    spec.check()
    assert spec.stride == (8 if name == "resnet38d" else 16)
    if name != "resnet38d":
        assert spec.build().stride == spec.stride


def test_a_network_of_timm_that_cannot_be_checkpointed_says_so():
    backbone = build("timm:resnet18")
    assert not backbone.checkpointing
    backbone.checkpointing = True
    assert backbone.checkpointing
    backbone.net = torch.nn.Identity()
    with pytest.raises(ValueError, match="cannot be checkpointed"):
        backbone.checkpointing = True


def test_names_that_timm_does_not_know_and_networks_without_such_features():
    with pytest.raises(ValueError, match="unknown backbone 'timm:resnet_of_mine'"):
        build("timm:resnet_of_mine")
    with pytest.raises(ValueError, match="timm:vgg11 gives"):
        build("timm:vgg11", 16)
    with pytest.raises(ValueError, match="output_stride must be one of"):
        TimmSpec("resnet18", output_stride=4)


def test_without_its_file_resnet38d_says_where_weights_come_from(monkeypatch, tmp_path):
    monkeypatch.setenv("AEFT_RESNET38D_PARAMS", str(tmp_path / "none.params"))
    with pytest.raises(ValueError, match="point AEFT_RESNET38D_PARAMS at it"):
        ResNet38dSpec().build()
    with pytest.raises(ValueError, match="point AEFT_RESNET38D_PARAMS at it"):
        ResNet38dSpec().check()
