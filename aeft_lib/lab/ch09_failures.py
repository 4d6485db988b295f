"""Chapter 9: the scene in which each system fails worst, kept over sessions and machines.

A rule picks it: the scene with the largest loss of IoU against GAP.  Label maps of systems that the
store lacks are the committed ones, as long as their key is today's (`studies.collected`).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from aeft_lib import paths
from aeft_lib.lab.ch09_figures import Failure
from aeft_lib.lab.session import Session
from aeft_lib.maps.cam_fit import tagged_iou
from aeft_lib.maps.labels import label_map, read_label_map, write_label_map
from aeft_lib.stages.write_labels import label_files
from aeft_lib.studies import catalogue, collected, shipped
from aeft_lib.studies.rows import Row
from aeft_lib.studies.systems import SYSTEMS, System, ends, own_row

NAME = "rivals_failures"
COLUMNS = ["name", "method", "scene", "loss", "key"]
KEPT_SIDE = 144  # pixels of the longer side: what the figure shows of a map
REPEAT = 0


def failures(lab: Session) -> list[Failure]:
    """Of every system whose maps are at hand: in the store, from shipped weights, or committed."""
    rows, committed = catalogue.rows_by_name(), _committed(lab)
    cases = (_of_system(lab, known, rows, committed) for known in SYSTEMS)
    return [case for case in cases if case is not None]


def _of_system(
    lab: Session, known: System, rows: dict[str, Row], committed: pd.DataFrame
) -> Failure | None:
    """Of the first of a system's rows whose maps are at hand."""
    for row in _shown(known, rows):
        base = rows["gap_pseudo" if row.scored_on == "train" else "gap"]
        if all(lab.at_hand(needed.name) for needed in (row, base)):
            return _failure(lab, known, row, base)
        if known.name in committed.index:
            line = committed.loc[known.name]
            if collected.is_todays(lab.profile, row, REPEAT, line["key"]):
                image = lab.profile.scenes(row.scored_on).open().image(int(line["scene"]))
                return _kept(known, line, image, lab.num_classes)
    return None


def table(cases: Sequence[Failure]) -> pd.DataFrame:
    """``name, method, scene, loss, key``: points of IoU against GAP, in the worst scene of each."""
    lines = [{name: getattr(case, name) for name in COLUMNS} for case in cases]
    return pd.DataFrame(lines, columns=COLUMNS)


def keep(lab: Session, cases: Sequence[Failure]) -> None:
    """Write the maps of every case beside the session's figures, ``rivals_failures/NAME.png``."""
    folder = lab.figures_folder / NAME
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        maps = [_small(labels) for labels in (case.truth, case.base, case.own)]
        write_label_map(folder / f"{case.name}.png", np.concatenate(maps, axis=1))


def _shown(known: System, rows: dict[str, Row]) -> list[Row]:
    """The rows whose maps stand for a system: its own seeds, else its label maps."""
    found = ends(known, rows)
    first = found.get("seed") if known.is_paper else own_row(known, rows)
    chosen = [first] if known.is_paper else [first, found.get("pseudo")]
    return [row for row in dict.fromkeys(chosen) if row is not None]


def _failure(lab: Session, known: System, row: Row, base: Row) -> Failure:
    scenes = lab.profile.scenes(row.scored_on).open()
    own, others = _maps(lab, row), _maps(lab, base)

    def gain(index: int) -> float:
        classes, mask = np.flatnonzero(scenes.tags(index)).tolist(), scenes.mask(index)
        mine, theirs = (tagged_iou(maps[index], mask, classes) for maps in (own, others))
        return 100 * (mine - theirs)

    gains = [gain(index) for index in range(len(scenes))]
    worst = int(np.argmin(gains))
    pictures = (scenes.image(worst), scenes.mask(worst), others[worst], own[worst])
    key = collected.key(lab.profile, row, REPEAT)
    return Failure(known.name, known.title, worst, gains[worst], key, *pictures)


def _maps(lab: Session, row: Row) -> list[np.ndarray]:
    """The label maps (H, W) of a row: those it made, or its seeds at their best threshold."""
    made = lab.artefacts(row.name)
    if row.refiner:
        files = label_files(made["labels"])
        return [read_label_map(file, num_classes=lab.num_classes) for file in files]
    threshold = made["evaluation"].summary["threshold"]
    return [label_map(*seed, threshold) for seed in lab.seeds(row.name)]


def _committed(lab: Session) -> pd.DataFrame:
    """The committed table by the systems' names; empty where the profile is not the committed one.

    Raises ValueError for a damaged file.
    """
    file = paths.FIGURES / f"{NAME}.csv"
    if lab.profile.name != shipped.PROFILE or not file.is_file():
        return pd.DataFrame(columns=COLUMNS).set_index("name")
    return paths.read_table(file).set_index("name")


def _kept(known: System, line: pd.Series, image: np.ndarray, num_classes: int) -> Failure:
    file = paths.FIGURES / NAME / f"{known.name}.png"
    maps = np.split(read_label_map(file, num_classes=num_classes), 3, axis=1)
    told = (int(line["scene"]), line["loss"], line["key"])
    return Failure(known.name, known.title, *told, _small(image), *maps)


def _small(picture: np.ndarray) -> np.ndarray:
    """Every n-th pixel, nearest: the longer side has no more than `KEPT_SIDE`."""
    step = max(1.0, max(picture.shape[:2]) / KEPT_SIDE)
    rows, columns = (
        (np.arange(int(side / step)) * step + step / 2).astype(int) for side in picture.shape[:2]
    )
    return picture[rows[:, None], columns]
