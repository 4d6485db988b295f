"""Protocol of a training that reads maps of the scenes which another row made, beside the images.

So rows follow each other in rounds.  A frozen dataclass, as all that a row brings
(`stages.method`).  `stages.labeller` is the simpler case: labels of a scene, from a classifier.
"""

from collections.abc import Mapping
from typing import Protocol

from safetensors.torch import load_file
from torch import nn

from aeft_lib.stages.artefact import Artefact, Inputs, Stage
from aeft_lib.stages.method import Workshop

MAPS = "maps"  # input: label maps of the scenes
STATISTICS = "statistics"  # input: what all training scenes together say, buffers by name
STATISTICS_FILE = "statistics.safetensors"
WINDOWS = "windows"  # input: windows of the scenes, with their tags
WINDOWS_FILE = "windows.safetensors"


class MapSource(Protocol):
    """Makes maps from a row's classifier, and names the stages that read them.

    cached: whether its training takes cached features of whole scenes, where there are some.
    """

    cached: bool

    def for_training(self, workshop: Workshop) -> tuple[Stage, Inputs]:
        """The stage of the training, which takes a `ClassifierSpec`, and its further inputs.

        workshop: of the row that makes the maps.
        """

    def for_seeds(self, workshop: Workshop, split: str) -> tuple[Stage, Inputs]:
        """The stage that reads a split's seeds, which takes a `SeedSpec`, and further inputs."""


def with_statistics(network: nn.Module, inputs: Mapping[str, Artefact]) -> nn.Module:
    """The network with its buffers from ``statistics``, in place.

    Raises ValueError where one is unknown, or of another shape.
    """
    buffers = dict(network.named_buffers())
    for name, tensor in load_file(inputs[STATISTICS].folder / STATISTICS_FILE).items():
        own = buffers.get(name)
        if own is None or own.shape != tensor.shape:
            known = "none of this name" if own is None else f"one of {tuple(own.shape)}"
            given = f"a buffer {name} of {tuple(tensor.shape)}"
            raise ValueError(f"the statistics have {given}, the network has {known}")
        own.copy_(tensor)
    return network
