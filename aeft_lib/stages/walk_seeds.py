"""Stage `walk_seeds`: seeds flow along learned affinities, and a last CRF settles their edges."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import ranks
from aeft_lib.engine.device import device
from aeft_lib.engine.shards import over_images
from aeft_lib.maps.seeds import Seed, read_seeds, write_seeds
from aeft_lib.refinement.propagation import padded, refine_by_walk
from aeft_lib.stages.affinity_nets import load_affinity_net
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.loading import ready


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
    for index, (name, seed) in zip(indices, named, strict=True):
        if not len(seed.cam):  # no tags, nothing to refine
            walked.append((name, seed))
            continue
        image = scenes.image(index)
        picture = padded(torch.from_numpy(image.copy()).permute(2, 0, 1))[None].to(device())
        picture = network.backbone.normalise(picture)
        posterior = refine_by_walk(
            image,
            seed.cam.to(device()),
            network.affinity(picture.contiguous(memory_format=torch.channels_last))[0],
            alpha=alpha,
            beta=spec.beta,
            steps=spec.steps,
            crf_iterations=spec.crf_iterations,
        )
        walked.append((name, Seed(seed.class_ids, posterior[1:].clamp(0, 1).cpu())))
    return walked
