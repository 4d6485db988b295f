"""What the data doctor finds, and how it looks at photos and masks of any data set: at their headers, or at every pixel."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from aeft_lib.data.images import read_image
from aeft_lib.maps.labels import UNREADABLE, read_label_map

SHOWN = 20  # problems that are printed one by one
THREADS = 8  # a cold disk is waited for
ORIENTATION = (
    0x0112  # EXIF: 1 upright, 2..4 turned by 180 degrees or mirrored, 5..8 lying on the side
)
KINDS = {"L": "grey", "1": "grey", "P": "palette", "CMYK": "CMYK"}  # photos that readers convert


@dataclass
class Findings:
    """lines: what is there.  problems: what is wrong, one line a file.  advice: where what is missing is published."""

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
        return "\n".join(
            [
                *self.lines,
                *(shown or ["nothing is wrong"]),
                *(f"to get: {line}" for line in self.advice),
            ]
        )


class Seen(NamedTuple):
    """One image of a list.  classes: its tags.  kind: as in KINDS, or empty.  turned: by an EXIF tag."""

    classes: frozenset[str] = frozenset()
    annotated: bool = True
    masked: bool = False
    kind: str = ""
    turned: bool = False
    problems: tuple[str, ...] = ()


class Photo(NamedTuple):
    """A photo's header.  size: (width, height) as readers have it; stored: before its EXIF tag turns it; None if unreadable."""

    size: tuple[int, int] | None = None
    stored: tuple[int, int] | None = None
    kind: str = ""
    turned: bool = False
    problems: tuple[str, ...] = ()


def look(at: Callable[[str], Seen], names: Iterable[str], found: Findings) -> dict[str, Seen]:
    """Look at every image once; what is wrong with it goes to the problems."""
    names = list(dict.fromkeys(names))
    with ThreadPoolExecutor(THREADS) as threads:
        seen = dict(zip(names, threads.map(at, names), strict=True))
    found.problems += [problem for one in seen.values() for problem in one.problems]
    return seen


def summary(
    split: str,
    names: Sequence[str],
    seen: Mapping[str, Seen],
    classes: Sequence[str],
    published: int | None,
) -> list[str]:
    """What a list has: images, masks, images of every class; published: None where there is no published list."""
    if not names:
        return [f"{split}: nothing listed"]
    images = [seen[name] for name in names]
    counts = Counter(name for one in images for name in one.classes)
    whole = (
        ""
        if published is None
        else " (all)"
        if len(names) == published
        else f" of {published} in the published list"
    )
    lines = [
        f"{split}: {len(names)} images{whole}, {sum(one.masked for one in images)} with a mask"
    ]
    lines.append(
        "  images a class: "
        + (", ".join(f"{name} {counts[name]}" for name in classes if counts[name]) or "none")
    )
    absent = [name for name in classes if not counts[name]]
    lines += [f"  no image of: {', '.join(absent)}"] if absent else []
    bare = (
        sum(not one.annotated for one in images),
        sum(one.annotated and not one.classes for one in images),
    )
    lines += [f"  images without an annotation: {bare[0]}"] if bare[0] else []
    lines += [f"  images without a class: {bare[1]}"] if bare[1] else []
    if kinds := Counter(one.kind for one in images if one.kind):
        lines.append(
            f"  read as RGB: {', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))}"
        )
    turned = sum(one.turned for one in images)
    return lines + (
        [f"  turned by an EXIF tag: {turned}; look whether their masks are turned too"]
        if turned
        else []
    )


def read_photo(file: Path, deep: bool) -> Photo:
    """A photo's header, and what is wrong with the file."""
    if wrong := _not_there(file):
        return Photo(problems=(wrong,))
    try:
        with Image.open(file) as picture:
            mode, stored, turn = picture.mode, picture.size, picture.getexif().get(ORIENTATION, 1)
            coding = str(picture.tile[0][3]) if picture.tile else ""
    except UNREADABLE as error:
        return Photo(problems=(_unreadable(file, error),))
    problems = []
    if mode.startswith(("I", "F")) or ";16" in coding:
        problems.append(f"{file}: 16 bits or more a channel (mode {mode}); save it with 8")
    elif deep:
        problems += _refused(partial(read_image, file))
    size = stored[::-1] if turn in (5, 6, 7, 8) else stored
    return Photo(size, stored, KINDS.get(mode, ""), turn in range(2, 9), tuple(problems))


def mask_problems(file: Path, photo: Photo, num_classes: int, deep: bool) -> list[str]:
    """What is wrong with a mask that exists."""
    if wrong := _not_there(file):
        return [wrong]
    try:
        with Image.open(file) as picture:
            kind, mode, size = picture.format, picture.mode, picture.size
    except UNREADABLE as error:
        return [_unreadable(file, error)]
    problems = other_size(f"{file}: has", size, photo)
    if kind != "PNG" or mode not in ("P", "L"):
        return [
            *problems,
            f"{file}: a mask must be a PNG with one 8-bit channel of labels, this is {kind}, mode {mode}",
        ]
    return problems + (
        _refused(partial(read_label_map, file, num_classes=num_classes)) if deep else []
    )


def _not_there(file: Path) -> str | None:
    if not file.is_file():
        return f"{file}: missing"
    return f"{file}: empty (0 bytes)" if not file.stat().st_size else None


def _unreadable(file: Path, error: Exception) -> str:
    why = "of no known kind" if isinstance(error, UnidentifiedImageError) else error
    return f"{file}: not a readable picture ({why})"


def _refused(read: Callable[[], object]) -> list[str]:
    """What a reader says against a file."""
    try:
        read()
    except ValueError as error:
        return [str(error)]
    return []


def other_size(whose: str, size: tuple[int, int], photo: Photo) -> list[str]:
    """The problem of a size (width, height) that is not the photo's, where that is known."""
    if photo.size in (None, size):
        return []
    turned = "; an EXIF tag turns the photo: save it without" if photo.stored == size else ""
    return [
        f"{whose} {size[0]}x{size[1]} pixels, the photo has {photo.size[0]}x{photo.size[1]}{turned}"
    ]
