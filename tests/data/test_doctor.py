"""The data doctor: each kind of damage is one line that names its file; none hides another."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from photo_sets import (
    categories,
    coco_box,
    coco_image,
    colour_map,
    cut,
    make_coco,
    make_folder,
    make_voc,
    recode,
    save_jpeg,
    turn,
    voc_annotation,
    write_instances,
)
from PIL import Image

from aeft_lib.data.prepare import doctor
from aeft_lib.data.prepare.doctor import Findings, check
from aeft_lib.data.voc import HOME, MASKS
from aeft_lib.maps.labels import write_label_map

FIRST, SECOND = "2007_000001", "2007_000002"
COCO_FIRST = "COCO_train2014_000000000001"
SIZE = (48, 64)


@pytest.fixture
def voc(tmp_path):
    make_voc(
        tmp_path,
        {
            "train": [FIRST, SECOND],
            "val": 2,
            "trainval": [FIRST, SECOND, "2007_000003"],
            "train_aug": [FIRST, SECOND, "2007_000009"],
        },
    )
    return tmp_path


@pytest.fixture
def coco(tmp_path):
    make_coco(tmp_path, {"train2014": 3, "val2014": 2})
    return tmp_path


@pytest.fixture
def photos(tmp_path):
    make_folder(tmp_path, {"train": 3, "val": 2})
    return tmp_path


def problem(findings: Findings) -> str:
    """The only problem there is."""
    assert len(findings.problems) == 1, findings.problems
    assert not findings.ok
    return findings.problems[0]


def jpeg(root: Path, name: str = FIRST) -> Path:
    return root / HOME / "JPEGImages" / f"{name}.jpg"


def xml(root: Path, name: str = FIRST) -> Path:
    return root / HOME / "Annotations" / f"{name}.xml"


def png(root: Path, name: str = FIRST) -> Path:
    return root / HOME / MASKS[0] / f"{name}.png"


def names(root: Path, split: str) -> Path:
    return root / HOME / "ImageSets" / "Segmentation" / f"{split}.txt"


# --- what is asked for ----------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["", "imagenet", "VOC", "no/such/folder"])
def test_there_is_no_check_of_anything_else(what):
    known = "voc, of coco, and of an existing folder with photos of your own"
    with pytest.raises(ValueError, match=f"check of {known}, got '{what}'"):
        check(what)


@pytest.mark.parametrize("what", ["voc", "coco"])
def test_roots_come_from_the_variables(tmp_path, monkeypatch, what):
    monkeypatch.setenv(f"AEFT_{what.upper()}_ROOT", str(tmp_path / "elsewhere"))
    findings = check(what)
    assert f"AEFT_{what.upper()}_ROOT must name the folder" in problem(findings)
    assert str(tmp_path / "elsewhere") in findings.text()


def test_a_folder_may_stand_in_the_home_folder(photos, monkeypatch):
    monkeypatch.setenv("HOME", str(photos.parent))
    assert check(f"~/{photos.name}").ok


def test_the_text_names_the_first_problems_and_counts_the_rest():
    assert Findings(["a line"]).text() == "a line\nnothing is wrong"
    findings = Findings(["a line"], [f"file {i}" for i in range(23)], ["an archive"])
    lines = findings.text().splitlines()
    assert lines[:2] == ["a line", "wrong: file 0"]
    assert lines[20:] == ["wrong: file 19", "wrong: and 3 more", "to get: an archive"]
    findings.problems = findings.problems[:20]
    assert "more" not in findings.text()


# --- VOC ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
def test_voc_as_drawn_is_well(voc, deep):
    findings = check("voc", voc, deep=deep)
    assert findings.ok, findings.problems
    assert findings.text().startswith(
        f"VOC 2012 in {voc}\ntrain: 2 images of 1464 in the published list, 2 with a mask\n"
    )
    assert "\nval: 2 images of 1449 in the published list, 2 with a mask\n" in findings.text()
    assert (
        "\ntrain_aug: 3 images of 10582 in the published list, 3 with a mask\n" in findings.text()
    )
    assert "  images a class: cat 1, dog 1, person 1" in findings.lines  # cat, then dog and person
    assert "nothing is wrong" in findings.text()


def test_a_whole_list_is_all_of_it(voc, monkeypatch):
    monkeypatch.setattr(
        "aeft_lib.data.voc.SPLITS", {"train": 2, "val": 2, "trainval": 3, "train_aug": 3}
    )
    findings = check("voc", voc)
    assert "train: 2 images (all), 2 with a mask" in findings.lines
    assert not findings.advice


def test_a_part_of_voc_is_well_and_the_rest_has_an_address(voc):
    names(voc, "train_aug").unlink()
    findings = check("voc", voc)
    assert findings.ok
    assert "train_aug: nothing listed" in findings.lines
    first, second = findings.advice
    for part in (
        "VOCtrainval_11-May-2012.tar",
        "PASCAL VOC site",
        "2.0 GB",
        "6cd6e144f989b92b3379bac3b3de84fd",
        f"unpack it in {voc}",
    ):
        assert part in first
    for part in (
        "benchmark.tgz",
        "1.4 GB",
        "82b4d87ceb2ed10f6038a1cba92111cb",
        "`aeft data fetch voc`",
    ):
        assert part in second


def test_no_mask_is_needed(voc):
    for folder in MASKS:
        shutil.rmtree(voc / HOME / folder)
    findings = check("voc", voc, deep=True)
    assert findings.ok
    assert "train: 2 images of 1464 in the published list, 0 with a mask" in findings.lines
    assert "benchmark.tgz" in findings.text()


def test_without_a_root_there_is_one_problem_and_both_addresses(tmp_path):
    findings = check("voc", tmp_path / "nowhere")
    assert problem(findings).endswith(
        "no such folder; AEFT_VOC_ROOT must name the folder that holds VOCdevkit/VOC2012"
    )
    assert len(findings.advice) == 2


def test_half_of_voc_is_a_problem_a_folder_and_not_one_an_image(voc):
    shutil.rmtree(voc / HOME / "JPEGImages")
    assert problem(check("voc", voc)) == f"{voc / HOME / 'JPEGImages'}: no such folder"
    shutil.rmtree(voc / HOME / "Annotations")
    assert check("voc", voc).problems == [
        f"{voc / HOME / part}: no such folder" for part in ("JPEGImages", "Annotations")
    ]
    shutil.rmtree(voc / HOME / "ImageSets")
    assert (
        f"{voc / HOME / 'ImageSets' / 'Segmentation'}: no list of images"
        in check("voc", voc).problems
    )


VOC_DAMAGE = {
    "photo missing": (lambda r: jpeg(r).unlink(), r"JPEGImages/{FIRST}.jpg: missing"),
    "photo empty": (lambda r: jpeg(r).write_bytes(b""), "{FIRST}.jpg: empty (0 bytes)"),
    "photo no picture": (
        lambda r: jpeg(r).write_text("<html>404</html>"),
        "{FIRST}.jpg: not a readable image (of no known kind)",
    ),
    "photo of 16 bits": (
        lambda r: recode(jpeg(r), "16 bits"),
        "{FIRST}.jpg: 16 bits or more a channel (mode I;16); save it with 8",
    ),
    "annotation missing": (lambda r: xml(r).unlink(), "Annotations/{FIRST}.xml: missing"),
    "annotation broken": (
        lambda r: xml(r).write_text("<annotation>"),
        "{FIRST}.xml: not a readable annotation",
    ),
    "annotation empty": (lambda r: xml(r).write_text(""), "{FIRST}.xml: not a readable annotation"),
    "unknown class": (
        lambda r: xml(r).write_text(voc_annotation(["unicorn"])),
        "{FIRST}.xml: class 'unicorn' is none of VOC's",
    ),
    "annotation of another size": (
        lambda r: xml(r).write_text(voc_annotation(["cat"], (60, 64))),
        "{FIRST}.xml: says 64x60 pixels, the photo has 64x48",
    ),
    "annotation of no size": (
        lambda r: xml(r).write_text(voc_annotation(["cat"]).replace("64", "wide")),
        "{FIRST}.xml: its size ['48', 'wide'] is no number",
    ),
    "mask of another size": (
        lambda r: write_label_map(png(r), np.zeros((50, 64), np.uint8)),
        "{FIRST}.png: has 64x50 pixels, the photo has 64x48",
    ),
    "mask of colours": (
        lambda r: colour_map(png(r)),
        "{FIRST}.png: a mask must be a PNG with one 8-bit channel of labels, this is PNG, mode RGB",
    ),
    "mask as JPEG": (lambda r: save_jpeg(png(r), np.zeros(SIZE, np.uint8)), "this is JPEG, mode L"),
    "mask empty": (lambda r: png(r).write_bytes(b""), "{FIRST}.png: empty (0 bytes)"),
    "mask no picture": (lambda r: png(r).write_text("none"), "{FIRST}.png: not a readable mask"),
    "second mask of another size": (
        lambda r: write_label_map(
            r / HOME / MASKS[1] / f"{FIRST}.png", np.zeros((48, 65), np.uint8)
        ),
        "SegmentationClassAug/{FIRST}.png: has 65x48 pixels",
    ),
    "name twice": (
        lambda r: names(r, "train").write_text(f"{FIRST}\n{SECOND}\n{FIRST}\n"),
        "train.txt: {FIRST} stands 2 times",
    ),
    "list empty": (lambda r: names(r, "trainval").write_text(""), "trainval.txt: lists no image"),
    "list of paths": (
        lambda r: names(r, "train").write_text(
            f"/JPEGImages/{FIRST}.jpg /SegmentationClass/{FIRST}.png\n{SECOND}"
        ),
        "train.txt: 2 entries like '/JPEGImages/{FIRST}.jpg'; names without folder and suffix",
    ),
    "leak from train": (
        lambda r: names(r, "train").write_text(f"{FIRST}\n2007_000003\n"),
        "2007_000003: stands in train, and in val too; results on val would not count",
    ),
    "leak from train_aug": (
        lambda r: names(r, "train_aug").write_text("2007_000004\n"),
        "2007_000004: stands in train_aug, and in val",
    ),
}


@pytest.mark.parametrize("damage", VOC_DAMAGE)
@pytest.mark.parametrize("deep", [False, True])
def test_damage_of_voc_is_one_problem_that_names_the_file(voc, damage, deep):
    harm, said = VOC_DAMAGE[damage]
    harm(voc)
    findings = check("voc", voc, deep=deep)
    assert said.replace("{FIRST}", FIRST) in problem(findings)
    assert "VOCtrainval" in findings.text()


PIXEL_DAMAGE = {
    "photo cut off": (lambda r: cut(jpeg(r), 0.6), f"{FIRST}.jpg: not a readable image"),
    "mask cut off": (lambda r: cut(png(r), 0.97), f"{FIRST}.png: not a readable label map"),
    "label beyond": (
        lambda r: write_label_map(png(r), np.full(SIZE, 21, np.uint8)),
        f"{FIRST}.png: label 21 is outside 0..20",
    ),
}


@pytest.mark.parametrize("damage", PIXEL_DAMAGE)
def test_damage_of_pixels_is_found_by_decoding(voc, monkeypatch, damage):
    harm, said = PIXEL_DAMAGE[damage]
    harm(voc)
    monkeypatch.setattr(doctor, "SAMPLE", 0)
    assert check("voc", voc).ok
    assert any(said in text for text in check("voc", voc, deep=True).problems)


def test_a_photo_on_its_side_no_longer_fits_annotation_and_mask(voc):
    turn(jpeg(voc))
    findings = check("voc", voc)
    said = "64x48 pixels, the photo has 48x64; an EXIF tag turns the photo: save it without"
    assert findings.problems == [f"{xml(voc)}: says {said}", f"{png(voc)}: has {said}"]
    png(voc).unlink()  # without a mask the annotation tells
    assert said in problem(check("voc", voc))


def test_a_photo_on_its_head_is_worth_a_look(voc):
    turn(jpeg(voc), 3)
    findings = check("voc", voc)
    assert findings.ok
    assert "  turned by an EXIF tag: 1; look whether their masks are turned too" in findings.lines


def test_kinds_of_photos_that_readers_convert_are_counted(voc):
    recode(jpeg(voc), "CMYK")
    recode(jpeg(voc, SECOND), "L")
    recode(jpeg(voc, "2007_000009"), "palette")
    recode(jpeg(voc, "2007_000003"), "PNG")
    findings = check("voc", voc, deep=True)
    assert findings.ok, findings.problems
    assert [line for line in findings.lines if "RGB" in line] == [
        "  read as RGB: 1 CMYK, 1 grey"
    ] * 2 + ["  read as RGB: 1 CMYK, 1 grey, 1 palette"]


def test_images_without_annotation_and_without_class_are_counted(voc):
    xml(voc).unlink()
    xml(voc, SECOND).write_text(voc_annotation([]))
    write_label_map(png(voc, SECOND), np.zeros(SIZE, np.uint8))
    findings = check("voc", voc)
    assert "  images without an annotation: 1" in findings.lines
    assert "  images without a class: 1" in findings.lines
    assert len(findings.problems) == 1  # once, though three lists name it


def test_no_problem_hides_another(voc):
    jpeg(voc).unlink()
    xml(voc).unlink()
    png(voc).write_bytes(b"")
    jpeg(voc, "2007_000003").write_bytes(b"")
    names(voc, "train").write_text(f"{FIRST}\n{FIRST}\n2007_000003\n")
    assert len(check("voc", voc).problems) == 6


# --- COCO -----------------------------------------------------------------------------------------


def coco_content(root: Path, split: str = "train2014") -> dict:
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def altered(root: Path, change) -> None:
    """Change the content of the training annotations."""
    content = coco_content(root)
    change(content)
    write_instances(root, "train2014", content)


@pytest.mark.parametrize("deep", [False, True])
def test_coco_as_drawn_is_well(coco, deep):
    findings = check("coco", coco, deep=deep)
    assert findings.ok, findings.problems
    assert findings.lines[:4] == [
        f"COCO 2014 in {coco}",
        "train2014: 3 images of 82783 in the published list, 3 with a mask",
        "  images a class: person 1, dog 1, car 2",
        "val2014: 2 images of 40504 in the published list, 2 with a mask",
    ]


def test_a_part_of_coco_is_well_and_the_rest_has_an_address(coco):
    shutil.rmtree(coco / "train2014")
    (coco / "annotations" / "instances_train2014.json").unlink()
    findings = check("coco", coco)
    assert findings.ok
    assert "train2014: nothing listed" in findings.lines
    for part in (
        "train2014.zip (13 GB)",
        "val2014.zip (6 GB)",
        "annotations_trainval2014.zip (241 MB)",
        "COCO site",
        "No checksum",
    ):
        assert part in findings.advice[0]


def test_without_a_root_or_annotations_of_coco_there_is_one_problem(tmp_path):
    assert "no such folder; AEFT_COCO_ROOT must name the folder" in problem(
        check("coco", tmp_path / "nowhere")
    )
    assert "no instances_train2014.json and no instances_val2014.json" in problem(
        check("coco", tmp_path)
    )
    assert check("coco", tmp_path).advice


def test_half_of_coco_is_a_problem_a_folder(coco):
    shutil.rmtree(coco / "train2014")
    assert problem(check("coco", coco)) == f"{coco / 'train2014'}: no such folder"
    make_coco(coco, {"train2014": 3})
    (coco / "annotations" / "instances_train2014.json").unlink()
    assert "instances_train2014.json: missing, but" in problem(check("coco", coco))


def coco_jpeg(root: Path) -> Path:
    return root / "train2014" / f"{COCO_FIRST}.jpg"


COCO_DAMAGE = {
    "photo missing": (lambda r: coco_jpeg(r).unlink(), f"{COCO_FIRST}.jpg: missing"),
    "photo empty": (lambda r: coco_jpeg(r).write_bytes(b""), f"{COCO_FIRST}.jpg: empty (0 bytes)"),
    "photo of 16 bits": (lambda r: recode(coco_jpeg(r), "16 bits"), f"{COCO_FIRST}.jpg: 16 bits"),
    "other size": (
        lambda r: altered(r, lambda c: c["images"][0].update(width=70) or c["annotations"].clear()),
        f"{COCO_FIRST}.jpg: the annotations say 70x48 pixels, the photo has 64x48",
    ),
    "on its side": (
        lambda r: turn(coco_jpeg(r)),
        "the annotations say 64x48 pixels, the photo has 48x64; an EXIF tag turns the photo",
    ),
    "unknown category": (
        lambda r: altered(r, lambda c: c["annotations"][0].update(category_id=2)),
        "annotation 1 has the unknown category 2",
    ),
    "unknown image": (
        lambda r: altered(r, lambda c: c["annotations"][0].update(image_id=99)),
        "annotation 1 belongs to the unknown image 99",
    ),
    "no outline": (
        lambda r: altered(r, lambda c: c["annotations"][0].pop("segmentation")),
        "annotation 1 has no outline",
    ),
    "empty outline": (
        lambda r: altered(r, lambda c: c["annotations"][0].update(segmentation=[])),
        "annotation 1 has no outline",
    ),
    "outline of two points": (
        lambda r: altered(r, lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]])),
        "annotation 1 has no readable outline (a polygon of 4 numbers",
    ),
    "image twice": (
        lambda r: altered(r, lambda c: c["images"].append(c["images"][0])),
        "image id 1 stands 2 times",
    ),
    "name twice": (
        lambda r: altered(r, lambda c: c["images"].append(c["images"][0] | {"id": 77})),
        f"image name {COCO_FIRST} stands 2 times",
    ),
    "cut off": (
        lambda r: cut(r / "annotations" / "instances_train2014.json"),
        "not readable as COCO's instances (JSONDecodeError",
    ),
    "a list": (
        lambda r: write_instances(r, "train2014", []),
        "not readable as COCO's instances (no object with categories, images, annotations",
    ),
    "no categories": (
        lambda r: write_instances(r, "train2014", {"images": []}),
        "categories is missing",
    ),
    "no image": (
        lambda r: write_instances(
            r, "train2014", {"images": [], "annotations": [], "categories": categories(["a"])}
        ),
        "no image",
    ),
    "leak": (
        lambda r: altered(r, lambda c: c["images"][2].update(id=4) or c["annotations"].clear()),
        "image 4: stands in train2014 and in val2014",
    ),
}


@pytest.mark.parametrize("damage", COCO_DAMAGE)
def test_damage_of_coco_is_one_problem(coco, damage):
    harm, said = COCO_DAMAGE[damage]
    harm(coco)
    assert said in problem(check("coco", coco))
    assert check("coco", coco).advice


def test_a_photo_of_coco_that_was_cut_off_is_found_by_decoding(coco):
    cut(coco_jpeg(coco), 0.6)
    assert check("coco", coco).ok
    assert f"{COCO_FIRST}.jpg: not a readable image" in problem(check("coco", coco, deep=True))


def test_images_without_annotation_are_no_problem_in_coco(coco):
    altered(coco, lambda content: content["annotations"].clear())
    findings = check("coco", coco)
    assert findings.ok
    assert "train2014: 3 images of 82783 in the published list, 0 with a mask" in findings.lines
    assert "  images without an annotation: 3" in findings.lines


def test_several_problems_of_coco_are_all_named(coco):
    broken = [
        coco_box(99, 0, (0, 9, 0, 9), i) | {"category_id": 2, "segmentation": None}
        for i in (20, 21)
    ]
    altered(coco, lambda content: content["annotations"].extend(broken))
    altered(coco, lambda content: content["images"].append(coco_image(5000, "absent", SIZE)))
    problems = check("coco", coco).problems
    assert [p.split(": ", 1)[1] for p in problems[:2]] == [
        f"annotation {i} has no outline and has the unknown category 2"
        " and belongs to the unknown image 99"
        for i in (21, 22)
    ]
    assert problems[2].endswith("absent.jpg: missing")
    assert len(problems) == 3


# --- an own folder --------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
def test_an_own_folder_as_drawn_is_well(photos, deep):
    findings = check(str(photos), deep=deep)
    assert findings.text().splitlines() == [
        f"photos in {photos}",
        "train: 3 images, 3 with a mask",
        "  images a class: cup 1, key 1, leaf 2",
        "val: 2 images, 2 with a mask",
        "  images a class: cup 1, key 2",
        "  no image of: leaf",
        "nothing is wrong",
    ]


def test_an_own_folder_needs_no_mask(photos):
    shutil.rmtree(photos / "masks")
    findings = check(str(photos), deep=True)
    assert findings.ok
    assert "train: 3 images, 0 with a mask" in findings.lines


def test_images_that_the_table_does_not_name_are_a_line(photos):
    for i in range(4):
        save_jpeg(photos / "images" / "more" / f"{i}.jpg", np.zeros((8, 8, 3), np.uint8))
    (photos / "images" / ".hidden").write_text("")
    findings = check(str(photos))
    assert findings.ok
    assert (
        "in images/, but not in tags.csv: 4 (more/0.jpg, more/1.jpg, more/2.jpg, ...)"
        in findings.lines
    )


def test_an_image_without_split_or_tags_is_shown(photos):
    with (photos / "tags.csv").open("a") as file:
        file.write("other.jpg,,\n")
    save_jpeg(photos / "images" / "other.jpg", np.zeros((8, 8, 3), np.uint8))
    findings = check(str(photos))
    assert findings.ok
    assert "(without a split): 1 images, 0 with a mask" in findings.lines
    assert "  images without a class: 1" in findings.lines


FOLDER_DAMAGE = {
    "no class list": (
        lambda r: (r / "classes.txt").unlink(),
        "classes.txt: write one class a line",
    ),
    "class twice": (
        lambda r: (r / "classes.txt").write_text("cup\nkey\nleaf\ncup\n"),
        "found 'cup' twice",
    ),
    "no table": (
        lambda r: (r / "tags.csv").unlink(),
        "tags.csv: write the columns image, split, tags",
    ),
    "no column": (
        lambda r: (r / "tags.csv").write_text("image,tags\n"),
        "split is missing; found image, tags",
    ),
    "unknown class": (
        lambda r: add_line(r, "photo_009.jpg,val,spoon"),
        "tags.csv, line 7: class 'spoon' is none of cup, key, leaf",
    ),
    "image twice": (
        lambda r: add_line(r, "photo_001.jpg,val,cup"),
        "tags.csv, line 7: image 'photo_001.jpg' stands twice",
    ),
    "outside": (
        lambda r: add_line(r, "../x.jpg,val,cup"),
        "line 7: image '../x.jpg' is no path below images/",
    ),
    "commas": (
        lambda r: add_line(r, "x.jpg,val,cup,key"),
        "line 7: more or fewer fields than columns",
    ),
    "no images": (lambda r: shutil.rmtree(r / "images"), "images: no such folder"),
    "photo missing": (
        lambda r: (r / "images" / "photo_001.jpg").unlink(),
        "photo_001.jpg: missing",
    ),
    "photo empty": (
        lambda r: (r / "images" / "photo_001.jpg").write_bytes(b""),
        "photo_001.jpg: empty (0 bytes)",
    ),
    "photo of 16 bits": (
        lambda r: recode(r / "images" / "photo_001.jpg", "16 bits"),
        "photo_001.jpg: 16 bits",
    ),
    "photo on its side": (
        lambda r: turn(r / "images" / "photo_001.jpg"),
        "photo_001.png: has 64x48 pixels, the photo has 48x64; an EXIF tag",
    ),
    "mask of colours": (
        lambda r: colour_map(r / "masks" / "photo_001.png"),
        "photo_001.png: a mask must be a PNG",
    ),
    "mask of another suffix": (
        lambda r: (r / "masks" / "photo_001.png").rename(r / "masks" / "photo_001.png.PNG"),
        "in masks/, but of no listed image: 1 (photo_001.png.PNG); a mask has its image's name",
    ),
    "photo is a pointer": (
        lambda r: (r / "images" / "photo_001.jpg").write_text(f"{POINTER}\noid sha256:0\n"),
        "photo_001.jpg: not a readable image (a pointer of Git LFS, not the file itself); get the",
    ),
    "mask is a pointer": (
        lambda r: (r / "masks" / "photo_001.png").write_text(f"{POINTER}\noid sha256:0\n"),
        "photo_001.png: not a readable mask (a pointer of Git LFS",
    ),
    "photo is enormous": (
        lambda r: (r / "images" / "photo_001.jpg").write_bytes(b"P6 20000 20000 255\n"),
        "(more than 179 million pixels); save it smaller, or cut it into parts",
    ),
    "photo is a pipe": (lambda r: pipe(r / "images" / "photo_001.jpg"), "photo_001.jpg"),
}


POINTER = "version https://git-lfs.github.com/spec/v1"


def pipe(file: Path) -> None:
    """In a file's place: whoever opened it would wait for ever."""
    file.unlink()
    os.mkfifo(file)


def add_line(root: Path, line: str) -> None:
    with (root / "tags.csv").open("a") as file:
        file.write(f"{line}\n")


@pytest.mark.parametrize("damage", FOLDER_DAMAGE)
@pytest.mark.parametrize("deep", [False, True])
def test_damage_of_an_own_folder_is_one_problem(photos, damage, deep):
    harm, said = FOLDER_DAMAGE[damage]
    harm(photos)
    findings = check(str(photos), deep=deep)
    assert said in problem(findings)
    assert "an own folder holds classes.txt" in findings.text()


def test_pixels_of_an_own_folder_are_decoded_deep(photos):
    cut(photos / "images" / "photo_001.jpg")
    write_label_map(photos / "masks" / "photo_002.png", np.full(SIZE, 4, np.uint8))
    assert "photo_001.jpg" not in check(str(photos)).text()
    problems = check(str(photos), deep=True).problems
    assert "photo_001.jpg: not a readable image" in problems[0]
    assert "photo_002.png: label 4 is outside 0..3" in problems[1]


def test_every_line_of_a_table_is_looked_at(photos):
    for line in ("a.jpg,val,spoon", "b.jpg,val", "c.jpg,val,cup", "photo_002.jpg,val,cup"):
        add_line(photos, line)
    problems = check(str(photos)).problems
    assert len(problems) == 4
    assert [f"line {i}:" in p for i, p in zip((7, 8, 10), problems, strict=False)] == [True] * 3
    assert problems[3].endswith("c.jpg: missing")


# --- masks against tags ---------------------------------------------------------------------------


def repaint(root: Path, change) -> None:
    """Every mask of VOC through a table of 256 labels."""
    table = change(np.arange(256)).astype(np.uint8)
    for folder in MASKS:
        for file in (root / HOME / folder).iterdir():
            write_label_map(file, table[np.asarray(Image.open(file))])


CONTRADICTIONS = {
    "black and white": (
        lambda labels: np.where(labels > 0, 255, 0),
        "hold no label but 0 and 255, so no object; 255 is void. Painted in black and white? 0 is"
        " background, 1 is aeroplane",
    ),
    "one too high": (lambda labels: labels + 1, "labels are one too high; 0 is background"),
    "one too high, background kept": (
        lambda labels: np.where(labels, labels + 1, 0),
        "labels are one too high",
    ),
    "one too low": (lambda labels: labels - 1, "labels are one too low; 0 is background, 1 is"),
    "one too low, background kept": (
        lambda labels: np.where(labels, labels - 1, 0),
        "labels are one too low",
    ),
    "one label for all": (
        lambda labels: np.where(labels, 1, 0),
        "another order of classes, masks of other images, or tags left out?",
    ),
}


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_masks_that_contradict_their_tags_are_a_problem_with_its_usual_cause(voc, case, deep):
    change, said = CONTRADICTIONS[case]
    repaint(voc, change)
    text = problem(check("voc", voc, deep=deep))
    assert "5 of 5 masks compared contradict the tags of their images (" in text
    assert said in text


def test_masks_of_grey_values_are_named_one_by_one_and_together(photos):
    for file in (photos / "masks").iterdir():
        labels = np.asarray(Image.open(file))
        write_label_map(file, np.array([0, 38, 75, 113] + [0] * 252, np.uint8)[labels])
    problems = check(str(photos)).problems
    assert len(problems) == 6
    assert "is outside 0..3 and is not void" in problems[0]
    assert "they hold labels beyond 3: grey values of colours" in problems[-1]


def test_masks_whose_background_is_void_are_a_problem(photos):
    for file in (photos / "masks").iterdir():
        labels = np.asarray(Image.open(file))
        write_label_map(file, np.where(labels, labels, 255).astype(np.uint8))
    text = problem(check(str(photos)))
    assert text == (
        "5 of 5 masks compared have no background pixel (label 0): is the background painted 255? "
        "255 is void, and does not count"
    )


def test_objects_that_fill_their_photos_are_no_problem(photos):
    for file in (photos / "masks").iterdir():
        labels = np.asarray(Image.open(file))
        write_label_map(file, np.full(SIZE, labels.max(), np.uint8))
    assert check(str(photos)).ok


def test_a_mask_that_is_void_alone_is_a_problem_of_its_file(voc):
    write_label_map(png(voc), np.full(SIZE, 255, np.uint8))
    problems = check("voc", voc).problems
    assert problems[0].startswith(f"{png(voc)}: every pixel is void (255), so none counts; 255")
    assert "1 of 5 masks compared contradict" in problems[1]


def test_masks_of_no_photo_are_a_line_or_a_problem_where_masks_are_missing(voc):
    extra = png(voc, f"{SECOND}_mask")
    shutil.copy(png(voc, SECOND), extra)
    findings = check("voc", voc)
    assert findings.ok
    line = f"in SegmentationClass/, but of no photo: 1 ({extra.name}); a mask has its photo's name"
    assert any(text.startswith(line) for text in findings.lines)
    png(voc, SECOND).unlink()
    assert problem(check("voc", voc)).startswith(line)


def test_a_tag_without_a_label_is_a_line_and_no_problem(voc):
    xml(voc).write_text(voc_annotation(["cat", "sofa"]))  # the mask has a cat alone
    findings = check("voc", voc)
    assert findings.ok
    assert "masks whose labels differ from the tags: 1 of 5 compared" in findings.lines


def test_a_sample_is_compared_by_default_and_all_of_them_deep(voc, monkeypatch):
    monkeypatch.setattr(doctor, "SAMPLE", 4)
    repaint(voc, lambda labels: np.where(labels > 0, 255, 0))
    assert "4 of 4 masks compared" in problem(check("voc", voc))
    assert "5 of 5 masks compared" in problem(check("voc", voc, deep=True))


# --- the doctor survives --------------------------------------------------------------------------


def test_whatever_a_reader_raises_is_a_problem(voc, monkeypatch):
    def broken(*_):
        raise IndexError("of a parser")

    monkeypatch.setattr("aeft_lib.data.voc.listing", broken)
    assert problem(check("voc", voc)) == f"{voc}: cannot be listed (IndexError: of a parser)"


def test_whatever_an_image_raises_is_its_problem(voc, monkeypatch):
    read = doctor.read_header

    def broken(file):
        if file == jpeg(voc):
            raise OSError("a disk that fails")
        return read(file)

    monkeypatch.setattr(doctor, "read_header", broken)
    assert problem(check("voc", voc)) == f"{FIRST}: cannot be examined (a disk that fails)"


def test_files_of_nearly_the_right_name_are_named(voc, photos):
    names(voc, "train_aug").rename(names(voc, "trainaug"))
    assert "trainaug.txt: rename it to train_aug.txt" in problem(check("voc", voc))
    photo = photos / "images" / "photo_001.jpg"
    photo.rename(photo.with_suffix(".JPG"))
    assert problem(check(str(photos))).endswith("photo_001.jpg: missing; photo_001.JPG is there")
    (photos / "tags.csv").rename(photos / "Tags.csv")
    assert "tags.csv: rename Tags.csv" in problem(check(str(photos)))


# --- the real data --------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("what", ["voc", "coco"])
def test_the_real_data_are_well(what, deep):
    if not os.environ.get(f"AEFT_{what.upper()}_ROOT"):
        pytest.skip(f"AEFT_{what.upper()}_ROOT is not set")
    findings = check(what, deep=deep)
    assert findings.ok, findings.text()
