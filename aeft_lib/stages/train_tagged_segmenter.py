"""Stage `train_segmenter` for segmenters that are told the tags, and any number of label maps.

Its artefacts are read as those of `stages.train_segmenter`, whose name it has: a network that turns
images into logits.  It reads no mask.  A segmenter that wants it says so with ``needs``, and may
change the profile's schedule with ``scheduled``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from aeft_lib.data.augment import affine_views, draw_views, random_crop, resized
from aeft_lib.engine import loop, ranks
from aeft_lib.engine.device import device, placed
from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import Schedule
from aeft_lib.engine.step import Objective
from aeft_lib.maps.labels import VOID, read_label_map
from aeft_lib.networks import state
from aeft_lib.stages import fitting
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.loading import WEIGHTS, build_segmenter
from aeft_lib.stages.method import Segmenter
from aeft_lib.stages.sources import InMemory, OnDisk, load_images, load_tags, same_count
from aeft_lib.stages.write_labels import label_files

TAGS = "tags"  # in a segmenter's ``needs``
LABELS = "labels"  # inputs whose names begin so are label maps, in the order of their names
WARM_START = "warm_start"  # input: a trained network whose tensors the segmenter has too
Files = list[list[Path]]  # of each input, of each scene


def schedule_of(segmenter: Segmenter, schedule: Schedule) -> Schedule:
    """The profile's schedule, as the segmenter changes it where it has something to say."""
    scheduled = getattr(segmenter, "scheduled", None)
    return scheduled(schedule) if scheduled else schedule


@ranks.collective
def train_segmenter(
    spec: Any, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float | str]:
    """Train by a `SegmenterSpec` on images, tags and label maps; write weights and logs.

    A batch has ``tags`` (B, K), and ``labels`` (B, M, H, W) of the M inputs ``labels*``, in the
    order of their names; without any, one map of zeros.  What a view shows beyond its scene is
    void.  ``warm_start``: weights of another network that this one has too.
    Raises ValueError where a map, a count or a weight does not fit.
    """
    network = build_segmenter(spec)
    if WARM_START in inputs:
        load_shared(network, inputs[WARM_START].folder / WEIGHTS)
    network.backbone.checkpointing = spec.compute.checkpointing
    network = network.to(device())
    files = [label_files(inputs[n]) for n in sorted(inputs) if n.startswith(LABELS)]
    make = _crops if spec.crop else _whole_scenes
    source = make(spec, files, network.backbone.normalise)
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


def load_shared(network: nn.Module, file: Path) -> None:
    """Trained tensors of another network into this one, which has them all, in place.

    Raises ValueError naming a tensor that it lacks, or has in another shape.
    """
    own, given = state.trained_state(network), load_file(file)
    for name, tensor in given.items():
        if name not in own or own[name].shape != tensor.shape:
            here = tuple(own[name].shape) if name in own else "nothing"
            problem = f"{name} is {tuple(tensor.shape)} there and {here} here"
            raise ValueError(f"{file} is no warm start of this network: {problem}")
    network.load_state_dict(given, strict=False)


def _whole_scenes(spec: Any, files: Files, normalise: fitting.Normalise) -> InMemory:
    """Scenes of one size with their tags and maps, as random views of that size."""
    images, tags = load_images(spec.scenes), load_tags(spec.scenes)
    size = tuple(images.shape[-2:])
    maps = [[_read(file, spec, size) for file in of_input] for of_input in files]
    count = len(images)
    for of_input in maps:
        same_count(count, len(of_input), "label maps")
    if maps:
        labels = torch.from_numpy(np.stack([np.stack(of_input) for of_input in maps], axis=1))
    else:
        labels = torch.zeros(1, 1, *size, dtype=torch.uint8).expand(count, -1, -1, -1)
    images, labels = placed(images), placed(labels)

    def view(indices: Tensor, generator: torch.Generator, wanted: slice) -> Batch:
        drawn = draw_views(len(indices), generator, scales=spec.view_scales)[wanted]
        chosen = indices[wanted]
        pictures = normalise(images[chosen.to(images.device)])
        targets = labels[chosen.to(labels.device)].to(pictures.device)
        views, first = affine_views(pictures, targets[:, 0], drawn)
        # The pictures again, of one channel: their views are not used.
        others = [affine_views(pictures[:, :1], own, drawn)[1] for own in targets[:, 1:].unbind(1)]
        return Batch(images=views, tags=tags[chosen], labels=torch.stack([first, *others], dim=1))

    return InMemory(count, view)


def _crops(spec: Any, files: Files, normalise: fitting.Normalise) -> OnDisk:
    """Photos with their tags and maps, scaled, mirrored and cropped."""
    scenes, (low, high), tags = spec.scenes.open(), spec.view_scales, load_tags(spec.scenes)
    for of_input in files:
        same_count(len(scenes), len(of_input), "label maps")

    def view(index: int, generator: torch.Generator) -> Batch:
        image = scenes.image(index)
        maps = [_read(of_input[index], spec, image.shape[:2]) for of_input in files]
        maps = maps or [np.zeros(image.shape[:2], dtype=np.uint8)]
        scale = low + (high - low) * float(torch.rand((), generator=generator))
        size = tuple(max(1, round(side * scale)) for side in image.shape[:2])
        picture = torch.from_numpy(resized(image, size).copy()).permute(2, 0, 1)
        targets = [torch.from_numpy(resized(own, size, labels=True).copy()) for own in maps]
        shown = [normalise(picture[None])[0], *targets]
        if torch.rand((), generator=generator) < 0.5:
            shown = [own.flip(-1) for own in shown]
        fills = [0, *(VOID for _ in targets)]
        crop, *targets = random_crop(shown, fills, spec.crop, generator)
        return Batch(images=crop, tags=tags[index], labels=torch.stack(targets))

    return OnDisk(len(scenes), view)


def _read(file: Path, spec: Any, size: tuple[int, int]) -> np.ndarray:
    return read_label_map(file, num_classes=spec.num_classes, size=size)
