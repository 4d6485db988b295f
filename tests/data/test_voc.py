"""PASCAL VOC from its own layout: tags without masks, classes that count, all that is wrong."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from photo_sets import (
    colour_map,
    cut,
    make_voc,
    present_classes,
    recode,
    save_jpeg,
    turn,
    voc_annotation,
)
from PIL import Image

from aeft_lib.data.voc import CLASSES, HOME, MASKS, SPLITS, Voc, VocSpec, read_annotation, read_list
from aeft_lib.maps.labels import VOID, write_label_map

NAMES = ("cat", "dog", "person")
FIRST = "2007_000001"
REAL = os.environ.get("AEFT_VOC_ROOT")
ANIMALS = ("bird", "cat", "cow", "dog", "horse", "sheep")


@pytest.fixture
def root(tmp_path):
    make_voc(tmp_path, {"train_aug": 4, "val": 3}, NAMES)
    return tmp_path


def voc(root: Path, split: str = "train_aug", **rest) -> Voc:
    return Voc(VocSpec(split, **rest), root)


def photo(root: Path, name: str = FIRST) -> Path:
    return root / HOME / "JPEGImages" / f"{name}.jpg"


def annotation(root: Path, name: str = FIRST) -> Path:
    return root / HOME / "Annotations" / f"{name}.xml"


def mask(root: Path, name: str = FIRST, folder: str = MASKS[1]) -> Path:
    return root / HOME / folder / f"{name}.png"


def listed(root: Path, split: str = "train_aug") -> Path:
    return root / HOME / "ImageSets" / "Segmentation" / f"{split}.txt"


# --- what is read ---------------------------------------------------------------------------------


def test_scenes_have_the_masks_and_tags_that_were_drawn(tmp_path):
    drawn = make_voc(tmp_path, {"train_aug": 4, "val": 3}, NAMES)
    scenes = [
        scene
        for split in ("train_aug", "val")
        for scene in map(voc(tmp_path, split, classes=NAMES).__getitem__, range(3))
    ]
    for scene in scenes:
        assert (scene.image.dtype, scene.image.shape) == (np.uint8, (48, 64, 3))
        assert (scene.mask.dtype, scene.tags.dtype, scene.tags.shape) == (np.uint8, bool, (3,))
        assert (scene.mask == drawn[scene.name]).all()
        assert set(np.flatnonzero(scene.tags) + 1) == set(np.unique(scene.mask)) - {0}


def test_a_class_has_its_colour_where_its_mask_is(root):
    scene = voc(root, classes=NAMES)[0]  # image 0 shows class 0, red
    assert scene.tags.tolist() == [True, False, False]
    inside = scene.image[scene.mask == 1].astype(int)
    assert np.abs(np.median(inside, axis=0) - (220, 40, 40)).max() <= 6


def test_all_of_vocs_classes_in_vocs_order(root):
    scenes = voc(root)
    assert scenes.classes == CLASSES
    for i in range(4):
        positions = [CLASSES.index(NAMES[k]) for k in present_classes(i, 3)]
        assert np.flatnonzero(scenes.tags(i)).tolist() == positions
        assert np.unique(scenes.mask(i)).tolist() == [0, *(k + 1 for k in positions)]


def test_classes_that_do_not_count_are_void_and_untagged(root):
    chosen, every = voc(root, classes=("dog", "cat")), voc(root)
    both = [i for i in range(4) if every.tags(i)[CLASSES.index("person")]]
    assert both
    for i in range(4):
        assert chosen.tags(i).tolist() == [
            every.tags(i)[CLASSES.index(name)] for name in ("dog", "cat")
        ]
        labels = {
            0: 0,
            CLASSES.index("dog") + 1: 1,
            CLASSES.index("cat") + 1: 2,
            CLASSES.index("person") + 1: VOID,
        }
        assert (chosen.mask(i) == np.vectorize(labels.get)(every.mask(i))).all()


def test_void_stays_void(root):
    labels = np.zeros((48, 64), np.uint8)
    labels[:3] = VOID
    write_label_map(mask(root), labels)
    assert (voc(root).mask(0) == labels).all()
    assert (voc(root, classes=NAMES).mask(0) == labels).all()


def test_vocs_own_mask_goes_before_that_of_sbd(root):
    write_label_map(mask(root, folder=MASKS[0]), np.full((48, 64), 5, np.uint8))
    assert (voc(root).mask(0) == 5).all()
    mask(root, folder=MASKS[0]).unlink()
    assert not (voc(root).mask(0) == 5).any()


def test_images_stand_in_the_order_of_the_list(root):
    listed(root).write_text("2007_000003\n2007_000001\r\n\n  2007_000002\n")
    assert voc(root).names == ["2007_000003", "2007_000001", "2007_000002"]
    assert [voc(root)[i].name for i in range(3)] == voc(root).names


def test_a_count_is_the_same_draw_every_time(root):
    some, every = voc(root, count=2), voc(root)
    assert len(some) == len(some.names) == len(set(some.names)) == 2
    assert voc(root, count=2).names == some.names
    assert set(some.names) < set(every.names)
    assert voc(root, count=3).names[:2] == some.names  # a larger count adds to a smaller one
    assert sorted(voc(root, count=4).names) == sorted(every.names)


def test_a_size_squares_image_and_mask(root):
    plain, square = voc(root)[1], voc(root, size=32)[1]
    assert square.image.shape == (32, 32, 3)
    assert square.mask.shape == (32, 32)
    assert set(np.unique(square.mask)) <= set(
        np.unique(plain.mask)
    )  # nearest: no label between two
    assert (square.tags == plain.tags).all()
    assert voc(root, size=32).image(1).shape == (32, 32, 3)
    assert voc(root, size=32).mask(1).shape == (32, 32)


@pytest.mark.parametrize("index", [-1, 4, 100])
def test_there_is_no_scene_outside(root, index):
    with pytest.raises(IndexError, match=f"scene {index} of 4"):
        voc(root)[index]


def test_neither_tags_nor_images_need_a_mask(root):
    before = [(voc(root).image(i), voc(root).tags(i), voc(root).fingerprint) for i in range(4)]
    for folder in MASKS:
        shutil.rmtree(root / HOME / folder)
    scenes = voc(root)
    for i, (image, tags, fingerprint) in enumerate(before):
        assert (scenes.image(i) == image).all()
        assert (scenes.tags(i) == tags).all()
        assert scenes.fingerprint == fingerprint
    with pytest.raises(
        ValueError,
        match=rf"{FIRST} has no mask: neither .*SegmentationClass.* nor .*SegmentationClassAug",
    ):
        scenes.mask(0)


def test_the_root_is_the_variables_where_none_is_given(root, monkeypatch):
    monkeypatch.setenv("AEFT_VOC_ROOT", str(root))
    assert Voc(VocSpec("val")).names == voc(root, "val").names


def test_an_annotation_without_objects_is_an_image_without_tags(root):
    annotation(root).write_text(voc_annotation([]))
    assert not voc(root).tags(0).any()


def test_a_difficult_object_is_tagged(root):
    annotation(root).write_text(voc_annotation(["sofa"]).replace("<difficult>0", "<difficult>1"))
    assert np.flatnonzero(voc(root).tags(0)).tolist() == [CLASSES.index("sofa")]


def test_a_part_of_an_object_is_no_tag(root):
    parts = "<part><name>head</name></part>"
    annotation(root).write_text(
        voc_annotation(["person"]).replace("</object>", f"{parts}</object>")
    )
    assert read_annotation(annotation(root)) == ({"person"}, (48, 64))


# --- fingerprint ----------------------------------------------------------------------------------


def rewrite_list(root: Path) -> None:
    listed(root).write_text("\n".join(read_list(root / HOME, "train_aug")[::-1]))


COUNTING = {
    "a photo of another size": lambda root: save_jpeg(photo(root), np.zeros((48, 64, 3), np.uint8)),
    "a photo is gone": lambda root: photo(root).unlink(),
    "an annotation": lambda root: annotation(root).write_text(voc_annotation(["sofa"])),
    "the order": rewrite_list,
    "a name less": lambda root: listed(root).write_text(f"{FIRST}\n"),
}
NOT_COUNTING = {
    "a mask": lambda root: write_label_map(mask(root), np.zeros((48, 64), np.uint8)),
    "a photo of another list": lambda root: photo(root, "2007_000006").unlink(),
    "an annotation of another list": lambda root: annotation(root, "2007_000006").write_text(
        "<annotation/>"
    ),
    "another list": lambda root: listed(root, "val").unlink(),
    "the time of a file": lambda root: os.utime(photo(root), (0, 0)),
    "blank lines": lambda root: listed(root).write_text(listed(root).read_text() + "\n\n"),
}


@pytest.mark.parametrize("change", COUNTING)
def test_the_fingerprint_changes_with(root, change):
    before = voc(root).fingerprint
    COUNTING[change](root)
    assert voc(root).fingerprint != before


@pytest.mark.parametrize("change", NOT_COUNTING)
def test_the_fingerprint_does_not_change_with(root, change):
    before = voc(root).fingerprint
    NOT_COUNTING[change](root)
    assert voc(root).fingerprint == before


def test_the_fingerprint_does_not_depend_on_the_place_but_on_the_draw(root, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    assert voc(tmp_path / "copy").fingerprint == voc(root).fingerprint
    assert (
        len({voc(root).fingerprint, voc(root, count=2).fingerprint, voc(root, "val").fingerprint})
        == 3
    )


# --- what is asked for wrongly --------------------------------------------------------------------


@pytest.mark.parametrize("split", ["", "test", "Train", "train2014"])
def test_an_unknown_split_is_refused(split):
    with pytest.raises(
        ValueError, match=f"split must be one of train, val, trainval, train_aug, got '{split}'"
    ):
        VocSpec(split)


@pytest.mark.parametrize(
    ("name", "value"),
    [("count", -1), ("count", 1.0), ("count", True), ("size", -32), ("size", 31), ("size", "64")],
)
def test_an_odd_count_or_size_is_refused(name, value):
    with pytest.raises(
        ValueError, match=rf"{name} must be a whole number, at least \d+, got {value!r}"
    ):
        VocSpec("val", **{name: value})


def test_a_count_beyond_the_list_is_refused(root):
    with pytest.raises(ValueError, match="5 scenes are asked for, the list has 4"):
        voc(root, count=5)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("cat", "unicorn"), "class 'unicorn' is none of VOC's; there are aeroplane, bicycle"),
        (("background",), "class 'background' is none of VOC's"),
        (
            ("cat", "dog", "cat"),
            r"classes must be different, and at least one, got \('cat', 'dog', 'cat'\)",
        ),
        ((), r"classes must be different, and at least one, got \(\)"),
    ],
)
def test_odd_classes_are_refused(classes, said):
    with pytest.raises(ValueError, match=said):
        VocSpec("val", classes=classes)


# --- what is missing or wrong ---------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_without_a_root_the_message_names_variable_and_doctor(tmp_path, split):
    remedy = "AEFT_VOC_ROOT must name the folder that holds VOCdevkit.*data check voc"
    with pytest.raises(ValueError, match=rf"no .*{split}\.txt: {remedy}"):
        voc(tmp_path / "nowhere", split)


def test_half_a_data_set_is_refused_where_it_is_read(root):
    shutil.rmtree(root / HOME / "JPEGImages")
    shutil.rmtree(root / HOME / "Annotations")
    scenes = voc(root)
    with pytest.raises(
        ValueError, match="not a readable image"
    ):  # what size a mask must have, its photo says
        scenes.mask(0)
    with pytest.raises(
        ValueError, match=rf"JPEGImages/{FIRST}\.jpg: not a readable image \(no such file\)$"
    ):
        scenes.image(0)
    with pytest.raises(
        ValueError, match=rf"Annotations/{FIRST}\.xml: not a readable annotation \(no such file\)$"
    ):
        scenes.tags(0)


def test_an_empty_list_is_refused(root):
    listed(root).write_text("\n\n")
    with pytest.raises(ValueError, match=r"train_aug\.txt: lists no image; fetch it again"):
        voc(root)


def test_a_name_that_stands_twice_is_refused(root):
    listed(root).write_text(f"2007_000002\n{FIRST}\n2007_000003\n{FIRST}\n")
    with pytest.raises(
        ValueError, match=rf"train_aug\.txt: {FIRST} stands 2 times; fetch it again"
    ):
        voc(root)


def test_a_list_of_paths_is_refused(root):
    listed(root).write_text(f"/JPEGImages/{FIRST}.jpg /SegmentationClassAug/{FIRST}.png\n")
    text = rf"2 entries like '/JPEGImages/{FIRST}\.jpg'; names without folder and suffix"
    with pytest.raises(ValueError, match=text):
        voc(root)


def test_a_list_may_begin_with_a_byte_order_mark(root):
    listed(root).write_text(f"{FIRST}\n", encoding="utf-8-sig")
    assert voc(root).names == [FIRST]


@pytest.mark.parametrize("content", ["", "<annotation><object>", "no XML", "\0\0\0"])
def test_broken_annotations_are_refused(root, content):
    annotation(root).write_text(content)
    with pytest.raises(
        ValueError, match=rf"{FIRST}\.xml: not a readable annotation .*; fetch it again"
    ):
        voc(root).tags(0)


@pytest.mark.parametrize("encoding", ["gb2312", "gbk", "big5", "euc-kr", "shift_jis", "klingon"])
def test_an_annotation_in_an_encoding_that_is_not_read_is_refused_by_name(root, encoding):
    head = f'<?xml version="1.0" encoding="{encoding}"?>'
    annotation(root).write_text(head + voc_annotation(["cat"]))
    with pytest.raises(ValueError, match=rf"{FIRST}\.xml: not a readable annotation .*encoding"):
        voc(root).tags(0)


def test_entities_are_refused_before_they_grow(root):
    rows = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    bomb = f'<!DOCTYPE x [<!ENTITY a0 "a">{rows}]><annotation>&a11;</annotation>'
    annotation(root).write_text(bomb)
    with pytest.raises(ValueError, match=rf"{FIRST}\.xml: .*\(a document type declaration\)"):
        voc(root).tags(0)


def test_a_nested_annotation_is_an_annotation(root):
    annotation(root).write_text("<a>" * 50_000 + "</a>" * 50_000)
    assert not voc(root).tags(0).any()


@pytest.mark.parametrize("side", ["wide", "-5", "1e3", "", "9" * 5000, "\u0664"])
def test_a_size_that_is_no_number_is_refused(root, side):
    annotation(root).write_text(voc_annotation(["cat"]).replace("64", side), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{FIRST}\.xml: its size .* is no number"):
        voc(root).tags(0)


@pytest.mark.parametrize(
    "name", ["trainaug.txt", "train-aug.txt", "Train_Aug.txt.txt", "train_aug"]
)
def test_a_list_of_nearly_the_right_name_is_named(root, name):
    listed(root).rename(listed(root).with_name(name))
    with pytest.raises(ValueError, match=rf"{name}: rename it to train_aug\.txt, which is missing"):
        voc(root)


@pytest.mark.parametrize("inside", [HOME, HOME.parent])
def test_a_root_inside_the_right_one_is_told_apart(root, inside):
    with pytest.raises(ValueError, match=rf"must name the folder that holds .*; that is {root};"):
        Voc(VocSpec("val"), root / inside)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"caf\xe9\n"])
def test_a_list_of_another_coding_is_refused(root, content):
    listed(root).write_bytes(content)
    with pytest.raises(ValueError, match=r"train_aug\.txt: not a readable list"):
        voc(root)


@pytest.mark.parametrize("name", ["a\0b", "a" * 300, "a\\b"])
def test_a_name_that_no_file_has_is_refused(root, name):
    listed(root).write_text(name)
    with pytest.raises(ValueError, match=r"1 entries like .*names without folder"):
        voc(root)


@pytest.mark.parametrize("name", ["unicorn", "Cat", ""])
def test_an_unknown_class_is_refused(root, name):
    annotation(root).write_text(voc_annotation(["cat", name]))
    with pytest.raises(ValueError, match=rf"{FIRST}\.xml: class '{name}' is none of VOC's 20"):
        voc(root).tags(0)


def test_other_images_can_be_read_all_the_same(root):
    annotation(root).unlink()
    photo(root).write_bytes(b"")
    scenes = voc(root)
    with pytest.raises(ValueError, match=FIRST):
        scenes[0]
    assert scenes[1].tags.any()


def test_a_mask_of_another_size_is_refused(root):
    write_label_map(mask(root), np.zeros((50, 64), np.uint8))
    with pytest.raises(
        ValueError, match=rf"{FIRST}: the mask is \(50, 64\), its image \(48, 64\); one of them"
    ):
        voc(root)[0]
    with pytest.raises(ValueError, match=r"the mask is \(50, 64\)"):  # squaring would hide it
        voc(root, size=32).mask(0)


def test_a_mask_of_colours_is_refused(root):
    colour_map(mask(root))
    with pytest.raises(ValueError, match=rf"{FIRST}\.png: a label map must have one 8-bit channel"):
        voc(root).mask(0)


def test_a_label_beyond_vocs_classes_is_refused(root):
    write_label_map(mask(root), np.full((48, 64), 21, np.uint8))
    with pytest.raises(ValueError, match=rf"{FIRST}\.png: label 21 is outside 0\.\.20"):
        voc(root).mask(0)


@pytest.mark.parametrize("part", [0, 0.01, 0.6, 0.97])
def test_a_photo_that_is_empty_or_cut_off_is_refused(root, part):
    cut(photo(root), part)
    with pytest.raises(ValueError, match=rf"{FIRST}\.jpg: not a readable image .*; fetch it again"):
        voc(root).image(0)


def test_a_photo_of_16_bits_is_refused(root):
    recode(photo(root), "16 bits")
    with pytest.raises(
        ValueError, match=rf"{FIRST}\.jpg: 16 bits or more a channel \(mode I;16\); save it with 8"
    ):
        voc(root).image(0)


@pytest.mark.parametrize(("kind", "tolerance"), [("CMYK", 12), ("palette", 40), ("PNG", 0)])
def test_photos_of_other_kinds_become_rgb(root, kind, tolerance):
    before = voc(root).image(0).astype(int)
    recode(photo(root), kind)
    after = voc(root).image(0)
    assert (after.dtype, after.shape) == (np.uint8, (48, 64, 3))
    assert np.median(np.abs(after - before)) <= tolerance
    assert voc(root)[0].mask.shape == (48, 64)


def test_a_grey_photo_has_three_equal_channels(root):
    recode(photo(root), "L")
    image = voc(root).image(0)
    assert image.shape == (48, 64, 3)
    assert (image == image[..., :1]).all()


def test_a_photo_that_its_exif_tag_lays_on_the_side_does_not_fit_its_mask(root):
    turn(photo(root), 6)
    assert voc(root).image(0).shape == (64, 48, 3)
    with pytest.raises(ValueError, match=rf"{FIRST}: the mask is \(48, 64\), its image \(64, 48\)"):
        voc(root)[0]


# --- the real data --------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL, reason="AEFT_VOC_ROOT is not set")
class TestRealData:
    """Holds for the published data, and for any part of it in its own layout."""

    def splits(self) -> list[str]:
        return [
            split for split in ("train", "train_aug", "val") if listed(Path(REAL), split).is_file()
        ]

    def test_there_are_images_in_no_more_than_the_published_number(self):
        assert self.splits()
        for split in self.splits():
            assert 0 < len(Voc(VocSpec(split))) <= SPLITS[split]

    def test_no_image_is_both_trained_and_validated_on(self):
        held_out = set(Voc(VocSpec("val")).names)
        assert not held_out & {
            name for split in self.splits() if split != "val" for name in Voc(VocSpec(split)).names
        }

    def test_every_class_of_a_mask_is_tagged(self):
        """What is segmented is annotated; the other way round not, since masks of SBD and VOC leave
        some objects out.
        """
        for split in self.splits():
            scenes = Voc(VocSpec(split))
            for i in range(0, len(scenes), max(1, len(scenes) // 25)):
                image, mask, tags, name = scenes[i]
                labels = set(np.unique(mask).tolist()) - {0, VOID}
                assert image.shape == (*mask.shape, 3), name
                assert labels <= set((np.flatnonzero(tags) + 1).tolist()), name

    def test_the_six_animals_can_be_chosen(self):
        scenes = Voc(VocSpec("val", size=64, classes=ANIMALS))
        assert sum(scenes.tags(i) for i in range(len(scenes))).sum() > 0
        for i in range(0, len(scenes), max(1, len(scenes) // 40)):
            assert set(np.unique(scenes.mask(i)).tolist()) <= {*range(7), VOID}

    def test_a_mask_is_drawn_in_vocs_palette(self):
        file = next((Path(REAL) / HOME / MASKS[0]).glob("*.png"))
        with Image.open(file) as picture:
            assert picture.mode == "P"
            assert picture.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
