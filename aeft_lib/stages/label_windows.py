"""Stage `label_windows`: the windows of every training scene, and the tags that each is left with.

PMM's training on windows (Li et al., ICCV 2021).  A window shows a part of a scene, so not all of
the scene's tags hold in it.  With mu = {Q > 0.9}, where Q is the posterior of a CRF on seeds, a
class stays in window w where ``|mu and w| / |mu| > 0.1`` or ``|mu and w| / |w| > 0.1``.
It reads no mask.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine.fields import choice, fraction
from aeft_lib.maps.seeds import read_seeds
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.map_source import WINDOWS_FILE
from aeft_lib.stages.multi_crop import Box, MultiCrop, windows

CERTAIN, OVERLAP = 0.9, 0.1


@dataclass(frozen=True)
class WindowSpec:
    """reader: whose windows these are.

    power: of the background, of ``low, middle, high``, whose posteriors are read.
    certain: a posterior above it is the class.  overlap: of a class, or of the window, that is
        enough to keep the tag.
    """

    scenes: SceneSet
    num_classes: int
    reader: MultiCrop
    power: str = "high"
    certain: float = CERTAIN
    overlap: float = OVERLAP

    def __post_init__(self) -> None:
        fraction(self, "certain", "overlap")
        choice(self, power=("low", "middle", "high"))


def label_windows(
    spec: WindowSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Read ``posteriors``; write ``windows.safetensors``, a line a window: ``boxes`` (left,
    top, right, bottom), ``places`` (scene, scale), ``tags`` (K,) uint8.

    The summary has the number of windows, the mean part of the scene's tags that a window keeps,
    and the part of windows without any.
    """
    boxes, places, tags, kept = [], [], [], []
    file = inputs["posteriors"].folder / f"{spec.power}.npz"
    for index, (_, seed) in enumerate(read_seeds(file)):
        for number, scale in enumerate(spec.reader.scales):
            own = _windows(seed.cam.shape[1:], scale, spec.reader)
            stays = window_tags(seed.cam, own, certain=spec.certain, overlap=spec.overlap)
            of_scene = torch.zeros(len(own), spec.num_classes, dtype=torch.uint8)
            of_scene[:, seed.class_ids] = stays.to(torch.uint8)
            boxes += own
            places += [(index, number)] * len(own)
            tags.append(of_scene)
            if len(seed.class_ids):
                kept.append(stays.float().mean(dim=1))
    labels = torch.cat(tags)
    tensors = {"boxes": torch.tensor(boxes), "places": torch.tensor(places), "tags": labels}
    save_file(tensors, folder / WINDOWS_FILE)
    return {
        "windows": len(labels),
        "tags_kept": float(torch.cat(kept).mean()) if kept else 0.0,
        "empty_windows": float((labels.sum(dim=1) == 0).float().mean()),
    }


def _windows(size: tuple[int, int], scale: float, reader: MultiCrop) -> list[Box]:
    longer = max(size)
    crop, stride = reader.crop or round(0.9 * longer), reader.stride or round(0.6 * longer)
    return windows(tuple(size), scale, crop=crop, stride=stride, short=reader.short_windows)


def window_tags(
    posteriors: Tensor, boxes: list[Box], *, certain: float = CERTAIN, overlap: float = OVERLAP
) -> Tensor:
    """Which classes stay in each window, (n, K') bool.

    posteriors: (K', H, W) in 0..1, of the tagged classes.  A class that is nowhere certain stays in
    no window.

    >>> q = torch.zeros(1, 1, 20)
    >>> q[..., :10] = 1.0
    >>> window_tags(q, [Box(0, 0, 1, 1), Box(0, 0, 2, 1), Box(9, 0, 20, 1)])[:, 0].tolist()
    [True, True, False]
    """
    sure = posteriors > certain
    areas = sure.sum(dim=(1, 2)).clamp(min=1)
    rows = []
    for left, top, right, bottom in boxes:
        inside = sure[:, top:bottom, left:right].sum(dim=(1, 2))
        size = (bottom - top) * (right - left)
        rows.append((inside / areas > overlap) | (inside / size > overlap))
    return torch.stack(rows)
