"""Stage `count_images`: the pixel counts of every image, of which an evaluation is the sum.

From them objects and photos can be drawn anew, `studies.objects`.  It reads masks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aeft_lib.data.scene import SceneSet
from aeft_lib.maps import evaluation
from aeft_lib.maps.labels import read_label_map
from aeft_lib.maps.seeds import read_seeds
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.write_labels import label_files

FILE = "images.npz"
MASKLESS = "_maskless"
COUNTS = ("tp", "predicted", "true")


@dataclass(frozen=True)
class ImagesSpec:
    """truth: digest of the scenes' masks."""

    scenes: SceneSet
    truth: str = ""


def count_images(
    spec: ImagesSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Write ``images.npz``: int32 (3, N, K+1), `COUNTS` by image and class, background first.

    ``best``: at the seeds' best threshold of all images; ``maskless``: at the one without masks, or
    of label maps.
    inputs: ``labels``; or ``seeds`` and their ``evaluation``.
    """
    scenes = spec.scenes.open()
    masks = (scenes.mask(i) for i in range(len(scenes)))
    if "labels" in inputs:
        classes = len(scenes.classes)
        maps = (read_label_map(f, num_classes=classes) for f in label_files(inputs["labels"]))
        pairs = zip(maps, masks, strict=True)
        single = [evaluation.confusion([a], [b], num_classes=classes) for a, b in pairs]
        tables = {"maskless": _stacked(single)}
    else:
        summary = inputs["evaluation"].summary
        grid = sorted({summary["threshold"], summary[f"threshold{MASKLESS}"]})
        cams = (tuple(seed) for _, seed in read_seeds(inputs["seeds"].folder / "seeds.npz"))
        options = {"num_classes": len(scenes.classes)}
        pairs = zip(cams, masks, strict=True)
        swept = [evaluation.sweep([cam], [mask], grid, **options) for cam, mask in pairs]
        places = {"best": "threshold", "maskless": f"threshold{MASKLESS}"}
        places = {name: grid.index(summary[column]) for name, column in places.items()}
        tables = {name: _stacked([s.at(i) for s in swept]) for name, i in places.items()}
    np.savez_compressed(folder / FILE, **tables)
    return {"images": len(scenes)}


def read_counts(artefact: Artefact, metric: str) -> evaluation.Counts | None:
    """The counts (N, K+1) that a metric's name asks for; None where they are not there.

    metric: "miou", "precision" or "recall" at the best threshold, or the same with `MASKLESS`.
    """
    name = "maskless" if metric.endswith(MASKLESS) else "best"
    with np.load(artefact.folder / FILE) as file:
        return evaluation.Counts(*file[name].astype(np.int64)) if name in file else None


def _stacked(counts: list[evaluation.Counts]) -> np.ndarray:
    return np.array([[getattr(c, name) for c in counts] for name in COUNTS], dtype=np.int32)
