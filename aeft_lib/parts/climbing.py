"""Seeds of an image from an optimisation of its own: AdvCAM climbs in pixels, RIB in weights.

Both are one loop: accumulate the CAM of a state, take a step, stop where a rule says so.  What is
accumulated are the maps *before* each step, so the first is the plain CAM.

The merge is that of IRNet's family: the ReLU before the enlarging, plain and mirrored maps added at
the size of the map, and the enlarged map of whole cells is cropped (`merged`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeft_lib.data.images import resized
from aeft_lib.engine.samples import Batch
from aeft_lib.stages.method import Method

EPS = 1e-5
CELL = 16  # pixels: the stride of the family's networks
QUARTER = 4  # the family stores maps at a quarter of the image too


class Climber(Protocol):
    """A state that can be read as maps and moved."""

    def read(self, step: int) -> Iterator[tuple[float, Tensor]]:
        """Scale and maps (M, h, w), not negative, of the state, one scale after the other."""

    def ends(self, step: int, scale: float, maps: Tensor) -> str:
        """Why the climb ends with the maps just read; "" where it goes on."""

    def move(self, step: int) -> str:
        """Take a step from the state that was read; why the climb ends after it, or ""."""


class Climb(NamedTuple):
    """sums: accumulated maps (M, h, w) by scale.  counts: how many maps are in each.

    stopped_in: the step in which it stopped, -1 where it ran through.  reason: why, or "".
    """

    sums: dict[float, Tensor]
    counts: dict[float, int]
    stopped_in: int = -1
    reason: str = ""


def accumulate(climber: Climber, steps: int) -> Climb:
    """Read, add, step, `steps` times, or until the climber ends it.

    After the last maps no step is taken: nothing would read it.  0 steps are 1, the plain CAM.
    Scales that come after the one at which it ends lack that step's maps.
    """
    sums: dict[float, Tensor] = {}
    counts: dict[float, int] = {}
    steps = max(1, steps)
    for step in range(steps):
        for scale, maps in climber.read(step):
            sums[scale] = sums[scale] + maps if scale in sums else maps
            counts[scale] = counts.get(scale, 0) + 1
            if reason := climber.ends(step, scale, maps):
                return Climb(sums, counts, step, reason)
        if step + 1 < steps and (reason := climber.move(step)):
            return Climb(sums, counts, step, reason)
    return Climb(sums, counts)


def merged(sums: Sequence[Tensor], size: tuple[int, int], *, cell: int = CELL) -> Tensor:
    """One CAM (M, H, W) in 0..1 of each class from its sums (M, h, w) at several scales.

    Each is enlarged, bilinear, to whole cells and cropped to the image; their sum is divided by its
    maximum + 1e-5.  A class that never fires is 0.  size: (H, W).
    """
    whole = tuple(-(-side // cell) * cell for side in size)
    total = sum(_enlarged(maps, whole) for maps in sums)[..., : size[0], : size[1]]
    return _over_peak(total)


def strided(sums: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """As `merged`, straight to a quarter of the image, (M, H/4, W/4) rounded up.

    So it is slightly stretched against `merged` where a side is no multiple of the cell.
    """
    quarter = tuple(-(-side // QUARTER) for side in size)
    return _over_peak(sum(_enlarged(maps, quarter) for maps in sums))


def views(images: Sequence[np.ndarray], scale: float, network: nn.Module) -> Tensor:
    """Images (H, W, 3) uint8 of one size at a scale, (B, 2, 3, h, w): plain and mirrored.

    Normalised for the network, where it lies; a photo is resized before it is normalised.
    """
    where = next(network.parameters()).device
    sides = tuple(max(1, round(side * scale)) for side in images[0].shape[:2])
    pictures = np.stack([resized(image, sides) for image in images])
    plain = network.backbone.normalise(torch.from_numpy(pictures).permute(0, 3, 1, 2).to(where))
    return torch.stack([plain, plain.flip(-1)], dim=1)


@torch.no_grad()
def plain_logits(method: Method, network: nn.Module, images: Sequence[np.ndarray]) -> Tensor:
    """Tag logits (B, K) of images of one size, as the classifier was trained, on the CPU."""
    plain = views(images, 1.0, network)[:, 0].contiguous(memory_format=torch.channels_last)
    return network.pooling(method.cam(network, Batch(images=plain))).logits.cpu()


def mean_numbers(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every number over lines that have it finite; NaN where none has."""
    names = dict.fromkeys(name for line in lines for name in line)
    values = {name: [line[name] for line in lines if np.isfinite(line[name])] for name in names}
    return {name: float(np.mean(of)) if of else float("nan") for name, of in values.items()}


def _enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def _over_peak(total: Tensor) -> Tensor:
    return total / (total.amax(dim=(1, 2), keepdim=True) + EPS)
