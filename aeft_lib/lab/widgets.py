"""The notebooks' figures with controls, over arrays that are already computed.

Dependency choice: ipywidgets, the standard of JupyterLab, and ipyevents, which hands on clicks in
its Image widget.  ipympl, as well kept, draws through a backend of its own, and so would change
every figure of a notebook.  The static picture always stands in a cell of its own above.  Pictures
go into an Image widget, not through captured output: that needs a front end, and a papermill run
has none.

A book has no kernel: where AEFT_FRAMES names a folder (as in ``aeft reproduce --publish``), every
widget also writes its frames there, the pictures of a grid of its controls' values.
"""

import itertools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipyevents
import ipywidgets
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from aeft_lib import paths
from aeft_lib.lab import figures
from aeft_lib.lab.cams import displayed
from aeft_lib.lab.canvas import Canvas, Decorate, View, figure_of
from aeft_lib.paper import erasing, gpp
from aeft_lib.paper.classifier import CamClassifier, CamOutput
from aeft_lib.paper.triplet import Triplet
from aeft_lib.refinement import random_walk

WIDTH = "480px"  # of a control: a step of the finest slider is 3 px
Draw = Callable[..., View]
# Row and column of a clicked pixel -> new values of controls, by their places.
Clicked = Callable[[int, int], Mapping[int, Any]]


class Panel(ipywidgets.VBox):
    """A box of controls; where no kernel runs, a notebook shows its words instead."""

    def __repr__(self) -> str:
        return "Controls need a running kernel: run this notebook, or see the book (make book)."


def threshold(case: Mapping[str, np.ndarray], start: float = 0.3) -> ipywidgets.VBox:
    """Move the background score of one CAM: hits are green, spill is orange, misses are blue.

    A click in a picture moves it just below the CAM's value there, to a hundredth: this pixel and
    all with more stay.
    case: image (H, W, 3) uint8, truth (H, W) bool, cam (H, W) in 0..1.
    """

    def draw(t: float) -> View:
        predicted = case["cam"] > t
        hit = (predicted & case["truth"]).sum()
        precision, recall = hit / max(predicted.sum(), 1), hit / max(case["truth"].sum(), 1)
        picture = figures.agreement(case["image"], predicted, case["truth"])
        maps = [case["image"], figures.overlay(case["image"], case["cam"]), picture]
        words = f"precision {100 * precision:.0f} %, recall {100 * recall:.0f} %"
        return View(maps, ("image", "CAM", f"t = {t:.2f}"), words)

    def at_value(row: int, column: int) -> dict[int, float]:
        below = math.ceil(round(100 * float(case["cam"][row, column]), 6) - 1) / 100
        return {0: min(max(below, slider.min), slider.max)}

    slider = ipywidgets.FloatSlider(start, min=0.0, max=0.95, step=0.01, description="t")
    return _with_picture("threshold", [slider], draw, [np.arange(0.0, 1.0, 0.05)], at_value)


def pyramid(
    image: np.ndarray, cam: Tensor, pooling: gpp.PyramidPooling, class_id: int
) -> ipywidgets.VBox:
    """Choose an attention and see its map for one class: orange for it, blue against it.

    image: (H, W, 3) uint8.  cam: (1, K, h, w) signed.
    pooling: a trained gated layer; its levels and gates are used.
    """
    maps = _attentions(pooling, cam)
    scale = figures.signed_scale(m[0, class_id].numpy() for m in (cam, *maps.values()))

    def draw(attention: str) -> View:
        logit = gpp.sign_preserving_prediction(cam, maps[attention])[0, class_id].item()
        signed = (m[0, class_id].numpy() for m in (cam, maps[attention]))
        pictures = [image, *(figures.signed_colours(m, scale) for m in signed)]
        return View(pictures, ("image", "signed CAM f", attention), f"logit {logit:.2f}")

    def bar(figure: Figure) -> None:
        figures.signed_bar(figure, scale)

    return _with_picture("pyramid", [_attention_menu(maps)], draw, [list(maps)], decorate=bar)


def triplet(
    image: np.ndarray,
    output: CamOutput,
    pooling: gpp.PyramidPooling,
    class_id: int,
    start: Triplet,
    network: CamClassifier | None = None,
) -> ipywidgets.VBox:
    """Move both thresholds and choose the attention: mask, positive, residual region, embeddings.

    image: (H, W, 3) uint8.  output: the classifier's, batch of one.  pooling: its gated layer.
    class_id: the only tag here.  start: its thresholds are where the sliders begin.
    network: the classifier; with it the positive is shown as it sees it, erased pixels in the mean
    colour, and its embedding stands beside the anchor's.
    """
    maps = _attentions(pooling, output.cam)
    tags = torch.zeros(output.cam.shape[:2])
    tags[:, class_id] = 1
    scale = figures.signed_scale(m[0, class_id].numpy() for m in maps.values())
    picture = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    picture = picture / 255 if network is None else network.backbone.normalise(picture)

    def embedding(of: Tensor) -> float:
        return erasing.embeddings(of, tags)[0, class_id].item()

    def attracted(e_anchor: float, erased: Tensor, attention: str) -> str:
        """The embedding of the anchor; of the positive, and their distance, where it is known."""
        if network is None:
            return f"e_A = {e_anchor:.3f} (attract)"
        with torch.inference_mode():
            positive = embedding(_attentions(pooling, network(erased).cam)[attention])
        apart = f"|e_P - e_A| = {abs(positive - e_anchor):.3f} (attract)"
        return f"e_A = {e_anchor:.3f}, e_P = {positive:.3f}, {apart}"

    def draw(t_high: float, t_low: float, attention: str) -> View:
        erased = erasing.erase(picture, output.cam, tags, threshold=t_high)
        region = erasing.residual_region(output.cam, tags, threshold=t_low)
        chosen = maps[attention]
        shown = [
            erased.foreground[0, 0].numpy(),
            erased.mask[0, 0].numpy(),
            region[0, class_id].float().numpy(),
        ]
        pictures = [image, *(figures.overlay(image, figures.stretched(m, image)) for m in shown)]
        seen = erased.images[0].permute(1, 2, 0).numpy()
        pictures.insert(3, seen if network is None else displayed(network, erased.images))
        pictures.append(figures.signed_colours(chosen[0, class_id].numpy(), scale))
        titles = ("anchor", "$A_{fg}$", "mask $m$", "positive", "residual region", attention)
        if t_low >= t_high:
            return View(pictures, titles, "t_L must lie below t_H: move t_L down or t_H up")
        a = erasing.region_embeddings(chosen, region)[0, class_id].item()
        words = f"{attracted(embedding(chosen), erased.images, attention)}; a = {a:.3f} (repel)"
        return View(pictures, titles, words)

    limits = {"min": 0.05, "max": 0.95, "step": 0.05}
    controls = (
        ipywidgets.FloatSlider(start.erase_threshold, description="t_H", **limits),
        ipywidgets.FloatSlider(start.residual_threshold, description="t_L", **limits),
        _attention_menu(maps),
    )
    shown = [(0.3, 0.45, 0.6, 0.75), (0.1, 0.2, 0.3), list(maps)]
    return _with_picture("triplet", controls, draw, shown)


def affinity(case: Any, start: tuple[int, int]) -> ipywidgets.VBox:
    """Pick a cell of the grid and see where its score flows: in one step, and after more.

    A click in a picture picks the cell under it.
    start: row and column of the cell to begin with.
    A case without affinity has nothing to move, and says so.
    """
    if case.affinity is None:
        told = "There is no AffinityNet here: train = True trains one. "
        told += "The book (make book) shows this widget with one."
        return Panel([ipywidgets.Label(told)])
    h, w = case.affinity.size
    image = case.scene.image

    def draw(row: int, column: int, steps: int) -> View:
        maps = [
            random_walk.reach(case.affinity, row, column, steps=count).numpy()
            for count in (1, steps)
        ]
        cell = np.zeros((h, w))
        cell[row, column] = 1
        pictures = [figures.overlay(image, figures.stretched(m, image)) for m in (cell, *maps)]
        reached = int((maps[1] > 0.1).sum())
        words = f"{reached} of {h * w} cells hold more than a tenth of the strongest"
        titles = ("image", "cell", "1 step", f"{steps} steps")
        return View([image, *pictures], titles, words)

    def at_cell(row: int, column: int) -> dict[int, int]:
        return {0: row * h // image.shape[0], 1: column * w // image.shape[1]}

    options = (1, 2, 4, 8, 16, 32, 64)
    controls = (
        ipywidgets.IntSlider(start[0], min=0, max=h - 1, description="row"),
        ipywidgets.IntSlider(start[1], min=0, max=w - 1, description="column"),
        ipywidgets.SelectionSlider(options=options, value=16, description="steps"),
    )
    rows, columns = (
        sorted({at, *np.linspace(0, n - 1, 4).astype(int).tolist()})
        for at, n in zip(start, (h, w), strict=True)
    )
    return _with_picture("affinity", controls, draw, [rows, columns, (1, 4, 16)], at_cell)


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
    name: str,
    controls: Sequence[ipywidgets.ValueWidget],
    draw: Draw,
    shown: Sequence[Sequence[Any]],
    clicked: Clicked | None = None,
    decorate: Decorate | None = None,
) -> ipywidgets.VBox:
    """Controls, the picture their values decide, and a line of text below.

    name: of its folder of frames.  shown: the values of each control that have a frame.
    clicked: what a click in a picture changes.  decorate: see `figure_of`.
    """
    if folder := os.environ.get("AEFT_FRAMES"):
        write_frames(Path(folder) / name, controls, draw, shown, decorate)
    picture, text, canvas = ipywidgets.Image(format="jpeg"), ipywidgets.Label(), Canvas(decorate)
    picture.layout = ipywidgets.Layout(max_height="60vh", align_self="flex-start")

    def show(_: object = None) -> None:
        view = draw(*(control.value for control in controls))
        picture.value, text.value = canvas.drawn(view), view.text
        picture.tooltip = f"{', '.join(view.titles)}: {view.text}"  # an Image has no alt text

    def move(values: Mapping[int, Any]) -> None:
        """Move several controls, and draw once."""
        for place in values:
            controls[place].unobserve(show, names="value")
        for place, value in values.items():
            controls[place].value = value
            controls[place].observe(show, names="value")
        show()

    def click(event: Mapping[str, Any]) -> None:
        x, y = (
            (event[f"relative{axis}"] + 0.5) / event[f"boundingRect{side}"]
            for axis, side in (("X", "Width"), ("Y", "Height"))
        )
        if at := canvas.pixel(x, y):
            move(clicked(*at[1:]))

    for control in controls:
        control.layout = ipywidgets.Layout(width=WIDTH, max_width="100%")
        control.observe(show, names="value")
    if clicked:
        ipyevents.Event(source=picture, watched_events=["click"]).on_dom_event(click)
    show()
    return Panel([*controls, picture, text])


def write_frames(
    folder: Path,
    controls: Sequence[ipywidgets.ValueWidget],
    draw: Draw,
    shown: Sequence[Sequence[Any]],
    decorate: Decorate | None = None,
) -> None:
    """Write a picture ``I-J-K.webp`` for every combination of values, and ``frames.json``.

    I, J, K are the values' places in `shown`.  The table has the controls with the place of the
    value they stand at, and the line of text of every picture.  decorate: see `figure_of`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.webp"):
        old.unlink()
    texts = {}
    for places in itertools.product(*(range(len(values)) for values in shown)):
        view = draw(*(values[i] for values, i in zip(shown, places, strict=True)))
        frame = "-".join(map(str, places))
        texts[frame] = view.text
        with paths.replacing(folder / f"{frame}.webp") as aside:
            figure, options = figure_of(view, decorate), {"quality": 60}
            figure.savefig(aside, format="webp", pil_kwargs=options)
    described = [
        {
            "name": control.description,
            "slides": not isinstance(control, ipywidgets.Dropdown),
            "values": [f"{v:.2f}" if isinstance(v, float) else str(v) for v in values],
            "at": min(range(len(values)), key=lambda i: _distance(values[i], control.value)),
        }
        for control, values in zip(controls, shown, strict=True)
    ]
    table = json.dumps({"controls": described, "texts": texts}, indent=1)
    paths.write_text(folder / "frames.json", f"{table}\n")


def _distance(value: Any, other: Any) -> float:
    """Between numbers; 0 for equal words and 1 for others."""
    return float(value != other) if isinstance(value, str) else abs(value - other)
