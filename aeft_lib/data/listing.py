"""What a data set on disk lists, in the form in which every reader hands it to the data doctor."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


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
