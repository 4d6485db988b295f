"""``aeft bench widgets``: a move of a widget's control, redrawn in place, against a new figure.

Scene, CAM and grid have the laptop's sizes; their values are random: times do not hang on them.
Seconds are of one thread's CPU, drawing and JPEG included; what the browser takes is not.
"""

from collections.abc import Callable
from functools import partial
from itertools import cycle
from types import SimpleNamespace

import matplotlib

matplotlib.use("agg")

import ipywidgets
import numpy as np
import torch
from measure import in_turn

from aeft_lib.lab import widgets
from aeft_lib.lab.canvas import Canvas, View
from aeft_lib.paper import gpp
from aeft_lib.paper.classifier import CamClassifier
from aeft_lib.paper.triplet import REFERENCE
from aeft_lib.refinement.affinity import RADIUS, offsets, sparse_affinity
from aeft_lib.refinement.propagation import CELL
from aeft_lib.studies import profiles

PROFILE = profiles.LAPTOP
SIDE, ROUNDS = PROFILE.train.size, 15


class NewFigures(Canvas):
    """The peer: every view gets a figure of its own."""

    def drawn(self, view: View) -> bytes:
        self.figure = None
        return super().drawn(view)


def benchmarks() -> list[dict]:
    """A row a widget: seconds of a redraw in place and with a new figure (medians), their ratio."""
    torch.set_num_threads(1)
    rows = []
    for name, make in _widgets().items():
        runs = {"ours": _move(make())}
        canvas, widgets.Canvas = widgets.Canvas, NewFigures
        runs["peer"] = _move(make())
        widgets.Canvas = canvas
        seconds, _ = in_turn(runs, ROUNDS)
        times = {f"{who}_s": round(value, 4) for who, value in seconds.items()}
        rows.append({"name": name, **times, "ratio": round(seconds["peer"] / seconds["ours"], 2)})
    return rows


def _move(box: ipywidgets.VBox) -> Callable[[], None]:
    """Sets the widget's last control to one of two values in turn."""
    control = box.children[-3]
    values = cycle((0.25, 0.5) if not hasattr(control, "options") else control.options[-2:])
    next(values)
    return lambda: setattr(control, "value", next(values))


def _widgets() -> dict[str, Callable[[], ipywidgets.VBox]]:
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    cam = generator.random((SIDE, SIDE))
    case = {"image": image, "cam": cam, "truth": cam > 0.6}
    pooling = gpp.PyramidPooling(num_classes=PROFILE.num_classes, levels=PROFILE.levels)
    network = CamClassifier(
        backbone=PROFILE.backbone.build(), pooling=pooling, num_classes=PROFILE.num_classes
    ).eval()
    with torch.inference_mode():
        picture = torch.from_numpy(image).permute(2, 0, 1)[None]
        output = network(network.backbone.normalise(picture))
    grid = (SIDE // CELL, SIDE // CELL)
    pairs = (len(offsets(RADIUS)), (grid[0] - RADIUS + 1) * (grid[1] - 2 * RADIUS + 2))
    near = sparse_affinity(torch.rand(pairs), grid)
    refined = SimpleNamespace(affinity=near, scene=SimpleNamespace(image=image))
    return {
        "threshold": partial(widgets.threshold, case),
        "pyramid": partial(widgets.pyramid, image, output.cam, pooling, 0),
        "triplet": partial(widgets.triplet, image, output, pooling, 0, REFERENCE, network),
        "affinity": partial(widgets.affinity, refined, (0, 0)),
    }
