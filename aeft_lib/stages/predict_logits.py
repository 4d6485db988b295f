"""Stage `predict_logits`: what the segmentation network says of unseen scenes, before up-sampling.

Rows that differ in how a prediction is read (plain, with a CRF, tags known) share these passes; the
logits are a few cells a scene, so they take little space (13 MB for 200 scenes at two scales).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import ranks
from aeft_lib.engine.batches import image_batches
from aeft_lib.engine.device import autocast, batch_pixels
from aeft_lib.engine.shards import over_images
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.loading import load_segmenter, ready
from aeft_lib.stages.slices import SliceWriter, read_slices

FILE = "logits.safetensors"
Passes = list[Tensor]


@dataclass(frozen=True)
class LogitSpec:
    """scenes: all of one size.  scales: relative to the image, each plain and mirrored.

    data: fingerprint of the scenes.  precision: of the network, `device.inference_precision`.
    """

    scenes: SceneSet
    scales: tuple[float, ...]
    data: str = ""
    precision: str = "fp32"


@ranks.collective
def predict_logits(
    spec: LogitSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Read ``segmenter``; write ``logits.safetensors``, see `load_passes`."""
    count = len(spec.scenes.open())
    passes = over_images(passes_of, count, spec, inputs["segmenter"])
    with SliceWriter(folder / FILE, count if ranks.is_main() else 0) as writer:
        for of_scene in passes:
            names = map(pass_name, spec.scales)
            writer.add(dict(zip(names, of_scene, strict=True)))
    return {"images": count}


def pass_name(scale: float) -> str:
    """Name of a scale's tensor in the file."""
    return f"scale_{float(scale)}"


def load_passes(artefact: Artefact, index: int, scales: Sequence[float]) -> Passes:
    """Scene `index`: one (1, 2, K + 1, h, w) fp32 a scale, logits of the plain and mirrored view.

    The mirrored one is not mirrored back.
    """
    names = [pass_name(scale) for scale in scales]
    read = read_slices(artefact.folder / FILE, slice(index, index + 1), names=names)
    return [read[name] for name in names]


def passes_of(indices: range, spec: LogitSpec, segmenter: Artefact) -> list[Passes]:
    """Of these scenes, as `load_passes` gives them; photos of one size go together."""
    network, scenes = ready(load_segmenter, segmenter), spec.scenes.open()
    read = dict(
        _by_index(network, image_batches(scenes.image, indices, batch_pixels(spec.precision)), spec)
    )
    return [read[index] for index in indices]


def _by_index(
    network: nn.Module, images: Iterator[tuple[list[int], list[np.ndarray]]], spec: LogitSpec
) -> Iterator[tuple[int, Passes]]:
    for part, pictures in images:
        passes = coarse_passes(network, normalised(network, pictures), spec.scales, spec.precision)
        for i, index in enumerate(part):
            yield index, [maps[i : i + 1].clone().cpu() for maps in passes]


def normalised(network: nn.Module, images: Sequence[np.ndarray]) -> Tensor:
    """Photos (H, W, 3) uint8 of one size as (B, 3, H, W) in the network's range, on its device."""
    where = next(network.parameters()).device
    pictures = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(where)
    return network.backbone.normalise(pictures)


@torch.inference_mode()
def coarse_passes(
    network: nn.Module, images: Tensor, scales: Sequence[float], precision: str = "fp32"
) -> Passes:
    """One (B, 2, K + 1, h, w) fp32 a scale: logits of the plain and the mirrored view.

    network: its ``coarse`` gives logits before up-sampling; where it has none, its own are taken.
    images: (B, 3, H, W) in the network's range.
    Raises ValueError for no scales, or one that is not positive.
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales must be positive, and at least one, got {tuple(scales)}")
    read, passes = getattr(network, "coarse", network), []
    options = {"mode": "bilinear", "align_corners": False}
    for scale in scales:
        sides = scaled_sides(images.shape[-2:], scale)
        scaled = F.interpolate(images, size=sides, antialias=scale < 1, **options)
        with autocast(precision, images.device):
            both = [read(view).float() for view in (scaled, scaled.flip(-1))]
        passes.append(torch.stack(both, dim=1))
    return passes


def scaled_sides(size: Sequence[int], scale: float) -> list[int]:
    """Height and width of an image of `size` at a scale, in whole pixels."""
    return [max(1, round(side * scale)) for side in size]
