"""``aeft bench training``: what the triplet costs, against a classification step of the same batch,
in one process.

Both steps start from images (trunk, tail, head, backward, optimiser), as they do where nothing is
cached.  Memory is what autograd saves for the backward pass, each storage once, counted by
saved-tensor hooks: the same on every machine.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import make_optimiser
from aeft_lib.networks import state
from aeft_lib.paper import triplet
from aeft_lib.paper.classifier import CamClassifier, Classification
from aeft_lib.studies import profiles

ROUNDS = 5
PROFILE = profiles.LAPTOP


def benchmarks() -> list[dict]:
    """One row a form of the triplet:

    seconds a step (median), ratio to classification, megabytes saved for backward, losses.
    """
    torch.set_num_threads(1)
    method, backbone = triplet.CORRECTED.fitted(PROFILE.map_side), PROFILE.backbone
    network = state.build(
        lambda: method.build(backbone.build(), PROFILE.num_classes), seed=0
    ).train()
    optimiser = make_optimiser(network, PROFILE.erasing.schedule())
    batch = _batch()
    steps = {
        "classification": lambda: _terms(network, batch, Classification()),
        "triplet": lambda: _terms(network, batch, triplet.CORRECTED),
        "triplet, gradient through the mask": lambda: _terms(network, batch, triplet.REFERENCE),
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
            "batch": len(batch.images),
            "ours_s": float(np.median(seconds[name])),
            "peer_s": float(np.median(seconds[base])),
            "ratio": float(np.median(np.divide(seconds[name], seconds[base]))),
            "saved_mb": saved[name] / 1e6,
            "peer_saved_mb": saved[base] / 1e6,
        }
        for name in steps
        if name != base
    ]


def _batch() -> Batch:
    """Noise images of the laptop's batch and size, one or two tags each, and the noise that picks negatives."""
    generator = torch.Generator().manual_seed(0)
    count, size = PROFILE.erasing.batch_size, PROFILE.train.size
    images = torch.randn(count, 3, size, size, generator=generator).contiguous(
        memory_format=torch.channels_last
    )
    tags = torch.zeros(count, PROFILE.num_classes, dtype=torch.bool)
    for column in torch.randint(PROFILE.num_classes, (2, count), generator=generator):
        tags[torch.arange(count), column] = True
    return Batch(images=images, tags=tags, noise=torch.rand(count, count, generator=generator))


def _terms(
    network: CamClassifier, batch: Batch, method: Classification | triplet.Triplet
) -> dict[str, Tensor]:
    """One whole step: trunk, tail, head and loss, the trunk once."""
    batch = batch._replace(features=network.backbone.trunk(batch.images))
    return method.combine(method.measure(network, batch))


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
