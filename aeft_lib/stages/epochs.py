"""Stage `evaluate_epochs`: what every epoch of a second phase did to the seeds.  A reader of masks, like `evaluate_seeds`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from aeft_lib import evaluation
from aeft_lib.classifier import CamClassifier
from aeft_lib.data.scenes import AnySpec, open_scenes
from aeft_lib.devices import device
from aeft_lib.runs import Artefact
from aeft_lib.stages.classifier import load_network
from aeft_lib.stages.features import load_features
from aeft_lib.stages.seeds import SeedSpec, seed_stream


@dataclass(frozen=True)
class EpochsSpec:
    """thresholds: increasing, in 0..1.  truth: digest of the masks.  One scale only, since every epoch is scored."""

    scenes: AnySpec
    thresholds: tuple[float, ...]
    truth: str = ""


def evaluate_epochs(spec: EpochsSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float]:
    """Write ``epochs.csv``: epoch (0 is the warm start), threshold, miou, precision, recall (percent).

    CAMs as they are, not in the steps of 1/255 of a stored seed: mIoU differs from `evaluate_seeds` in the second decimal.
    inputs: ``warm_start`` and ``classifier`` (trained with keep_epochs), ``features`` of the scenes.
    """
    cache, scenes = load_features(inputs["features"]), open_scenes(spec.scenes)
    masks = [scenes.mask(i) for i in range(len(scenes))]
    tables = []
    for epoch, network in enumerate(_networks(inputs)):
        seeds = seed_stream(network.to(device()), cache, SeedSpec((1.0,), spec.scenes.size))
        swept = evaluation.sweep((tuple(seed) for seed in seeds), masks, spec.thresholds, num_classes=len(scenes.classes))
        curve = {"threshold": swept.thresholds, "miou": swept.miou, "precision": swept.precision, "recall": swept.recall}
        tables.append(pd.DataFrame(curve).assign(epoch=epoch))
    pd.concat(tables).to_csv(folder / "epochs.csv", index=False)
    return {"epochs": len(tables) - 1}


def _networks(inputs: Mapping[str, Artefact]) -> Iterator[CamClassifier]:
    yield load_network(inputs["warm_start"])
    epoch = 1
    while (inputs["classifier"].folder / (name := f"epoch_{epoch}.safetensors")).is_file():
        yield load_network(inputs["classifier"], name)
        epoch += 1
