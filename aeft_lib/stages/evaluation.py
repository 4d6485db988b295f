"""Stage `evaluate_seeds`: seeds against masks at every threshold, and the mAP of the tags.  The first reader of masks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from aeft_lib import evaluation
from aeft_lib.data.collages import Collages, SceneSpec, load_pack
from aeft_lib.runs import Artefact
from aeft_lib.seeds import read_seeds
from aeft_lib.stages.seeds import load_logits


@dataclass(frozen=True)
class EvaluationSpec:
    """thresholds: increasing, in 0..1."""

    scenes: SceneSpec
    thresholds: tuple[float, ...]


def evaluate_seeds(spec: EvaluationSpec, inputs: Mapping[str, Artefact], folder: Path) -> dict[str, float]:
    """Write ``sweep.npz`` (the counts at every threshold), ``curve.csv`` and ``classes.csv``; return the headline numbers."""
    scenes = Collages(spec.scenes, load_pack())
    cams = (tuple(seed) for _, seed in read_seeds(inputs["seeds"].folder / "seeds.npz"))
    masks = (scenes[i].mask for i in range(len(scenes)))
    swept = evaluation.sweep(cams, masks, spec.thresholds, num_classes=len(scenes.classes))
    np.savez_compressed(folder / "sweep.npz", tp=swept.tp, predicted=swept.predicted, true=swept.true, top=swept.top)
    _curve(swept).to_csv(folder / "curve.csv", index=False)
    _per_class(swept, scenes.classes).to_csv(folder / "classes.csv", index=False)
    return _headline(swept) | {"tag_map": evaluation.mean_average_precision(*load_logits(inputs["seeds"]))}


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


def _curve(swept: evaluation.Sweep) -> pd.DataFrame:
    return pd.DataFrame(
        {"threshold": swept.thresholds, "miou": swept.miou, "precision": swept.precision, "recall": swept.recall}
    )


def _per_class(swept: evaluation.Sweep, classes: tuple[str, ...]) -> pd.DataFrame:
    at = swept.at(swept.best)
    return pd.DataFrame(
        {
            "class": ("background", *classes),
            "iou": 100 * at.iou,
            "precision": 100 * at.tp / np.maximum(at.predicted, 1),
            "recall": 100 * at.tp / np.maximum(at.true, 1),
        }
    )
