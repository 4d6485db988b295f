"""Where things stand: the checkout, its data, real data sets, the store, committed figures."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLLAGES = ROOT / "data" / "collages"
NOTEBOOKS = ROOT / "notebooks"
FIGURES = ROOT / "figures"


def runs() -> Path:
    """The stage store: ``AEFT_RUNS`` where it is set, else ``runs/`` in the checkout."""
    return _expanded("AEFT_RUNS", os.environ.get("AEFT_RUNS") or ROOT / "runs")


def voc_root() -> Path:
    """The folder of ``VOCdevkit/VOC2012``: ``AEFT_VOC_ROOT``, else ``data/voc`` in the checkout."""
    return _root("AEFT_VOC_ROOT", "voc")


def coco_root() -> Path:
    """The folder of COCO's ``annotations``: ``AEFT_COCO_ROOT``, else ``data/coco``."""
    return _root("AEFT_COCO_ROOT", "coco")


def photos_root() -> Path:
    """The folder of your own photos: ``AEFT_PHOTOS_ROOT``, else ``data/photos``."""
    return _root("AEFT_PHOTOS_ROOT", "photos")


def _root(variable: str, name: str) -> Path:
    return _expanded(variable, os.environ.get(variable) or ROOT / "data" / name)


def _expanded(variable: str, where: str | Path) -> Path:
    """A path with ~ and ~user spelled out.  Raises ValueError for an unknown user."""
    try:
        return Path(where).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{variable}={where}: {error}") from error
