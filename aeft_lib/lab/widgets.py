"""The notebooks' figures with controls, over arrays that are already computed.

Dependency choice: ipywidgets, the standard of JupyterLab.  The static picture always stands in a
cell of its own above.  Pictures go into an Image widget, not through captured output: that needs a
front end, and a papermill run has none.
"""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from aeft_lib.lab import figures
from aeft_lib.paper import erasing, gpp
from aeft_lib.paper.classifier import CamOutput
from aeft_lib.paper.triplet import Triplet
from aeft_lib.refinement import random_walk


def threshold(case: Mapping[str, np.ndarray], start: float = 0.3) -> ipywidgets.VBox:
    """Move the background score of one CAM: hits are green, spill is orange, misses are blue.

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

    slider = ipywidgets.FloatSlider(start, min=0.0, max=0.95, step=0.05, description="t")
    return _with_picture([slider], draw)


def pyramid(
    image: np.ndarray, cam: Tensor, pooling: gpp.PyramidPooling, class_id: int
) -> ipywidgets.VBox:
    """Choose an attention and see its map for one class: orange for it, blue against it.

    image: (H, W, 3) uint8.  cam: (1, K, h, w) signed.
    pooling: a trained gated layer; its levels and gates are used.
    """
    maps = _attentions(pooling, cam)
    scale = figures.signed_scale(m[0, class_id].numpy() for m in (cam, *maps.values()))

    def draw(attention: str) -> tuple[Figure, str]:
        logit = gpp.sign_preserving_prediction(cam, maps[attention])[0, class_id].item()
        signed = (m[0, class_id].numpy() for m in (cam, maps[attention]))
        pictures = [image, *(figures.signed_colours(m, scale) for m in signed)]
        figure = figures.picture_grid([pictures], ("image", "signed CAM f", attention))
        figures.signed_bar(figure, scale)
        return figure, f"logit {logit:.2f}"

    return _with_picture([_attention_menu(maps)], draw)


def triplet(
    image: np.ndarray, output: CamOutput, pooling: gpp.PyramidPooling, class_id: int, start: Triplet
) -> ipywidgets.VBox:
    """Move both thresholds and choose the attention: mask, positive, residual region, embeddings.

    image: (H, W, 3) uint8.  output: the classifier's, batch of one.  pooling: its gated layer.
    class_id: the only tag here.  start: its thresholds are where the sliders begin.
    """
    maps = _attentions(pooling, output.cam)
    tags = torch.zeros(output.cam.shape[:2])
    tags[:, class_id] = 1
    scale = figures.signed_scale(m[0, class_id].numpy() for m in maps.values())
    picture = torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255

    def draw(t_high: float, t_low: float, attention: str) -> tuple[Figure, str]:
        if t_low >= t_high:
            return figures.picture_grid(
                [[image]], ["t_L must lie below t_H"]
            ), "move t_L down or t_H up"
        erased = erasing.erase(picture, output.cam, tags, threshold=t_high)
        region = erasing.residual_region(output.cam, tags, threshold=t_low)
        chosen = maps[attention]
        e = erasing.embeddings(chosen, tags)[0, class_id].item()
        a = erasing.region_embeddings(chosen, region)[0, class_id].item()
        shown = [
            erased.foreground[0, 0].numpy(),
            erased.mask[0, 0].numpy(),
            region[0, class_id].float().numpy(),
        ]
        pictures = [image, *(figures.overlay(image, figures.stretched(m, image)) for m in shown)]
        pictures.insert(3, erased.images[0].permute(1, 2, 0).numpy())
        pictures.append(figures.signed_colours(chosen[0, class_id].numpy(), scale))
        titles = ("anchor", "A_fg", "mask m", "positive", "residual", attention)
        words = f"e_A = {e:.3f} (attract)   a = {a:.3f} (repel)"
        return figures.picture_grid([pictures], titles), words

    limits = {"min": 0.05, "max": 0.95, "step": 0.05}
    controls = (
        ipywidgets.FloatSlider(start.erase_threshold, description="t_H", **limits),
        ipywidgets.FloatSlider(start.residual_threshold, description="t_L", **limits),
        _attention_menu(maps),
    )
    return _with_picture(controls, draw)


def affinity(case: Any, start: tuple[int, int]) -> ipywidgets.VBox:
    """Pick a cell of the grid and see where its score flows: in one step, and after more.

    start: row and column of the cell to begin with.
    """
    h, w = case.affinity.size

    def draw(row: int, column: int, steps: int) -> tuple[Figure, str]:
        maps = [
            random_walk.reach(case.affinity, row, column, steps=count).numpy()
            for count in (1, steps)
        ]
        cell = np.zeros((h, w))
        cell[row, column] = 1
        image = case.scene.image
        pictures = [figures.overlay(image, figures.stretched(m, image)) for m in (cell, *maps)]
        reached = int((maps[1] > 0.1).sum())
        words = f"{reached} of {h * w} cells hold more than a tenth of the strongest"
        titles = ("image", "cell", "1 step", f"{steps} steps")
        return figures.picture_grid([[image, *pictures]], titles), words

    options = (1, 2, 4, 8, 16, 32, 64)
    controls = (
        ipywidgets.IntSlider(start[0], min=0, max=h - 1, description="row"),
        ipywidgets.IntSlider(start[1], min=0, max=w - 1, description="column"),
        ipywidgets.SelectionSlider(options=options, value=16, description="steps"),
    )
    return _with_picture(controls, draw)


def _attentions(pooling: gpp.PyramidPooling, cam: Tensor) -> dict[str, Tensor]:
    """Every map that could attend a CAM: single levels, their average, and the gated steps.

    The last is the layer's own.
    """
    with torch.no_grad():
        pooled = pooling(cam)
    maps = {f"level {level}": p for level, p in zip(pooling.levels, pooled.pyramid, strict=True)}
    maps |= {"average": torch.stack(pooled.pyramid).mean(dim=0)}
    return maps | {f"gated, step {i}": p for i, p in enumerate(pooled.fused, start=1)}


def _attention_menu(maps: Mapping[str, Tensor]) -> ipywidgets.Dropdown:
    return ipywidgets.Dropdown(options=list(maps), value=list(maps)[-1], description="attention")


def _with_picture(
    controls: Sequence[ipywidgets.ValueWidget], draw: Callable[..., tuple[Figure, str]]
) -> ipywidgets.VBox:
    """Controls, the picture their values decide, and a line of text below."""
    picture, text = ipywidgets.Image(format="png"), ipywidgets.Label()

    def show(_: object = None) -> None:
        figure, text.value = draw(*(control.value for control in controls))
        png = BytesIO()
        figure.savefig(png, format="png")
        plt.close(figure)
        picture.value = png.getvalue()

    for control in controls:
        control.observe(show, names="value")
    show()
    return ipywidgets.VBox([*controls, picture, text])
