"""The data doctor: what of a data set is there, which files are wrong, where the rest is published.

It needs no mask and stops at no problem: one line for each file that a reader would refuse, or read
as something else than its mask was drawn on.  The readers say what is listed and what is wrong with
lists and annotations.  By default photos and masks are opened and their headers read, which finds
what is missing, empty, of another size or kind; `deep` also decodes every pixel, which finds files
that were cut off and labels that no class has.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from aeft_lib import paths
from aeft_lib.data import coco, folder, voc
from aeft_lib.data.images import Header, read_header, read_image
from aeft_lib.data.listing import Entry, Listing
from aeft_lib.maps.labels import UNREADABLE, read_label_map

SHOWN = 20  # problems that are printed one by one
THREADS = 8  # a cold disk is waited for
KINDS = {"L": "grey", "1": "grey", "P": "palette", "CMYK": "CMYK"}  # photos that readers convert
VOC_ARCHIVE = (
    "VOC 2012: VOCtrainval_11-May-2012.tar from the PASCAL VOC site, 2.0 GB,"
    " md5 6cd6e144f989b92b3379bac3b3de84fd; unpack it in {root}, it brings the folder VOCdevkit"
)
SBD_ARCHIVE = (
    "train_aug and its masks: benchmark.tgz of SBD, the Semantic Boundaries Dataset, 1.4 GB,"
    " md5 82b4d87ceb2ed10f6038a1cba92111cb; `aeft data fetch voc` makes train_aug of it"
)
COCO_ARCHIVES = (
    "COCO 2014: train2014.zip (13 GB), val2014.zip (6 GB) and annotations_trainval2014.zip (241 MB)"
    " from the COCO site; unpack them in {root}, they bring train2014, val2014 and annotations."
    " No checksum is published for them: `unzip -t` says whether a download is whole"
)
FOLDER_LAYOUT = (
    "an own folder holds classes.txt (one class a line), tags.csv (columns image, split, tags) and"
    " images/; masks/ is needed for scores, the notebooks and the row segment_truth alone"
)


@dataclass
class Findings:
    """lines: what is there.  problems: one line a file.  advice: where to get what is missing."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; a part of a data set is not wrong."""
        return not self.problems

    def text(self) -> str:
        """All of it for a person; of many problems the first 20."""
        shown = [f"wrong: {problem}" for problem in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            shown.append(f"wrong: and {len(self.problems) - SHOWN} more")
        advice = [f"to get: {line}" for line in self.advice]
        return "\n".join([*self.lines, *(shown or ["nothing is wrong"]), *advice])


class Examined(NamedTuple):
    """An image of a list: its entry, its photo's header (None: not readable), what is wrong."""

    entry: Entry
    header: Header | None
    problems: list[str]


def check(what: str, root: Path | None = None, *, deep: bool = False) -> Findings:
    """What there is of a data set, and what is wrong with it.

    what: voc, coco, or the path of an own folder.  root: of VOC or COCO; `paths.voc_root` and
    `paths.coco_root` by default.  deep: decode every photo and mask.  1,500 images of VOC take a
    second, deep three, when the disk has been read before.
    Raises ValueError for another `what`.
    """
    if what == "voc":
        root = root or paths.voc_root()
        listing, title = voc.listing(root), f"VOC 2012 in {root}"
    elif what == "coco":
        root = root or paths.coco_root()
        listing, title = coco.listing(root), f"COCO 2014 in {root}"
    elif what and Path(what).expanduser().is_dir():
        root = Path(what).expanduser()
        listing, title = folder.listing(root), f"photos in {root}"
    else:
        known = "voc, of coco, and of an existing folder with photos of your own"
        raise ValueError(f"there is a check of {known}, got {what!r}")
    images = _examined(listing, deep)
    problems = listing.problems + [text for image in images.values() for text in image.problems]
    findings = Findings([title], problems)
    for split, names in listing.splits.items():
        listed = [images[name] for name in names]
        findings.lines += _summary(split, listed, listing.classes, listing.published.get(split))
    findings.lines += listing.remarks
    findings.advice = _advice(what, root, listing, images, findings.ok)
    return findings


def _advice(
    what: str, root: Path, listing: Listing, images: Mapping[Hashable, Examined], ok: bool
) -> list[str]:
    """The archives of what is missing or wrong."""
    published = {"voc": voc.SPLITS, "coco": coco.SPLITS}.get(what, {})
    partly = {split for split, n in published.items() if len(listing.splits.get(split, ())) < n}
    if what == "coco":
        return [COCO_ARCHIVES.format(root=root)] if partly or not ok else []
    if what != "voc":
        return [] if ok else [FOLDER_LAYOUT]
    augmented = listing.splits.get("train_aug", ())
    maskless = any(not images[name].entry.masked for name in augmented)
    advice = [VOC_ARCHIVE.format(root=root)] if partly - {"train_aug"} or not ok else []
    return advice + ([SBD_ARCHIVE] if "train_aug" in partly or maskless else [])


def _examined(listing: Listing, deep: bool) -> dict[Hashable, Examined]:
    """Every image, each once though several lists may name it."""
    names = list(dict.fromkeys(name for split in listing.splits.values() for name in split))
    num_classes = len(listing.classes) or folder.MAX_CLASSES
    with ThreadPoolExecutor(THREADS) as threads:
        examine = partial(_examine, listing.entry, num_classes, deep)
        return dict(zip(names, threads.map(examine, names), strict=True))


def _examine(
    entry_of: Callable[[Hashable], Entry], num_classes: int, deep: bool, name: Hashable
) -> Examined:
    entry, header = entry_of(name), None
    problems = list(_absent(entry.photo)) if entry.photo else []
    if entry.photo and not problems:
        try:
            header = read_header(entry.photo)
            if deep:
                read_image(entry.photo)
        except ValueError as error:
            problems.append(str(error))
    problems += entry.problems
    problems += _other_size(*entry.claim, header) if entry.claim else []
    for mask in entry.masks:
        problems += _mask_problems(mask, header, num_classes, deep)
    return Examined(entry, header, problems)


def _mask_problems(file: Path, photo: Header | None, num_classes: int, deep: bool) -> list[str]:
    """What is wrong with a mask that exists."""
    if problems := _absent(file):
        return problems
    try:
        with Image.open(file) as picture:
            kind, mode, size = picture.format, picture.mode, picture.size[::-1]
        problems = _other_size(f"{file}: has", size, photo)
        if kind != "PNG" or mode not in ("P", "L"):
            rule = "a mask must be a PNG with one 8-bit channel of labels"
            problems.append(f"{file}: {rule}, this is {kind}, mode {mode}")
        elif deep:
            read_label_map(file, num_classes=num_classes)
    except UNREADABLE as error:
        problems.append(f"{file}: not a readable mask ({error})")
    except ValueError as error:
        problems.append(str(error))
    return problems


def _absent(file: Path) -> list[str]:
    if not file.is_file():
        return [f"{file}: missing"]
    return [] if file.stat().st_size else [f"{file}: empty (0 bytes)"]


def _other_size(claimant: str, size: tuple[int, int], photo: Header | None) -> list[str]:
    """The problem of a size (H, W) that is not the photo's, where that is known."""
    if photo is None or photo.size == size:
        return []
    turned = "; an EXIF tag turns the photo: save it without" if photo.stored == size else ""
    ours, theirs = (f"{width}x{height}" for height, width in (size, photo.size))
    return [f"{claimant} {ours} pixels, the photo has {theirs}{turned}"]


def _summary(
    split: str, images: Sequence[Examined], classes: Sequence[str], published: int | None
) -> list[str]:
    """What a list has: images, masks, images of every class; published: how many it should have."""
    if not images:
        return [f"{split}: nothing listed"]
    entries = [image.entry for image in images]
    headers = [image.header for image in images if image.header]
    counts = Counter(name for entry in entries for name in entry.classes)
    whole = "" if published is None else f" of {published} in the published list"
    whole = " (all)" if len(images) == published else whole
    masked = sum(entry.masked for entry in entries)
    present = ", ".join(f"{name} {counts[name]}" for name in classes if counts[name])
    unmasked, absent = len(images) - masked, ", ".join(c for c in classes if not counts[c])
    bare = sum(not entry.annotated for entry in entries)
    classless = sum(entry.annotated and not entry.classes for entry in entries)
    kinds = Counter(KINDS[header.mode] for header in headers if header.mode in KINDS)
    converted = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
    turned = sum(header.turn in range(2, 9) for header in headers)
    masks = f"{unmasked}; seeds, label maps and networks need none, scores do"
    lines = {
        f"{split}: {len(images)} images{whole}, {masked} with a mask": True,
        f"  without a mask: {masks}": unmasked,
        f"  images a class: {present or 'none'}": True,
        f"  no image of: {absent}": absent,
        f"  images without an annotation: {bare}": bare,
        f"  images without a class: {classless}": classless,
        f"  read as RGB: {converted}": converted,
        f"  turned by an EXIF tag: {turned}; look whether their masks are turned too": turned,
    }
    return [line for line, shown in lines.items() if shown]
