"""The data doctor: what of a data set is there, which files are wrong, and where the rest is published.

It needs no mask and stops at no problem: one line for each file that a reader would refuse, or read as something else than its
mask was drawn on.  By default it opens every listed file and reads headers and annotations, which finds what is missing, empty,
of another size or kind; `deep` also decodes every pixel, which finds files that were cut off and labels that no class has.
"""

import json
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from aeft_lib import paths
from aeft_lib.data import coco, folder, voc
from aeft_lib.data.prepare.findings import (
    Findings,
    Photo,
    Seen,
    look,
    mask_problems,
    other_size,
    read_photo,
    summary,
)

VOC_ARCHIVE = (
    "VOC 2012: VOCtrainval_11-May-2012.tar from the PASCAL VOC site, 2.0 GB, md5 6cd6e144f989b92b3379bac3b3de84fd;"
    " unpack it in {root}, it brings the folder VOCdevkit"
)
SBD_ARCHIVE = (
    "train_aug and its masks: benchmark.tgz of SBD, the Semantic Boundaries Dataset, 1.4 GB,"
    " md5 82b4d87ceb2ed10f6038a1cba92111cb; `aeft data fetch voc` makes train_aug of it"
)
COCO_ARCHIVES = (
    "COCO 2014: train2014.zip (13 GB), val2014.zip (6 GB) and annotations_trainval2014.zip (241 MB) from the COCO site;"
    " unpack them in {root}, they bring train2014, val2014 and annotations."
    " No checksum is published for them: `unzip -t` says whether a download is whole"
)
FOLDER_LAYOUT = (
    "an own folder holds classes.txt (one class a line), tags.csv (columns image, split, tags) and images/;"
    " masks/ is needed for mIoU alone"
)


def check(what: str, root: Path | None = None, *, deep: bool = False) -> Findings:
    """What there is of a data set, and what is wrong with it.

    what: voc, coco, or the path of an own folder.  root: of VOC or COCO; `paths.voc_root` and `paths.coco_root` by default.
    deep: decode every photo and mask.  1,500 images of VOC take a second, deep three, when the disk has been read before.
    Raises ValueError for another `what`.
    """
    if what == "voc":
        return _check_voc(root or paths.voc_root(), deep)
    if what == "coco":
        return _check_coco(root or paths.coco_root(), deep)
    if what and Path(what).expanduser().is_dir():
        return _check_folder(Path(what).expanduser(), deep)
    raise ValueError(
        f"there is a check of voc, of coco, and of an existing folder with photos of your own, got {what!r}"
    )


# --- VOC -------------------------------------------------------------------------------------------------------------


def _check_voc(root: Path, deep: bool) -> Findings:
    home, found = root / voc.HOME, Findings([f"VOC 2012 in {root}"])
    lists = {split: _voc_list(home, split, found) for split in voc.SPLITS} if home.is_dir() else {}
    if not home.is_dir():
        found.problems.append(
            f"{home}: no such folder; AEFT_VOC_ROOT must name the folder that holds {voc.HOME}"
        )
    elif not any(lists.values()):
        found.problems.append(f"{home / 'ImageSets' / 'Segmentation'}: no list of images")
    there = {name for name in ("JPEGImages", "Annotations") if (home / name).is_dir()}
    if home.is_dir():
        found.problems += [
            f"{home / name}: no such folder"
            for name in ("JPEGImages", "Annotations")
            if name not in there
        ]
    seen = look(
        partial(_voc_image, home, there, deep),
        (name for names in lists.values() for name in names),
        found,
    )
    for split, names in lists.items():
        found.lines += summary(split, names, seen, voc.CLASSES, voc.SPLITS[split])
    found.problems += _leaks(lists)
    found.advice += _voc_advice(root, lists, seen, found)
    return found


def _voc_list(home: Path, split: str, found: Findings) -> list[str]:
    """The names of a list, none where it does not exist; what is wrong with them goes to the problems."""
    file = home / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not file.is_file():
        return []
    entries = file.read_text(encoding="utf-8-sig", errors="replace").split()
    found.problems += [] if entries else [f"{file}: lists no image"]
    if odd := [name for name in entries if "/" in name]:
        found.problems.append(
            f"{file}: {len(odd)} entries like {odd[0]!r}; names without folder and suffix are needed"
        )
    counts = Counter(name for name in entries if "/" not in name)
    found.problems += [f"{file}: {name} stands {n} times" for name, n in counts.items() if n > 1]
    return list(counts)


def _voc_image(home: Path, there: set[str], deep: bool, name: str) -> Seen:
    """One image of VOC; there: the folders that exist, each other is one problem and not one an image."""
    photo = (
        read_photo(home / "JPEGImages" / f"{name}.jpg", deep) if "JPEGImages" in there else Photo()
    )
    file = home / "Annotations" / f"{name}.xml"
    classes, problems = _voc_annotation(file, photo) if "Annotations" in there else (set(), ())
    masks = [mask for part in voc.MASKS if (mask := home / part / f"{name}.png").is_file()]
    problems = [
        *photo.problems,
        *problems,
        *(wrong for mask in masks for wrong in mask_problems(mask, photo, len(voc.CLASSES), deep)),
    ]
    return Seen(
        frozenset(classes), file.is_file(), bool(masks), photo.kind, photo.turned, tuple(problems)
    )


def _voc_annotation(file: Path, photo: Photo) -> tuple[set[str], tuple[str, ...]]:
    """The classes of an annotation, and what is wrong with it."""
    if not file.is_file():
        return set(), (f"{file}: missing",)
    problems, classes = [], set()
    try:
        classes = voc.annotated_classes(file)
    except ValueError as error:
        problems.append(str(error))
    try:
        values = [ET.parse(file).getroot().findtext(f"size/{side}") for side in ("width", "height")]
        size = None if None in values else (int(values[0]), int(values[1]))
        problems += other_size(f"{file}: says", size, photo) if size else []
    except (OSError, ET.ParseError):
        pass  # said above
    except ValueError:
        problems.append(f"{file}: its size {values} is no number")
    return classes, tuple(problems)


def _leaks(lists: Mapping[str, Sequence[str]]) -> list[str]:
    """Images of the validation list that a model is also trained on."""
    held_out, leaks = set(lists.get("val", ())), []
    for name in sorted(held_out & {*lists.get("train", ()), *lists.get("train_aug", ())}):
        where = [split for split in ("train", "train_aug") if name in lists.get(split, ())]
        leaks.append(
            f"{name}: stands in {' and '.join(where)}, and in val too; results on val would not count"
        )
    return leaks


def _voc_advice(
    root: Path, lists: Mapping[str, Sequence[str]], seen: Mapping[str, Seen], found: Findings
) -> list[str]:
    """The archives of what is missing or wrong."""
    partly = {
        split for split, published in voc.SPLITS.items() if len(lists.get(split, ())) < published
    }
    maskless = any(not seen[name].masked for name in lists.get("train_aug", ()))
    advice = [VOC_ARCHIVE.format(root=root)] if found.problems or partly - {"train_aug"} else []
    return advice + ([SBD_ARCHIVE] if "train_aug" in partly or maskless else [])


# --- COCO ------------------------------------------------------------------------------------------------------------


def _check_coco(root: Path, deep: bool) -> Findings:
    found, ids = Findings([f"COCO 2014 in {root}"]), {}
    for split in coco.SPLITS:
        ids[split] = _coco_split(root, split, deep, found)
    if not root.is_dir():
        found.problems.append(
            f"{root}: no such folder; AEFT_COCO_ROOT must name the folder that holds annotations"
        )
    elif not any(ids.values()) and found.ok:
        found.problems.append(
            f"{root / 'annotations'}: no instances_train2014.json and no instances_val2014.json"
        )
    both = sorted(ids["train2014"] & ids["val2014"])
    found.problems += [
        f"image {i}: stands in train2014 and in val2014; results on val2014 would not count"
        for i in both
    ]
    if not found.ok or any(len(ids[split]) < published for split, published in coco.SPLITS.items()):
        found.advice.append(COCO_ARCHIVES.format(root=root))
    return found


def _coco_split(root: Path, split: str, deep: bool, found: Findings) -> set[int]:
    """Add what one split has to the findings; returns the ids of its images."""
    file, photos = root / "annotations" / f"instances_{split}.json", root / split
    if not file.is_file():
        found.lines.append(f"{split}: nothing listed")
        found.problems += [f"{file}: missing, but {photos} is there"] if photos.is_dir() else []
        return set()
    try:
        content = json.loads(file.read_bytes())
        categories = {one["id"]: str(one["name"]) for one in content["categories"]}
        images = {one["id"]: one for one in content["images"]}
        names = {i: Path(one["file_name"]).stem for i, one in images.items()}
        classes = _coco_objects(file, content, categories, names, found)
        sizes = {names[i]: (one["width"], one["height"]) for i, one in images.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found.problems.append(f"{file}: not readable as COCO's instances ({error!r})")
        return set()
    found.problems += [] if photos.is_dir() else [f"{photos}: no such folder"]
    seen = look(partial(_coco_image, photos, deep, sizes, classes), sizes, found)
    found.lines += summary(split, list(sizes), seen, list(categories.values()), coco.SPLITS[split])
    return set(images)


def _coco_objects(
    file: Path,
    content: dict[str, Any],
    categories: Mapping[int, str],
    names: Mapping[int, str],
    found: Findings,
) -> dict[str, set[str]]:
    """The classes of every image that has an annotation; what is wrong with annotations goes to the problems."""
    found.problems += [f"{file}: no image"] if not names else []
    found.problems += [f"{file}: no category"] if not categories else []
    for kind, values in (
        ("id", [one["id"] for one in content["images"]]),
        ("name", list(names.values())),
    ):
        found.problems += [
            f"{file}: image {kind} {value} stands {n} times"
            for value, n in Counter(values).items()
            if n > 1
        ]
    classes: dict[str, set[str]] = {}
    for one in content["annotations"]:
        wrong = [] if _outlined(one.get("segmentation")) else ["has no outline"]
        wrong += (
            []
            if one["category_id"] in categories
            else [f"has the unknown category {one['category_id']}"]
        )
        wrong += (
            [] if one["image_id"] in names else [f"belongs to the unknown image {one['image_id']}"]
        )
        found.problems += (
            [f"{file}: annotation {one.get('id')} {' and '.join(wrong)}"] if wrong else []
        )
        if one["image_id"] in names:
            classes.setdefault(names[one["image_id"]], set()).update(
                {categories.get(one["category_id"])} - {None}
            )
    return classes


def _outlined(outline: object) -> bool:
    """Whether an annotation has polygons of at least three points, or run lengths."""
    if isinstance(outline, dict):
        return bool(outline.get("counts"))
    parts = outline if isinstance(outline, list) else []
    return bool(parts) and all(
        isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 for part in parts
    )


def _coco_image(
    photos: Path,
    deep: bool,
    sizes: Mapping[str, tuple[int, int]],
    classes: Mapping[str, set[str]],
    name: str,
) -> Seen:
    photo = read_photo(photos / f"{name}.jpg", deep) if photos.is_dir() else Photo()
    problems = [
        *photo.problems,
        *other_size(f"{photos / name}.jpg: the annotations say", sizes[name], photo),
    ]
    return Seen(
        frozenset(classes.get(name, ())),
        name in classes,
        name in classes,
        photo.kind,
        photo.turned,
        tuple(problems),
    )


# --- an own folder ---------------------------------------------------------------------------------------------------


def _check_folder(root: Path, deep: bool) -> Findings:
    found, classes, table = Findings([f"photos in {root}"]), (), []
    try:
        classes = folder.read_classes(root / "classes.txt")
    except ValueError as error:
        found.problems.append(str(error))
    try:
        table, wrong = folder.table_lines(root / "tags.csv", classes)
        found.problems += wrong
    except ValueError as error:
        found.problems.append(str(error))
    found.problems += [] if (root / "images").is_dir() else [f"{root / 'images'}: no such folder"]
    tags = {line["image"]: line["tags"] for line in table}
    seen = look(
        partial(_folder_image, root, deep, tags, len(classes) or folder.MAX_CLASSES), tags, found
    )
    for split in sorted({line["split"] for line in table}):
        names = [line["image"] for line in table if line["split"] == split]
        found.lines += summary(split or "(without a split)", names, seen, classes, None)
    found.problems += [] if found.problems else _unusable(root / "tags.csv", table)
    found.lines += _unnamed(root / "images", tags)
    found.advice += [] if found.ok else [FOLDER_LAYOUT]
    return found


def _folder_image(
    root: Path, deep: bool, tags: Mapping[str, set[str]], num_classes: int, name: str
) -> Seen:
    photo = read_photo(root / "images" / name, deep) if (root / "images").is_dir() else Photo()
    file = folder.mask_file(root, name)
    problems = [
        *photo.problems,
        *(mask_problems(file, photo, num_classes, deep) if file.is_file() else ()),
    ]
    return Seen(
        frozenset(tags[name]), True, file.is_file(), photo.kind, photo.turned, tuple(problems)
    )


def _unusable(file: Path, table: Sequence[dict]) -> list[str]:
    """Why nothing can be trained on a table whose lines are right."""
    splits = sorted({line["split"] for line in table})
    if not table:
        return [f"{file}: no image is listed"] if file.is_file() else []
    missing = [split for split in ("train", "val") if split not in splits]
    found = [
        f"{file}: no image of the split {split!r}, there are {', '.join(splits)}"
        for split in missing
    ]
    return found + ([] if any(line["tags"] for line in table) else [f"{file}: no image has a tag"])


def _unnamed(images: Path, tags: Mapping[str, set[str]]) -> list[str]:
    """A line about the files below images/ that the table does not name."""
    listed = {Path(name).as_posix() for name in tags}
    files = [file.relative_to(images) for file in sorted(images.rglob("*")) if file.is_file()]
    names = [
        file.as_posix()
        for file in files
        if file.as_posix() not in listed and not file.name.startswith(".")
    ]
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return [f"in images/, but not in tags.csv: {len(names)} ({shown})"] if names else []
