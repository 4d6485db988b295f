"""What every data set is to a stage: scenes by number; image, tags and mask apart.

A mask is read when it is asked for and not before, so that nothing that trains on tags can read it
by accident.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np


class Scene(NamedTuple):
    """A photo with its labels; name: its stable id.

    image: (H, W, 3) uint8 RGB.  mask: (H, W) uint8, 0 background, class + 1.  tags: (K,) bool.
    """

    image: np.ndarray
    mask: np.ndarray
    tags: np.ndarray
    name: str


class Scenes(Protocol):
    """A set of scenes.

    names: a stable id for each scene.  classes: K names, background not among them.
    fingerprint: of photos and tags; it changes when a result trained on them is out of date.
    truth: of the masks; it changes when a result scored on them is out of date.
    """

    classes: tuple[str, ...]
    names: Sequence[str]
    fingerprint: str
    truth: str

    def __len__(self) -> int: ...

    def image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""

    def tags(self, index: int) -> np.ndarray:
        """(K,) bool."""

    def mask(self, index: int) -> np.ndarray:
        """(H, W) uint8: 0 background, class + 1, 255 void."""

    def __getitem__(self, index: int) -> Scene:
        """All of one scene, its mask too."""


class SceneSet(Protocol):
    """The spec of a set of scenes, a frozen dataclass.

    size: side of every scene in pixels, 0 where photos have sizes of their own.  count: of its
    scenes, 0 for all there are.
    """

    size: int
    count: int

    def open(self) -> Scenes:
        """The scenes.  Raises ValueError where the data is missing or damaged, with what to do."""


def missing_masks(scenes: SceneSet) -> str:
    """How many scenes of a set have no mask, in words; "" where all have one, as drawn ones do."""
    opened = scenes.open()
    if not (names := getattr(opened, "unmasked", ())):
        return ""
    verb = "has" if len(names) == 1 else "have"
    number, split = f"{len(names)} of {len(opened)} scenes", f"the split {scenes.split!r}"
    return f"{number} of {split} {verb} no mask (the first: {names[0]})"


@lru_cache(maxsize=8)
def opened(reader: Callable[[SceneSet], Scenes], spec: SceneSet) -> Scenes:
    """``reader(spec)``, kept: a process reads a list of photos once."""
    return reader(spec)
