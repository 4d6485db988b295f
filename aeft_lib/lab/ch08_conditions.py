"""What notebook 8 reads from artefacts: trainings over time, and every object of the scored scenes."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from aeft_lib import paths
from aeft_lib.data.scene import Scene
from aeft_lib.lab.ch08_effects import area_bins, by_bin, levels
from aeft_lib.lab.session import Session
from aeft_lib.stages.measure_objects import FILE
from aeft_lib.studies import profiles, rows, run
from aeft_lib.studies.conditions import CONDITIONS
from aeft_lib.studies.settings import Profile

PHOTO_ROWS = ("gap", "average", "gated", "attract_soft_repel")


def controlled_scene(profile: Profile, level: str, index: int) -> Scene:
    """An unseen scene at a level (a key of `condition_studies.CONDITIONS`); a profile of photos shows the laptop's."""
    profile = profile if profile.controlled else profiles.LAPTOP
    return (profile.under(CONDITIONS[level], seed=0).val).open()[index]


def knob_pictures(profile: Profile, index: int) -> dict[str, dict[str, np.ndarray]]:
    """One unseen scene (H, W, 3) at every level, by knob and level."""
    pictures: dict[str, dict[str, np.ndarray]] = {}
    for level in levels():
        pictures.setdefault(level.knob, {})[f"{level.value:g}"] = controlled_scene(profile, level.row, index).image
    return pictures


def courses(session: Session, study: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of a study that kept their epochs, over time: (curves, course), long, with ``row, label, seed, epoch``.

    curves: precision and recall (percent) at one threshold, the best at the first look of that row, and ``miou_best``.
    course: tag_map, the spread of the CAMs, mean gates, see `stages.epochs`.
    A study that is left out is read from its committed tables.
    """
    chosen = run.get(study)
    names = (f"{study}_curves", f"{study}_course")
    if run.left_out(chosen, session.profile, session.n_seeds):
        return tuple(session.committed(name) for name in names)
    curves, course = [], []
    for row in [row for row in chosen.rows if row.keep_epochs]:
        for seed in chosen.seeds(session.n_seeds):
            folder = session.artefacts(row.name, seed)["epochs"].folder
            tags = {"row": row.name, "label": row.label, "seed": seed}
            curves.append(_at_one_threshold(pd.read_csv(folder / "epochs.csv")).assign(**tags))
            course.append(pd.read_csv(folder / "course.csv").assign(**tags))
    return pd.concat(curves, ignore_index=True), pd.concat(course, ignore_index=True)


def _at_one_threshold(curves: pd.DataFrame) -> pd.DataFrame:
    """``epoch, precision, recall, miou_best``, at the threshold that is best at the first epoch."""
    start = curves[curves["epoch"] == curves["epoch"].min()]
    at = start.loc[start["miou"].idxmax(), "threshold"]
    fixed = curves[curves["threshold"] == at][["epoch", "precision", "recall"]]
    return fixed.merge(curves.groupby("epoch", as_index=False)["miou"].max().rename(columns={"miou": "miou_best"}), on="epoch")


def photo_objects(session: Session) -> pd.DataFrame:
    """Objects of real photos by size, class and number of tags: ``kind`` (area, class, tags) and the columns of `by_bin`.

    Measured where the session's scenes are photos; else the committed table of 1,200 photos of VOC.
    """
    if session.profile.controlled is not None:
        return pd.read_csv(paths.ROOT / "docs" / "real_photos_objects.csv")
    measured = objects(session, PHOTO_ROWS)
    classes = dict(enumerate(session.scenes.classes))
    bins = {
        "area": area_bins(measured["area"]),
        "class": measured["class"].map(classes),
        "tags": measured["tags"].map(lambda n: str(n) if n < 3 else "3 and more"),
    }
    return pd.concat([by_bin(measured, of_kind).assign(kind=kind) for kind, of_kind in bins.items()], ignore_index=True)


def objects(session: Session, names: Sequence[str]) -> pd.DataFrame:
    """Every object of the scenes that seeds are scored on, for rows and seeds: ``row, label, seed`` and `measure_objects`."""
    tables = []
    for row in map(run.row, names):
        for seed in range(session.n_seeds):
            found = session.artefacts(row.name, seed)
            measured = found.get("objects") or rows.objects(row.profile(session.profile, seed), found)
            tables.append(pd.read_csv(measured.folder / FILE).assign(row=row.name, label=row.label, seed=seed))
    return pd.concat(tables, ignore_index=True)
