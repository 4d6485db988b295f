"""Networks of artefacts, before and after their training.

The spec of an artefact builds its network; trained weights come from its folder, the others from
the backbone's own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from aeft_lib.engine.device import device
from aeft_lib.networks import state

WEIGHTS = "weights.safetensors"
_ready: dict[tuple[str, Path], nn.Module] = {}


def build_network(spec: Any) -> nn.Module:
    """The classifier of a `ClassifierSpec`: ImageNet backbone, the rest drawn from the seed."""
    make = spec.method.build
    return state.build(lambda: make(spec.backbone.build(), spec.num_classes), spec.seed)


def build_segmenter(spec: Any) -> nn.Module:
    """The network of a `SegmenterSpec`: ImageNet backbone, head drawn from the seed."""
    make = spec.segmenter.build
    return state.build(lambda: make(spec.backbone.build(), spec.num_classes), spec.seed)


def load_network(artefact: Any, weights: str = WEIGHTS) -> nn.Module:
    """The trained classifier of a `train_classifier` artefact, in eval mode."""
    return loaded(build_network, artefact, weights)


def load_segmenter(artefact: Any) -> nn.Module:
    """The trained network of a `train_segmenter` artefact, in eval mode."""
    return loaded(build_segmenter, artefact)


def ready(load: Callable[[Any], nn.Module], artefact: Any) -> nn.Module:
    """The network of an artefact on the device; a process keeps the last one for its shards."""
    key = (load.__name__, artefact.folder)
    if key not in _ready:
        _ready.clear()
        _ready[key] = load(artefact).to(device())
    return _ready[key]


def loaded(build: Callable[[Any], nn.Module], artefact: Any, weights: str = WEIGHTS) -> nn.Module:
    """The network that `build` makes of the artefact's spec, with the artefact's weights."""
    network = build(artefact.spec)
    state.load_trained(network, artefact.folder / weights)
    return network.eval()
