"""Readers: how a trained classifier and images become seeds, and the tag logits beside them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from aeft_lib.data.images import resized
from aeft_lib.engine.device import autocast
from aeft_lib.engine.samples import Batch
from aeft_lib.maps.seeds import combine_scales
from aeft_lib.stages.method import Method, Reading

LOGITS = "logits.safetensors"


@dataclass(frozen=True)
class MultiScale:
    """The reference's reader: CAMs over scales, each plain and mirrored, merged into one.

    Both go through the network together.  Tag logits are those of the plain pass at scale 1.
    scales: of the passes, relative to the image, 1 among them; () takes the profile's.
    """

    scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.scales and 1 not in self.scales:
            raise ValueError(f"scales must contain 1, where tags are scored, got {self.scales}")

    def fitted(self, scales: Sequence[float]) -> "MultiScale":
        """With the profile's scales where it names none."""
        return self if self.scales else replace(self, scales=tuple(scales))

    def from_images(
        self,
        method: Method,
        network: nn.Module,
        images: Sequence[np.ndarray],
        class_ids: Sequence[Tensor],
        precision: str = "fp32",
    ) -> list[Reading]:
        """A photo is resized before it is normalised, as in the reference."""
        size, where = images[0].shape[:2], next(network.parameters()).device

        def cams(scale: float) -> Tensor:
            sides = tuple(max(1, round(side * scale)) for side in size)
            pictures = np.stack([resized(image, sides) for image in images])
            pictures = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(where)
            plain = network.backbone.normalise(pictures)
            both = torch.stack([plain, plain.flip(-1)], dim=1).flatten(0, 1)
            return _cams(method, network, Batch(images=_channels_last(both)), precision)

        passes = ((scale, cams(scale)) for scale in self.scales)
        return _merged(passes, network.pooling, class_ids, size)

    def from_features(
        self,
        method: Method,
        network: nn.Module,
        features: Mapping[float, Tensor],
        class_ids: Sequence[Tensor],
        size: tuple[int, int],
        precision: str = "fp32",
    ) -> list[Reading]:
        """Each scale's features of the batch, plain and mirrored, in one pass."""
        where = next(network.parameters()).device

        def cams(scale: float) -> Tensor:
            both = _channels_last(features[scale].flatten(0, 1).to(where))
            return _cams(method, network, Batch(features=both), precision)

        passes = ((scale, cams(scale)) for scale in self.scales)
        return _merged(passes, network.pooling, class_ids, size)


def load_logits(artefact: Any) -> tuple[Tensor, Tensor]:
    """Tag logits (N, K) at scale 1 and the tags (N, K) of an `infer_seeds` artefact."""
    stored = load_file(artefact.folder / LOGITS)
    return stored["logits"], stored["tags"]


def _channels_last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


def _cams(method: Method, network: nn.Module, both: Batch, precision: str) -> Tensor:
    """Signed CAMs (B, 2, K, h, w) in fp32 of plain and mirrored views, which take turns."""
    where = next(network.parameters()).device
    with autocast(precision, where):
        return method.cam(network, both).float().unflatten(0, (-1, 2))


def _merged(
    passes: Iterable[tuple[float, Tensor]],
    pooling: nn.Module,
    class_ids: Sequence[Tensor],
    size: tuple[int, int],
) -> list[Reading]:
    """Readings of a batch; just the maps of tagged classes are brought to image size."""
    counts, scores, logits = [len(ids) for ids in class_ids], [], None
    image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    tagged = torch.cat(list(class_ids))
    for scale, cams in passes:
        if scale == 1:
            logits = pooling(cams[:, 0]).logits.cpu()
        scores += [maps[None] for maps in cams[image, :, tagged].unbind(1)]
    merged = combine_scales(scores, size=size)[0].cpu().split(counts)
    # Copies, since a part of a batch that goes to another process would take the batch along.
    return [Reading(cam.clone(), own) for cam, own in zip(merged, logits, strict=True)]
