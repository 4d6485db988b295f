"""Protocols of all that a row can bring: methods, readers, refiners, segmenters.

Each is a frozen dataclass.  Its fields are its numbers and its part of an artefact's key; a spec
names it, so no stage imports one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor, nn

from aeft_lib.engine.samples import Batch
from aeft_lib.stages.artefact import Artefact


class Method(Protocol):
    """A way to train a classifier on tags, and to read it as a CAM.

    needs: what `measure` reads of a batch besides tags and the anchor's features (or images, where
    nothing is cached): "images", "noise", "taps", or "maps", which it makes (`train_on_maps`).
    """

    needs: tuple[str, ...]

    def build(self, backbone: nn.Module, num_classes: int) -> nn.Module:
        """The network; random weights come from the global stream, which the stage seeds.

        It has ``backbone``, ``num_classes`` and ``pooling``; called on images, or through
        ``from_trunk`` on cached features, it gives an output with ``cam`` and ``logits``.
        """

    def measure(self, network: nn.Module, batch: Batch, **judges: nn.Module) -> dict[str, Tensor]:
        """What the loss needs of every sample, sample by sample on the first axis.

        Parts of a batch and ranks are joined before `combine`.  judges: trained classifiers, frozen
        and in eval mode, by the names that the row gives them.
        """

    def combine(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named scalar terms of the whole batch, summed; comparisons over the batch live here.

        measures also has ``progress``, a scalar in 0..1: the part of the training that is done.
        """

    def cam(self, network: nn.Module, batch: Batch) -> Tensor:
        """The signed CAM (B, K, h, w) of a batch's images, or of its cached features."""

    def fitted(self, side: int, strength: float = 1.0) -> "Method":
        """The method for a map of `side` cells; `strength` scales what a second phase adds."""


class Reading(NamedTuple):
    """One image, read.  cam: (K', H, W) in 0..1.  logits: (K,) at scale 1."""

    cam: Tensor
    logits: Tensor


class Reader(Protocol):
    """Turns a trained network and images into seeds, a batch of one size at a time.

    One that cached features do not serve says so with ``needs_images = True``.
    """

    def fitted(self, scales: Sequence[float]) -> "Reader":
        """The reader with the profile's test scales."""

    def from_images(
        self,
        method: Method,
        network: nn.Module,
        images: Sequence[np.ndarray],
        class_ids: Sequence[Tensor],
        precision: str = "fp32",
    ) -> list[Reading]:
        """Photos (H, W, 3) uint8 of one size, whose tags are class_ids, (K',) int64 each.

        precision: of the network, see `device.inference_precision`.
        """

    def from_features(
        self,
        method: Method,
        network: nn.Module,
        features: Mapping[float, Tensor],
        class_ids: Sequence[Tensor],
        size: tuple[int, int],
        precision: str = "fp32",
    ) -> list[Reading]:
        """Scenes of `size` pixels (H, W) from cached features (B, 2, C, h, w) by scale."""


@dataclass(frozen=True)
class Workshop:
    """Materials of a refiner: seeds of a trained classifier, and the profile's numbers.

    obtain: makes artefacts, or finds them.  seeds: of a split, "train" the first.
    scenes: the scene set of a split.  numbers: the profile's `Refinement`.
    classifier: the trained one.  map_side: cells along a side of a training view's map.
    training: the spec of a segmenter's training by the profile.
    predicted: (segmenter, labels of the training scenes, split, tags_known=, crf=) -> label maps
        that a network of this kind predicts of the split, once it has learned from the labels.
    """

    obtain: Callable[..., Artefact]
    seeds: Callable[[str], Artefact]
    scenes: Callable[[str], Any]
    numbers: Any
    thresholds: tuple[float, ...]
    backbone: Any
    compute: Any
    repeat: int
    classifier: Artefact | None = None
    map_side: int = 0
    training: "Callable[[Segmenter], Any] | None" = None
    predicted: Any = None


class Refiner(Protocol):
    """Turns seeds into pseudo-labels."""

    def refine(self, workshop: Workshop, split: str) -> dict[str, Artefact]:
        """``labels`` of a split's scenes, and the artefacts before them, by name.

        ``scores`` among them where the labels were cut from scores: all thresholds are tried then.
        """


class Segmenter(Protocol):
    """A segmentation network and its loss; `measure` and `combine` as of a method.

    One that is told the tags has them in its ``needs`` (`train_tagged_segmenter`); its
    ``starts_from`` may then name an artefact of the refiner, a warm start.
    """

    def fitted(self, hidden: int) -> "Segmenter":
        """With the profile's number of hidden channels."""

    def build(self, backbone: nn.Module, num_classes: int) -> nn.Module:
        """Images -> logits (B, K + 1, H, W); ``coarse``, if it has it: before up-sampling."""

    def measure(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Of images and label maps."""

    def combine(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named terms of the whole batch, summed."""
