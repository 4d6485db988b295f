"""A submission to VOC's server: its layout, the same bytes twice, what `write` refuses and what `check` finds."""

import warnings
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aeft_lib.maps.labels import VOID, voc_palette, write_label_map
from aeft_lib.maps.submission import FOLDER, check, write

HOME = "results/VOC2012/Segmentation/comp6_test_cls"
LABELS = {
    "2008_000001": np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8),
    "2008_000002": np.array([[20, 0], [0, 0], [3, 3]], dtype=np.uint8),
}
SIZES = {name: labels.shape for name, labels in LABELS.items()}


def as_png(labels: np.ndarray) -> bytes:
    content = BytesIO()
    write_label_map(content, labels)
    return content.getvalue()


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    content = BytesIO()
    picture.save(content, format=kind)
    return content.getvalue()


GOOD = {f"{HOME}/{name}.png": as_png(labels) for name, labels in LABELS.items()}
FIRST = next(iter(GOOD))


def zipped(file: Path, *members: tuple[str, bytes]) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")  # zipfile warns of a member that stands twice
        for name, content in members:
            archive.writestr(name, content)
    return file


def problems(tmp_path: Path, *members: tuple[str, bytes]) -> list[str]:
    return check(zipped(tmp_path / "submission.zip", *members), SIZES, num_classes=20)


# --- write -----------------------------------------------------------------------------------------------------------


def test_layout_and_content_are_what_the_server_asks_for(tmp_path):
    assert write(tmp_path / "submission.zip", LABELS.items(), num_classes=20) == 2
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert archive.namelist() == list(GOOD)
        for name, labels in LABELS.items():
            with Image.open(BytesIO(archive.read(f"{HOME}/{name}.png"))) as picture:
                assert (picture.format, picture.mode) == ("PNG", "P")
                assert (np.array(picture) == labels).all()
                assert picture.getpalette() == voc_palette().flatten().tolist()
    assert check(tmp_path / "submission.zip", SIZES, num_classes=20) == []


def test_the_split_names_the_folder(tmp_path):
    write(tmp_path / "val.zip", LABELS.items(), num_classes=20, split="val")
    with zipfile.ZipFile(tmp_path / "val.zip") as archive:
        assert {str(Path(name).parent) for name in archive.namelist()} == {FOLDER.format(split="val")}
    assert check(tmp_path / "val.zip", SIZES, num_classes=20, split="val") == []
    assert f"{HOME.replace('test', 'val')}/2008_000001.png: outside {HOME}/" in check(
        tmp_path / "val.zip", SIZES, num_classes=20
    )


def test_the_same_maps_are_the_same_bytes(tmp_path):
    for name in ("one.zip", "two.zip"):
        write(tmp_path / name, LABELS.items(), num_classes=20)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_maps_are_read_one_by_one(tmp_path):
    made = iter(LABELS.items())
    assert write(tmp_path / "submission.zip", made, num_classes=20) == 2
    assert next(made, None) is None


@pytest.mark.parametrize("name", ["", ".", "..", "/a", "../a", "a/b", "a/", "..\\a", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="must be a plain name of an image, and stand once"):
        write(tmp_path / "submission.zip", [(name, LABELS["2008_000001"])], num_classes=20)


def refused(tmp_path: Path, *named: tuple[str, np.ndarray], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        write(tmp_path / "submission.zip", named, num_classes=20)
    assert not list(tmp_path.iterdir()), "a partial file stays"


def test_a_name_stands_once(tmp_path):
    refused(tmp_path, *2 * [("a", LABELS["2008_000001"])], match="'a' must be a plain name of an image, and stand once")


@pytest.mark.parametrize("label", [21, VOID])
def test_void_and_labels_beyond_the_classes_are_refused_and_no_file_stays(tmp_path, label):
    wrong = np.array([[0, label]], dtype=np.uint8)
    message = rf"b: label {label} is outside 0\.\.20; a submission has no void"
    refused(tmp_path, ("a", LABELS["2008_000001"]), ("b", wrong), match=message)


def test_what_is_no_label_map_is_refused_and_no_file_stays(tmp_path):
    refused(tmp_path, ("a", np.zeros((2, 3), np.int64)), match=r"a label map must be \(H, W\) uint8, got int64 \(2, 3\)")


def test_a_submission_without_images_is_refused(tmp_path):
    refused(tmp_path, match=r"submission\.zip: no label map to submit")


def test_an_earlier_submission_survives_a_failure_and_not_a_success(tmp_path):
    file = tmp_path / "submission.zip"
    write(file, LABELS.items(), num_classes=20)
    before = file.read_bytes()

    def dies():
        yield "2008_000001", LABELS["2008_000001"]
        raise RuntimeError("the network is gone")

    with pytest.raises(RuntimeError, match="the network is gone"):
        write(file, dies(), num_classes=20)
    assert file.read_bytes() == before
    write(file, [("2008_000001", LABELS["2008_000001"])], num_classes=20)
    assert check(file, SIZES, num_classes=20) == ["2008_000002: missing"]
    assert [found.name for found in tmp_path.iterdir()] == ["submission.zip"]


# --- check -----------------------------------------------------------------------------------------------------------


def test_an_empty_archive_misses_everything(tmp_path):
    assert problems(tmp_path) == ["2008_000001: missing", "2008_000002: missing"]


def test_surplus_and_misplaced_members_are_found(tmp_path):
    surplus = (f"{HOME}/2008_000003.png", as_png(LABELS["2008_000001"]))
    assert problems(tmp_path, *GOOD.items(), surplus) == ["2008_000003: not asked for"]
    assert problems(tmp_path, *GOOD.items(), ("notes.txt", b"")) == [f"notes.txt: outside {HOME}/"]
    assert problems(tmp_path, *GOOD.items(), ("../../evil.png", b"")) == [f"../../evil.png: outside {HOME}/"]


def test_folders_are_no_problem(tmp_path):
    assert problems(tmp_path, ("results/", b""), (f"{HOME}/", b""), *GOOD.items()) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (as_png(np.full((2, 3), 21, np.uint8)), "label 21 is outside 0..20"),
        (as_png(np.full((2, 3), VOID, np.uint8)), "label 255 is outside 0..20"),
        (as_png(np.zeros((3, 2), np.uint8)), "size (3, 2), its image (2, 3)"),
        (encoded(Image.fromarray(LABELS["2008_000001"])), "a palette PNG is asked for, this is PNG of mode L"),
        (encoded(Image.new("RGB", (3, 2))), "a palette PNG is asked for, this is PNG of mode RGB"),
        (encoded(Image.new("L", (3, 2)), "JPEG"), "a palette PNG is asked for, this is JPEG of mode L"),
        (encoded(Image.new("P", (3, 2)), "GIF"), "a palette PNG is asked for, this is GIF of mode P"),
        (GOOD[FIRST][:60], "not a readable PNG"),
        (b"", "not a readable PNG"),
    ],
)
def test_what_is_wrong_with_a_map_is_said_with_its_name(tmp_path, content, problem):
    (found,) = problems(tmp_path, *(GOOD | {FIRST: content}).items())
    assert found.startswith(f"2008_000001: {problem}")


def test_every_problem_has_a_line(tmp_path):
    wrong = as_png(np.full((1, 1), 30, np.uint8))
    found = problems(tmp_path, (FIRST, wrong), ("readme", b""))
    assert found == [
        f"readme: outside {HOME}/",
        "2008_000002: missing",
        "2008_000001: size (1, 1), its image (2, 3)",
        "2008_000001: label 30 is outside 0..20",
    ]


@pytest.mark.parametrize("name", ["2008_000001.jpg", "2008_000001", "sub/2008_000001.png", "../2008_000001.png"])
def test_a_map_that_is_not_where_the_server_looks_is_a_problem(tmp_path, name):
    moved = {f"{HOME}/{name}" if member == FIRST else member: content for member, content in GOOD.items()}
    assert problems(tmp_path, *moved.items())


@pytest.mark.parametrize("name", ["2008_000001.png", "2008_000001.jpg", "sub/2008_000001.png"])
def test_a_second_member_of_an_image_is_a_problem(tmp_path, name):
    assert problems(tmp_path, (f"{HOME}/{name}", b"an older one"), *GOOD.items())


def test_a_member_that_was_damaged_is_a_problem(tmp_path):
    file = zipped(tmp_path / "submission.zip", *GOOD.items())
    content = bytearray(file.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 0xFF
    file.write_bytes(content)
    assert [line for line in check(file, SIZES, num_classes=20) if line.startswith("2008_000001: ")]


@pytest.mark.parametrize("content", [b"", b"no zip archive", None])
def test_what_is_no_archive_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "submission.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"submission\.zip is not a readable zip archive .*: export it again"):
        check(tmp_path / "submission.zip", SIZES, num_classes=20)


def test_an_archive_that_was_cut_off_is_refused(tmp_path):
    file = zipped(tmp_path / "submission.zip", *GOOD.items())
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ValueError, match="is not a readable zip archive"):
        check(file, SIZES, num_classes=20)
