"""Makes ``train_aug`` of SBD: masks as palette PNGs, and the list of 10,582 images.

SBD (Semantic Boundaries Dataset; Hariharan et al., "Semantic contours from inverse detectors", ICCV
2011) outlines the objects of 11,355 photos of VOC 2011, which all are in VOC 2012.  Its own split
ignores VOC's, so images of VOC's val are taken out:

    train_aug = (SBD train + SBD val + VOC train) - VOC val

Images of VOC's train keep VOC's masks, which are finer; only the others are made of SBD.

Dependency choice: ``scipy``, which comes with scikit-learn, reads MATLAB's format.
"""

import os
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from tqdm import tqdm

from aeft_lib import paths
from aeft_lib.data.voc import CLASSES, read_list
from aeft_lib.maps.foreign import reading
from aeft_lib.maps.labels import VOID, write_label_map

MASKS = "SegmentationClassAug"
LIST = Path("ImageSets") / "Segmentation" / "train_aug.txt"


def convert(benchmark: Path, home: Path) -> dict[str, int]:
    """Write masks and list into VOC's folder, the list last; masks that are there stay.

    benchmark: SBD's ``benchmark_RELEASE/dataset``.  home: ``VOCdevkit/VOC2012``.
    Returns how many masks were ``converted`` and ``skipped``, and how many names ``train_aug``
    lists: 10,582 for the published data, fewer for a part of it.
    Raises ValueError where a list is missing, a listed photo is missing, or a .mat file is missing
    or damaged.
    """
    ours = sbd_names(benchmark)
    train, val = set(read_list(home, "train")), set(read_list(home, "val"))
    listed = sorted((ours | train) - val)
    for name in listed:
        if not (home / "JPEGImages" / f"{name}.jpg").is_file():
            photo = home / "JPEGImages" / f"{name}.jpg"
            raise ValueError(f"{name} is listed, but there is no {photo}: unpack VOC 2012 first")
    (home / MASKS).mkdir(exist_ok=True)
    wanted = [name for name in listed if name not in train]
    missing = [name for name in wanted if not _mask(home, name).is_file()]
    quiet = bool(os.environ.get("AEFT_QUIET"))
    for name in tqdm(missing, desc="masks of SBD", leave=False, disable=quiet):
        _write(_mask(home, name), read_mat(benchmark / "cls" / f"{name}.mat"))
    paths.write_text(home / LIST, "".join(f"{name}\n" for name in listed))
    skipped = len(wanted) - len(missing)
    return {"converted": len(missing), "skipped": skipped, "train_aug": len(listed)}


def sbd_names(benchmark: Path) -> set[str]:
    """The names in SBD's two lists.

    Raises ValueError where a list is missing, empty, or holds what is no plain name.
    """
    names, remedy = set(), "unpack SBD's benchmark.tgz again"
    for file in (benchmark / "train.txt", benchmark / "val.txt"):
        if not file.is_file():
            raise ValueError(f"no {file}: {remedy}")
        with reading(file, "not a readable list", remedy):
            listed = file.read_text(encoding="utf-8").split()
        if wrong := [name for name in listed if not name.replace("_", "").isalnum()]:
            raise ValueError(f"{file}: {wrong[0]!r} is no name of an image; {remedy}")
        if not listed:
            raise ValueError(f"{file} lists no image: {remedy}")
        names.update(listed)
    return names


def read_mat(file: Path) -> np.ndarray:
    """The label map in ``GTcls.Segmentation``, (H, W) uint8 with 0..20 and 255.

    Raises ValueError naming the file where it is missing or damaged, has no such field, or has
    other labels.
    """
    if not file.is_file():
        raise ValueError(f"no {file}: unpack SBD's benchmark.tgz again")
    with reading(file, "no readable GTcls.Segmentation", "unpack SBD's benchmark.tgz again"):
        labels = np.asarray(loadmat(file, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0])
    numbers = labels.dtype.kind in "uif"  # MATLAB's are float by default
    if labels.ndim != 2 or not labels.size or not numbers:
        text = f"must be an (H, W) array of labels, got {labels.dtype} {labels.shape}"
        raise ValueError(f"{file}: GTcls.Segmentation {text}")
    foreign = labels[~(np.isin(labels, np.arange(len(CLASSES) + 1)) | (labels == VOID))]
    if foreign.size:
        text = f"outside 0..{len(CLASSES)} and is not void ({VOID})"
        raise ValueError(f"{file}: label {foreign[0]} is {text}")
    return labels.astype(np.uint8)


def _mask(home: Path, name: str) -> Path:
    return home / MASKS / f"{name}.png"


def _write(file: Path, labels: np.ndarray) -> None:
    with paths.replacing(file) as aside:
        write_label_map(aside, labels)
