"""Stages that score seeds, refined scores and label maps against masks, which they read first."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from aeft_lib.data.scene import Scenes, SceneSet
from aeft_lib.maps import evaluation
from aeft_lib.maps.labels import read_label_map
from aeft_lib.maps.seeds import read_seeds
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.reading import load_logits
from aeft_lib.stages.write_labels import label_files

METRICS = ("miou", "precision", "recall")


@dataclass(frozen=True)
class EvaluationSpec:
    """thresholds: increasing, in 0..1; label maps need none.  truth: digest of the masks."""

    scenes: SceneSet
    thresholds: tuple[float, ...] = ()
    truth: str = ""


def evaluate_seeds(
    spec: EvaluationSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Write ``sweep.npz`` (counts), ``curve.csv``, ``classes.csv``; return the headline numbers.

    Where no mask has some class, here as below, ``absent`` classes and ``miou_present`` too.
    """
    scenes = spec.scenes.open()
    cams = (tuple(seed) for _, seed in read_seeds(inputs["seeds"].folder / "seeds.npz"))
    masks = (scenes.mask(i) for i in range(len(scenes)))
    swept = evaluation.sweep(cams, masks, spec.thresholds, num_classes=len(scenes.classes))
    counts = {name: getattr(swept, name) for name in ("tp", "predicted", "true", "top")}
    np.savez_compressed(folder / "sweep.npz", **counts)
    swept.table().to_csv(folder / "curve.csv", index=False)
    _per_class(swept.at(swept.best), scenes.classes).to_csv(folder / "classes.csv", index=False)
    tag_map = evaluation.mean_average_precision(*load_logits(inputs["seeds"]))
    return _headline(swept) | {"tag_map": tag_map} | _absence(swept.at(swept.best))


def evaluate_scores(
    spec: EvaluationSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Score ``scores`` (the file that their ``labels`` read) at every threshold, and the labels.

    Write ``curve.csv`` and ``classes.csv`` (of the labels).  ``*_maskless`` are the numbers of the
    labels, chosen without masks; the others are at the best threshold on masks.
    """
    scenes = spec.scenes.open()
    file = inputs["scores"].folder / inputs["labels"].spec.file
    cams = (tuple(seed) for _, seed in read_seeds(file))
    masks = (scenes.mask(i) for i in range(len(scenes)))
    swept = evaluation.sweep(cams, masks, spec.thresholds, num_classes=len(scenes.classes))
    swept.table().to_csv(folder / "curve.csv", index=False)
    headline = _headline(swept).items()
    best = {name: value for name, value in headline if not name.endswith("maskless")}
    maskless = _headline_of(_of_labels(inputs["labels"], scenes, folder)).items()
    numbers = best | {f"{name}_maskless": value for name, value in maskless}
    return numbers | _absence(swept.at(swept.best))


def evaluate_labels(
    spec: EvaluationSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Score ``labels``; write ``classes.csv``; return mIoU, precision and recall in percent.

    Nothing was chosen on masks, so ``*_maskless`` are the same numbers.
    """
    counts = _of_labels(inputs["labels"], spec.scenes.open(), folder)
    numbers = _headline_of(counts)
    maskless = {f"{name}_maskless": value for name, value in numbers.items()}
    return numbers | maskless | _absence(counts)


def _of_labels(labels: Artefact, scenes: Scenes, folder: Path) -> evaluation.Counts:
    """Counts of label maps, and their ``classes.csv``.

    Raises ValueError where a map does not fit its scene.
    """
    num_classes = len(scenes.classes)
    maps = (read_label_map(file, num_classes=num_classes) for file in label_files(labels))
    masks = (scenes.mask(i) for i in range(len(scenes)))
    counts = evaluation.confusion(maps, masks, num_classes=num_classes)
    _per_class(counts, scenes.classes).to_csv(folder / "classes.csv", index=False)
    return counts


def _headline_of(counts: evaluation.Counts) -> dict[str, float]:
    return {name: float(getattr(counts, name)) for name in METRICS}


def _absence(counts: evaluation.Counts) -> dict[str, float]:
    """How many classes no mask has, and the mIoU of the others, where there are such classes.

    ``no_background`` where the background is one of them.  Raises ValueError as `check_counted`.
    """
    evaluation.check_counted(counts)
    if not counts.absent:
        return {}
    numbers = {"absent": int(counts.absent), "miou_present": float(counts.miou_present)}
    return numbers if counts.true[0] else numbers | {"no_background": 1}


def _headline(swept: evaluation.Sweep) -> dict[str, float]:
    """mIoU, precision, recall (percent) at the best threshold, and at the one without masks."""
    columns = {name: getattr(swept, name) for name in METRICS} | {"threshold": swept.thresholds}
    return {
        f"{name}{suffix}": float(values[index])
        for suffix, index in (("", swept.best), ("_maskless", swept.maskless))
        for name, values in columns.items()
    }


def _per_class(at: evaluation.Counts, classes: tuple[str, ...]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "class": ("background", *classes),
            "iou": 100 * at.iou,
            "precision": 100 * at.tp / np.maximum(at.predicted, 1),
            "recall": 100 * at.tp / np.maximum(at.true, 1),
        }
    )
