"""Sources: what trainings read, by index and random stream; one pair serves three trainings."""

from dataclasses import replace

import pytest
import torch
from photo_profile import CLASSES, SPLITS, photo_profile
from photo_sets import make_voc

from aeft_lib.data.augment import affine_views, draw_views, random_views
from aeft_lib.data.collages import SceneSpec
from aeft_lib.data.scene import opened
from aeft_lib.engine import loop
from aeft_lib.engine.samples import Batch
from aeft_lib.maps.labels import VOID
from aeft_lib.maps.seeds import Seed, write_seeds
from aeft_lib.networks.segmenter import LargeFov
from aeft_lib.paper.triplet import CORRECTED
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.cache_features import FeatureSpec, cache_features
from aeft_lib.stages.sources import InMemory, OnDisk, same_count
from aeft_lib.stages.train_affinity import AffinitySpec, train_affinity
from aeft_lib.stages.train_classifier import ClassifierSpec, train_classifier
from aeft_lib.stages.train_segmenter import SegmenterSpec, train_segmenter
from aeft_lib.stages.write_labels import TruthSpec, true_labels
from aeft_lib.studies.profiles import SMOKE

COLLAGES = replace(SMOKE, train=SceneSpec("train", 16, 96))
STAGES = ("classifier", "affinity", "segmenter")
# What a batch of each training holds.
FIELDS = {
    ("classifier", InMemory): {"images", "features", "tags", "noise"},
    ("classifier", OnDisk): {"images", "tags", "noise"},
    ("affinity", InMemory): {"images", "labels"},
    ("affinity", OnDisk): {"images", "labels"},
    ("segmenter", InMemory): {"images", "labels"},
    ("segmenter", OnDisk): {"images", "labels"},
}
WHOLE = slice(None)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fields(batch: Batch) -> set[str]:
    return {name for name, tensor in batch._asdict().items() if tensor is not None}


# --- three trainings ------------------------------------------------------------------------------


class Stopped(Exception):
    """Stands for a training: its source is all that is wanted."""


def posteriors(profile, folder) -> Artefact:
    """Two CRFs as a stage writes them: a square of every tagged class, larger in the first."""
    scenes = profile.train.open()
    for name, part in (("low", 0.8), ("high", 0.5)):
        seeds = []
        for index in range(len(scenes)):
            class_ids = torch.from_numpy(scenes.tags(index)).nonzero()[:, 0]
            height, width = scenes.image(index).shape[:2]
            cam = torch.zeros(len(class_ids), height, width)
            for place in range(len(class_ids)):
                left = place * width // len(class_ids)
                cam[place, : int(part * height), left : left + width // 3] = 1
            seeds.append((f"{index:05d}", Seed(class_ids, cam)))
        write_seeds(folder / f"{name}.npz", seeds)
    return Artefact("refine_by_crf", "", folder, {})


def source_of(kind: str, profile, folder, monkeypatch):
    """The source that a training of a profile hands to the loop."""
    folder.mkdir()
    sources, schedule = [], replace(profile.schedule, batch_size=4)

    def record(network, *, n_samples, batch, **_):
        assert n_samples == batch.count
        sources.append(batch)
        raise Stopped

    scenes, classes = profile.train, profile.num_classes
    if kind == "classifier":
        method = CORRECTED.fitted(profile.map_side)
        spec = ClassifierSpec(
            method, classes, profile.backbone, scenes, schedule, seed=0, view=profile.view
        )
        stage, inputs = train_classifier, {}
        if profile.cached:
            cache_features(FeatureSpec(scenes, profile.backbone, (1.0,), ""), {}, folder)
            inputs = {"features": Artefact("cache_features", "", folder, {})}
    elif kind == "affinity":
        spec = AffinitySpec(
            scenes, profile.backbone, schedule, seed=0, view=profile.refinement.view
        )
        stage, inputs = train_affinity, {"posteriors": posteriors(profile, folder)}
    else:
        crop = profile.segmentation.crop
        spec = SegmenterSpec(
            LargeFov(16), classes, profile.backbone, scenes, schedule, seed=0, crop=crop
        )
        true_labels(TruthSpec(scenes), {}, folder)
        stage, inputs = train_segmenter, {"labels": Artefact("true_labels", "", folder, {})}
    with monkeypatch.context() as patched:
        patched.setattr(loop, "fit", record)
        with pytest.raises(Stopped):
            stage(spec, inputs, folder)
    return sources[0]


@pytest.fixture(params=[InMemory, OnDisk], ids=["whole scenes", "photos"])
def setting(request, tmp_path, monkeypatch):
    """A profile, and the class of source that all its trainings read."""
    monkeypatch.setenv("AEFT_VOC_ROOT", str(tmp_path / "voc"))
    opened.cache_clear()
    if request.param is OnDisk:
        make_voc(tmp_path / "voc", SPLITS, classes=CLASSES)
        yield photo_profile(), OnDisk
    else:
        yield COLLAGES, InMemory
    opened.cache_clear()


@pytest.mark.parametrize("kind", STAGES)
def test_one_pair_of_sources_serves_classifier_affinity_and_segmenter(
    setting, kind, tmp_path, monkeypatch
):
    """Each a pure function of indices and stream: the ranks of a job see one process's batch."""
    profile, expected = setting
    source = source_of(kind, profile, tmp_path / kind, monkeypatch)
    assert type(source) is expected
    assert source.count == len(profile.train.open())
    indices = torch.tensor([3, 0, 5, 6])
    batch, again, other = (source(indices, stream(seed), WHOLE) for seed in (0, 0, 1))
    assert fields(batch) == FIELDS[kind, expected]
    parts = [source(indices, stream(), part) for part in (slice(0, 1), slice(1, 4))]
    for name in fields(batch):
        tensor = getattr(batch, name)
        assert len(tensor) == len(indices), name
        assert torch.equal(tensor, getattr(again, name)), name
        assert torch.equal(tensor, torch.cat([getattr(part, name) for part in parts])), name
        assert torch.equal(tensor, getattr(other, name)) == (name == "tags"), name
    if batch.noise is not None:
        assert batch.noise.shape == (4, 4)
    if batch.tags is not None:
        assert batch.tags.tolist() == [
            profile.train.open().tags(i).tolist() for i in indices.tolist()
        ]
    if batch.labels is not None:
        assert batch.labels.dtype == torch.uint8
        assert set(batch.labels.unique().tolist()) <= {*range(profile.num_classes + 1), VOID}


# --- the pair -------------------------------------------------------------------------------------


def test_photos_have_a_stream_each_whatever_part_of_the_batch_is_wanted():
    """Index and stream decide a view, and noise comes before them, so it moves no view."""

    def view(index: int, generator: torch.Generator) -> Batch:
        return Batch(images=torch.tensor([index, torch.rand((), generator=generator).item()]))

    indices = torch.tensor([4, 7, 4])
    whole, part = (OnDisk(9, view)(indices, stream(), w) for w in (WHOLE, slice(1, 3)))
    assert whole.images[:, 0].tolist() == [4, 7, 4]
    assert torch.equal(whole.images[1:], part.images)
    assert whole.images[0, 1] != whole.images[2, 1]  # the same photo twice is two views
    assert fields(whole) == {"images"}
    noisy = OnDisk(9, view, noise=True)(indices, stream(), slice(1, 3))
    assert torch.equal(noisy.noise, torch.rand(3, 3, generator=stream())[1:])


def test_scenes_in_memory_are_asked_for_all_indices_at_once():
    asked = []

    def view(indices, generator, wanted) -> Batch:
        asked.append((indices.tolist(), wanted))
        return Batch(tags=indices[wanted, None])

    batch = InMemory(9, view, noise=True)(torch.tensor([2, 8]), stream(), slice(1, 2))
    assert asked == [([2, 8], slice(1, 2))]
    assert batch.tags.tolist() == [[8]]
    assert torch.equal(batch.noise, torch.rand(2, 2, generator=stream())[1:])
    assert InMemory(9, view)(torch.tensor([2]), stream(), WHOLE).noise is None


def test_views_made_together_are_the_views_made_alone():
    """Float operations of a view are its own: no sum runs over the batch, so bits are equal.

    Up to 1e-6 of the range all the same, as a kernel may take other lanes for other lengths.
    """
    images = torch.rand(5, 3, 12, 16, generator=stream())
    labels = torch.randint(3, (5, 12, 16), generator=stream(1)).to(torch.uint8)
    drawn = draw_views(5, stream(2), scales=(0.5, 1.5))
    views, targets = affine_views(images, labels, drawn)
    alone = [affine_views(images[i : i + 1], labels[i : i + 1], drawn[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(views, torch.cat([v for v, _ in alone]), rtol=0, atol=1e-6)
    differ = targets != torch.cat([t for _, t in alone])
    assert differ.float().mean() < 0.01  # nearest rounds: a tie may fall either way
    together = random_views(images, labels, stream(2), scales=(0.5, 1.5))
    assert torch.equal(together[0], views)
    assert not torch.equal(views[0], images[0])


def test_other_numbers_of_images_are_refused():
    assert same_count(3, 3, "label maps") == 3
    with pytest.raises(ValueError, match="there are 3 images and 4 label maps"):
        same_count(3, 4, "label maps")
