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

Every number is checked before anything is painted: `_parse` serves the reader and the data doctor.
"""

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aeft_lib import paths
from aeft_lib.data.listing import ODD, Entry, Listing, odd_name
from aeft_lib.data.outlines import outline_problem, painted
from aeft_lib.data.photos import Photos, check_selection, selected
from aeft_lib.data.scene import opened
from aeft_lib.engine import fields
from aeft_lib.maps.foreign import reading
from aeft_lib.maps.labels import VOID

SPLITS = {"train2014": 82783, "val2014": 40504}  # images of the published lists
PARTS = ("categories", "images", "annotations")
MAX_CLASSES = VOID - 1
MAX_PIXELS = 178_956_970  # of an image: more than Pillow reads


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
    with reading(file, "not readable as COCO's instances"):
        content = json.loads(file.read_bytes())
        categories, listed, annotations = (_items(content, name) for name in PARTS)
    wrong = [_category_problem(item) for item in categories] + [_image_problem(i) for i in listed]
    if odd := next(filter(None, wrong), ""):
        raise ValueError(f"{file}: not readable as COCO's instances ({odd}); fetch it again")
    names = {item["id"]: Path(item["file_name"]).stem for item in listed}
    sizes = {names[item["id"]]: (item["height"], item["width"]) for item in listed}
    classes = {item["id"]: item["name"] for item in categories}
    objects: dict[str, list[dict[str, Any]]] = {name: [] for name in sizes}
    problems = [f"{file}: {text}" for text in _listed_twice(categories, listed, names)]
    for item in annotations:
        if wrong := _annotation_problems(item, classes, names, sizes if outlines else {}):
            problems.append(f"{file}: annotation {item.get('id')!r:.40} {' and '.join(wrong)}")
        if _known(item.get("image_id"), names):
            objects[names[item["image_id"]]].append(item)
    ids = sorted(classes)
    numbers = {i: at for at, i in enumerate(ids)}
    known = Instances(tuple(classes[i] for i in ids), numbers, frozenset(names), sizes, objects)
    return known, problems


def _items(content: Any, part: str) -> list[dict[str, Any]]:
    """A list of a file's content.  Raises ValueError where it is no list of objects."""
    if not isinstance(content, dict) or part not in content:
        raise ValueError(f"no object with {', '.join(PARTS)}: {part} is missing")
    items = content[part]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"{part} must be a list of objects")
    return items


def _category_problem(item: dict[str, Any]) -> str:
    whole, name = type(item.get("id")) is int, item.get("name")
    good = whole and isinstance(name, str) and name.strip() and not ODD.search(name)
    return "" if good else f"category {str(item)[:100]!r} needs a whole number id and a name"


def _image_problem(item: dict[str, Any]) -> str:
    name, sides = item.get("file_name"), [item.get("height"), item.get("width")]
    text = f"image {str(item)[:100]!r}"
    if type(item.get("id")) is not int or not isinstance(name, str):
        return f"{text} needs a whole number id and a file_name"
    if not Path(name).stem or odd_name(Path(name).stem):
        return f"{text} has an odd file_name"
    if not all(type(side) is int and side > 0 for side in sides) or math.prod(sides) > MAX_PIXELS:
        return f"{text} needs height and width, whole numbers of at most {MAX_PIXELS} pixels"
    return ""


def _listed_twice(categories: list[dict], listed: list[dict], names: dict[int, str]) -> list[str]:
    """What stands more than once, or not at all; names: of images, by id."""
    problems = [] if listed else ["no image"]
    problems += [] if categories else ["no category"]
    if len(categories) > MAX_CLASSES:
        problems.append(f"{len(categories)} categories, and labels for {MAX_CLASSES}")
    values = {
        "category id": [item["id"] for item in categories],
        "image id": [item["id"] for item in listed],
        "image name": list(names.values()),
    }
    for kind, stood in values.items():
        counts = Counter(stood).items()
        problems += [f"{kind} {value} stands {n} times" for value, n in counts if n > 1]
    return problems


def _annotation_problems(
    item: dict[str, Any],
    classes: dict[int, str],
    names: dict[int, str],
    sizes: dict[str, tuple[int, int]],
) -> list[str]:
    """What is wrong with an annotation; sizes: of images whose outlines are checked too."""
    category, image, wrong = item.get("category_id"), item.get("image_id"), []
    if sizes and not item.get("segmentation"):
        wrong.append("has no outline")
    elif _known(image, names) and names[image] in sizes:
        odd = outline_problem(item["segmentation"], sizes[names[image]])
        wrong += [f"has no readable outline ({odd})"] if odd else []
    wrong += [] if _known(category, classes) else [f"has the unknown category {category!r:.40}"]
    wrong += [] if _known(image, names) else [f"belongs to the unknown image {image!r:.40}"]
    area, crowd = item.get("area", 0), item.get("iscrowd", 0)
    if type(area) not in (int, float) or not 0 <= area < math.inf:
        wrong.append(f"has the area {area!r:.40}, which is no number of pixels")
    if type(crowd) not in (int, bool) or crowd not in (0, 1):
        wrong.append(f"has iscrowd {crowd!r:.40}, which must be 0 or 1")
    return wrong


def _known(value: Any, table: dict[int, Any]) -> bool:
    return type(value) is int and value in table


def _region(item: dict[str, Any], size: tuple[int, int], name: str) -> np.ndarray:
    """The pixels of one annotation as (H, W) bool."""
    outline = item.get("segmentation")
    if odd := outline_problem(outline, size):
        number = f"{item.get('id')!r:.40}"
        raise ValueError(f"{name}: annotation {number} has no readable outline ({odd})")
    return painted(outline, size)
