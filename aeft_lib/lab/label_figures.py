"""The figures of notebooks 5 and 6: rows of label maps, classes, and the poster's results; in the manner of `figures`."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from aeft_lib.lab.figures import TEXT_WIDTH


def label_bars(table: pd.DataFrame, published: Mapping[str, float], baseline: str) -> Figure:
    """Rows of a study of label maps: mIoU, precision and recall, mean ± sd, a dot a seed; `baseline` is a line.

    table: long, with ``label, seed, miou, precision, recall`` (percent).  published: label -> mIoU on another task, hollow
    diamonds at the same *difference* to the baseline, where it has one.
    """
    order = list(dict.fromkeys(table["label"]))
    figure, axes = plt.subplots(1, 3, figsize=(TEXT_WIDTH, 0.7 + 0.2 * len(order)), sharey=True)
    for axis, metric in zip(axes, ("miou", "precision", "recall"), strict=True):
        sns.barplot(table, x=metric, y="label", order=order, errorbar="sd", ax=axis, color="0.8", err_kws={"linewidth": 0.8})
        sns.stripplot(table, x=metric, y="label", order=order, ax=axis, size=2.5, color="C0", jitter=False)
        start = table.loc[table["label"] == baseline, metric].mean()
        axis.axvline(start, color="0.3", linewidth=0.6)
        if metric == "miou" and baseline in published:
            for label in [name for name in order if name in published and name != baseline]:
                at = start + published[label] - published[baseline]
                axis.plot(at, order.index(label), "D", color="C1", markersize=4, markerfacecolor="none", zorder=5)
        axis.set(xlabel="%", ylabel="", title={"miou": "mIoU"}.get(metric, metric))
    handles = [plt.Line2D([], [], marker="o", linestyle="", color="C0", markersize=3)]
    names = ["ours, a seed"]
    if baseline in published and len(set(published) & set(order)) > 1:
        handles.append(plt.Line2D([], [], marker="D", linestyle="", color="C1", markersize=4, markerfacecolor="none"))
        names.append("the paper's difference (VOC train: another task)")
    figure.legend(handles, names, loc="outside lower right", ncols=2)
    return figure


def class_heatmap(classes: pd.DataFrame) -> Figure:
    """IoU per class (columns) and row of a study (lines), mean over seeds.

    classes: long, with ``label, class, seed, iou`` (percent).
    """
    wide = classes.pivot_table(index="label", columns="class", values="iou", sort=False)
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH, 0.6 + 0.22 * len(wide)))
    sns.heatmap(wide, annot=True, fmt=".0f", cmap="viridis", vmin=0, vmax=100, ax=axis, cbar=False, annot_kws={"size": 6})
    axis.set(xlabel="", ylabel="")
    axis.tick_params(length=0)
    axis.tick_params(axis="x", labelrotation=30)
    return figure


def results_scatter(results: pd.DataFrame, ours: str) -> Figure:
    """The poster's figure: VOC test mIoU against the venue's date, with a straight trend through all but `ours`.

    results: ``method, backbone, voc_test`` (percent) and ``date`` (decimal year), one line a method.
    Raises ValueError naming a method without a date.
    """
    if results["date"].isna().any():
        undated = ", ".join(results.loc[results["date"].isna(), "method"])
        raise ValueError(f"no date for {undated}: add their venue to published.toml")
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH, 2.8))
    others, paper = results[results["method"] != ours], results[results["method"] == ours]
    slope, offset = np.polyfit(others["date"], others["voc_test"], 1)
    dates = np.array([results["date"].min() - 0.1, results["date"].max() + 0.1])
    axis.plot(dates, offset + slope * dates, color="0.6", linestyle="--", linewidth=0.8, zorder=0)
    sns.scatterplot(others, x="date", y="voc_test", hue="backbone", style="backbone", ax=axis, s=18)
    axis.plot(paper["date"], paper["voc_test"], "*", color="C3", markersize=9)
    later = {date: min((d - date for d in results["date"] if d > date), default=0) for date in results["date"]}
    for line in results.itertuples():
        right = later[line.date] > 0.35  # years: room for a name before the next venue's
        beside = results.loc[(results["date"] == line.date) & (results["method"] != line.method), "voc_test"] - line.voc_test
        near = beside[beside.abs() < 0.25]  # points: two names of one venue, one above the other
        up = 0 if near.empty else -2.5 if near.iloc[0] > 0 else 2.5
        place = {"xytext": (4 if right else -4, up), "textcoords": "offset points", "va": "center", "fontsize": 5.5}
        axis.annotate(line.method, (line.date, line.voc_test), ha="left" if right else "right", **place)
    axis.set(xlabel="date of the venue", ylabel="mIoU on VOC 2012 test (%)")
    axis.xaxis.set_major_locator(plt.MultipleLocator(1))
    axis.legend(title=f"trend {slope:+.1f} points a year", title_fontsize=6, loc="lower right")
    return figure
