"""The notebooks' figures with sliders, over arrays that are already computed: every move is instant.

Dependency choice: ipywidgets, the standard of JupyterLab.  The static picture always stands in a cell of its own above.
"""

from collections.abc import Mapping

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from aeft_lib import figures, gpp


def threshold(case: Mapping[str, np.ndarray], start: float = 0.3) -> ipywidgets.interactive:
    """Move the background score of one CAM: what is hit, what spills, what is missed.

    case: image (H, W, 3) uint8, truth (H, W) bool, cam (H, W) in 0..1.
    """

    def draw(t: float) -> None:
        predicted = case["cam"] > t
        hit = (predicted & case["truth"]).sum()
        precision, recall = hit / max(predicted.sum(), 1), hit / case["truth"].sum()
        picture = figures.agreement(case["image"], predicted, case["truth"])
        maps = [case["image"], figures.overlay(case["image"], case["cam"]), picture]
        figures.picture_grid([maps], ("image", "CAM", f"t = {t:.2f}"))
        plt.show()
        print(f"precision {100 * precision:.0f} %, recall {100 * recall:.0f} %")

    return ipywidgets.interactive(draw, t=ipywidgets.FloatSlider(start, min=0.0, max=0.95, step=0.05))


def pyramid(image: np.ndarray, cam: Tensor, pooling: gpp.PyramidPooling, class_id: int) -> ipywidgets.interactive:
    """Choose a fusion and look at the attention it gives to one class, positive in red, negative in green.

    image: (H, W, 3) uint8.  cam: (1, K, h, w) signed.  pooling: a trained gated layer; its levels and gates are used.
    """
    with torch.no_grad():
        pooled = pooling(cam)
    maps = {f"level {level}": p for level, p in zip(pooling.levels, pooled.pyramid, strict=True)}
    maps |= {"average": torch.stack(pooled.pyramid).mean(dim=0)}
    maps |= {f"gated, step {i}": p for i, p in enumerate(pooled.fused, start=1)}

    def draw(attention: str) -> None:
        logit = gpp.sign_preserving_prediction(cam, maps[attention])[0, class_id].item()
        pictures = [image, *(figures.signed_colours(m[0, class_id].numpy()) for m in (cam, maps[attention]))]
        figures.picture_grid([pictures], ("image", "signed CAM f", attention))
        plt.show()
        print(f"logit with this attention: {logit:.2f}")

    return ipywidgets.interactive(draw, attention=ipywidgets.Dropdown(options=list(maps), value=list(maps)[-1]))
