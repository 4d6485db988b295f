"""Photos on disk: read as RGB, measured by their headers, resized.  Label maps stand in `maps`."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from aeft_lib.maps.foreign import Unreadable, picture

ORIENTATION = 0x0112  # EXIF: 1 upright, 2..4 mirrored or on its head, 5..8 lying on its side
LYING = (5, 6, 7, 8)


class Header(NamedTuple):
    """A photo's header.  mode: Pillow's.  stored: (H, W) in the file.  turn: EXIF orientation."""

    mode: str
    stored: tuple[int, int]
    turn: int

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) as `read_image` gives it."""
        return self.stored[::-1] if self.turn in LYING else self.stored


def read_header(file: Path) -> Header:
    """The header alone.  Raises ValueError as `read_image` does where the header shows it."""
    with picture(file) as opened:
        _check_depth(file, opened)
        # Pillow gives the size of a TIFF as it is turned already.
        turn = 1 if opened.format == "TIFF" else opened.getexif().get(ORIENTATION, 1)
        return Header(opened.mode, opened.size[::-1], turn)


def image_size(file: Path) -> tuple[int, int]:
    """(H, W) of a photo as `read_image` gives it.  Raises ValueError as `read_header` does."""
    return read_header(file).size


def read_image(file: Path) -> np.ndarray:
    """Read a photo as (H, W, 3) uint8 RGB, turned as its EXIF tag says.

    Grey, palette and CMYK pictures become RGB.
    Raises ValueError naming the file: missing, cut off, of none of the known formats, or of 16
    bits, whose range nobody knows.
    """
    with picture(file) as opened:
        _check_depth(file, opened)
        return np.array(ImageOps.exif_transpose(opened).convert("RGB"))


def read_resized(file: Path, size: tuple[int, int]) -> np.ndarray:
    """``resized(read_image(file), size)`` without the whole photo in memory where that is large.

    A JPEG at least four times as large is decoded at a smaller scale, still twice as large.
    Raises ValueError as `read_image` does.
    """
    height, width = size
    with picture(file) as opened:
        _check_depth(file, opened)
        lying = opened.getexif().get(ORIENTATION, 1) in LYING
        opened.draft("RGB", (2 * height, 2 * width) if lying else (2 * width, 2 * height))
        ImageOps.exif_transpose(opened, in_place=True)
        colours = opened if opened.mode == "RGB" else opened.convert("RGB")
        return np.array(colours.resize((width, height), Image.Resampling.BICUBIC))


def resized(image: np.ndarray, size: tuple[int, int], *, labels: bool = False) -> np.ndarray:
    """A photo (H, W, 3), bicubic, or its labels (H, W), nearest, at another (height, width)."""
    method = Image.Resampling.NEAREST if labels else Image.Resampling.BICUBIC
    return np.array(Image.fromarray(image).resize((size[1], size[0]), method))


def squared(picture: np.ndarray, size: int) -> np.ndarray:
    """A photo (H, W, 3) or a mask (H, W) as a square of `size`; 0 leaves it as it is."""
    return resized(picture, (size, size), labels=picture.ndim == 2) if size else picture


def _check_depth(file: Path, opened: Image.Image) -> None:
    coding = str(opened.tile[0][3]) if opened.tile else ""  # the mode of RGB hides 16 bits
    if opened.mode.startswith(("I", "F")) or ";16" in coding:
        remedy = f"16 bits or more a channel (mode {opened.mode}); save it with 8"
        raise Unreadable(f"{file}: {remedy}")
