"""A classifier that somebody else trained: a published checkpoint, read as it is.

It separates "does this code read and score seeds as the authors do" from "does it train as they
do": their file, our seeds, our evaluation.
"""

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from aeft_lib.engine.fields import NO_RESULT
from aeft_lib.networks.checkpoints import load_checkpoint
from aeft_lib.paper.classifier import CamClassifier, CamMethod
from aeft_lib.paper.gpp import Gap, Pyramid


@dataclass(frozen=True)
class Published(CamMethod):
    """The network of a file, in the authors' names or ours.

    digest: of the file's content; file: where it stands, which changes no result.
    """

    pooling: Gap | Pyramid = Pyramid()
    digest: str = ""
    file: str = field(default="", metadata=NO_RESULT)

    def build(self, backbone: nn.Module, num_classes: int) -> CamClassifier:
        """The network, filled.

        Raises ValueError as `load_checkpoint`, and where a tensor of it is not in the file.
        """
        network = super().build(backbone, num_classes)
        found = load_checkpoint(network, Path(self.file))
        if found.missing:
            problem = f"{self.file} is not the classifier of a GPP layer (fc8, fc9, gconv1 to 3)"
            raise ValueError(f"{problem}: {found.text()}")
        return network
