"""Seeds: CAMs at image size, merged over scales and mirror images, and the file that keeps them."""

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aeft_lib.maps.foreign import reading

EPS = 1e-5
PROBLEM = ("not a readable file of seeds", "compute it again")


class Seed(NamedTuple):
    """The CAMs of one image.

    class_ids: (K',) int64, tagged classes, ascending.  cam: (K', H, W) float32 in 0..1.
    """

    class_ids: Tensor
    cam: Tensor


def combine_scales(
    scores: Sequence[Tensor],
    *,
    size: tuple[int, int],
    tags: Tensor | None = None,
    mirrored: Sequence[bool] | None = None,
) -> Tensor:
    """Merge the signed maps of several passes into one CAM per class.

    Each pass: bilinear to image size (half-pixel centres), *then* ReLU, times the tags, mirrored
    back.  Their sum is divided by its maximum per class + 1e-5.

    scores: per pass a (B, K, h, w) signed map, any h and w.  size: (H, W) of the image in pixels.
    tags: (B, K), 0 or 1; None keeps every class.
    mirrored: which passes are of the mirrored image; None: every second.
    Returns (B, K, H, W) in 0..1; a class that never fires, or is not tagged, is zero everywhere.
    Raises ValueError for no passes, or where `mirrored` has another length.  Source: AEFT's
    reference.
    """
    mirrored = [bool(i % 2) for i in range(len(scores))] if mirrored is None else list(mirrored)
    if not scores or len(mirrored) != len(scores):
        counts = f"{len(scores)} and {len(mirrored)}"
        raise ValueError(f"combine_scales needs passes and one flag each, got {counts}")
    if 0 in scores[0].shape[:2]:  # an image without tags
        return scores[0].new_zeros(*scores[0].shape[:2], *size)
    total: Tensor | None = None
    for score, is_mirrored in zip(scores, mirrored, strict=True):
        turned = score.flip(-1) if is_mirrored else score  # bilinear weights are symmetric
        full = F.interpolate(turned, size=size, mode="bilinear", align_corners=False).relu_()
        total = full if total is None else total.add_(full)
    if tags is not None:
        total = total * tags[:, :, None, None].to(total.dtype)
    return total / (total.amax(dim=(2, 3), keepdim=True) + EPS)


class SeedWriter:
    """Writes named seeds one by one, CAMs as uint8 steps of 1/255; a context manager.

    Compressed, this takes a small part of float32's space; it is like a shift of the threshold by
    at most 1/510.
    """

    def __init__(self, file: Path) -> None:
        self._archive = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=4)

    def add(self, name: str, seed: Seed) -> None:
        """Raises ValueError for a CAM outside 0..1, NaN included."""
        if len(seed.cam) and not (seed.cam.amin() >= 0 and seed.cam.amax() <= 1):
            limits = f"{seed.cam.amin():.3g}..{seed.cam.amax():.3g}"
            raise ValueError(f"seed {name}: a CAM must lie in 0..1, got {limits}")
        cam = (seed.cam * 255).round().to(torch.uint8)
        for key, tensor in (("class_ids", seed.class_ids), ("cam", cam)):
            with self._archive.open(f"{name}/{key}.npy", "w") as member:
                np.lib.format.write_array(member, tensor.numpy(), allow_pickle=False)

    def __enter__(self) -> "SeedWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()


def write_seeds(file: Path, seeds: Iterable[tuple[str, Seed]]) -> int:
    """Write named seeds as `SeedWriter` does; returns how many.

    Raises ValueError for a CAM outside 0..1, NaN included.
    """
    count = 0
    with SeedWriter(file) as writer:
        for name, seed in seeds:
            writer.add(name, seed)
            count += 1
    return count


class SeedReader:
    """Stored seeds by name, from a file that stays open for threads to share; a context manager.

    Raises ValueError naming a file that is damaged, or holds no seeds.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        with reading(file, *PROBLEM):
            self._archive = np.load(file, allow_pickle=False)
            if not isinstance(self._archive, np.lib.npyio.NpzFile):
                raise ValueError("no archive of arrays")
        self.names = [key.split("/")[0] for key in self._archive.files if key.endswith("/cam")]
        self._known = frozenset(self.names)

    def __getitem__(self, name: str) -> Seed:
        """Raises KeyError for a name that is not there."""
        if name not in self._known:
            raise KeyError(f"{name} is not in {self._file}")
        with reading(self._file, *PROBLEM):
            ids, cam = self._archive[f"{name}/class_ids"], self._archive[f"{name}/cam"]
            if (ids.dtype, cam.dtype, cam.ndim) != (np.int64, np.uint8, 3):
                raise ValueError(f"{name}: {ids.dtype} class_ids, {cam.dtype} cam {cam.shape}")
            if ids.shape != cam.shape[:1]:
                raise ValueError(f"{name}: class_ids {ids.shape} for cam {cam.shape}")
        return Seed(torch.from_numpy(ids), torch.from_numpy(cam).float() / 255)

    def __enter__(self) -> "SeedReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()


def read_seeds(file: Path, names: Iterable[str] | None = None) -> Iterator[tuple[str, Seed]]:
    """Read all seeds, or the named ones, in the order written.

    Raises KeyError for a name that is not there, ValueError as `SeedReader` does.
    """
    with SeedReader(file) as reader:
        for name in reader.names if names is None else names:
            yield name, reader[name]
