"""Chapter 8: controlled scenes, trainings over time, and every object of the scored scenes."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from aeft_lib import paths
from aeft_lib.data.scene import Scene
from aeft_lib.lab.ch08_effects import area_bins, by_bin
from aeft_lib.lab.session import Session
from aeft_lib.stages.measure_objects import FILE
from aeft_lib.studies import catalogue, pipeline, profiles, run
from aeft_lib.studies.conditions import CONDITIONS
from aeft_lib.studies.levels import BASE, levels
from aeft_lib.studies.settings import Profile

PHOTO_ROWS = ("gap", "average", "gated", "attract_soft_repel")


def controlled_scene(profile: Profile, level: str, index: int) -> Scene:
    """An unseen scene at a level, a key of `conditions.CONDITIONS`; for photos, the laptop's."""
    profile = profile if profile.controlled else profiles.LAPTOP
    return profile.under(CONDITIONS[level], repeat=0).val.open()[index]


def knob_pictures(profile: Profile, index: int) -> dict[str, np.ndarray]:
    """One unseen scene (H, W, 3) at every level, the base first, by the level's name."""
    rows = dict.fromkeys([BASE, *(level.row for level in levels())])
    return {row.replace("_", " "): controlled_scene(profile, row, index).image for row in rows}


def over_epochs(session: Session, study: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of a study that kept their epochs: (curves, spreads), ``row, label, repeat, epoch``.

    curves: precision and recall (percent) at one threshold, the best at the row's first epoch, and
    ``miou_best``.
    spreads: tag_map, spread of the CAMs and mean gates, see `stages.evaluate_epochs`.
    A study that is left out is read from its committed tables.
    """
    chosen = catalogue.get(study)
    if run.left_out(chosen, session.profile, session.n_repeats):
        return tuple(session.committed(f"{study}_{part}") for part in ("curves", "course"))
    curves, spreads = [], []
    for row in [row for row in chosen.rows if row.keep_epochs]:
        for repeat in chosen.repeats(session.n_repeats):
            folder = session.artefacts(row.name, repeat)["epochs"].folder
            names = {"row": row.name, "label": session.label(row), "repeat": repeat}
            epochs = pd.read_csv(folder / "epochs.csv")
            curves.append(_at_one_threshold(epochs).assign(**names))
            spreads.append(pd.read_csv(folder / "course.csv").assign(**names))
    return pd.concat(curves, ignore_index=True), pd.concat(spreads, ignore_index=True)


def _at_one_threshold(curves: pd.DataFrame) -> pd.DataFrame:
    """``epoch, precision, recall, miou_best``, at the threshold that is best at the first epoch."""
    start = curves[curves["epoch"] == curves["epoch"].min()]
    at = start.loc[start["miou"].idxmax(), "threshold"]
    fixed = curves[curves["threshold"] == at][["epoch", "precision", "recall"]]
    best = curves.groupby("epoch", as_index=False)["miou"].max()
    return fixed.merge(best.rename(columns={"miou": "miou_best"}), on="epoch")


def photo_objects(session: Session) -> pd.DataFrame:
    """Objects of photos by size, class and number of tags: ``kind`` and the columns of `by_bin`.

    kind: area, class or tags.
    Measured where the session's scenes are photos; else the committed table of 1,200 photos of VOC.
    """
    if session.pictures == "collages":
        file = paths.ROOT / "docs" / "real_photos_objects.csv"
        return paths.read_table(file)
    measured = objects(session, PHOTO_ROWS)
    classes = dict(enumerate(session.class_names))
    bins = {
        "area": area_bins(measured["area"]),
        "class": measured["class"].map(classes),
        "tags": measured["tags"].map(lambda n: str(n) if n < 3 else "3 and more"),
    }
    parts = [by_bin(measured, of_kind).assign(kind=kind) for kind, of_kind in bins.items()]
    return pd.concat(parts, ignore_index=True)


def objects(session: Session, names: Sequence[str]) -> pd.DataFrame:
    """Every object of the scored scenes: ``row, label, repeat`` and what `measure_objects` has."""
    tables = []
    for row in map(catalogue.row, names):
        for repeat in range(session.n_repeats):
            made = session.artefacts(row.name, repeat)
            profile = row.setting.applied(session.profile, repeat)
            measured = made.get("objects") or pipeline.objects(profile, made)
            table = pd.read_csv(measured.folder / FILE)
            tables.append(table.assign(row=row.name, label=session.label(row), repeat=repeat))
    return pd.concat(tables, ignore_index=True)
