"""Edge networks of artefacts, before a training and after: see `loading`."""

from typing import Any

from aeft_lib.networks import state
from aeft_lib.refinement.edge_net import EdgeNet
from aeft_lib.stages.loading import loaded


def build_edge_net(spec: Any) -> EdgeNet:
    """The network of an `EdgeSpec`: frozen backbone, the head drawn from the seed."""
    return state.build(lambda: EdgeNet(backbone=spec.backbone.build()), spec.seed)


def load_edge_net(artefact: Any) -> EdgeNet:
    """The trained network of a `train_edges` artefact, in eval mode."""
    return loaded(build_edge_net, artefact)
