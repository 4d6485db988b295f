"""Photos: whatever they were, read as RGB of 8 bits, and refused by name where that cannot be."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aeft_lib.data.images import image_size, read_header, read_image, read_resized, resized, squared
from aeft_lib.maps.labels import voc_palette, write_label_map

LABELS = np.array([[0, 1, 2], [9, 0, 255]], dtype=np.uint8)


def saved(file: Path, picture: Image.Image, **options) -> Path:
    picture.save(file, **options)
    return file


def test_a_photo_is_rgb(rng, tmp_path):
    colours = rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    assert (read_image(saved(tmp_path / "photo.png", Image.fromarray(colours))) == colours).all()


def test_grey_and_palette_pictures_become_rgb(tmp_path):
    grey = np.array([[0, 100, 255]], dtype=np.uint8)
    assert (
        read_image(saved(tmp_path / "grey.png", Image.fromarray(grey))) == grey[..., None]
    ).all()
    write_label_map(tmp_path / "palette.png", LABELS)
    assert (read_image(tmp_path / "palette.png") == voc_palette()[LABELS]).all()


def test_a_cmyk_jpeg_becomes_rgb(tmp_path):
    read = read_image(
        saved(tmp_path / "print.jpg", Image.new("CMYK", (16, 8), (0, 255, 255, 0)), quality=95)
    )
    assert read.shape == (8, 16, 3)
    assert np.abs(read.astype(int) - (255, 0, 0)).max() <= 8  # no cyan, all magenta and yellow: red


@pytest.mark.parametrize(
    ("orientation", "corner", "size"),
    [(1, (0, 0), (16, 32)), (6, (0, -1), (32, 16)), (3, (-1, -1), (16, 32))],
)
def test_a_jpeg_is_turned_as_its_exif_tag_says(tmp_path, orientation, corner, size):
    white = np.zeros((16, 32, 3), dtype=np.uint8)
    white[:8, :8] = 255  # the first pixel of the file
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = saved(tmp_path / "turned.jpg", Image.fromarray(white), exif=exif, quality=95)
    read = read_image(file)
    assert read.shape == (*size, 3)
    assert image_size(file) == size
    assert read_header(file) == ("RGB", (16, 32), orientation)
    assert read[corner].min() > 240
    assert (read > 128).sum() == 8 * 8 * 3


def test_a_photo_is_uint8_whatever_it_was(tmp_path):
    file = saved(tmp_path / "cut-out.png", Image.fromarray(np.full((2, 3, 4), 7, dtype=np.uint8)))
    read = read_image(file)
    assert (read.dtype, read.shape) == (np.uint8, (2, 3, 3))


def deep_rgb_png(file: Path) -> Path:
    """A colour PNG of 16 bits a channel, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">6H", *range(300, 306))
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(row)), chunk(b"IEND", b""))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return file


@pytest.mark.parametrize("channels", ["grey", "colour"])
def test_a_photo_of_16_bits_is_refused(tmp_path, channels):
    if channels == "grey":
        file = saved(tmp_path / "deep.png", Image.fromarray(np.full((2, 3), 300, dtype=np.uint16)))
    else:
        file = deep_rgb_png(tmp_path / "deep.png")
    for read in (read_image, read_header):
        with pytest.raises(
            ValueError, match=r"deep\.png: 16 bits or more a channel .*; save it with 8"
        ):
            read(file)


@pytest.mark.parametrize("kept", [0, 100, -200])
def test_a_photo_that_was_cut_off_is_refused(rng, tmp_path, kept):
    colours = rng.integers(0, 256, (50, 60, 3)).astype(np.uint8)
    file = saved(tmp_path / "photo.jpg", Image.fromarray(colours))
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"photo\.jpg: not a readable image .*; fetch it again"):
        read_image(file)


def test_what_is_no_photo_is_refused_by_name(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    for name in ("text.png", "absent.png"):
        why = (
            r"\(of no known kind\); fetch it again" if name == "text.png" else r"\(no such file\)$"
        )
        for read in (read_image, read_header, image_size):
            with pytest.raises(ValueError, match=rf"{name}: not a readable image {why}"):
                read(tmp_path / name)


@pytest.mark.parametrize("size", [(8, 6), (3, 9)])
def test_photos_are_resized_bicubic_and_labels_by_their_neighbours(rng, size):
    photo = rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    wanted = Image.fromarray(photo).resize(size[::-1], Image.Resampling.BICUBIC)
    assert (resized(photo, size) == np.asarray(wanted)).all()
    labels = resized(LABELS, size, labels=True)
    assert labels.shape == size
    assert set(labels.flat) <= set(LABELS.flat)


def test_a_square_of_no_side_is_the_picture_itself():
    assert squared(LABELS, 0) is LABELS
    assert (squared(LABELS, 4) == resized(LABELS, (4, 4), labels=True)).all()
    photo = voc_palette()[LABELS]
    assert (squared(photo, 4) == resized(photo, (4, 4))).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
def test_the_size_of_a_header_is_that_of_the_photo(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = saved(tmp_path / f"turned.{kind}", Image.new("RGB", (20, 12)), exif=exif)
    assert image_size(file) == read_image(file).shape[:2]
    assert read_resized(file, image_size(file)).shape == read_image(file).shape


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "photo.jpg")
    with pytest.raises(ValueError, match=r"photo\.jpg: not a readable image \(no regular file\)"):
        read_image(tmp_path / "photo.jpg")
