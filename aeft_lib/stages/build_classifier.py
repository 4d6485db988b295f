"""Stage `build_classifier`: a classifier as its method builds it, without any training."""

from collections.abc import Mapping
from pathlib import Path

from aeft_lib.networks import state
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.loading import WEIGHTS, build_network
from aeft_lib.stages.train_classifier import ClassifierSpec


def build_classifier(
    spec: ClassifierSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Write ``weights.safetensors``, as `train_classifier` does."""
    network = build_network(spec)
    state.save_trained(network, folder / WEIGHTS)
    return {"tensors": len(state.trained_state(network))}
