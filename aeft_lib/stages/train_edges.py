"""Stage `train_edges`: a network learns edges between objects from label maps.  It reads no mask.

What the edges are learned from, pairs of pixels or a label of the boundary itself, is the loss's
own affair; the spec brings it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from aeft_lib.data.augment import random_crop
from aeft_lib.data.images import resized
from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import ranks
from aeft_lib.engine.device import device
from aeft_lib.engine.fields import whole
from aeft_lib.engine.loop import fit
from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import Schedule
from aeft_lib.engine.step import PLAIN, Compute, Objective
from aeft_lib.maps.labels import VOID, read_label_map
from aeft_lib.networks.backbone import BackboneSpec
from aeft_lib.refinement.edge_net import CELL
from aeft_lib.stages import fitting
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.edge_nets import build_edge_net
from aeft_lib.stages.sources import InMemory, OnDisk, load_images, same_count
from aeft_lib.stages.write_labels import label_files


class EdgeLoss(Protocol):
    """Teaches edges: a frozen dataclass, as all that a spec brings."""

    def targets(self, labels: Tensor) -> Tensor:
        """What is learned from a label map (H, W) uint8 of 0, class + 1 and 255: (H, W) uint8.

        Void is 255 there too.  It is made once, before any view.
        """

    def reduced(self, targets: Tensor) -> Tensor:
        """Targets (..., H, W) on the grid, (..., H / 4, W / 4)."""

    def described(self, targets: Tensor) -> dict[str, float]:
        """Numbers of all targets (N, h, w) on the grid, for the summary."""

    def measure(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums and counts, (1, n) each, of logits (B, h, w) and targets (B, h, w)."""

    def combine(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named terms of the whole batch, summed."""


@dataclass(frozen=True)
class RescaledCrop:
    """A random square of a photo that was rescaled by a random factor, mirrored half the time.

    crop: its side in pixels.  scales: the least and the largest factor.
    """

    crop: int = 512
    scales: tuple[float, float] = (0.5, 1.5)

    def __post_init__(self) -> None:
        whole(self, "crop", least=CELL)
        if self.crop % CELL:
            raise ValueError(f"crop must be a multiple of {CELL}, got {self.crop}")
        if not 0 < self.scales[0] <= self.scales[1]:
            raise ValueError(f"scales must be positive and in order, got {self.scales}")


@dataclass(frozen=True)
class EdgeSpec:
    """All that decides the weights, besides the label maps.

    backbone: hands on its maps of all levels (`networks.levels`).  view: random crops of photos;
    None: whole scenes, mirrored half the time.
    """

    scenes: SceneSet
    backbone: BackboneSpec
    loss: EdgeLoss
    schedule: Schedule
    seed: int
    view: RescaledCrop | None = None
    compute: Compute = PLAIN


@ranks.collective
def train_edges(
    spec: EdgeSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float | str]:
    """Train on ``inputs["labels"]``, palette PNGs; write weights and logs.

    Of whole scenes the summary has the loss's numbers of its targets.
    """
    network = build_edge_net(spec).to(device())

    def measure(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return spec.loss.measure(network(batch.images)[:, 0].float(), batch.labels)

    make = _crops if spec.view else _whole_scenes
    source, summary = make(spec, label_files(inputs["labels"]), network.backbone.normalise)
    rows = fit(
        network,
        n_samples=source.count,
        batch=source,
        objective=Objective(measure, spec.loss.combine),
        schedule=spec.schedule,
        seed=spec.seed,
        compute=spec.compute,
        **fitting.options(folder),
    )
    return fitting.finish(network, folder, rows) | summary


def _targets(spec: EdgeSpec, file: Path, num_classes: int) -> Tensor:
    labels = torch.from_numpy(read_label_map(file, num_classes=num_classes))
    return spec.loss.targets(labels)


def _whole_scenes(
    spec: EdgeSpec, files: list[Path], normalise: fitting.Normalise
) -> tuple[InMemory, dict[str, float]]:
    """Scenes of one size with their targets; both are mirrored before the targets are reduced."""
    images, classes = load_images(spec.scenes), len(spec.scenes.open().classes)
    count = same_count(len(images), len(files), "label maps")
    if any(side % CELL for side in images.shape[-2:]):
        size = tuple(images.shape[-2:])
        raise ValueError(f"sides of scenes must be multiples of {CELL} for edges, got {size}")
    targets = torch.stack([_targets(spec, file, classes) for file in files])

    def view(indices: Tensor, generator: torch.Generator, wanted: slice) -> Batch:
        mirrored = torch.randint(2, (len(indices), 1, 1), generator=generator).bool()[wanted]
        pictures, maps = images[indices[wanted]], targets[indices[wanted]]
        pictures = torch.where(mirrored[..., None], pictures.flip(-1), pictures)
        maps = torch.where(mirrored, maps.flip(-1), maps)
        return Batch(images=normalise(pictures), labels=spec.loss.reduced(maps))

    return InMemory(count, view), spec.loss.described(spec.loss.reduced(targets))


def _crops(
    spec: EdgeSpec, files: list[Path], normalise: fitting.Normalise
) -> tuple[OnDisk, dict[str, float]]:
    """Crops of photos with their targets; padding is the mean colour, its targets void."""
    scenes, view_of = spec.scenes.open(), spec.view

    def view(index: int, generator: torch.Generator) -> Batch:
        targets = _targets(spec, files[index], len(scenes.classes)).numpy()
        picture, maps = rescaled(scenes.image(index), targets, generator, view_of.scales)
        cut = random_crop([normalise(picture[None])[0], maps], [0, VOID], view_of.crop, generator)
        if torch.rand((), generator=generator) < 0.5:
            cut = [square.flip(-1) for square in cut]
        return Batch(images=cut[0], labels=spec.loss.reduced(cut[1]))

    return OnDisk(same_count(len(scenes), len(files), "label maps"), view), {}


def rescaled(
    image: np.ndarray, labels: np.ndarray, generator: torch.Generator, scales: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """A photo (H, W, 3) uint8, bicubic, and its labels (H, W), nearest, at one random scale.

    Returns (3, H', W') and (H', W'), uint8.
    """
    low, high = scales
    scale = low + (high - low) * float(torch.rand((), generator=generator))
    size = tuple(max(1, round(side * scale)) for side in image.shape[:2])
    picture = torch.from_numpy(resized(image, size)).permute(2, 0, 1)
    return picture, torch.from_numpy(resized(labels, size, labels=True))
