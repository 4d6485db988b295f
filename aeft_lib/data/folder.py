"""Your own photos: a folder with images and one table of tags.

::

    folder/classes.txt        one class a line, their order is the order of the scores
    folder/tags.csv           columns image, split, tags; tags apart by ";", none is allowed
    folder/images/<image>     photos
    folder/masks/<image>      label maps, as .png (0 background, class + 1, 255 void)

Scores, the notebooks and the row `segment_truth` read masks, nothing else does.
The folder is `paths.photos_root`, ``AEFT_PHOTOS_ROOT``.
"""

import codecs
import csv
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aeft_lib import paths
from aeft_lib.data.listing import (
    Entry,
    Listing,
    files_below,
    named,
    near_miss,
    odd_name,
    same_names,
)
from aeft_lib.data.photos import Photos, check_selection, contents, read_mask, selected
from aeft_lib.data.scene import opened
from aeft_lib.maps.foreign import reading

COLUMNS = ("image", "split", "tags")
MAX_CLASSES = 254  # labels 1..254, 255 is void
# What ends a line to some programs and none to others, and what UTF-16 without its mark leaves.
ODD_ENDS = re.compile("[\0\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


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
        self._photos, self._masks = (files_below(self.root / part) for part in ("images", "masks"))
        if same := same_names(self._photos) + same_names(self._masks):
            raise ValueError(same[0])
        self.names = selected(images, spec.count)

    def image_file(self, name: str) -> Path:
        """Where the photo of this name stands."""
        return _file(self.root / "images", self._photos, name)

    def read_tags(self, name: str) -> np.ndarray:
        """Its tags."""
        return np.array([known in self._tags[name] for known in self.classes])

    def read_mask(self, name: str) -> np.ndarray:
        """Its mask, where there is one."""
        file = self._mask_file(name)
        if not file.is_file():
            text = "without masks there are seeds and label maps, but no mIoU"
            raise ValueError(f"{name} has no mask {file}: {text}")
        return read_mask(file, num_classes=len(self.classes))

    def mask_digest(self, name: str) -> bytes:
        """Of its mask's file."""
        return contents(self._mask_file(name))

    def _mask_file(self, name: str) -> Path:
        return _file(self.root / "masks", self._masks, mask_name(name))


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
    photos, masks = (files_below(root / part) for part in ("images", "masks"))
    problems += same_names(photos) + same_names(masks)
    if (root / "masks").exists() and not (root / "masks").is_dir():
        remedy = "remove it, or put the masks into one"
        problems.append(f"{root / 'masks'}: no folder; {remedy}")
    if table and (strangers := named(masks.keys() - {mask_name(line["image"]) for line in table})):
        rule = "a mask has its image's name with the suffix .png"
        problems.append(f"in masks/, but of no listed image: {strangers}; {rule}")
    problems += [] if problems else _unusable(root / "tags.csv", table)
    tags = {line["image"]: line["tags"] for line in table}
    splits: dict[str, list[str]] = {}
    for line in sorted(table, key=lambda line: line["split"]):
        splits.setdefault(line["split"] or "(without a split)", []).append(line["image"])
    unlisted = named(photos.keys() - {Path(name).as_posix() for name in tags})
    remarks = [f"in images/, but not in tags.csv: {unlisted}"] if unlisted else []

    def entry(name: str) -> Entry:
        mask = _file(root / "masks", masks, mask_name(name))
        photo = _file(images, photos, name) if images.is_dir() else None
        there = [mask] if mask.is_file() else []
        return Entry(photo, frozenset(tags[name]), masked=bool(there), masks=there)

    return Listing(problems, splits, {}, entry, classes, remarks)


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


def mask_name(image: str) -> str:
    """The name of an image's mask below masks/: its own, in its subfolder, as a PNG."""
    return Path(image).with_suffix(".png").as_posix()


def _file(folder: Path, files: Mapping[str, Sequence[Path]], name: str) -> Path:
    """Where a file of `files_below` stands, whatever the form of its accents."""
    return files.get(Path(name).as_posix(), [folder / name])[0]


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
    head, rows, separator = _rows(file)
    for number, row in rows:
        try:
            if len(row) != len(head):
                quoted = ", in quotes" if separator == ";" else ""
                rule = f"tags stand apart by ';'{quoted}"
                raise ValueError(f"more or fewer fields than columns; {rule}")
            line = _line(dict(zip(head, row, strict=True)), classes)
            image, name = line["image"], mask_name(line["image"])
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
    """A file of UTF-8, or of UTF-16 with its mark; accents in one form, whoever composed them.

    Raises ValueError naming the line of what is neither, or ends a line to some programs alone.
    """
    content = file.read_bytes()
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(content[: error.start + 1].splitlines())
        raise ValueError(f"line {line} is not in {error.encoding}") from error
    if odd := ODD_ENDS.search(text):
        line = len(re.findall("\r\n?|\n", text[: odd.start()])) + 1
        raise ValueError(f"line {line} holds U+{ord(odd[0]):04X}, a line's end to some: remove it")
    return unicodedata.normalize("NFC", text)


def _rename(file: Path) -> str:
    """The remedy where a file of nearly the same name stands in the place of a missing one."""
    near = near_miss(file)
    return f"rename {near.name}" if near else ""


def _rows(file: Path) -> tuple[list[str], list[tuple[int, list[str]]], str]:
    """The table's columns, its rows, each with the number of its line, and what separates fields.

    That is what the first line has most of: a comma, or ";" or a tab as spreadsheets of some
    countries write them.  Rows without any entry are left out, and empty fields beyond the columns.
    """
    if not file.is_file():
        remedy = f"write the columns {', '.join(COLUMNS)}"
        raise ValueError(f"no {file}: {_rename(file) or remedy}")
    with reading(file, "not a readable table", "save it as UTF-8"):
        lines = _text(file).splitlines()
        first = next((line for line in lines if line.strip()), "")
        separator = max(",;\t", key=first.count)
        table = csv.reader(lines, delimiter=separator)
        rows = [(table.line_num, row) for row in table if any(map(str.strip, row))]
    head = [name.strip().lower() for name in rows[0][1]] if rows else []
    rule, actual = f"the columns {', '.join(COLUMNS)} are needed", ", ".join(head) or "none"
    for column in COLUMNS:
        if head.count(column) != 1:
            problem = "stands twice" if column in head else "is missing"
            raise ValueError(f"{file}: {rule}, {column} {problem}; found {actual}")
    for _, row in rows:
        while len(row) > len(head) and not row[-1].strip():
            row.pop()
    return head, rows[1:], separator


def _line(row: dict, classes: tuple[str, ...]) -> dict:
    """One row as `read_tags` has it.  Raises ValueError saying what is wrong with it."""
    image, tags = row["image"].strip(), {tag.strip() for tag in row["tags"].split(";")} - {""}
    if classes and (unknown := sorted(tags - set(classes))):
        raise ValueError(f"class {unknown[0][:100]!r} is none of {', '.join(classes)}")
    parts = Path(image).parts
    if not parts or Path(image).is_absolute() or ".." in parts or any(map(odd_name, parts)):
        raise ValueError(f"image {image[:100]!r} is no path below images/")
    return {"image": image, "split": row["split"].strip(), "tags": tags}
