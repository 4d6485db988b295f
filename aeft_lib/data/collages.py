"""Photo collages: scenes with exact masks and tags, made of the embedded pack of cut-outs.

Not in the paper: they stand in for VOC where there is no download and no GPU.  Two rules:

- ``val`` uses cut-outs and backgrounds that ``train`` never shows;
- the number of classes per scene and the areas objects are *drawn* with follow VOC 2012, measured
  on 2,155 of its photos (six animal and person classes; area of a class per image, quantiles
  below), not whatever makes a method look good.  What is seen of large objects is smaller than
  VOC's, because each must fit its scene: the median is 0.11 of the scene, VOC's 0.15.
"""

import csv
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from aeft_lib import paths
from aeft_lib.data.scene import Scene, opened
from aeft_lib.engine import fields
from aeft_lib.maps.foreign import picture

CLASSES = ("bird", "hoofed", "rodent", "insect", "fish", "flower", "fruit", "vehicle", "instrument")
SPLITS = ("train", "val")

# Area of a class as a fraction of its image in VOC 2012: 5, 10, 25, 50, 75, 90, 95 % quantiles.
AREA_QUANTILES = (
    (0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95),
    (0.010, 0.021, 0.062, 0.154, 0.318, 0.486, 0.590),
)
# Share of VOC images with one, two and three classes.
CLASSES_PER_SCENE = (0.71, 0.23, 0.06)
MIN_VISIBLE_PIXELS = 0.002  # of the scene: below this a tag would claim what nobody can see
MIN_VISIBLE_PART = 0.3  # of the object: a later object may not hide more
PLACEMENTS = 20  # tries before an object is left out, with its tag


@dataclass(frozen=True)
class SceneSpec:
    """A reproducible set of scenes: the same (split, index, seed) is the same scene.

    At another size it is the same but for rounding.
    count: number of scenes.  size: side in pixels.  seed: of the whole set.  context: 0..1, how
    often a scene's background is the one tied to its first class; 0 draws backgrounds freely.
    """

    split: str
    count: int
    size: int = 256
    seed: int = 0
    context: float = 0.0

    def __post_init__(self) -> None:
        fields.choice(self, split=SPLITS)
        fields.whole(self, "count", least=1)
        fields.whole(self, "size", least=32)
        fields.fraction(self, "context")

    def open(self) -> "Collages":
        """The scenes of this spec, kept for the process.  Raises ValueError as `Collages` does."""
        return opened(Collages, self)


@dataclass(frozen=True)
class Pack:
    """The decoded pack: RGBA cut-outs by (split, class), RGB backgrounds by split, a checksum."""

    cutouts: dict[tuple[str, str], tuple[Image.Image, ...]]
    backgrounds: dict[str, tuple[Image.Image, ...]]
    checksum: str


@lru_cache(maxsize=2)
def load_pack(folder: Path = paths.COLLAGES) -> Pack:
    """Read and verify the embedded pack.  Raises ValueError naming the file and the remedy."""
    remedy = f"restore it with: git checkout -- {paths.COLLAGES.relative_to(paths.ROOT)}"
    manifest = folder / "manifest.csv"
    if not manifest.is_file():
        raise ValueError(f"the photo pack is missing: no {manifest}; {remedy}")
    cutouts: dict[tuple[str, str], list[Image.Image]] = defaultdict(list)
    backgrounds: dict[str, list[Image.Image]] = defaultdict(list)
    for row in _read_manifest(manifest, remedy):
        file = folder / row["file"]
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != row["sha256"]:
            text = f"{file} is missing or differs from the manifest"
            raise ValueError(f"the photo pack is damaged: {text}; {remedy}")
        with picture(file, remedy=remedy) as opened:
            if row["kind"] == "cutout":
                cutouts[row["split"], row["class"]].append(opened.convert("RGBA"))
            else:
                backgrounds[row["split"]].append(opened.convert("RGB"))
    for split in SPLITS:
        absent = [name for name in CLASSES if not cutouts[split, name]]
        absent += [] if backgrounds[split] else ["background"]
        if absent:
            text = f"lists nothing in {split} for {', '.join(absent)}"
            raise ValueError(f"the photo pack's {manifest} {text}; {remedy}")
    return Pack(
        {key: tuple(items) for key, items in cutouts.items()},
        {key: tuple(items) for key, items in backgrounds.items()},
        hashlib.sha256(manifest.read_bytes()).hexdigest(),
    )


def _read_manifest(manifest: Path, remedy: str) -> list[dict[str, str]]:
    """The manifest's rows; ValueError where it is no table of ours."""
    try:
        text = paths.read_committed(manifest).decode()
        rows = list(csv.DictReader(text.splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"the photo pack is damaged: {manifest} cannot be read ({error}); {remedy}"
        ) from error
    for column in ("file", "kind", "class", "split", "sha256"):
        if not rows or rows[0].get(column) is None:
            raise ValueError(
                f"the photo pack is damaged: {manifest} has no column {column!r}; {remedy}"
            )
    return rows


class Collages:
    """The scenes of a `SceneSpec`, rendered when asked for: ``Collages(spec)[3]``."""

    classes = CLASSES

    def __init__(self, spec: SceneSpec, pack: Pack | None = None) -> None:
        self.spec = spec
        self.pack = pack or load_pack()
        self.names = [f"{spec.split}_{spec.seed}_{index:05d}" for index in range(spec.count)]
        self.fingerprint = self.truth = self.pack.checksum

    def __len__(self) -> int:
        return self.spec.count

    def image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return self[index].image

    def tags(self, index: int) -> np.ndarray:
        """(K,) bool: the classes that can be seen."""
        return self[index].tags

    def mask(self, index: int) -> np.ndarray:
        """(H, W) uint8: 0 background, class + 1."""
        return self[index].mask

    def __getitem__(self, index: int) -> Scene:
        """Scene `index`; raises IndexError outside 0..count-1."""
        if not 0 <= index < self.spec.count:
            raise IndexError(f"scene {index} of {self.spec.count}")
        rng = np.random.default_rng([self.spec.seed, SPLITS.index(self.spec.split), index])
        n_classes = 1 + rng.choice(len(CLASSES_PER_SCENE), p=CLASSES_PER_SCENE)
        chosen = rng.choice(len(CLASSES), size=n_classes, replace=False)
        canvas = self._background(rng, int(chosen[0]))
        owner = np.zeros((self.spec.size, self.spec.size), np.uint8)
        for class_index in chosen:
            self._add_object(rng, canvas, owner, int(class_index))
        tags = np.isin(np.arange(1, len(CLASSES) + 1), owner)
        return Scene(np.asarray(canvas), owner, tags, self.names[index])

    def _background(self, rng: np.random.Generator, first_class: int) -> Image.Image:
        """A crop of a background, tied to the first class as often as context says."""
        photos = self.pack.backgrounds[self.spec.split]
        return background_crop(
            rng, photos, first_class, context=self.spec.context, size=self.spec.size
        )

    def _add_object(
        self, rng: np.random.Generator, canvas: Image.Image, owner: np.ndarray, class_index: int
    ) -> None:
        """Paste a cut-out where it and all before it stay visible, or leave it out."""
        stamp = self._stamp(rng, class_index)
        for _ in range(PLACEMENTS):
            x, y = (
                int(rng.uniform(0.0, 1.0) * self.spec.size - length / 2) for length in stamp.size
            )
            after = owner.copy()
            paste_label(after, np.asarray(stamp)[..., 3], x, y, class_index + 1)
            if self._visible(owner, after, stamp, class_index + 1):
                canvas.paste(stamp, (x, y), stamp)
                owner[:] = after
                return

    def _stamp(self, rng: np.random.Generator, class_index: int) -> Image.Image:
        """A cut-out of the class, flipped, turned, scaled to an area drawn like VOC's, re-lit."""
        choices = self.pack.cutouts[self.spec.split, CLASSES[class_index]]
        stamp = turned(rng, choices[int(rng.integers(len(choices)))])
        area = np.interp(rng.uniform(0.05, 0.95), *AREA_QUANTILES)
        stamp = resized_to_area(
            stamp, area, self.spec.size, longest=1.1
        )  # a long object may not leave it on both sides
        return relit(stamp, *rng.uniform(0.8, 1.2, size=2))

    def _visible(
        self, before: np.ndarray, after: np.ndarray, stamp: Image.Image, label: int
    ) -> bool:
        """Whether the new object shows enough of itself, and hides too much of no earlier one."""
        floor = MIN_VISIBLE_PIXELS * self.spec.size**2
        whole = (np.asarray(stamp)[..., 3] > 127).sum()
        if (after == label).sum() < max(floor, 0.7 * whole):
            return False
        earlier = set(np.unique(before)) - {0}
        return all(
            (after == i).sum() >= max(floor, MIN_VISIBLE_PART * (before == i).sum())
            for i in earlier
        )


def background_crop(
    rng: np.random.Generator,
    photos: Sequence[Image.Image],
    first_class: int,
    *,
    context: float,
    size: int,
) -> Image.Image:
    """A random square crop of one of the photos, `size` pixels a side, flipped half the time.

    context: 0..1, how often the photo is the one tied to the class, instead of any.
    """
    free, tied = int(rng.integers(len(photos))), first_class % len(photos)
    photo = photos[tied if rng.random() < context else free]
    side = int(min(photo.size) * rng.uniform(0.7, 1.0))
    x, y = (int(rng.integers(length - side + 1)) for length in photo.size)
    crop = photo.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def turned(rng: np.random.Generator, stamp: Image.Image) -> Image.Image:
    """A cut-out flipped half the time and turned by up to 15 degrees."""
    stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else stamp
    return stamp.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC, expand=True)


def resized_to_area(stamp: Image.Image, area: float, size: int, *, longest: float) -> Image.Image:
    """A cut-out that covers `area` (0..1) of a scene of `size` pixels a side.

    longest: at most so many scenes a side; a long object covers less.
    """
    scale = np.sqrt(area * size**2 / (np.asarray(stamp)[..., 3] > 127).sum())
    scale = min(scale, longest * size / max(stamp.size))
    return stamp.resize(
        [max(4, round(side * scale)) for side in stamp.size], Image.Resampling.BICUBIC
    )


def relit(stamp: Image.Image, brightness: float, contrast: float) -> Image.Image:
    """A cut-out with other brightness and contrast, both factors."""
    rgb = ImageEnhance.Contrast(
        ImageEnhance.Brightness(stamp.convert("RGB")).enhance(brightness)
    ).enhance(contrast)
    rgb.putalpha(stamp.getchannel("A"))
    return rgb


def paste_label(owner: np.ndarray, alpha: np.ndarray, x: int, y: int, label: int) -> None:
    """Write `label` where alpha is above one half, at offset (x, y), cut to the frame, in place."""
    h, w = owner.shape
    top, left = max(0, -y), max(0, -x)
    inside = alpha[top : h - y, left : w - x] > 127
    owner[y + top : y + top + inside.shape[0], x + left : x + left + inside.shape[1]][inside] = (
        label
    )
