"""Stage `train_on_windows`: as `train_classifier`, on windows of scenes with tags of their own.

A sample is a random scale and a random window of a scene (`label_windows`); a window without a tag
is drawn again, at most as often as the scene has windows at that scale.  It is brought to the size
of a usual training sample, mirrored half the time, and jittered where the profile has views.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from aeft_lib.data.augment import color_jitter
from aeft_lib.engine import loop, ranks
from aeft_lib.engine.device import device
from aeft_lib.engine.samples import Batch
from aeft_lib.engine.step import Objective
from aeft_lib.stages import fitting
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.loading import build_network
from aeft_lib.stages.map_source import WINDOWS, WINDOWS_FILE
from aeft_lib.stages.sources import OnDisk, load_images, same_count


@ranks.collective
def train_on_windows(
    spec: Any, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float | str]:
    """Train by a `ClassifierSpec`; write ``weights.safetensors`` and logs.

    The summary has that of ``windows`` besides.
    Raises ValueError where the windows are of more or fewer scenes.
    """
    network = build_network(spec)
    network.backbone.checkpointing = spec.compute.checkpointing
    network = network.to(device())
    source = window_source(spec, inputs[WINDOWS], network.backbone.normalise)
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
    return inputs[WINDOWS].summary | fitting.finish(network, folder, rows)


def window_source(spec: Any, windows: Artefact, normalise: fitting.Normalise) -> OnDisk:
    """Random windows of the scenes, each sample from a random stream of its own."""
    scenes, stored = spec.scenes.open(), load_file(windows.folder / WINDOWS_FILE)
    boxes, places, tags = (stored[name] for name in ("boxes", "places", "tags"))
    count = same_count(len(scenes), int(places[:, 0].max()) + 1, "scenes with windows")
    first = torch.searchsorted(places[:, 0].contiguous(), torch.arange(count + 1)).tolist()
    side = spec.view.crop if spec.view else spec.scenes.size
    stretch = windows.spec.reader.stretch
    image = _image_of(spec.scenes)

    def sample(index: int, generator: torch.Generator) -> Batch:
        own = slice(first[index], first[index + 1])
        drawn = first[index] + draw_window(places[own, 1], tags[own], generator)
        left, top, right, bottom = boxes[drawn].tolist()
        picture = image(index)[:, top:bottom, left:right].to(device())
        if torch.rand((), generator=generator) < 0.5:
            picture = picture.flip(-1)
        if spec.view and torch.rand((), generator=generator) < spec.view.jitter_probability:
            picture = color_jitter(picture, generator, spec.view.jitter)
        view = at_side(normalise(picture[None]), side, stretch=stretch)[0]
        return Batch(images=view, tags=tags[drawn])

    return OnDisk(count, sample)


def _image_of(scenes: Any) -> Callable[[int], Tensor]:
    """A scene's image (3, H, W) uint8; scenes of one size are held in memory."""
    if scenes.size:
        return load_images(scenes).__getitem__
    read = scenes.open().image
    return lambda index: torch.from_numpy(read(index).copy()).permute(2, 0, 1)


def draw_window(scales: Tensor, tags: Tensor, generator: torch.Generator) -> int:
    """One of a scene's windows, at a random scale.

    scales: (n,) int64, of every window.  tags: (n, K).  At most as many draws, with replacement, as
    there are windows of the scale: the first with a tag counts, else the last.
    """
    numbers = scales.unique()
    scale = numbers[torch.randint(len(numbers), (), generator=generator)]
    candidates = (scales == scale).nonzero()[:, 0]
    draws = candidates[torch.randint(len(candidates), candidates.shape, generator=generator)]
    tagged = tags[draws].bool().any(dim=1).nonzero()
    return int(draws[tagged[0, 0] if len(tagged) else -1])


def at_side(window: Tensor, side: int, *, stretch: bool) -> Tensor:
    """A normalised window (1, 3, h, w) as a square of `side`, padded with the mean colour.

    stretch: not padded; it loses its aspect, as in the release.
    """
    height, width = window.shape[-2:]
    if not stretch:
        longer = max(height, width)
        window = F.pad(window, (0, longer - width, 0, longer - height))
    return F.interpolate(window, size=(side, side), mode="bilinear", align_corners=False)
