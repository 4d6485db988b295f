"""Stage `train_affinity`: AffinityNet learns from two CRFs which pixels belong together.  No mask is within its reach."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from aeft_lib import trained, training
from aeft_lib.backbones.efficientnet_lite import EfficientNetLite0, normalise
from aeft_lib.data.collages import SceneSpec
from aeft_lib.devices import device
from aeft_lib.labels import with_rest
from aeft_lib.refinement import affinity
from aeft_lib.refinement.affinity_net import AffinityNet
from aeft_lib.refinement.propagation import CELL
from aeft_lib.runs import Artefact
from aeft_lib.seeds import read_seeds
from aeft_lib.stages import fitting
from aeft_lib.stages.scenes import load_images


@dataclass(frozen=True)
class AffinitySpec:
    """All that decides the weights, next to the two CRFs.  radius: of the pairs, in grid cells."""

    scenes: SceneSpec
    trained_stages: int
    schedule: training.Schedule
    seed: int
    radius: int = affinity.RADIUS


def build_affinity_net(spec: AffinitySpec) -> AffinityNet:
    """The network before training: ImageNet backbone, new layers drawn from the spec's seed."""
    return trained.build(lambda: AffinityNet(backbone=EfficientNetLite0(trained_stages=spec.trained_stages)), spec.seed)


def train_affinity(spec: AffinitySpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float | str]:
    """Train on ``inputs["posteriors"]`` (``low.npz``, ``high.npz``); write ``weights.safetensors`` and ``log.csv``."""
    network = build_affinity_net(spec).to(device())
    images, labels = load_images(spec.scenes), label_maps(inputs["posteriors"].folder)
    if len(labels) != len(images):
        raise ValueError(f"there are {len(images)} images and posteriors of {len(labels)}")

    def batch(indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        mirrored = torch.randint(2, (len(indices), 1, 1), generator=generator).bool()
        pictures, maps = images[indices], labels[indices]
        pictures = torch.where(mirrored[..., None], pictures.flip(-1), pictures)
        maps = torch.where(mirrored, maps.flip(-1), maps)
        return normalise(pictures.to(device())).contiguous(memory_format=torch.channels_last), maps.to(device())

    def terms(net: nn.Module, picked: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        features = net(picked[0])
        radius = affinity.effective_radius(tuple(features.shape[-2:]), spec.radius)
        found = affinity.affinity_loss(affinity.pair_affinity(features, radius), affinity.pair_labels(picked[1], radius))
        return {"background": found.background / 4, "foreground": found.foreground / 4, "negative": found.negative / 2}

    course = {"n_samples": len(images), "batch": batch, "losses": terms, "schedule": spec.schedule, "seed": spec.seed}
    return fitting.fit(network, folder, **course) | {"known": float((labels != affinity.VOID).float().mean())}


def label_maps(folder: Path) -> Tensor:
    """The grid's labels of every image, (N, h, w) uint8, from its two CRFs: rows of its scores, 0 background, 255 void."""
    pairs = zip(read_seeds(folder / "low.npz"), read_seeds(folder / "high.npz"), strict=True)
    maps = [affinity.affinity_labels(with_rest(low.cam), with_rest(high.cam), cell=CELL) for (_, low), (_, high) in pairs]
    return torch.stack(maps)


def load_affinity_net(artefact: Artefact) -> AffinityNet:
    """The trained network of a `train_affinity` artefact, in eval mode."""
    written = artefact.record["spec"]
    schedule, scenes = training.Schedule(**written["schedule"]), SceneSpec(**written["scenes"])
    network = build_affinity_net(AffinitySpec(**written | {"schedule": schedule, "scenes": scenes}))
    trained.load_trained(network, artefact.folder / fitting.WEIGHTS)
    return network.eval()
