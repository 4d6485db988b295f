"""The segmentation network:

its loss, its field of view, test passes over scales and mirror images, refusals.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aeft_lib.maps.labels import VOID
from aeft_lib.networks.resnet38d import ResNet38d
from aeft_lib.networks.segmenter import (
    REACH,
    LargeFovHead,
    Segmenter,
    segmentation_loss,
    segmentation_sum,
)
from aeft_lib.stages.predict_labels import multi_scale_probabilities

SCALES = (0.5, 1.0, 1.5)


class Strided(nn.Module):
    """A backbone of one strided convolution."""

    def __init__(self, stride: int = 8, out_channels: int = 6) -> None:
        super().__init__()
        self.stride, self.out_channels = stride, out_channels
        self.conv = nn.Conv2d(3, out_channels, kernel_size=stride, stride=stride)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images)


class PixelWise(nn.Module):
    """Logits from colours alone, so mirroring and moving commute with it."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes + 1, kernel_size=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images)


class LeftAndRight(nn.Module):
    """Two logits: twice the column number, counted from 0, and nothing."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        columns = 2 * torch.arange(images.shape[-1], dtype=images.dtype).expand(
            len(images), 1, *images.shape[-2:]
        )
        return torch.cat([columns, torch.zeros_like(columns)], dim=1)


def random_problem(
    *, num_classes: int = 3, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (2, K + 1, 4, 5) and labels with every value, void included."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, num_classes + 1, 4, 5, generator=generator, dtype=torch.float64).to(
        dtype
    )
    values = torch.tensor([*range(num_classes + 1), VOID])
    return logits, values[torch.randint(len(values), (2, 4, 5), generator=generator)]


def segmenter(seed: int = 0, **options) -> Segmenter:
    torch.manual_seed(seed)
    return Segmenter(**{"backbone": Strided(), "num_classes": 2, "hidden": 8} | options)


# --- loss ----------------------------------------------------------------------------------------


def test_loss_is_cross_entropy_without_void():
    logits, labels = random_problem()
    expected = F.cross_entropy(logits, labels, ignore_index=VOID)
    for kind in (torch.uint8, torch.int32, torch.int64):
        torch.testing.assert_close(segmentation_loss(logits, labels.to(kind)), expected)


def test_loss_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]).reshape(
        1, 2, 1, 2
    )  # probabilities 1/2, 1/2 and 3/4, 1/4
    for labels, parts in (([0, 0], [1 / 2, 3 / 4]), ([1, 1], [1 / 2, 1 / 4]), ([VOID, 1], [1 / 4])):
        expected = sum(-math.log(p) for p in parts) / len(parts)
        assert segmentation_loss(logits, torch.tensor([[labels]])).item() == pytest.approx(expected)


def test_all_pixels_count_alike_in_whatever_image_they_are():
    logits, labels = random_problem()
    labels[0] = VOID
    labels[0, 0, 0] = 1
    known = labels != VOID
    single = F.cross_entropy(logits, labels, ignore_index=VOID, reduction="none")
    torch.testing.assert_close(segmentation_loss(logits, labels), single[known].sum() / known.sum())


def test_parts_of_a_batch_add_up_to_the_whole():
    logits, labels = random_problem(dtype=torch.float64)
    labels[1] = VOID
    labels[1, 0, 0] = 0  # images weigh differently, so a mean of means is another number
    summed, known = segmentation_sum(logits, labels)
    sums, counts = zip(
        *(segmentation_sum(logits[i : i + 1], labels[i : i + 1]) for i in range(len(labels))),
        strict=True,
    )
    assert len(set(map(int, counts))) > 1
    assert known == sum(counts) == (labels != VOID).sum()
    torch.testing.assert_close(summed, sum(sums))
    torch.testing.assert_close(sum(sums) / sum(counts), segmentation_loss(logits, labels))
    means = torch.stack(
        [segmentation_loss(logits[i : i + 1], labels[i : i + 1]) for i in range(len(labels))]
    )
    assert abs(means.mean() - segmentation_loss(logits, labels)) > 0.01


def test_a_part_of_void_adds_nothing():
    logits, labels = random_problem()
    summed, known = segmentation_sum(logits, torch.full_like(labels, VOID))
    assert (summed.item(), known.item()) == (0, 0)


def test_a_batch_of_void_has_no_loss_and_no_gradient():
    logits, labels = random_problem()
    logits.requires_grad_()
    loss = segmentation_loss(logits, torch.full_like(labels, VOID))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_void_pixels_have_no_gradient():
    logits, labels = random_problem()
    logits.requires_grad_()
    segmentation_loss(logits, labels).backward()
    seen = logits.grad.abs().amax(dim=1) > 0
    assert torch.equal(seen, labels != VOID)


def test_gradient_of_the_loss():
    logits, labels = random_problem(dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: segmentation_loss(x, labels), (logits.requires_grad_(),)
    )


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (torch.zeros(2, 3, 4, 5), torch.zeros(2, 5, 4, dtype=torch.int64)),
        (torch.zeros(2, 3, 4, 5), torch.zeros(1, 4, 5, dtype=torch.int64)),
        (torch.zeros(2, 3, 4, 5), torch.zeros(2, 1, 4, 5, dtype=torch.int64)),
        (torch.zeros(3, 4, 5), torch.zeros(4, 5, dtype=torch.int64)),
        (torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5)),
    ],
)
def test_loss_refuses_other_shapes_and_types(logits, labels):
    with pytest.raises(
        ValueError, match=r"integer labels \(B, H, W\) are needed, got \("
    ) as caught:
        segmentation_loss(logits, labels)
    assert str(caught.value).endswith(
        f"{tuple(logits.shape)} and {labels.dtype} {tuple(labels.shape)}"
    )


@pytest.mark.parametrize("label", [4, 254, -1])
def test_loss_refuses_labels_beyond_the_classes(label):
    logits, labels = random_problem(num_classes=3)
    labels[1, 2, 3] = label
    with pytest.raises(ValueError, match=f"{label}"):
        segmentation_loss(logits, labels)


# --- network -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stride", "dilation"), [(8, 12), (16, 6), (32, 3), (4, 24), (128, 1)])
def test_the_field_of_view_is_the_same_on_every_stride(stride, dilation):
    head = segmenter(backbone=Strided(stride)).head
    for layer in (head.conv6, head.conv7):
        assert (layer.kernel_size, layer.dilation, layer.padding) == (
            (3, 3),
            (dilation,) * 2,
            (dilation,) * 2,
        )
    assert dilation * stride == REACH or dilation == 1


def test_the_outer_taps_lie_96_pixels_away():
    net = segmenter()
    for layer in (net.backbone.conv, net.head.conv6, net.head.conv7):
        nn.init.constant_(layer.weight, 0.1)  # no ReLU is off
    images = torch.ones(1, 3, 8, 8 * 61)
    other = images.clone()
    other[..., 8 * 30 : 8 * 31] += 1  # cell 30
    change = (net.head(net.backbone(images)) - net.head(net.backbone(other))).abs()[0, 0, 0]
    changed = change > 1e-3 * change.max()
    assert changed.nonzero().flatten().tolist() == [
        6,
        18,
        30,
        42,
        54,
    ]  # twice 12 cells to either side


def test_head_has_the_channels_and_first_weights_of_deeplab():
    torch.manual_seed(0)
    head = LargeFovHead(in_channels=40, num_classes=20, dilation=12)
    assert (head.conv6.weight.shape, head.conv7.weight.shape) == ((512, 40, 3, 3), (21, 512, 3, 3))
    for layer in (head.conv6, head.conv7):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert (layer.bias == 0).all()


def test_head_is_two_convolutions_with_a_relu_between():
    torch.manual_seed(0)
    head = LargeFovHead(in_channels=4, num_classes=2, dilation=2, hidden=5)
    features = torch.randn(1, 4, 6, 7)
    hidden = F.conv2d(features, head.conv6.weight, head.conv6.bias, padding=2, dilation=2).relu()
    torch.testing.assert_close(
        head(features), F.conv2d(hidden, head.conv7.weight, head.conv7.bias, padding=2, dilation=2)
    )


@pytest.mark.parametrize("size", [(8, 8), (40, 64), (43, 61)])
def test_logits_have_the_size_of_the_images(size):
    assert segmenter()(torch.zeros(2, 3, *size)).shape == (2, 3, *size)


def test_logits_are_the_heads_stretched():
    net, images = segmenter(), torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    coarse = net.head(net.backbone(images))
    assert coarse.shape == (1, 3, 2, 3)
    torch.testing.assert_close(
        net(images), F.interpolate(coarse, size=(16, 24), mode="bilinear", align_corners=False)
    )


def test_two_images_are_learned_by_heart():
    images = torch.zeros(2, 3, 32, 32)
    images[0, 0, :, :16] = images[1, 1, 16:] = 1
    labels = torch.zeros(2, 32, 32, dtype=torch.uint8)
    labels[0, :, :16], labels[1, 16:], labels[:, 15:17, 15:17] = 1, 2, VOID
    net = segmenter(hidden=16)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = segmentation_loss(net(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(3), abs=0.02)  # nothing is known at first
    assert losses[-1] < 0.3 * losses[0]


# --- test passes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scales", [(1.0,), SCALES, (0.01,)])
@pytest.mark.parametrize("size", [(16, 24), (15, 7), (1, 1)])
def test_probabilities_sum_to_1_at_image_size(scales, size):
    torch.manual_seed(0)
    found = multi_scale_probabilities(PixelWise(), torch.randn(2, 3, *size), scales)
    assert found.shape == (2, 3, *size)
    assert found.min() >= 0
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2, *size))


def test_one_scale_of_a_network_without_sides_is_its_softmax():
    torch.manual_seed(0)
    net, images = PixelWise(), torch.randn(2, 3, 9, 7)
    torch.testing.assert_close(
        multi_scale_probabilities(net, images, (1,)), net(images).softmax(dim=1)
    )


def test_the_mirrored_pass_is_mirrored_back_and_averaged_after_the_softmax():
    found = multi_scale_probabilities(LeftAndRight(), torch.zeros(1, 3, 1, 3), (1,))[0, 0, 0]
    sigmoids = torch.tensor([0.0, 2.0, 4.0]).sigmoid()
    torch.testing.assert_close(found, (sigmoids + sigmoids.flip(0)) / 2)


def test_scales_are_averaged():
    torch.manual_seed(0)
    net, images = segmenter(), torch.randn(1, 3, 24, 40)
    alone = [multi_scale_probabilities(net, images, (scale,)) for scale in SCALES]
    torch.testing.assert_close(
        multi_scale_probabilities(net, images, SCALES), torch.stack(alone).mean(dim=0)
    )
    assert not torch.allclose(alone[0], alone[1])


def test_a_network_sees_the_scaled_sizes_plain_and_mirrored():
    seen = []

    def network(images: torch.Tensor) -> torch.Tensor:
        seen.append(images.clone())
        return images

    images = torch.rand(1, 3, 15, 20)
    multi_scale_probabilities(network, images, (0.5, 1, 1.5))
    assert [tuple(x.shape[-2:]) for x in seen] == [(8, 10)] * 2 + [(15, 20)] * 2 + [
        (22, 30)
    ] * 2  # 7.5 and 22.5 to even
    assert all(
        torch.equal(mirrored, plain.flip(-1))
        for plain, mirrored in zip(seen[::2], seen[1::2], strict=True)
    )
    assert torch.equal(seen[2], images)


def test_nothing_of_a_pass_keeps_a_gradient():
    assert not multi_scale_probabilities(segmenter(), torch.zeros(1, 3, 16, 16), (1,)).requires_grad


@pytest.mark.parametrize("scales", [(), (0,), (1.0, -0.5)])
def test_scales_must_be_positive_and_at_least_one(scales):
    with pytest.raises(
        ValueError, match="scales must be positive, and at least one, got"
    ) as caught:
        multi_scale_probabilities(PixelWise(), torch.zeros(1, 3, 4, 4), scales)
    assert str(caught.value).endswith(str(scales))


def test_on_resnet38d_the_head_has_the_papers_dilation_and_answers_at_image_size():
    network = Segmenter(backbone=ResNet38d(), num_classes=20).eval()
    assert [layer.dilation for layer in (network.head.conv6, network.head.conv7)] == [
        (12, 12),
        (12, 12),
    ]
    assert network.head.conv6.weight.shape == (512, 4096, 3, 3)
    with torch.no_grad():
        logits = network(torch.zeros(1, 3, 40, 56))
    assert logits.shape == (1, 21, 40, 56)
    assert bool(logits.isfinite().all())
