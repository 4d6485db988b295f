"""Own photos: the table of tags as people write it, masks or none, all that can be wrong."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from photo_sets import colour_map, cut, make_folder, recode, save_jpeg, turn, write_table

from aeft_lib.data.folder import MAX_CLASSES, Folder, FolderSpec, read_classes, read_tags
from aeft_lib.data.prepare.doctor import check
from aeft_lib.maps.labels import VOID, write_label_map

NAMES = ("cup", "key", "leaf")
FIRST = "photo_001.jpg"


@pytest.fixture
def root(tmp_path):
    make_folder(tmp_path, {"train": 4, "val": 3}, NAMES)
    return tmp_path


def folder(root: Path, split: str = "train", **rest) -> Folder:
    return Folder(FolderSpec(split, **rest), root)


def table(root: Path, text: str, encoding: str = "utf-8") -> Path:
    """A table with these lines below the usual head."""
    (root / "tags.csv").write_bytes(f"image,split,tags\n{text}".encode(encoding))
    return root / "tags.csv"


# --- what is read ---------------------------------------------------------------------------------


def test_scenes_have_the_masks_and_tags_that_were_drawn(tmp_path):
    drawn = make_folder(tmp_path, {"train": 4, "val": 3}, NAMES)
    for split, number in (("train", 4), ("val", 3)):
        scenes = folder(tmp_path, split)
        assert scenes.classes == NAMES
        assert len(scenes) == number
        for scene in map(scenes.__getitem__, range(number)):
            assert (scene.image.dtype, scene.image.shape) == (np.uint8, (48, 64, 3))
            assert (scene.mask.dtype, scene.tags.dtype, scene.tags.shape) == (np.uint8, bool, (3,))
            assert (scene.mask == drawn[scene.name]).all()
            assert set(np.flatnonzero(scene.tags) + 1) == set(np.unique(scene.mask)) - {0}


def test_tags_are_read_as_people_write_them(root):
    table(
        root,
        f'{FIRST},train,"cup; leaf"\nphoto_002.jpg , train, ;key;\n\n'
        "photo_003.jpg,train,\nphoto_004.jpg,train, \n",
    )
    scenes = folder(root)
    assert scenes.names == [f"photo_00{i}.jpg" for i in (1, 2, 3, 4)]
    assert [scenes.tags(i).tolist() for i in range(4)] == [
        [True, False, True],
        [False, True, False],
        [False] * 3,
        [False] * 3,
    ]


def test_other_columns_and_their_order_do_not_matter(root):
    (root / "tags.csv").write_text(f"licence,tags,image,split\nCC0,key,{FIRST},train\n")
    assert folder(root).tags(0).tolist() == [False, True, False]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_does_not_matter(root, encoding):
    (root / "classes.txt").write_text("Löffel\nkey\n", encoding=encoding)
    table(root, f"{FIRST},train,Löffel\n", encoding)
    assert folder(root).classes == ("Löffel", "key")
    assert folder(root).tags(0).tolist() == [True, False]


def test_windows_line_ends_do_not_matter(root):
    before = folder(root)
    for file in (root / "classes.txt", root / "tags.csv"):
        file.write_bytes(file.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    assert folder(root).names == before.names
    assert folder(root).fingerprint == before.fingerprint


def test_any_photo_that_pillow_reads_will_do_and_in_subfolders_too(tmp_path):
    drawn = make_folder(tmp_path, {"train": ["a/1.jpg", "b/1.jpg"]}, NAMES)
    save_jpeg(tmp_path / "images" / "c.bmp", np.full((5, 6, 3), 7, np.uint8), format="BMP")
    with (tmp_path / "tags.csv").open("a") as file:
        file.write("c.bmp,train,\n")
    scenes = folder(tmp_path)
    assert (scenes.image(2) == 7).all()
    for i, name in enumerate(("a/1.jpg", "b/1.jpg")):
        assert (scenes.mask(i) == drawn[name]).all()
    assert (scenes.mask(0) != scenes.mask(1)).any()


def test_a_count_is_the_same_draw_every_time(root):
    some = folder(root, count=2)
    assert folder(root, count=2).names == some.names
    assert folder(root, count=3).names[:2] == some.names
    assert sorted(folder(root, count=4).names) == folder(root).names


def test_a_size_squares_image_and_mask(root):
    square = folder(root, size=32)[1]
    assert (square.image.shape, square.mask.shape) == ((32, 32, 3), (32, 32))
    assert set(np.unique(square.mask)) <= set(np.unique(folder(root).mask(1)))


def test_the_root_is_the_variables_where_none_is_given(root, monkeypatch):
    monkeypatch.setenv("AEFT_PHOTOS_ROOT", str(root))
    assert Folder(FolderSpec("val")).names == folder(root, "val").names


def test_neither_tags_nor_images_need_a_mask(root):
    before = [(folder(root).image(i), folder(root).tags(i)) for i in range(4)]
    fingerprint = folder(root).fingerprint
    shutil.rmtree(root / "masks")
    scenes = folder(root)
    for i, (image, tags) in enumerate(before):
        assert (scenes.image(i) == image).all()
        assert (scenes.tags(i) == tags).all()
    assert scenes.fingerprint == fingerprint
    text = r"photo_001\.png: without masks there are seeds .* but no mIoU"
    with pytest.raises(ValueError, match=f"{FIRST} has no mask .*{text}"):
        scenes.mask(0)


# --- fingerprint ----------------------------------------------------------------------------------


COUNTING = {
    "tags": lambda root: table(
        root, "".join(f"photo_00{i}.jpg,train,leaf;key\n" for i in range(1, 5))
    ),
    "a line less": lambda root: table(root, f"{FIRST},train,cup\n"),
    "classes": lambda root: (root / "classes.txt").write_text("cup\nleaf\nkey\n"),
    "a class more": lambda root: (root / "classes.txt").write_text("cup\nkey\nleaf\nspoon\n"),
    "a photo of another size": lambda root: save_jpeg(
        root / "images" / FIRST, np.zeros((48, 64, 3), np.uint8)
    ),
    "a photo is gone": lambda root: (root / "images" / FIRST).unlink(),
}
NOT_COUNTING = {
    "a mask": lambda root: (root / "masks" / "photo_001.png").unlink(),
    "a photo of another split": lambda root: (root / "images" / "photo_006.jpg").unlink(),
    "a photo that is not listed": lambda root: save_jpeg(
        root / "images" / "new.jpg", np.zeros((48, 64, 3), np.uint8)
    ),
    "the time of a file": lambda root: os.utime(root / "images" / FIRST, (0, 0)),
    "the order of tags": lambda root: (root / "tags.csv").write_text(
        (root / "tags.csv").read_text().replace("key;leaf", "leaf; key")
    ),
}


@pytest.mark.parametrize("change", COUNTING)
def test_the_fingerprint_changes_with(root, change):
    before = folder(root).fingerprint
    COUNTING[change](root)
    assert folder(root).fingerprint != before


@pytest.mark.parametrize("change", NOT_COUNTING)
def test_the_fingerprint_does_not_change_with(root, change):
    text, before = (root / "tags.csv").read_text(), folder(root).fingerprint
    assert "key;leaf" in text
    NOT_COUNTING[change](root)
    assert folder(root).fingerprint == before


# --- what is asked for wrongly --------------------------------------------------------------------


def test_an_unknown_split_is_refused(root):
    with pytest.raises(ValueError, match=r"tags\.csv has no split 'test'; there are train, val"):
        folder(root, "test")
    with pytest.raises(ValueError, match=r"split must name one in tags\.csv, got an empty one"):
        FolderSpec("")


def test_a_table_without_lines_has_no_split(root):
    table(root, "")
    with pytest.raises(ValueError, match=r"tags\.csv has no split 'train'; there are none"):
        folder(root)


@pytest.mark.parametrize(
    ("name", "value"), [("count", -1), ("count", "3"), ("size", 31), ("size", True)]
)
def test_an_odd_count_or_size_is_refused(name, value):
    with pytest.raises(
        ValueError, match=rf"{name} must be a whole number, at least \d+, got {value!r}"
    ):
        FolderSpec("train", **{name: value})


def test_a_count_beyond_the_split_is_refused(root):
    with pytest.raises(ValueError, match="4 scenes are asked for, the list has 3"):
        folder(root, "val", count=4)


# --- classes --------------------------------------------------------------------------------------


def test_without_a_root_the_message_says_what_to_write(tmp_path):
    with pytest.raises(ValueError, match=r"no .*classes\.txt: write one class a line"):
        folder(tmp_path / "nowhere")
    (tmp_path / "classes.txt").write_text("cup\n")
    with pytest.raises(ValueError, match=r"no .*tags\.csv: write the columns image, split, tags"):
        folder(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "0 names"),
        (" \n\n", "0 names"),
        ("cup\nkey\ncup\n", "'cup' twice"),
        ("cup;key\n", "'cup;key' twice, or with a ';'"),
        ("\n".join(map(str, range(MAX_CLASSES + 1))), "255 names"),
    ],
    ids=["empty", "blank", "twice", "semicolon", "too many"],
)
def test_odd_class_lists_are_refused(tmp_path, text, problem):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(
        ValueError,
        match=rf"classes\.txt: 1 to 254 different classes without ';' are needed, found {problem}",
    ):
        read_classes(tmp_path / "classes.txt")


def test_as_many_classes_as_there_are_labels(tmp_path):
    (tmp_path / "classes.txt").write_text("\n".join(map(str, range(MAX_CLASSES))))
    assert len(read_classes(tmp_path / "classes.txt")) == 254


def test_files_of_another_coding_are_refused(root):
    (root / "classes.txt").write_bytes("Löffel".encode("cp1252"))
    with pytest.raises(ValueError, match=r"classes\.txt: not a readable list .*; save it as UTF-8"):
        folder(root)
    (root / "classes.txt").write_text("Löffel", encoding="utf-8")
    table(root, f"{FIRST},train,Löffel\n", "cp1252")
    with pytest.raises(ValueError, match=r"tags\.csv: not a readable table .*; save it as UTF-8"):
        folder(root)


# --- the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("a.jpg,train,cup;spoon\n", "line 2: class 'spoon' is none of cup, key, leaf"),
        ("a.jpg,train,Cup\n", "line 2: class 'Cup' is none of cup, key, leaf"),
        ("a.jpg,train,cup\nb.jpg,val,key\na.jpg,val,key\n", "line 4: image 'a.jpg' stands twice"),
        ("a.jpg,train,cup\n\n\na.jpg,train,cup\n", "line 5: image 'a.jpg' stands twice"),
        ("a.jpg,train,cup\n./a.jpg,val,cup\n", "line 3: image './a.jpg' has the name of 'a.jpg'"),
        ("a.jpg,train,cup\na.png,val,cup\n", "line 3: image 'a.png' has the name of 'a.jpg'"),
        ("../a.jpg,train,cup\n", r"line 2: image '\.\./a\.jpg' is no path below images/"),
        (
            "b/../../a.jpg,train,cup\n",
            r"line 2: image 'b/\.\./\.\./a\.jpg' is no path below images/",
        ),
        ("/etc/a.jpg,train,cup\n", "line 2: image '/etc/a.jpg' is no path below images/"),
        (",train,cup\n", "line 2: image '' is no path below images/"),
        (".,train,cup\n", r"line 2: image '\.' is no path below images/"),
        ("a.jpg,train\n", "line 2: more or fewer fields than columns; tags stand apart by ';'"),
        (
            "a.jpg,train,cup,key\n",
            "line 2: more or fewer fields than columns; tags stand apart by ';'",
        ),
    ],
)
def test_odd_lines_are_refused_by_number(root, lines, said):
    file = table(root, lines)
    with pytest.raises(ValueError, match=rf"tags\.csv, {said}"):
        read_tags(file, NAMES)


@pytest.mark.parametrize("missing", ["image", "split", "tags"])
@pytest.mark.parametrize("rows", [0, 1])
def test_a_missing_column_is_refused_with_rows_and_without(root, missing, rows):
    columns = [name for name in ("image", "split", "tags") if name != missing]
    file = write_table(root, [{"image": FIRST, "split": "train", "tags": "cup"}][:rows], columns)
    text = f"{missing} is missing; found {', '.join(columns)}"
    with pytest.raises(ValueError, match=f"columns image, split, tags are needed, {text}"):
        read_tags(file, NAMES)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_table_of_another_separator_is_read(root, separator):
    """Spreadsheets write ";" where a comma is a decimal's point, and tabs beside UTF-16."""
    line = separator.join([FIRST, "train", '"cup;leaf"'])
    (root / "tags.csv").write_text(f"{separator.join(('image', 'split', 'tags'))}\n{line}\n")
    assert folder(root).tags(0).tolist() == [True, False, True]


def test_a_tag_too_many_in_a_table_of_semicolons_is_told_to_be_quoted(root):
    (root / "tags.csv").write_text(f"image;split;tags\n{FIRST};train;cup;leaf\n")
    with pytest.raises(ValueError, match=r"line 2: more or fewer .* apart by ';', in quotes"):
        folder(root)


@pytest.mark.parametrize("lines", [",,\n", " , \n", "\n \n", '"",""\n', ",,,,\n"])
def test_rows_without_any_entry_are_left_out(root, lines):
    """Spreadsheets leave them below a table; the lines after them keep their numbers."""
    table(root, f"{lines}{FIRST},train,cup,,\n{lines}")
    assert folder(root).names == [FIRST]
    table(root, f"{lines}{FIRST},train,spoon\n")
    with pytest.raises(ValueError, match=rf"line {2 + lines.count(chr(10))}: class 'spoon'"):
        folder(root)


def test_blank_lines_above_the_columns_do_not_matter(root):
    (root / "tags.csv").write_text(f"\n\nimage,split,tags\n{FIRST},train,cup\n")
    assert folder(root).names == [FIRST]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be-sig"])
def test_utf_16_with_its_mark_is_read(root, encoding):
    def write(name: str, text: str) -> None:
        mark = "\ufeff" if encoding.endswith("sig") else ""
        (root / name).write_bytes((mark + text).encode(encoding.removesuffix("-sig")))

    write("classes.txt", "Löffel\nkey\n")
    write("tags.csv", f"image\tsplit\ttags\n{FIRST}\ttrain\tLöffel\n")
    assert folder(root).tags(0).tolist() == [True, False]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"{FIRST},train,cup\u2028photo_002.jpg,train,key\n".encode(), "line 2 holds U\\+2028"),
        (f"{FIRST},train,cup\n\x85x,train,\n".encode(), "line 3 holds U\\+0085"),
        (f"{FIRST},train,cup\r\na\x0b,train,\r\n".encode(), "line 3 holds U\\+000B"),
        (f"{FIRST},train,cup\n".encode("utf-16-le"), "line 2 holds U\\+0000"),
        (f"{FIRST},train,cup\nü.jpg,train,\n".encode("cp1252"), "line 3 is not in utf-8"),
    ],
    ids=["U+2028", "U+0085", "vertical tab", "UTF-16 without mark", "cp1252"],
)
def test_lines_that_end_oddly_are_refused_by_number(root, content, said):
    (root / "tags.csv").write_bytes(b"image,split,tags\n" + content)
    with pytest.raises(ValueError, match=rf"tags\.csv: not a readable table \({said}.*UTF-8"):
        folder(root)


def test_a_column_that_stands_twice_is_refused(root):
    (root / "tags.csv").write_text(f"image,split,tags,tags\n{FIRST},train,cup,key\n")
    with pytest.raises(ValueError, match=r"tags\.csv: the columns .* tags stands twice"):
        folder(root)


def test_an_empty_table_is_refused(root):
    (root / "tags.csv").write_text("")
    with pytest.raises(
        ValueError, match="the columns image, split, tags are needed, image is missing; found none"
    ):
        folder(root)


# --- photos and masks -----------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0, 0.01, 0.6])
def test_a_photo_that_is_empty_or_cut_off_is_refused(root, part):
    cut(root / "images" / FIRST, part)
    with pytest.raises(
        ValueError, match=r"photo_001\.jpg: not a readable image .*; fetch it again"
    ):
        folder(root).image(0)


def test_a_photo_that_is_missing_is_refused(root):
    (root / "images" / FIRST).unlink()
    with pytest.raises(ValueError, match=r"photo_001\.jpg: not a readable image"):
        folder(root).image(0)


@pytest.mark.parametrize("kind", ["CMYK", "L", "palette", "PNG"])
def test_photos_of_other_kinds_become_rgb(root, kind):
    recode(root / "images" / FIRST, kind)
    assert folder(root)[0].image.shape == (48, 64, 3)


def test_a_photo_of_16_bits_is_refused(root):
    recode(root / "images" / FIRST, "16 bits")
    with pytest.raises(ValueError, match=r"photo_001\.jpg: 16 bits or more a channel"):
        folder(root).image(0)


def test_a_phones_photo_is_upright_and_its_mask_must_be_too(root):
    turn(root / "images" / FIRST)
    assert folder(root).image(0).shape == (64, 48, 3)
    with pytest.raises(
        ValueError, match=r"photo_001\.jpg: the mask is \(48, 64\), its image \(64, 48\)"
    ):
        folder(root)[0]
    write_label_map(root / "masks" / "photo_001.png", np.ones((64, 48), np.uint8))
    assert folder(root)[0].mask.shape == (64, 48)


def test_odd_masks_are_refused(root):
    file = root / "masks" / "photo_001.png"
    height, width = folder(root).image(0).shape[:2]
    strange = np.zeros((height, width), np.uint8)
    strange[0, :2] = 3, VOID
    write_label_map(file, strange)
    assert folder(root).mask(0).tolist() == strange.tolist()
    write_label_map(file, np.full((height, width), VOID, np.uint8))
    with pytest.raises(ValueError, match=r"photo_001\.png: every pixel is void \(255\), so none"):
        folder(root).mask(0)
    write_label_map(file, np.array([[0, 4]], np.uint8))
    with pytest.raises(ValueError, match=r"photo_001\.png: label 4 is outside 0\.\.3"):
        folder(root).mask(0)
    colour_map(file)
    with pytest.raises(
        ValueError, match=r"photo_001\.png: a label map must have one 8-bit channel"
    ):
        folder(root).mask(0)


def test_columns_in_capitals_and_accents_composed_otherwise_are_read(root):
    (root / "classes.txt").write_text("tasse\nta\u0308sse\n", encoding="utf-8")
    (root / "tags.csv").write_text(
        "Image, Split ,TAGS\nphoto_001.jpg,train,t\u00e4sse\n", encoding="utf-8"
    )
    assert folder(root).tags(0).tolist() == [False, True]


# --- accents --------------------------------------------------------------------------------------

COMPOSED, DECOMPOSED = "h\u00e4user/\u00fc.jpg", "ha\u0308user/u\u0308.jpg"


@pytest.mark.parametrize("listed", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("stored", [COMPOSED, DECOMPOSED])
def test_files_are_found_whatever_the_form_of_their_accents(tmp_path, listed, stored):
    """macOS stores them decomposed, and a spreadsheet composes them."""
    drawn = make_folder(tmp_path, {"train": [stored]}, NAMES)
    table(tmp_path, f"{listed},train,cup\n")
    scenes = folder(tmp_path)
    assert scenes.names == [COMPOSED]
    assert (scenes.mask(0) == drawn[stored]).all()
    assert scenes.unmasked == ()
    findings = check(str(tmp_path))
    assert "no image of the split 'val'" in findings.text()
    assert len(findings.problems) == 1
    assert "train: 1 images, 1 with a mask" in findings.lines


@pytest.mark.parametrize("masks", [False, True])
def test_two_files_of_one_name_are_reported(tmp_path, masks):
    make_folder(tmp_path, {"train": [COMPOSED, DECOMPOSED], "val": 1}, NAMES, masks=masks)
    if len(list((tmp_path / "images").iterdir())) < 3:
        pytest.skip("this file system tells no form from another")
    table(tmp_path, f"{COMPOSED},train,cup\nphoto_003.jpg,val,\n")
    said = r"u\u0308.jpg' differ in the form of their accents alone (NFC, NFD): remove or rename"
    with pytest.raises(ValueError, match=re.escape(said)):
        folder(tmp_path)
    found = [problem for problem in check(str(tmp_path)).problems if "accents" in problem]
    assert len(found) == 1 + masks
