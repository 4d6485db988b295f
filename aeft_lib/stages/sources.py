"""What a classifier is trained on: cached features of whole scenes, or random views of photos.  No mask is in their reach.

A source is a pure function of (indices, generator): it draws what is random for the whole batch, and prepares the wanted part
of it.  So the ranks of one job see the batch that one process would see.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from aeft_lib.data.augment import ViewSpec, training_view
from aeft_lib.data.scene import SceneSet
from aeft_lib.paper.triplet import Batch
from aeft_lib.stages.cache_features import load_features, scale_name
from aeft_lib.stages.load_scenes import load_images, load_tags
from aeft_lib.stages.store import Artefact

Normalise = Callable[[Tensor], Tensor]


class Source(Protocol):
    """tags: (N, K) bool of all samples."""

    tags: Tensor

    def __call__(self, indices: Tensor, generator: torch.Generator, wanted: slice) -> Batch:
        """The wanted ones of these samples."""


def open_source(
    scenes: SceneSet, view: ViewSpec | None, inputs: Mapping[str, Artefact], normalise: Normalise, *, pairs: bool
) -> Source:
    """The source of a scene set: random views where there is a `view`, else ``inputs["features"]``, cached.

    pairs: images to erase from and noise to draw negatives with are needed as well.
    """
    if view:
        return RandomViews(scenes, view, normalise, pairs)
    return CachedFeatures(scenes, inputs["features"], normalise, pairs)


class CachedFeatures:
    """Features of the frozen trunk for whole scenes, mirrored half the time."""

    def __init__(self, scenes: SceneSet, features: Artefact, normalise: Normalise, pairs: bool) -> None:
        cache = load_features(features)
        self.features, self.tags, self.normalise = cache[scale_name(1.0)], cache["tags"], normalise
        self.images = load_images(scenes) if pairs else None

    def __call__(self, indices: Tensor, generator: torch.Generator, wanted: slice) -> Batch:
        mirrored = torch.randint(2, (len(indices),), generator=generator)[wanted]
        noise = images = None
        if self.images is not None:
            noise = torch.rand(len(indices), len(indices), generator=generator)[wanted]
            plain = self.normalise(self.images[indices[wanted]])
            images = torch.where(mirrored[:, None, None, None] == 1, plain.flip(-1), plain)
        indices = indices[wanted]
        return Batch(images, self.features[indices, mirrored], self.tags[indices], noise)


class RandomViews:
    """Random views of photos as the paper trains on them, read from disk as they are needed."""

    def __init__(self, scenes: SceneSet, view: ViewSpec, normalise: Normalise, pairs: bool) -> None:
        self.scenes, self.view, self.normalise, self.pairs = scenes.open(), view, normalise, pairs
        self.tags = load_tags(scenes)

    def __call__(self, indices: Tensor, generator: torch.Generator, wanted: slice) -> Batch:
        noise = torch.rand(len(indices), len(indices), generator=generator)[wanted] if self.pairs else None
        seeds = torch.randint(2**62, (len(indices),), generator=generator)[wanted].tolist()
        indices = indices[wanted]
        views = [
            training_view(self.scenes.image(i), torch.Generator().manual_seed(seed), self.view, self.normalise)
            for i, seed in zip(indices.tolist(), seeds, strict=True)
        ]
        return Batch(torch.stack(views), None, self.tags[indices], noise)
