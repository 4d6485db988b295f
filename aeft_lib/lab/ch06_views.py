"""What notebook 6 shows: rows of the store, or without a training what the package gives."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from aeft_lib.engine.device import device
from aeft_lib.lab import ch05_untrained, label_rows, untrained
from aeft_lib.lab.session import Session
from aeft_lib.stages.predict_labels import predict
from aeft_lib.studies import catalogue, shipped

ROW = shipped.SEGMENTER
UNSEEN = "aeft_unseen"  # no network: pseudo-labels of unseen scenes, made with their tags
SUBMITTED = 20  # scenes that are predicted for a submission without a training


def classes(session: Session, rows: Sequence[str]) -> pd.DataFrame:
    """IoU, precision and recall per class of rows of label maps: ``label, repeat, class, ...``."""
    committed = session.instead(rows, "segmentation_classes")
    return session.classes(rows) if committed is None else committed


def scores(session: Session) -> pd.Series:
    """The IoU of the network's prediction of every unseen scene, by scene, the largest first."""
    table = session.instead([ROW], "segmentation_grid")
    if table is None:
        table = label_rows.scores(session.label_maps(ROW), session.scenes_of(ROW))
    return table.set_index("scene")["iou"].sort_values(ascending=False, kind="stable")


def label_maps(
    session: Session, titles: Mapping[str, str], indices: Sequence[int]
) -> tuple[list[list[np.ndarray]], list[str]]:
    """The label maps of rows, a line a scene, and the titles of those that are there.

    titles: row -> title.  A row that cannot be read is left out, and a line of output says so.
    """
    maps = {row: of_row(session, row, indices) for row in titles}
    if others := [row for row, of_row in maps.items() if of_row is None]:
        print(untrained.left_out(map(catalogue.row, others)))
    kept = [row for row in titles if row not in others]
    lines = [[maps[row][i] for row in kept] for i in range(len(indices))]
    return lines, [titles[row] for row in kept]


def of_row(session: Session, row: str, indices: Sequence[int]) -> list[np.ndarray] | None:
    """The label maps (H, W) uint8 of a row for some of its scenes; None where it cannot be read."""
    if session.has(row):
        every = session.label_maps(row)
        return [every[index] for index in indices]
    if row == UNSEEN and shipped.REFINED in shipped.known():
        cases = ch05_untrained.cases(session.profile, session.scenes_of(row), indices)
        maps = [ch05_untrained.label_maps(case, session.profile) for case in cases]
        return [of_scene[shipped.REFINED] for of_scene in maps]
    return predictions(session, indices) if row == ROW and ROW in shipped.known() else None


def predictions(session: Session, indices: Sequence[int]) -> list[np.ndarray]:
    """What the package's segmentation network says of some scored scenes, without tags."""
    profile = session.profile
    network = shipped.network(profile, catalogue.row(ROW)).to(device())
    images = (session.scenes.image(index) for index in indices)
    return [predict(network, image, profile.segmentation.scales) for image in images]


def to_submit(session: Session) -> list[np.ndarray]:
    """Label maps (H, W) uint8 for a submission: the network's, of all scenes or of the first.

    Where there is no network, the scenes' own masks stand in, and a line of output says so.
    """
    count = len(session.scenes)
    indices = range(count if session.has(ROW) else min(SUBMITTED, count))
    maps = of_row(session, ROW, indices)
    if maps is None:
        print("no segmentation network in the package: true masks stand in, to show the layout")
        maps = [session.scenes.mask(index) for index in indices]
    return maps
