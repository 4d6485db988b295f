"""Stages that score: seeds, refined scores and label maps against masks.

The first readers of masks.
"""

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


@dataclass(frozen=True)
class EvaluationSpec:
    """thresholds: increasing, in 0..1; label maps need none.  truth:

    digest of the scenes' masks.
    """

    scenes: SceneSet
    thresholds: tuple[float, ...] = ()
    truth: str = ""


def evaluate_seeds(
    spec: EvaluationSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Write ``sweep.npz`` (the counts at every threshold), ``curve.csv`` and ``classes.csv``; return the headline numbers."""
    scenes = spec.scenes.open()
    cams = (tuple(seed) for _, seed in read_seeds(inputs["seeds"].folder / "seeds.npz"))
    masks = (scenes.mask(i) for i in range(len(scenes)))
    swept = evaluation.sweep(cams, masks, spec.thresholds, num_classes=len(scenes.classes))
    np.savez_compressed(
        folder / "sweep.npz", tp=swept.tp, predicted=swept.predicted, true=swept.true, top=swept.top
    )
    swept.table().to_csv(folder / "curve.csv", index=False)
    _per_class(swept.at(swept.best), scenes.classes).to_csv(folder / "classes.csv", index=False)
    return _headline(swept) | {
        "tag_map": evaluation.mean_average_precision(*load_logits(inputs["seeds"]))
    }


def evaluate_scores(
    spec: EvaluationSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Score ``scores`` (seeds or posteriors, the one .npz of the artefact): at every threshold, and
    as ``labels`` has them.

    Write ``curve.csv`` and ``classes.csv`` (of the labels).  ``*_maskless`` are the numbers of the
    labels, chosen without masks; the others are at the best threshold on masks.
    """
    scenes = spec.scenes.open()
    (file,) = inputs["scores"].folder.glob("*.npz")
    cams = (tuple(seed) for _, seed in read_seeds(file))
    masks = (scenes.mask(i) for i in range(len(scenes)))
    swept = evaluation.sweep(cams, masks, spec.thresholds, num_classes=len(scenes.classes))
    swept.table().to_csv(folder / "curve.csv", index=False)
    best = {
        name: value for name, value in _headline(swept).items() if not name.endswith("maskless")
    }
    return best | {
        f"{name}_maskless": value
        for name, value in _of_labels(inputs["labels"], scenes, folder).items()
    }


def evaluate_labels(
    spec: EvaluationSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Score the label maps ``labels``; write ``classes.csv``; return mIoU, precision and recall in
    percent.

    Nothing was chosen on masks, so ``*_maskless`` are the same numbers.
    """
    numbers = _of_labels(inputs["labels"], spec.scenes.open(), folder)
    return numbers | {f"{name}_maskless": value for name, value in numbers.items()}


def _of_labels(labels: Artefact, scenes: Scenes, folder: Path) -> dict[str, float]:
    """Headline numbers of label maps, and their ``classes.csv``.

    Raises ValueError where a map does not fit its scene.
    """
    num_classes = len(scenes.classes)
    maps = (read_label_map(file, num_classes=num_classes) for file in label_files(labels))
    counts = evaluation.confusion(
        maps, (scenes.mask(i) for i in range(len(scenes))), num_classes=num_classes
    )
    _per_class(counts, scenes.classes).to_csv(folder / "classes.csv", index=False)
    return {
        "miou": float(counts.miou),
        "precision": float(counts.precision),
        "recall": float(counts.recall),
    }


def _headline(swept: evaluation.Sweep) -> dict[str, float]:
    """mIoU, precision, recall (all in percent) at the best threshold, and at the one chosen without masks."""
    best, blind = swept.best, swept.maskless
    return {
        "miou": float(swept.miou[best]),
        "precision": float(swept.precision[best]),
        "recall": float(swept.recall[best]),
        "threshold": float(swept.thresholds[best]),
        "miou_maskless": float(swept.miou[blind]),
        "precision_maskless": float(swept.precision[blind]),
        "recall_maskless": float(swept.recall[blind]),
        "threshold_maskless": float(swept.thresholds[blind]),
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
