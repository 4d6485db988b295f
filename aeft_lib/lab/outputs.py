"""Pictures and pages for users' folders: each says who wrote it, so that nothing else is replaced.

A PNG's text and a page's last line hold the writer, a digest of the content and one of the photo.
"""

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, PngImagePlugin

from aeft_lib import paths
from aeft_lib.data.images import image_size
from aeft_lib.maps.foreign import Unreadable, picture

WRITER, CONTENT = "Software", "Labels"  # names of a PNG's text; the second says pixels today
LONGEST = 230  # bytes of a file's name, with room for the one it is written under first
PAGE = "<!-- {writer} {digest} -->\n"


def check_free(outputs: Mapping[Path, Path | None], folder: Path, writer: str, kind: str) -> None:
    """Raises ValueError where a file that `writer` may not replace stands in the way of an output.

    outputs: the photo of each file to write, None where it is of none.  kind: "label map", say.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file, and must be a folder")
    for output, photo in outputs.items():
        if len(output.name.encode()) > LONGEST:
            raise ValueError(f"{output}: the name is too long, give the photo a shorter one")
        if output.exists() or output.is_symlink():
            problem = foreign(output, photo, writer, kind)
            if problem:
                raise ValueError(f"{output} {problem}: choose another --out, or move it")


def check_apart(pairs: Iterable[tuple[Path, Path]]) -> None:
    """Raises ValueError for two photos that would be one file.  pairs: photo and output."""
    photo_of: dict[str, Path] = {}
    for photo, output in pairs:
        # Some file systems do not tell A from a, nor an accent from one that is composed otherwise.
        name = unicodedata.normalize("NFC", output.name).casefold()
        if name in photo_of:
            both = f"{photo_of[name]} and {photo} would both be written to {output}"
            raise ValueError(f"{both}: predict them apart, with another --out each")
        photo_of[name] = photo


def foreign(file: Path, photo: Path | None, writer: str, kind: str) -> str:
    """Why `writer` must not overwrite a file with what it makes of a photo; "" where it may."""
    if file.suffix == ".html":
        return _foreign_page(file, writer)
    signed = signature(file)
    if signed.get(WRITER) != writer:
        return f"is there and was not written by {writer}"
    if photo and all(signed.get(name) != digest for name, digest in _origin(photo).items()):
        return f"is the {kind} of another photo"
    with picture(file) as opened:
        edited = signed.get(CONTENT) != digest_of(np.array(opened).tobytes())
    return f"was edited since {writer} wrote it" if edited else ""


def _foreign_page(file: Path, writer: str) -> str:
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    body = "".join(text.splitlines(keepends=True)[:-1])
    ours = text == body + PAGE.format(writer=writer, digest=digest_of(body.encode()))
    return "" if ours else f"is there and was not written by {writer}, or was edited since"


def signature(file: Path) -> dict[str, str]:
    """What a PNG's text says of its origin; nothing for any other file."""
    try:
        with picture(file) as opened:
            return dict(opened.info) if opened.format == "PNG" else {}
    except Unreadable:
        return {}


def signed(pixels: np.ndarray, photo: Path | None, writer: str) -> PngImagePlugin.PngInfo:
    """The text of a PNG: who wrote it, digests of its pixels, of the photo and of its place."""
    text = {WRITER: writer, CONTENT: digest_of(pixels.tobytes())}
    signed = PngImagePlugin.PngInfo()
    for name, value in (text | (_origin(photo) if photo else {})).items():
        signed.add_text(name, value)
    return signed


def write_figure(file: Path, figure: Figure, photo: Path | None, writer: str) -> None:
    """Write a figure as a signed PNG, and close it."""
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    plt.close(figure)
    write_png(file, pixels, photo, writer)


def write_png(
    file: Path,
    pixels: np.ndarray,
    photo: Path | None,
    writer: str,
    save: Callable[..., Any] | None = None,
) -> None:
    """Write pixels (H, W, 3) uint8 as a signed PNG, or others by `save(file, pixels, pnginfo=)`."""
    text = signed(pixels, photo, writer)
    with paths.replacing(file) as aside:
        if save:
            save(aside, pixels, pnginfo=text)
        else:
            Image.fromarray(pixels).save(aside, format="PNG", pnginfo=text)


def write_page(file: Path, body: str, writer: str) -> None:
    """Write an HTML page, signed in its last line."""
    body = body if body.endswith("\n") else body + "\n"
    paths.write_text(file, body + PAGE.format(writer=writer, digest=digest_of(body.encode())))


def digest_of(content: bytes) -> str:
    """SHA-256 in hex digits."""
    return hashlib.sha256(content).hexdigest()


def _origin(photo: Path) -> dict[str, str]:
    """By what a photo is known again: its place where it was changed, its content where moved."""
    place = os.fsencode(photo.resolve())
    return {"Place": digest_of(place), "Photo": digest_of(photo.read_bytes())}


def readable(photos: Sequence[Path]) -> Sequence[Path]:
    """The photos.  Raises ValueError for one that is missing or not readable."""
    for photo in photos:
        if not photo.is_file():
            kind = "a folder: name the photos in it" if photo.is_dir() else "not there"
            raise ValueError(f"{photo} is {kind}")
        image_size(photo)  # raises where it is not readable
    return photos


def shares(labels: np.ndarray, classes: Sequence[str]) -> str:
    """What a label map holds, in words: its classes by area, then the background."""
    parts = np.array(Image.fromarray(labels).histogram()[: len(classes) + 1]) / labels.size
    present = [(part, name) for part, name in zip(parts[1:], classes, strict=True) if part]
    shown = [f"{name} {part:.1%}" for part, name in sorted(present, reverse=True)]
    return ", ".join([*shown, f"background {parts[0]:.1%}"])
