"""A reader that cuts the negative part before it enlarges the CAM, as AffinityNet's authors do."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aeft_lib.engine.samples import Batch
from aeft_lib.stages.method import Method, Reading
from aeft_lib.stages.reading import MultiScale


@dataclass(frozen=True)
class ReluFirst(MultiScale):
    """`MultiScale` with the ReLU at the size of the map: then bilinear, sum, / (max + 1e-5).

    `MultiScale` (AEFT's reference) enlarges the signed map first.  Here a negative cell takes
    nothing from its neighbours, so objects come out wider.  It reads classifiers whose pooling
    takes any number of classes: global average pooling.
    """

    def from_images(
        self, method: Method, network: nn.Module, *given: Any, **options: Any
    ) -> list[Reading]:
        """As `MultiScale.from_images`.  Raises ValueError for another pooling than GAP."""
        return _read(super().from_images, method, network, *given, **options)

    def from_features(
        self, method: Method, network: nn.Module, *given: Any, **options: Any
    ) -> list[Reading]:
        """As `MultiScale.from_features`.  Raises ValueError for another pooling than GAP."""
        return _read(super().from_features, method, network, *given, **options)


@dataclass(frozen=True)
class _WithSigned:
    """A method whose CAM has each class twice: without its negative part, and as it is."""

    method: Method

    def cam(self, network: nn.Module, batch: Batch) -> Tensor:
        cam = self.method.cam(network, batch)
        return torch.cat([cam.relu(), cam], dim=1)


def _read(
    read: Callable[..., list[Reading]], method: Method, network: nn.Module, *given: Any, **options
) -> list[Reading]:
    """Seeds from the first K maps, tag logits, which may be negative, from the others."""
    if hasattr(network.pooling, "num_classes"):
        kind = type(network.pooling).__name__
        raise ValueError(f"ReluFirst reads a classifier with global average pooling, got {kind}")
    readings = read(_WithSigned(method), network, *given, **options)
    return [Reading(cam, logits[len(logits) // 2 :]) for cam, logits in readings]
