"""Stage `train_segmenter`: the last network, trained on any label maps.  It reads no mask."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aeft_lib.data.augment import affine_views, draw_views, random_crop, resized
from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import loop, ranks
from aeft_lib.engine.device import device, placed
from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import Schedule
from aeft_lib.engine.step import PLAIN, Compute, Objective
from aeft_lib.maps.labels import VOID, read_label_map
from aeft_lib.networks.backbone import BackboneSpec
from aeft_lib.stages import fitting
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.loading import build_segmenter
from aeft_lib.stages.method import Segmenter
from aeft_lib.stages.sources import InMemory, OnDisk, load_images, same_count
from aeft_lib.stages.write_labels import label_files


@dataclass(frozen=True)
class SegmenterSpec:
    """All that decides the weights, besides the labels.

    segmenter: network and loss.  num_classes: K, without background.
    crop: side of a training view of a photo; 0: views of scenes of one size, at that size.
    view_scales: least and largest scale of a training view.  data: fingerprint of the scenes.
    """

    segmenter: Segmenter
    num_classes: int
    backbone: BackboneSpec
    scenes: SceneSet
    schedule: Schedule
    seed: int
    crop: int = 0
    compute: Compute = PLAIN
    view_scales: tuple[float, float] = (0.5, 1.5)
    data: str = ""


@ranks.collective
def train_segmenter(
    spec: SegmenterSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float | str]:
    """Train on the scenes' images and ``inputs["labels"]``; write weights and logs."""
    network = build_segmenter(spec)
    network.backbone.checkpointing = spec.compute.checkpointing
    network = network.to(device())
    make = _crops if spec.crop else _whole_scenes
    source = make(spec, label_files(inputs["labels"]), network.backbone.normalise)
    rows = loop.fit(
        network,
        n_samples=source.count,
        batch=source,
        objective=Objective(spec.segmenter.measure, spec.segmenter.combine),
        schedule=spec.schedule,
        seed=spec.seed,
        compute=spec.compute,
        **fitting.options(folder),
    )
    return fitting.finish(network, folder, rows)


def _whole_scenes(spec: SegmenterSpec, files: list[Path], normalise: fitting.Normalise) -> InMemory:
    """Scenes of one size and their labels, as random views of that size."""
    images = load_images(spec.scenes)
    size, classes = tuple(images.shape[-2:]), spec.num_classes
    maps = [read_label_map(file, num_classes=classes, size=size) for file in files]
    count = same_count(len(images), len(maps), "label maps")
    images, labels = placed(images), placed(torch.from_numpy(np.stack(maps)))

    def view(indices: Tensor, generator: torch.Generator, wanted: slice) -> Batch:
        drawn = draw_views(len(indices), generator, scales=spec.view_scales)[wanted]
        chosen = indices[wanted]
        pictures = normalise(images[chosen.to(images.device)])
        targets = labels[chosen.to(labels.device)].to(pictures.device)
        views, targets = affine_views(pictures, targets, drawn)
        return Batch(images=views, labels=targets)

    return InMemory(count, view)


def _crops(spec: SegmenterSpec, files: list[Path], normalise: fitting.Normalise) -> OnDisk:
    """Photos and labels, scaled, mirrored and cropped; padding is the mean colour, and void."""
    scenes, (low, high) = spec.scenes.open(), spec.view_scales

    def view(index: int, generator: torch.Generator) -> Batch:
        image = scenes.image(index)
        size, classes = image.shape[:2], spec.num_classes
        labels = read_label_map(files[index], num_classes=classes, size=size)
        scale = low + (high - low) * float(torch.rand((), generator=generator))
        size = tuple(max(1, round(side * scale)) for side in labels.shape)
        picture = torch.from_numpy(resized(image, size).copy()).permute(2, 0, 1)
        targets = torch.from_numpy(resized(labels, size, labels=True).copy())
        if torch.rand((), generator=generator) < 0.5:
            picture, targets = picture.flip(-1), targets.flip(-1)
        maps = [normalise(picture[None])[0], targets]
        crop, targets = random_crop(maps, [0, VOID], spec.crop, generator)
        return Batch(images=crop, labels=targets)

    return OnDisk(same_count(len(scenes), len(files), "label maps"), view)
