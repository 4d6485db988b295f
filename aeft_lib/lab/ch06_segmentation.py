"""Figures of chapter 6: classes of rows of label maps, and the poster's results."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from aeft_lib.lab.figures import TEXT_WIDTH, name_dots


def class_heatmap(classes: pd.DataFrame) -> Figure:
    """IoU per class (columns) and row of a study (lines), mean over repeats.

    classes: long, with ``label, class, repeat, iou`` (percent).
    """
    wide = classes.pivot_table(index="label", columns="class", values="iou", sort=False)
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH, 0.6 + 0.22 * len(wide)))
    style = {"annot": True, "fmt": ".0f", "annot_kws": {"size": 6}, "cbar": False}
    sns.heatmap(wide, cmap="viridis", vmin=0, vmax=100, ax=axis, **style)
    axis.set(xlabel="", ylabel="")
    axis.tick_params(length=0)
    axis.tick_params(axis="x", labelrotation=30)
    return figure


def results_scatter(results: pd.DataFrame, ours: str) -> Figure:
    """The poster's figure: VOC test mIoU against the venue's date, with a trend without `ours`.

    results: ``method, backbone, voc_test`` (percent) and ``date`` (decimal year), a line a method.
    Raises ValueError naming a method without a date.
    """
    if results["date"].isna().any():
        undated = ", ".join(results.loc[results["date"].isna(), "method"])
        raise ValueError(f"no date for {undated}: add their venue to published.toml")
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH, 2.8))
    others, paper = results[results["method"] != ours], results[results["method"] == ours]
    slope, offset = np.polyfit(others["date"], others["voc_test"], 1)
    dates = np.array([results["date"].min() - 0.1, results["date"].max() + 0.1])
    trend = {"color": "0.6", "linestyle": "--", "linewidth": 0.8, "zorder": 0}
    line = (dates, offset + slope * dates)
    axis.plot(*line, **trend)
    by_backbone = {"hue": "backbone", "style": "backbone"}
    sns.scatterplot(others, x="date", y="voc_test", ax=axis, s=18, **by_backbone)
    axis.plot(paper["date"], paper["voc_test"], "*", color="C3", markersize=9)
    name_dots(axis, results["date"], results["voc_test"], results["method"], [line])
    axis.set(xlabel="date of the venue", ylabel="mIoU on VOC 2012 test (%)")
    axis.xaxis.set_major_locator(plt.MultipleLocator(1))
    axis.legend(title=f"trend {slope:+.1f} points a year", title_fontsize=6, loc="lower right")
    return figure
