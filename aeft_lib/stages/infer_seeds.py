"""Stage `infer_seeds`: a trained classifier read as seeds by a reader, and its tag logits."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import ranks
from aeft_lib.engine.shards import over_images
from aeft_lib.maps.seeds import Seed, SeedWriter
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.cache_features import load_features, scale_name
from aeft_lib.stages.loading import load_network, ready
from aeft_lib.stages.method import Reader
from aeft_lib.stages.reading import LOGITS, seed_stream, tag_logits

SEEDS = "seeds.npz"


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
    if tags:  # on the main rank
        if features is None:
            scores = torch.stack(logits)
        else:
            plain = load_features(features, names=[scale_name(1)])
            scores = tag_logits(ready(load_network, classifier), plain)
        save_file({"logits": scores, "tags": torch.stack(tags)}, folder / LOGITS)
    return {"images": len(tags)}


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
