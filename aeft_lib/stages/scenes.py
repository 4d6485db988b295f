"""The images of a scene set as a tensor, for stages that train on pixels.  No mask is within its reach."""

import numpy as np
import torch
from torch import Tensor

from aeft_lib.data.scenes import AnySpec, open_scenes


def load_images(spec: AnySpec) -> Tensor:
    """All scenes, of one size, as (N, 3, H, W) uint8: 126 MB for 640 of 256 px."""
    scenes = open_scenes(spec)
    images = np.stack([scenes.image(i) for i in range(len(scenes))])
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def load_tags(spec: AnySpec) -> Tensor:
    """The tags of all scenes, (N, K) bool."""
    scenes = open_scenes(spec)
    return torch.from_numpy(np.stack([scenes.tags(i) for i in range(len(scenes))]))
