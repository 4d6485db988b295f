"""A submission to VOC's server: its layout, the same bytes twice, and what `write` refuses."""

import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aeft_lib.maps.labels import VOID, voc_palette
from aeft_lib.maps.submission import FOLDER, write

HOME = "results/VOC2012/Segmentation/comp6_test_cls"
LABELS = {
    "2008_000001": np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8),
    "2008_000002": np.array([[20, 0], [0, 0], [3, 3]], dtype=np.uint8),
}
MEMBERS = [f"{HOME}/{name}.png" for name in LABELS]


def test_layout_and_content_are_what_the_server_asks_for(tmp_path):
    assert write(tmp_path / "submission.zip", LABELS.items(), num_classes=20) == 2
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert archive.namelist() == MEMBERS
        for name, labels in LABELS.items():
            with Image.open(BytesIO(archive.read(f"{HOME}/{name}.png"))) as picture:
                assert (picture.format, picture.mode) == ("PNG", "P")
                assert (np.array(picture) == labels).all()
                assert picture.getpalette() == voc_palette().flatten().tolist()


def test_the_split_names_the_folder(tmp_path):
    write(tmp_path / "val.zip", LABELS.items(), num_classes=20, split="val")
    with zipfile.ZipFile(tmp_path / "val.zip") as archive:
        assert {str(Path(name).parent) for name in archive.namelist()} == {
            FOLDER.format(split="val")
        }


def test_the_same_maps_are_the_same_bytes(tmp_path):
    for name in ("first.zip", "second.zip"):
        write(tmp_path / name, LABELS.items(), num_classes=20)
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "first.zip") as archive:
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
    refused(
        tmp_path,
        *2 * [("a", LABELS["2008_000001"])],
        match="'a' must be a plain name of an image, and stand once",
    )


@pytest.mark.parametrize("label", [21, VOID])
def test_void_and_labels_beyond_the_classes_are_refused_and_no_file_stays(tmp_path, label):
    wrong = np.array([[0, label]], dtype=np.uint8)
    message = rf"b: label {label} is outside 0\.\.20; a submission has no void"
    refused(tmp_path, ("a", LABELS["2008_000001"]), ("b", wrong), match=message)


def test_what_is_no_label_map_is_refused_and_no_file_stays(tmp_path):
    refused(
        tmp_path,
        ("a", np.zeros((2, 3), np.int64)),
        match=r"a label map must be \(H, W\) uint8, got int64 \(2, 3\)",
    )


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
    with zipfile.ZipFile(file) as archive:
        assert archive.namelist() == MEMBERS[:1]
    assert [kept.name for kept in tmp_path.iterdir()] == ["submission.zip"]
