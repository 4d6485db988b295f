"""The images of a scene set as a tensor, for stages that train on pixels.  No mask is within its reach."""

import numpy as np
import torch
from torch import Tensor

from aeft_lib.data.collages import Collages, SceneSpec, load_pack


def load_images(spec: SceneSpec) -> Tensor:
    """All scenes as (N, 3, H, W) uint8: 126 MB for 640 of 256 px."""
    scenes = Collages(spec, load_pack())
    images = np.stack([scenes[i].image for i in range(len(scenes))])
    return torch.from_numpy(images).permute(0, 3, 1, 2)
