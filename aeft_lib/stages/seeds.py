"""Stage `infer_seeds`: the trained classifier read as CAMs over scales and mirror images, and its tag logits."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aeft_lib.classifier import CamClassifier
from aeft_lib.devices import device
from aeft_lib.runs import Artefact
from aeft_lib.seeds import Seed, combine_scales, write_seeds
from aeft_lib.stages.classifier import load_network
from aeft_lib.stages.features import load_features, scale_name


@dataclass(frozen=True)
class SeedSpec:
    """scales: of the passes, relative to the image; each plain and mirrored.  size: side of the image in pixels."""

    scales: tuple[float, ...]
    size: int


def infer_seeds(spec: SeedSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float]:
    """Read ``classifier`` and ``features``; write ``seeds.npz`` (see `aeft_lib.seeds`) and ``logits.safetensors``."""
    network = load_network(inputs["classifier"]).to(device())
    cache = load_features(inputs["features"])
    if cache["tags"].shape[1] != network.num_classes:
        raise ValueError(f"the data has K={cache['tags'].shape[1]} classes, the classifier K={network.num_classes}")
    names = (f"{i:05d}" for i in range(len(cache["tags"])))
    count = write_seeds(folder / "seeds.npz", zip(names, seed_stream(network, cache, spec), strict=True))
    save_file({"logits": tag_logits(network, cache), "tags": cache["tags"]}, folder / "logits.safetensors")
    return {"images": count}


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
