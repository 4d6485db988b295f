"""``aeft bench training``: what the triplet costs, against a classification step of the same batch, in one process.

Both steps start from images (trunk, tail, head, backward, optimiser), as they do where nothing is cached.  Memory is what
autograd saves for the backward pass, each storage once, counted by saved-tensor hooks: the same on every machine.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from aeft_lib.engine import loop
from aeft_lib.paper import losses, triplet
from aeft_lib.paper.classifier import CamClassifier
from aeft_lib.stages.train_classifier import NetworkSpec, PoolingSpec, build_network
from aeft_lib.studies import profiles

ROUNDS = 5
PROFILE = profiles.LAPTOP


def benchmarks() -> list[dict]:
    """One row a form of the triplet: seconds a step (median), ratio to classification, megabytes saved for backward, losses."""
    torch.set_num_threads(1)
    pooling = PoolingSpec("gated", PROFILE.levels)
    network = build_network(NetworkSpec(pooling, PROFILE.num_classes, PROFILE.backbone), seed=0).train()
    optimiser = loop.make_optimiser(network, PROFILE.erasing.schedule())
    images, tags, noise = _batch()
    steps = {
        "classification": lambda: {"classification": losses.classification(network(images).logits, tags)},
        "triplet": lambda: _terms(network, images, tags, noise, triplet.CORRECTED),
        "triplet, gradient through the mask": lambda: _terms(network, images, tags, noise, triplet.REFERENCE),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):  # in turn, so that all see the same machine
        for name, step in steps.items():
            seconds[name].append(_timed(step, optimiser))
    saved = {name: _saved_bytes(step) for name, step in steps.items()}
    base = "classification"
    return [
        {
            "name": "training",
            "step": name,
            "peer": base,
            "batch": len(images),
            "ours_s": float(np.median(seconds[name])),
            "peer_s": float(np.median(seconds[base])),
            "ratio": float(np.median(np.divide(seconds[name], seconds[base]))),
            "saved_mb": saved[name] / 1e6,
            "peer_saved_mb": saved[base] / 1e6,
        }
        for name in steps
        if name != base
    ]


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    """Noise images of the laptop's batch and size, one or two tags each, and the noise that picks negatives."""
    generator = torch.Generator().manual_seed(0)
    count, size = PROFILE.erasing.batch_size, PROFILE.train.size
    images = torch.randn(count, 3, size, size, generator=generator).contiguous(memory_format=torch.channels_last)
    tags = torch.zeros(count, PROFILE.num_classes, dtype=torch.bool)
    for column in torch.randint(PROFILE.num_classes, (2, count), generator=generator):
        tags[torch.arange(count), column] = True
    return images, tags, torch.rand(count, count, generator=generator)


def _terms(network: CamClassifier, images: Tensor, tags: Tensor, noise: Tensor, settings: triplet.Triplet) -> dict[str, Tensor]:
    return triplet.terms(network, triplet.Batch(images, network.backbone.trunk(images), tags, noise), settings)


def _timed(step: Callable[[], dict[str, Tensor]], optimiser: torch.optim.Optimizer) -> float:
    start = time.perf_counter()
    optimiser.zero_grad(set_to_none=True)
    sum(step().values()).backward()
    optimiser.step()
    return time.perf_counter() - start


def _saved_bytes(step: Callable[[], dict[str, Tensor]]) -> int:
    """Bytes of all storages that the step's forward pass keeps for its backward pass."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept = step()
    del kept
    return sum(storages.values())
