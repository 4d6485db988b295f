"""Stage `measure_objects`: how seeds fit every object, a line each.  It reads masks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from aeft_lib.data.scene import SceneSet
from aeft_lib.maps.cam_fit import object_counts, object_fits, spread
from aeft_lib.maps.seeds import read_seeds
from aeft_lib.stages.artefact import Artefact

FILE = "objects.csv"
FITS = ("class", "area", "spill", "coverage")
COLUMNS = ["scene", "tags", *FITS, "entropy", "half_area", "tp", "predicted", "true"]


@dataclass(frozen=True)
class ObjectsSpec:
    """truth: digest of the scenes' masks."""

    scenes: SceneSet
    truth: str = ""


def measure_objects(
    spec: ObjectsSpec, inputs: Mapping[str, Artefact], folder: Path
) -> dict[str, float]:
    """Read ``seeds``, ``evaluation``; write ``objects.csv``; return mean entropy and half_area.

    Columns: scene, class, tags (of the scene), the measures of `maps.cam_fit` (area, spill,
    coverage, entropy, half_area), and tp, predicted, true at the seeds' best threshold.
    """
    scenes, threshold = spec.scenes.open(), inputs["evaluation"].summary["threshold"]
    lines = []
    for index, (_, seed) in enumerate(read_seeds(inputs["seeds"].folder / "seeds.npz")):
        mask = scenes.mask(index)
        fits, by_class = object_fits(seed, mask), object_counts(seed, mask, threshold)
        for fit, counts, cam in zip(fits, by_class, seed.cam, strict=True):
            entropy, half_area = spread(cam)
            of_scene = {"scene": index, "tags": len(seed.class_ids)}
            lines.append(of_scene | fit | {"entropy": entropy, "half_area": half_area} | counts)
    table = pd.DataFrame(lines, columns=COLUMNS)
    table.to_csv(folder / FILE, index=False, float_format="%.6g")
    names = () if table.empty else ("entropy", "half_area")
    return {name: float(table[name].mean()) for name in names}
