"""Your own photos: a folder with images and one table of tags.

::

    folder/classes.txt        one class a line, their order is the order of the scores
    folder/tags.csv           columns image, split, tags; tags apart by ";", none is allowed
    folder/images/<image>     photos
    folder/masks/<image>      label maps, as .png (0 background, class + 1, 255 void)

Scores, the notebooks and the row `segment_truth` read masks, nothing else does.
The folder is `paths.photos_root`, ``AEFT_PHOTOS_ROOT``.
"""

import csv
import unicodedata
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from aeft_lib import paths
from aeft_lib.data.listing import Entry, Listing, near_miss, odd_name
from aeft_lib.data.photos import Photos, check_selection, contents, selected
from aeft_lib.data.scene import opened
from aeft_lib.maps.foreign import reading
from aeft_lib.maps.labels import read_label_map

COLUMNS = ("image", "split", "tags")
MAX_CLASSES = 254  # labels 1..254, 255 is void


@dataclass(frozen=True)
class FolderSpec:
    """split: a name in the table.  count: so many of its images; 0 is all.

    size: side they are squared to, in pixels; 0 leaves them as they are.
    """

    split: str
    count: int = 0
    size: int = 0

    def __post_init__(self) -> None:
        if not self.split:
            raise ValueError("split must name one in tags.csv, got an empty one")
        check_selection(self)

    def open(self) -> "Folder":
        """The scenes of this spec, kept for the process.  Raises ValueError as `Folder` does."""
        return opened(Folder, self)


class Folder(Photos):
    """The scenes of a `FolderSpec`."""

    def __init__(self, spec: FolderSpec, root: Path | None = None) -> None:
        """root: `paths.photos_root` by default.

        Raises ValueError where class list or table are missing or wrong, or the split is empty.
        """
        self.spec, self.root = spec, root or paths.photos_root()
        self.classes = read_classes(self.root / "classes.txt")
        table = read_tags(self.root / "tags.csv", self.classes)
        images = [line["image"] for line in table if line["split"] == spec.split]
        if not images:
            splits = ", ".join(sorted({line["split"] for line in table})) or "none"
            file = self.root / "tags.csv"
            raise ValueError(f"{file} has no split {spec.split!r}; there are {splits}")
        self._tags = {line["image"]: line["tags"] for line in table}
        self.names = selected(images, spec.count)

    def image_file(self, name: str) -> Path:
        """Where the photo of this name stands."""
        return self.root / "images" / name

    def read_tags(self, name: str) -> np.ndarray:
        """Its tags."""
        return np.array([known in self._tags[name] for known in self.classes])

    def read_mask(self, name: str) -> np.ndarray:
        """Its mask, where there is one."""
        file = mask_file(self.root, name)
        if not file.is_file():
            text = "without masks there are seeds and label maps, but no mIoU"
            raise ValueError(f"{name} has no mask {file}: {text}")
        return read_label_map(file, num_classes=len(self.classes))

    def mask_digest(self, name: str) -> bytes:
        """Of its mask's file."""
        return contents(mask_file(self.root, name))


def listing(root: Path) -> Listing:
    """What a folder of photos lists, for the data doctor."""
    classes, table, problems = (), [], []
    try:
        classes = read_classes(root / "classes.txt")
    except ValueError as error:
        problems.append(str(error))
    try:
        table, wrong = table_lines(root / "tags.csv", classes)
        problems += wrong
    except ValueError as error:
        problems.append(str(error))
    if not (images := root / "images").is_dir():
        remedy = _rename(images)
        problems.append(f"{images}: no such folder" + (f"; {remedy}" if remedy else ""))
    if near := near_miss(root / "masks"):
        problems.append(f"{near}: rename it to masks")
    if table:
        problems += _masks_of_nothing(root / "masks", {line["image"] for line in table})
    problems += [] if problems else _unusable(root / "tags.csv", table)
    tags = {line["image"]: line["tags"] for line in table}
    splits: dict[str, list[str]] = {}
    for line in sorted(table, key=lambda line: line["split"]):
        splits.setdefault(line["split"] or "(without a split)", []).append(line["image"])
    remarks = _unlisted(root / "images", tags)
    return Listing(problems, splits, {}, partial(_entry, root, tags), classes, remarks)


def _entry(root: Path, tags: dict[str, set[str]], name: str) -> Entry:
    mask, photos = mask_file(root, name), root / "images"
    masks = [mask] if mask.is_file() else []
    photo = photos / name if photos.is_dir() else None
    return Entry(photo, frozenset(tags[name]), masked=bool(masks), masks=masks)


def _unusable(file: Path, table: list[dict]) -> list[str]:
    """Why nothing can be trained on a table whose lines are right."""
    splits = sorted({line["split"] for line in table})
    if not table:
        return [f"{file}: no image is listed"]
    missing = [split for split in ("train", "val") if split not in splits]
    names = ", ".join(splits)
    problems = [f"{file}: no image of the split {split!r}, there are {names}" for split in missing]
    tagged = any(line["tags"] for line in table)
    return problems + ([] if tagged else [f"{file}: no image has a tag"])


def _unlisted(images: Path, tags: dict[str, set[str]]) -> list[str]:
    """A remark about the files below images/ that the table does not name."""
    listed = {Path(name).as_posix() for name in tags}
    files = [file.relative_to(images) for file in sorted(images.rglob("*")) if file.is_file()]
    visible = [file.as_posix() for file in files if not file.name.startswith(".")]
    names = [name for name in visible if name not in listed]
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return [f"in images/, but not in tags.csv: {len(names)} ({shown})"] if names else []


def _masks_of_nothing(masks: Path, images: set[str]) -> list[str]:
    """A problem with the files below masks/ that no listed image has for its mask."""
    if not masks.is_dir():
        return (
            [f"{masks}: no folder; remove it, or put the masks into one"] if masks.exists() else []
        )
    wanted = {mask_file(masks.parent, image) for image in images}
    files = [file for file in sorted(masks.rglob("*")) if not file.is_dir()]
    names = [file.name for file in files if file not in wanted and not file.name.startswith(".")]
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    rule = "a mask has its image's name with the suffix .png"
    return [f"in masks/, but of no listed image: {len(names)} ({shown}); {rule}"] if names else []


def mask_file(root: Path, image: str) -> Path:
    """Where the mask of an image stands: under its name, in its subfolder, as a PNG."""
    return (root / "masks" / image).with_suffix(".png")


def read_classes(file: Path) -> tuple[str, ...]:
    """The class names.

    Raises ValueError where there are none or too many, or a name stands twice or holds a ";".
    """
    if not file.is_file():
        remedy = "write one class a line (AEFT_PHOTOS_ROOT names the folder)"
        raise ValueError(f"no {file}: {_rename(file) or remedy}")
    with reading(file, "not a readable list", "save it as UTF-8"):
        names = tuple(line.strip() for line in _text(file).splitlines() if line.strip())
    few = names[: MAX_CLASSES + 1]
    wrong = [name for i, name in enumerate(few) if ";" in name or name in few[:i]]
    if wrong or not 1 <= len(names) <= MAX_CLASSES:
        actual = f"{wrong[0]!r} twice, or with a ';'" if wrong else f"{len(names)} names"
        rule = f"1 to {MAX_CLASSES} different classes without ';' are needed"
        raise ValueError(f"{file}: {rule}, found {actual}")
    return names


def read_tags(file: Path, classes: tuple[str, ...]) -> list[dict]:
    """The table's lines: ``image``, ``split`` and the set ``tags``.

    Raises ValueError naming file and line for a missing column, a line of another length, an image
    that stands twice or leaves its folder, an unknown class.
    """
    lines, wrong = table_lines(file, classes)
    if wrong:
        raise ValueError(wrong[0])
    return lines


def table_lines(file: Path, classes: tuple[str, ...]) -> tuple[list[dict], list[str]]:
    """The table's right lines, as `read_tags` has them, and what is wrong with each other one.

    classes: those that a tag may name; without any, every tag is taken.
    Raises ValueError where there is no table, or one without the columns.
    """
    lines, wrong, images = [], [], {}
    for number, row in _rows(file):
        try:
            line = _line(row, classes)
            image, name = line["image"], Path(line["image"]).with_suffix("")  # its mask's name
            if name in images:
                same = images[name] == image
                text = "stands twice" if same else f"has the name of {images[name]!r}"
                raise ValueError(f"image {image!r} {text}")
        except ValueError as error:
            wrong.append(f"{file}, line {number}: {error}")
            continue
        images[name] = image
        lines.append(line)
    return lines, wrong


def _text(file: Path) -> str:
    """A file of UTF-8; letters with accents in one form, whoever composed them."""
    return unicodedata.normalize("NFC", file.read_text(encoding="utf-8-sig"))


def _rename(file: Path) -> str:
    """The remedy where a file of nearly the same name stands in the place of a missing one."""
    near = near_miss(file)
    return f"rename {near.name}" if near else ""


def _rows(file: Path) -> list[tuple[int, dict]]:
    """The rows of the table, each with the number of its line."""
    if not file.is_file():
        remedy = f"write the columns {', '.join(COLUMNS)}"
        raise ValueError(f"no {file}: {_rename(file) or remedy}")
    with reading(file, "not a readable table", "save it as UTF-8"):
        table = csv.DictReader(_text(file).splitlines())
        table.fieldnames = [name.strip().lower() for name in table.fieldnames or ()]
        rows = [(table.line_num, row) for row in table]
    if missing := [column for column in COLUMNS if column not in (table.fieldnames or ())]:
        actual = ", ".join(table.fieldnames or ()) or "none"
        rule = f"the columns {', '.join(COLUMNS)} are needed"
        raise ValueError(f"{file}: {rule}, {missing[0]} is missing; found {actual}")
    return rows


def _line(row: dict, classes: tuple[str, ...]) -> dict:
    """One row as `read_tags` has it.  Raises ValueError saying what is wrong with it."""
    if None in row or None in row.values():
        raise ValueError("more or fewer fields than columns; tags stand apart by ';'")
    image, tags = row["image"].strip(), {tag.strip() for tag in row["tags"].split(";")} - {""}
    if classes and (unknown := sorted(tags - set(classes))):
        raise ValueError(f"class {unknown[0][:100]!r} is none of {', '.join(classes)}")
    parts = Path(image).parts
    if not parts or Path(image).is_absolute() or ".." in parts or any(map(odd_name, parts)):
        raise ValueError(f"image {image[:100]!r} is no path below images/")
    return {"image": image, "split": row["split"].strip(), "tags": tags}
