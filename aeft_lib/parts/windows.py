"""PMM's multi-crop (Li et al., ICCV 2021): any method trained on windows, and SEAM read in windows.

`InWindows` is where a training takes its windows from (`stages.map_source`); `RefinedCrops` reads a
method with a refinement in windows (`stages.multi_crop` reads any other).

Departures from the authors' release.  Its windows (10 scales, 448 px, stride 300, two quirks) are
those of `stages.multi_crop`, with the same fields; here they are brought to the size of the
profile's training samples.  Q are the posteriors of the harness's CRF on the seeds of a row, at the
high power (24 there).  A window is mirrored and jittered as the profile's views are.  The release
skips losses that are no numbers; here a training stops at them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from aeft_lib.engine.samples import Batch
from aeft_lib.stages.artefact import Inputs, Stage
from aeft_lib.stages.infer_seeds import infer_seeds
from aeft_lib.stages.label_windows import WindowSpec, label_windows
from aeft_lib.stages.map_source import WINDOWS
from aeft_lib.stages.method import Method, Reading, Refiner, Workshop
from aeft_lib.stages.multi_crop import MultiCrop
from aeft_lib.stages.train_on_windows import train_on_windows


@dataclass(frozen=True)
class InWindows:
    """A training on windows, whose tags come from a row's seeds (`MapSource`).

    refiner: its ``scores`` are posteriors of three background powers, as those of a CRF.
    reader: whose windows they are.
    """

    refiner: Refiner
    reader: MultiCrop = MultiCrop()
    cached = False

    def for_training(self, workshop: Workshop) -> tuple[Stage, Inputs]:
        """`train_on_windows`."""
        scenes = workshop.scenes("train")
        posteriors = self.refiner.refine(workshop, "train")["scores"]
        spec = WindowSpec(scenes, len(scenes.open().classes), self.reader)
        windows = workshop.obtain(label_windows, spec, {"posteriors": posteriors})
        return train_on_windows, {WINDOWS: windows}

    def for_seeds(self, workshop: Workshop, split: str) -> tuple[Stage, Inputs]:
        """`infer_seeds`: what a network was trained on does not matter to its reader."""
        return infer_seeds, {}


@dataclass(frozen=True)
class RefinedCrops(MultiCrop):
    """`MultiCrop` for a method with a refinement, which is told the image's tags."""

    def from_images(
        self,
        method: Method,
        network: nn.Module,
        images: Sequence[np.ndarray],
        class_ids: Sequence[Tensor],
        precision: str = "fp32",
    ) -> list[Reading]:
        """As `MultiCrop`; tag logits are those of the CAM before its refinement."""
        tags = torch.zeros(len(class_ids), network.num_classes)
        for own, ids in zip(tags, class_ids, strict=True):
            own[ids] = 1
        told = _Told(method, tags.to(next(network.parameters()).device))
        readings = super().from_images(told, network, images, class_ids, precision)
        # The first view is the whole image.
        logits = told.logits[0]
        return [Reading(cam, own) for (cam, _), own in zip(readings, logits, strict=True)]


class _Told:
    """A method that is told the tags (B, K) of a batch; logits: of every view."""

    def __init__(self, method: Method, tags: Tensor) -> None:
        self.method, self.tags = method, tags
        self.logits: list[Tensor] = []

    def cam(self, network: nn.Module, batch: Batch) -> Tensor:
        maps, logits = self.method.read(network, batch._replace(tags=self.tags))
        self.logits.append(logits.float().cpu())
        return maps
