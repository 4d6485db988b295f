"""A reproducible companion to AEFT (ECCV 2022): from image tags to segmentation.

Five doors for code of your own: ``PyramidPooling`` and ``CamClassifier``, the paper's layer and the
classifier that carries it; ``erase``, ``attract_soft`` and ``repel``, the parts of its triplet.
"""

from aeft_lib.paper.classifier import CamClassifier
from aeft_lib.paper.erasing import erase
from aeft_lib.paper.gpp import PyramidPooling
from aeft_lib.paper.losses import attract_soft, repel

__all__ = ["CamClassifier", "PyramidPooling", "attract_soft", "erase", "repel"]
__version__ = "0.1.0"
