"""Stage `walk_edges`: seeds flow where no edge stops them.  It reads no mask."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aeft_lib.data.images import resized
from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import ranks
from aeft_lib.engine.batches import image_batches
from aeft_lib.engine.device import batch_pixels, device
from aeft_lib.engine.shards import over_images
from aeft_lib.maps.seeds import Seed, read_seeds, write_seeds
from aeft_lib.refinement.edge_net import CELL, EdgeNet, grid_of
from aeft_lib.refinement.edge_walk import enlarged, walk
from aeft_lib.refinement.path_affinity import WALK_RADIUS
from aeft_lib.refinement.propagation import padded
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.edge_nets import load_edge_net
from aeft_lib.stages.loading import ready


@dataclass(frozen=True)
class EdgeWalkSpec:
    """power: of the CAMs before the walk.  beta, steps, radius: of the walk.

    least: sides to which smaller images are padded, see `EdgeNet.both_ways`.
    suppress_edges, joint_maximum: see `edge_walk.walk` and `enlarged`.
    scales: at which edges are found; their logits are averaged.
    """

    scenes: SceneSet
    power: float = 1.0
    beta: float = 10
    steps: int = 256
    radius: int = WALK_RADIUS
    least: int = 0
    suppress_edges: bool = True
    joint_maximum: bool = True
    scales: tuple[float, ...] = (1.0,)


@ranks.collective
def walk_edges(
    spec: EdgeWalkSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Read ``seeds`` and ``edges``; write ``seeds.npz``, scores in 0..1 of the tagged classes.

    The summary has ``edge``, the mean of all cells, and ``edge_high``, the part of them above 0.5:
    numbers of the mechanism, of images that have a tag.
    """
    file, count = inputs["seeds"].folder / "seeds.npz", len(spec.scenes.open())
    walked = over_images(_walked, count, spec, file, inputs["edges"])
    numbers: list[tuple[float, float]] = []

    def seeds() -> Iterator[tuple[str, Seed]]:
        for name, seed, edge in walked:
            if edge:
                numbers.append(edge)
            yield name, seed

    images = write_seeds(folder / "seeds.npz", seeds())
    means = np.mean(numbers or [(0.0, 0.0)], axis=0)
    return {"images": images, "edge": float(means[0]), "edge_high": float(means[1])}


@torch.inference_mode()
def _walked(
    indices: range, spec: EdgeWalkSpec, file: Path, edges: Artefact
) -> list[tuple[str, Seed, tuple[float, float] | None]]:
    """Name, scores, and numbers of the edges of these scenes, in their order."""
    network, scenes, walked = ready(load_edge_net, edges), spec.scenes.open(), {}
    seeds = dict(zip(indices, read_seeds(file, [f"{i:05d}" for i in indices]), strict=True))
    for numbers, images in image_batches(scenes.image, indices, batch_pixels("fp32")):
        tagged = [i for i in numbers if len(seeds[i][1].cam)]
        found = iter(())
        if tagged:
            of_tagged = [image for i, image in zip(numbers, images, strict=True) if i in tagged]
            found = iter(edges_of(network, of_tagged, spec.scales, spec.least))
        for i in numbers:
            name, seed = seeds[i]
            edge, described = (next(found), None) if i in tagged else (None, None)
            if edge is not None:
                seed = seed._replace(cam=scores_of(seed.cam.to(device()), edge, spec).cpu())
                described = float(edge.mean()), float((edge > 0.5).float().mean())
            walked[i] = name, seed, described
    return [walked[i] for i in indices]


def scores_of(cam: Tensor, edge: Tensor, spec: EdgeWalkSpec) -> Tensor:
    """Scores (K', H, W) in 0..1 of an image, from its CAMs (K', H, W) in 0..1 and edges (h, w).

    CAMs are averaged over the grid's cells (the release reads a second set of CAMs at a quarter of
    the image's size), and keep their own maximum of 1.
    """
    coarse = F.avg_pool2d(padded(cam, CELL)[None], CELL)[0]
    largest = coarse.amax(dim=(1, 2), keepdim=True)
    coarse = coarse / largest.clamp(min=torch.finfo(coarse.dtype).tiny)
    walked = walk(
        coarse**spec.power,
        edge,
        beta=spec.beta,
        steps=spec.steps,
        radius=spec.radius,
        suppress=spec.suppress_edges,
    )
    size = tuple(cam.shape[1:])
    return enlarged(walked, size, joint=spec.joint_maximum).clamp(0, 1)


def edges_of(
    network: EdgeNet, images: list[np.ndarray], scales: tuple[float, ...], least: int = 0
) -> Tensor:
    """Edges (B, h, w) in 0..1 of images (H, W, 3) uint8 of one size; scales share their logits."""
    size = images[0].shape[:2]
    grid, logits = grid_of(size), []
    for scale in scales:
        sides = tuple(max(1, round(side * scale)) for side in size)
        pictures = np.stack([resized(image, sides) if scale != 1 else image for image in images])
        pictures = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(device())
        pictures = network.backbone.normalise(pictures)
        maps = network.both_ways(pictures, least=round(least * scale))[:, None]
        logits.append(F.interpolate(maps, grid, mode="bilinear", align_corners=False)[:, 0])
    return torch.stack(logits).mean(dim=0).sigmoid()
