"""The data doctor: what of a data set is there, which files are wrong, where the rest is published.

It needs no mask and stops at no problem: one line for each file that a reader would refuse, or read
as something else than its mask was drawn on.  The readers say what is listed and what is wrong with
lists and annotations.  By default photos and masks are opened and their headers read, which finds
what is missing, empty, of another size or kind, and the labels of some masks are compared with the
tags of their images; `deep` also decodes every pixel, which finds files that were cut off and
labels that no class has, and compares every mask.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from aeft_lib import paths
from aeft_lib.data import coco, folder, voc
from aeft_lib.data.images import Header, read_header, read_image
from aeft_lib.data.listing import Entry, Listing
from aeft_lib.data.photos import ALL_VOID
from aeft_lib.data.prepare import agreement
from aeft_lib.maps.foreign import picture, reading
from aeft_lib.maps.labels import VOID, check_labels, present_labels, read_label_map

SHOWN = 20  # problems that are printed one by one
SAMPLE = 64  # masks that are compared with tags where not all are
SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
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
    """An image of a list: its entry, its photo's header (None: not readable), what is wrong.

    masks: those whose header is right.
    """

    entry: Entry
    header: Header | None
    problems: list[str]
    masks: Sequence[Path] = ()


def check(what: str, root: Path | None = None, *, deep: bool = False) -> Findings:
    """What there is of a data set, and what is wrong with it.

    what: voc, coco, or the path of an own folder.  root: of VOC or COCO; `paths.voc_root` and
    `paths.coco_root` by default.  deep: decode every photo and mask, and compare every mask with
    its tags.  1,500 images of VOC take a second, deep three, when the disk has been read before.
    Raises ValueError for another `what`.
    """
    if what == "voc":
        root = root or paths.voc_root()
        list_all, title = voc.listing, f"VOC 2012 in {root}"
    elif what == "coco":
        root = root or paths.coco_root()
        list_all, title = coco.listing, f"COCO 2014 in {root}"
    elif what and Path(what).expanduser().is_dir():
        root = Path(what).expanduser()
        list_all, title = folder.listing, f"photos in {root}"
    else:
        known = "voc, of coco, and of an existing folder with photos of your own"
        raise ValueError(f"there is a check of {known}, got {what!r}")
    listing = _listed(list_all, root)
    images = _examined(listing, deep)
    problems = listing.problems + [text for image in images.values() for text in image.problems]
    findings = Findings([title], problems)
    compared = _compared(images, listing.classes, deep)
    findings.problems += [text for mask in compared for text in mask.problems]
    lines, contradictions = agreement.judged(compared, listing.classes)
    findings.problems += contradictions
    for split, names in listing.splits.items():
        listed = [images[name] for name in names]
        findings.lines += _summary(split, listed, listing.classes, listing.published.get(split))
    findings.lines += [*lines, *listing.remarks]
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


def _listed(list_all: Callable[[Path], Listing], root: Path) -> Listing:
    """What a reader lists; whatever it fails at is a problem."""
    try:
        with reading(root, "cannot be listed", ""):
            return list_all(root)
    except ValueError as error:
        return Listing([str(error)])


def _examined(listing: Listing, deep: bool) -> dict[Hashable, Examined]:
    """Every image, each once though several lists may name it."""
    names = list(dict.fromkeys(name for split in listing.splits.values() for name in split))
    with ThreadPoolExecutor(THREADS) as threads:
        examine = partial(_survived, listing.entry, deep)
        return dict(zip(names, threads.map(examine, names), strict=True))


def _survived(entry_of: Callable[[Hashable], Entry], deep: bool, name: Hashable) -> Examined:
    """An image, examined; whatever that fails at is its problem."""
    try:
        with reading(Path(str(name)), "cannot be examined", ""):
            return _examine(entry_of(name), deep)
    except ValueError as error:
        return Examined(Entry(None, annotated=False), None, [str(error)])


def _examine(entry: Entry, deep: bool) -> Examined:
    header = None
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
    wrong = {mask: _mask_problems(mask, header) for mask in entry.masks}
    problems += [text for texts in wrong.values() for text in texts]
    return Examined(entry, header, problems, [mask for mask, texts in wrong.items() if not texts])


def _mask_problems(file: Path, photo: Header | None) -> list[str]:
    """What the header of a mask that exists shows to be wrong."""
    if problems := _absent(file):
        return problems
    try:
        with picture(file, "not a readable mask") as opened:
            kind, mode, size = opened.format, opened.mode, opened.size[::-1]
    except ValueError as error:
        return [str(error)]
    problems = _other_size(f"{file}: has", size, photo)
    if kind != "PNG" or mode not in ("P", "L"):
        rule = "a mask must be a PNG with one 8-bit channel of labels"
        colours = "; save the labels, not their colours" if mode.startswith("RGB") else ""
        problems.append(f"{file}: {rule}, this is {kind}, mode {mode}{colours}")
    return problems


def _compared(
    images: Mapping[Hashable, Examined], classes: Sequence[str], deep: bool
) -> list[agreement.Compared]:
    """The labels of masks beside the tags of their images; not deep: of a sample, evenly taken."""
    rows = [
        (mask, _tags(image.entry, mask, classes))
        for image in images.values()
        for mask in image.masks
    ]
    if not deep:
        rows = [row for row in rows if row[1] is not None]
        taken = min(SAMPLE, len(rows))
        rows = [rows[i * len(rows) // taken] for i in range(taken)]
    read = partial(_read_labels, num_classes=len(classes) or folder.MAX_CLASSES)
    with ThreadPoolExecutor(THREADS) as threads:
        labels = list(threads.map(read, [mask for mask, _ in rows]))
    return [agreement.Compared(*row, *found) for row, found in zip(rows, labels, strict=True)]


def _tags(entry: Entry, mask: Path, classes: Sequence[str]) -> frozenset[int] | None:
    """The labels of an image's tags; None where nothing says them, or the mask is not its first."""
    if not classes or not entry.annotated or entry.problems or mask != entry.masks[0]:
        return None
    return frozenset(number for number, name in enumerate(classes, 1) if name in entry.classes)


def _read_labels(file: Path, num_classes: int) -> tuple[frozenset[int] | None, list[str]]:
    """The labels of a mask, None where it is not readable, and what is wrong with them."""
    labels = None
    try:
        labels = frozenset(present_labels(read_label_map(file, num_classes=VOID - 1)))
        check_labels(file, sorted(labels), num_classes=num_classes)
        if labels == {VOID}:
            return labels, [f"{file}: {ALL_VOID}"]
    except ValueError as error:
        return labels, [str(error)]
    return labels, []


def _absent(file: Path) -> list[str]:
    if not file.is_file():
        others = (file.with_suffix(suffix) for suffix in SUFFIXES)
        near = next((f"; {other.name} is there" for other in others if other.is_file()), "")
        return [f"{file}: missing{near}"]
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
