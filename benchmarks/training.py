"""``aeft bench training``: steps with folded norms against batch norms, and what the triplet costs
against a classification step of the same batch, in one process.

Steps start from images (trunk, tail, head, backward, optimiser), as they do where nothing is
cached, but for `step_memory`.  Memory is what autograd saves for the backward pass, each storage
once, counted by saved-tensor hooks: the same on every machine.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from aeft_lib.engine import memory
from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import make_optimiser
from aeft_lib.networks import state
from aeft_lib.networks.frozen_norms import unfold
from aeft_lib.networks.resnet38d import ResNet38dSpec
from aeft_lib.paper import triplet
from aeft_lib.paper.classifier import CamClassifier, Classification
from aeft_lib.studies import profiles

ROUNDS = 5
PROFILE = profiles.LAPTOP


def benchmarks() -> list[dict]:
    """Rows `classifier_step`, `triplet_step`, `resnet38d_step`: folded norms against batch norms.

    Row `step_memory`: freed memory is kept.  Rows `training`: a form of the triplet against
    classification.  Each has seconds a step (median, of one CPU thread) and the ratio, all but
    `step_memory` megabytes saved for the backward pass of both sides.
    """
    torch.set_num_threads(1)
    network, batch = _network(), _batch()
    rows = [
        _folded_row("classifier_step", network, batch, Classification()),
        _folded_row("triplet_step", network, batch, triplet.CORRECTED),
        _resnet38d_row(),
        _memory_row(),
    ]
    return rows + _triplet_rows(network, batch)


def _folded_row(
    name: str, network: CamClassifier, batch: Batch, method: Classification | triplet.Triplet
) -> dict:
    """A step of the network as it is, and with its norms as torch has them; above 1 is faster."""
    networks = {"ours": network, "peer": unfold(deepcopy(network))}
    optimisers = {k: make_optimiser(n, PROFILE.erasing.schedule()) for k, n in networks.items()}
    steps = {k: lambda n=n: _terms(n, batch, method) for k, n in networks.items()}
    seconds = _in_turn({k: lambda k=k: _timed(steps[k], optimisers[k]) for k in steps})
    return {
        "name": name,
        "peer": "batch norms",
        "batch": len(batch.images),
        "ours_s": float(np.median(seconds["ours"])),
        "peer_s": float(np.median(seconds["peer"])),
        "ratio": float(np.median(np.divide(seconds["peer"], seconds["ours"]))),
        "saved_mb": _saved_bytes(steps["ours"]) / 1e6,
        "peer_saved_mb": _saved_bytes(steps["peer"]) / 1e6,
    }


def _resnet38d_row() -> dict:
    """A classification step of the paper's backbone: as many images as the laptop has patience."""
    method = Classification()
    build = ResNet38dSpec(weights="none").build
    network = state.build(lambda: method.build(build(), PROFILE.num_classes), seed=0).train()
    return _folded_row("resnet38d_step", network, _batch(count=2, size=128), method)


def _memory_row() -> dict:
    """A triplet step in a process that keeps freed memory, and in one that leaves it to glibc.

    From cached features of the frozen trunk, as the laptop trains.
    """
    seconds = _in_turn({name: lambda name=name: _child(name) for name in ("ours", "peer")})
    ours, peer = (float(np.median(seconds[name])) for name in ("ours", "peer"))
    return {
        "name": "step_memory",
        "peer": "freed memory goes back to the kernel",
        "batch": PROFILE.erasing.batch_size,
        "ours_s": ours,
        "peer_s": peer,
        "ratio": peer / ours,
    }


def _child(name: str) -> float:
    """Seconds of a step in a process of its own, see `_print_step`."""
    own = {variable for variable, *_ in (memory.HEAP_BLOCK, memory.FREE_END)}
    environment = {key: value for key, value in os.environ.items() if key not in own}
    command = [sys.executable, __file__, name]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(child.stdout)


def _print_step(*, kept: bool) -> None:
    """Print the median seconds of a triplet step; the first ones, which load the code, do not count."""
    if kept:
        memory.keep_freed()
    torch.set_num_threads(1)
    network, batch, method = _network(), _batch(), triplet.CORRECTED
    batch = batch._replace(features=network.backbone.trunk(batch.images).detach())
    optimiser = make_optimiser(network, PROFILE.erasing.schedule())
    steps = [
        _timed(lambda: method.combine(method.measure(network, batch)), optimiser)
        for _ in range(2 + ROUNDS)
    ]
    print(np.median(steps[2:]))


def _network() -> CamClassifier:
    """The laptop's classifier with the layer and loss of the corrected triplet."""
    method, backbone = triplet.CORRECTED.fitted(PROFILE.map_side), PROFILE.backbone
    return state.build(lambda: method.build(backbone.build(), PROFILE.num_classes), seed=0).train()


def _triplet_rows(network: CamClassifier, batch: Batch) -> list[dict]:
    """Forms of the triplet against a classification step; the ratio is what they cost more."""
    optimiser = make_optimiser(network, PROFILE.erasing.schedule())
    steps = {
        "classification": lambda: _terms(network, batch, Classification()),
        "triplet": lambda: _terms(network, batch, triplet.CORRECTED),
        "triplet, gradient through the mask": lambda: _terms(network, batch, triplet.REFERENCE),
    }
    seconds = _in_turn({k: lambda step=step: _timed(step, optimiser) for k, step in steps.items()})
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


def _in_turn(runs: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Seconds of each, `ROUNDS` times, in turn, so that all see the same machine."""
    rounds = [{name: run() for name, run in runs.items()} for _ in range(ROUNDS)]
    return {name: [times[name] for times in rounds] for name in runs}


def _batch(count: int = PROFILE.erasing.batch_size, size: int = PROFILE.train.size) -> Batch:
    """Noise images of the laptop's batch and size, one or two tags each, and the noise that picks negatives."""
    generator = torch.Generator().manual_seed(0)
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
    start = time.process_time()
    optimiser.zero_grad(set_to_none=True)
    sum(step().values()).backward()
    optimiser.step()
    return time.process_time() - start


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


if __name__ == "__main__":
    _print_step(kept=sys.argv[1] == "ours")
