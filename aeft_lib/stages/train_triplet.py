"""Stage `train_triplet`: the second phase, a trained classifier goes on with what the triplet adds.

No mask is within its reach.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aeft_lib.engine import loop, ranks
from aeft_lib.engine.device import device
from aeft_lib.engine.step import PLAIN, Compute
from aeft_lib.paper import triplet
from aeft_lib.stages.store import Artefact
from aeft_lib.stages.train_classifier import ClassifierSpec, load_network, train_on


@dataclass(frozen=True)
class TripletSpec:
    """All that decides the weights, next to the warm start and the features.

    warm_start: the spec of ``inputs["classifier"]``, whose scenes and views are trained on.
    keep_epochs: write the weights of every epoch, for curves over time.
    """

    warm_start: ClassifierSpec
    triplet: triplet.Triplet
    schedule: loop.Schedule
    compute: Compute = PLAIN
    keep_epochs: bool = False


@ranks.collective
def train_triplet(spec: TripletSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float | str]:
    """Go on from ``inputs["classifier"]``; write ``weights.safetensors``, ``log.csv``; on demand ``epoch_1.safetensors``..."""
    network = load_network(inputs["classifier"]).to(device())
    network.backbone.checkpointing = spec.compute.checkpointing
    course = (spec.triplet, spec.schedule, spec.compute)
    return train_on(network, spec.warm_start, inputs, folder, *course, keep_epochs=spec.keep_epochs)
