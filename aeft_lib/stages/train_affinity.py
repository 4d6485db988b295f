"""Stage `train_affinity`: AffinityNet learns from two CRFs which pixels belong together.  No mask is within its reach."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aeft_lib.data.augment import ViewSpec, paired_crop
from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import loop, ranks
from aeft_lib.engine.device import device
from aeft_lib.engine.step import PLAIN, Compute, Objective
from aeft_lib.maps.labels import with_rest
from aeft_lib.maps.seeds import SeedReader, read_seeds
from aeft_lib.networks import state
from aeft_lib.networks.registry import BackboneSpec, build_backbone
from aeft_lib.refinement import affinity
from aeft_lib.refinement.affinity_net import AffinityNet
from aeft_lib.refinement.propagation import CELL
from aeft_lib.stages import fitting
from aeft_lib.stages.load_scenes import load_images
from aeft_lib.stages.store import Artefact

DROPOUT = (0.3, 0.5)  # of ResNet38d here


@dataclass(frozen=True)
class AffinitySpec:
    """All that decides the weights, next to the two CRFs.

    view: random crops of the scenes; None: whole scenes, mirrored.  radius: of the pairs, in grid cells.
    """

    scenes: SceneSet
    backbone: BackboneSpec
    schedule: loop.Schedule
    seed: int
    view: ViewSpec | None = None
    compute: Compute = PLAIN
    radius: int = affinity.RADIUS


class Samples(NamedTuple):
    """images: (B, 3, H, W) in the backbone's range.  labels: (B, h, w) uint8 on the grid: 0 background, 255 void."""

    images: Tensor
    labels: Tensor


def build_affinity_net(backbone: BackboneSpec, seed: int, *, checkpointing: bool = False) -> AffinityNet:
    """The network before training: ImageNet backbone, new layers drawn from the seed."""

    def make() -> AffinityNet:
        return AffinityNet(backbone=build_backbone(backbone, dropout=DROPOUT, checkpointing=checkpointing))

    return state.build(make, seed)


@ranks.collective
def train_affinity(spec: AffinitySpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float | str]:
    """Train on ``inputs["posteriors"]`` (``low.npz``, ``high.npz``); write what `fitting.fit` writes.

    Of whole scenes the summary has ``known``: the part of the grid that the two CRFs are sure of.
    """
    network = build_affinity_net(spec.backbone, spec.seed, checkpointing=spec.compute.checkpointing).to(device())
    source = (RandomCrops if spec.view else WholeScenes)(spec, inputs["posteriors"].folder, network.backbone.normalise)

    def measure(net: nn.Module, samples: Samples) -> dict[str, Tensor]:
        features = net(samples.images)
        radius = affinity.effective_radius(tuple(features.shape[-2:]), spec.radius)
        pairs = affinity.pair_affinity(features.float(), radius)
        sums, counts = affinity.loss_sums(pairs, affinity.pair_labels(samples.labels, radius))
        return {"sums": sums[None], "counts": counts[None]}

    def combine(measures: dict[str, Tensor]) -> dict[str, Tensor]:
        found = affinity.mean_loss(measures["sums"].sum(dim=0), measures["counts"].sum(dim=0))
        return {"background": found.background / 4, "foreground": found.foreground / 4, "negative": found.negative / 2}

    course = {"schedule": spec.schedule, "seed": spec.seed, "compute": spec.compute, "objective": Objective(measure, combine)}
    return fitting.fit(network, folder, n_samples=source.count, batch=source, **course) | source.summary


class WholeScenes:
    """Scenes of one size, with the label map that their two CRFs give, mirrored together half the time."""

    def __init__(self, spec: AffinitySpec, posteriors: Path, normalise: object) -> None:
        self.images, self.labels, self.normalise = load_images(spec.scenes), label_maps(posteriors), normalise
        self.count, known = len(self.images), float((self.labels != affinity.VOID).float().mean())
        self.summary = {"known": known}
        if len(self.labels) != self.count:
            raise ValueError(f"there are {self.count} images and posteriors of {len(self.labels)}")

    def __call__(self, indices: Tensor, generator: torch.Generator, wanted: slice) -> Samples:
        mirrored = torch.randint(2, (len(indices), 1, 1), generator=generator).bool()[wanted]
        indices = indices[wanted]
        pictures, maps = self.images[indices], self.labels[indices]
        pictures = torch.where(mirrored[..., None], pictures.flip(-1), pictures)
        return Samples(self.normalise(pictures), torch.where(mirrored, maps.flip(-1), maps))


class RandomCrops:
    """Random crops of photos together with their two CRFs, as the reference trains; padding is black, its labels void."""

    def __init__(self, spec: AffinitySpec, posteriors: Path, normalise: object) -> None:
        self.scenes, self.view, self.normalise = spec.scenes.open(), spec.view, normalise
        self.low, self.high = (SeedReader(posteriors / f"{name}.npz") for name in ("low", "high"))
        self.count, self.summary = len(self.scenes), {}
        if len(self.low.names) != self.count:
            raise ValueError(f"there are {self.count} images and posteriors of {len(self.low.names)}")
        if spec.view.crop % CELL:
            raise ValueError(f"a crop for AffinityNet must be a multiple of {CELL}, got {spec.view.crop}")

    def __call__(self, indices: Tensor, generator: torch.Generator, wanted: slice) -> Samples:
        seeds = torch.randint(2**62, (len(indices),), generator=generator)[wanted].tolist()
        drawn = [
            self._one(i, torch.Generator().manual_seed(seed)) for i, seed in zip(indices[wanted].tolist(), seeds, strict=True)
        ]
        pictures, labels = (torch.stack(items) for items in zip(*drawn, strict=True))
        return Samples(self.normalise(pictures), labels)

    def _one(self, index: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = [with_rest(reader[f"{index:05d}"].cam) for reader in (self.low, self.high)]
        picture, (low, high) = paired_crop(self.scenes.image(index), rows, [0.0, 0.0], generator, self.view)
        return picture, affinity.affinity_labels(low, high, cell=CELL)


def label_maps(folder: Path) -> Tensor:
    """The grid's labels of every image, (N, h, w) uint8, from its two CRFs: rows of its scores, 0 background, 255 void."""
    pairs = zip(read_seeds(folder / "low.npz"), read_seeds(folder / "high.npz"), strict=True)
    maps = [affinity.affinity_labels(with_rest(low.cam), with_rest(high.cam), cell=CELL) for (_, low), (_, high) in pairs]
    return torch.stack(maps)


def load_affinity_net(artefact: Artefact) -> AffinityNet:
    """The trained network of a `train_affinity` artefact, in eval mode."""
    spec = artefact.record["spec"]
    network = build_affinity_net(BackboneSpec(**spec["backbone"]), spec["seed"])
    state.load_trained(network, artefact.folder / fitting.WEIGHTS)
    return network.eval()
