"""Label maps: from scores to labels, palette PNGs there and back, what is refused."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aeft_lib.maps.labels import (
    VOID,
    label_map,
    read_label_map,
    statistics,
    voc_palette,
    with_rest,
    write_label_map,
)

LABELS = np.array([[0, 1, 2], [9, 0, 255]], dtype=np.uint8)


def cam(*classes: list[float]) -> torch.Tensor:
    """Scores of some classes on a row of pixels, (K', 1, W)."""
    return torch.tensor(classes)[:, None]


def saved(file: Path, picture: Image.Image, **options) -> Path:
    picture.save(file, **options)
    return file


# --- scores to labels ----------------------------------------------------------------------------


def test_posteriors_leave_the_rest_to_the_background():
    scores = cam([0.6, 0.1, 0.3, 0.0], [0.3, 0.2, 0.6, 0.0])  # rest 0.1, 0.7, 0.1, 1
    assert label_map(torch.tensor([2, 7]), scores).tolist() == [[3, 0, 8, 0]]
    torch.testing.assert_close(with_rest(scores)[0], torch.tensor([[0.1, 0.7, 0.1, 1.0]]))
    assert torch.equal(with_rest(scores)[1:], scores)


def test_a_threshold_stands_for_the_background():
    scores = cam([0.6, 0.1, 0.3, 0.0], [0.3, 0.2, 0.6, 0.0])
    assert label_map(torch.tensor([2, 7]), scores, 0.5).tolist() == [[3, 0, 8, 0]]
    assert label_map(torch.tensor([2, 7]), scores, 0.15).tolist() == [[3, 8, 8, 0]]
    assert label_map(torch.tensor([2, 7]), scores, 0.9).tolist() == [[0, 0, 0, 0]]


@pytest.mark.exact
def test_ties_go_to_the_background_then_to_the_class_that_stands_first():
    ids = torch.tensor([2, 7])
    assert label_map(ids, cam([0.4, 0.5, 0.2], [0.1, 0.5, 0.4]), 0.4).tolist() == [[0, 3, 0]]
    assert label_map(ids, cam([0.5, 0.25, 0.5], [0.0, 0.5, 0.5])).tolist() == [
        [0, 8, 3]
    ]  # rest 0.5, 0.25, 0


def test_a_tie_in_float32_is_a_tie():
    score = torch.tensor([[[0.1]]])  # 0.100000001 in float64, where it would win
    assert label_map(torch.tensor([0]), score, 0.1).tolist() == [[0]]


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_an_image_without_classes_is_background(threshold):
    labels = label_map(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, 3), threshold)
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_scores_are_left_as_they_are():
    scores = cam([0.6, 0.1])
    label_map(torch.tensor([0]), scores, 0.3)
    assert torch.equal(scores, cam([0.6, 0.1]))


@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 2, 3), (2, 3)])
def test_other_numbers_of_ids_and_scores_are_refused(shape):
    with pytest.raises(
        ValueError,
        match=rf"scores must be \(K', H, W\) with K' = 2 classes, got \({shape[0]}, {shape[1]}",
    ):
        label_map(torch.tensor([0, 1]), torch.zeros(shape))


# --- palette -------------------------------------------------------------------------------------


def test_palette_is_vocs():
    published = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        8: (64, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
    }
    palette = voc_palette()
    assert palette.shape == (256, 3)
    assert {label: tuple(palette[label].tolist()) for label in published} == published
    assert palette[VOID].tolist() == [224, 224, 192]
    assert len(np.unique(palette, axis=0)) == 256


def test_a_written_map_shows_the_colours_of_its_labels(tmp_path):
    write_label_map(tmp_path / "map.png", LABELS)
    with Image.open(tmp_path / "map.png") as picture:
        assert (picture.format, picture.mode) == ("PNG", "P")
        assert picture.getpalette() == voc_palette().flatten().tolist()
        assert (np.asarray(picture.convert("RGB")) == voc_palette()[LABELS]).all()


# --- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (37, 41)])
def test_what_is_written_is_read(rng, tmp_path, size):
    labels = rng.choice([*range(10), VOID], size).astype(np.uint8)
    write_label_map(tmp_path / "map.png", labels)
    read = read_label_map(tmp_path / "map.png", num_classes=9, size=size)
    assert read.dtype == np.uint8
    assert (read == labels).all()


def test_the_same_labels_are_the_same_bytes_on_disk_and_in_memory(tmp_path):
    memory = BytesIO()
    for target in (tmp_path / "one.png", tmp_path / "other name.png", memory):
        write_label_map(target, LABELS.copy())
    contents = [(tmp_path / name).read_bytes() for name in ("one.png", "other name.png")]
    assert contents[0] == contents[1] == memory.getvalue()
    assert b"tIME" not in contents[0]


def test_labels_in_any_memory_layout_are_written_alike(tmp_path):
    write_label_map(tmp_path / "plain.png", np.ascontiguousarray(LABELS[:, ::-1].T))
    write_label_map(tmp_path / "view.png", LABELS[:, ::-1].T)
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "view.png").read_bytes()


def test_a_grey_png_is_read_too(tmp_path):
    file = saved(tmp_path / "grey.png", Image.fromarray(LABELS))
    assert (read_label_map(file, num_classes=9) == LABELS).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_palette_of_few_bits_is_read_too(tmp_path, bits):
    labels = np.array([[0, 1, 1], [1, 0, 0]], dtype=np.uint8)
    picture = Image.fromarray(labels)
    picture.putpalette(voc_palette(2**bits).tobytes())
    assert (
        read_label_map(saved(tmp_path / "few.png", picture, bits=bits), num_classes=1) == labels
    ).all()


@pytest.mark.parametrize(
    "labels",
    [
        np.zeros((2, 3), np.int64),
        np.zeros((2, 3), bool),
        np.zeros((1, 2, 3), np.uint8),
        np.zeros((0, 3), np.uint8),
    ],
)
def test_what_is_no_label_map_is_not_written(tmp_path, labels):
    with pytest.raises(
        ValueError,
        match=rf"a label map must be \(H, W\) uint8, got {labels.dtype} .* to go to .*map\.png",
    ):
        write_label_map(tmp_path / "map.png", labels)
    assert not list(tmp_path.iterdir())


# --- what is no label map ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("picture", "mode"),
    [
        (Image.fromarray(LABELS.astype(np.uint16)), "I;16"),
        (Image.fromarray(voc_palette()[LABELS]), "RGB"),
        (Image.fromarray(LABELS).convert("LA"), "LA"),
        (Image.fromarray(LABELS > 0), "1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_colours_and_other_depths_are_refused(tmp_path, picture, mode):
    file = saved(tmp_path / "map.png", picture)
    with pytest.raises(
        ValueError,
        match=rf"map\.png: a label map must have one 8-bit channel .*, this one has mode {mode}",
    ):
        read_label_map(file, num_classes=9)


def test_a_format_that_loses_labels_is_refused(tmp_path):
    file = saved(tmp_path / "map.jpg", Image.fromarray(LABELS), quality=30)
    with pytest.raises(ValueError, match=r"map\.jpg"):
        read_label_map(file, num_classes=VOID - 1)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.7, 0.95])
def test_a_map_that_was_cut_off_is_refused(rng, tmp_path, kept):
    file = tmp_path / "map.png"
    write_label_map(file, rng.integers(0, 10, (60, 70)).astype(np.uint8))
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(
        ValueError, match=r"map\.png: not a readable label map .*; write or fetch it again"
    ):
        read_label_map(file, num_classes=9)


def test_what_is_no_picture_is_refused_by_name(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    for name in ("text.png", "absent.png"):
        with pytest.raises(ValueError, match=rf"{name}: not a readable"):
            read_label_map(tmp_path / name, num_classes=9)


def test_a_map_of_another_size_is_refused(tmp_path):
    write_label_map(tmp_path / "map.png", LABELS)
    with pytest.raises(
        ValueError, match=r"map\.png: the label map is \(2, 3\), its image \(3, 2\)"
    ):
        read_label_map(tmp_path / "map.png", num_classes=9, size=(3, 2))


@pytest.mark.parametrize(("num_classes", "foreign"), [(8, 9), (1, 2), (0, 1)])
def test_a_label_beyond_the_classes_is_refused_unless_it_is_void(tmp_path, num_classes, foreign):
    write_label_map(tmp_path / "map.png", LABELS)
    with pytest.raises(
        ValueError,
        match=rf"map\.png: label {foreign} is outside 0\.\.{num_classes} and is not void \(255\)",
    ):
        read_label_map(tmp_path / "map.png", num_classes=num_classes)


def test_254_is_no_other_name_of_void(tmp_path):
    write_label_map(tmp_path / "map.png", np.array([[0, VOID - 1]], dtype=np.uint8))
    with pytest.raises(ValueError, match=r"label 254 is outside 0\.\.20 and is not void"):
        read_label_map(tmp_path / "map.png", num_classes=20)


# --- statistics ----------------------------------------------------------------------------------


def test_statistics_by_hand():
    summary = statistics(LABELS)  # six pixels: two background, one void
    assert summary == {
        "classes": "1 2 9",
        "foreground": pytest.approx(3 / 6),
        "void": pytest.approx(1 / 6),
    }
    assert statistics(np.zeros((2, 2), np.uint8)) == {"classes": "", "foreground": 0.0, "void": 0.0}
    assert statistics(np.full((2, 2), VOID, np.uint8)) == {
        "classes": "",
        "foreground": 0.0,
        "void": 1.0,
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("threshold", [None, 0.3])
def test_scores_that_are_no_numbers_have_no_labels(value, threshold):
    scores = torch.tensor([[[0.5, value]]])
    with pytest.raises(ValueError, match="scores hold NaN or infinity"):
        label_map(torch.tensor([0]), scores, threshold)
