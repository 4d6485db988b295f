"""What a data set on disk lists, in the form in which every reader hands it to the data doctor."""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

# Control characters, halves of characters, separators of paths: no file of a data set has them.
ODD = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff/\\]")
LONGEST_NAME = 200  # bytes; file systems take 255, with a suffix


class Entry(NamedTuple):
    """One listed image.

    photo: its file; None where the folder of all photos is missing, which is one problem already.
    classes: its tags.  annotated: whether something names them.  masked: whether it has a mask.
    masks: their files, those that exist.  claim: the size (H, W) that an annotation claims, after
    who claims it, as a problem with it begins.  problems: what is wrong with its annotation.
    """

    photo: Path | None
    classes: frozenset[str] = frozenset()
    annotated: bool = True
    masked: bool = False
    masks: Sequence[Path] = ()
    claim: tuple[str, tuple[int, int]] | None = None
    problems: Sequence[str] = ()


class Listing(NamedTuple):
    """What lists and annotations hold; no photo and no mask is opened for it.

    problems: what is wrong with lists and folders.  splits: the images of each, by a key that is
    the image's own in all splits.  published: how many each split has, where it is published.
    entry: key -> Entry.  classes: names, background not among them.  remarks: what is no problem.
    """

    problems: list[str]
    splits: Mapping[str, Sequence[Hashable]] = {}
    published: Mapping[str, int] = {}
    entry: Callable[[Hashable], Entry] = Entry
    classes: Sequence[str] = ()
    remarks: Sequence[str] = ()


def odd_name(name: str) -> bool:
    """Whether a listed name cannot be that of a file in its folder."""
    return bool(ODD.search(name)) or len(name.encode(errors="replace")) > LONGEST_NAME


def near_miss(file: Path) -> Path | None:
    """A file or folder beside a missing one, of the same letters and digits; None without.

    ``trainaug.txt``, ``train-aug.txt`` and ``Train_Aug.txt.txt`` are near ``train_aug.txt``.
    """
    if file.exists() or not file.parent.is_dir():
        return None
    others = sorted(file.parent.iterdir())
    return next((other for other in others if _letters(other) == _letters(file)), None)


def _letters(file: Path) -> str:
    stem = file.name.casefold()
    while file.suffix and stem.endswith(file.suffix.casefold()):
        stem = stem.removesuffix(file.suffix.casefold())
    return re.sub(r"[\W_]", "", stem)
