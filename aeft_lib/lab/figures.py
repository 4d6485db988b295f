"""The companion's figures, each a named function from plain data to a matplotlib figure, and `save` to keep them.

Functions take arrays and tables, never a network or a store, so a figure can be tested as data and redrawn anywhere.
Colours: maps in one sequential scale, classes of masks in VOC's palette, agreement and error in colour-blind-safe hues.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats

from aeft_lib.maps.labels import voc_palette

plt.style.use(Path(__file__).with_name("style.mplstyle"))

TEXT_WIDTH = 4.8  # inches, LNCS
CAM_COLOURS = "magma"
FLOOR = -8.0  # points: a row that collapses would hide all other differences
# Truth against prediction: agreement, spill (predicted only), miss (true only).
HIT, SPILL, MISS = (np.array(colour) / 255 for colour in ((0, 158, 115), (213, 94, 0), (86, 180, 233)))


def use_inline_jpeg() -> None:
    """In a notebook, store shown figures as JPEG: photographs as PNG would make the files four times as large."""
    if get_ipython() is not None:
        set_matplotlib_formats("jpeg", pil_kwargs={"quality": 70})


def save(figure: Figure, name: str, table: pd.DataFrame, folder: Path) -> None:
    """Write ``name.png``, ``.pdf`` and the figure's numbers as ``.csv``; byte-stable, because no date goes in."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})
    table.to_csv(folder / f"{name}.csv", index=False, float_format="%.4f")


def overlay(image: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """A CAM (H, W) in 0..1 over the greyed image (H, W, 3) uint8; RGB in 0..1."""
    grey = image.mean(axis=2, keepdims=True) / 255
    return 0.45 * grey + 0.55 * plt.get_cmap(CAM_COLOURS)(cam)[..., :3]


def stretched(small: np.ndarray, image: np.ndarray) -> np.ndarray:
    """A map (h, w) at the size of an image (H, W, ...), nearest cell."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(image.shape[:2], small.shape, strict=True))
    return small[np.ix_(rows, columns)]


def agreement(image: np.ndarray, predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Hits, spill and misses of two boolean masks (H, W) painted over the greyed image; RGB in 0..1."""
    grey = np.repeat(image.mean(axis=2, keepdims=True) / 255, 3, axis=2)
    for region, colour in ((predicted & truth, HIT), (predicted & ~truth, SPILL), (truth & ~predicted, MISS)):
        grey[region] = 0.3 * grey[region] + 0.7 * colour
    return grey


def picture_grid(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], labels: Sequence[str] = ()) -> Figure:
    """Pictures in rows under column titles; each (H, W, 3), or (H, W) labels drawn in VOC's palette."""
    cell = TEXT_WIDTH / len(titles)
    figure, axes = plt.subplots(len(rows), len(titles), squeeze=False, figsize=(TEXT_WIDTH, cell * len(rows) + 0.2))
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            _show(axes[r, c], picture)
            if r == 0:
                axes[r, c].set_title(titles[c], fontsize=6)
        if labels:
            axes[r, 0].set_ylabel(labels[r], fontsize=6)
    return figure


def cam_problems(cases: Sequence[Mapping[str, np.ndarray]], labels: Sequence[str]) -> Figure:
    """The two problems of CAMs, one case a row.  A case has image, truth, cam and predicted (masks are boolean)."""
    rows = [
        (
            case["image"],
            overlay(case["image"], case["truth"].astype(float)),
            overlay(case["image"], case["cam"]),
            agreement(case["image"], case["predicted"], case["truth"]),
        )
        for case in cases
    ]
    figure = picture_grid(rows, ("image", "object", "CAM (GAP)", "seed against object"), labels)
    _legend(figure, (("hit", HIT), ("spill", SPILL), ("missed", MISS)))
    return figure


def gpp_pyramid(
    image: np.ndarray,
    mask: np.ndarray,
    levels: Mapping[str, np.ndarray],
    fused: Mapping[str, np.ndarray],
    detail: np.ndarray,
) -> Figure:
    """The poster's picture of the layer for one class: signed maps (h, w), positive in red and negative in green.

    levels: name -> pooled map P_r.  fused: name -> gated map, below the level that enters it.
    detail: 4 |P^ - P_finest|, what the gates add, beside the object.
    """
    top = [image, *(signed_colours(m) for m in levels.values())]
    added = plt.get_cmap(CAM_COLOURS)(np.clip(detail / max(detail.max(), 1e-6), 0, 1))[..., :3]
    bottom = [np.repeat(mask[..., None] * 1.0, 3, axis=2), added, *(signed_colours(m) for m in fused.values())]
    columns = max(len(top), len(bottom))
    figure, axes = plt.subplots(2, columns, figsize=(TEXT_WIDTH, 2 * TEXT_WIDTH / columns + 0.25))
    names = (["image", *levels], ["object", "4·|P̂ − P|", *fused])
    for row, (pictures, titles) in enumerate(zip((top, bottom), names, strict=True)):
        for column in range(columns):
            axes[row, column].axis("off")
            if column < len(pictures):
                _show(axes[row, column], pictures[column])
                axes[row, column].set_title(titles[column], fontsize=6)
    return figure


def signed_colours(signed: np.ndarray) -> np.ndarray:
    """A signed map (h, w) as RGB in 0..1: relu(x) in red, relu(-x) in green, both on the scale of the larger."""
    scale = max(np.abs(signed).max(), 1e-12)
    picture = np.zeros((*signed.shape, 3))
    picture[..., 0], picture[..., 1] = np.maximum(signed, 0) / scale, np.maximum(-signed, 0) / scale
    return picture


def ablation_bars(table: pd.DataFrame, published: Mapping[str, float], baseline: str = "GAP") -> Figure:
    """Rows of a study as bars of their difference to the baseline: paired by seed, mean ± sd, a dot per seed, mIoU written.

    The published values stand in a panel and scale of their own.  Bars of differences start at a true zero.
    table: long, with ``label, seed, miou``.  published: label -> percent, the baseline among them.
    """
    wide = table.pivot_table(index="seed", columns="label", values="miou", sort=False)
    order = [label for label in dict.fromkeys(table["label"]) if label != baseline]
    gains = wide[order].sub(wide[baseline], axis=0).melt(var_name="label", value_name="gain")
    figure, (ours, theirs) = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 2.6), sharey=True, width_ratios=(3, 2))
    sns.barplot(gains, x="gain", y="label", order=order, errorbar="sd", ax=ours, color="0.8", err_kws={"linewidth": 0.8})
    sns.stripplot(gains, x="gain", y="label", order=order, ax=ours, size=2.5, color="C0", jitter=False)
    floor = max(gains["gain"].min() - 1, FLOOR)
    ours.set_xlim(floor, max(gains["gain"].max() + 1, 2))
    for label in wide[order].columns[wide[order].mean() - wide[baseline].mean() < floor]:
        ours.text(floor, order.index(label), " ◂ off the scale", fontsize=6, va="center")
    ours.set_title(f"ours, unseen scenes ({baseline} {wide[baseline].mean():.1f})")
    known = pd.Series({label: published[label] for label in order if label in published}, dtype=float)
    sns.barplot(x=known - published.get(baseline, np.nan), y=known.index, order=order, ax=theirs, color="C1", alpha=0.6)
    theirs.set_title(f"paper, VOC train ({baseline} {published.get(baseline, np.nan):.1f})")
    for axis, values in ((ours, wide[order].mean()), (theirs, known)):
        axis.set(xlabel=f"mIoU − {baseline} (points)", ylabel="")
        axis.axvline(0, color="0.3", linewidth=0.6)
        for label, value in values.items():
            axis.text(1.0, order.index(label), f"{value:.1f}", transform=axis.get_yaxis_transform(), fontsize=6, va="center")
    return figure


def threshold_curves(curves: pd.DataFrame, marks: Mapping[str, Mapping[str, float]]) -> Figure:
    """mIoU, precision and recall against the background score, one line a row, mean over seeds.

    curves: long, with ``label, seed, threshold, miou, precision, recall``.
    marks: label -> {"best": threshold, "maskless": threshold}, drawn as a solid and a hollow dot.
    """
    figure, axes = plt.subplots(1, 3, figsize=(TEXT_WIDTH, 1.9), sharex=True)
    for axis, metric in zip(axes, ("miou", "precision", "recall"), strict=True):
        for i, (label, rows) in enumerate(curves.groupby("label", sort=False)):
            line = rows.groupby("threshold")[metric].mean()
            axis.plot(line.index, line, color=f"C{i}", label=label)
            for kind, face in (("best", f"C{i}"), ("maskless", "white")):
                at = line.index[np.abs(line.index - marks[label][kind]).argmin()]
                axis.plot(at, line[at], "o", color=f"C{i}", markerfacecolor=face)
        axis.set(xlabel="background score t", title={"miou": "mIoU (%)"}.get(metric, f"{metric} (%)"))
    axes[-1].legend()
    return figure


def cam_fit(fits: pd.DataFrame) -> Figure:
    """Spill and coverage per object, one cloud a row: how imprecise and how sparse CAMs are, free of any threshold sweep.

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


def gate_balance(gates: pd.DataFrame) -> Figure:
    """What the gates learn: mean weight of the coarser and the finer map in every fusion step, by sign.

    gates: long, with ``step, sign, side, weight`` (0..1), one line per seed.
    """
    figure, axes = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 1.9), sharey=True)
    for axis, (sign, rows) in zip(axes, gates.groupby("sign", sort=False), strict=True):
        sns.pointplot(rows, x="step", y="weight", hue="side", errorbar="sd", ax=axis, linewidth=1, markersize=3, dodge=0.1)
        axis.set(title=f"{sign} evidence", xlabel="", ylabel="mean gate")
        axis.legend(title=None)
        axis.axhline(0.5, color="0.8", linewidth=0.6, zorder=0)
    return figure


def triplet_diagram(pictures: Mapping[str, np.ndarray], bars: pd.DataFrame) -> Figure:
    """The poster's picture of the triplet with real maps: how the positive is made, and what is compared with what.

    pictures: eight, title -> (H, W, 3) RGB, drawn four a row.
    bars: long, with ``pair, embedding, class, value``; one small bar chart a pair, at the end of its row.
    """
    titles, pairs = list(pictures), list(dict.fromkeys(bars["pair"]))
    figure, axes = plt.subplots(2, 5, figsize=(TEXT_WIDTH, 2.35), width_ratios=(1, 1, 1, 1, 1.5))
    for r, pair in enumerate(pairs):
        for c, title in enumerate(titles[4 * r : 4 * r + 4]):
            _show(axes[r, c], pictures[title])
            axes[r, c].set_title(title, fontsize=6)
        rows = bars[bars["pair"] == pair]
        sns.barplot(rows, x="class", y="value", hue="embedding", ax=axes[r, 4], saturation=1)
        axes[r, 4].axhline(0, color="0.3", linewidth=0.6)
        axes[r, 4].set(xlabel="", ylabel="")
        axes[r, 4].set_title(pair, fontsize=6)
        axes[r, 4].legend(title=None, fontsize=5)
    return figure


def over_expansion(course: pd.DataFrame) -> Figure:
    """Precision and recall against the steps of the second phase at one threshold, and mIoU at the best: mean ± sd over seeds.

    course: long, with ``label, seed, step, precision, recall, miou_best`` (percent).
    """
    figure, axes = plt.subplots(1, 3, figsize=(TEXT_WIDTH, 2.2), sharex=True)
    titles = {"precision": "precision (%), one t", "recall": "recall (%), one t", "miou_best": "mIoU (%), best t"}
    for axis, (metric, title) in zip(axes, titles.items(), strict=True):
        last = axis is axes[-1]
        style = {"errorbar": "sd", "linewidth": 1, "err_kws": {"alpha": 0.12}}
        sns.lineplot(course, x="step", y=metric, hue="label", ax=axis, legend=last, **style)
        axis.set(xlabel="steps", ylabel="", title=title, xticks=sorted(set(course["step"])))
    handles, labels = axes[-1].get_legend_handles_labels()
    axes[-1].get_legend().remove()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def triplet_bars(table: pd.DataFrame, published: Mapping[str, Mapping[str, float]], baseline: str) -> Figure:
    """Rows of the triplet's study against `baseline`, in precision, recall and mIoU: paired by seed, mean ± sd, a dot a seed.

    table: long, with ``label, seed, precision, recall, miou``.  published: label -> the same three in percent; its differences
    are hollow diamonds, of another task.
    """
    order = [label for label in dict.fromkeys(table["label"]) if label != baseline]
    figure, axes = plt.subplots(1, 3, figsize=(TEXT_WIDTH, 0.6 + 0.22 * len(order)), sharey=True, sharex=True)
    for axis, metric in zip(axes, ("precision", "recall", "miou"), strict=True):
        wide = table.pivot_table(index="seed", columns="label", values=metric, sort=False)
        gains = wide[order].sub(wide[baseline], axis=0).melt(var_name="label", value_name="gain")
        sns.barplot(gains, x="gain", y="label", order=order, errorbar="sd", ax=axis, color="0.8", err_kws={"linewidth": 0.8})
        sns.stripplot(gains, x="gain", y="label", order=order, ax=axis, size=2.5, color="C0", jitter=False)
        for label in set(order) & set(published):
            paper = published[label][metric] - published[baseline][metric]
            axis.plot(paper, order.index(label), "D", color="C1", markersize=4, markerfacecolor="none", zorder=5)
        axis.axvline(0, color="0.3", linewidth=0.6)
        name = {"miou": "mIoU"}.get(metric, metric)
        axis.set(xlabel=f"points from {wide[baseline].mean():.1f}", ylabel="", title=name)
    handles = [plt.Line2D([], [], marker="o", linestyle="", color="C0", markersize=3)]
    handles += [plt.Line2D([], [], marker="D", linestyle="", color="C1", markersize=4, markerfacecolor="none")]
    figure.legend(handles, ["ours, a seed", "paper (VOC train: another task)"], loc="outside lower right", ncols=2)
    return figure


def quirk_effects(effects: pd.DataFrame) -> Figure:
    """What correcting each quirk alone changes: mean ± sd over seeds, from the reference and within the corrected method.

    effects: long, with ``quirk, start, seed`` and the differences ``miou, precision, recall`` in points.
    """
    figure, axes = plt.subplots(1, 3, figsize=(TEXT_WIDTH, 2.6), sharey=True)
    for axis, metric in zip(axes, ("miou", "precision", "recall"), strict=True):
        sns.pointplot(
            effects,
            x=metric,
            y="quirk",
            hue="start",
            errorbar="sd",
            dodge=0.4,
            linestyle="none",
            markersize=2.5,
            err_kws={"linewidth": 0.8},
            ax=axis,
            legend=axis is axes[-1],
        )
        axis.axvline(0, color="0.3", linewidth=0.6)
        axis.set(xlabel="points", ylabel="", title={"miou": "mIoU"}.get(metric, metric))
    if legend := axes[-1].get_legend():
        legend.remove()
        figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return figure


def _show(axis: Axes, picture: np.ndarray) -> None:
    axis.imshow(voc_palette()[picture] / 255 if picture.ndim == 2 else picture)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def _legend(figure: Figure, entries: Sequence[tuple[str, np.ndarray]]) -> None:
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for _, colour in entries]
    figure.legend(handles, [name for name, _ in entries], loc="outside lower right", ncols=len(entries))
