"""AffinityNets of artefacts, before a training and after: see `loading`."""

from typing import Any

from aeft_lib.networks import state
from aeft_lib.refinement.affinity_net import AffinityNet
from aeft_lib.stages.loading import loaded

DROPOUT = (0.3, 0.5)  # of ResNet38d here


def build_affinity_net(spec: Any) -> AffinityNet:
    """The network of an `AffinitySpec`: ImageNet backbone, new layers drawn from the seed."""
    make = spec.backbone.build
    return state.build(lambda: AffinityNet(backbone=make(dropout=DROPOUT)), spec.seed)


def load_affinity_net(artefact: Any) -> AffinityNet:
    """The trained network of a `train_affinity` artefact, in eval mode."""
    return loaded(build_affinity_net, artefact)
