"""The reader in windows: the original's boxes and merge, limit cases, and a classifier read so."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_reading import CLASS_IDS, K, Pixels, method, network  # noqa: F401
from torch import Tensor

from aeft_lib.engine.samples import Batch
from aeft_lib.stages.multi_crop import EPS, Box, MultiCrop, merge, windows

ON_MAPS = 1e-5  # tests/golden_rivals/README.md
SCALES = tuple(0.75 + 0.25 * i for i in range(10))


@pytest.fixture
def case(golden_rivals) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.asarray(a)) for key, a in golden_rivals("pmm").items()}


def test_golden_windows(case):
    numbers = sorted({key.split("/")[1] for key in case if key.startswith("windows/")})
    assert numbers, "the golden file holds no windows"
    for i in numbers:
        width, height = case[f"windows/{i}/size_wh"].tolist()
        # The last case is of a smaller crop and fewer scales, see the README.
        small = len(case[f"windows/{i}/count"]) == 3
        crop, stride, scales = (64, 43, (0.75, 1.0, 1.5)) if small else (448, 300, SCALES)
        ours = [
            windows((height, width), scale, crop=crop, stride=stride, short=True)
            for scale in scales
        ]
        assert [len(boxes) for boxes in ours] == case[f"windows/{i}/count"].tolist()
        assert [list(box) for boxes in ours for box in boxes] == case[f"windows/{i}/boxes"].tolist()


def test_golden_merge(case, assert_near):
    """The original's maps as they come, mirrored ones every second; below 0 it is -lowest."""
    width, height = case["merge/size_wh"].tolist()

    def parts():
        for i, (x, y, w, h) in enumerate(case["merge/location_xywh"].tolist()):
            maps = case["merge/maps"][i]
            turned = maps.flip(-1) if i % 2 else maps
            full = F.interpolate(turned[None], size=(h, w), mode="bilinear", align_corners=False)
            yield Box(x, y, x + w, y + h), full

    merged = merge((height, width), parts())[0]
    assert_near(merged, case["merge/cam"].clamp(min=0), ON_MAPS, "merged")
    assert case["merge/cam"].min() < 0


SMALL = MultiCrop(scales=(0.75, 1.0, 1.5), crop=64, stride=43, short_windows=True, stretch=True)


def test_golden_count_of_windows_over_a_pixel(case):
    size, count = case["merge/count"].shape, torch.zeros_like(case["merge/count"])
    for scale in SMALL.scales:
        for box in windows(size, scale, crop=SMALL.crop, stride=SMALL.stride, short=True):
            count[box.top : box.bottom, box.left : box.right] += 2  # plain and mirrored
    assert torch.equal(count, case["merge/count"])


def test_golden_reading_of_the_tagged_classes(case, assert_near):
    """The whole reader, with a network that says the original's maps, window after window."""
    ids, maps = case["merge/class_ids"], case["merge/maps"]
    said = torch.full((1 + len(maps), 1, 20, *maps.shape[-2:]), 0.5)
    said[1:, 0, ids] = maps
    views = iter(said)
    says = SimpleNamespace(cam=lambda *_: next(views))
    width, height = case["merge/size_wh"].tolist()
    image = np.zeros((height, width, 3), dtype=np.uint8)
    ((cam, _),) = SMALL.from_images(says, Colours(), [image], [ids])
    assert_near(cam, case["merge/cam"].clamp(min=0), ON_MAPS, "seed")


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("size", [(375, 500), (256, 256), (100, 900), (300, 40), (1, 1)])
@pytest.mark.parametrize("scale", [0.75, 1.0, 1.5, 3.0])
def test_windows_cover_the_image(size, scale, short):
    seen = torch.zeros(size)
    for box in windows(size, scale, crop=230, stride=154, short=short):
        assert 0 <= box.left < box.right <= size[1]
        assert 0 <= box.top < box.bottom <= size[0]
        seen[box.top : box.bottom, box.left : box.right] += 1
    # Edges are truncated to whole pixels twice; at scale 1 nothing is lost.
    missed = 0 if scale == 1 else 1
    assert seen[: size[0] - missed, : size[1] - missed].gt(0).all()


def test_windows_are_as_wide_as_the_crop_and_overlap():
    boxes = windows((100, 1000), 1.0, crop=448, stride=300)
    assert [box.left for box in boxes] == [0, 300, 552]
    assert {box.size for box in boxes} == {(100, 448)}
    assert all(a.right > b.left for a, b in pairwise(boxes))
    narrow = windows((100, 1000), 1.0, crop=448, stride=300, short=True)
    assert [box.size[1] for box in narrow] == [300, 300, 448]


def test_one_window_of_the_whole_image_is_min_to_max():
    maps = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    expected = (maps - low) / (high - low + EPS)
    ours = merge((5, 7), [(Box(0, 0, 7, 5), maps)])
    # What is within EPS of the lowest becomes 0.
    torch.testing.assert_close(ours, expected, rtol=0, atol=EPS / 0.5)
    assert ours.amin() == 0


def test_maps_that_are_constant_are_nowhere():
    assert not merge((4, 4), [(Box(0, 0, 4, 4), torch.full((1, 2, 4, 4), 0.7))]).any()


class Counted:
    """A method whose CAM is the picture, and that counts its views."""

    def __init__(self) -> None:
        self.sizes = []

    def cam(self, _: object, batch: Batch) -> Tensor:
        self.sizes.append(tuple(batch.images.shape[-2:]))
        return batch.images


class Colours(torch.nn.Module):
    """A network without weights of its own, for `Counted`."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.anchor = Pixels(), torch.nn.Parameter(torch.zeros(1))

    def pooling(self, cam: Tensor) -> object:
        return type("Pooled", (), {"logits": cam.mean(dim=(2, 3))})


@pytest.mark.parametrize("stretch", [False, True])
def test_windows_come_back_to_their_places(stretch):
    """The CAM of a colour is the colour: read in windows, a smooth picture is itself."""
    y, x = np.meshgrid(np.linspace(0, 1, 60), np.linspace(0, 1, 90), indexing="ij")
    picture = (127 + 128 * np.stack([x, y, x * y], axis=-1)).clip(0, 255).astype(np.uint8)
    counted = Counted()
    reader = MultiCrop(scales=(1.0,), stretch=stretch)
    ids = torch.tensor([0, 2])
    (cam, logits), *_ = reader.from_images(counted, Colours(), [picture] * 2, [ids] * 2)
    # 90 px in windows of 81 at 54, 60 in one: two windows, each mirrored too, after the whole.
    assert counted.sizes == [(60, 90), *[(81, 81)] * 4]
    expected = torch.from_numpy(picture[..., ids.numpy()]).permute(2, 0, 1).float()
    low, high = (expected.flatten(1).aminmax(dim=1)[i][:, None, None] for i in range(2))
    expected = (expected - low) / (high - low)
    # Resampled twice, each by less than a pixel of slope 1 / 59 and a grey level of 1 / 128; the
    # padding reaches a pixel into the last rows.
    error = (cam - expected).abs()[:, 1:-2, 1:-2]
    assert error.max() < 2 * (1 / 59 + 1 / 128)
    plain = (torch.from_numpy(picture).float() - 127) / 128
    torch.testing.assert_close(logits, plain.mean(dim=(0, 1)))


def test_a_batch_is_read_as_its_images_are_alone(method, network):  # noqa: F811
    pictures = np.random.default_rng(0).integers(
        0, 256, (len(CLASS_IDS), 40, 56, 3), dtype=np.uint8
    )
    with torch.inference_mode():
        read = MultiCrop().from_images(method, network, list(pictures), CLASS_IDS)
        alone = [
            MultiCrop().from_images(method, network, [picture], [ids])[0]
            for picture, ids in zip(pictures, CLASS_IDS, strict=True)
        ]
    for (cam, logits), (own, own_logits), ids in zip(read, alone, CLASS_IDS, strict=True):
        assert cam.shape == (len(ids), 40, 56)
        assert logits.shape == (K,)
        # Sums of 256 products in another order, 256 * 2^-24, stretched by less than 10 here.
        torch.testing.assert_close(cam, own, rtol=0, atol=10 * 256 * 2**-24)
        torch.testing.assert_close(logits, own_logits, rtol=1e-4, atol=1e-4)


def test_cached_features_are_refused(method, network):  # noqa: F811
    with pytest.raises(ValueError, match="reads images"):
        MultiCrop().from_features(method, network, {}, [], (1, 1))
    assert MultiCrop().fitted((0.5, 1.0)) == MultiCrop()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "scales must be positive, at least one"),
        ({"scales": (1.0, 0.0)}, "scales must be positive"),
        ({"scales": (float("nan"),)}, "scales must be positive"),
        ({"crop": 100}, "crop and stride go together"),
        ({"stride": 50}, "crop and stride go together"),
        ({"crop": 100, "stride": 101}, "leaves gaps"),
        ({"crop": -1, "stride": -1}, "crop must be a whole number"),
        ({"stretch": 1}, "stretch must be one of"),
        ({"short_windows": None}, "short_windows must be one of"),
    ],
)
def test_wrong_windows_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MultiCrop(**options)
