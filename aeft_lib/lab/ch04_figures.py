"""Figures of chapter 4: a triplet as the poster draws it, and what the second phase changes."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from aeft_lib.lab import figures
from aeft_lib.lab.figures import DOTS, SD_BARS, TEXT_WIDTH, metric_name


def triplet_diagram(
    pictures: Mapping[str, np.ndarray], bars: pd.DataFrame, classes: Sequence[str] = ()
) -> Figure:
    """The poster's picture of the triplet with real maps: the positive, and what is compared.

    pictures: eight, title -> (H, W, 3) RGB, drawn four a row.
    bars: long, with ``pair, embedding, class, value``; a bar chart a pair at the end of its row.
    classes: their names, for those with a bar.
    """
    titles, pairs = list(pictures), list(dict.fromkeys(bars["pair"]))
    widths = (1, 1, 1, 1, 1.5)
    figure, axes = plt.subplots(2, 5, figsize=(TEXT_WIDTH, 2.35), width_ratios=widths)
    for r, pair in enumerate(pairs):
        for c, title in enumerate(titles[4 * r : 4 * r + 4]):
            figures.show(axes[r, c], pictures[title])
            axes[r, c].set_title(title, fontsize=6)
        rows, axis = bars[bars["pair"] == pair], axes[r, 4]
        sns.barplot(rows, x="class", y="value", hue="embedding", ax=axis, saturation=1)
        axis.axhline(0, color="0.3", linewidth=0.6)
        axis.set(xlabel="class", ylabel="embedding")
        if classes:
            largest = rows.groupby("class")["value"].agg(lambda values: values.abs().max())
            names = [classes[k] if value > 0 else "" for k, value in largest.items()]
            axis.set_xticks(range(len(names)), names, rotation=30, fontsize=5)
        axis.set_title(pair, fontsize=6)
        axis.legend(title=None, fontsize=5)
    return figure


def over_expansion(progress: pd.DataFrame) -> Figure:
    """Precision, recall and best mIoU over the steps of the second phase: mean ± sd over repeats.

    progress: of `ch04_triplet.progress`.
    """
    figure, axes = plt.subplots(1, 3, figsize=(TEXT_WIDTH, 2.2), sharex=True)
    titles = {
        "precision": "precision (%), one t",
        "recall": "recall (%), one t",
        "miou_best": "mIoU (%), best t",
    }
    style = {"errorbar": "sd", "linewidth": 1, "err_kws": {"alpha": 0.12}}
    for axis, (metric, title) in zip(axes, titles.items(), strict=True):
        last = axis is axes[-1]
        sns.lineplot(progress, x="step", y=metric, hue="label", ax=axis, legend=last, **style)
        axis.set(xlabel="steps", ylabel="", title=title, xticks=sorted(set(progress["step"])))
    handles, labels = axes[-1].get_legend_handles_labels()
    axes[-1].get_legend().remove()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def triplet_bars(
    table: pd.DataFrame, published: Mapping[str, Mapping[str, float]], baseline: str
) -> Figure:
    """Rows against `baseline` in precision, recall and mIoU: paired by repeat, mean ± sd, dots.

    table: long, with ``label, repeat, precision, recall, miou``.
    published: label -> the same three in percent; differences are hollow diamonds (another task).
    """
    order = [label for label in dict.fromkeys(table["label"]) if label != baseline]
    size = {"figsize": (TEXT_WIDTH, 0.6 + 0.22 * len(order)), "sharey": True, "sharex": True}
    figure, axes = plt.subplots(1, 3, **size)
    for axis, metric in zip(axes, ("precision", "recall", "miou"), strict=True):
        wide = table.pivot_table(index="repeat", columns="label", values=metric, sort=False)
        gains = wide[order].sub(wide[baseline], axis=0).melt(var_name="label", value_name="gain")
        sns.barplot(gains, x="gain", y="label", order=order, ax=axis, **SD_BARS)
        sns.stripplot(gains, x="gain", y="label", order=order, ax=axis, **DOTS)
        for label in [name for name in order if name in published]:
            gain = published[label][metric] - published[baseline][metric]
            figures.diamond(axis, gain, order.index(label))
        axis.axvline(0, color="0.3", linewidth=0.6)
        start = f"points from {wide[baseline].mean():.1f}"
        axis.set(xlabel=start, ylabel="", title=metric_name(metric))
    figures.repeats_legend(figure, "paper (VOC train: another task)")
    return figure


def quirk_effects(effects: pd.DataFrame) -> Figure:
    """What correcting each quirk alone changes, from both starts: mean ± sd over repeats.

    effects: of `ch04_triplet.quirk_effects`.
    """
    figure, axes = plt.subplots(1, 3, figsize=(TEXT_WIDTH, 2.6), sharey=True)
    style = {"errorbar": "sd", "dodge": 0.4, "linestyle": "none", "markersize": 2.5}
    style |= {"err_kws": {"linewidth": 0.8}}
    for axis, metric in zip(axes, ("miou", "precision", "recall"), strict=True):
        last = axis is axes[-1]
        sns.pointplot(effects, x=metric, y="quirk", hue="start", ax=axis, legend=last, **style)
        axis.axvline(0, color="0.3", linewidth=0.6)
        axis.set(xlabel="points", ylabel="", title=metric_name(metric))
    if legend := axes[-1].get_legend():
        legend.remove()
        handles, labels = axes[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", ncols=2)
    return figure
