"""Rows of label maps, scene by scene."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from aeft_lib.data.scene import Scenes
from aeft_lib.maps.cam_fit import tagged_iou


def scores(maps: Sequence[np.ndarray], scenes: Scenes) -> pd.DataFrame:
    """Per scene: mean IoU over its tagged classes (%), and how many: ``scene, iou, classes``."""
    lines = []
    for index, labels in enumerate(maps):
        classes = np.flatnonzero(scenes.tags(index)).tolist()
        iou = 100 * tagged_iou(labels, scenes.mask(index), classes)
        lines.append({"scene": index, "iou": iou, "classes": len(classes)})
    return pd.DataFrame(lines)
