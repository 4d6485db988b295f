"""Stage `evaluate_steps`: what a training on views had learned at every point, in a small table."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine.device import device
from aeft_lib.engine.samples import Batch
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.loading import WEIGHTS, load_network
from aeft_lib.stages.method import Method

STEPS = "steps.csv"
PROBED = 40  # scenes whose embeddings are averaged


@dataclass(frozen=True)
class StepsSpec:
    """scenes: those of `evaluate_epochs`.

    probe: whose embeddings of an image and of the same image erased are measured; None: of none.
    """

    scenes: SceneSet
    probe: Method | None = None


def evaluate_steps(
    spec: StepsSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Write ``steps.csv``, a line a point; the one before the first step is the warm start.

    ``step``, ``part`` of the training (0..1); ``tag_map`` on these scenes, ``miou, precision,
    recall`` (percent) at the point's best ``threshold``; ``entropy, half_area`` of the CAMs and
    gates as `evaluate_epochs`; ``e_anchor, e_positive``: embeddings of the probe, mean over the
    tagged classes of 40 scenes.
    inputs: ``epochs`` of `evaluate_epochs` and what it read: ``classifier`` of `train_on_views`,
    ``features`` of the scenes, ``warm_start``.
    """
    tables = (inputs["epochs"].folder / name for name in ("epochs.csv", "course.csv"))
    curves, course = map(pd.read_csv, tables)
    best = curves.loc[curves.groupby("epoch")["miou"].idxmax()]
    trained = inputs["classifier"].spec
    per_epoch = trained.schedule.epoch_steps(len(trained.scenes.open()))
    table = course.merge(best, on="epoch").rename(columns={"epoch": "point"})
    table.insert(1, "part", table["point"] / table["point"].max())
    table.insert(1, "step", (table["part"] * trained.schedule.epochs).round().astype(int))
    table["step"] *= per_epoch
    if spec.probe:
        embedded = [_embeddings(_network(inputs, point), spec) for point in table["point"]]
        table = table.join(pd.DataFrame(embedded))
    table.to_csv(folder / STEPS, index=False)
    return {"points": int(table["point"].max())}


def _network(inputs: Mapping[str, Artefact], point: int) -> nn.Module:
    """The classifier as it was at a point; 0 is the warm start."""
    if point == 0:
        return load_network(inputs["warm_start"], WEIGHTS)
    return load_network(inputs["classifier"], f"epoch_{point}.safetensors")


@torch.inference_mode()
def _embeddings(network: nn.Module, spec: StepsSpec) -> dict[str, float]:
    """Mean embedding of the tagged classes, as they are and erased, over the first scenes."""
    network, scenes = network.to(device()), spec.scenes.open()
    indices = range(min(PROBED, len(scenes)))
    images = np.stack([scenes.image(i) for i in indices])
    tags = torch.from_numpy(np.stack([scenes.tags(i) for i in indices])).to(device())
    images = torch.from_numpy(images).permute(0, 3, 1, 2).to(device())
    measured = spec.probe.measure(network, Batch(network.backbone.normalise(images), tags=tags))
    names = {"e_anchor": "anchor", "e_positive": "positive"}
    return {name: measured[own][tags].mean().item() for name, own in names.items()}
