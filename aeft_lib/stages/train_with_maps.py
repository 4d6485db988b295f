"""Stage `train_with_maps`: as `train_classifier`, with a label map of each scene beside its image.

The map is mirrored and cropped with the image.  It comes from an artefact of label maps, which
another row made (`stages.map_source`).  It reads no mask.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from aeft_lib.data.augment import ViewSpec, color_jitter, random_crop
from aeft_lib.data.images import resized
from aeft_lib.engine import loop, ranks
from aeft_lib.engine.device import device, placed
from aeft_lib.engine.samples import Batch
from aeft_lib.engine.step import Objective
from aeft_lib.maps.labels import VOID, read_label_map
from aeft_lib.networks import state
from aeft_lib.stages import fitting
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.cache_features import load_features, scale_name
from aeft_lib.stages.loading import WEIGHTS, build_network
from aeft_lib.stages.map_source import MAPS, with_statistics
from aeft_lib.stages.sources import InMemory, OnDisk, load_tags, same_count
from aeft_lib.stages.write_labels import label_files

WARM_START = "warm_start"  # input: a trained classifier, whose network may lack new layers


@ranks.collective
def train_with_maps(
    spec: Any, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float | str]:
    """Train by a `ClassifierSpec`; write ``weights.safetensors`` and logs.

    inputs: ``maps``, ``statistics``; ``features`` where there is no view; ``warm_start``.  A batch
    has its tags, and its label maps as ``labels``, (B, H, W) uint8.
    Raises ValueError where there are more or fewer label maps than scenes.
    """
    network = with_statistics(build_network(spec), inputs)
    if WARM_START in inputs:
        warm = load_file(inputs[WARM_START].folder / WEIGHTS)
        state.load_trained_state(network, state.trained_state(network) | warm)
    network.backbone.checkpointing = spec.compute.checkpointing
    network = network.to(device())
    files = label_files(inputs[MAPS])
    make = _views if spec.view else _whole_scenes
    source = make(spec, inputs, files, network.backbone.normalise)
    rows = loop.fit(
        network,
        n_samples=source.count,
        batch=source,
        objective=Objective(spec.method.measure, spec.method.combine),
        schedule=spec.schedule,
        seed=spec.seed,
        compute=spec.compute,
        **fitting.options(folder),
    )
    return fitting.finish(network, folder, rows)


def _whole_scenes(
    spec: Any, inputs: Mapping[str, Artefact], files: list[Path], normalise: fitting.Normalise
) -> InMemory:
    """Cached features of whole scenes, and their label maps."""
    names = (scale_name(1.0), "tags")
    features, tags = load_features(inputs["features"], names=names).values()
    size, classes = (spec.scenes.size,) * 2, spec.num_classes
    maps = [read_label_map(file, num_classes=classes, size=size) for file in files]
    count = same_count(len(tags), len(maps), "label maps")
    features, labels = placed(features), placed(torch.from_numpy(np.stack(maps)))

    def whole(indices: Tensor, generator: torch.Generator, wanted: slice) -> Batch:
        mirrored = torch.randint(2, (len(indices),), generator=generator)[wanted]
        chosen = indices[wanted]
        plain = labels[chosen.to(labels.device)]
        turned = mirrored.to(labels.device)[:, None, None] == 1
        place = (chosen.to(features.device), mirrored.to(features.device))
        own = torch.where(turned, plain.flip(-1), plain)
        return Batch(features=features[place], tags=tags[chosen], labels=own)

    return InMemory(count, whole)


def _views(
    spec: Any, inputs: Mapping[str, Artefact], files: list[Path], normalise: fitting.Normalise
) -> OnDisk:
    """Random views of photos, and of their label maps."""
    opened, tags, classes = spec.scenes.open(), load_tags(spec.scenes), spec.num_classes

    def photo(index: int, generator: torch.Generator) -> Batch:
        image = opened.image(index)
        labels = read_label_map(files[index], num_classes=classes, size=image.shape[:2])
        view, own = paired_view(image, labels, generator, spec.view, normalise)
        return Batch(images=view, tags=tags[index], labels=own)

    return OnDisk(same_count(len(tags), len(files), "label maps"), photo)


def paired_view(
    image: np.ndarray,
    labels: np.ndarray,
    generator: torch.Generator,
    view: ViewSpec,
    normalise: fitting.Normalise,
) -> tuple[Tensor, Tensor]:
    """The view of `augment.training_view`, and the same of the label map; padding is void there.

    image: (H, W, 3) uint8.  labels: (H, W) uint8.  Returns (3, crop, crop), normalised, and
    (crop, crop) uint8.
    """
    if view.long_side:
        low, high = view.long_side
        length = int(torch.randint(low, high + 1, (), generator=generator))
        ratio = length / max(image.shape[:2])
        size = tuple(max(1, round(side * ratio)) for side in image.shape[:2])
        image, labels = resized(image, size), resized(labels, size, labels=True)
    picture = torch.from_numpy(image.copy()).to(device()).permute(2, 0, 1)
    targets = torch.from_numpy(labels.copy()).to(picture.device)
    if torch.rand((), generator=generator) < 0.5:
        picture, targets = picture.flip(-1), targets.flip(-1)
    if torch.rand((), generator=generator) < view.jitter_probability:
        picture = color_jitter(picture, generator, view.jitter)
    cut = random_crop([normalise(picture[None])[0], targets], [0, VOID], view.crop, generator)
    return cut[0], cut[1]
