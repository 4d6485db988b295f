"""AffinityNet:

golden parity on ResNet38d, taps of the small backbone, grids of any size, its first weights,
refusals.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from golden_networks import assert_layout, assert_stats, layout, salt, vectors, with_golden_weights
from torch import nn

from aeft_lib.networks import state
from aeft_lib.networks.efficientnet_lite import EfficientNetLite0
from aeft_lib.networks.resnet38d import ResNet38d
from aeft_lib.refinement.affinity import effective_radius, pair_affinity
from aeft_lib.refinement.affinity_net import AffinityNet

IMAGES = (
    torch.rand(2, 3, 96, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
)  # a 12 x 14 grid: radius 5


class Pooled(nn.Module):
    """A backbone without weights: its taps are means of the image over cells of some pixels."""

    tap_channels = (3, 3, 3)

    def __init__(self, *cells: int) -> None:
        super().__init__()
        self.cells = cells

    def taps(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(F.avg_pool2d(images, cell) for cell in self.cells)


def small(trained_stages: int = 0, seed: int = 0) -> AffinityNet:
    def make() -> AffinityNet:
        return AffinityNet(
            backbone=EfficientNetLite0(trained_stages=trained_stages, pretrained=False)
        )

    return state.build(make, seed).eval()


@pytest.fixture(scope="module")
def network() -> AffinityNet:
    """The laptop's network with random weights."""
    return small()


@pytest.fixture(scope="module")
def reference() -> AffinityNet:
    """The paper's network with the golden weights: 3 s to build."""
    network = AffinityNet(backbone=ResNet38d(dropout=(0.3, 0.5)))
    return with_golden_weights(network, salt("affinity_net", "aff"))


# --- golden parity -------------------------------------------------------------------------------


def golden_prefixes(vectors) -> list[str]:
    prefixes = sorted(key.removesuffix("x") for key in vectors if key == "x" or key.endswith("/x"))
    assert prefixes, "the golden file holds no case"
    return prefixes


def test_golden_names_shapes_trainable_tensors_and_numbers_of_modules(reference):
    assert_layout(reference, layout("aff"))


def test_golden_taps_and_affinities(reference, assert_near):
    golden = vectors("affinity_net")
    for prefix in golden_prefixes(golden):
        images = torch.from_numpy(golden[f"{prefix}x"])
        with torch.no_grad():
            taps, (found,) = reference.backbone.taps(images), reference.affinity(images)
        for tap, name in zip(taps, ("conv4", "conv5", "conv6"), strict=True):
            assert_stats(tap, golden, f"{prefix}{name}", 1e-4)
        assert_near(
            found.value.reshape(golden[f"{prefix}aff"].shape),
            golden[f"{prefix}aff"],
            1e-4,
            f"{prefix}aff",
        )
        sums = torch.ones(math.prod(found.size)).index_add(0, found.index_from, found.value)
        sums = sums.index_add(0, found.index_to, found.value)
        assert_near(sums, golden[f"{prefix}dense_colsum"], 1e-4, f"{prefix}dense_colsum")


def layers(network: AffinityNet) -> tuple[nn.Conv2d, ...]:
    return network.f8_3, network.f8_4, network.f8_5, network.f9


# --- taps of the small backbone ------------------------------------------------------------------


@pytest.mark.parametrize("trained_stages", [0, 2, 7])
def test_taps_of_the_small_backbone_do_not_depend_on_where_the_trunk_ends(network, trained_stages):
    backbone = EfficientNetLite0(trained_stages=trained_stages, pretrained=False).eval()
    backbone.load_state_dict(
        dict(zip(backbone.state_dict(), network.backbone.state_dict().values(), strict=True))
    )
    with torch.no_grad():
        taps, whole = backbone.taps(IMAGES), network.backbone.taps(IMAGES)
        assert torch.equal(taps[-1], backbone(IMAGES))
    assert [tuple(tap.shape) for tap in taps] == [(2, 40, 12, 14), (2, 112, 6, 7), (2, 1280, 6, 7)]
    assert tuple(tap.shape[1] for tap in taps) == backbone.tap_channels
    for ours, theirs in zip(taps, whole, strict=True):
        # Another layout in memory: 50 layers x 6e-8 x a margin of 30, of the largest number.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


def test_trained_parts_and_new_layers_have_a_gradient_and_frozen_ones_none():
    net = small(trained_stages=2).train()
    net(IMAGES).sum().backward()
    got = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert got == set(state.trained_state(net))
    assert {name.split(".")[0] for name in got} == {"backbone", "f8_3", "f8_4", "f8_5", "f9"}
    assert not any(name.startswith("backbone._trunk") for name in got)


# --- the network ---------------------------------------------------------------------------------


def test_features_are_three_projections_on_the_finest_grid_mixed_by_a_fourth():
    torch.manual_seed(0)
    net = AffinityNet(backbone=Pooled(1, 2, 4)).double()
    images = torch.randn(1, 3, 8, 12, dtype=torch.float64)
    taps = net.backbone.taps(images)
    projected = [
        F.elu(F.conv2d(tap, layer.weight)) for tap, layer in zip(taps, layers(net), strict=False)
    ]
    stretched = [
        F.interpolate(maps, size=(8, 12), mode="bilinear", align_corners=False)
        for maps in projected[1:]
    ]
    mixed = torch.einsum(
        "oc,bchw->bohw", net.f9.weight[..., 0, 0], torch.cat([projected[0], *stretched], dim=1)
    )
    torch.testing.assert_close(net(images), F.elu(mixed))
    assert all(layer.bias is None for layer in layers(net))


def test_gradient_of_the_features():
    torch.manual_seed(0)
    net = AffinityNet(backbone=Pooled(1, 2, 4)).double()
    images = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: net(x)[:, ::40], (images,))


def test_an_even_image_is_one_object():
    torch.manual_seed(0)
    (found,) = AffinityNet(backbone=Pooled(1, 2, 4)).affinity(torch.full((1, 3, 12, 16), 0.7))
    # Features below 10, interpolated and mixed in float32: 10 x 6e-8 x a margin of 20.
    torch.testing.assert_close(found.value, torch.ones_like(found.value), rtol=0, atol=1e-5)
    assert len(found.value) == 34 * 8 * 8


def test_pairs_across_an_edge_are_weaker_than_pairs_within():
    torch.manual_seed(0)
    images = torch.zeros(1, 3, 12, 24)
    images[..., 12:] = 1
    (found,) = AffinityNet(backbone=Pooled(1, 1, 1)).affinity(images)
    left = [(index % 24) < 12 for index in (found.index_from, found.index_to)]
    across = left[0] != left[1]
    assert 0 < across.sum() < len(across)
    assert found.value[across].max() < 0.9
    assert (found.value[~across] > 1 - 1e-5).all()  # a position may be summed in another order


def test_first_weights_are_kaiming_and_for_the_mix_xavier_four_times(network):
    for layer, inner in zip(layers(network)[:3], (40, 112, 1280), strict=True):
        assert layer.weight.std().item() == pytest.approx((2 / inner) ** 0.5, rel=0.05)
    assert network.f9.weight.abs().max().item() == pytest.approx(4 * (6 / 896) ** 0.5, rel=0.01)


def test_the_same_seed_gives_the_same_weights(network):
    again, other = small(), small(seed=1)
    for (name, ours), theirs in zip(
        network.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert not torch.equal(other.f9.weight, network.f9.weight)


# --- affinities ----------------------------------------------------------------------------------


def test_one_sparse_affinity_per_image_and_images_do_not_mix(network):
    found = network.affinity(IMAGES)
    assert len(found) == 2
    for one, image in zip(found, IMAGES, strict=True):
        assert one.size == (12, 14)
        assert one.value.shape == one.index_from.shape == one.index_to.shape == (34 * 8 * 6,)
        assert one.value.min() >= 0
        assert one.value.max() <= 1
        # Features up to 50 are off by 50 layers x 6e-8 of that, and so is the exponent: 2e-4.
        (alone,) = network.affinity(image[None])
        torch.testing.assert_close(alone.value, one.value, rtol=0, atol=2e-4)


def test_affinities_are_those_of_the_features(network):
    with torch.no_grad():
        expected = pair_affinity(network(IMAGES), 5)
    for one, values in zip(network.affinity(IMAGES), expected, strict=True):
        torch.testing.assert_close(one.value, values.flatten())


def test_radius_can_be_chosen(network):
    (found,) = network.affinity(IMAGES[:1], radius=2)
    assert len(found.value) == 4 * 11 * 12


@pytest.mark.parametrize(
    ("size", "grid", "pairs"),
    [((8, 8), (1, 1), 0), ((24, 40), (3, 5), 0), ((40, 56), (5, 7), 4 * 4 * 5)],
)
def test_small_images_have_a_grid_with_few_or_no_pairs(network, reference, size, grid, pairs):
    for net in (network, reference):
        with torch.no_grad():
            assert net(torch.zeros(1, 3, *size)).shape == (1, 448, *grid)
        (found,) = net.affinity(torch.zeros(1, 3, *size))
        assert (found.size, len(found.value)) == (grid, pairs)
    assert effective_radius(grid) == (min(grid) - 1) // 2


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16)])
@pytest.mark.parametrize("name", ["network", "reference"])
def test_what_is_no_batch_of_images_is_refused(request, name, shape):
    with pytest.raises(
        ValueError, match=rf"images must be \(B, 3, H, W\), got shape \({shape[0]}, {shape[1]}, 16"
    ):
        request.getfixturevalue(name).affinity(torch.zeros(shape))


def test_a_backbone_needs_three_taps():
    two = Pooled(1, 2, 4)
    two.tap_channels = (3, 3)
    with pytest.raises(ValueError, match="zip"):
        AffinityNet(backbone=two)


def test_a_negative_radius_is_refused(network):
    with pytest.raises(ValueError, match="radius must not be negative, got -1"):
        network.affinity(IMAGES[:1], radius=-1)
