"""Small data sets of photos, drawn: VOC, COCO and an own folder, with masks known exactly.

Every image is noise with a rectangle for each class that is present, in its colour.  The makers
return the masks, by the name that the reader uses: (H, W) uint8, 0 background, 1 + position in
`classes`, 255 void.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from aeft_lib.data import voc
from aeft_lib.maps.labels import VOID, voc_palette, write_label_map

Masks = dict[str, np.ndarray]
Box = tuple[int, int, int, int]  # top, bottom, left, right
Splits = Mapping[str, int | Sequence[str]]  # a number of images, or their names
COLOURS = (
    (220, 40, 40),
    (40, 200, 60),
    (50, 80, 230),
    (230, 210, 50),
    (210, 60, 210),
    (60, 210, 210),
    (250, 140, 30),
)
CATEGORY_STEP = 3  # COCO's ids have gaps: class i has the id 3i + 1
CROWD_ROWS = 6  # height of the strip that a crowd covers


def present_classes(number: int, num_classes: int) -> list[int]:
    """Classes of the image of this number: each in turn, every second image has the next too."""
    return sorted({number % num_classes, (number + number % 2) % num_classes})


def draw(
    rng: np.random.Generator, present: Sequence[int], size: tuple[int, int]
) -> tuple[np.ndarray, dict[int, Box]]:
    """An image (H, W, 3) and its boxes by class; boxes stand side by side, above a margin."""
    height, width = size
    image = rng.integers(90, 140, (height, width, 3)).astype(np.uint8)
    boxes, column = {}, width // len(present)
    for at, i in enumerate(present):
        top, left = (int(rng.integers(2, limit // 5)) for limit in (height, column))
        bottom = height - 8 - int(rng.integers(0, height // 6))
        right = column - int(rng.integers(2, column // 5))
        boxes[i] = (top, bottom, at * column + left, at * column + right)
        image[top:bottom, at * column + left : at * column + right] = COLOURS[i % len(COLOURS)]
    return image, boxes


def painted(
    boxes: dict[int, Box], size: tuple[int, int], labels: Sequence[int] | None = None
) -> np.ndarray:
    """The mask of some boxes; labels: a label by class, else class + 1."""
    mask = np.zeros(size, np.uint8)
    for i, (top, bottom, left, right) in boxes.items():
        mask[top:bottom, left:right] = i + 1 if labels is None else labels[i]
    return mask


def save_jpeg(file: Path, image: np.ndarray | Image.Image, **options) -> Path:
    """A JPEG of good quality, whatever the file's suffix."""
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(file, **{"format": "JPEG", "quality": 95} | options)
    return file


def _named(splits: Splits, pattern: str) -> Iterator[tuple[str, list[str]]]:
    """The names of every split.  Counted ones are numbered on, so no name stands in two."""
    start = 1
    for split, images in splits.items():
        if isinstance(images, int):
            names = [pattern.format(split=split, n=start + i) for i in range(images)]
        else:
            names = list(images)
        start += len(names)
        yield split, names


def voc_annotation(classes: Sequence[str], size: tuple[int, int] = (48, 64)) -> str:
    """An annotation as VOC writes it, of an image of this (H, W); only what is read."""
    objects = "".join(
        f"<object><name>{name}</name><difficult>0</difficult></object>" for name in classes
    )
    sides = f"<width>{size[1]}</width><height>{size[0]}</height><depth>3</depth>"
    return f"<annotation><size>{sides}</size>{objects}</annotation>"


def make_voc(
    root: Path,
    splits: Splits,
    classes: Sequence[str] = ("cat", "dog", "person"),
    *,
    size: tuple[int, int] = (48, 64),
    seed: int = 0,
) -> Masks:
    """Write VOC's layout below `root`.

    Masks of ``train_aug`` stand in SegmentationClassAug, others in SegmentationClass.  The files
    hold VOC's own labels, the masks returned those of `classes`.  A name may stand in two splits.
    """
    home, rng, masks = root / voc.HOME, np.random.default_rng(seed), {}
    labels = [voc.CLASSES.index(name) + 1 for name in classes]
    for folder in ("Annotations", "ImageSets/Segmentation", *voc.MASKS):
        (home / folder).mkdir(parents=True, exist_ok=True)
    for split, names in _named(splits, "2007_{n:06d}"):
        (home / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(
            "".join(f"{name}\n" for name in names)
        )
        for name in names:
            if name not in masks:
                present = present_classes(len(masks), len(classes))
                image, boxes = draw(rng, present, size)
                save_jpeg(home / "JPEGImages" / f"{name}.jpg", image)
                (home / "Annotations" / f"{name}.xml").write_text(
                    voc_annotation([classes[i] for i in present], size)
                )
                masks[name] = painted(boxes, size)
                write_label_map(
                    home / voc.MASKS[split == "train_aug"] / f"{name}.png",
                    painted(boxes, size, labels),
                )
    return masks


def make_coco(
    root: Path,
    splits: Splits,
    classes: Sequence[str] = ("person", "dog", "car"),
    *,
    size: tuple[int, int] = (48, 64),
    seed: int = 0,
    crowd: bool = True,
) -> Masks:
    """Write COCO's layout below `root`: objects as polygons.

    crowd: the first image of each split has a crowd of class 0 too, as run lengths.
    """
    rng, masks, files = np.random.default_rng(seed), {}, {}
    for split, names in _named(splits, "COCO_{split}_{n:012d}"):
        files[split] = content = {
            "images": [],
            "annotations": [],
            "categories": categories(classes),
        }
        for first, name in enumerate(names):
            number, image_id = len(masks), len(masks) + 1
            image, boxes = draw(rng, present_classes(number, len(classes)), size)
            save_jpeg(root / split / f"{name}.jpg", image)
            content["images"].append(coco_image(image_id, name, size))
            masks[name] = painted(boxes, size)
            for i, (top, bottom, left, right) in boxes.items():
                content["annotations"].append(
                    coco_box(image_id, i, (top, bottom, left, right), len(content["annotations"]))
                )
            if crowd and first == 0:
                content["annotations"].append(
                    coco_crowd(image_id, 0, size, len(content["annotations"]))
                )
                masks[name][-CROWD_ROWS:] = VOID
        write_instances(root, split, content)
    return masks


def write_instances(root: Path, split: str, content: object) -> Path:
    """The annotation file of a split."""
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def categories(classes: Sequence[str]) -> list[dict]:
    """COCO's categories of some classes, in the order of their ids."""
    return [
        {"id": CATEGORY_STEP * i + 1, "name": name, "supercategory": "thing"}
        for i, name in enumerate(classes)
    ]


def coco_image(image_id: int, name: str, size: tuple[int, int]) -> dict:
    """The entry of an image."""
    return {"id": image_id, "file_name": f"{name}.jpg", "height": size[0], "width": size[1]}


def coco_box(image_id: int, i: int, box: Box, number: int = 0) -> dict:
    """The annotation of a rectangle of class i, outlined as a polygon."""
    top, bottom, left, right = box
    outline = [[left, top, right, top, right, bottom, left, bottom]]
    return _annotation(
        image_id, i, number, area=(bottom - top) * (right - left), segmentation=outline, iscrowd=0
    )


def coco_crowd(image_id: int, i: int, size: tuple[int, int], number: int = 0) -> dict:
    """The annotation of a crowd of class i along the lower edge, as run lengths by column."""
    height, width = size
    runs = [height - CROWD_ROWS, CROWD_ROWS] * width
    return _annotation(
        image_id,
        i,
        number,
        area=CROWD_ROWS * width,
        segmentation={"counts": runs, "size": [height, width]},
        iscrowd=1,
    )


def _annotation(image_id: int, i: int, number: int, **rest: object) -> dict:
    return {"id": number + 1, "image_id": image_id, "category_id": CATEGORY_STEP * i + 1} | rest


def make_folder(
    root: Path,
    splits: Splits,
    classes: Sequence[str] = ("cup", "key", "leaf"),
    *,
    size: tuple[int, int] = (48, 64),
    seed: int = 0,
    masks: bool = True,
) -> Masks:
    """Write an own folder; masks: whether its masks, which are returned, are written too."""
    rng, drawn, rows = np.random.default_rng(seed), {}, []
    for split, names in _named(splits, "photo_{n:03d}.jpg"):
        for name in names:
            present = present_classes(len(drawn), len(classes))
            image, boxes = draw(rng, present, size)
            save_jpeg(root / "images" / name, image)
            drawn[name] = painted(boxes, size)
            if masks:
                file = (root / "masks" / name).with_suffix(".png")
                file.parent.mkdir(parents=True, exist_ok=True)
                write_label_map(file, drawn[name])
            rows.append(
                {"image": name, "split": split, "tags": ";".join(classes[i] for i in present)}
            )
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    write_table(root, rows)
    return drawn


def write_table(
    root: Path,
    rows: Sequence[Mapping[str, str]],
    columns: Sequence[str] = ("image", "split", "tags"),
) -> Path:
    """The table of an own folder."""
    with (root / "tags.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    return root / "tags.csv"


# --- damage ---------------------------------------------------------------------------------------


def cut(file: Path, part: float = 0.6) -> None:
    """Leave only the first part of a file."""
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])


def turn(file: Path, orientation: int = 6) -> None:
    """Give a photo an EXIF tag; 6: to be turned by 90 degrees clockwise, 3: by 180."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(file) as picture:
        picture.load()
    save_jpeg(file, picture, exif=exif)


def recode(file: Path, kind: str) -> None:
    """Store a photo anew, under its name.

    kind: CMYK or L for a JPEG, palette for a GIF, PNG, or "16 bits" for a grey PNG.
    """
    with Image.open(file) as picture:
        colours = picture.convert("RGB")
    if kind in ("CMYK", "L"):
        save_jpeg(file, colours.convert(kind))
    elif kind == "16 bits":
        Image.fromarray(np.asarray(colours)[..., 0].astype(np.uint16) * 256).save(
            file, format="PNG"
        )
    else:
        (colours.quantize(16) if kind == "palette" else colours).save(
            file, format="GIF" if kind == "palette" else "PNG"
        )


def colour_map(file: Path, size: tuple[int, int] = (48, 64)) -> None:
    """A mask that holds colours instead of labels, as people save VOC's from a picture program."""
    Image.fromarray(voc_palette()[np.ones(size, np.uint8)]).save(file)
