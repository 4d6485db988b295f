"""SBD becomes train_aug: list arithmetic, masks, refusals, resuming; on tiny .mat files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from aeft_lib.data.prepare import sbd
from aeft_lib.data.prepare.sbd import convert, read_mat, sbd_names
from aeft_lib.maps.labels import read_label_map, voc_palette

LABELS = np.array([[0, 1, 20], [255, 15, 0]], dtype=np.uint8)
SBD = {
    "train": ["2008_000003", "2008_000001", "2008_000007"],
    "val": ["2008_000004", "2008_000008"],
}
VOC = {"train": ["2007_000009", "2008_000001"], "val": ["2008_000004", "2007_000005"]}
TRAIN_AUG = ["2007_000009", "2008_000001", "2008_000003", "2008_000007", "2008_000008"]
MADE = ["2008_000003", "2008_000007", "2008_000008"]  # the others have VOC's masks


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("AEFT_QUIET", "1")


@pytest.fixture
def benchmark(tmp_path):
    """SBD's folder; every image has other labels."""
    folder = tmp_path / "benchmark_RELEASE" / "dataset"
    (folder / "cls").mkdir(parents=True)
    for split, names in SBD.items():
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            save(folder / "cls" / f"{name}.mat", labels_of(name))
    return folder


@pytest.fixture
def home(tmp_path):
    """VOC's folder."""
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    for split, names in VOC.items():
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(
            "".join(f"{name}\n" for name in names)
        )
    for name in [name for names in (*SBD.values(), *VOC.values()) for name in names]:
        (folder / "JPEGImages" / f"{name}.jpg").touch()
    return folder


def labels_of(name: str) -> np.ndarray:
    labels = LABELS.copy()
    labels[0, 0] = int(name[-1])
    return labels


def save(file: Path, labels: np.ndarray) -> None:
    savemat(
        file,
        {
            "GTcls": {
                "Boundaries": np.zeros((2, 2)),
                "Segmentation": labels,
                "CategoriesPresent": [1, 15, 20],
            }
        },
    )


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.rglob("*") if file.is_file()}


def test_train_aug_is_sbd_and_vocs_train_without_vocs_val(benchmark, home):
    assert convert(benchmark, home) == {"converted": 3, "skipped": 0, "train_aug": 5}
    text = (home / "ImageSets" / "Segmentation" / "train_aug.txt").read_text()
    assert text == "".join(f"{name}\n" for name in TRAIN_AUG)
    assert files(home / "ImageSets") == {"train.txt", "val.txt", "train_aug.txt"}


def test_masks_are_palette_pngs_of_the_same_labels(benchmark, home):
    convert(benchmark, home)
    folder = home / "SegmentationClassAug"
    assert files(folder) == {
        f"{name}.png" for name in MADE
    }  # none of VOC's val, none of VOC's train
    for name in MADE:
        assert (read_label_map(folder / f"{name}.png", num_classes=20) == labels_of(name)).all()
    with Image.open(folder / f"{MADE[0]}.png") as picture:
        assert (picture.mode, picture.getpalette()) == ("P", voc_palette().flatten().tolist())


def test_masks_that_are_there_are_not_made_again(benchmark, home):
    convert(benchmark, home)
    first = home / "SegmentationClassAug" / f"{MADE[0]}.png"
    first.write_bytes(b"mine")
    (home / "SegmentationClassAug" / f"{MADE[1]}.png").unlink()
    assert convert(benchmark, home) == {"converted": 1, "skipped": 2, "train_aug": 5}
    assert first.read_bytes() == b"mine"


def test_a_kill_leaves_no_half_mask_and_no_list(benchmark, home, monkeypatch):
    def killed(file, labels):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sbd, "write_label_map", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(benchmark, home)
    assert not list((home / "SegmentationClassAug").glob("*_*.png"))
    assert not (home / "ImageSets" / "Segmentation" / "train_aug.txt").exists()
    assert convert(benchmark, home) == {"converted": 3, "skipped": 0, "train_aug": 5}
    assert files(home / "SegmentationClassAug") == {f"{name}.png" for name in MADE}


def test_a_name_without_a_photo_is_told_before_anything_is_written(benchmark, home):
    for name in ("2008_000007", "2008_000003"):
        (home / "JPEGImages" / f"{name}.jpg").unlink()
    with pytest.raises(
        ValueError,
        match=r"2008_000003 is listed, but there is no .*2008_000003\.jpg: unpack VOC 2012 first",
    ):
        convert(benchmark, home)
    assert not (home / "SegmentationClassAug").exists()


def test_a_photo_of_vocs_val_is_not_asked_for(benchmark, home):
    (home / "JPEGImages" / "2008_000004.jpg").unlink()
    (benchmark / "cls" / "2008_000004.mat").unlink()
    assert convert(benchmark, home)["train_aug"] == 5


def test_a_missing_mat_is_told(benchmark, home):
    (benchmark / "cls" / "2008_000007.mat").unlink()
    with pytest.raises(
        ValueError, match=r"no .*2008_000007\.mat: unpack SBD's benchmark\.tgz again"
    ):
        convert(benchmark, home)
    assert not (home / "ImageSets" / "Segmentation" / "train_aug.txt").exists()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kept", [0, 60, 128, 200, 0.5, 0.8])
def test_a_mat_that_was_cut_off_is_refused(rng, tmp_path, kept, compressed):
    file = tmp_path / "x.mat"
    labels = rng.integers(0, 21, (30, 40)).astype(np.uint8)
    savemat(file, {"GTcls": {"Segmentation": labels}}, do_compression=compressed)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if kept < 1 else kept])
    with pytest.raises(
        ValueError, match=r"x\.mat: no readable GTcls\.Segmentation \(.*\); unpack SBD's"
    ):
        read_mat(file)


@pytest.mark.parametrize(
    "content",
    [{"other": 1}, {"GTcls": {"Boundaries": 1}}, {"GTcls": np.zeros((2, 3))}, {"GTcls": "text"}],
    ids=str,
)
def test_a_mat_without_labels_is_refused(tmp_path, content):
    savemat(tmp_path / "x.mat", content)
    with pytest.raises(ValueError, match=r"x\.mat: no readable GTcls\.Segmentation"):
        read_mat(tmp_path / "x.mat")


@pytest.mark.parametrize(
    "labels", [np.zeros((2, 3, 4), np.uint8), np.zeros((0, 0)), np.zeros((2, 2), complex)], ids=str
)
def test_what_is_no_label_map_is_refused(tmp_path, labels):
    save(tmp_path / "x.mat", labels)
    with pytest.raises(
        ValueError, match=r"x\.mat: GTcls\.Segmentation must be an \(H, W\) array of labels, got"
    ):
        read_mat(tmp_path / "x.mat")


@pytest.mark.parametrize(
    ("labels", "foreign"),
    [
        (np.array([[0, 21]], np.uint8), "21"),
        (np.array([[254, 3]], np.uint8), "254"),
        (np.array([[-1, 3]], np.int16), "-1"),
    ],
    ids=str,
)
def test_labels_of_no_class_are_refused(tmp_path, labels, foreign):
    save(tmp_path / "x.mat", labels)
    with pytest.raises(
        ValueError, match=rf"x\.mat: label {foreign} is outside 0\.\.20 and is not void \(255\)"
    ):
        read_mat(tmp_path / "x.mat")


@pytest.mark.parametrize("value", [0.5, float("nan"), 256.0, 1e9])
def test_numbers_that_are_no_labels_are_refused(tmp_path, value):
    save(tmp_path / "x.mat", np.array([[0.0, value]]))
    with pytest.raises(ValueError, match=r"x\.mat: label .* is outside 0\.\.20"):
        read_mat(tmp_path / "x.mat")


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float64])
def test_labels_of_any_kind_of_number_are_the_same(tmp_path, kind):
    save(tmp_path / "x.mat", LABELS.astype(kind))
    assert read_mat(tmp_path / "x.mat").dtype == np.uint8
    assert (read_mat(tmp_path / "x.mat") == LABELS).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
def test_a_map_of_one_row_stays_one(tmp_path, shape):
    save(tmp_path / "x.mat", np.ones(shape, np.uint8))
    assert read_mat(tmp_path / "x.mat").shape == shape


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"no .*val\.txt: unpack"),
        ("\n", "lists no image"),
        ("2008_000001\n../../x\n", r"'\.\./\.\./x' is no name"),
    ],
)
def test_lists_are_checked(benchmark, text, message):
    assert sbd_names(benchmark) == {name for names in SBD.values() for name in names}
    (benchmark / "val.txt").unlink()
    if text is not None:
        (benchmark / "val.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        sbd_names(benchmark)


def test_vocs_lists_are_needed(benchmark, home):
    (home / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(ValueError, match=r"no .*val\.txt"):
        convert(benchmark, home)
