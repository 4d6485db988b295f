"""CPN read without the term of regions, which shows what that term does to its CAMs.

``r = PCM(m) + P m`` is read as ``PCM(m)``, with the weights that CPN trained.  On the laptop's
backbone P is nearly 1 at one cell and 0 elsewhere, so P m is a peak of one cell on a flat PCM(m).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from aeft_lib.engine.samples import Batch, forward
from aeft_lib.parts.pixel_correlation import PixelCorrelation, stretched_maps
from aeft_lib.parts.refined import RefinedClassifier, RefinedMaps, RefinedMethod
from aeft_lib.stages.method import Reading


@dataclass(frozen=True)
class PixelsAlone(RefinedMaps):
    """`RefinedMaps` of the pixel correlation alone."""

    def from_images(
        self,
        method: RefinedMethod,
        network: RefinedClassifier,
        images: Sequence[np.ndarray],
        class_ids: Sequence[Tensor],
        precision: str = "fp32",
    ) -> list[Reading]:
        """As `RefinedMaps`."""
        return super().from_images(_Pixels(method), network, images, class_ids, precision)

    def from_features(
        self,
        method: RefinedMethod,
        network: RefinedClassifier,
        features: Mapping[float, Tensor],
        class_ids: Sequence[Tensor],
        size: tuple[int, int],
        precision: str = "fp32",
    ) -> list[Reading]:
        """As `RefinedMaps`."""
        told = _Pixels(method)
        return super().from_features(told, network, features, class_ids, size, precision)


@dataclass(frozen=True)
class _Pixels:
    """A method whose maps come from the pixel correlation alone."""

    method: RefinedMethod

    def read(
        self, network: RefinedClassifier, batch: Batch, refined: bool = True
    ) -> tuple[Tensor, Tensor]:
        """As `RefinedMethod.read`."""
        if not refined:
            return self.method.read(network, batch, refined)
        output = forward(network, batch)
        tags = batch.tags if self.method.tags_in_refinement else None
        maps = stretched_maps(output.cam, tags)
        return PixelCorrelation.forward(network.refinement, maps, output.taps)[:, 1:], output.logits
