"""Trainings that get maps beside the tags: maps, tags and images show the same, in every view."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from aeft_lib.data.collages import SceneSpec
from aeft_lib.data.views import ViewSpec
from aeft_lib.engine.loop import stream
from aeft_lib.maps.labels import VOID, write_label_map
from aeft_lib.networks.efficientnet_lite import EfficientNetLiteSpec
from aeft_lib.networks.segmenter import LargeFov
from aeft_lib.paper.classifier import Classification
from aeft_lib.stages import train_on_maps, train_tagged_segmenter
from aeft_lib.stages.slices import SliceWriter
from aeft_lib.stages.store import Artefact
from aeft_lib.stages.train_classifier import ClassifierSpec
from aeft_lib.stages.train_segmenter import SegmenterSpec
from aeft_lib.studies.profiles import SMOKE

COUNT, SIDE = 4, 48
SCENES = SceneSpec("train", COUNT, SIDE)
K = len(SCENES.open().classes)
SPEC = SegmenterSpec(
    segmenter=LargeFov(8),
    num_classes=K,
    backbone=EfficientNetLiteSpec(),
    scenes=SCENES,
    schedule=SMOKE.segmentation.schedule,
    seed=0,
    view_scales=(1.0, 1.0),
)
EVERY = torch.arange(COUNT)


def plain(images: Tensor) -> Tensor:
    return images.float() / 255


def bright(image: Tensor) -> Tensor:
    """A map that an image (3, H, W) in 0..1 determines, mirrored or not."""
    return (image.mean(dim=0) > 0.5).to(torch.uint8)


@pytest.fixture
def files(tmp_path) -> list[list[Path]]:
    """Of every scene where it is bright, and one more than that."""
    made = [[], []]
    for index in range(COUNT):
        image = torch.from_numpy(SCENES.open().image(index).copy()).permute(2, 0, 1)
        for more, of_input in enumerate(made):
            of_input.append(tmp_path / f"{more}_{index:05d}.png")
            write_label_map(of_input[-1], (bright(plain(image)) + more).numpy())
    return made


def tags() -> Tensor:
    return torch.stack([torch.from_numpy(SCENES.open().tags(i)) for i in range(COUNT)])


def test_maps_turn_with_whole_scenes(files):
    source = train_tagged_segmenter._whole_scenes(SPEC, files, plain)
    turned = 0
    for step in range(6):
        batch = source(EVERY, stream(0, step), slice(None))
        assert batch.labels.shape == (COUNT, 2, SIDE, SIDE)
        assert torch.equal(batch.tags, tags())
        for index, (image, maps) in enumerate(zip(batch.images, batch.labels, strict=True)):
            # A view of the same size samples the middle of every pixel, up to a rounding.
            assert (bright(image) == maps[0]).float().mean() > 0.99
            assert torch.equal(maps[1], maps[0] + 1)
            own = plain(torch.from_numpy(SCENES.open().image(index).copy()).permute(2, 0, 1))
            turned += not torch.allclose(image, own, atol=1e-3)
    assert 0 < turned < 6 * COUNT


def test_a_wanted_part_is_the_part_of_the_batch(files):
    source = train_tagged_segmenter._whole_scenes(SPEC, files, plain)
    whole, part = (source(EVERY, stream(0, 1), s) for s in (slice(None), slice(1, 3)))
    for all_of, some in zip(whole, part, strict=True):
        assert (all_of is None and some is None) or torch.equal(all_of[1:3], some)


@pytest.mark.parametrize("crop", [0, 64])
def test_without_maps_the_label_says_what_is_outside(crop):
    spec = replace(SPEC, view_scales=(0.5, 0.6), crop=crop)
    make = train_tagged_segmenter._crops if crop else train_tagged_segmenter._whole_scenes
    batch = make(spec, [], lambda images: plain(images) + 1)(EVERY, stream(0, 2), slice(None))
    assert batch.labels.shape == (COUNT, 1, crop or SIDE, crop or SIDE)
    assert set(batch.labels.unique().tolist()) == {0, VOID}
    # Inside of a scene the images are at least 1; the edge's pixels are sampled from both.
    assert (batch.images.amin(dim=1)[batch.labels[:, 0] == 0] > 0.2).all()
    outside = batch.images.amax(dim=1)[batch.labels[:, 0] == VOID]
    assert (outside < 1.2).all()
    assert (outside == 0).float().mean() > 0.8


def test_maps_are_cropped_with_photos(files):
    source = train_tagged_segmenter._crops(replace(SPEC, crop=32), files, plain)
    for step in range(3):
        batch = source(EVERY, stream(0, step), slice(None))
        assert batch.labels.shape == (COUNT, 2, 32, 32)
        assert torch.equal(batch.tags, tags())
        for image, maps in zip(batch.images, batch.labels, strict=True):
            assert torch.equal(bright(image), maps[0])
            assert torch.equal(maps[1], maps[0] + 1)


@pytest.mark.parametrize("crop", [0, 32])
def test_another_number_of_maps_is_refused(files, crop):
    make = train_tagged_segmenter._crops if crop else train_tagged_segmenter._whole_scenes
    with pytest.raises(ValueError, match="4 images and 3 label maps"):
        make(replace(SPEC, crop=crop), [files[0], files[1][:3]], plain)


def test_a_warm_start_must_fit(tmp_path):
    network, file = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), tmp_path / "w.safetensors"
    save_file({"0.weight": torch.ones(3, 2)}, file)
    train_tagged_segmenter.load_shared(network, file)
    assert (network[0].weight == 1).all()
    for tensors, message in (
        ({"0.weight": torch.ones(2, 2)}, r"0\.weight is \(2, 2\) there and \(3, 2\) here"),
        ({"head": torch.ones(1)}, r"head is \(1,\) there and nothing here"),
    ):
        save_file(tensors, file)
        with pytest.raises(ValueError, match=message):
            train_tagged_segmenter.load_shared(network, file)


# --- classifiers ----------------------------------------------------------------------------------


def classifier(**changes) -> ClassifierSpec:
    given = (Classification(), K, EfficientNetLiteSpec(), SCENES, SMOKE.schedule, 0)
    return replace(ClassifierSpec(*given), **changes)


@pytest.fixture
def cached(tmp_path) -> dict[str, Artefact]:
    """Features that are the images themselves, plain and mirrored."""
    with SliceWriter(tmp_path / "features.safetensors", COUNT) as writer:
        for index in range(COUNT):
            image = plain(torch.from_numpy(SCENES.open().image(index).copy()).permute(2, 0, 1))
            both = torch.stack([image, image.flip(-1)])[None]
            writer.add({"scale_1.0": both, "tags": tags()[index : index + 1]})
    return {"features": Artefact("cache_features", "", tmp_path, {"summary": {}}, None)}


def test_maps_turn_with_cached_features(files, cached):
    source = train_on_maps._cached(classifier(), cached, files[0], plain)
    turned = 0
    for step in range(6):
        batch = source(EVERY, stream(0, step), slice(None))
        assert batch.labels.shape == (COUNT, 1, SIDE, SIDE)
        assert torch.equal(batch.tags, tags())
        for index, (image, maps) in enumerate(zip(batch.features, batch.labels, strict=True)):
            assert torch.equal(bright(image), maps[0])
            own = torch.from_numpy(SCENES.open().image(index).copy()).permute(2, 0, 1)
            turned += not torch.equal(image, plain(own))
    assert 0 < turned < 6 * COUNT


def test_maps_are_resized_and_cropped_with_views(files):
    view = ViewSpec(64, (32, 80), jitter_probability=0.0)
    source = train_on_maps._views(classifier(view=view), {}, files[0], plain)
    for step in range(3):
        batch = source(EVERY, stream(0, step), slice(None))
        assert batch.images.shape == (COUNT, 3, 64, 64)
        assert torch.equal(batch.tags, tags())
        for image, maps in zip(batch.images, batch.labels, strict=True):
            inside = maps[0] != VOID
            assert not image[:, ~inside].any()
            # Bicubic colours are above a threshold where the nearest pixel is, but for its edges.
            assert (bright(image) == maps[0])[inside].float().mean() > 0.85


def test_other_numbers_of_maps_and_classes_are_refused(files, cached):
    with pytest.raises(ValueError, match="4 images and 3 maps"):
        train_on_maps._cached(classifier(), cached, files[0][:3], plain)
    view = ViewSpec(48, None)
    with pytest.raises(ValueError, match="4 images and 3 maps"):
        train_on_maps._views(classifier(view=view), {}, files[0][:3], plain)
    wrong = f"the data has K={K} classes, the network K={K + 1}"
    with pytest.raises(ValueError, match=wrong):
        train_on_maps._cached(classifier(num_classes=K + 1), cached, files[0], plain)
    with pytest.raises(ValueError, match=wrong):
        train_on_maps._views(classifier(num_classes=K + 1, view=view), {}, files[0], plain)
