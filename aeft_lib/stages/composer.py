"""Protocol of what makes further training scenes from the label maps of a trained classifier.

A frozen dataclass, as all that a row brings (`stages.method`).
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from aeft_lib.data.scene import Scenes, SceneSet
from aeft_lib.stages.artefact import Artefact

COMPOSITION = "composition"  # input of `train_composed`
Drawn = tuple[np.ndarray, np.ndarray]


class Composer(Protocol):
    """Composes a scene from a training scene, which a second training then sees beside it.

    short_decay: a quirk, the rate decays over half of the steps, see `train_composed`.
    """

    short_decay: bool

    def prepared(
        self, obtain: Callable[..., Artefact], scenes: SceneSet, labels: Artefact
    ) -> dict[str, Artefact]:
        """Inputs of the training, by name, ``composition`` among them, whose summary is logged.

        labels: predicted label maps of the scenes, as `write_labels` writes them.
        obtain: makes artefacts, or finds them.
        """

    def opened(
        self, scenes: Scenes, inputs: Mapping[str, Artefact]
    ) -> Callable[[int, np.random.Generator], Drawn]:
        """What draws from a scene, by index: image (H, W, 3) uint8 and tags (K,) bool.

        The generator decides, and nothing else.
        """
