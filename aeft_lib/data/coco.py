"""MS COCO 2014 from its instance annotations: tags and masks of 80 classes.

``train2014/``, ``val2014/`` and ``annotations/instances_{train,val}2014.json`` stand below `paths.coco_root`.

- Classes are COCO's 80, in the order of their category ids.
- Tags: every class with an annotation, crowds too: the reference's tags are drawn from the same list, and a crowd of people is
  people.
- Masks: objects are painted from the largest to the smallest, so that what lies in front of a table stays visible.  Regions
  marked ``iscrowd`` are coarse outlines of many objects; they are void, unless an object is painted over them.
- Images without any annotation have no tags, and are background.

Dependency choice: ``pycocotools`` decodes polygons and run lengths as COCO's own tools do; only masks need it.
"""

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aeft_lib import paths
from aeft_lib.data.scene import Photos, check_selection, opened, selected
from aeft_lib.maps.labels import VOID

SPLITS = {"train2014": 82783, "val2014": 40504}  # images of the published lists


@dataclass(frozen=True)
class CocoSpec:
    """split: train2014 or val2014.  count: so many of its images; 0 is all.  size: side they are squared to; 0 leaves them."""

    split: str
    count: int = 0
    size: int = 0

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        check_selection(self.count, self.size)

    def open(self) -> "Coco":
        """The scenes of this spec, kept for the process.  Raises ValueError as `Coco` does."""
        return opened(Coco, self)


class Instances(NamedTuple):
    """What one annotation file holds.

    classes: names in the order of their ids.  numbers: category id -> position.  images: file name without suffix ->
    (H, W).  objects: the same -> its annotations.
    """

    classes: tuple[str, ...]
    numbers: dict[int, int]
    images: dict[str, tuple[int, int]]
    objects: dict[str, list[dict[str, Any]]]


class Coco(Photos):
    """The scenes of a `CocoSpec`."""

    def __init__(self, spec: CocoSpec, root: Path | None = None) -> None:
        """root: `paths.coco_root` by default.  Raises ValueError where the annotations are missing or damaged."""
        self.spec, self.root = spec, root or paths.coco_root()
        self.instances = read_instances(self.root / "annotations" / f"instances_{spec.split}.json")
        self.classes = self.instances.classes
        self.names = selected(sorted(self.instances.images), spec.count)

    def image_file(self, name: str) -> Path:
        """Where the photo of this name stands."""
        return self.root / self.spec.split / f"{name}.jpg"

    def read_tags(self, name: str) -> np.ndarray:
        """Its tags."""
        present = {self.instances.numbers[found["category_id"]] for found in self.instances.objects[name]}
        return np.array([i in present for i in range(len(self.classes))])

    def read_mask(self, name: str) -> np.ndarray:
        """Its mask, painted from the annotations."""
        size, objects = self.instances.images[name], self.instances.objects[name]
        mask = np.zeros(size, np.uint8)
        for found in sorted(objects, key=lambda one: (-one.get("iscrowd", 0), -one.get("area", 0))):
            label = VOID if found.get("iscrowd") else self.instances.numbers[found["category_id"]] + 1
            mask[_region(found, size, name)] = label
        return mask

    def mask_digest(self, name: str) -> bytes:
        """Of its annotations, which the mask is painted from."""
        return hashlib.sha256(json.dumps(self.instances.objects[name], sort_keys=True).encode()).digest()


def read_instances(file: Path) -> Instances:
    """The annotations of a split.  Raises ValueError for a file that is missing, damaged, or names what it does not list.

    The published training file is 450 MB and takes about ten seconds, once a process as long as the file stays the same.
    """
    if not file.is_file():
        raise ValueError(f"no {file}: AEFT_COCO_ROOT must name the folder that holds annotations/; see `aeft data check coco`")
    return _read_instances(file, file.stat().st_mtime_ns, file.stat().st_size)


@lru_cache(maxsize=2)
def _read_instances(file: Path, changed: int, size: int) -> Instances:
    """`changed` and `size` only tell one state of the file from another."""
    try:
        content = json.loads(file.read_bytes())
        categories = {int(one["id"]): str(one["name"]) for one in content["categories"]}
        names = {one["id"]: Path(one["file_name"]).stem for one in content["images"]}
        images = {names[one["id"]]: (int(one["height"]), int(one["width"])) for one in content["images"]}
        objects: dict[str, list] = defaultdict(list)
        for found in content["annotations"]:
            if found["category_id"] not in categories:
                raise ValueError(f"annotation {found.get('id')} has the unknown category {found['category_id']}")
            if found["image_id"] not in names:
                raise ValueError(f"annotation {found.get('id')} belongs to the unknown image {found['image_id']}")
            objects[names[found["image_id"]]].append(found)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: not readable as COCO's instances ({error!r}); fetch it again") from error
    if not categories or not images:
        raise ValueError(f"{file}: {len(categories)} categories and {len(images)} images: fetch it again")
    if len(images) < len(content["images"]):
        raise ValueError(f"{file}: an image stands twice: fetch it again")
    ids = sorted(categories)
    return Instances(tuple(categories[i] for i in ids), {number: at for at, number in enumerate(ids)}, images, objects)


def _region(found: dict[str, Any], size: tuple[int, int], name: str) -> np.ndarray:
    """The pixels of one annotation as (H, W) bool."""
    from pycocotools import mask as masks  # only evaluation needs it

    outline = found.get("segmentation")
    try:
        if isinstance(outline, list):
            runs = masks.merge(masks.frPyObjects(outline, *size)) if outline else None
        elif isinstance(outline["counts"], list):
            if sum(outline["counts"]) != size[0] * size[1]:  # the C code would fill up what is missing
                raise ValueError(f"its runs have {sum(outline['counts'])} pixels, the image {size[0] * size[1]}")
            runs = masks.frPyObjects(outline, *size)
        else:
            runs = outline
        region = np.zeros(size, bool) if runs is None else masks.decode(runs).astype(bool)
    except Exception as error:  # the C code raises what it likes
        raise ValueError(f"{name}: annotation {found.get('id')} has no readable outline ({error!r})") from error
    if region.shape != tuple(size):
        raise ValueError(f"{name}: annotation {found.get('id')} is {region.shape}, its image {tuple(size)}")
    return region
