"""What a data set on disk lists, in the form in which every reader hands it to the data doctor."""

import os
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
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


def files_below(folder: Path) -> dict[str, list[Path]]:
    """The files below a folder by their paths in it, with accents composed (NFC).

    Lists here name them so; macOS stores accents decomposed, and a folder copied from there to
    Linux may hold both forms, two files of one name.
    """
    files: dict[str, list[Path]] = {}
    for home, _, names in os.walk(folder):
        for file in (Path(home, name) for name in sorted(names)):
            name = unicodedata.normalize("NFC", file.relative_to(folder).as_posix())
            files.setdefault(name, []).append(file)
    return files


def same_names(files: Mapping[str, Sequence[Path]]) -> list[str]:
    """A problem for every name that several of `files_below` have."""
    rule = "differ in the form of their accents alone (NFC, NFD): remove or rename one"
    several = [map(ascii, map(str, same)) for same in files.values() if same[1:]]
    return [f"{' and '.join(same)} {rule}" for same in several]


def named(names: Iterable[str]) -> str:
    """How many files there are, hidden ones aside, and the first names; "" without any."""
    visible = [name for name in sorted(names) if not Path(name).name.startswith(".")]
    shown = ", ".join(visible[:3]) + (", ..." if visible[3:] else "")
    return f"{len(visible)} ({shown})" if visible else ""


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
