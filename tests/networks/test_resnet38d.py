"""ResNet38d:

golden parity with and without head and GPP, blocks by hand, what is frozen, sizes, refusals.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_networks import (
    assert_layout,
    assert_stats,
    layout,
    salt,
    theirs,
    vectors,
    with_golden_weights,
)
from torch import nn

from aeft_lib.networks.resnet38d import TRUNK, BasicBlock, Bottleneck, ResNet38d, normalise
from aeft_lib.paper.classifier import CamClassifier
from aeft_lib.paper.gpp import PyramidPooling

# Activation of the golden file -> the module of ours that reads it.
READERS = {
    "conv1a": "backbone.b2.bn_branch2a",
    "b3": "backbone.b3_1.bn_branch2a",
    "b5_2": "backbone.b6.bn_branch2a",
    "b6": "backbone.b7.bn_branch2a",
    "bn7_relu": "head.fc8",
}
IMAGES = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def reference() -> CamClassifier:
    """The whole network with the golden weights, in eval mode:

    3 s to build, so whoever changes it puts it back.
    """
    pooling = PyramidPooling(num_classes=20, levels=(2, 4, 8, 16), fusion="gated")
    network = CamClassifier(backbone=ResNet38d(), pooling=pooling, num_classes=20)
    return with_golden_weights(network, salt("backbone_gpp", "gpp"))


@pytest.fixture(scope="module")
def backbone(reference) -> ResNet38d:
    return reference.backbone


@pytest.fixture
def training(reference):
    """The network in train mode, for one test."""
    yield reference.train()
    reference.eval().zero_grad(set_to_none=True)


# --- golden parity -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden_case():
    return vectors("backbone_gpp")


@pytest.fixture(scope="module")
def measured(reference, golden_case) -> dict[str, dict[str, torch.Tensor]]:
    """Per golden case:

    activations, outputs, loss and gradients, from one forward and one backward pass.
    """
    cases = sorted(key.removesuffix("/x") for key in golden_case if key.endswith("/x"))
    assert cases, "the golden file holds no case"
    return {case: measure(reference, golden_case, case) for case in cases}


def measure(
    network: CamClassifier, arrays: dict[str, np.ndarray], case: str
) -> dict[str, torch.Tensor]:
    found = {}
    modules = {name: network.get_submodule(reader) for name, reader in READERS.items()}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, read, name=name: found.update({name: read[0].detach()})
        )
        for name, module in modules.items()
    ]
    output = network(torch.from_numpy(arrays[f"{case}/x"]))
    for hook in hooks:
        hook.remove()
    loss = F.binary_cross_entropy_with_logits(
        output.logits, torch.from_numpy(arrays[f"{case}/label"])
    )
    loss.backward()
    found |= {"cam": output.cam, "logits": output.logits, "gpp": output.attention, "bce": loss}
    for name, parameter in network.named_parameters():
        if f"{case}/grad_norm/{theirs(name)}" in arrays:
            found[f"grad/{theirs(name)}"] = parameter.grad
    weights = {theirs(name): p for name, p in network.named_parameters() if p.ndim == 4}
    found["grad_none"] = sorted(name for name, weight in weights.items() if weight.grad is None)
    network.zero_grad(set_to_none=True)
    return found


def test_golden_names_shapes_trainable_tensors_and_numbers_of_modules(reference):
    assert_layout(
        reference, layout("gpp"), without=r"bn8\b|dropout$"
    )  # of the reference's head, in no path of its own


def test_golden_activations(measured, golden_case):
    for case, found in measured.items():
        for name in READERS:
            assert_stats(found[name], golden_case, f"{case}/{name}", 1e-4)


def test_golden_cam_logits_pyramid_and_loss(measured, golden_case, assert_near):
    for case, found in measured.items():
        for name in ("cam", "logits", "gpp"):
            assert_near(found[name], golden_case[f"{case}/{name}"], 1e-4, f"{case}/{name}")
        assert_near(found["bce"], golden_case[f"{case}/bce"], 1e-5, f"{case}/bce")


def test_golden_gradients(measured, golden_case):
    for case, found in measured.items():
        names = [
            key.removeprefix(f"{case}/grad_norm/")
            for key in golden_case
            if key.startswith(f"{case}/grad_norm/")
        ]
        assert names, "the case holds no gradient"
        for name in names:
            gradient = found[f"grad/{name}"]
            norm = gradient.double().norm().item()
            assert norm == pytest.approx(
                float(golden_case[f"{case}/grad_norm/{name}"]), rel=1e-3
            ), f"{case}/{name}"
            assert_stats(gradient, golden_case, f"{case}/grad/{name}", 2e-2)


def test_golden_frozen_convolutions_have_no_gradient(measured, golden_case):
    for case, found in measured.items():
        assert found["grad_none"] == sorted(golden_case[f"{case}/grad_none"].tolist())


# --- blocks by hand ------------------------------------------------------------------------------


def with_centre_taps(block: nn.Module, **weights: float) -> nn.Module:
    """A block of one channel whose convolutions only multiply, by the numbers given; batch norms as they start."""
    for name, value in weights.items():
        weight = getattr(block, name).weight
        with torch.no_grad():
            weight.zero_()
            weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2] = value
    return block.eval()


def through(block: nn.Module, *values: float) -> list[float]:
    """What a block makes of one pixel each; batch norms divide by sqrt(1 + 1e-5)."""
    with torch.no_grad():
        return (
            block(torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1, 1)).flatten().tolist()
        )


def test_basic_block_adds_what_it_was_given_where_shapes_stay():
    block = with_centre_taps(BasicBlock(1, 1, 1, 1, 1, 1), conv_branch2a=2, conv_branch2b1=3)
    assert not hasattr(block, "conv_branch1")
    assert through(block, 4, -4) == pytest.approx(
        [4 * 2 * 3 + 4, -4], rel=1e-4
    )  # ReLU comes before the branch alone


def test_basic_block_projects_the_activated_input_where_the_shape_changes():
    block = with_centre_taps(
        BasicBlock(1, 1, 1, 2, 1, 1), conv_branch2a=-2, conv_branch2b1=3, conv_branch1=5
    )
    assert through(block, 4, -4) == pytest.approx(
        [5 * 4, 0], rel=1e-4
    )  # the branch is negative between its convolutions
    assert block(torch.zeros(1, 1, 5, 6)).shape == (1, 1, 3, 3)


def test_bottleneck_sees_the_activated_input_alone():
    block = Bottleneck(1, 4, dilation=4, dropout=0.2)
    with_centre_taps(block, conv_branch2a=2, conv_branch2b1=3, conv_branch2b2=0.5, conv_branch1=-1)
    assert through(block, 4) == pytest.approx(
        [2 * (0.5 * 2 * 3 * 4) - 4] * 4, rel=1e-4
    )  # two channels in the middle
    assert through(block, -4) == [0] * 4
    x = torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        block.from_activated(torch.full_like(x, float("nan")), x.relu()),
        block.from_activated(x, x.relu()),
    )


@pytest.mark.parametrize(
    "make",
    [lambda: BasicBlock(2, 2, 3, 2, 1, 2), lambda: Bottleneck(2, 4, dilation=2, dropout=0.0)],
)
def test_gradients_of_blocks(make):
    torch.manual_seed(0)
    block = make().double().eval()
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))


# --- what is frozen ------------------------------------------------------------------------------


def test_train_mode_moves_no_statistics_and_gives_frozen_parts_no_gradient(training):
    buffers = {name: buffer.clone() for name, buffer in training.named_buffers()}
    images = IMAGES.clone().requires_grad_()
    training(images).logits.sum().backward()
    assert len(buffers) == 3 * 37
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in training.named_buffers())
    norms = [module for module in training.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)
    frozen = [training.backbone.get_submodule(name) for name in ("conv1a", *TRUNK)] + norms
    assert all(
        p.grad is None and not p.requires_grad for module in frozen for p in module.parameters()
    )
    assert all(p.grad is not None for p in training.parameters() if p.requires_grad)
    assert images.grad.abs().max() > 0  # a mask on the images can be learned through


def test_dropout_is_random_in_train_mode_behind_the_trunk(training):
    torch.manual_seed(0)
    with torch.inference_mode():
        features = training.backbone.trunk(IMAGES)
        assert torch.equal(features, training.backbone.trunk(IMAGES))
        assert not torch.equal(training.backbone.tail(features), training.backbone.tail(features))


def test_nothing_is_random_in_eval_mode(backbone):
    with torch.inference_mode():
        assert torch.equal(backbone(IMAGES), backbone(IMAGES))


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "grid"), [((1, 1), (1, 1)), ((8, 16), (1, 2)), ((9, 17), (2, 3))])
def test_output_stride_is_8_and_a_started_cell_counts(backbone, size, grid):
    with torch.inference_mode():
        features = backbone(torch.zeros(1, 3, *size))
    assert features.shape == (1, backbone.out_channels, *grid)
    assert backbone.stride == 8


def test_taps_lie_on_one_grid_and_the_last_is_the_output(backbone):
    with torch.inference_mode():
        taps, features = backbone.taps(IMAGES), backbone(IMAGES)
    assert [tuple(tap.shape) for tap in taps] == [
        (2, channels, 2, 3) for channels in backbone.tap_channels
    ]
    assert torch.equal(taps[-1], features)
    assert all(tap.min() >= 0 for tap in taps)


def test_trunk_ends_before_stage_3_and_tail_goes_on_from_it(backbone):
    with torch.inference_mode():
        trunk = backbone.trunk(IMAGES)
        assert trunk.shape == (2, 128, 8, 12)
        assert torch.equal(backbone.tail(trunk), backbone(IMAGES))


def test_images_do_not_mix(backbone):
    with torch.inference_mode():
        together, alone = backbone(IMAGES), backbone(IMAGES[1:])
    # 38 layers x 6e-8 x a margin of 40, of the largest number: another batch, other sums.
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-4 * alone.max().item())


# --- normalisation and refusals ------------------------------------------------------------------


def test_normalise_by_hand():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2, 1).expand(1, 3, 2, 1)
    expected = [
        [-2.1179, 2.2489],
        [-2.0357, 2.4286],
        [-1.8044, 2.64],
    ]  # -mean / std, (1 - mean) / std
    torch.testing.assert_close(
        normalise(images)[0, :, :, 0], torch.tensor(expected), rtol=0, atol=1e-4
    )
    assert normalise(images).dtype == torch.float32


def test_images_that_are_no_bytes_are_not_normalised():
    with pytest.raises(ValueError, match=r"images must be uint8 0\.\.255, got torch.int64"):
        normalise(torch.zeros(1, 3, 4, 4, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 4, 16, 16)])
def test_what_is_no_batch_of_images_is_refused(backbone, shape):
    for read in (backbone, backbone.trunk, backbone.taps):
        with pytest.raises(
            ValueError,
            match=rf"images must be \(B, 3, H, W\), got shape \({shape[0]}, {shape[1]}, 16",
        ):
            read(torch.zeros(shape))


def test_dropout_has_one_number_a_bottleneck():
    with torch.device("meta"), pytest.raises(ValueError, match="zip"):
        ResNet38d(dropout=(0.2,))
