"""MS COCO 2014 from its instance annotations: tags and masks of 80 classes.

``train2014/``, ``val2014/`` and ``annotations/instances_{train,val}2014.json`` stand below
`paths.coco_root`.

- Classes are COCO's 80, in the order of their category ids.
- Tags: every class with an annotation, crowds too: the reference's tags are drawn from the same
  list, and a crowd of people is people.
- Masks: objects are painted from the largest to the smallest, so that what lies in front of a table
  stays visible.  Regions marked ``iscrowd`` are coarse outlines of many objects; they are void,
  unless an object is painted over them.
- Images without any annotation have no tags, and are background.

Dependency choice: ``pycocotools`` decodes polygons and run lengths as COCO's own tools do; only
masks need it.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aeft_lib import paths
from aeft_lib.data.listing import Entry, Listing
from aeft_lib.data.photos import Photos, check_selection, selected
from aeft_lib.data.scene import opened
from aeft_lib.engine import fields
from aeft_lib.maps.labels import VOID

SPLITS = {"train2014": 82783, "val2014": 40504}  # images of the published lists


@dataclass(frozen=True)
class CocoSpec:
    """split: train2014 or val2014.  count: so many of its images; 0 is all.

    size: side they are squared to, in pixels; 0 leaves them as they are.
    """

    split: str
    count: int = 0
    size: int = 0

    def __post_init__(self) -> None:
        fields.choice(self, split=tuple(SPLITS))
        check_selection(self)

    def open(self) -> "Coco":
        """The scenes of this spec, kept for the process.  Raises ValueError as `Coco` does."""
        return opened(Coco, self)


class Instances(NamedTuple):
    """What one annotation file holds.

    classes: names in the order of their ids.  numbers: category id -> position.  ids: of images.
    images: file name without suffix -> (H, W).  objects: the same -> its annotations.
    """

    classes: tuple[str, ...]
    numbers: dict[int, int]
    ids: frozenset[int]
    images: dict[str, tuple[int, int]]
    objects: dict[str, list[dict[str, Any]]]

    def tags(self, name: str) -> frozenset[str]:
        """The classes of an image's annotations."""
        ids = {item["category_id"] for item in self.objects[name]}
        return frozenset(self.classes[self.numbers[i]] for i in ids if i in self.numbers)


class Coco(Photos):
    """The scenes of a `CocoSpec`."""

    def __init__(self, spec: CocoSpec, root: Path | None = None) -> None:
        """root: `paths.coco_root` by default.  Raises ValueError as `read_instances` does."""
        self.spec, self.root = spec, root or paths.coco_root()
        self.instances = read_instances(_file(self.root, spec.split))
        self.classes = self.instances.classes
        self.names = selected(sorted(self.instances.images), spec.count)

    def image_file(self, name: str) -> Path:
        """Where the photo of this name stands."""
        return self.root / self.spec.split / f"{name}.jpg"

    def read_tags(self, name: str) -> np.ndarray:
        """Its tags."""
        present = self.instances.tags(name)
        return np.array([known in present for known in self.classes])

    def read_mask(self, name: str) -> np.ndarray:
        """Its mask, painted from the annotations."""
        size, objects = self.instances.images[name], self.instances.objects[name]
        mask = np.zeros(size, np.uint8)
        objects = sorted(objects, key=lambda o: (-o.get("iscrowd", 0), -o.get("area", 0)))
        for item in objects:
            number = self.instances.numbers[item["category_id"]]
            mask[_region(item, size, name)] = VOID if item.get("iscrowd") else number + 1
        return mask

    def mask_digest(self, name: str) -> bytes:
        """Of its annotations, which the mask is painted from."""
        objects = json.dumps(self.instances.objects[name], sort_keys=True)
        return hashlib.sha256(objects.encode()).digest()


def listing(root: Path) -> Listing:
    """What COCO lists below a root, for the data doctor."""
    known, problems = dict.fromkeys(SPLITS, Instances((), {}, frozenset(), {}, {})), []
    for split in SPLITS:
        file, photos = _file(root, split), root / split
        if not file.is_file():
            problems += [f"{file}: missing, but {photos} is there"] if photos.is_dir() else []
            continue
        problems += [] if photos.is_dir() else [f"{photos}: no such folder"]
        try:
            known[split], wrong = _parse(file, outlines=True)
            problems += wrong
        except ValueError as error:
            problems.append(str(error))
    train, val = known.values()
    if not root.is_dir():
        remedy = "AEFT_COCO_ROOT must name the folder that holds annotations"
        problems.append(f"{root}: no such folder; {remedy}")
    elif not (train.images or val.images or problems):
        files = " and ".join(f"no {_file(root, split).name}" for split in SPLITS)
        problems.append(f"{root / 'annotations'}: {files}")
    text = "stands in train2014 and in val2014; results on val2014 would not count"
    problems += [f"image {i}: {text}" for i in sorted(train.ids & val.ids)]
    splits = {split: [(split, name) for name in known[split].images] for split in SPLITS}
    classes = train.classes or val.classes
    return Listing(problems, splits, SPLITS, partial(_entry, root, known), classes)


def _entry(root: Path, known: dict[str, Instances], key: tuple[str, str]) -> Entry:
    split, name = key
    photo, instances = root / split / f"{name}.jpg", known[split]
    annotated, claim = bool(instances.objects[name]), f"{photo}: the annotations say"
    photo, claim = photo if photo.parent.is_dir() else None, (claim, instances.images[name])
    return Entry(photo, instances.tags(name), annotated, masked=annotated, claim=claim)


def _file(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def read_instances(file: Path) -> Instances:
    """The annotations of a split.

    The published training file is 450 MB and takes about ten seconds, once a process as long as the
    file stays the same.
    Raises ValueError for a file that is missing, damaged, or names what it does not list.
    """
    if not file.is_file():
        remedy = "AEFT_COCO_ROOT must name the folder that holds annotations/"
        raise ValueError(f"no {file}: {remedy}; see `aeft data check coco`")
    return _read_instances(file, file.stat().st_mtime_ns, file.stat().st_size)


@lru_cache(maxsize=2)
def _read_instances(file: Path, changed: int, size: int) -> Instances:
    """`changed` and `size` only tell one state of the file from another."""
    instances, problems = _parse(file)
    if problems:
        raise ValueError(f"{problems[0]}; fetch it again")
    return instances


def _parse(file: Path, *, outlines: bool = False) -> tuple[Instances, list[str]]:
    """What a file holds, and what is wrong with it; outlines: look at those too, for masks.

    Raises ValueError for what is no file of COCO's instances.
    """
    try:
        content = json.loads(file.read_bytes())
        categories = {int(item["id"]): str(item["name"]) for item in content["categories"]}
        listed = [(item["id"], Path(item["file_name"]).stem) for item in content["images"]]
        sides = [(int(item["height"]), int(item["width"])) for item in content["images"]]
        names, objects = dict(listed), {name: [] for _, name in listed}
        problems = [] if listed else [f"{file}: no image"]
        problems += [] if categories else [f"{file}: no category"]
        for kind, values in (("id", [i for i, _ in listed]), ("name", names.values())):
            counts = Counter(values).items()
            problems += [f"{file}: image {kind} {v} stands {n} times" for v, n in counts if n > 1]
        for item in content["annotations"]:
            category, image = item["category_id"], item["image_id"]
            wrong = ["has no outline"] if outlines and not _outlined(item) else []
            wrong += [] if category in categories else [f"has the unknown category {category}"]
            wrong += [] if image in names else [f"belongs to the unknown image {image}"]
            text = " and ".join(wrong)
            problems += [f"{file}: annotation {item.get('id')} {text}"] if wrong else []
            if image in names:
                objects[names[image]].append(item)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        text = f"not readable as COCO's instances ({error!r}); fetch it again"
        raise ValueError(f"{file}: {text}") from error
    ids = sorted(categories)
    classes, numbers = tuple(categories[i] for i in ids), {i: at for at, i in enumerate(ids)}
    images = {name: size for (_, name), size in zip(listed, sides, strict=True)}
    return Instances(classes, numbers, frozenset(names), images, objects), problems


def _outlined(item: dict[str, Any]) -> bool:
    """Whether an annotation has polygons of at least three points, or run lengths."""
    outline = item.get("segmentation")
    if isinstance(outline, dict):
        return bool(outline.get("counts"))
    parts = outline if isinstance(outline, list) else []
    polygons = (isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 for p in parts)
    return bool(parts) and all(polygons)


def _region(item: dict[str, Any], size: tuple[int, int], name: str) -> np.ndarray:
    """The pixels of one annotation as (H, W) bool."""
    from pycocotools import mask as masks  # only evaluation needs it

    outline, text = item.get("segmentation"), f"{name}: annotation {item.get('id')}"
    try:
        if isinstance(outline, list):
            runs = masks.merge(masks.frPyObjects(outline, *size)) if outline else None
        elif isinstance(outline["counts"], list):
            pixels, whole = sum(outline["counts"]), size[0] * size[1]
            if pixels != whole:  # the C code would fill up what is missing
                raise ValueError(f"its runs have {pixels} pixels, the image {whole}")
            runs = masks.frPyObjects(outline, *size)
        else:
            runs = outline
        region = np.zeros(size, bool) if runs is None else masks.decode(runs).astype(bool)
    except Exception as error:  # the C code raises what it likes
        raise ValueError(f"{text} has no readable outline ({error!r})") from error
    if region.shape != tuple(size):
        raise ValueError(f"{text} is {region.shape}, its image {tuple(size)}")
    return region
