"""Stage `train_on_maps`: as `train_classifier`, with a map of every scene beside its tags.

A method that wants it has "maps" in its ``needs``, and makes the artefact of the maps itself, by
``maps(obtain, scenes, backbone, precision)``: label maps, of superpixels for example.  It reads no
mask.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aeft_lib.data.augment import color_jitter, random_crop, resized
from aeft_lib.engine import loop, ranks
from aeft_lib.engine.device import device, placed
from aeft_lib.engine.samples import Batch
from aeft_lib.engine.step import Objective
from aeft_lib.maps.labels import VOID, read_label_map
from aeft_lib.stages import fitting
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.cache_features import load_features, scale_name
from aeft_lib.stages.loading import build_network
from aeft_lib.stages.sources import InMemory, OnDisk, load_tags, same_count
from aeft_lib.stages.train_classifier import ClassifierSpec
from aeft_lib.stages.write_labels import label_files

MAPS = "maps"  # input, and in a method's ``needs``
MOST = VOID - 1  # the largest number that a map may have


@ranks.collective
def train_on_maps(
    spec: ClassifierSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float | str]:
    """Train on tags and ``maps``; write ``weights.safetensors`` and logs.

    inputs: ``maps``; ``features`` where there is no view.  A batch has its maps as ``labels``,
    (B, 1, H, W) uint8 at the size of the scene or of the view, `VOID` beyond a photo.
    Raises ValueError where a map, or the number of maps or classes, does not fit.
    """
    network = build_network(spec)
    network.backbone.checkpointing = spec.compute.checkpointing
    network = network.to(device())
    files = label_files(inputs[MAPS])
    make = _views if spec.view else _cached
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


def _cached(
    spec: ClassifierSpec, inputs: Mapping[str, Artefact], files: list[Path], _: fitting.Normalise
) -> InMemory:
    """Cached features of whole scenes of one size and their maps, mirrored half the time."""
    names = (scale_name(1.0), "tags")
    features, tags = load_features(inputs["features"], names=names).values()
    _check_classes(tags, spec.num_classes)
    maps = torch.from_numpy(np.stack([read_label_map(f, num_classes=MOST) for f in files]))
    count = same_count(len(tags), len(maps), MAPS)
    features, maps = placed(features), placed(maps)

    def whole(indices: Tensor, generator: torch.Generator, wanted: slice) -> Batch:
        mirrored = torch.randint(2, (len(indices),), generator=generator)[wanted]
        chosen = indices[wanted]
        own = maps[chosen.to(maps.device)]
        turned = mirrored.to(maps.device)[:, None, None] == 1
        own = torch.where(turned, own.flip(-1), own)
        place = (chosen.to(features.device), mirrored.to(features.device))
        return Batch(features=features[place], tags=tags[chosen], labels=own[:, None])

    return InMemory(count, whole)


def _views(
    spec: ClassifierSpec,
    inputs: Mapping[str, Artefact],
    files: list[Path],
    normalise: fitting.Normalise,
) -> OnDisk:
    """Random views of photos and of their maps: resized, mirrored, jittered, cropped."""
    scenes, tags, view = spec.scenes.open(), load_tags(spec.scenes), spec.view
    _check_classes(tags, spec.num_classes)

    def photo(index: int, generator: torch.Generator) -> Batch:
        image = scenes.image(index)
        own = read_label_map(files[index], num_classes=MOST, size=image.shape[:2])
        if view.long_side:
            low, high = view.long_side
            length = int(torch.randint(low, high + 1, (), generator=generator))
            ratio = length / max(image.shape[:2])
            size = tuple(max(1, round(side * ratio)) for side in image.shape[:2])
            image, own = resized(image, size), resized(own, size, labels=True)
        picture = torch.from_numpy(image.copy()).permute(2, 0, 1)
        own = torch.from_numpy(own.copy())
        if torch.rand((), generator=generator) < 0.5:
            picture, own = picture.flip(-1), own.flip(-1)
        if torch.rand((), generator=generator) < view.jitter_probability:
            picture = color_jitter(picture, generator, view.jitter)
        shown = [normalise(picture[None])[0], own]
        crop, own = random_crop(shown, [0, VOID], view.crop, generator)
        return Batch(images=crop, tags=tags[index], labels=own[None])

    return OnDisk(same_count(len(scenes), len(files), MAPS), photo)


def _check_classes(tags: Tensor, num_classes: int) -> None:
    if tags.shape[1] != num_classes:
        raise ValueError(f"the data has K={tags.shape[1]} classes, the network K={num_classes}")
