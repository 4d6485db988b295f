"""Protocol of readers that optimise for every image, in its pixels or in the network's weights.

A frozen dataclass, as all that a row brings (`stages.method`); `read_each` is their stage.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor, nn

from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.method import Method


class Picture(NamedTuple):
    """index: of the scene.  image: (H, W, 3) uint8 RGB.  tags: (K,) bool."""

    index: int
    image: np.ndarray
    tags: Tensor


class EachReading(NamedTuple):
    """cam: (K', H, W) in 0..1 of the tagged classes, ascending.  logits: (K,), of the classifier.

    numbers: what the optimisation did; none for an image without tags.
    """

    cam: Tensor
    logits: Tensor
    numbers: Mapping[str, float]


class ImageReader(Protocol):
    """Reads images by an optimisation of its own for each; a frozen dataclass.

    names: of its numbers.  draws: whether it needs other scenes.
    """

    names: tuple[str, ...]
    draws: bool

    def fitted(self, scales: Sequence[float], *, brief: bool) -> "ImageReader":
        """With the profile's scales.

        brief: shrunk to what a laptop can compute; else the authors' numbers.
        """

    def inputs(
        self, obtain: Callable[..., Artefact], spec: Any, classifier: Artefact
    ) -> dict[str, Artefact]:
        """What it chooses beforehand, by name; its summaries are handed to `read`.

        obtain: makes artefacts, or finds them.  spec: an `EachSpec`.
        """

    def read(
        self,
        method: Method,
        network: nn.Module,
        pictures: Sequence[Picture],
        others: Any,
        chosen: Mapping[str, float],
    ) -> list[EachReading]:
        """Pictures of one size.  It leaves the network as it was.

        others: `read_each.Others`, for a reader that draws.
        """
