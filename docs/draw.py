"""What README and book show beside the notebooks' figures; ``python docs/draw.py [NAME]``.

``task`` is the README's picture.  ``threshold``, ``pyramid``, ``triplet`` and ``affinity`` are the
frames behind the widgets of notebooks 1, 2, 4 and 5.  All come from the trained weights of the
package, or from rows of the store; nothing is trained.  Frames of ``affinity`` need an AffinityNet.
"""

import os
import sys
from collections.abc import Callable, Sequence
from unittest import mock

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from aeft_lib import paths
from aeft_lib.lab import ch01_cams, ch04_triplet, ch05_case, demo, figures, widgets
from aeft_lib.lab import ch05_pseudo_labels as ch05
from aeft_lib.lab.session import Session, open_session
from aeft_lib.maps.cam_fit import tagged_iou
from aeft_lib.paper.classifier import CamClassifier
from aeft_lib.paper.triplet import REFERENCE
from aeft_lib.studies import shipped
from aeft_lib.studies.names import unknown

FRAMES = paths.ROOT / "docs" / "static" / "frames"
TASK = "task"


def task_picture(readings: Sequence[demo.Read], classes: Sequence[str]) -> Figure:
    """From an image and its tags to a label for every pixel, a line a scene.

    Its CAMs under GAP and GPP, the pseudo-label of AEFT's seed, and the truth.
    """
    rows, labels = [], []
    for read in readings:
        image = read.shown.image
        cams = [figures.overlay(image, read.cams[name]) for name in ("GAP", "GPP")]
        rows.append([image, *cams, _pseudo_label(read), read.maps["truth"]])
        labels.append("\n".join(read.tags.removeprefix("tags ").split(", ")))
    titles = ("image and tags", "CAM, GAP", "CAM, GPP", "pseudo-label", "truth")
    return figures.picture_grid(rows, titles, labels, classes)


def task_table(readings: Sequence[demo.Read]) -> pd.DataFrame:
    """Scene, tags, and the mean IoU of the pseudo-label over the tagged classes (percent)."""
    lines = []
    for read in readings:
        ids = np.asarray(read.shown.class_ids).tolist()
        iou = 100 * tagged_iou(_pseudo_label(read), read.maps["truth"], ids)
        tags = read.tags.removeprefix("tags ")
        lines.append({"scene": read.shown.name, "tags": tags, "pseudo_label_iou": iou})
    return pd.DataFrame(lines)


def _pseudo_label(read: demo.Read) -> np.ndarray:
    return next(labels for name, labels in read.maps.items() if name.startswith("pseudo-label"))


def draw_task(session: Session) -> None:
    """Write the README's picture with its numbers to ``figures/``."""
    networks = demo.open_networks()
    readings = [demo.read(shown, networks) for shown in demo.example_scenes(session.scenes)]
    figure = task_picture(readings, networks.classes)
    figures.save(figure, TASK, task_table(readings), paths.FIGURES)


def threshold(session: Session) -> None:
    """The widget of notebook 1."""
    chosen = ch01_cams.extreme_cases(session, "gap")["imprecise"]
    widgets.threshold(ch01_cams.case(session, chosen, "gap"))


def pyramid(session: Session) -> None:
    """The widget of notebook 2."""
    chosen, network = ch01_cams.extreme_cases(session, "gated")["imprecise"], _gated(session)
    scene, cam = session.scenes[chosen], session.output(network, chosen).cam
    widgets.pyramid(scene.image, cam, network.pooling, int(scene.tags.argmax()))


def triplet(session: Session) -> None:
    """The widget of notebook 4."""
    anchor = ch01_cams.extreme_cases(session, "gated")["sparse"]
    case = ch04_triplet.triplet(session, anchor, ch04_triplet.first_negative(session, anchor))
    class_id = int(case.anchor.tags.nonzero()[0][0])
    network, shown = _gated(session), (case.anchor.image, case.output)
    widgets.triplet(*shown, network.pooling, class_id, REFERENCE, network)


def affinity(session: Session) -> None:
    """The widget of notebook 5.  Raises ValueError where neither store nor package has its row."""
    if not _has_affinity(session):
        raise ValueError(f"frames of affinity need row {ch05.ROW} in the store or the package")
    case = ch05.refinement(session, ch05.middle_scene(ch05.gains(session)))
    widgets.affinity(case, ch05_case.strongest_cell(case))


def _has_affinity(session: Session) -> bool:
    return session.has(ch05.ROW) or shipped.REFINED in shipped.known()


def _gated(session: Session) -> CamClassifier:
    return session.network("gated")


DRAWN: dict[str, Callable[[Session], None]] = {
    TASK: draw_task,
    "threshold": threshold,
    "pyramid": pyramid,
    "triplet": triplet,
    "affinity": affinity,
}


def draw(names: Sequence[str]) -> None:
    """Draw these; none named is all that the package has weights for.

    Raises ValueError for an unknown name.
    """
    for name in names:
        if name not in DRAWN:
            raise unknown(f"nothing is drawn as {name!r}", name, DRAWN)
    session = open_session(shipped.PROFILE, train=False)
    with mock.patch.dict(os.environ, AEFT_FRAMES=str(FRAMES)):  # where widgets write
        for name in names or [n for n in DRAWN if n != "affinity" or _has_affinity(session)]:
            DRAWN[name](session)
            print(name)


if __name__ == "__main__":
    draw(sys.argv[1:])
