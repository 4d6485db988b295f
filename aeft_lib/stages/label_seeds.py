"""Stage `label_seeds`: pseudo-labels straight from seeds, by a label maker that trains nothing.

A label maker is a frozen dataclass, which the spec names: it takes an image with its seed to a
label map, and says in numbers what its mechanism did there, without a mask.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch

from aeft_lib.data.scene import SceneSet
from aeft_lib.engine import ranks
from aeft_lib.engine.device import device
from aeft_lib.engine.shards import over_images
from aeft_lib.maps.seeds import Seed, read_seeds
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.write_labels import write_all

MECHANISM = "mechanism.csv"
Labelled = tuple[np.ndarray, Mapping[str, float]]


class LabelMaker(Protocol):
    """Turns one seed into one label map."""

    def label(self, image: np.ndarray, seed: Seed, background: Mapping[str, float]) -> Labelled:
        """The label map (H, W) uint8, and named numbers of the mechanism.

        image: (H, W, 3) uint8 RGB.  seed: of at least one class, its CAM on the device.
        background: ``threshold, low, middle, high``, see `choose_background`.
        """


@dataclass(frozen=True)
class LabelMakerSpec:
    """scenes: of the seeds.  maker: of the label maps."""

    scenes: SceneSet
    maker: LabelMaker


@ranks.collective
def label_seeds(
    spec: LabelMakerSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Read ``seeds`` and ``background``; write label maps as `write_labels` does.

    ``mechanism.csv`` has the maker's numbers, a line an image that has a tag; the summary has their
    means.
    """
    file, background = inputs["seeds"].folder / "seeds.npz", inputs["background"].summary
    labelled = over_images(_labelled, len(spec.scenes.open()), spec, file, background)
    lines: list[dict[str, float | str]] = []

    def maps() -> Iterator[tuple[str, np.ndarray]]:
        for name, labels, numbers in labelled:
            if numbers:
                lines.append({"name": name, **numbers})
            yield name, labels

    summary = write_all(folder, maps())
    table = pd.DataFrame(lines)
    table.to_csv(folder / MECHANISM, index=False, float_format="%.5f")
    return summary | {n: float(table[n].mean()) for n in table.columns if n != "name"}


@torch.inference_mode()
def _labelled(
    indices: range, spec: LabelMakerSpec, file: Path, background: Mapping[str, float]
) -> list[tuple[str, np.ndarray, Mapping[str, float]]]:
    """Name, label map and numbers of these scenes; without tags all is background."""
    scenes, labelled = spec.scenes.open(), []
    named = read_seeds(file, [f"{i:05d}" for i in indices])
    for index, (name, seed) in zip(indices, named, strict=True):
        if len(seed.cam):
            seed = seed._replace(cam=seed.cam.to(device()))
            result = spec.maker.label(scenes.image(index), seed, background)
        else:
            result = np.zeros(seed.cam.shape[1:], dtype=np.uint8), {}
        labelled.append((name, *result))
    return labelled
