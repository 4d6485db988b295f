"""Seeds and tag logits of cached scenes, a batch of features at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from aeft_lib.engine.batches import batches
from aeft_lib.engine.device import batch_pixels
from aeft_lib.maps.seeds import Seed
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.cache_features import PREFIX, load_features
from aeft_lib.stages.method import Method, Reader


@torch.inference_mode()
def read_cached(
    method: Method,
    network: nn.Module,
    features: Artefact,
    indices: range,
    reader: Reader,
    size: tuple[int, int],
    precision: str = "fp32",
) -> Iterator[tuple[Seed, Tensor, Tensor]]:
    """Seed (tagged classes alone), tag logits (K,) and tags (K,) of cached scenes of one size.

    No more than a batch of features is in memory.
    """
    for part in batches(indices, size, batch_pixels(precision)):
        cache = load_features(features, slice(part.start, part.stop))
        all_tags = cache.pop("tags")
        scales = {float(name.removeprefix(PREFIX)): maps for name, maps in cache.items()}
        class_ids = [tags.nonzero()[:, 0] for tags in all_tags]
        readings = reader.from_features(method, network, scales, class_ids, size, precision)
        for ids, tags, (cam, logits) in zip(class_ids, all_tags, readings, strict=True):
            yield Seed(ids, cam), logits, tags
