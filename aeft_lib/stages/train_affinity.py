"""Stage `train_affinity`: AffinityNet learns pairs of pixels from two CRFs.  It reads no mask."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from aeft_lib.data.augment import ViewSpec, paired_crop
from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import loop, ranks
from aeft_lib.engine.device import device
from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import Schedule
from aeft_lib.engine.step import PLAIN, Compute, Objective
from aeft_lib.maps.labels import with_rest
from aeft_lib.maps.seeds import SeedReader, read_seeds
from aeft_lib.networks.backbone import BackboneSpec
from aeft_lib.refinement import affinity
from aeft_lib.refinement.propagation import CELL
from aeft_lib.stages import fitting
from aeft_lib.stages.affinity_nets import build_affinity_net
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.sources import InMemory, OnDisk, load_images, same_count


@dataclass(frozen=True)
class AffinitySpec:
    """All that decides the weights, besides the two CRFs.

    view: random crops of the scenes; None: whole scenes, mirrored.
    radius: of the pairs, in grid cells.
    """

    scenes: SceneSet
    backbone: BackboneSpec
    schedule: Schedule
    seed: int
    view: ViewSpec | None = None
    compute: Compute = PLAIN
    radius: int = affinity.RADIUS


@ranks.collective
def train_affinity(
    spec: AffinitySpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float | str]:
    """Train on ``inputs["posteriors"]`` (``low.npz``, ``high.npz``); write weights and logs.

    Of whole scenes the summary has ``known``: the part of the grid that both CRFs are sure of.
    """
    network = build_affinity_net(spec)
    network.backbone.checkpointing = spec.compute.checkpointing
    network = network.to(device())
    make = _crops if spec.view else _whole_scenes
    source, summary = make(spec, inputs["posteriors"].folder, network.backbone.normalise)
    rows = loop.fit(
        network,
        n_samples=source.count,
        batch=source,
        objective=Objective(partial(_measure, radius=spec.radius), _combine),
        schedule=spec.schedule,
        seed=spec.seed,
        compute=spec.compute,
        **fitting.options(folder),
    )
    return fitting.finish(network, folder, rows) | summary


def label_maps(folder: Path) -> Tensor:
    """The grid's labels of every image from its two CRFs, (N, h, w) uint8.

    Rows of its scores, 0 background, 255 void.
    """
    pairs = zip(read_seeds(folder / "low.npz"), read_seeds(folder / "high.npz"), strict=True)
    scores = ((with_rest(low.cam), with_rest(high.cam)) for (_, low), (_, high) in pairs)
    return torch.stack([affinity.affinity_labels(low, high, cell=CELL) for low, high in scores])


def _measure(network: nn.Module, batch: Batch, radius: int) -> dict[str, Tensor]:
    """Sums and counts of the three kinds of pairs, (1, 3) each."""
    features = network(batch.images)
    radius = affinity.effective_radius(tuple(features.shape[-2:]), radius)
    pairs = affinity.pair_affinity(features.float(), radius)
    sums, counts = affinity.loss_sums(pairs, affinity.pair_labels(batch.labels, radius))
    return {"sums": sums[None], "counts": counts[None]}


def _combine(measures: dict[str, Tensor]) -> dict[str, Tensor]:
    means = affinity.mean_loss(measures["sums"].sum(dim=0), measures["counts"].sum(dim=0))
    return {
        "background": means.background / 4,
        "foreground": means.foreground / 4,
        "negative": means.negative / 2,
    }


def _whole_scenes(
    spec: AffinitySpec, posteriors: Path, normalise: fitting.Normalise
) -> tuple[InMemory, dict[str, float]]:
    """Scenes of one size with the label map of their two CRFs, mirrored half the time."""
    images, labels = load_images(spec.scenes), label_maps(posteriors)
    known = float((labels != affinity.VOID).float().mean())

    def view(indices: Tensor, generator: torch.Generator, wanted: slice) -> Batch:
        mirrored = torch.randint(2, (len(indices), 1, 1), generator=generator).bool()[wanted]
        pictures, maps = images[indices[wanted]], labels[indices[wanted]]
        pictures = torch.where(mirrored[..., None], pictures.flip(-1), pictures)
        maps = torch.where(mirrored, maps.flip(-1), maps)
        return Batch(images=normalise(pictures), labels=maps)

    return InMemory(same_count(len(images), len(labels), "posteriors"), view), {"known": known}


def _crops(
    spec: AffinitySpec, posteriors: Path, normalise: fitting.Normalise
) -> tuple[OnDisk, dict[str, float]]:
    """Crops of photos with their two CRFs, as the reference; padding is black, its labels void."""
    scenes, crop = spec.scenes.open(), spec.view.crop
    low, high = (SeedReader(posteriors / f"{name}.npz") for name in ("low", "high"))
    if crop % CELL:
        raise ValueError(f"a crop for AffinityNet must be a multiple of {CELL}, got {crop}")

    def view(index: int, generator: torch.Generator) -> Batch:
        scores = [with_rest(reader[f"{index:05d}"].cam) for reader in (low, high)]
        image, fills = scenes.image(index), [0.0, 0.0]
        picture, (near, far) = paired_crop(image, scores, fills, generator, spec.view)
        labels = affinity.affinity_labels(near, far, cell=CELL)
        return Batch(images=normalise(picture[None])[0], labels=labels)

    return OnDisk(same_count(len(scenes), len(low.names), "posteriors"), view), {}
