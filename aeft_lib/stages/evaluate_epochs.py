"""Stage `evaluate_epochs`: the seeds of every epoch of a training, scored.  It reads masks."""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from aeft_lib.data.scene import Scenes, SceneSet
from aeft_lib.engine.device import device
from aeft_lib.maps import evaluation
from aeft_lib.maps.cam_fit import spread
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.cache_features import load_features, scale_name
from aeft_lib.stages.loading import load_network
from aeft_lib.stages.read_cached import read_cached
from aeft_lib.stages.reading import MultiScale

GATED = 40  # scenes whose gates are averaged


@dataclass(frozen=True)
class EpochsSpec:
    """thresholds: increasing, in 0..1.  truth: digest of the masks.  The seeds have one scale.

    precision: of the networks, see `device.inference_precision`.
    """

    scenes: SceneSet
    thresholds: tuple[float, ...]
    truth: str = ""
    precision: str = "fp32"


def evaluate_epochs(
    spec: EpochsSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Score the seeds of every epoch; write two tables.

    ``epochs.csv``: epoch (0 is the warm start, if any), threshold, miou, precision, recall
    (percent).  ``course.csv``: epoch, tag_map (percent), entropy and half_area of the CAMs
    (`cam_fit.spread`), gates (`mean_gates`).
    CAMs as they are, not in the steps of 1/255 of a stored seed: mIoU differs from
    `evaluate_seeds` in the second decimal.
    inputs: ``classifier`` (trained with keep_epochs), ``features`` of the scenes; ``warm_start``.
    """
    features, scenes = inputs["features"], spec.scenes.open()
    masks = _Masks(scenes)
    gated = load_features(features, slice(GATED), names=[scale_name(1.0)])[scale_name(1.0)][:, 0]
    curves, lines = [], []
    for epoch, network in _networks(inputs):
        network = network.to(device())
        readings = _Readings(spec, inputs, network)
        counts = (readings, masks, spec.thresholds)
        swept = evaluation.sweep(*counts, num_classes=len(scenes.classes))
        evaluation.check_counted(swept)
        curves.append(swept.table().assign(epoch=epoch))
        lines.append({"epoch": epoch} | readings.summary() | mean_gates(network, gated))
    pd.concat(curves).to_csv(folder / "epochs.csv", index=False)
    pd.DataFrame(lines).to_csv(folder / "course.csv", index=False)
    return {"epochs": lines[-1]["epoch"]}


class _Masks:
    """The masks of all scenes, read once and held packed: a hundredth of their pixels."""

    def __init__(self, scenes: Scenes) -> None:
        masks = (scenes.mask(i) for i in range(len(scenes)))
        self._packed = [(zlib.compress(mask.tobytes(), 1), mask.shape) for mask in masks]

    def __iter__(self) -> Iterator[np.ndarray]:
        for content, shape in self._packed:
            yield np.frombuffer(bytearray(zlib.decompress(content)), np.uint8).reshape(shape)


class _Readings:
    """A network's seeds, one by one, and what remains of them: how wide CAMs are, tag logits."""

    def __init__(
        self, spec: EpochsSpec, inputs: Mapping[str, Artefact], network: nn.Module
    ) -> None:
        size, indices = (spec.scenes.size,) * 2, range(len(spec.scenes.open()))
        method, features = inputs["classifier"].spec.method, inputs["features"]
        read = (method, network, features, indices, MultiScale((1.0,)), size, spec.precision)
        self._read = read_cached(*read)
        self._spreads: list[tuple[float, float]] = []
        # Numbers: small tensors that stay keep the heap around them from being used again.
        self._logits: list[list[float]] = []
        self._tags: list[list[bool]] = []

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for seed, logits, tags in self._read:
            self._spreads += map(spread, seed.cam)
            self._logits.append(logits.tolist())
            self._tags.append(tags.tolist())
            yield tuple(seed)

    def summary(self) -> dict[str, float]:
        """``tag_map, entropy, half_area`` of the seeds that were taken."""
        entropy, half_area = np.nanmean(self._spreads, axis=0)
        logits, tags = torch.tensor(self._logits), torch.tensor(self._tags)
        tag_map = evaluation.mean_average_precision(logits, tags)
        return {"tag_map": tag_map, "entropy": entropy, "half_area": half_area}


@torch.inference_mode()
def mean_gates(network: nn.Module, features: Tensor) -> dict[str, float]:
    """Mean gate weights over images (N, C, h, w) of trunk features, by fusion step.

    ``positive_1_first, positive_1_next, ...``; first: of what was fused so far, next: of the level
    that comes in.  Empty where the pooling layer has no gates.
    """
    gate_maps = getattr(network.pooling, "gate_maps", None)
    if gate_maps is None:
        return {}
    means = {}
    for step, gates in enumerate(gate_maps(network.cam(features.to(device()).float())), start=1):
        for sign in ("positive", "negative"):
            first, following = getattr(gates, sign).mean(dim=(0, 2, 3)).tolist()
            means |= {f"{sign}_{step}_first": first, f"{sign}_{step}_next": following}
    return means


def _networks(inputs: Mapping[str, Artefact]) -> Iterator[tuple[int, nn.Module]]:
    """Epoch and network, in order; 0 is the warm start."""
    if "warm_start" in inputs:
        yield 0, load_network(inputs["warm_start"])
    epoch = 1
    while (inputs["classifier"].folder / (name := f"epoch_{epoch}.safetensors")).is_file():
        yield epoch, load_network(inputs["classifier"], name)
        epoch += 1
