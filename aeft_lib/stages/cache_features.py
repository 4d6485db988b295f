"""Stage `cache_features`: the frozen trunk's output for every scene, plain and mirrored, by scale.

The trunk has no gradient and no randomness, so every row of a study and every repeat reads the same
cache.  Half precision halves the disk; tests/stages/test_cache_features.py bounds what it changes
in a CAM.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine.batches import image_batches
from aeft_lib.engine.device import autocast, batch_pixels, device
from aeft_lib.networks.backbone import BackboneSpec
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.slices import SliceWriter, read_slices

FILE = "features.safetensors"
PREFIX = "scale_"


@dataclass(frozen=True)
class FeatureSpec:
    """scenes: all of one size.  scales: relative to it.  data: fingerprint of the scenes.

    precision: of the trunk, see `device.inference_precision`.
    """

    scenes: SceneSet
    backbone: BackboneSpec
    scales: tuple[float, ...]
    data: str
    precision: str = "fp32"


def cache_features(
    spec: FeatureSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Write ``features.safetensors``: see `load_features`."""
    scenes = spec.scenes.open()
    backbone = spec.backbone.build().eval().to(device(), memory_format=torch.channels_last)
    with SliceWriter(folder / FILE, len(scenes)) as writer:
        pixels = batch_pixels(spec.precision)
        for indices, images in image_batches(scenes.image, range(len(scenes)), pixels):
            tags = torch.from_numpy(np.stack([scenes.tags(i) for i in indices]))
            pictures = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(device())
            with torch.no_grad(), autocast(spec.precision, device()):
                maps = dict(_features(backbone, backbone.normalise(pictures), spec.scales))
            writer.add(maps | {"tags": tags})
    return {"scenes": len(scenes)}


def _features(
    backbone: nn.Module, images: Tensor, scales: Sequence[float]
) -> Iterator[tuple[str, Tensor]]:
    """Name and features (B, 2, C, h, w) of each scale, plain and mirrored."""
    for scale in scales:
        plain = rescale(images, scale)
        both = [_trunk(backbone, x) for x in (plain, plain.flip(-1))]
        yield scale_name(scale), torch.stack(both, dim=1).half()


def load_features(
    artefact: Artefact, part: slice = slice(None), *, names: Sequence[str] = ()
) -> dict[str, Tensor]:
    """``{"scale_1.0": (N, 2, C, h, w) float16 (plain, mirrored), ..., "tags": (N, K) bool}``.

    part: of the N scenes.  names: of the tensors, () for all.
    """
    return read_slices(artefact.folder / FILE, part, names=names)


def scale_name(scale: float) -> str:
    """Name of a scale's tensor in the cache."""
    return f"{PREFIX}{float(scale)}"


def rescale(images: Tensor, scale: float) -> Tensor:
    """Images (B, 3, H, W) at another size, bilinear with antialiasing, in whole pixels."""
    if scale == 1:
        return images
    size = [round(side * scale) for side in images.shape[-2:]]
    options = {"mode": "bilinear", "align_corners": False, "antialias": scale < 1}
    return F.interpolate(images, size=size, **options)


def _trunk(backbone: torch.nn.Module, images: Tensor) -> Tensor:
    return backbone.trunk(images.contiguous(memory_format=torch.channels_last))
