"""Stage `infer_seeds`: a trained classifier read as seeds by a reader, and its tag logits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aeft_lib.data.augment import resized
from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import ranks
from aeft_lib.engine.device import device
from aeft_lib.engine.samples import Batch, forward
from aeft_lib.engine.shards import over_images
from aeft_lib.maps.seeds import Seed, SeedWriter, combine_scales
from aeft_lib.stages.cache_features import load_features, scale_name
from aeft_lib.stages.fitting import ready
from aeft_lib.stages.method import Method, Reader, Reading
from aeft_lib.stages.store import Artefact
from aeft_lib.stages.train_classifier import load_network

SEEDS, LOGITS = "seeds.npz", "logits.safetensors"


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


@dataclass(frozen=True)
class SeedSpec:
    """reader: how an image is read.  data: fingerprint of the scenes."""

    scenes: SceneSet
    reader: Reader
    data: str


@ranks.collective
def infer_seeds(spec: SeedSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float]:
    """Read ``classifier``; write ``seeds.npz`` (see `maps.seeds`) and ``logits.safetensors``.

    Where there are ``features``, they are read in place of the images.
    """
    classifier, features = inputs["classifier"], inputs.get("features")
    count = len(spec.scenes.open())
    # Cached features are read in the time that further processes would take to start.
    most = 1 if features else 0
    readings = over_images(_read, count, spec, classifier, features, at_most=most)
    logits, tags = [], []
    with SeedWriter(folder / SEEDS) as writer:
        for name, seed, scores, tagged in readings:
            writer.add(name, seed)
            logits.append(scores)
            tags.append(tagged)
    if features is not None and ranks.is_main():
        logits = tag_logits(ready(load_network, classifier), load_features(features))
    if len(logits):
        logits = logits if isinstance(logits, Tensor) else torch.stack(logits)
        save_file({"logits": logits, "tags": torch.stack(tags)}, folder / LOGITS)
    return {"images": len(tags)}


def load_logits(artefact: Artefact) -> tuple[Tensor, Tensor]:
    """Tag logits (N, K) at scale 1 and the tags (N, K) of an `infer_seeds` artefact."""
    stored = load_file(artefact.folder / LOGITS)
    return stored["logits"], stored["tags"]


@torch.inference_mode()
def tag_logits(network: nn.Module, cache: dict[str, Tensor], batch: int = 16) -> Tensor:
    """Logits (N, K) of the plain images at scale 1."""
    parts = cache[scale_name(1.0)][:, 0].split(batch)
    batches = (Batch(features=part.to(device()).float()) for part in parts)
    return torch.cat([forward(network, part).logits.cpu() for part in batches])


@torch.inference_mode()
def seed_stream(
    method: Method, network: nn.Module, cache: dict[str, Tensor], reader: Reader, size: int
) -> Iterator[Seed]:
    """Seeds of cached scenes, tagged classes only."""
    scales = {float(k.removeprefix("scale_")): v for k, v in cache.items() if k != "tags"}
    for i, tags in enumerate(cache["tags"]):
        class_ids = tags.nonzero()[:, 0]
        features = {scale: maps[i] for scale, maps in scales.items()}
        reading = reader.from_features(method, network, features, class_ids, size)
        yield Seed(class_ids, reading.cam)


@torch.inference_mode()
def _read(
    indices: range, spec: SeedSpec, classifier: Artefact, features: Artefact | None
) -> list[tuple[str, Seed, Tensor | None, Tensor]]:
    """Name, seed, logits and tags of these scenes."""
    network, method = ready(load_network, classifier), classifier.spec.method
    names = [f"{index:05d}" for index in indices]
    if features is not None:
        cache = load_features(features, slice(indices.start, indices.stop))
        _check_classes(cache["tags"].shape[1], network)
        seeds = seed_stream(method, network, cache, spec.reader, spec.scenes.size)
        lines = zip(names, seeds, cache["tags"], strict=True)
        return [(name, seed, None, tags) for name, seed, tags in lines]
    scenes, lines = spec.scenes.open(), []
    _check_classes(len(scenes.classes), network)
    for name, index in zip(names, indices, strict=True):
        tags = torch.from_numpy(scenes.tags(index))
        class_ids = tags.nonzero()[:, 0]
        cam, logits = spec.reader.from_image(method, network, scenes.image(index), class_ids)
        lines.append((name, Seed(class_ids, cam), logits, tags))
    return lines


def _check_classes(num_classes: int, network: nn.Module) -> None:
    if num_classes != network.num_classes:
        raise ValueError(
            f"the data has K={num_classes} classes, the classifier K={network.num_classes}"
        )
