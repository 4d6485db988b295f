"""Stage `train_segmenter`: the last network, trained on label maps, whoever made them.  No mask is within its reach."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from aeft_lib import trained, training
from aeft_lib.backbones.efficientnet_lite import EfficientNetLite0, normalise
from aeft_lib.data.augment import random_views
from aeft_lib.data.collages import SceneSpec
from aeft_lib.devices import device
from aeft_lib.labels import read_label_map
from aeft_lib.runs import Artefact
from aeft_lib.segmenter import Segmenter, segmentation_loss
from aeft_lib.stages import fitting
from aeft_lib.stages.labels import label_files
from aeft_lib.stages.scenes import load_images


@dataclass(frozen=True)
class SegmenterSpec:
    """All that decides the weights, next to the labels.

    hidden: channels between the head's two convolutions.  view_scales: least and largest scale of a training view.
    """

    scenes: SceneSpec
    num_classes: int
    trained_stages: int
    schedule: training.Schedule
    seed: int
    hidden: int = 512
    view_scales: tuple[float, float] = (0.5, 1.5)


def build_segmenter(spec: SegmenterSpec) -> Segmenter:
    """The network before training: ImageNet backbone, head drawn from the spec's seed."""

    def make() -> Segmenter:
        backbone = EfficientNetLite0(trained_stages=spec.trained_stages)
        return Segmenter(backbone=backbone, num_classes=spec.num_classes, hidden=spec.hidden)

    return trained.build(make, spec.seed)


def train_segmenter(spec: SegmenterSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float | str]:
    """Train on the scenes' images and ``inputs["labels"]``; write ``weights.safetensors`` and ``log.csv``."""
    network = build_segmenter(spec).to(device())
    images = load_images(spec.scenes)
    size = tuple(images.shape[-2:])
    maps = [read_label_map(file, num_classes=spec.num_classes, size=size) for file in label_files(inputs["labels"])]
    if len(maps) != len(images):
        raise ValueError(f"there are {len(images)} images and {len(maps)} label maps")
    labels = torch.from_numpy(np.stack(maps))

    def batch(indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        pictures, targets = normalise(images[indices].to(device())), labels[indices].to(device())
        views, targets = random_views(pictures, targets, generator, scales=spec.view_scales)
        return views.contiguous(memory_format=torch.channels_last), targets

    def terms(net: nn.Module, picked: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"segmentation": segmentation_loss(net(picked[0]), picked[1])}

    course = {"n_samples": len(images), "batch": batch, "losses": terms, "schedule": spec.schedule, "seed": spec.seed}
    return fitting.fit(network, folder, **course)


def load_segmenter(artefact: Artefact) -> Segmenter:
    """The trained network of a `train_segmenter` artefact, in eval mode."""
    written = artefact.record["spec"]
    schedule, scenes = training.Schedule(**written["schedule"]), SceneSpec(**written["scenes"])
    rest = {"schedule": schedule, "scenes": scenes, "view_scales": tuple(written["view_scales"])}
    network = build_segmenter(SegmenterSpec(**written | rest))
    trained.load_trained(network, artefact.folder / fitting.WEIGHTS)
    return network.eval()
