"""Stages `write_labels` and `true_labels`: labels for a segmentation network, as palette PNGs.

`write_labels` reads scores alone.  `true_labels` copies the masks, for the fully supervised
ceiling; it is the one place where a mask can enter a training.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from aeft_lib.data.scene import SceneSet
from aeft_lib.maps.labels import label_map, statistics, write_label_map
from aeft_lib.maps.seeds import read_seeds
from aeft_lib.stages.artefact import Artefact

FOLDER, TABLE = "labels", "labels.csv"


@dataclass(frozen=True)
class LabelSpec:
    """file: of the scores artefact.

    by_threshold: at the threshold of ``background``; False: scores are posteriors.
    """

    file: str
    by_threshold: bool


@dataclass(frozen=True)
class TruthSpec:
    """scenes: whose masks are copied.  truth: digest of the masks."""

    scenes: SceneSet
    truth: str = ""


def write_labels(spec: LabelSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float]:
    """Read ``scores`` (and ``background``); write ``labels/<name>.png`` and ``labels.csv``."""
    threshold = inputs["background"].summary["threshold"] if spec.by_threshold else None
    scores = read_seeds(inputs["scores"].folder / spec.file)
    return write_all(folder, ((name, label_map(*seed, threshold)) for name, seed in scores))


def true_labels(spec: TruthSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float]:
    """Write the true masks in the same form."""
    scenes = spec.scenes.open()
    return write_all(folder, ((f"{i:05d}", scenes.mask(i)) for i in range(len(scenes))))


def write_all(folder: Path, named: Iterator[tuple[str, np.ndarray]]) -> dict[str, float]:
    """Write label maps and their table; returns their number and mean part of foreground."""
    (folder / FOLDER).mkdir(exist_ok=True)
    lines = []
    for name, labels in named:
        write_label_map(folder / FOLDER / f"{name}.png", labels)
        lines.append({"name": name, **statistics(labels)})
    table = pd.DataFrame(lines, columns=["name", "classes", "foreground", "void"])
    table.to_csv(folder / TABLE, index=False, float_format="%.4f")
    return {"images": len(table), "foreground": float(table["foreground"].mean())}


def label_files(artefact: Artefact) -> list[Path]:
    """The label maps of an artefact, in the order of their names."""
    return sorted((artefact.folder / FOLDER).glob("*.png"))
