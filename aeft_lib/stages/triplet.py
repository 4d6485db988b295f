"""Stage `train_triplet`: the second phase, a trained classifier goes on with what the triplet adds.

No mask is within its reach.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from aeft_lib import training, triplet
from aeft_lib.backbones.efficientnet_lite import normalise
from aeft_lib.data.collages import SceneSpec
from aeft_lib.devices import device
from aeft_lib.runs import Artefact
from aeft_lib.stages import fitting
from aeft_lib.stages.classifier import ClassifierSpec, load_network
from aeft_lib.stages.features import load_features, scale_name
from aeft_lib.stages.scenes import load_images
from aeft_lib.trained import save_trained


@dataclass(frozen=True)
class TripletSpec:
    """All that decides the weights, next to the warm start and the features.

    warm_start: the spec of ``inputs["classifier"]``.  scenes: the training scenes, whose images are masked.
    keep_epochs: write the weights of every epoch, for curves over time.
    """

    warm_start: ClassifierSpec
    scenes: SceneSpec
    triplet: triplet.Triplet
    schedule: training.Schedule
    keep_epochs: bool = False


def train_triplet(spec: TripletSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float | str]:
    """Go on from ``inputs["classifier"]``; write ``weights.safetensors``, ``log.csv``; on demand ``epoch_1.safetensors``..."""
    network = load_network(inputs["classifier"]).to(device())
    cache = load_features(inputs["features"])
    features, tags, images = cache[scale_name(1.0)], cache["tags"], load_images(spec.scenes)

    def batch(indices: Tensor, generator: torch.Generator) -> triplet.Batch:
        mirrored = torch.randint(2, (len(indices),), generator=generator)
        noise = torch.rand(len(indices), len(indices), generator=generator)
        plain = normalise(images[indices])
        pictures = torch.where(mirrored[:, None, None, None] == 1, plain.flip(-1), plain)
        picked = features[indices, mirrored].to(device(), non_blocking=True).float()
        return triplet.Batch(
            pictures.to(device(), memory_format=torch.channels_last, non_blocking=True),
            picked.contiguous(memory_format=torch.channels_last),
            tags[indices].to(device(), non_blocking=True),
            noise.to(device(), non_blocking=True),
        )

    def terms(net: nn.Module, picked: triplet.Batch) -> dict[str, Tensor]:
        return triplet.terms(net, picked, spec.triplet)

    def after_epoch(epoch: int) -> None:
        if spec.keep_epochs:
            save_trained(network, folder / f"epoch_{epoch}.safetensors")

    return fitting.fit(
        network,
        folder,
        n_samples=len(tags),
        batch=batch,
        losses=terms,
        schedule=spec.schedule,
        seed=spec.warm_start.seed,
        after_epoch=after_epoch,
    )
