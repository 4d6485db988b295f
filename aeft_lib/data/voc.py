"""PASCAL VOC 2012 in the layout of its own archive: tags from its annotations, masks read only when they are asked for.

``VOCdevkit/VOC2012/`` below the root holds ``JPEGImages``, ``Annotations``, ``ImageSets/Segmentation`` and
``SegmentationClass``; ``SegmentationClassAug`` and ``ImageSets/Segmentation/train_aug.txt`` come from SBD (Hariharan et al.,
2011).  The root is `paths.voc_root`.  A class is tagged where an object of it is annotated, difficult ones too, as AffinityNet
and the reference take them.
"""

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aeft_lib import paths
from aeft_lib.data.scene import Photos, check_selection, contents, opened, relabelled, selected
from aeft_lib.maps.labels import VOID, read_label_map

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
SPLITS = {"train": 1464, "val": 1449, "trainval": 2913, "train_aug": 10582}  # images of the published lists
HOME = Path("VOCdevkit") / "VOC2012"
MASKS = ("SegmentationClass", "SegmentationClassAug")  # VOC's own first: they are finer


@dataclass(frozen=True)
class VocSpec:
    """split: one of the lists.  count: so many of its images; 0 is all.  size: side they are squared to; 0 leaves them.

    classes: those that count, in this order; pixels of the others are void, and so are their tags.
    """

    split: str
    count: int = 0
    size: int = 0
    classes: tuple[str, ...] = CLASSES

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        check_selection(self.count, self.size)
        if unknown := [name for name in self.classes if name not in CLASSES]:
            raise ValueError(f"class {unknown[0]!r} is none of VOC's; there are {', '.join(CLASSES)}")
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes must be different, and at least one, got {self.classes}")

    def open(self) -> "Voc":
        """The scenes of this spec, kept for the process.  Raises ValueError as `Voc` does."""
        return opened(Voc, self)


class Voc(Photos):
    """The scenes of a `VocSpec`: ``image``, ``tags`` and ``mask`` one by one, or all at once as ``Voc(spec)[3]``."""

    def __init__(self, spec: VocSpec, root: Path | None = None) -> None:
        """root: holds ``VOCdevkit``; `paths.voc_root` by default.  Raises ValueError where the list is missing or empty."""
        self.spec, self.classes, self.home = spec, spec.classes, (root or paths.voc_root()) / HOME
        self.names = selected(read_list(self.home, spec.split), spec.count)
        numbers = [0, *(spec.classes.index(name) + 1 if name in spec.classes else VOID for name in CLASSES)]
        self._numbers = numbers

    def image_file(self, name: str) -> Path:
        """Where the photo of this name stands."""
        return self.home / "JPEGImages" / f"{name}.jpg"

    def read_tags(self, name: str) -> np.ndarray:
        """Its tags, from its annotation alone."""
        named = annotated_classes(self.home / "Annotations" / f"{name}.xml")
        return np.array([known in named for known in self.classes])

    def read_mask(self, name: str) -> np.ndarray:
        """Its mask, VOC's own before SBD's."""
        file = self._mask_file(name)
        if file is None:
            files = " nor ".join(str(self.home / folder / f"{name}.png") for folder in MASKS)
            raise ValueError(f"{name} has no mask: neither {files}; see `aeft data check voc`")
        return relabelled(read_label_map(file, num_classes=len(CLASSES)), self._numbers)

    def mask_digest(self, name: str) -> bytes:
        """Of its mask's file."""
        file = self._mask_file(name)
        return contents(file) if file else b""

    def _mask_file(self, name: str) -> Path | None:
        files = (self.home / folder / f"{name}.png" for folder in MASKS)
        return next((file for file in files if file.is_file()), None)


def read_list(home: Path, split: str) -> list[str]:
    """The names of a split.  Raises ValueError where its list is missing, empty, holds paths or names an image twice."""
    file = home / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not file.is_file():
        raise ValueError(f"no {file}: AEFT_VOC_ROOT must name the folder that holds {HOME}; `aeft data check voc` says more")
    names = file.read_text(encoding="utf-8-sig", errors="replace").split()
    if not names:
        raise ValueError(f"{file} lists no image: fetch it again")
    if paths_listed := [name for name in names if "/" in name]:  # train_aug circulates as pairs of paths, too
        raise ValueError(f"{file} lists {paths_listed[0]!r}: one name a line is needed, without folder and suffix")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"{file} lists {twice} twice: fetch it again")
    return names


def annotated_classes(file: Path) -> set[str]:
    """Classes of the annotated objects.  Raises ValueError for a file that is missing, no XML, or names an unknown class."""
    try:
        objects = ET.parse(file).getroot().findall("object")
    except (OSError, ET.ParseError) as error:
        raise ValueError(f"{file}: not a readable annotation ({error}); fetch it again") from error
    names = {(found.findtext("name") or "").strip() for found in objects}
    if unknown := sorted(names - set(CLASSES)):
        raise ValueError(f"{file}: class {unknown[0]!r} is none of VOC's {len(CLASSES)}")
    return names
