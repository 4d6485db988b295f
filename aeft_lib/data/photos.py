"""What data sets of photos share: which photos count, their size, digests of files and masks."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from aeft_lib.data.images import image_size, read_image, squared
from aeft_lib.data.scene import Scene, SceneSet
from aeft_lib.engine import fields
from aeft_lib.maps.labels import VOID, read_label_map

ALL_VOID = (
    f"every pixel is void ({VOID}), so none counts; {VOID} means unknown, 0 is the background"
)


class Photos:
    """What data sets of photos share: which of them count, and their size.

    A subclass has ``classes``, ``names``, ``spec.size``, and by name ``image_file``, ``read_tags``,
    ``read_mask`` and ``mask_digest``, bytes that change when the mask does.
    """

    classes: tuple[str, ...]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB, squared to `size` where that is not 0.

        Raises ValueError naming a file that is not readable.
        """
        return squared(read_image(self.image_file(self.names[index])), self.spec.size)

    def tags(self, index: int) -> np.ndarray:
        """(K,) bool."""
        return self.read_tags(self.names[index])

    def mask(self, index: int) -> np.ndarray:
        """(H, W) uint8: 0 background, class + 1, 255 void.

        Raises ValueError naming a mask that is missing, odd, or of another size than its photo.
        """
        name = self.names[index]
        mask, size = self.read_mask(name), image_size(self.image_file(name))
        if mask.shape != size:
            remedy = "one of them is damaged, or turned"
            raise ValueError(f"{name}: the mask is {mask.shape}, its image {size}; {remedy}")
        return squared(mask, self.spec.size)

    def __getitem__(self, index: int) -> Scene:
        """Scene `index`; raises IndexError outside 0..len-1, ValueError as `mask` does."""
        if not 0 <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        return Scene(self.image(index), self.mask(index), self.tags(index), self.names[index])

    @cached_property
    def fingerprint(self) -> str:
        """A digest of classes, names, tags, and of each whole photo.

        It is not cached on disk: a cache by time and size hides the very change that a digest
        finds.
        """
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for name in self.names:
            digest.update(f"{name}\n".encode() + self.read_tags(name).tobytes())
            digest.update(contents(self.image_file(name)))
        return digest.hexdigest()

    @cached_property
    def truth(self) -> str:
        """A digest of classes, names and masks."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for name, of_mask in self._mask_digests.items():
            digest.update(f"{name}\n".encode() + of_mask)
        return digest.hexdigest()

    @cached_property
    def unmasked(self) -> tuple[str, ...]:
        """The names of the photos without a mask."""
        return tuple(name for name, of_mask in self._mask_digests.items() if not of_mask)

    @cached_property
    def _mask_digests(self) -> dict[str, bytes]:
        return {name: self.mask_digest(name) for name in self.names}


def read_mask(file: Path, *, num_classes: int) -> np.ndarray:
    """A mask from its file, (H, W) uint8.

    Raises ValueError as `read_label_map` does, and where every pixel is void.
    """
    labels = read_label_map(file, num_classes=num_classes)
    if labels.min() == VOID:
        raise ValueError(f"{file}: {ALL_VOID}")
    return labels


def contents(file: Path) -> bytes:
    """A digest of a whole file; empty where there is none."""
    return hashlib.sha256(file.read_bytes()).digest() if file.is_file() else b""


def check_selection(spec: SceneSet) -> None:
    """Raises ValueError where `count` or `size` of a spec of photos is odd; 0 is all, and as is."""
    fields.whole(spec, "count", "size")
    if spec.size:
        fields.whole(spec, "size", least=32)


def selected(names: Sequence[str], count: int) -> list[str]:
    """All names, or `count` of them by a draw that is the same everywhere.

    Raises ValueError where there are fewer.
    """
    if count > len(names):
        raise ValueError(f"{count} scenes are asked for, the list has {len(names)}")
    if not count:
        return list(names)
    return [names[i] for i in np.random.default_rng(0).permutation(len(names))[:count]]


def relabelled(mask: np.ndarray, table: Sequence[int]) -> np.ndarray:
    """A mask under other numbers: label i becomes ``table[i]``, or void beyond the table."""
    numbers = np.full(256, VOID, np.uint8)
    numbers[: len(table)] = table
    return numbers[mask]
