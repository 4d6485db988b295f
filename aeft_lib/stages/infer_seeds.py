"""Stage `infer_seeds`: a trained classifier read as seeds by a reader, and its tag logits."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import ranks
from aeft_lib.engine.batches import image_batches
from aeft_lib.engine.device import batch_pixels
from aeft_lib.engine.shards import over_images
from aeft_lib.maps.seeds import Seed, SeedWriter
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.cache_features import load_features
from aeft_lib.stages.loading import load_network, ready
from aeft_lib.stages.method import Reader
from aeft_lib.stages.read_cached import read_cached
from aeft_lib.stages.reading import LOGITS

SEEDS = "seeds.npz"


@dataclass(frozen=True)
class SeedSpec:
    """reader: how an image is read.  data: fingerprint of the scenes.

    precision: of the network, see `device.inference_precision`.
    """

    scenes: SceneSet
    reader: Reader
    data: str
    precision: str = "fp32"


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
    all_logits, all_tags = [], []
    with SeedWriter(folder / SEEDS) as writer:
        for index, (seed, logits, tags) in enumerate(readings):
            writer.add(f"{index:05d}", seed)
            # Numbers: small tensors that stay keep the heap around them from being used again.
            all_logits.append(logits.tolist())
            all_tags.append(tags.tolist())
    if all_tags:  # on the main rank
        tensors = {"logits": torch.tensor(all_logits), "tags": torch.tensor(all_tags)}
        save_file(tensors, folder / LOGITS)
    return {"images": len(all_tags)}


def _read(
    indices: range, spec: SeedSpec, classifier: Artefact, features: Artefact | None
) -> list[tuple[Seed, Tensor, Tensor]]:
    """Seed, logits and tags of these scenes."""
    network, method = ready(load_network, classifier), classifier.spec.method
    if features is None:
        _check_classes(len(spec.scenes.open().classes), network)
        read = dict(_read_images(indices, spec, classifier))
        return [read[index] for index in indices]
    _check_classes(load_features(features, slice(0, 1), names=["tags"])["tags"].shape[1], network)
    size = (spec.scenes.size,) * 2
    read = read_cached(method, network, features, indices, spec.reader, size, spec.precision)
    return list(read)


@torch.inference_mode()
def _read_images(
    indices: range, spec: SeedSpec, classifier: Artefact
) -> Iterator[tuple[int, tuple[Seed, Tensor, Tensor]]]:
    """Index, and seed, logits and tags of each scene, as their sizes fill batches."""
    network, method = ready(load_network, classifier), classifier.spec.method
    scenes = spec.scenes.open()
    for part, images in image_batches(scenes.image, indices, batch_pixels(spec.precision)):
        all_tags = [torch.from_numpy(scenes.tags(index)) for index in part]
        class_ids = [tags.nonzero()[:, 0] for tags in all_tags]
        readings = spec.reader.from_images(method, network, images, class_ids, spec.precision)
        for index, ids, tags, (cam, logits) in zip(
            part, class_ids, all_tags, readings, strict=True
        ):
            yield index, (Seed(ids, cam), logits, tags)


def _check_classes(num_classes: int, network: nn.Module) -> None:
    if num_classes != network.num_classes:
        raise ValueError(
            f"the data has K={num_classes} classes, the classifier K={network.num_classes}"
        )
