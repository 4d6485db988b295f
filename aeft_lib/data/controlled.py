"""Collages under control: one knob is turned, everything else of a scene stays as it was.

Not in the paper: no benchmark lets one object be made larger and nothing else.  Every part of a
scene (its classes, its background, each object, clutter, each occluder) draws from a random stream
of its own, seeded by (set, split, index, part), so scene 7 shows the same cut-outs before the same
background at every level of a knob.  Where positions must change, because a larger object does not
fit where a small one stood, they come from the same draws.

    object_area   area of every object, as a fraction of the scene
    objects       objects in a scene, each of another class
    context       how often the background is the one tied to the first object's class
    clutter       untagged things behind the objects: shapes of cut-outs, another background in them
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
from aeft_lib.engine import fields

VOC_MEDIAN_AREA = 0.15  # of a class in its image, see `collages.AREA_QUANTILES`
KNOBS = ("object_area", "objects", "context", "clutter", "occlusion")
CLUTTER_AREA = 0.04  # of the scene, each
MAX_CLUTTER = 40
MIN_PIXELS = 9  # that an object must show
PLACEMENTS = 20  # the least overlap among them wins
# Numbers of the random streams; an object and its occluder have one each.
_SCENE, _BACKGROUND, _CLUTTER, _OBJECT, _OCCLUDER = 0, 1, 2, 100, 200


@dataclass(frozen=True)
class ControlledSpec:
    """A set of scenes.  Two that share split, count, size and seed differ in their knobs alone.

    object_area: above 0, at most 0.8; long objects reach less, since they may not leave the scene.
    objects: 1 to 9, of different classes.  context: 0..1.  clutter: 0 to 40 things.
    occlusion: 0..0.9 of each object.
    Raises ValueError for a knob outside its range, and for knobs that leave nothing to see.
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
        fields.choice(self, split=SPLITS)
        fields.whole(self, "count", least=1)
        fields.whole(self, "size", least=32)
        fields.whole(self, "seed")
        fields.whole(self, "objects", least=1, most=len(CLASSES))
        fields.whole(self, "clutter", most=MAX_CLUTTER)
        fields.fraction(self, "object_area", most=0.8)
        fields.fraction(self, "context")
        fields.fraction(self, "occlusion", most=0.9)
        area, visible = self.object_area, self.object_area * (1 - self.occlusion)
        least = max(2 * MIN_VISIBLE_PIXELS, MIN_PIXELS / self.size**2)  # room for rounding
        if visible < least:
            raise ValueError(
                f"object_area={area} with occlusion={self.occlusion} leaves no visible object: "
                f"{visible:.4f} of the scene of {self.size} px is below {least:.4f}; "
                "raise object_area or lower occlusion"
            )
        if self.objects * area > 1:
            raise ValueError(
                f"{self.objects} objects of object_area={area} do not fit into one scene: "
                "lower objects or object_area so that their product is at most 1"
            )

    def open(self) -> "ControlledCollages":
        """The scenes of this spec, kept for the process.  Raises ValueError as `load_pack` does."""
        return opened(ControlledCollages, self)


class ControlledCollages(Collages):
    """The scenes of a `ControlledSpec`, rendered when asked for, as `Collages` gives its own.

    Both splits stand before the same thirteen backgrounds, so that what training learns about
    places is there to be met again, as in photos; cut-outs of ``val`` are unseen.  Clutter and
    occluders have the surface of the other backgrounds, which are nobody's place.
    """

    spec: ControlledSpec

    def __getitem__(self, index: int) -> Scene:
        """Scene `index`; raises IndexError outside 0..count-1."""
        if not 0 <= index < self.spec.count:
            raise IndexError(f"scene {index} of {self.spec.count}")
        chosen = self._stream(index, _SCENE).permutation(len(CLASSES))[: self.spec.objects].tolist()
        places, context = self.pack.backgrounds["train"], self.spec.context
        rng, size = self._stream(index, _BACKGROUND), self.spec.size
        canvas = background_crop(rng, places, chosen[0], context=context, size=size)
        self._add_clutter(canvas, self._stream(index, _CLUTTER))
        owner = np.zeros((size, size), np.uint8)
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
        """Upper left corner (x, y) of a stamp inside the frame; share: (2,) in 0..1 of its room."""
        x, y = (
            round(part * (self.spec.size - length))
            for part, length in zip(share.tolist(), stamp.size, strict=True)
        )
        return x, y

    @cached_property
    def _surfaces(self) -> list[Image.Image]:
        """Of what belongs to no class."""
        size, photos = (self.spec.size,) * 2, self.pack.backgrounds["val"]
        return [photo.resize(size, Image.Resampling.BICUBIC) for photo in photos]

    @cached_property
    def _shapes(self) -> list[Image.Image]:
        """Silhouettes of all cut-outs of the split, at the size of clutter."""
        stamps = [stamp for name in CLASSES for stamp in self.pack.cutouts[self.spec.split, name]]
        size = self.spec.size
        return [resized_to_area(stamp, CLUTTER_AREA, size, longest=1.0) for stamp in stamps]

    def _place_object(
        self, canvas: Image.Image, owner: np.ndarray, class_index: int, rng: np.random.Generator
    ) -> None:
        """Paste a cut-out inside the frame, where of some random places it hides least."""
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
        """Things of no class behind the objects, in the shapes of cut-outs, anywhere."""
        for _ in range(self.spec.clutter):
            shape = turned(rng, self._shapes[int(rng.integers(len(self._shapes)))])
            surface = self._surfaces[int(rng.integers(len(self._surfaces)))]
            corner = self._corner(rng.uniform(size=2), shape)
            canvas.paste(surface.crop((0, 0, *shape.size)), corner, shape.getchannel("A"))

    def _occlude(
        self, canvas: Image.Image, owner: np.ndarray, label: int, rng: np.random.Generator
    ) -> None:
        """Hide a part of an object: from a random side up to a straight edge, within its box."""
        angle = rng.uniform(0, 2 * np.pi)
        surface = self._surfaces[int(rng.integers(len(self._surfaces)))]
        pixels = np.argwhere(owner == label)
        if not len(pixels):
            return
        direction = np.array([np.sin(angle), np.cos(angle)])
        (top, left), (bottom, right) = pixels.min(axis=0), pixels.max(axis=0) + 1
        box = np.stack(np.mgrid[top:bottom, left:right], axis=-1)
        cover = np.zeros(owner.shape, bool)
        edge = np.quantile(pixels @ direction, self.spec.occlusion)
        cover[top:bottom, left:right] = box @ direction <= edge
        cover &= (owner == 0) | (owner == label)  # other objects stay in front
        canvas.paste(surface, (0, 0), Image.fromarray((255 * cover).astype(np.uint8)))
        owner[cover] = 0

    def _forget_hidden(self, owner: np.ndarray) -> None:
        """Take the label from a class of which the others leave next to nothing.

        A class that is alone keeps it.
        """
        labels = set(np.unique(owner).tolist()) - {0}
        for label in labels if len(labels) > 1 else ():
            if (owner == label).sum() < MIN_VISIBLE_PIXELS * self.spec.size**2:
                owner[owner == label] = 0
