"""Collages under control: one knob is turned, everything else of a scene stays as it was.

Not in the paper: no benchmark lets one object be made larger and nothing else.  Every part of a scene (its classes, its
background, each object, clutter, each occluder) draws from a random stream of its own, seeded by (set, split, index, part), so
scene 7 shows the same cut-outs before the same background at every level of a knob.  Where positions must change, because a
larger object does not fit where a small one stood, they come from the same draws.

    object_area   area of every object, as a fraction of the scene
    objects       objects in a scene, each of another class
    context       how often the background is the one tied to the first object's class
    clutter       untagged things behind the objects: silhouettes of cut-outs filled with another background
    occlusion     part of every object that a piece of another background hides
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from aeft_lib.data.collages import (
    CLASSES,
    MIN_VISIBLE_PIXELS,
    SPLITS,
    Collages,
    background_crop,
    paste_label,
    relit,
    resized_to_area,
    turned,
)
from aeft_lib.data.scene import Scene, opened

VOC_MEDIAN_AREA = 0.15  # of a class in its image, see `collages.AREA_QUANTILES`
KNOBS = ("object_area", "objects", "context", "clutter", "occlusion")
CLUTTER_AREA = 0.04  # of the scene, each
MAX_CLUTTER = 40
MIN_PIXELS = 9  # that an object must show
PLACEMENTS = 20  # of which the one with the least overlap is taken
# Numbers of the random streams; an object and its occluder have one each.
_SCENE, _BACKGROUND, _CLUTTER, _OBJECT, _OCCLUDER = 0, 1, 2, 100, 200


@dataclass(frozen=True)
class ControlledSpec:
    """A set of scenes that differs from another one in the knobs alone, where split, count, size and seed are the same.

    object_area: above 0, at most 0.8; long objects reach less, since they may not leave the scene.
    objects: 1 to 9, of different classes.  context: 0..1.  clutter: 0 to 40 things.  occlusion: 0..0.9 of each object.
    Raises ValueError for a knob outside its range, and for knobs that together leave nothing to see.
    """

    split: str
    count: int
    size: int = 192
    seed: int = 0
    object_area: float = VOC_MEDIAN_AREA
    objects: int = 1
    context: float = 0.0
    clutter: int = 0
    occlusion: float = 0.0

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        for name, low, high in (("count", 1, None), ("size", 32, None), ("seed", 0, None)):
            _whole(name, getattr(self, name), low, high)
        _whole("objects", self.objects, 1, len(CLASSES))
        _whole("clutter", self.clutter, 0, MAX_CLUTTER)
        _fraction("object_area", self.object_area, 0.8)
        _fraction("context", self.context, 1.0)
        _fraction("occlusion", self.occlusion, 0.9)
        seen = self.object_area * (1 - self.occlusion)
        least = max(2 * MIN_VISIBLE_PIXELS, MIN_PIXELS / self.size**2)  # room for rounding
        if seen < least:
            raise ValueError(
                f"object_area={self.object_area} with occlusion={self.occlusion} leaves no visible object: {seen:.4f} of the "
                f"scene of {self.size} px is below {least:.4f}; raise object_area or lower occlusion"
            )
        if self.objects * self.object_area > 1:
            raise ValueError(
                f"{self.objects} objects of object_area={self.object_area} do not fit into one scene: "
                f"lower objects or object_area so that their product is at most 1"
            )

    def open(self) -> "ControlledCollages":
        """The scenes of this spec, kept for the process.  Raises ValueError as `ControlledCollages` does."""
        return opened(ControlledCollages, self)


def _whole(name: str, value: object, low: int, high: int | None) -> None:
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or value < low
        or (high is not None and value > high)
    ):
        limits = f"at least {low}" if high is None else f"{low} to {high}"
        raise ValueError(f"{name} must be a whole number, {limits}, got {value!r}")


def _fraction(name: str, value: object, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not 0 <= value <= high:
        raise ValueError(f"{name} must lie in 0..{high:g}, got {value!r}")


class ControlledCollages(Collages):
    """The scenes of a `ControlledSpec`, rendered when asked for, as `Collages` gives its own.

    Both splits stand before the same thirteen backgrounds, so that what training learns about places is there to be met again,
    as in photos; cut-outs of ``val`` are unseen.  Clutter and occluders have the surface of the other backgrounds, which are
    nobody's place.
    """

    spec: ControlledSpec

    def __getitem__(self, index: int) -> Scene:
        """Scene `index`; raises IndexError outside 0..count-1."""
        if not 0 <= index < self.spec.count:
            raise IndexError(f"scene {index} of {self.spec.count}")
        chosen = self._stream(index, _SCENE).permutation(len(CLASSES))[: self.spec.objects].tolist()
        places, context = self.pack.backgrounds["train"], self.spec.context
        canvas = background_crop(
            self._stream(index, _BACKGROUND),
            places,
            chosen[0],
            context=context,
            size=self.spec.size,
        )
        self._add_clutter(canvas, self._stream(index, _CLUTTER))
        owner = np.zeros((self.spec.size, self.spec.size), np.uint8)
        for place, class_index in enumerate(chosen):
            self._place_object(canvas, owner, class_index, self._stream(index, _OBJECT + place))
        for place, class_index in enumerate(chosen if self.spec.occlusion else ()):
            self._occlude(canvas, owner, class_index + 1, self._stream(index, _OCCLUDER + place))
        self._forget_hidden(owner)
        tags = np.isin(np.arange(1, len(CLASSES) + 1), owner)
        return Scene(np.asarray(canvas), owner, tags, self.names[index])

    def _stream(self, index: int, part: int) -> np.random.Generator:
        return np.random.default_rng([self.spec.seed, SPLITS.index(self.spec.split), index, part])

    def _corner(self, share: np.ndarray, stamp: Image.Image) -> tuple[int, int]:
        """Upper left corner (x, y) of a stamp that is inside the frame; share: (2,) in 0..1, from one end to the other."""
        x, y = (
            round(part * (self.spec.size - length))
            for part, length in zip(share.tolist(), stamp.size, strict=True)
        )
        return x, y

    @cached_property
    def _surfaces(self) -> list[Image.Image]:
        """Of what belongs to no class."""
        return [
            photo.resize((self.spec.size,) * 2, Image.Resampling.BICUBIC)
            for photo in self.pack.backgrounds["val"]
        ]

    @cached_property
    def _shapes(self) -> list[Image.Image]:
        """Silhouettes of all cut-outs of the split, at the size of clutter."""
        stamps = [stamp for name in CLASSES for stamp in self.pack.cutouts[self.spec.split, name]]
        return [
            resized_to_area(stamp, CLUTTER_AREA, self.spec.size, longest=1.0) for stamp in stamps
        ]

    def _place_object(
        self, canvas: Image.Image, owner: np.ndarray, class_index: int, rng: np.random.Generator
    ) -> None:
        """Paste one cut-out inside the frame, at the one of some random positions where it hides least of what is there."""
        choices = self.pack.cutouts[self.spec.split, CLASSES[class_index]]
        stamp = turned(rng, choices[int(rng.integers(len(choices)))])
        stamp = resized_to_area(stamp, self.spec.object_area, self.spec.size, longest=1.0)
        stamp = relit(stamp, *rng.uniform(0.8, 1.2, size=2))
        alpha = np.asarray(stamp)[..., 3]
        best, least = (0, 0), math.inf
        for where in rng.uniform(size=(PLACEMENTS, 2)):
            x, y = self._corner(where, stamp)
            hidden = (owner[y : y + stamp.height, x : x + stamp.width][alpha > 127] > 0).sum()
            if hidden < least:
                best, least = (x, y), hidden
        canvas.paste(stamp, best, stamp)
        paste_label(owner, alpha, *best, class_index + 1)

    def _add_clutter(self, canvas: Image.Image, rng: np.random.Generator) -> None:
        """Things of no class behind the objects: each has the shape of some cut-out, anywhere in the frame."""
        for _ in range(self.spec.clutter):
            shape = turned(rng, self._shapes[int(rng.integers(len(self._shapes)))])
            surface = self._surfaces[int(rng.integers(len(self._surfaces)))]
            canvas.paste(
                surface.crop((0, 0, *shape.size)),
                self._corner(rng.uniform(size=2), shape),
                shape.getchannel("A"),
            )

    def _occlude(
        self, canvas: Image.Image, owner: np.ndarray, label: int, rng: np.random.Generator
    ) -> None:
        """Hide the wanted part of an object: from a random side up to a straight edge, within the object's bounding box."""
        angle, surface = (
            rng.uniform(0, 2 * np.pi),
            self._surfaces[int(rng.integers(len(self._surfaces)))],
        )
        pixels = np.argwhere(owner == label)
        if not len(pixels):
            return
        direction = np.array([np.sin(angle), np.cos(angle)])
        (top, left), (bottom, right) = pixels.min(axis=0), pixels.max(axis=0) + 1
        box = np.stack(np.mgrid[top:bottom, left:right], axis=-1)
        cover = np.zeros(owner.shape, bool)
        cover[top:bottom, left:right] = box @ direction <= np.quantile(
            pixels @ direction, self.spec.occlusion
        )
        cover &= (owner == 0) | (owner == label)  # other objects stay in front
        canvas.paste(surface, (0, 0), Image.fromarray((255 * cover).astype(np.uint8)))
        owner[cover] = 0

    def _forget_hidden(self, owner: np.ndarray) -> None:
        """A class of which others have left next to nothing has neither tag nor label; a lone one keeps both."""
        labels = set(np.unique(owner).tolist()) - {0}
        for label in labels if len(labels) > 1 else ():
            if (owner == label).sum() < MIN_VISIBLE_PIXELS * self.spec.size**2:
                owner[owner == label] = 0
