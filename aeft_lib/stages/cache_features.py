"""Stage `cache_features`: what the frozen trunk makes of every scene, plain and mirrored, at every scale.

The trunk has no gradient and no randomness, so every row of a study and every seed reads the same cache.  Half precision
halves the disk; tests/test_features.py bounds what it changes in a CAM.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine.device import device
from aeft_lib.networks.registry import BackboneSpec, build_backbone
from aeft_lib.stages.store import Artefact

BATCH = 8


@dataclass(frozen=True)
class FeatureSpec:
    """scenes: all of one size.  scales: relative to it.  data: fingerprint of the scenes."""

    scenes: SceneSet
    backbone: BackboneSpec
    scales: tuple[float, ...]
    data: str


def cache_features(spec: FeatureSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float]:
    """Write ``features.safetensors``: per scale a (N, 2, C, h, w) float16 tensor (plain, mirrored), and ``tags`` (N, K)."""
    scenes = spec.scenes.open()
    backbone = build_backbone(spec.backbone).eval().to(device(), memory_format=torch.channels_last)
    parts: dict[str, list[Tensor]] = {scale_name(scale): [] for scale in spec.scales} | {"tags": []}
    for start in range(0, len(scenes), BATCH):
        indices = range(start, min(start + BATCH, len(scenes)))
        images = torch.from_numpy(np.stack([scenes.image(i) for i in indices])).permute(0, 3, 1, 2)
        parts["tags"].append(torch.from_numpy(np.stack([scenes.tags(i) for i in indices])))
        images = images.to(device())
        for scale in spec.scales:
            scaled = rescale(backbone.normalise(images), scale)
            both = [backbone.trunk(x.contiguous(memory_format=torch.channels_last)) for x in (scaled, scaled.flip(-1))]
            parts[scale_name(scale)].append(torch.stack(both, dim=1).half().contiguous().cpu())
    save_file({name: torch.cat(items) for name, items in parts.items()}, folder / "features.safetensors")
    return {"scenes": len(scenes)}


def load_features(artefact: Artefact) -> dict[str, Tensor]:
    """``{"scale_1.0": (N, 2, C, h, w) float16, ..., "tags": (N, K) bool}``."""
    return load_file(artefact.folder / "features.safetensors")


def scale_name(scale: float) -> str:
    """Name of a scale's tensor in the cache."""
    return f"scale_{float(scale)}"


def rescale(images: Tensor, scale: float) -> Tensor:
    """Images (B, 3, H, W) at another size, bilinear with antialiasing, sides rounded to whole pixels."""
    if scale == 1:
        return images
    size = [round(side * scale) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=scale < 1)
