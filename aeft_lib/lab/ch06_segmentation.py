"""Figures of chapter 6: classes of rows of label maps, and the poster's results."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from aeft_lib.lab.figures import TEXT_WIDTH

ROOM = 0.35  # years to the next venue: below it a method's name stands at the left of its dot
NEAR = 0.25  # points: two names of the same venue are set apart


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
    axis.plot(dates, offset + slope * dates, **trend)
    by_backbone = {"hue": "backbone", "style": "backbone"}
    sns.scatterplot(others, x="date", y="voc_test", ax=axis, s=18, **by_backbone)
    axis.plot(paper["date"], paper["voc_test"], "*", color="C3", markersize=9)
    for line in results.itertuples():
        later = results.loc[results["date"] > line.date, "date"].min() - line.date
        place = {"ha": "left"} if later > ROOM else {"ha": "right"}  # NaN for the last venue
        offsets = (4 if later > ROOM else -4, _up(results, line.method))
        place |= {"xytext": offsets, "textcoords": "offset points", "va": "center"}
        axis.annotate(line.method, (line.date, line.voc_test), fontsize=5.5, **place)
    axis.set(xlabel="date of the venue", ylabel="mIoU on VOC 2012 test (%)")
    axis.xaxis.set_major_locator(plt.MultipleLocator(1))
    axis.legend(title=f"trend {slope:+.1f} points a year", title_fontsize=6, loc="lower right")
    return figure


def _up(results: pd.DataFrame, method: str) -> float:
    """Points that a method's name moves up, away from a near one of the same venue."""
    own = results[results["method"] == method].iloc[0]
    same = (results["date"] == own["date"]) & (results["method"] != method)
    beside = results.loc[same, "voc_test"] - own["voc_test"]
    near = beside[beside.abs() < NEAR]
    return 0 if near.empty else -2.5 if near.iloc[0] > 0 else 2.5
