"""Stage `walk_seeds`: seeds flow along learned affinities, and a last CRF settles their edges."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import ranks
from aeft_lib.engine.device import device
from aeft_lib.engine.shards import over_images
from aeft_lib.maps.seeds import Seed, read_seeds, write_seeds
from aeft_lib.refinement.affinity import SparseAffinity
from aeft_lib.refinement.affinity_net import AffinityNet
from aeft_lib.refinement.propagation import padded, refine_by_walk
from aeft_lib.stages.affinity_nets import load_affinity_net
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.loading import ready

BATCH = 8  # images that AffinityNet sees at a time
Item = tuple[tuple[str, Seed], np.ndarray]  # name, seed and image


@dataclass(frozen=True)
class WalkSpec:
    """beta, steps: of the walk (8 and 64 in the reference).

    crf_iterations: after it; 0 leaves the CRF out.
    """

    scenes: SceneSet
    beta: float = 8
    steps: int = 64
    crf_iterations: int = 1


@ranks.collective
def walk_seeds(spec: WalkSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float]:
    """Read ``seeds``, ``background`` and ``affinity``; write ``middle.npz`` as `refine_by_crf`."""
    alpha, file = inputs["background"].summary["middle"], inputs["seeds"].folder / "seeds.npz"
    count = len(spec.scenes.open())
    walked = over_images(_walked, count, spec, file, inputs["affinity"], alpha)
    return {"images": write_seeds(folder / "middle.npz", walked)}


@torch.inference_mode()
def _walked(
    indices: range, spec: WalkSpec, file: Path, affinity: Artefact, alpha: float
) -> list[tuple[str, Seed]]:
    network, scenes, walked = ready(load_affinity_net, affinity), spec.scenes.open(), []
    named = read_seeds(file, [f"{i:05d}" for i in indices])
    with ThreadPoolExecutor(1) as reader:  # reads a shard's images while others walk
        images = reader.map(scenes.image, indices)
        for batch in _batches(zip(named, images, strict=True)):
            affinities = iter(_affinities(network, batch))
            for (name, seed), image in batch:
                if len(seed.cam):  # without tags there is nothing to refine
                    seed = _walk(spec, image, seed, next(affinities), alpha)
                walked.append((name, seed))
    return walked


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """At most `BATCH` neighbours at a time, whose images have one size."""
    batch: list[Item] = []
    for item in items:
        if batch and (len(batch) == BATCH or item[1].shape != batch[0][1].shape):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _affinities(network: AffinityNet, batch: list[Item]) -> list[SparseAffinity]:
    """Of the images of a batch that have a tag."""
    images = [torch.from_numpy(image.copy()) for (_, seed), image in batch if len(seed.cam)]
    if not images:
        return []
    pictures = padded(torch.stack(images).permute(0, 3, 1, 2)).to(device())
    pictures = network.backbone.normalise(pictures)
    return network.affinity(pictures.contiguous(memory_format=torch.channels_last))


def _walk(
    spec: WalkSpec, image: np.ndarray, seed: Seed, affinity: SparseAffinity, alpha: float
) -> Seed:
    posterior = refine_by_walk(
        image,
        seed.cam.to(device()),
        affinity,
        alpha=alpha,
        beta=spec.beta,
        steps=spec.steps,
        crf_iterations=spec.crf_iterations,
    )
    return Seed(seed.class_ids, posterior[1:].clamp(0, 1).cpu())
