"""Where things stand:

the checkout, the embedded data, real data sets, the stage store, the committed figures.
"""

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
    """The folder that holds ``VOCdevkit/VOC2012``:

    ``AEFT_VOC_ROOT`` where it is set, else ``data/voc`` in the checkout.
    """
    return _root("AEFT_VOC_ROOT", "voc")


def coco_root() -> Path:
    """The folder that holds COCO's ``annotations``:

    ``AEFT_COCO_ROOT`` where it is set, else ``data/coco`` in the checkout.
    """
    return _root("AEFT_COCO_ROOT", "coco")


def photos_root() -> Path:
    """The folder of your own photos:

    ``AEFT_PHOTOS_ROOT`` where it is set, else ``data/photos`` in the checkout.
    """
    return _root("AEFT_PHOTOS_ROOT", "photos")


def _root(variable: str, name: str) -> Path:
    return _expanded(variable, os.environ.get(variable) or ROOT / "data" / name)


def _expanded(variable: str, where: str | Path) -> Path:
    """A path with ~ and ~user spelled out.  Raises ValueError for a user that is not known."""
    try:
        return Path(where).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{variable}={where}: {error}") from error
