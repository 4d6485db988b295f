"""Readers: how a trained classifier and an image become a seed, and the tag logits beside it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from aeft_lib.data.images import resized
from aeft_lib.engine.device import device
from aeft_lib.engine.samples import Batch, forward
from aeft_lib.maps.seeds import Seed, combine_scales
from aeft_lib.stages.method import Method, Reader, Reading

LOGITS = "logits.safetensors"
PREFIX = "scale_"  # of a scale's tensor in a cache of features


@dataclass(frozen=True)
class MultiScale:
    """The reference's reader: CAMs over scales, each plain and mirrored, merged into one.

    scales: of the passes, relative to the image; () takes the profile's.
    """

    scales: tuple[float, ...] = ()

    def fitted(self, scales: Sequence[float]) -> "MultiScale":
        """With the profile's scales where it names none."""
        return self if self.scales else replace(self, scales=tuple(scales))

    def from_image(
        self, method: Method, network: nn.Module, image: np.ndarray, class_ids: Tensor
    ) -> Reading:
        """A photo is resized before it is normalised, as in the reference."""
        where, scores, logits = next(network.parameters()).device, [], None
        for scale in self.scales:
            sides = tuple(max(1, round(side * scale)) for side in image.shape[:2])
            picture = torch.from_numpy(resized(image, sides).copy()).permute(2, 0, 1)[None]
            plain = network.backbone.normalise(picture.to(where))
            plain = plain.contiguous(memory_format=torch.channels_last)
            cam = method.cam(network, Batch(images=plain))
            logits = network.pooling(cam).logits[0].cpu() if scale == 1 else logits
            mirrored = method.cam(network, Batch(images=plain.flip(-1)))
            scores += [maps[:, class_ids.to(where)] for maps in (cam, mirrored)]
        return Reading(combine_scales(scores, size=image.shape[:2])[0].cpu(), logits)

    def from_features(
        self,
        method: Method,
        network: nn.Module,
        features: Mapping[float, Tensor],
        class_ids: Tensor,
        size: int,
    ) -> Reading:
        """Each scale's plain and mirrored features in one pass."""
        where, scores = next(network.parameters()).device, []
        for scale in self.scales:
            both = features[scale].to(where).contiguous(memory_format=torch.channels_last)
            maps = method.cam(network, Batch(features=both))
            scores += maps[:, class_ids.to(where)].split(1)
        return Reading(combine_scales(scores, size=(size, size))[0].cpu(), None)


def load_logits(artefact: Any) -> tuple[Tensor, Tensor]:
    """Tag logits (N, K) at scale 1 and the tags (N, K) of an `infer_seeds` artefact."""
    stored = load_file(artefact.folder / LOGITS)
    return stored["logits"], stored["tags"]


@torch.inference_mode()
def tag_logits(network: nn.Module, cache: dict[str, Tensor], batch: int = 16) -> Tensor:
    """Logits (N, K) of the plain images at scale 1."""
    parts = cache[f"{PREFIX}1.0"][:, 0].split(batch)
    batches = (Batch(features=part.to(device()).float()) for part in parts)
    return torch.cat([forward(network, part).logits.cpu() for part in batches])


@torch.inference_mode()
def seed_stream(
    method: Method, network: nn.Module, cache: dict[str, Tensor], reader: Reader, size: int
) -> Iterator[Seed]:
    """Seeds of cached scenes, tagged classes only."""
    scales = {float(k.removeprefix(PREFIX)): v for k, v in cache.items() if k != "tags"}
    for i, tags in enumerate(cache["tags"]):
        class_ids = tags.nonzero()[:, 0]
        features = {scale: maps[i] for scale, maps in scales.items()}
        reading = reader.from_features(method, network, features, class_ids, size)
        yield Seed(class_ids, reading.cam)
