"""What networks are trained on: scenes held in memory, or random views of photos read from disk.

A source is a pure function of (indices, generator): it draws random numbers for the whole batch,
and prepares the wanted part.  So the ranks of one job have the batch of one process.  Two sources
serve every training; stages give them their views.

Random numbers are the CPU's; views are made where the data lies (`device.placed`), and what is made
on the CPU for a GPU is handed on in pinned memory.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine.device import pinned
from aeft_lib.engine.samples import Batch

MemoryView = Callable[[Tensor, torch.Generator, slice], Batch]
PhotoView = Callable[[int, torch.Generator], Batch]


class InMemory:
    """Samples of one size; `view` takes all indices of a batch and gives the wanted samples."""

    def __init__(self, count: int, view: MemoryView, *, noise: bool = False) -> None:
        self.count, self.view, self.noise = count, view, noise

    def __call__(self, indices: Tensor, generator: torch.Generator, wanted: slice) -> Batch:
        batch = self.view(indices, generator, wanted)
        noise = _noise(indices, generator, wanted) if self.noise else None
        return _ready(batch._replace(noise=noise))


class OnDisk:
    """Photos of any size; `view` makes one sample of a photo, from a random stream of its own."""

    def __init__(self, count: int, view: PhotoView, *, noise: bool = False) -> None:
        self.count, self.view, self.noise = count, view, noise

    def __call__(self, indices: Tensor, generator: torch.Generator, wanted: slice) -> Batch:
        noise = _noise(indices, generator, wanted) if self.noise else None
        seeds = torch.randint(2**62, (len(indices),), generator=generator)[wanted].tolist()
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        samples = list(map(self.view, indices[wanted].tolist(), streams))
        fields = (None if f[0] is None else torch.stack(f) for f in zip(*samples, strict=True))
        return _ready(Batch(*fields)._replace(noise=noise))


def load_images(scenes: SceneSet) -> Tensor:
    """All scenes, of one size, as (N, 3, H, W) uint8: 126 MB for 640 of 256 px."""
    opened = scenes.open()
    images = np.stack([opened.image(i) for i in range(len(opened))])
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def load_tags(scenes: SceneSet) -> Tensor:
    """The tags of all scenes, (N, K) bool."""
    opened = scenes.open()
    return torch.from_numpy(np.stack([opened.tags(i) for i in range(len(opened))]))


def same_count(images: int, others: int, kind: str) -> int:
    """The number of images.  Raises ValueError where there are more or fewer of another kind."""
    if images != others:
        raise ValueError(f"there are {images} images and {others} {kind}")
    return images


def _ready(batch: Batch) -> Batch:
    return Batch(*(None if tensor is None else pinned(tensor) for tensor in batch))


def _noise(indices: Tensor, generator: torch.Generator, wanted: slice) -> Tensor:
    return torch.rand(len(indices), len(indices), generator=generator)[wanted]
