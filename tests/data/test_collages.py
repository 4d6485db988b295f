"""The photo collages: determinism, masks, tags, the split, contexts, sizes, the embedded pack."""

import csv
import hashlib
import re
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from aeft_lib import paths
from aeft_lib.data.collages import (
    AREA_QUANTILES,
    CLASSES,
    CLASSES_PER_SCENE,
    MIN_VISIBLE_PIXELS,
    SPLITS,
    Collages,
    Pack,
    SceneSpec,
    load_pack,
)

SIZE = 64


@pytest.fixture(scope="module")
def scenes():
    """150 small scenes of each split."""
    return {
        split: list(Collages(SceneSpec(split, 150, SIZE))[i] for i in range(150))
        for split in SPLITS
    }


def manifest() -> list[dict[str, str]]:
    with (paths.COLLAGES / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- scenes ---------------------------------------------------------------------------------------


def test_scenes_have_the_stated_shapes_types_and_names():
    data = Collages(SceneSpec("val", 3, 80, seed=7))
    scene = data[2]
    assert (scene.image.shape, scene.image.dtype) == ((80, 80, 3), np.uint8)
    assert (scene.mask.shape, scene.mask.dtype) == ((80, 80), np.uint8)
    assert (scene.tags.shape, scene.tags.dtype) == ((9,), bool)
    assert scene.name == "val_7_00002"
    assert len(data) == 3
    assert len(list(data)) == 3


def test_a_scene_is_the_same_whenever_and_in_whatever_set_it_is_drawn():
    first, again = (
        Collages(SceneSpec("train", 5, SIZE))[4],
        Collages(SceneSpec("train", 500, SIZE))[4],
    )
    for ours, theirs in zip(first[:3], again[:3], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("other", [("train", 5, 0), ("train", 4, 1), ("val", 4, 0)])
def test_another_index_seed_or_split_is_another_scene(other):
    split, index, seed = other
    scene = Collages(SceneSpec("train", 9, SIZE))[4]
    assert not np.array_equal(scene.image, Collages(SceneSpec(split, 9, SIZE, seed))[index].image)


def test_splits_draw_their_own_scenes_even_from_the_same_pictures():
    pack = load_pack()
    cutouts = {(split, name): pack.cutouts["train", name] for split in SPLITS for name in CLASSES}
    both = Pack(cutouts, dict.fromkeys(SPLITS, pack.backgrounds["train"]), "")
    train, val = (Collages(SceneSpec(split, 9, SIZE), both) for split in SPLITS)
    assert all(not np.array_equal(train[i].mask, val[i].mask) for i in range(9))


def test_scenes_of_another_size_show_the_same_composition():
    """Rounding may move an object now and then, since placement counts pixels: nearly always."""
    small, large = (Collages(SceneSpec("val", 40, size)) for size in (128, 256))
    pairs = [(small[i], large[i]) for i in range(40)]
    assert np.mean([np.array_equal(a.tags, b.tags) for a, b in pairs]) >= 0.9
    agreement = [(a.mask == b.mask[::2, ::2]).mean() for a, b in pairs]
    assert np.median(agreement) > 0.98
    assert np.mean(agreement) > 0.9


def test_backgrounds_of_another_size_are_the_same_crop():
    for index in range(6):
        crops = []
        for size in (64, 128):
            canvas = Collages(SceneSpec("train", 1, size))._background(
                np.random.default_rng(index), 0
            )
            crops.append(np.asarray(canvas.resize((32, 32), Image.Resampling.BOX), dtype=float))
        assert np.abs(crops[0] - crops[1]).mean() < 3


def test_tags_are_the_classes_of_the_mask(scenes):
    for scene in (*scenes["train"], *scenes["val"]):
        present = set(np.unique(scene.mask)) - {0}
        assert present == set(np.flatnonzero(scene.tags) + 1)


def test_every_scene_has_one_to_three_tags_and_each_can_be_seen(scenes):
    for scene in (*scenes["train"], *scenes["val"]):
        assert 1 <= scene.tags.sum() <= len(CLASSES_PER_SCENE)
        areas = [(scene.mask == label + 1).mean() for label in np.flatnonzero(scene.tags)]
        assert min(areas) >= MIN_VISIBLE_PIXELS


def test_every_class_occurs_and_most_scenes_have_one(scenes):
    for split in SPLITS:
        tags = np.stack([scene.tags for scene in scenes[split]])
        assert (tags.sum(axis=0) >= 8).all()
        assert 0.6 < (tags.sum(axis=1) == 1).mean() < 0.85


def test_object_sizes_follow_the_stated_distribution(scenes):
    for split in SPLITS:
        areas = [(s.mask == k + 1).mean() for s in scenes[split] for k in np.flatnonzero(s.tags)]
        assert 0.05 < np.median(areas) < 0.25
        assert np.quantile(areas, 0.95) > 0.25
        assert max(areas) < 1.1 * AREA_QUANTILES[1][-1]


def test_masks_are_exact_what_is_outside_them_is_background():
    """On a pack of one flat colour all that differs from it is an object and its soft edge."""
    pack = Pack(load_pack().cutouts, {"train": (Image.new("RGB", (200, 200), (255, 0, 255)),)}, "")
    for scene in (Collages(SceneSpec("train", 20, 128), pack)[i] for i in range(20)):
        painted = (scene.image != (255, 0, 255)).any(axis=2)
        assert painted[scene.mask > 0].mean() > 0.999
        edge = np.zeros_like(painted)
        for dy, dx in np.ndindex(9, 9):
            edge |= np.roll(scene.mask > 0, (dy - 4, dx - 4), (0, 1))
        assert (painted & ~edge).mean() < 0.02


# --- contexts -------------------------------------------------------------------------------------

COLOURS = [(40 * i, 0, 255 - 40 * i) for i in range(6)]


def background_colours(context: float, first_class: int) -> set[tuple[int, ...]]:
    """The colours of 40 backgrounds behind this class, on a pack with one colour a photo."""
    photos = tuple(Image.new("RGB", (50, 40), colour) for colour in COLOURS)
    data = Collages(
        SceneSpec("train", 1, 32, context=context), Pack(load_pack().cutouts, {"train": photos}, "")
    )
    return {
        data._background(np.random.default_rng(seed), first_class).getpixel((5, 5))
        for seed in range(40)
    }


def test_full_context_ties_every_class_to_one_background():
    tied = [background_colours(1.0, label) for label in range(len(CLASSES))]
    assert all(len(colours) == 1 for colours in tied)
    assert set.union(*tied) == set(COLOURS)


def test_no_context_draws_every_background_and_some_context_prefers_one():
    assert background_colours(0.0, 3) == set(COLOURS)
    assert background_colours(0.5, 3) > background_colours(1.0, 3)


def test_context_changes_the_background_and_nothing_else():
    free, tied = (Collages(SceneSpec("train", 12, SIZE, context=context)) for context in (0.0, 1.0))
    pairs = [(free[i], tied[i]) for i in range(12)]
    assert all(np.array_equal(a.mask, b.mask) for a, b in pairs)
    assert any(not np.array_equal(a.image, b.image) for a, b in pairs)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "split must be one of train, val, got 'test'"),
        ({"count": 0}, "count must be a whole number, at least 1, got 0"),
        ({"size": 31}, "size must be a whole number, at least 32, got 31"),
        ({"context": 2.0}, r"context must lie in 0\.\.1, got 2\.0"),
        ({"context": -0.1}, r"context must lie in 0\.\.1, got -0\.1"),
        ({"context": float("nan")}, r"context must lie in 0\.\.1, got nan"),
    ],
)
def test_a_set_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SceneSpec(**({"split": "train", "count": 5, "size": SIZE} | options))


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_outside_the_set_is_refused(index):
    with pytest.raises(IndexError, match=f"scene {index} of 5"):
        Collages(SceneSpec("train", 5, SIZE))[index]


# --- the pack -------------------------------------------------------------------------------------


def test_the_manifest_lists_every_picture_with_its_origin_and_no_other():
    rows = manifest()
    pictures = {str(file.relative_to(paths.COLLAGES)) for file in paths.COLLAGES.rglob("*.webp")}
    assert {row["file"] for row in rows} == pictures
    assert len(rows) == len(pictures)
    for row in rows:
        assert row["source_package"] in ("tuxpaint-stamps-default", "tuxpaint-data"), row["file"]
        assert row["source_version"], row["file"]
        assert row["source_path"].startswith("tuxpaint/"), row["file"]
        assert row["kind"] in ("cutout", "background"), row["file"]
        assert row["split"] in SPLITS, row["file"]


def test_the_pack_carries_its_licence_for_every_source_package():
    assert "GNU GENERAL PUBLIC LICENSE" in (paths.COLLAGES / "LICENSE").read_text(encoding="utf-8")
    readme = (paths.COLLAGES / "README.md").read_text(encoding="utf-8")
    for package, version in {(row["source_package"], row["source_version"]) for row in manifest()}:
        assert re.search(rf"`{package}` \| {re.escape(version)} \|.*GPL-2", readme)


def test_val_shows_nothing_that_train_shows():
    rows = manifest()
    for column in ("group", "sha256", "source_path", "file"):
        seen = {split: {row[column] for row in rows if row["split"] == split} for split in SPLITS}
        assert all(seen.values())
        assert not seen["train"] & seen["val"], column


def test_scenes_of_a_split_take_from_that_split_alone(scenes):
    """With the other split's pictures gone, the scenes are the same."""
    pack = load_pack()
    for split in SPLITS:
        own = {key: items for key, items in pack.cutouts.items() if key[0] == split}
        data = Collages(SceneSpec(split, 30, SIZE), Pack(own, {split: pack.backgrounds[split]}, ""))
        for i in range(30):
            np.testing.assert_array_equal(data[i].image, scenes[split][i].image)


def test_the_pack_decodes_to_what_the_manifest_says():
    rows, pack = manifest(), load_pack()
    counts = Counter((row["split"], row["class"]) for row in rows if row["kind"] == "cutout")
    assert {key: len(items) for key, items in pack.cutouts.items()} == counts
    assert all(
        picture.mode == "RGBA" and max(picture.size) <= 192
        for items in pack.cutouts.values()
        for picture in items
    )
    assert all(picture.mode == "RGB" for items in pack.backgrounds.values() for picture in items)
    assert (
        pack.checksum == hashlib.sha256((paths.COLLAGES / "manifest.csv").read_bytes()).hexdigest()
    )


def test_the_pack_is_small():
    assert sum(file.stat().st_size for file in paths.COLLAGES.rglob("*") if file.is_file()) < 2.6e6


@pytest.fixture
def copied_pack(tmp_path):
    shutil.copytree(paths.COLLAGES, tmp_path / "pack")
    return tmp_path / "pack"


def load_uncached(folder) -> Pack:
    return load_pack.__wrapped__(folder)


def test_a_copied_pack_is_as_good(copied_pack):
    assert load_uncached(copied_pack).checksum == load_pack().checksum


def truncate(folder, file="cutouts/bird/hen.webp"):
    (folder / file).write_bytes((folder / file).read_bytes()[:-1])


def drop_lines(folder, pattern):
    lines = (folder / "manifest.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "manifest.csv").write_text(
        "".join(line for line in lines if not re.search(pattern, line)), encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(
            truncate,
            r"is damaged: .*hen\.webp is missing or differs from the manifest",
            id="truncated",
        ),
        pytest.param(
            lambda f: (f / "cutouts/fish/lionfish.webp").unlink(),
            r"is damaged: .*lionfish\.webp",
            id="one file gone",
        ),
        pytest.param(
            lambda f: (f / "manifest.csv").unlink(),
            r"is missing: no .*manifest\.csv",
            id="no manifest",
        ),
        pytest.param(shutil.rmtree, r"is missing: no .*manifest\.csv", id="no folder"),
        pytest.param(
            lambda f: drop_lines(f, ",insect,val,"),
            "lists nothing in val for insect",
            id="no insect in val",
        ),
        pytest.param(
            lambda f: drop_lines(f, "cutout,f.*,train,"),
            "in train for fish, flower, fruit",
            id="no f in train",
        ),
        pytest.param(
            lambda f: drop_lines(f, ",background,,val,"),
            "lists nothing in val for background",
            id="no background",
        ),
    ],
)
def test_a_damaged_pack_names_what_is_wrong_and_the_remedy(copied_pack, damage, message):
    damage(copied_pack)
    with pytest.raises(
        ValueError, match=message + r".*; restore it with: git checkout -- data/collages$"
    ):
        load_uncached(copied_pack)
