"""Protocol of what labels training scenes by a trained classifier: a round of methods with several.

A frozen dataclass, as all that a row brings (`stages.method`).
"""

from collections.abc import Callable
from typing import Protocol

from aeft_lib.data.scene import SceneSet
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.method import Method

LABELS = "labels"  # input of `train_labelled`, and the tensor in its file
FILE = "labels.safetensors"


class Labeller(Protocol):
    """Labels each scene, for a training that starts anew.

    obtain: makes artefacts, or finds them.  features: of the scenes, where they are cached.
    """

    def taught(
        self,
        method: Method,
        obtain: Callable[..., Artefact],
        scenes: SceneSet,
        features: Artefact | None,
    ) -> Method:
        """The method that learns from the labels, with what it has to know of them.

        Raises ValueError, before anything is trained, where the scenes cannot be labelled.
        """

    def label(
        self,
        obtain: Callable[..., Artefact],
        scenes: SceneSet,
        classifier: Artefact,
        features: Artefact | None,
    ) -> Artefact:
        """An artefact with ``labels.safetensors``: ``labels``, (N, M) uint8, for N scenes.

        Its summary goes into that of the training as well.
        """
