"""Readers in batches: the CAM and the tag logits of every scene are those of the scene alone.

Bounds are those of rounding in a CAM head of two matrix products (`head_bound`), worst case and
element by element: CAMs are compared before thresholds and argmax.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.engine.samples import Batch
from aeft_lib.maps.seeds import EPS, combine_scales
from aeft_lib.paper.classifier import CamClassifier, Classification
from aeft_lib.paper.gpp import Gap, GlobalAveragePooling, Pyramid
from aeft_lib.stages.reading import MultiScale

SCALES, SIZE, K = (0.5, 1.0), (40, 56), 5
SINGLE, BF16 = 2**-24, 2**-8  # unit roundoffs
# 0, 1, 2 and 3 tags; the images without one and with most stand between others.
CLASS_IDS = [torch.tensor(ids, dtype=torch.int64) for ids in ([1], [], [0, 2, 4], [3], [0, 1])]


class Pixels(nn.Module):
    """A backbone whose features are the image, in -1..1."""

    out_channels = 3

    def trunk(self, images: Tensor) -> Tensor:
        return images

    def tail(self, features: Tensor) -> Tensor:
        return features

    def normalise(self, images: Tensor) -> Tensor:
        return (images.float() - 127) / 128


@pytest.fixture
def method() -> Classification:
    return Classification(Gap())


@pytest.fixture
def network(method) -> CamClassifier:
    """Without negative weights nothing cancels, so that the worst case is near the usual one."""
    torch.manual_seed(0)
    built = method.build(Pixels(), K).eval()
    with torch.no_grad():
        for layer in (built.head.fc8, built.head.fc9):
            layer.weight.abs_()
    return built


@pytest.fixture
def features() -> dict[float, Tensor]:
    """Of five scenes, plain and mirrored, as they are cached; not negative, as after a ReLU."""
    generator, sides = torch.Generator().manual_seed(0), {0.5: (5, 7), 1.0: (10, 14)}
    shapes = {scale: (len(CLASS_IDS), 2, 3, *side) for scale, side in sides.items()}
    return {s: torch.rand(shape, generator=generator).half() for s, shape in shapes.items()}


def head_bound(network: CamClassifier, x: Tensor, *, half: bool) -> Tensor:
    """How far rounding may move a CAM (B, K, h, w) of features x, at most.

    A sum of n products is off by gamma_n = n u / (1 - n u) of the sum of their absolute values
    (Higham).  In bf16 both factors and the result are rounded before and after: three times in the
    first product; in the second twice, since its input is a rounded number already.
    """
    x, w8, w9 = (t.detach().double() for t in (x, network.head.fc8.weight, network.head.fc9.weight))

    def rounded(times: int, n: int) -> float:
        own = (1 + BF16) ** times if half else 1.0
        return own * (1 + n * SINGLE / (1 - n * SINGLE)) - 1

    hidden = F.conv2d(x, w8).relu()
    first = rounded(3, w8.shape[1]) * F.conv2d(x.abs(), w8.abs())
    second = rounded(2, w9.shape[1])
    return (1 + second) * F.conv2d(first, w9.abs()) + second * F.conv2d(hidden, w9.abs())


def cam_bound(bounds: list[Tensor], total: Tensor) -> float:
    """How far a merged CAM may move where its passes (B, K, h, w) move by `bounds` at most.

    Bilinear weights sum to 1 and ReLU does not stretch, so the sum moves by the sum; divided by a
    maximum that moves too, by twice that.  Plus 16 roundings of the merge itself.
    total: (K, H, W), the sum of the passes.
    """
    moved = sum(bound.amax(dim=(0, 2, 3)) for bound in bounds)
    highest = total.amax(dim=(1, 2)).double()
    return float((2 * moved / (highest - moved)).clamp(min=0).max()) + 16 * SINGLE


def alone(
    method: Classification, network: CamClassifier, features: dict[float, Tensor], scene: int
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """CAM, its sum, tag logits, and passes of one scene, view by view, as the reference reads."""
    scores, logits = [], None
    with torch.no_grad():
        for scale in SCALES:
            views = features[scale][scene].float()
            cams = [method.cam(network, Batch(features=view[None])) for view in views]
            logits = network.pooling(cams[0]).logits[0] if scale == 1 else logits
            scores += [cam[:, CLASS_IDS[scene]] for cam in cams]
    full = [F.interpolate(s, size=SIZE, mode="bilinear").relu() for s in scores if s.numel()]
    full = [maps.flip(-1) if i % 2 else maps for i, maps in enumerate(full)]
    total = sum(full)[0] if full else torch.zeros(0, *SIZE)
    return total / (total.amax(dim=(1, 2), keepdim=True) + EPS), total, logits, scores


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_batch_reads_every_scene_as_it_is_read_alone(method, network, features, precision):
    """In bf16 as near as its eight bits allow, and not as near as fp32: bf16 was used."""
    with torch.inference_mode():
        read = MultiScale(SCALES).from_features(
            method, network, features, CLASS_IDS, SIZE, precision
        )
    assert len(read) == len(CLASS_IDS)
    apart = []
    for scene, (ids, (cam, logits)) in enumerate(zip(CLASS_IDS, read, strict=True)):
        expected, total, own_logits, _ = alone(method, network, features, scene)
        assert cam.shape == (len(ids), *SIZE)
        assert cam.dtype == logits.dtype == torch.float32
        views = [features[scale][scene].float() for scale in SCALES]
        halves = {half: [head_bound(network, view, half=half) for view in views] for half in (0, 1)}
        # Both sides are rounded in fp32, one of them perhaps in bf16.
        moved = [a + b for a, b in zip(halves[0], halves[precision == "bf16"], strict=True)]
        assert (logits - own_logits).abs().max() <= 2 * moved[-1].max()
        if len(ids):
            tagged = [view[i : i + 1, ids] for view in moved for i in (0, 1)]
            bound = cam_bound(tagged, total)
            assert bound < (0.2 if precision == "bf16" else 1e-4)  # it says something
            assert (cam - expected).abs().max() <= bound
            apart.append(float((cam - expected).abs().max()))
    assert (max(apart) > 1e-4) == (precision == "bf16")


def test_photos_of_one_size_are_read_as_each_alone(method, network, rng):
    images = [rng.integers(128, 256, (*SIZE, 3), dtype=np.uint8) for _ in CLASS_IDS]
    reader = MultiScale(SCALES)
    with torch.inference_mode():
        together = reader.from_images(method, network, images, CLASS_IDS)
        singles = [
            reader.from_images(method, network, [image], [ids])[0]
            for image, ids in zip(images, CLASS_IDS, strict=True)
        ]
    # Pixels are in 0..1, so no bound of a view is larger than that of ones.
    ones = 2 * head_bound(network, torch.ones(1, 3, 1, 1), half=False)
    for image, ids, ours, single in zip(images, CLASS_IDS, together, singles, strict=True):
        assert ours.cam.shape == single.cam.shape == (len(ids), *SIZE)
        assert (ours.logits - single.logits).abs().max() <= 2 * ones.max()
        if len(ids):
            plain = network.backbone.normalise(torch.from_numpy(image).permute(2, 0, 1)[None])
            with torch.no_grad():  # no other pass is negative: the sum is at least as high
                least = network.cam(plain)[0, ids]
            bound = cam_bound([ones[:, ids]] * 2 * len(SCALES), least)
            assert bound < 1e-3
            assert (ours.cam - single.cam).abs().max() <= bound


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0), (1.0, 0.5)])
def test_pooling_sees_the_plain_pass_at_scale_1_alone(method, network, features, scales):
    seen = []
    network.pooling.register_forward_hook(lambda module, given, made: seen.append(given[0]))
    with torch.inference_mode():
        MultiScale(scales).from_features(method, network, features, CLASS_IDS, SIZE)
    (pooled,) = seen
    assert pooled.shape == (len(CLASS_IDS), K, 10, 14)
    with torch.no_grad():
        plain = network.cam(features[1.0][:, 0].float())
    assert (pooled - plain).abs().max() <= 2 * head_bound(
        network, features[1.0][:, 0].float(), half=False
    ).max()


def test_bf16_leaves_pooling_in_fp32(features):
    method = Classification(Pyramid(levels=(1, 2, 4)))
    torch.manual_seed(0)
    network, given = method.build(Pixels(), K).eval(), []
    network.pooling.register_forward_hook(
        lambda module, taken, made: given.append((taken[0].dtype, torch.is_autocast_enabled("cpu")))
    )
    with torch.inference_mode():
        MultiScale((1.0,)).from_features(method, network, features, CLASS_IDS, SIZE, "bf16")
    assert given == [(torch.float32, False)]


def test_scales_must_have_1_where_tags_are_scored():
    with pytest.raises(ValueError, match=r"scales must contain 1, .* got \(0.5, 2.0\)"):
        MultiScale((0.5, 2.0))
    with pytest.raises(ValueError, match="scales must contain 1"):
        MultiScale().fitted((0.5,))


def test_a_scene_without_tags_alone_in_its_batch_has_no_map(method, network, features):
    first = {scale: maps[:1] for scale, maps in features.items()}
    none = torch.zeros(0, dtype=torch.int64)
    (read,) = MultiScale(SCALES).from_features(method, network, first, [none], SIZE)
    assert read.cam.shape == (0, *SIZE)
    assert read.logits.shape == (K,)
    assert isinstance(network.pooling, GlobalAveragePooling)


def test_merging_does_not_change_the_passes_it_is_given():
    scores = [torch.randn(1, 2, 4, 6, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    before = [score.clone() for score in scores]
    for size in ((4, 6), (9, 12)):  # at the maps' own size too
        combine_scales(scores, size=size)
        assert all(map(torch.equal, scores, before))
