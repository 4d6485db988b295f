"""A submission to VOC's evaluation server: palette PNGs in the folders it asks for, zipped.

The server allows few submissions a week, so labels that it would refuse are refused here: beyond
the classes, void, or under a name that stands twice.
"""

import re
import zipfile
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import numpy as np

from aeft_lib import paths
from aeft_lib.maps.labels import VOID, write_label_map

PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+")
# comp6: trained with data beyond VOC's, as ImageNet's are.
FOLDER = "results/VOC2012/Segmentation/comp6_{split}_cls"
WRITER = b"aeft export"  # the comment of an archive that is made here


def write(
    file: Path, named: Iterable[tuple[str, np.ndarray]], *, num_classes: int, split: str = "test"
) -> int:
    """Write a submission of named label maps (H, W) uint8; returns how many.

    The file appears when it is whole.
    Raises ValueError naming the image for a label beyond K or a void label (a prediction has an
    answer for every pixel), a name that is no plain file name or stands twice, or where there is no
    image.
    """
    home, written = FOLDER.format(split=split), set()
    with paths.replacing(file) as aside:
        # Stored: PNGs are compressed already.
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:
            archive.comment = WRITER
            for name, labels in named:
                if name in written or not PLAIN_NAME.fullmatch(name):
                    raise ValueError(f"{name!r} must be a plain name of an image, and stand once")
                if foreign := _foreign_labels(labels, num_classes):
                    rule = f"is outside 0..{num_classes}; a submission has no void"
                    raise ValueError(f"{name}: label {foreign[0]} {rule}")
                content = BytesIO()
                write_label_map(content, labels)
                member = zipfile.ZipInfo(f"{home}/{name}.png")  # undated: the same bytes again
                archive.writestr(member, content.getvalue())
                written.add(name)
        if not written:
            raise ValueError(f"{file}: no label map to submit")
    return len(written)


def is_submission(file: Path) -> bool:
    """Whether a file is an archive that `write` made: its comment says so."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.comment == WRITER
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError):
        return False


def _foreign_labels(labels: np.ndarray, num_classes: int) -> list[int]:
    return [int(label) for label in np.unique(labels) if label > num_classes or label == VOID]
