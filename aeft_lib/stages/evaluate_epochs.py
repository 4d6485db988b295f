"""Stage `evaluate_epochs`: what every epoch of a training did to the seeds.  A reader of masks, like `evaluate_seeds`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine.device import device
from aeft_lib.maps import evaluation
from aeft_lib.maps.cam_fit import spread
from aeft_lib.paper.classifier import CamClassifier
from aeft_lib.paper.gpp import PyramidPooling
from aeft_lib.stages.cache_features import load_features, scale_name
from aeft_lib.stages.infer_seeds import SeedSpec, seed_stream, tag_logits
from aeft_lib.stages.store import Artefact
from aeft_lib.stages.train_classifier import load_network


@dataclass(frozen=True)
class EpochsSpec:
    """thresholds: increasing, in 0..1.  truth: digest of the masks.  One scale only, since every epoch is scored."""

    scenes: SceneSet
    thresholds: tuple[float, ...]
    truth: str = ""


def evaluate_epochs(spec: EpochsSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float]:
    """Write ``epochs.csv``: epoch (0 is the warm start, if any), threshold, miou, precision, recall (percent); and
    ``course.csv``: epoch, tag_map (percent), entropy and half_area of the CAMs (`objects.spread`), gates (`mean_gates`).

    CAMs as they are, not in the steps of 1/255 of a stored seed: mIoU differs from `evaluate_seeds` in the second decimal.
    inputs: ``classifier`` (trained with keep_epochs), ``features`` of the scenes; where it went on from one, ``warm_start``.
    """
    cache, scenes = load_features(inputs["features"]), spec.scenes.open()
    masks = [scenes.mask(i) for i in range(len(scenes))]
    curves, course = [], []
    for epoch, network in _networks(inputs):
        seeds = list(seed_stream(network.to(device()), cache, SeedSpec((1.0,), spec.scenes.size)))
        swept = evaluation.sweep(map(tuple, seeds), masks, spec.thresholds, num_classes=len(scenes.classes))
        curve = {"threshold": swept.thresholds, "miou": swept.miou, "precision": swept.precision, "recall": swept.recall}
        curves.append(pd.DataFrame(curve).assign(epoch=epoch))
        entropy, half_area = np.nanmean([spread(cam) for seed in seeds for cam in seed.cam], axis=0)
        tag_map = evaluation.mean_average_precision(tag_logits(network, cache), cache["tags"])
        line = {"epoch": epoch, "tag_map": tag_map, "entropy": entropy, "half_area": half_area}
        course.append(line | mean_gates(network, cache[scale_name(1.0)][:40, 0]))
    pd.concat(curves).to_csv(folder / "epochs.csv", index=False)
    pd.DataFrame(course).to_csv(folder / "course.csv", index=False)
    return {"epochs": course[-1]["epoch"]}


@torch.inference_mode()
def mean_gates(network: CamClassifier, features: Tensor) -> dict[str, float]:
    """Mean gate weights over images (N, C, h, w) of trunk features: ``positive_1_first, positive_1_next, ...`` by fusion step.

    first: of what was fused so far, next: of the level that comes in.  Empty where the pooling layer has no gates.
    """
    if not isinstance(network.pooling, PyramidPooling):
        return {}
    maps = network.pooling.gate_maps(network.cam(features.to(device()).float()))
    found = {}
    for step, gates in enumerate(maps, start=1):
        for sign in ("positive", "negative"):
            means = getattr(gates, sign).mean(dim=(0, 2, 3)).tolist()
            found |= {f"{sign}_{step}_{side}": value for side, value in zip(("first", "next"), means, strict=True)}
    return found


def _networks(inputs: Mapping[str, Artefact]) -> Iterator[tuple[int, CamClassifier]]:
    """Epoch and network, in order; 0 is the warm start."""
    if "warm_start" in inputs:
        yield 0, load_network(inputs["warm_start"])
    epoch = 1
    while (inputs["classifier"].folder / (name := f"epoch_{epoch}.safetensors")).is_file():
        yield epoch, load_network(inputs["classifier"], name)
        epoch += 1
