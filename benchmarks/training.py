"""``aeft bench training``: steps with folded norms against batch norms, and what the triplet costs
against a classification step of the same batch, in one process.

Steps start from images (trunk, tail, head, backward, optimiser), as they do where nothing is
cached, but for `step_memory`.  Memory, two numbers: what autograd saves for the backward pass, each
storage once, counted by saved-tensor hooks and the same on every machine; and what a process of its
own needs at most beyond network and batch, gradients and momentum among it (null where there is no
/proc).
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from measure import peak_of, print_peak
from torch import Tensor

from aeft_lib.engine import memory
from aeft_lib.engine.device import autocast, has_bf16
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

    Row `resnet38d_bf16`, where the CPU has instructions for it: a step in bf16 against fp32.
    Row `step_memory`: freed memory is kept.  Rows `training`: a form of the triplet against
    classification.  Each has seconds a step (median, of one CPU thread) and the ratio; steps have
    megabytes saved for the backward pass, and at most, of both sides.
    """
    torch.set_num_threads(1)
    known = ("fp32", "bf16") if has_bf16(torch.device("cpu")) else ("fp32",)
    names = [name for name, step in STEPS.items() if step.precision in known]
    return [*map(_row, names), _memory_row(), *_triplet_rows(_network(), _batch())]


def _row(name: str) -> dict:
    """A step, ours against its peer's; a ratio above 1 is faster."""
    count, _ = STEPS[name].batch
    runs = {who: _step(name, who) for who in SIDES}
    seconds = _in_turn({who: lambda run=run: _timed(*run) for who, run in runs.items()})
    return {
        "name": name,
        "peer": STEPS[name].peer,
        "batch": count,
        "ours_s": float(np.median(seconds["ours"])),
        "peer_s": float(np.median(seconds["peer"])),
        "ratio": float(np.median(np.divide(seconds["peer"], seconds["ours"]))),
        "saved_mb": _saved_bytes(runs["ours"][0]) / 1e6,
        "peer_saved_mb": _saved_bytes(runs["peer"][0]) / 1e6,
        "ours_peak_mb": peak_of(__file__, name, "ours"),
        "peer_peak_mb": peak_of(__file__, name, "peer"),
    }


def _step(
    name: str, who: str, size: int = 0
) -> tuple[Callable[[], dict[str, Tensor]], torch.optim.Optimizer]:
    """What computes the losses of a step of `STEPS`, and the optimiser that it moves.

    size: of images, where it is not the step's own.
    """
    step = STEPS[name]
    count, side = step.batch
    network, batch = step.build(), _batch(count, size or side)
    if who == "peer" and step.peer == BATCH_NORMS:
        network = unfold(network)
    precision = step.precision if who == "ours" else "fp32"

    def losses() -> dict[str, Tensor]:
        with autocast(precision, torch.device("cpu")):
            return _terms(network, batch, step.method)

    return losses, make_optimiser(network, PROFILE.erasing.schedule())


def _resnet38d() -> CamClassifier:
    """A classifier on the paper's backbone."""
    build = ResNet38dSpec(weights="none").build
    return state.build(lambda: Classification().build(build(), PROFILE.num_classes), seed=0).train()


def _memory_row() -> dict:
    """A triplet step in a process that keeps freed memory, and in one that leaves it to glibc.

    From cached features of the frozen trunk, as the laptop trains.
    """
    seconds = _in_turn({who: lambda who=who: _child(who) for who in SIDES})
    ours, peer = (float(np.median(seconds[who])) for who in SIDES)
    return {
        "name": MEMORY,
        "peer": "freed memory goes back to the kernel",
        "batch": PROFILE.erasing.batch_size,
        "ours_s": ours,
        "peer_s": peer,
        "ratio": peer / ours,
    }


def _child(who: str) -> float:
    """Seconds of a step in a process of its own, see `_print_step`."""
    own = {variable for variable, *_ in (memory.HEAP_BLOCK, memory.FREE_END)}
    environment = {key: value for key, value in os.environ.items() if key not in own}
    command = [sys.executable, __file__, MEMORY, who]
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


SIDES = ("ours", "peer")
BATCH_NORMS, MEMORY = "batch norms", "step_memory"
LAPTOP = (PROFILE.erasing.batch_size, PROFILE.train.size)
FEW = (2, 128)  # images for which one has patience on the paper's backbone, and their side
SMALL = 64  # the side of images whose step loads the code


class Step(NamedTuple):
    """A step and what it is compared with."""

    build: Callable[[], CamClassifier]
    method: Classification | triplet.Triplet
    batch: tuple[int, int]  # images and their side
    peer: str
    precision: str = "fp32"  # of ours; a peer's is fp32


STEPS = {
    "classifier_step": Step(_network, Classification(), LAPTOP, BATCH_NORMS),
    "triplet_step": Step(_network, triplet.CORRECTED, LAPTOP, BATCH_NORMS),
    "resnet38d_step": Step(_resnet38d, Classification(), FEW, BATCH_NORMS),
    "resnet38d_bf16": Step(_resnet38d, Classification(), FEW, "the same in fp32", "bf16"),
}


if __name__ == "__main__":
    part, who = sys.argv[1:]
    if part == MEMORY:
        _print_step(kept=who == "ours")
    else:
        small, step = _step(part, who, size=SMALL), _step(part, who)
        print_peak(lambda: _timed(*step), warm=lambda: _timed(*small))
