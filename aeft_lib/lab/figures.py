"""Figures that several chapters draw, as functions from plain data, and `save` to keep them.

Functions take arrays and tables, never a network or a store, so a figure can be tested as data and
redrawn anywhere.  Colours: maps in one sequential scale, classes of masks in VOC's palette,
agreement and error in colour-blind-safe hues.
"""

from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import textalloc
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats
from PIL import Image

from aeft_lib import paths
from aeft_lib.maps.labels import VOID, voc_palette

plt.style.use(Path(__file__).with_name("style.mplstyle"))

TEXT_WIDTH = 4.8  # inches, LNCS
CAM_COLOURS = "magma"
SIGNED_COLOURS = LinearSegmentedColormap.from_list("signed", ["#0072B2", "white", "#D55E00"])
# Truth against prediction: agreement, spill (predicted only), miss (true only).
HIT, SPILL, MISS = (
    np.array(colour) / 255 for colour in ((0, 158, 115), (213, 94, 0), (86, 180, 233))
)
SD_BARS = {"errorbar": "sd", "color": "0.8", "err_kws": {"linewidth": 0.8}}
FLAT = 4096  # colours of a plot, with those of its smoothed edges; a photo has more
# Formats of a saved figure, and what of their metadata would differ with the day or the version.
UNDATED = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}
DOTS = {"size": 2.5, "color": "C0", "jitter": False}


def use_small_outputs() -> None:
    """In a notebook, store shown figures small: in few colours as `flat_png`, others as JPEG."""
    shell = get_ipython()
    if shell is None:
        return
    set_matplotlib_formats("jpeg", pil_kwargs={"quality": 70})
    png, jpeg = (shell.display_formatter.formatters[f"image/{kind}"] for kind in ("png", "jpeg"))
    as_jpeg = jpeg.lookup_by_type(Figure)
    png.for_type(Figure, flat_png)
    jpeg.for_type(Figure, lambda figure: None if flat_png(figure) else as_jpeg(figure))


def flat_png(figure: Figure) -> bytes | None:
    """Plots and label maps as a PNG of 64 colours: half the bytes of a JPEG, and sharp.

    None for a figure of so many colours that it has photos or CAMs.
    """
    drawn, reduced = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png", dpi=figure.dpi, bbox_inches="tight")
    picture = Image.open(drawn).convert("RGB")
    if picture.getcolors(FLAT) is None:
        return None
    picture = picture.quantize(64, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    picture.save(reduced, "png", optimize=True)
    return reduced.getvalue()


def name_dots(
    axis: Axes,
    x: Sequence[float],
    y: Sequence[float],
    names: Sequence[str],
    lines: Sequence[tuple[Sequence[float], Sequence[float]]] = (),
) -> None:
    """Write each dot's name beside it, clear of all dots, names and lines; limits stay as they are.

    lines: x and y of each.
    """
    textalloc.allocate(
        axis,
        list(x),
        list(y),
        list(names),
        x_scatter=list(x),
        y_scatter=list(y),
        x_lines=[np.asarray(across) for across, _ in lines] or None,
        y_lines=[np.asarray(up) for _, up in lines] or None,
        textsize=5,
        min_distance=0.015,
        avoid_label_lines_overlap=True,
        avoid_crossing_label_lines=True,
        linewidth=0.3,
        linecolor="0.55",
    )


def save(figure: Figure, name: str, table: pd.DataFrame, folder: Path) -> None:
    """Write ``name.png``, ``.pdf`` and the numbers as ``.csv``; byte-stable, without a date."""
    save_table(name, table, folder)
    for suffix, metadata in UNDATED.items():
        with paths.replacing(folder / f"{name}.{suffix}") as aside:
            figure.savefig(aside, metadata=metadata)


def save_table(name: str, table: pd.DataFrame, folder: Path) -> None:
    """Write ``name.csv`` with four decimals."""
    folder.mkdir(parents=True, exist_ok=True)
    content = table.to_csv(index=False, float_format="%.4f", lineterminator="\n")
    paths.write_committed(folder / f"{name}.csv", content.encode())


def overlay(image: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """A CAM (H, W) in 0..1 over the greyed image (H, W, 3) uint8; RGB in 0..1."""
    grey = image.mean(axis=2, keepdims=True) / 255
    return 0.45 * grey + 0.55 * plt.get_cmap(CAM_COLOURS)(cam)[..., :3]


def stretched(small: np.ndarray, image: np.ndarray) -> np.ndarray:
    """A map (h, w) at the size of an image (H, W, ...), nearest cell."""
    sides = zip(image.shape[:2], small.shape, strict=True)
    rows, columns = (np.arange(n) * m // n for n, m in sides)
    return small[np.ix_(rows, columns)]


def class_colours(maps: Iterable[np.ndarray], classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Name and colour (3,) in 0..1 of every class in some maps (H, W), in the labels' order.

    classes: K names; label 0 is the background and is left out, 255 is void.
    """
    names = {VOID: "void"} | dict(enumerate(classes, start=1))
    present = set().union(*(np.unique(labels).tolist() for labels in maps)) - {0}
    return {names[label]: voc_palette()[label] / 255 for label in sorted(present)}


def labelled(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A label map (H, W) in VOC's palette over the greyed photo (H, W, 3) uint8; RGB in 0..1."""
    mixed = np.repeat(0.3 + 0.7 * image.mean(axis=2, keepdims=True) / 255, 3, axis=2)
    there = labels != 0
    mixed[there] = 0.25 * mixed[there] + 0.75 * voc_palette()[labels[there]] / 255
    return mixed


def label_overlay(image: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Figure:
    """A label map (H, W) over its photo (H, W, 3) uint8, with a legend of its classes."""
    pictures, titles = [image, labelled(image, labels)], ("photo", "labels over the photo")
    figure = picture_grid([pictures], titles)
    figure.set_figheight(figure.get_figheight() + 0.25)
    colour_legend(figure, class_colours([labels], classes))
    return figure


def cam_panels(image: np.ndarray, cams: np.ndarray, titles: Sequence[str]) -> Figure:
    """A photo (H, W, 3) uint8 and CAMs (K', H, W) in 0..1 over it, at most four in a row."""
    pictures = [image, *(overlay(image, cam) for cam in cams)]
    columns = max(2, min(4, len(pictures)))
    lines, (height, width) = -(-len(pictures) // columns), image.shape[:2]
    cell = TEXT_WIDTH / columns
    size = (TEXT_WIDTH, lines * (cell * height / width + 0.25) + 0.45)
    figure, axes = plt.subplots(lines, columns, squeeze=False, figsize=size)
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, title in zip(axes.flat, pictures, ("photo", *titles), strict=False):
        show(axis, picture)
        axis.set_title(title, fontsize=6)
    cam_bar(figure, axes)
    return figure


def cam_bar(figure: Figure, axes: np.ndarray) -> None:
    """The colour bar of CAMs, below some panels."""
    scale = plt.cm.ScalarMappable(plt.Normalize(0, 1), CAM_COLOURS)
    words = "CAM of a class, relative to its maximum"
    bar = figure.colorbar(scale, ax=axes, location="bottom", aspect=60, pad=0.02, shrink=0.6)
    bar.set_label(words, fontsize=6)


def agreement(image: np.ndarray, predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Hits, spill and misses of two boolean masks (H, W) over the greyed image; RGB in 0..1."""
    grey = np.repeat(image.mean(axis=2, keepdims=True) / 255, 3, axis=2)
    regions = {"hit": predicted & truth, "spill": predicted & ~truth, "miss": truth & ~predicted}
    for region, colour in zip(regions.values(), (HIT, SPILL, MISS), strict=True):
        grey[region] = 0.3 * grey[region] + 0.7 * colour
    return grey


def signed_scale(maps: Iterable[np.ndarray]) -> float:
    """The largest absolute value of some signed maps: one scale for all of them."""
    return max(float(np.abs(signed).max()) for signed in maps) or 1.0


def signed_colours(signed: np.ndarray, scale: float = 0.0) -> np.ndarray:
    """A signed map (h, w) as RGB in 0..1: white is 0, orange speaks for the class, blue against it.

    scale: the value of the full colour, shared by maps that are compared; 0: the map's own largest.
    """
    return SIGNED_COLOURS((signed / (scale or signed_scale([signed])) + 1) / 2)[..., :3]


def signed_bar(figure: Figure, scale: float) -> None:
    """The colour bar of signed maps, at the right of all panels."""
    colours = plt.cm.ScalarMappable(plt.Normalize(-scale, scale), SIGNED_COLOURS)
    bar = figure.colorbar(colours, ax=figure.axes, location="right", aspect=30, pad=0.02)
    bar.set_label("against the class | for it", fontsize=6)
    bar.ax.tick_params(labelsize=5)


def picture_grid(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    labels: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> Figure:
    """Pictures in rows under column titles; each (H, W, 3), or (H, W) labels in VOC's palette.

    labels: of the rows.  classes: K names, for a legend of those that the label maps have.
    """
    cell = TEXT_WIDTH / len(titles)
    size = (TEXT_WIDTH, cell * len(rows) + (0.45 if classes else 0.2))
    figure, axes = plt.subplots(len(rows), len(titles), squeeze=False, figsize=size)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            show(axes[r, c], picture)
            if r == 0:
                axes[r, c].set_title(titles[c], fontsize=6)
        if labels:
            axes[r, 0].set_ylabel(labels[r], fontsize=6)
    if classes:
        maps = [picture for row in rows for picture in row if picture.ndim == 2]
        colour_legend(figure, class_colours(maps, classes))
    return figure


def threshold_curves(curves: pd.DataFrame, marks: Mapping[str, Mapping[str, float]]) -> Figure:
    """mIoU, precision and recall against the background score, a line a row, mean over repeats.

    curves: long, with ``label, repeat, threshold, miou, precision, recall``.
    marks: label -> {"best": threshold, "maskless": threshold}, a solid and a hollow dot.
    """
    figure, axes = plt.subplots(1, 3, figsize=(TEXT_WIDTH, 1.9), sharex=True)
    for axis, metric in zip(axes, ("miou", "precision", "recall"), strict=True):
        for i, (label, rows) in enumerate(curves.groupby("label", sort=False)):
            line = rows.groupby("threshold")[metric].mean()
            axis.plot(line.index, line, color=f"C{i}", label=label)
            for kind, face in (("best", f"C{i}"), ("maskless", "white")):
                at = line.index[np.abs(line.index - marks[label][kind]).argmin()]
                axis.plot(at, line[at], "o", color=f"C{i}", markerfacecolor=face)
        axis.set(xlabel="background score t", title=f"{metric_name(metric)} (%)")
    axes[-1].legend()
    return figure


def cam_fit(fits: pd.DataFrame) -> Figure:
    """How imprecise and how sparse CAMs are: cumulative spill and coverage, one line a row.

    fits: long, with ``label, spill, coverage``, both in 0..1, NaN for a CAM without activation.
    """
    figure, axes = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 1.9))
    titles = {"spill": "spill (0 is precise)", "coverage": "coverage (1 is complete)"}
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        sns.ecdfplot(fits, x=column, hue="label", ax=axis, legend=axis is axes[0])
        axis.set(xlabel=title, ylabel="share of objects", xlim=(-0.03, 1.03))
    if legend := axes[0].get_legend():
        legend.set_title(None)
    return figure


def label_bars(table: pd.DataFrame, published: Mapping[str, float], baseline: str) -> Figure:
    """Rows of label maps: mIoU, precision, recall; mean ± sd, a dot a repeat, a line at `baseline`.

    table: long, with ``label, repeat, miou, precision, recall`` (percent).
    published: label -> mIoU on another task, a hollow diamond at the same *difference* to the
    baseline, where it has one.
    """
    order = list(dict.fromkeys(table["label"]))
    size = (TEXT_WIDTH, 0.7 + 0.2 * len(order))
    figure, axes = plt.subplots(1, 3, figsize=size, sharey=True)
    for axis, metric in zip(axes, ("miou", "precision", "recall"), strict=True):
        sns.barplot(table, x=metric, y="label", order=order, ax=axis, **SD_BARS)
        sns.stripplot(table, x=metric, y="label", order=order, ax=axis, **DOTS)
        start = table.loc[table["label"] == baseline, metric].mean()
        axis.axvline(start, color="0.3", linewidth=0.6)
        if metric == "miou" and baseline in published:
            for label in [name for name in order if name in published and name != baseline]:
                diamond(axis, start + published[label] - published[baseline], order.index(label))
        axis.set(xlabel="%", ylabel="", title=metric_name(metric))
    words = "the paper's difference (VOC train: another task)"
    paired = baseline in published and len(set(published) & set(order)) > 1
    repeats_legend(figure, words if paired else "")
    return figure


def metric_name(metric: str) -> str:
    """A metric's column as it is written in a figure."""
    return {"miou": "mIoU"}.get(metric, metric)


def diamond(axis: Axes, x: float, y: float) -> None:
    """A published value: hollow, since it was measured on another task."""
    axis.plot(x, y, "D", color="C1", markersize=4, markerfacecolor="none", zorder=5)


def repeats_legend(figure: Figure, diamonds: str = "") -> None:
    """What dots are, and diamonds where they have a name."""
    handles = [plt.Line2D([], [], marker="o", linestyle="", color="C0", markersize=3)]
    hollow = {"color": "C1", "markersize": 4, "markerfacecolor": "none"}
    handles += [plt.Line2D([], [], marker="D", linestyle="", **hollow)] if diamonds else []
    names = ["ours, a repeat", *([diamonds] if diamonds else [])]
    figure.legend(handles, names, loc="outside lower right", ncols=2)


def colour_legend(figure: Figure, colours: Mapping[str, np.ndarray]) -> None:
    """Names of colours, below the panels; nothing where there are none."""
    if not colours:
        return
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    columns = min(len(colours), 6)
    figure.legend(handles, list(colours), loc="outside lower right", ncols=columns)


def outline(axis: Axes, labels: np.ndarray) -> None:
    """The borders of what a label map (H, W) holds, in its colours, over a picture of its size."""
    for label in sorted(set(np.unique(labels).tolist()) - {0}):
        inside, colour = labels == label, voc_palette()[label] / 255
        for line, width in (("white", 1.6), (colour, 0.8)):  # seen on any ground
            axis.contour(inside, levels=[0.5], colors=[line], linewidths=width)


def show(axis: Axes, picture: np.ndarray) -> None:
    """A picture (H, W, 3), or labels (H, W) in VOC's palette, without ticks."""
    axis.imshow(voc_palette()[picture] / 255 if picture.ndim == 2 else picture)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
