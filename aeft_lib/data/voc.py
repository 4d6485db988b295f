"""PASCAL VOC 2012 in the layout of its own archive: tags from its annotations, masks on demand.

``VOCdevkit/VOC2012/`` below the root holds ``JPEGImages``, ``Annotations``,
``ImageSets/Segmentation`` and ``SegmentationClass``; ``SegmentationClassAug`` and
``ImageSets/Segmentation/train_aug.txt`` come from SBD (Hariharan et al., 2011).  The root is
`paths.voc_root`.  A class is tagged where an object of it is annotated, difficult ones too, as
AffinityNet and the reference take them.
"""

import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from aeft_lib import paths
from aeft_lib.data.listing import Entry, Listing, files_below, named, near_miss, odd_name
from aeft_lib.data.photos import Photos, check_selection, contents, read_mask, relabelled, selected
from aeft_lib.data.scene import opened
from aeft_lib.engine import fields
from aeft_lib.maps.foreign import Unreadable, reading
from aeft_lib.maps.labels import VOID

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person"),
    *("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
# Images of the published lists.
SPLITS = {"train": 1464, "val": 1449, "trainval": 2913, "train_aug": 10582}
HOME = Path("VOCdevkit") / "VOC2012"
MASKS = ("SegmentationClass", "SegmentationClassAug")  # VOC's own first: they are finer


@dataclass(frozen=True)
class VocSpec:
    """split: one of the lists.  count: so many of its images; 0 is all.

    size: side they are squared to, in pixels; 0 leaves them as they are.
    classes: those that count, in this order; pixels of the others are void, and so are their tags.
    """

    split: str
    count: int = 0
    size: int = 0
    classes: tuple[str, ...] = CLASSES

    def __post_init__(self) -> None:
        fields.choice(self, split=tuple(SPLITS))
        check_selection(self)
        if unknown := [name for name in self.classes if name not in CLASSES]:
            names = ", ".join(CLASSES)
            raise ValueError(f"class {unknown[0]!r} is none of VOC's; there are {names}")
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes must be different, and at least one, got {self.classes}")

    def open(self) -> "Voc":
        """The scenes of this spec, kept for the process.  Raises ValueError as `Voc` does."""
        return opened(Voc, self)


class Voc(Photos):
    """The scenes of a `VocSpec`: ``Voc(spec)[3]``, or ``image``, ``tags`` and ``mask`` apart."""

    def __init__(self, spec: VocSpec, root: Path | None = None) -> None:
        """root: holds ``VOCdevkit``; `paths.voc_root` by default.  Raises as `read_list` does."""
        self.spec, self.classes = spec, spec.classes
        self.home = (root or paths.voc_root()) / HOME
        self.names = selected(read_list(self.home, spec.split), spec.count)
        numbers = {name: number for number, name in enumerate(spec.classes, start=1)}
        self._numbers = [0, *(numbers.get(name, VOID) for name in CLASSES)]

    def image_file(self, name: str) -> Path:
        """Where the photo of this name stands."""
        return self.home / "JPEGImages" / f"{name}.jpg"

    def read_tags(self, name: str) -> np.ndarray:
        """Its tags, from its annotation alone."""
        named, _ = read_annotation(self.home / "Annotations" / f"{name}.xml")
        return np.array([known in named for known in self.classes])

    def read_mask(self, name: str) -> np.ndarray:
        """Its mask, VOC's own before SBD's."""
        files = _mask_files(self.home, name)
        if not files:
            places = " nor ".join(str(self.home / folder / f"{name}.png") for folder in MASKS)
            raise ValueError(f"{name} has no mask: neither {places}; see `aeft data check voc`")
        return relabelled(read_mask(files[0], num_classes=len(CLASSES)), self._numbers)

    def mask_digest(self, name: str) -> bytes:
        """Of its mask's file."""
        files = _mask_files(self.home, name)
        return contents(files[0]) if files else b""


def listing(root: Path) -> Listing:
    """What VOC lists below a root, for the data doctor."""
    home = root / HOME
    if not home.is_dir():
        return Listing([f"{home}: no such folder; {_root_remedy(root)}"])
    folders, lists = [home / "JPEGImages", home / "Annotations"], {}
    problems = [f"{folder}: no such folder" for folder in folders if not folder.is_dir()]
    for split in SPLITS:
        lists[split], wrong = _listed(home, split)
        problems += wrong
    if not any(lists.values()):
        problems.append(f"{home / 'ImageSets' / 'Segmentation'}: no list of images")
    for name in sorted({*lists["train"], *lists["train_aug"]} & set(lists["val"])):
        where = " and ".join(split for split in ("train", "train_aug") if name in lists[split])
        problems.append(
            f"{name}: stands in {where}, and in val too; results on val would not count"
        )
    strangers = _masks_of_no_photo(home) if folders[0].is_dir() else []
    if not all(_mask_files(home, name) for split in lists.values() for name in split):
        problems, strangers = problems + strangers, []  # they may be those that are missing
    return Listing(problems, lists, SPLITS, partial(_entry, home), CLASSES, strangers)


def _masks_of_no_photo(home: Path) -> list[str]:
    """A line for each folder of masks with files whose names are no photo's."""
    masks = {f"{Path(name).stem}.png" for name in files_below(home / "JPEGImages")}
    strangers = {part: named(files_below(home / part).keys() - masks) for part in MASKS}
    rule = "a mask has its photo's name, with the suffix .png"
    return [f"in {part}/, but of no photo: {n}; {rule}" for part, n in strangers.items() if n]


def _entry(home: Path, name: str) -> Entry:
    file, photo = home / "Annotations" / f"{name}.xml", home / "JPEGImages" / f"{name}.jpg"
    classes, size, problems, masks = set(), None, [], _mask_files(home, name)
    if not file.is_file():
        problems = [f"{file}: missing"] if file.parent.is_dir() else []
    else:
        try:
            classes, size = read_annotation(file)
        except ValueError as error:
            problems = [str(error)]
    photo, masked = photo if photo.parent.is_dir() else None, bool(masks)
    claim = (f"{file}: says", size) if size else None
    return Entry(photo, frozenset(classes), file.is_file(), masked, masks, claim, problems)


def _mask_files(home: Path, name: str) -> list[Path]:
    files = (home / folder / f"{name}.png" for folder in MASKS)
    return [file for file in files if file.is_file()]


def _list_file(home: Path, split: str) -> Path:
    return home / "ImageSets" / "Segmentation" / f"{split}.txt"


def _listed(home: Path, split: str) -> tuple[list[str], list[str]]:
    """The names of a split, each once, and what is wrong with its list; none without a list."""
    if not (file := _list_file(home, split)).is_file():
        near = near_miss(file)
        return [], [f"{near}: rename it to {file.name}, which is missing"] if near else []
    try:
        with reading(file, "not a readable list", "save it as UTF-8"):
            lines = file.read_text(encoding="utf-8-sig").split()
    except Unreadable as error:
        return [], [str(error)]
    counts = Counter(name for name in lines if not odd_name(name))
    problems = [] if lines else [f"{file}: lists no image"]
    if odd := [name for name in lines if odd_name(name)]:  # train_aug circulates in pairs of paths
        number, remedy = len(odd), "names without folder and suffix are needed"
        problems.append(f"{file}: {number} entries like {odd[0][:100]!r}; {remedy}")
    problems += [f"{file}: {name} stands {n} times" for name, n in counts.items() if n > 1]
    return list(counts), problems


def read_list(home: Path, split: str) -> list[str]:
    """The names of a split.

    Raises ValueError where its list is missing, empty, holds paths or names an image twice.
    """
    names, problems = _listed(home, split)
    if (file := _list_file(home, split)).is_file():
        if problems:
            raise ValueError(f"{problems[0]}; fetch it again")
        return names
    if problems:
        raise ValueError(problems[0])
    remedy = f"{_root_remedy(home.parents[1])}; `aeft data check voc` says more"
    raise ValueError(f"no {file}: {remedy}")


def _root_remedy(root: Path) -> str:
    """What AEFT_VOC_ROOT must name, and where that is if it names a folder inside."""
    rule = f"AEFT_VOC_ROOT must name the folder that holds {HOME}"
    inside = [up for up in root.resolve().parents[:2] if (up / HOME).is_dir()]
    return f"{rule}; that is {inside[0]}" if inside else rule


def read_annotation(file: Path) -> tuple[set[str], tuple[int, int] | None]:
    """Classes of the annotated objects, and the image's size (H, W) where it stands there.

    Raises ValueError for a file that is missing, no XML, names an unknown class or an odd size.
    """
    with reading(file, "not a readable annotation"):
        root = ET.parse(file, ET.XMLParser(target=_Builder())).getroot()
    names = {(item.findtext("name") or "").strip() for item in root.findall("object")}
    if unknown := sorted(names - set(CLASSES)):
        text = f"class {unknown[0][:100]!r} is none of VOC's {len(CLASSES)}"
        raise ValueError(f"{file}: {text}")
    sides = [root.findtext(f"size/{side}") for side in ("height", "width")]
    if None in sides:
        return names, None
    if not all(re.fullmatch(r"\s*[0-9]{1,9}\s*", side) for side in sides):
        raise ValueError(f"{file}: its size {[side[:100] for side in sides]} is no number")
    return names, (int(sides[0]), int(sides[1]))


class _Builder(ET.TreeBuilder):
    """Refuses declarations: VOC has none, and entities in them can fill the memory."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise ValueError("a document type declaration")
