"""Stage `cache_features`: the frozen trunk's output for every scene, plain and mirrored, by scale.

The trunk has no gradient and no randomness, so every row of a study and every repeat reads the same
cache.  Half precision halves the disk; tests/stages/test_cache_features.py bounds what it changes
in a CAM.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine.device import device
from aeft_lib.networks.backbone import BackboneSpec
from aeft_lib.stages.artefact import Artefact

BATCH = 8
FILE = "features.safetensors"


@dataclass(frozen=True)
class FeatureSpec:
    """scenes: all of one size.  scales: relative to it.  data: fingerprint of the scenes."""

    scenes: SceneSet
    backbone: BackboneSpec
    scales: tuple[float, ...]
    data: str


def cache_features(
    spec: FeatureSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Write ``features.safetensors``: see `load_features`."""
    scenes = spec.scenes.open()
    backbone = spec.backbone.build().eval().to(device(), memory_format=torch.channels_last)
    parts: dict[str, list[Tensor]] = {scale_name(scale): [] for scale in spec.scales}
    tags = []
    for start in range(0, len(scenes), BATCH):
        indices = range(start, min(start + BATCH, len(scenes)))
        images = torch.from_numpy(np.stack([scenes.image(i) for i in indices]))
        tags.append(torch.from_numpy(np.stack([scenes.tags(i) for i in indices])))
        images = backbone.normalise(images.permute(0, 3, 1, 2).to(device()))
        for scale in spec.scales:
            plain = rescale(images, scale)
            both = [_trunk(backbone, x) for x in (plain, plain.flip(-1))]
            parts[scale_name(scale)].append(torch.stack(both, dim=1).half().contiguous().cpu())
    tensors = {name: torch.cat(items) for name, items in (parts | {"tags": tags}).items()}
    save_file(tensors, folder / FILE)
    return {"scenes": len(scenes)}


def load_features(
    artefact: Artefact, part: slice = slice(None), *, names: Sequence[str] = ()
) -> dict[str, Tensor]:
    """``{"scale_1.0": (N, 2, C, h, w) float16 (plain, mirrored), ..., "tags": (N, K) bool}``.

    part: of the N scenes.  names: of the tensors, () for all.
    """
    with safe_open(artefact.folder / FILE, framework="pt") as opened:
        return {name: opened.get_slice(name)[part] for name in names or opened.keys()}


def scale_name(scale: float) -> str:
    """Name of a scale's tensor in the cache."""
    return f"scale_{float(scale)}"


def rescale(images: Tensor, scale: float) -> Tensor:
    """Images (B, 3, H, W) at another size, bilinear with antialiasing, in whole pixels."""
    if scale == 1:
        return images
    size = [round(side * scale) for side in images.shape[-2:]]
    options = {"mode": "bilinear", "align_corners": False, "antialias": scale < 1}
    return F.interpolate(images, size=size, **options)


def _trunk(backbone: torch.nn.Module, images: Tensor) -> Tensor:
    return backbone.trunk(images.contiguous(memory_format=torch.channels_last))
