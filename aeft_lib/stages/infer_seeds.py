"""Stage `infer_seeds`: the trained classifier read as CAMs over scales and mirror images, and its tag logits."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aeft_lib.data.augment import resized
from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import ranks
from aeft_lib.engine.device import device
from aeft_lib.engine.shards import over_images
from aeft_lib.maps.seeds import Seed, SeedWriter, combine_scales, write_seeds
from aeft_lib.paper.classifier import CamClassifier
from aeft_lib.stages.cache_features import load_features, scale_name
from aeft_lib.stages.fitting import ready
from aeft_lib.stages.store import Artefact
from aeft_lib.stages.train_classifier import load_network


@dataclass(frozen=True)
class SeedSpec:
    """scales: of the passes, relative to the image; each plain and mirrored.  size: side of the image in pixels."""

    scales: tuple[float, ...]
    size: int


@dataclass(frozen=True)
class PhotoSeedSpec:
    """scenes: photos of any size, which seeds are made at.  scales: as above.  data: fingerprint of the scenes."""

    scenes: SceneSet
    scales: tuple[float, ...]
    data: str


def infer_seeds(spec: SeedSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float]:
    """Read ``classifier`` and ``features``; write ``seeds.npz`` (see `aeft_lib.maps.seeds`) and ``logits.safetensors``."""
    network = load_network(inputs["classifier"]).to(device())
    cache = load_features(inputs["features"])
    _check_classes(cache["tags"].shape[1], network)
    names = (f"{i:05d}" for i in range(len(cache["tags"])))
    count = write_seeds(folder / "seeds.npz", zip(names, seed_stream(network, cache, spec), strict=True))
    save_file({"logits": tag_logits(network, cache), "tags": cache["tags"]}, folder / "logits.safetensors")
    return {"images": count}


@ranks.collective
def infer_photo_seeds(spec: PhotoSeedSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float]:
    """Read ``classifier``; write what `infer_seeds` writes, for photos, each at its own size."""
    scenes = spec.scenes.open()
    logits, tags = [], []
    with SeedWriter(folder / "seeds.npz") as writer:
        for name, seed, found, tagged in over_images(_photo_seeds, len(scenes), spec, inputs["classifier"]):
            writer.add(name, seed)
            logits.append(found)
            tags.append(tagged)
    if logits:
        save_file({"logits": torch.stack(logits), "tags": torch.stack(tags)}, folder / "logits.safetensors")
    return {"images": len(logits)}


def load_logits(artefact: Artefact) -> tuple[Tensor, Tensor]:
    """Tag logits (N, K) at scale 1 and the tags (N, K) of an `infer_seeds` artefact."""
    stored = load_file(artefact.folder / "logits.safetensors")
    return stored["logits"], stored["tags"]


@torch.inference_mode()
def tag_logits(network: CamClassifier, cache: dict[str, Tensor], batch: int = 16) -> Tensor:
    """Logits (N, K) of the plain images at scale 1."""
    plain = cache[scale_name(1.0)][:, 0]
    return torch.cat([network.from_trunk(part.to(device()).float()).logits.cpu() for part in plain.split(batch)])


@torch.inference_mode()
def seed_stream(network: CamClassifier, cache: dict[str, Tensor], spec: SeedSpec) -> Iterator[Seed]:
    """Seeds image by image: each scale's plain and mirrored features in one pass, tagged classes only."""
    for i, tags in enumerate(cache["tags"]):
        class_ids = tags.nonzero()[:, 0]
        scores: list[Tensor] = []
        for scale in spec.scales:
            features = cache[scale_name(scale)][i].to(device()).contiguous(memory_format=torch.channels_last)
            scores += network.cam(features)[:, class_ids.to(device())].split(1)
        yield Seed(class_ids, combine_scales(scores, size=(spec.size, spec.size))[0].cpu())


@torch.inference_mode()
def _photo_seeds(indices: range, spec: PhotoSeedSpec, classifier: Artefact) -> list[tuple[str, Seed, Tensor, Tensor]]:
    """Name, seed, logits and tags of these photos; photos are resized before they are normalised, as in the reference."""
    network, scenes = ready(load_network, classifier), spec.scenes.open()
    _check_classes(len(scenes.classes), network)
    found = []
    for index in indices:
        image, tags = scenes.image(index), torch.from_numpy(scenes.tags(index))
        class_ids, scores, logits = tags.nonzero()[:, 0], [], None
        for scale in spec.scales:
            sides = tuple(max(1, round(side * scale)) for side in image.shape[:2])
            picture = torch.from_numpy(resized(image, sides).copy()).permute(2, 0, 1)[None].to(device())
            plain = network.backbone.normalise(picture).contiguous(memory_format=torch.channels_last)
            output = network(plain)
            logits = output.logits[0].cpu() if scale == 1 else logits
            mirrored = network.cam(network.backbone.trunk(plain.flip(-1)))
            scores += [maps[:, class_ids.to(device())] for maps in (output.cam, mirrored)]
        seed = Seed(class_ids, combine_scales(scores, size=image.shape[:2])[0].cpu())
        found.append((f"{index:05d}", seed, logits, tags))
    return found


def _check_classes(num_classes: int, network: CamClassifier) -> None:
    if num_classes != network.num_classes:
        raise ValueError(f"the data has K={num_classes} classes, the classifier K={network.num_classes}")
