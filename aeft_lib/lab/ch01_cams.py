"""Chapter 1: how each object's CAM fits it, and the two problems of CAMs on scenes by rule."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from aeft_lib.lab import figures
from aeft_lib.lab.session import Session
from aeft_lib.maps.cam_fit import object_fits
from aeft_lib.maps.labels import label_map
from aeft_lib.studies import catalogue


def cam_fit(session: Session, rows: Sequence[str]) -> pd.DataFrame:
    """How each object's CAM fits it, a line per row, repeat, scene and tagged class.

    ``row, label, repeat, scene, class, area, spill, coverage``, see `maps.cam_fit.object_fits`.
    """
    scenes, lines = session.scenes, []
    masks = [scenes.mask(index) for index in range(len(scenes))]
    for row in map(catalogue.row, rows):
        for repeat in range(session.n_repeats):
            names = {"row": row.name, "label": session.label(row), "repeat": repeat}
            for index, seed in enumerate(session.seeds(row.name, repeat)):
                fits = object_fits(seed, masks[index])
                lines += [names | {"scene": index, **fit} for fit in fits]
    return pd.DataFrame(lines)


def extreme_cases(session: Session, row: str, repeat: int = 0) -> dict[str, int]:
    """Scene numbers of an imprecise and a sparse CAM by rule, among lone objects.

    The objects fill 5-40 % of their scene; where none does, all lone objects count, and where none
    is alone, all objects.
    imprecise: the largest spill among the better covered half.
    sparse: the least coverage among the less spilling half.
    """
    fits = cam_fit(session, [row]).query("repeat == @repeat")
    alone = fits.groupby("scene").filter(lambda group: len(group) == 1)
    sets = (alone.query("0.05 <= area <= 0.4"), alone, fits)
    fits = next(part for part in sets if len(part)).fillna({"spill": 1.0, "coverage": 0.0})
    covered = fits[fits["coverage"] >= fits["coverage"].median()]
    tight = fits[fits["spill"] <= fits["spill"].median()]
    return {
        "imprecise": int(covered.loc[covered["spill"].idxmax(), "scene"]),
        "sparse": int(tight.loc[tight["coverage"].idxmin(), "scene"]),
    }


def case(session: Session, index: int, row: str, repeat: int = 0) -> dict[str, np.ndarray]:
    """A scene with its first class's object, CAM and seed at the row's best threshold.

    ``image`` (H, W, 3) uint8, ``cam`` (H, W) in 0..1, ``truth`` and ``predicted`` (H, W) bool.
    """
    scene, seed = session.scenes[index], session.seeds(row, repeat)[index]
    threshold = session.artefacts(row, repeat)["evaluation"].summary["threshold"]
    label = int(seed.class_ids[0]) + 1
    maps = {"truth": scene.mask == label, "predicted": label_map(*seed, threshold) == label}
    return {"image": scene.image, "cam": seed.cam[0].numpy(), **maps}


def cam_problems(cases: Sequence[Mapping[str, np.ndarray]], labels: Sequence[str]) -> Figure:
    """The two problems of CAMs, one `case` a row."""
    rows = [
        (
            case["image"],
            figures.overlay(case["image"], case["truth"].astype(float)),
            figures.overlay(case["image"], case["cam"]),
            figures.agreement(case["image"], case["predicted"], case["truth"]),
        )
        for case in cases
    ]
    titles = ("image", "object", "CAM (GAP)", "seed against object")
    figure = figures.picture_grid(rows, titles, labels)
    colours = {"hit": figures.HIT, "spill": figures.SPILL, "missed": figures.MISS}
    figures.colour_legend(figure, colours)
    return figure
