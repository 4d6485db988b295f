"""A reproducible companion to AEFT (ECCV 2022): from image tags to segmentation.

Five doors for code of your own: ``PyramidPooling`` and ``CamClassifier``, the paper's layer and the
classifier that carries it; ``erase``, ``attract_soft`` and ``repel``, the parts of its triplet.
They open when they are asked for, so that what needs no torch does not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aeft_lib.paper.classifier import CamClassifier
    from aeft_lib.paper.erasing import erase
    from aeft_lib.paper.gpp import PyramidPooling
    from aeft_lib.paper.losses import attract_soft, repel

__all__ = ["CamClassifier", "PyramidPooling", "attract_soft", "erase", "repel"]
__version__ = "0.1.0"
_DOORS = {
    "CamClassifier": "classifier",
    "PyramidPooling": "gpp",
    "attract_soft": "losses",
    "erase": "erasing",
    "repel": "losses",
}


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.paper.{_DOORS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
