"""Stage `refine_by_crf`: the dense CRF on seeds, for one or more background powers at once."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import ranks
from aeft_lib.engine.device import device
from aeft_lib.engine.shards import over_images
from aeft_lib.maps.seeds import Seed, SeedWriter, read_seeds
from aeft_lib.refinement import dense_crf
from aeft_lib.stages.artefact import Artefact


@dataclass(frozen=True)
class CrfSpec:
    """scenes: of the seeds.  powers: names of background powers, of ``low, middle, high``.

    iterations: of mean field.
    """

    scenes: SceneSet
    powers: tuple[str, ...]
    iterations: int = 10


@ranks.collective
def refine_by_crf(spec: CrfSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float]:
    """Read ``seeds`` and ``background``; write ``<power>.npz``: posteriors of the tagged classes.

    The background's posterior is the rest of 1.  Stored as seeds are, see `SeedWriter`.
    """
    alphas = tuple(inputs["background"].summary[name] for name in spec.powers)
    file, count = inputs["seeds"].folder / "seeds.npz", len(spec.scenes.open())
    with ExitStack() as stack:
        files = [folder / f"{name}.npz" for name in spec.powers]
        writers = [stack.enter_context(SeedWriter(path)) for path in files]
        for name, seeds in over_images(_refined, count, spec, file, alphas):
            for writer, seed in zip(writers, seeds, strict=True):
                writer.add(name, seed)
    return {"images": count}


@torch.inference_mode()
def _refined(
    indices: range, spec: CrfSpec, file: Path, alphas: tuple[float, ...]
) -> list[tuple[str, list[Seed]]]:
    """Name and one posterior a power of these scenes."""
    scenes, refined = spec.scenes.open(), []
    named = read_seeds(file, [f"{i:05d}" for i in indices])
    for index, (name, seed) in zip(indices, named, strict=True):
        if not len(seed.cam):  # no tags, nothing to refine
            refined.append((name, [seed] * len(alphas)))
            continue
        cam, iterations = seed.cam.to(device()), spec.iterations
        posteriors = dense_crf.refine(scenes.image(index), cam, alphas, iterations=iterations)
        seeds = [Seed(seed.class_ids, q[1:].clamp(0, 1).cpu()) for q in posteriors]
        refined.append((name, seeds))
    return refined
