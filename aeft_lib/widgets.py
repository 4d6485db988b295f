"""The notebooks' figures with controls, over arrays that are already computed: every move is instant.

Dependency choice: ipywidgets, the standard of JupyterLab.  The static picture always stands in a cell of its own above.
Pictures go into an Image widget, not through captured output: that needs a front end, and a papermill run has none.
"""

from collections.abc import Callable, Mapping
from io import BytesIO

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from aeft_lib import figures, gpp


def threshold(case: Mapping[str, np.ndarray], start: float = 0.3) -> ipywidgets.VBox:
    """Move the background score of one CAM: what is hit (green), what spills (orange), what is missed (blue).

    case: image (H, W, 3) uint8, truth (H, W) bool, cam (H, W) in 0..1.
    """

    def draw(t: float) -> tuple[Figure, str]:
        predicted = case["cam"] > t
        hit = (predicted & case["truth"]).sum()
        precision, recall = hit / max(predicted.sum(), 1), hit / max(case["truth"].sum(), 1)
        picture = figures.agreement(case["image"], predicted, case["truth"])
        maps = [case["image"], figures.overlay(case["image"], case["cam"]), picture]
        words = f"precision {100 * precision:.0f} %, recall {100 * recall:.0f} %"
        return figures.picture_grid([maps], ("image", "CAM", f"t = {t:.2f}")), words

    return _with_picture(ipywidgets.FloatSlider(start, min=0.0, max=0.95, step=0.05, description="t"), draw)


def pyramid(image: np.ndarray, cam: Tensor, pooling: gpp.PyramidPooling, class_id: int) -> ipywidgets.VBox:
    """Choose an attention and look at what it is for one class, positive in red, negative in green.

    image: (H, W, 3) uint8.  cam: (1, K, h, w) signed.  pooling: a trained gated layer; its levels and gates are used.
    """
    with torch.no_grad():
        pooled = pooling(cam)
    maps = {f"level {level}": p for level, p in zip(pooling.levels, pooled.pyramid, strict=True)}
    maps |= {"average": torch.stack(pooled.pyramid).mean(dim=0)}
    maps |= {f"gated, step {i}": p for i, p in enumerate(pooled.fused, start=1)}

    def draw(attention: str) -> tuple[Figure, str]:
        logit = gpp.sign_preserving_prediction(cam, maps[attention])[0, class_id].item()
        pictures = [image, *(figures.signed_colours(m[0, class_id].numpy()) for m in (cam, maps[attention]))]
        return figures.picture_grid([pictures], ("image", "signed CAM f", attention)), f"logit {logit:.2f}"

    return _with_picture(ipywidgets.Dropdown(options=list(maps), value=list(maps)[-1], description="attention"), draw)


def _with_picture(control: ipywidgets.ValueWidget, draw: Callable[..., tuple[Figure, str]]) -> ipywidgets.VBox:
    """A control, the picture it decides and a line of text below."""
    picture, text = ipywidgets.Image(format="png"), ipywidgets.Label()

    def show(_: object = None) -> None:
        figure, text.value = draw(control.value)
        png = BytesIO()
        figure.savefig(png, format="png")
        plt.close(figure)
        picture.value = png.getvalue()

    control.observe(show, names="value")
    show()
    return ipywidgets.VBox([control, picture, text])
