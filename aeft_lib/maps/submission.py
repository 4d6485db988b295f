"""A submission to VOC's evaluation server: palette PNGs in the folders it asks for, zipped, and checked before they leave.

The server has no masks of the test split to give away and few submissions a week, so everything that it would refuse is found
here: a missing or surplus image, a label beyond the classes, a void label, another size, a PNG without a palette.
"""

import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from aeft_lib.maps.labels import VOID, write_label_map

PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+")
FOLDER = "results/VOC2012/Segmentation/comp6_{split}_cls"  # comp6: trained with data beyond VOC's, as ImageNet's are


def write(file: Path, named: Iterable[tuple[str, np.ndarray]], *, num_classes: int, split: str = "test") -> int:
    """Write a submission of named label maps (H, W) uint8; returns how many.  The file appears when it is whole.

    Raises ValueError naming the image for a label beyond K or a void one (a prediction has an answer for every pixel), a name
    that is no plain file name or stands twice, or where there is no image.
    """
    partial = file.with_name(f".{file.name}.partial")
    written: set[str] = set()
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:  # PNGs are compressed already
            for name, labels in named:
                if name in written or not PLAIN_NAME.fullmatch(name):
                    raise ValueError(f"{name!r} must be a plain name of an image, and stand once")
                if foreign := _foreign_labels(labels, num_classes):
                    raise ValueError(f"{name}: label {foreign[0]} is outside 0..{num_classes}; a submission has no void")
                content = BytesIO()
                write_label_map(content, labels)
                member = zipfile.ZipInfo(f"{FOLDER.format(split=split)}/{name}.png")  # without a date: the same bytes again
                archive.writestr(member, content.getvalue())
                written.add(name)
        if not written:
            raise ValueError(f"{file}: no label map to submit")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return len(written)


def check(file: Path, sizes: Mapping[str, tuple[int, int]], *, num_classes: int, split: str = "test") -> list[str]:
    """What the server would refuse in a submission, one line a problem; empty where there is none.

    sizes: name -> (H, W) of every image that is asked for.
    Raises ValueError where the file is no zip archive.
    """
    problems: list[str] = []
    prefix = FOLDER.format(split=split) + "/"
    try:
        archive = zipfile.ZipFile(file)
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is not a readable zip archive ({error}): export it again") from error
    with archive:
        counts = Counter(info.filename for info in archive.infolist() if not info.is_dir())
        wanted = {f"{prefix}{name}.png": name for name in sizes}
        problems += [f"{member}: outside {prefix}" for member in counts if not member.startswith(prefix)]
        problems += [f"{name}: missing" for member, name in wanted.items() if member not in counts]
        for member, count in counts.items():
            if not member.startswith(prefix):
                continue
            if member not in wanted:
                problems.append(f"{_short(member, prefix)}: not asked for")
            elif count > 1:
                problems.append(f"{wanted[member]}: stands {count} times")
            else:
                name = wanted[member]
                problems += [f"{name}: {wrong}" for wrong in _problems_of(archive, member, sizes[name], num_classes)]
    return problems


def _short(member: str, prefix: str) -> str:
    """The name of an image, where a member is one in its place."""
    name = member.removeprefix(prefix)
    return name.removesuffix(".png") if PLAIN_NAME.fullmatch(name.removesuffix(".png")) else name


def _problems_of(archive: zipfile.ZipFile, member: str, size: tuple[int, int], num_classes: int) -> list[str]:
    try:
        with Image.open(BytesIO(archive.read(member))) as picture:
            kind, mode, labels = picture.format, picture.mode, np.array(picture)
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError, zipfile.BadZipFile) as error:
        return [f"not a readable PNG ({error})"]
    if (kind, mode) != ("PNG", "P"):
        return [f"a palette PNG is asked for, this is {kind} of mode {mode}"]
    found = [] if labels.shape == tuple(size) else [f"size {labels.shape}, its image {tuple(size)}"]
    foreign = _foreign_labels(labels, num_classes)
    return found + ([f"label {foreign[0]} is outside 0..{num_classes}"] if foreign else [])


def _foreign_labels(labels: np.ndarray, num_classes: int) -> list[int]:
    return [int(label) for label in np.unique(labels) if label > num_classes or label == VOID]
