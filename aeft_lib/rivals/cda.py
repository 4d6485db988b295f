"""CDA, context decoupling augmentation (Su et al., ICCV 2021): objects on other backgrounds.

A classifier learns the place with the object.  So objects are cut out by predicted label maps and
pasted on scenes that have no such class, and a second classifier, from ImageNet weights again,
learns from originals and pasted scenes, one to one.

An image gives an instance where its label map has exactly one class, on 0.1 to 0.7 of the image; it
is the box around all of that class.  It is rotated by -90 to 90 degrees, shrunk to at most 0.7 of
the target's height, then of its width, and copied at a random place with a hard edge.  The tags of
the scene are those of the target and the class, also where the instance covers an object.

Quirks of the authors' release are switches.  `dilated`: the label *values* go through the spline of
the rotation and the bilinear resize before "not 0", so the margin grows with the number of the
class; else a mask of 0 and 255 does, and is cut at half.  `short_decay`: see `train_composed`.
`blurred` and `scaled` are in the release, and unused.  Where every class is in the image, or none
that is absent has an instance, the release fails; here the scene stays as it is.

Departure: where features are cached each scene has one pasted version, else (as in the release) a
new one each time.  Read in the authors' code; the paper was not at hand.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage

from aeft_lib.data.scene import Scenes, SceneSet
from aeft_lib.engine.fields import choice, fraction, whole
from aeft_lib.maps.labels import VOID, read_label_map
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.composer import COMPOSITION, Drawn
from aeft_lib.stages.write_labels import label_files

BANK = "bank.csv"
COLUMNS = ("index", "class_id", "top", "bottom", "left", "right", "share")
# Of three rows and three columns, in 1/256.  The release's call has OpenCV's border mode, 4, in the
# place of the vertical sigma.
BLUR = ((84, 88, 84), (64, 128, 64))
SCALES = (0.8, 1.2)


class Instance(NamedTuple):
    """index: of the image.  class_id: 0..K-1.  The box is half open.  share: of the image."""

    index: int
    class_id: int
    top: int
    bottom: int
    left: int
    right: int
    share: float


@dataclass(frozen=True)
class Pasting:
    """The composer (`stages.composer`).

    least, most: part of an image that an instance covers, both included.
    angle: degrees to either side.  longest: part of a target's side that an instance may have.
    scaled: instances are not rotated; their size is multiplied by 0.8 to 1.2.
    dilated, blurred, short_decay: see the module.
    """

    least: float = 0.1
    most: float = 0.7
    angle: int = 90
    longest: float = 0.7
    scaled: bool = False
    dilated: bool = False
    blurred: bool = False
    short_decay: bool = False

    def __post_init__(self) -> None:
        fraction(self, "least", "most", "longest")
        whole(self, "angle", most=180)
        switches = ("scaled", "dilated", "blurred", "short_decay")
        choice(self, **dict.fromkeys(switches, (False, True)))
        if self.least > self.most or not self.longest:
            problem = f"{self.least}..{self.most} and {self.longest}"
            raise ValueError(f"least must not exceed most, and longest be positive, got {problem}")

    def prepared(
        self, obtain: Callable[..., Artefact], scenes: SceneSet, labels: Artefact
    ) -> dict[str, Artefact]:
        """``composition``, the bank, and the ``labels`` that it was cut by."""
        spec = BankSpec(scenes, self.least, self.most)
        return {COMPOSITION: obtain(bank_instances, spec, {"labels": labels}), "labels": labels}

    def opened(
        self, scenes: Scenes, inputs: Mapping[str, Artefact]
    ) -> Callable[[int, np.random.Generator], Drawn]:
        """Draws a class that is absent, each as likely, an instance of it, and where it goes."""
        bank, files = read_bank(inputs[COMPOSITION]), label_files(inputs["labels"])

        def compose(index: int, rng: np.random.Generator) -> Drawn:
            image, tags = scenes.image(index), np.array(scenes.tags(index), dtype=bool)
            absent = [class_id for class_id in sorted(bank) if not tags[class_id]]
            if not absent:
                return image, tags
            chosen = bank[absent[int(rng.integers(len(absent)))]]
            instance = chosen[int(rng.integers(len(chosen)))]
            box = slice(instance.top, instance.bottom), slice(instance.left, instance.right)
            labels = read_label_map(files[instance.index], num_classes=len(tags))
            cut = scenes.image(instance.index)[box], labels[box]
            tags[instance.class_id] = True
            return self.paste(image, *cut, rng), tags

        return compose

    def paste(
        self,
        target: np.ndarray,
        instance: np.ndarray,
        segment: np.ndarray,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """A target (H, W, 3) uint8 with an instance (h, w, 3) at a random angle and place.

        segment: (h, w) uint8, 0 around the instance.
        """
        segment = segment if self.dilated else 255 * (segment != 0).astype(np.uint8)
        if self.scaled:
            drawn = float(rng.random())
            shape = rescaled(segment.shape, target.shape[:2], self.longest, drawn)
        else:
            degree = int(rng.integers(-self.angle, self.angle + 1))
            instance, segment = turned(instance, degree), turned(segment, degree)
            shape = shrunk(segment.shape, target.shape[:2], self.longest)
        instance, segment = resized(instance, shape), resized(segment, shape)
        mask = segment != 0 if self.dilated else segment > 127
        row, column = (
            int(rng.integers(side - own + 1))
            for side, own in zip(target.shape[:2], shape, strict=True)
        )
        return put(target, instance, mask, row, column, blurred=self.blurred)


def select(labels: np.ndarray, *, least: float = 0.1, most: float = 0.7) -> Instance | None:
    """The instance (of image 0) that a label map (H, W) gives; None where it gives none.

    Void pixels belong to no class.
    """
    foreground = (labels != 0) & (labels != VOID)
    classes, share = np.unique(labels[foreground]), float(foreground.mean())
    if len(classes) != 1 or not least <= share <= most:
        return None
    (top, left), (bottom, right) = (f(np.argwhere(foreground), axis=0) for f in (np.min, np.max))
    box = (int(top), int(bottom) + 1, int(left), int(right) + 1)
    return Instance(0, int(classes[0]) - 1, *box, share)


def turned(picture: np.ndarray, degree: int) -> np.ndarray:
    """A picture or a map, uint8, rotated on a canvas that holds it all; cubic spline, zero fill."""
    return ndimage.rotate(picture, degree)


def shrunk(shape: tuple[int, int], target: tuple[int, int], longest: float) -> tuple[int, int]:
    """The size (h, w) with its aspect: as high as it may be, then as wide; at least one pixel.

    >>> shrunk((60, 40), (64, 80), 0.7), shrunk((20, 30), (64, 80), 0.7)
    ((44, 29), (20, 30))
    """
    for axis in (0, 1):
        most = longest * target[axis]
        if shape[axis] > most:
            shape = tuple(max(1, int(side * most / shape[axis])) for side in shape)
    return shape


def rescaled(
    shape: tuple[int, int], target: tuple[int, int], longest: float, drawn: float
) -> tuple[int, int]:
    """As `shrunk`, times 0.8 to 1.2 by a number in 0..1; truncated once, and inside the target.

    >>> rescaled((60, 30), (64, 80), 0.7, 0.35)
    (42, 21)
    """
    factor = min(1.0, *(longest * most / side for side, most in zip(shape, target, strict=True)))
    factor *= SCALES[0] + (SCALES[1] - SCALES[0]) * drawn
    sides = zip(shape, target, strict=True)
    return tuple(min(most, max(1, int(side * factor))) for side, most in sides)


def resized(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A picture or a map, uint8, at a size (h, w), bilinear."""
    if picture.shape[:2] == tuple(shape):
        return picture
    return np.asarray(Image.fromarray(picture).resize(shape[::-1], Image.Resampling.BILINEAR))


def put(
    target: np.ndarray,
    instance: np.ndarray,
    mask: np.ndarray,
    row: int,
    column: int,
    *,
    blurred: bool = False,
) -> np.ndarray:
    """The target with the instance where its mask (h, w) is true, at a place inside of it.

    blurred: the mask's edge is softened, 3x3.
    """
    pasted = target.copy()
    region = pasted[row : row + mask.shape[0], column : column + mask.shape[1]]
    if blurred:
        alpha = softened(mask)[..., None] / 255.0
        region[:] = alpha * instance + (1 - alpha) * region
    else:
        region[mask] = instance[mask]
    return pasted


def softened(mask: np.ndarray) -> np.ndarray:
    """A mask (h, w) bool as 0..255, blurred within its box as OpenCV does it, in 1/256."""
    total = 255 * mask.astype(np.int64)
    for axis, weights in enumerate(BLUR):
        total = ndimage.convolve1d(total, weights, axis=axis, mode="mirror")
    return (total + 2**15) >> 16


# --- the bank -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BankSpec:
    """least, most: see `Pasting`."""

    scenes: SceneSet
    least: float
    most: float


def bank_instances(
    spec: BankSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Write ``bank.csv``, an instance a line, cut by ``labels``.

    ``instances``; ``classes_without`` any; ``instance_share``, their mean part of an image.
    """
    count, bank = len(spec.scenes.open().classes), []
    for index, file in enumerate(label_files(inputs["labels"])):
        labels = read_label_map(file, num_classes=count)
        if instance := select(labels, least=spec.least, most=spec.most):
            bank.append(instance._replace(index=index))
    table = pd.DataFrame(bank, columns=COLUMNS)
    table.to_csv(folder / BANK, index=False, float_format="%.6f")
    return {
        "instances": len(table),
        "classes_without": count - table["class_id"].nunique(),
        "instance_share": float(table["share"].mean()) if len(table) else 0.0,
    }


def read_bank(artefact: Artefact) -> dict[int, list[Instance]]:
    """The instances of an artefact of `bank_instances` by class."""
    bank: dict[int, list[Instance]] = {}
    for line in pd.read_csv(artefact.folder / BANK).itertuples(index=False):
        bank.setdefault(int(line.class_id), []).append(Instance(*map(int, line[:-1]), line.share))
    return bank
