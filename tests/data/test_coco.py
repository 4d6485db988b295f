"""MS COCO from its instance annotations: tags, masks, crowds, overlaps, odd annotation files."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from photo_sets import (
    CROWD_ROWS,
    categories,
    coco_box,
    coco_crowd,
    coco_image,
    cut,
    draw,
    make_coco,
    recode,
    save_jpeg,
    turn,
    write_instances,
)

from aeft_lib.data.coco import SPLITS, Coco, CocoSpec, read_instances
from aeft_lib.maps.labels import VOID

pytest.importorskip("pycocotools", reason="masks of COCO need pycocotools")

NAMES = ("person", "dog", "car")
SIZE = (48, 64)
TRAIN = "train2014"
FIRST = "COCO_train2014_000000000001"
REAL = os.environ.get("AEFT_COCO_ROOT")


@pytest.fixture
def root(tmp_path):
    make_coco(tmp_path, {"train2014": 4, "val2014": 3}, NAMES)
    return tmp_path


def coco(root: Path, split: str = TRAIN, **rest) -> Coco:
    return Coco(CocoSpec(split, **rest), root)


def photo(root: Path, name: str = FIRST) -> Path:
    return root / TRAIN / f"{name}.jpg"


def with_annotations(root: Path, *annotations: dict, **other) -> Coco:
    """A training split of one image, 1, that has these annotations."""
    image, _ = draw(np.random.default_rng(0), [0], SIZE)
    save_jpeg(photo(root, "one"), image)
    content = {
        "images": [coco_image(1, "one", SIZE)],
        "annotations": list(annotations),
        "categories": categories(NAMES),
    }
    write_instances(root, TRAIN, content | other)
    return coco(root)


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_have_the_masks_and_tags_that_were_drawn(tmp_path, split):
    drawn = make_coco(tmp_path, {"train2014": 4, "val2014": 3}, NAMES)
    scenes = coco(tmp_path, split)
    assert scenes.classes == NAMES
    assert len(scenes) == {"train2014": 4, "val2014": 3}[split]
    for scene in map(scenes.__getitem__, range(len(scenes))):
        assert (scene.image.dtype, scene.image.shape) == (np.uint8, (48, 64, 3))
        assert (scene.mask.dtype, scene.tags.dtype, scene.tags.shape) == (np.uint8, bool, (3,))
        assert (scene.mask == drawn[scene.name]).all()
        assert set(np.unique(scene.mask)) - {0, VOID} <= set(np.flatnonzero(scene.tags) + 1)


def test_classes_stand_in_the_order_of_their_ids(tmp_path):
    scenes = with_annotations(
        tmp_path, coco_box(1, 2, (10, 20, 10, 20)), categories=categories(NAMES)[::-1]
    )
    assert scenes.classes == NAMES
    assert scenes.tags(0).tolist() == [False, False, True]
    assert scenes.mask(0)[15, 15] == 3


def test_names_stand_in_one_order_whatever_the_files(tmp_path):
    make_coco(tmp_path, {"train2014": ["c", "a", "b"]}, NAMES)
    assert coco(tmp_path).names == ["a", "b", "c"]


def test_a_count_is_the_same_draw_every_time(root):
    some = coco(root, count=2)
    assert len(some) == len(set(some.names)) == 2
    assert coco(root, count=2).names == some.names
    assert coco(root, count=3).names[:2] == some.names
    assert sorted(coco(root, count=4).names) == coco(root).names


def test_a_size_squares_image_and_mask(root):
    plain, square = coco(root)[1], coco(root, size=32)[1]
    assert (square.image.shape, square.mask.shape) == ((32, 32, 3), (32, 32))
    assert set(np.unique(square.mask)) <= set(np.unique(plain.mask))
    assert (square.tags == plain.tags).all()


def test_the_root_is_the_variables_where_none_is_given(root, monkeypatch):
    monkeypatch.setenv("AEFT_COCO_ROOT", str(root))
    assert Coco(CocoSpec("val2014")).names == coco(root, "val2014").names


def test_neither_tags_nor_images_decode_an_outline(tmp_path):
    scenes = with_annotations(tmp_path, coco_box(1, 1, (10, 20, 10, 20)) | {"segmentation": "none"})
    assert scenes.tags(0).tolist() == [False, True, False]
    assert scenes.image(0).shape == (*SIZE, 3)
    assert scenes.fingerprint
    with pytest.raises(ValueError, match="one: annotation 1 has no readable outline"):
        scenes.mask(0)


# --- masks ----------------------------------------------------------------------------------------


def test_a_crowd_is_void_and_tagged(tmp_path):
    scenes = with_annotations(tmp_path, coco_crowd(1, 0, SIZE))
    assert scenes.tags(0).tolist() == [True, False, False]
    assert (scenes.mask(0)[-CROWD_ROWS:] == VOID).all()
    assert not scenes.mask(0)[:-CROWD_ROWS].any()


@pytest.mark.parametrize("reverse", [False, True])
def test_an_object_is_painted_over_a_crowd_whatever_its_area_and_place(tmp_path, reverse):
    both = [coco_crowd(1, 0, SIZE, 0), coco_box(1, 1, (0, 48, 10, 50), 1)]  # larger than the crowd
    mask = with_annotations(tmp_path, *(both[::-1] if reverse else both)).mask(0)
    assert (mask[:, 10:50] == 2).all()
    assert (mask[-CROWD_ROWS:, :10] == VOID).all()


@pytest.mark.parametrize("reverse", [False, True])
def test_of_two_objects_the_smaller_is_in_front(tmp_path, reverse):
    both = [coco_box(1, 0, (5, 45, 5, 60), 0), coco_box(1, 2, (20, 30, 20, 30), 1)]
    mask = with_annotations(tmp_path, *(both[::-1] if reverse else both)).mask(0)
    assert (mask[20:30, 20:30] == 3).all()
    assert (mask == 3).sum() == 100
    assert (mask == 1).sum() == 40 * 55 - 100


def test_an_object_of_two_parts_is_both(tmp_path):
    parts = (
        coco_box(1, 0, (0, 10, 0, 10))["segmentation"]
        + coco_box(1, 0, (20, 30, 40, 50))["segmentation"]
    )
    mask = with_annotations(
        tmp_path, coco_box(1, 0, (0, 30, 0, 50)) | {"segmentation": parts}
    ).mask(0)
    assert (mask[:10, :10] == 1).all()
    assert (mask[20:30, 40:50] == 1).all()
    assert (mask == 1).sum() == 200


def test_packed_run_lengths_are_read_too(tmp_path):
    from pycocotools import mask as masks

    region = np.zeros(SIZE, np.uint8)
    region[7:20, 9:33] = 1
    packed = masks.encode(np.asfortranarray(region))
    outline = {"size": list(SIZE), "counts": packed["counts"].decode()}
    mask = with_annotations(
        tmp_path, coco_box(1, 1, (7, 20, 9, 33)) | {"segmentation": outline}
    ).mask(0)
    assert (mask == 2 * region).all()


def test_an_image_without_annotation_is_background_without_tags(tmp_path):
    scene = with_annotations(tmp_path)[0]
    assert not scene.tags.any()
    assert scene.mask.shape == SIZE
    assert not scene.mask.any()


def test_an_empty_outline_is_no_pixel(tmp_path):
    scene = with_annotations(tmp_path, coco_box(1, 1, (0, 9, 0, 9)) | {"segmentation": []})[0]
    assert scene.tags.tolist() == [False, True, False]
    assert not scene.mask.any()


@pytest.mark.parametrize(
    "outline",
    [
        None,
        "text",
        5,
        {},
        {"counts": [5, 5], "size": list(SIZE)},  # too few pixels
        {"counts": [48 * 64, 5], "size": list(SIZE)},  # too many
        [[1, 2]],
        [["a", "b", "c", "d", "e", "f"]],
        [[]],
    ],
    ids=str,
)
def test_an_outline_that_is_not_readable_is_refused_by_name(tmp_path, outline):
    scenes = with_annotations(
        tmp_path, coco_box(1, 1, (0, 9, 0, 9), 41) | {"segmentation": outline}
    )
    with pytest.raises(ValueError, match="one: annotation 42 has no readable outline"):
        scenes.mask(0)


def test_an_outline_of_another_size_is_refused(tmp_path):
    scenes = with_annotations(
        tmp_path, coco_box(1, 1, (0, 9, 0, 9)) | {"segmentation": packed_runs((10, 12))}
    )
    with pytest.raises(
        ValueError, match=r"readable outline \(its runs are of \[10, 12\], its image of \[48, 64\]"
    ):
        scenes.mask(0)


@pytest.mark.parametrize("far", [1e8, -1e8, 2**40, 10**400, 1e308, float("nan"), float("inf")])
def test_a_point_far_outside_never_reaches_cocos_code(tmp_path, far):
    outline = [[0, 0, far, 0, 9, 9, 0, 9]]
    scenes = with_annotations(tmp_path, coco_box(1, 1, (0, 9, 0, 9)) | {"segmentation": outline})
    with pytest.raises(ValueError, match=r"annotation 1 has no readable outline \(a polygon"):
        scenes.mask(0)


def test_a_polygon_too_long_to_paint_is_refused(tmp_path):
    outline = [[-60, 0, 120, 0] * 20_000]  # 40,000 sides of 180 pixels
    scenes = with_annotations(tmp_path, coco_box(1, 1, (0, 9, 0, 9)) | {"segmentation": outline})
    with pytest.raises(ValueError, match=r"a polygon 7200000 pixels long"):
        scenes.mask(0)


def test_a_polygon_that_leaves_its_image_a_little_is_cut(tmp_path):
    outline = [[-5, -5, 90, -5, 90, 20, -5, 20]]
    scenes = with_annotations(tmp_path, coco_box(1, 1, (0, 9, 0, 9)) | {"segmentation": outline})
    assert (scenes.mask(0)[:20] == 2).all()
    assert not scenes.mask(0)[20:].any()


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([48 * 64 - 5, 10], "its runs have 3077 pixels, the image 3072"),
        ([-5, 48 * 64 + 5], "its runs are no whole numbers"),
        ([48.0, 48 * 64 - 48], "its runs are no whole numbers"),
        ([True] * 3072, "its runs are no whole numbers"),
        (None, "its runs are no whole numbers"),
        ("", "its runs have 0 pixels, the image 3072"),
        ("o" * 9, "wrong place"),
        ("o", "its runs are cut off"),
        ("\x00", "wrong place"),
        ("P\u00e9", "wrong place"),
    ],
    ids=str,
)
def test_runs_that_do_not_fill_the_image_are_refused(tmp_path, counts, said):
    outline = {"counts": counts, "size": list(SIZE)}
    scenes = with_annotations(tmp_path, coco_box(1, 1, (0, 9, 0, 9)) | {"segmentation": outline})
    with pytest.raises(ValueError, match=f"annotation 1 has no readable outline .*{said}"):
        scenes.mask(0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("area", value) for value in (None, "12", -1, float("nan"), float("inf"), [1], True)),
        *(("iscrowd", value) for value in (None, "0", 2, 0.0, float("nan"), [0])),
    ],
)
def test_an_odd_area_or_crowd_is_refused_at_reading(tmp_path, field, value):
    with pytest.raises(ValueError, match=rf"json: annotation 1 has (the )?{field} .*fetch it"):
        with_annotations(tmp_path, coco_box(1, 1, (0, 9, 0, 9)) | {field: value})


@pytest.mark.parametrize(
    "change",
    [{"height": 10**6, "width": 10**6}, {"height": 0}, {"width": 1e400}, {"width": None}]
    + [{"height": "48"}, {"id": "1"}, {"id": None}, {"file_name": "a\nb.jpg"}, {"file_name": ""}]
    + [{"file_name": "\ud800.jpg"}, {"file_name": ["one"]}, {"file_name": "a" * 300}],
    ids=str,
)
def test_an_odd_image_is_refused(tmp_path, change):
    image = coco_image(1, "one", SIZE) | change
    with pytest.raises(ValueError, match=rf"{TRAIN}\.json: not readable .*\(image "):
        with_annotations(tmp_path, images=[image])


def test_more_categories_than_labels_are_refused(tmp_path):
    many = categories([f"class {i}" for i in range(255)])
    with pytest.raises(ValueError, match="255 categories, and labels for 254"):
        with_annotations(tmp_path, categories=many)


def test_nested_json_is_refused_by_name(root):
    (root / "annotations" / f"instances_{TRAIN}.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=rf"{TRAIN}\.json: not readable .*\(RecursionError"):
        coco(root)


def packed_runs(size: tuple[int, int]) -> dict:
    from pycocotools import mask as masks

    packed = masks.encode(np.asfortranarray(np.ones(size, np.uint8)))
    return {"size": list(size), "counts": packed["counts"].decode()}


# --- fingerprint ----------------------------------------------------------------------------------


def one_box(root: Path, i: int = 1, **other) -> str:
    return with_annotations(root, coco_box(1, i, (10, 20, 10, 20)), **other).fingerprint


def test_the_fingerprint_changes_with_tags_classes_names_and_photos(root, tmp_path):
    before = one_box(tmp_path)
    renamed = [category | {"name": category["name"].upper()} for category in categories(NAMES)]
    different = {
        one_box(tmp_path, 2),
        one_box(tmp_path, categories=renamed),
        one_box(tmp_path, images=[coco_image(1, "two", SIZE)]),
    }
    assert one_box(tmp_path) == before  # there and back
    save_jpeg(photo(root, "one"), np.zeros((*SIZE, 3), np.uint8))
    different.add(coco(root).fingerprint)
    photo(root, "one").unlink()
    different.add(coco(root).fingerprint)
    assert before not in different
    assert len(different) == 5


def test_the_fingerprint_changes_with_any_bit_of_a_photo(root, tmp_path):
    """Neither its size nor its ends show it."""
    before, file = one_box(tmp_path), photo(root, "one")
    content = file.read_bytes() + bytes(20_000)
    file.write_bytes(content)
    seen = {before, coco(root).fingerprint}
    for place in (len(content) // 3, len(content) // 2, len(content) - 5000):
        file.write_bytes(content[:place] + b"\1" + content[place + 1 :])
        seen.add(coco(root).fingerprint)
    assert len(seen) == 5


def test_the_fingerprint_does_not_change_with_masks_places_and_times(root, tmp_path):
    before = one_box(tmp_path)
    assert with_annotations(tmp_path, coco_box(1, 1, (5, 40, 5, 40), 7)).fingerprint == before
    os.utime(photo(root, "one"), (0, 0))
    shutil.copytree(root, tmp_path / "copy")
    assert coco(tmp_path / "copy").fingerprint == before


def test_a_file_that_changed_is_read_again(tmp_path):
    assert with_annotations(tmp_path, coco_box(1, 0, (0, 9, 0, 9))).tags(0).tolist() == [
        True,
        False,
        False,
    ]
    assert with_annotations(tmp_path, coco_box(1, 2, (0, 9, 0, 9), 1)).tags(0).tolist() == [
        False,
        False,
        True,
    ]


def test_a_file_that_stayed_the_same_is_read_once(root):
    file = root / "annotations" / f"instances_{TRAIN}.json"
    assert read_instances(file) is read_instances(file)


# --- what is asked for wrongly --------------------------------------------------------------------


@pytest.mark.parametrize("split", ["", "train", "train2017", "test2014"])
def test_an_unknown_split_is_refused(split):
    with pytest.raises(ValueError, match=f"split must be one of train2014, val2014, got '{split}'"):
        CocoSpec(split)


@pytest.mark.parametrize(
    ("name", "value"), [("count", -1), ("count", False), ("size", 16), ("size", 64.0)]
)
def test_an_odd_count_or_size_is_refused(name, value):
    with pytest.raises(
        ValueError, match=rf"{name} must be a whole number, at least \d+, got {value!r}"
    ):
        CocoSpec("val2014", **{name: value})


def test_a_count_beyond_the_list_is_refused(root):
    with pytest.raises(ValueError, match="4 scenes are asked for, the list has 3"):
        coco(root, "val2014", count=4)


# --- what is missing or wrong ---------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_without_a_root_the_message_names_variable_and_doctor(tmp_path, split):
    remedy = "AEFT_COCO_ROOT must name the folder that holds annotations.*data check coco"
    said = rf"no .*instances_{split}\.json: {remedy}"
    with pytest.raises(ValueError, match=said):
        coco(tmp_path / "nowhere", split)


def test_half_a_data_set_has_tags_but_no_image(root):
    shutil.rmtree(root / TRAIN)
    scenes = coco(root)
    assert scenes.tags(0).any()
    with pytest.raises(ValueError, match=rf"{FIRST}\.jpg: not a readable image \(no such file\)$"):
        scenes.image(0)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        '{"images": []}',
        "[]",
        "5",
        '{"images": 1, "annotations": 2, "categories": 3}',
        "\xff",
    ],
)
def test_a_damaged_file_is_refused(root, content):
    file = root / "annotations" / f"instances_{TRAIN}.json"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(
        ValueError,
        match=rf"instances_{TRAIN}\.json: not readable as COCO's instances .*; fetch it again",
    ):
        coco(root)


def test_a_file_that_was_cut_off_is_refused(root):
    cut(root / "annotations" / f"instances_{TRAIN}.json", 0.7)
    with pytest.raises(ValueError, match=r"not readable as COCO's instances \(JSONDecodeError"):
        coco(root)


def test_a_file_without_images_or_categories_is_refused(tmp_path):
    with pytest.raises(ValueError, match="json: no image; fetch it again"):
        with_annotations(tmp_path, images=[])
    with pytest.raises(ValueError, match="json: no category; fetch it again"):
        with_annotations(tmp_path, categories=[])


def test_unknown_categories_and_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="annotation 8 has the unknown category 2"):
        with_annotations(tmp_path, coco_box(1, 0, (0, 9, 0, 9), 7) | {"category_id": 2})
    with pytest.raises(ValueError, match="annotation 8 belongs to the unknown image 99"):
        with_annotations(tmp_path, coco_box(99, 0, (0, 9, 0, 9), 7))


@pytest.mark.parametrize("second", [(1, "one"), (2, "one"), (1, "two")], ids=["both", "name", "id"])
def test_an_image_that_stands_twice_is_refused(tmp_path, second):
    with pytest.raises(ValueError, match=r"json: image (id 1|name one) stands 2 times; fetch it"):
        with_annotations(tmp_path, images=[coco_image(1, "one", SIZE), coco_image(*second, SIZE)])


@pytest.mark.parametrize("part", [0, 0.01, 0.6])
def test_a_photo_that_is_empty_or_cut_off_is_refused(root, part):
    cut(photo(root), part)
    with pytest.raises(ValueError, match=rf"{FIRST}\.jpg: not a readable image .*; fetch it again"):
        coco(root).image(0)


@pytest.mark.parametrize("kind", ["CMYK", "L", "palette", "PNG"])
def test_photos_of_other_kinds_become_rgb(root, kind):
    recode(photo(root), kind)
    image = coco(root)[0].image
    assert (image.dtype, image.shape) == (np.uint8, (48, 64, 3))


def test_a_photo_of_another_size_than_the_annotations_say_is_refused(root):
    turn(photo(root))
    with pytest.raises(ValueError, match=rf"{FIRST}: the mask is \(48, 64\), its image \(64, 48\)"):
        coco(root)[0]


# --- the real data --------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL, reason="AEFT_COCO_ROOT is not set")
@pytest.mark.parametrize("split", SPLITS)
class TestRealData:
    """Holds for the published data, and for any part of it in its own layout."""

    def test_there_are_80_classes_in_cocos_order(self, split):
        scenes = Coco(CocoSpec(split))
        assert len(scenes.classes) == 80
        assert (scenes.classes[0], scenes.classes[16], scenes.classes[-1]) == (
            "person",
            "dog",
            "toothbrush",
        )
        assert 0 < len(scenes) <= SPLITS[split]

    def test_masks_have_the_size_of_their_images_and_no_class_without_tag(self, split):
        scenes = Coco(CocoSpec(split))
        for i in range(0, len(scenes), max(1, len(scenes) // 50)):
            image, mask, tags, name = scenes[i]
            assert image.shape == (*mask.shape, 3), name
            assert set(np.unique(mask).tolist()) - {0, VOID} <= set(
                (np.flatnonzero(tags) + 1).tolist()
            ), name
