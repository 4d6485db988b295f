"""The images of a scene set as a tensor, for stages that train on pixels.  No mask is within its reach."""

import numpy as np
import torch
from torch import Tensor

from aeft_lib.data.scene import SceneSet


def load_images(spec: SceneSet) -> Tensor:
    """All scenes, of one size, as (N, 3, H, W) uint8: 126 MB for 640 of 256 px."""
    scenes = spec.open()
    images = np.stack([scenes.image(i) for i in range(len(scenes))])
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def load_tags(spec: SceneSet) -> Tensor:
    """The tags of all scenes, (N, K) bool."""
    scenes = spec.open()
    return torch.from_numpy(np.stack([scenes.tags(i) for i in range(len(scenes))]))
