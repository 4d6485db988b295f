"""Stage `train_segmenter`: the last network, trained on label maps, whoever made them.  No mask is within its reach."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from aeft_lib.data.augment import random_crop, random_views, resized
from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import loop, ranks
from aeft_lib.engine.device import device
from aeft_lib.engine.step import PLAIN, Compute, Objective
from aeft_lib.maps.labels import VOID, read_label_map
from aeft_lib.networks import state
from aeft_lib.networks.registry import BackboneSpec, build_backbone
from aeft_lib.networks.segmenter import Segmenter, segmentation_sum
from aeft_lib.stages import fitting
from aeft_lib.stages.load_scenes import load_images
from aeft_lib.stages.store import Artefact
from aeft_lib.stages.write_labels import label_files


@dataclass(frozen=True)
class SegmenterSpec:
    """All that decides the weights, next to the labels.

    crop: side of a training view of a photo; 0: views of scenes that are of one size, at that size.
    hidden: channels between the head's two convolutions.  view_scales: least and largest scale of a training view.
    data: fingerprint of the scenes.
    """

    scenes: SceneSet
    num_classes: int
    backbone: BackboneSpec
    schedule: loop.Schedule
    seed: int
    crop: int = 0
    compute: Compute = PLAIN
    hidden: int = 512
    view_scales: tuple[float, float] = (0.5, 1.5)
    data: str = ""


class Samples(NamedTuple):
    """images: (B, 3, H, W) in the backbone's range.  labels: (B, H, W) uint8: 0 background, class + 1, 255 void."""

    images: Tensor
    labels: Tensor


def build_segmenter(
    num_classes: int, backbone: BackboneSpec, hidden: int, seed: int, *, checkpointing: bool = False
) -> Segmenter:
    """The network before training: ImageNet backbone, head drawn from the seed."""

    def make() -> Segmenter:
        built = build_backbone(backbone, checkpointing=checkpointing)
        return Segmenter(backbone=built, num_classes=num_classes, hidden=hidden)

    return state.build(make, seed)


@ranks.collective
def train_segmenter(spec: SegmenterSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float | str]:
    """Train on the scenes' images and ``inputs["labels"]``; write what `fitting.fit` writes."""
    built = (spec.num_classes, spec.backbone, spec.hidden, spec.seed)
    network = build_segmenter(*built, checkpointing=spec.compute.checkpointing).to(device())
    source = (RandomCrops if spec.crop else WholeScenes)(spec, label_files(inputs["labels"]), network.backbone.normalise)

    def measure(net: nn.Module, samples: Samples) -> dict[str, Tensor]:
        summed, known = segmentation_sum(net(samples.images).float(), samples.labels)
        return {"summed": summed[None], "known": known[None]}

    def combine(measures: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"segmentation": measures["summed"].sum() / measures["known"].sum().clamp(min=1)}

    course = {"schedule": spec.schedule, "seed": spec.seed, "compute": spec.compute, "objective": Objective(measure, combine)}
    return fitting.fit(network, folder, n_samples=source.count, batch=source, **course)


class WholeScenes:
    """Scenes of one size and their labels, as random views of that size."""

    def __init__(self, spec: SegmenterSpec, files: list[Path], normalise: object) -> None:
        self.images, self.normalise, self.scales = load_images(spec.scenes), normalise, spec.view_scales
        size = tuple(self.images.shape[-2:])
        maps = [read_label_map(file, num_classes=spec.num_classes, size=size) for file in files]
        self.count = _counted(len(self.images), maps)
        self.labels = torch.from_numpy(np.stack(maps))

    def __call__(self, indices: Tensor, generator: torch.Generator, wanted: slice) -> Samples:
        pictures, targets = self.normalise(self.images[indices]), self.labels[indices]
        views, targets = random_views(pictures, targets, generator, scales=self.scales)
        return Samples(views[wanted], targets[wanted])


class RandomCrops:
    """Photos of any size and their labels: scaled, mirrored and cropped at random; padding is the mean colour, and void."""

    def __init__(self, spec: SegmenterSpec, files: list[Path], normalise: object) -> None:
        self.spec, self.scenes, self.files, self.normalise = spec, spec.scenes.open(), files, normalise
        self.count = _counted(len(self.scenes), files)

    def __call__(self, indices: Tensor, generator: torch.Generator, wanted: slice) -> Samples:
        seeds = torch.randint(2**62, (len(indices),), generator=generator)[wanted].tolist()
        drawn = [
            self._one(i, torch.Generator().manual_seed(seed)) for i, seed in zip(indices[wanted].tolist(), seeds, strict=True)
        ]
        return Samples(*(torch.stack(items) for items in zip(*drawn, strict=True)))

    def _one(self, index: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        image = self.scenes.image(index)
        labels = read_label_map(self.files[index], num_classes=self.spec.num_classes, size=image.shape[:2])
        low, high = self.spec.view_scales
        scale = low + (high - low) * float(torch.rand((), generator=generator))
        size = tuple(max(1, round(side * scale)) for side in labels.shape)
        picture = torch.from_numpy(resized(image, size).copy()).permute(2, 0, 1)
        targets = torch.from_numpy(resized(labels, size, labels=True).copy())
        if torch.rand((), generator=generator) < 0.5:
            picture, targets = picture.flip(-1), targets.flip(-1)
        view, target = random_crop([self.normalise(picture[None])[0], targets], [0, VOID], self.spec.crop, generator)
        return view, target


def load_segmenter(artefact: Artefact) -> Segmenter:
    """The trained network of a `train_segmenter` artefact, in eval mode."""
    written = artefact.record["spec"]
    network = build_segmenter(written["num_classes"], BackboneSpec(**written["backbone"]), written["hidden"], written["seed"])
    state.load_trained(network, artefact.folder / fitting.WEIGHTS)
    return network.eval()


def _counted(images: int, maps: list) -> int:
    if len(maps) != images:
        raise ValueError(f"there are {images} images and {len(maps)} label maps")
    return images
