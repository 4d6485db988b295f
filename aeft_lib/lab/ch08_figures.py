"""Figures of notebook 8: scenes under control, effects with their intervals, trainings over time."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aeft_lib.lab.figures import TEXT_WIDTH
from aeft_lib.studies.conditions import BASE

SCREEN_DPI = 100  # notebook 8 has nine figures and 300 KB; files are saved at the style's own resolution
METRICS = {"iou": "IoU (%)", "precision": "precision (%)", "recall": "recall (%)"}


def knob_grid(pictures: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """One scene at every level of every knob: a row a knob, a column a level; pictures (H, W, 3) by knob and level."""
    columns = max(map(len, pictures.values()))
    width = 0.6 * TEXT_WIDTH
    size = (width, 1.1 * width / columns * len(pictures))
    figure, axes = plt.subplots(len(pictures), columns, squeeze=False, figsize=size, dpi=SCREEN_DPI)
    for line, (knob, levels) in zip(axes, pictures.items(), strict=True):
        for axis in line:
            axis.axis("off")
        for axis, (level, picture) in zip(line, levels.items(), strict=False):
            axis.imshow(picture)
            axis.set_title(f"{knob.replace('_', ' ')} {level}", fontsize=5)
    return figure


def effect_forest(effects: pd.DataFrame) -> Figure:
    """Paired differences at every level of every knob with 95 % intervals, a panel a comparison; the base is a grey band.

    effects: of `condition_effects.level_effects`.  Filled: still an effect when adjusted for the number of comparisons; ticks:
    the seeds.  Intervals may end outside the frame, which is twice as wide as the seeds.
    """
    panels = list(dict.fromkeys(effects["label"]))
    lines = effects[["knob", "value"]].drop_duplicates().reset_index(drop=True)
    gap = (lines["knob"].ne(lines["knob"].shift()).cumsum() - 1) * 0.7
    places = dict(zip(zip(lines["knob"], lines["value"], strict=True), lines.index + gap, strict=True))
    figure, axes = plt.subplots(1, len(panels), figsize=(TEXT_WIDTH, 3.9), sharey=True, squeeze=False, dpi=SCREEN_DPI)
    for i, (axis, label) in enumerate(zip(axes[0], panels, strict=True)):
        of_panel = effects[effects["label"] == label]
        base = of_panel[of_panel["row"] == BASE].head(1)
        axis.axvspan(base["low"].item(), base["high"].item(), color="0.92", linewidth=0)
        for line in of_panel.itertuples():
            place, face = places[line.knob, line.value], f"C{i}" if line.p_adjusted < 0.05 else "white"
            axis.plot(line.differences, [place] * len(line.differences), "|", color="0.2", markersize=4, zorder=3)
            interval(axis, line.mean, line.low, line.high, place, f"C{i}", face)
        reach = 2 * max(abs(one) for differences in of_panel["differences"] for one in differences)
        axis.axvline(0, color="0.3", linewidth=0.6)
        axis.set(xlabel="mIoU points", title=label, xlim=(-reach, reach))
    axes[0, 0].set_yticks(list(places.values()), [f"{knob.replace('_', ' ')} {value:g}" for knob, value in places])
    axes[0, 0].invert_yaxis()
    return figure


def depth_curves(effects: pd.DataFrame) -> Figure:
    """G − GAP against how many stages of the backbone are trained, on collages and photos, with 95 % intervals.

    effects: of `condition_effects.depth_effects`.
    """
    metrics = list(dict.fromkeys(effects["metric"]))
    figure, axes = plt.subplots(1, len(metrics), figsize=(TEXT_WIDTH, 2.0), sharey=True, squeeze=False, dpi=SCREEN_DPI)
    for axis, metric in zip(axes[0], metrics, strict=True):
        for i, (pictures, line) in enumerate(effects[effects["metric"] == metric].groupby("pictures", sort=False)):
            places = line["stages"] + 0.12 * i
            axis.plot(places, line["mean"], f"C{i}-o", linewidth=1, markersize=3.5, label=pictures)
            axis.vlines(places, line["low"], line["high"], color=f"C{i}", linewidth=1)
        axis.axhline(0, color="0.3", linewidth=0.6)
        axis.set(xlabel="trained stages", title={"miou": "mIoU"}.get(metric, metric))
    axes[0, 0].set_ylabel("G − GAP (points)")
    axes[0, -1].legend()
    return figure


def width_scatter(widths: pd.DataFrame, names: Sequence[str] = ()) -> Figure:
    """G − GAP in precision and mIoU against how wide GAP's CAMs are, a dot a setting; the dashed line is an object's width.

    widths: of `condition_effects.width_effects`.  names: settings whose dots are named.
    """
    figure, axes = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 2.3), dpi=SCREEN_DPI)
    for axis, metric in zip(axes, ("precision", "miou"), strict=True):
        axis.plot(widths["width"], widths[metric], "o", color="C0", markersize=3)
        for line in widths[widths["setting"].isin(names)].itertuples():
            where = (line.width, getattr(line, metric))
            axis.annotate(line.setting.replace("_", " "), where, fontsize=5, xytext=(3, 2), textcoords="offset points")
        axis.axhline(0, color="0.3", linewidth=0.6)
        axis.axvline(1, color="0.3", linewidth=0.6, linestyle="--")
        axis.set(xscale="log", xlabel="area of GAP's CAM / object", title=f"{metric.replace('miou', 'mIoU')}, G − GAP (points)")
        ticks = [tick for tick in (0.125, 0.25, 0.5, 1, 2, 4) if widths["width"].min() / 2 < tick < 2 * widths["width"].max()]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    return figure


def forest(effects: pd.DataFrame, groups: Sequence[str], xlabel: str = "mIoU points") -> Figure:
    """Effects with 95 % intervals, a panel a group.  effects: long, with ``group, label, mean, low, high``."""
    parts = [effects[effects["group"] == group] for group in groups]
    height = 0.5 + 0.17 * max(map(len, parts))
    figure, axes = plt.subplots(1, len(groups), figsize=(TEXT_WIDTH, height), squeeze=False, dpi=SCREEN_DPI)
    for i, (axis, group, part) in enumerate(zip(axes[0], groups, parts, strict=True)):
        for place, line in enumerate(part.itertuples()):
            interval(axis, line.mean, line.low, line.high, place, f"C{i}", f"C{i}")
        axis.axvline(0, color="0.3", linewidth=0.6)
        repeated = i > 0 and part["label"].tolist() == parts[i - 1]["label"].tolist()
        axis.set_yticks(range(len(part)), [""] * len(part) if repeated else part["label"])
        axis.set(xlabel=xlabel, title=group, ylim=(len(part) - 0.5, -0.5))
    return figure


def interval(axis: Axes, mean: float, low: float, high: float, place: float, colour: str, face: str) -> None:
    """A mean as a dot at height `place`, its interval as a line; NaN ends draw the dot alone."""
    axis.plot([low, high], [place, place], color=colour, linewidth=1)
    axis.plot(mean, place, "o", color=colour, markerfacecolor=face, markersize=3.5)


def training_course(course: pd.DataFrame) -> Figure:
    """Tag mAP, entropy and area above half the maximum of the CAMs over the epochs, mean ± sd over seeds.

    course: long, with ``label, seed, epoch, tag_map, entropy, half_area``.
    """
    figure, axes = plt.subplots(1, 3, figsize=(TEXT_WIDTH, 1.9), dpi=SCREEN_DPI)
    titles = {"tag_map": "tag mAP (%)", "entropy": "entropy of the CAM", "half_area": "area above half max"}
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        style = {"errorbar": "sd", "linewidth": 1, "err_kws": {"alpha": 0.15}}
        sns.lineplot(course, x="epoch", y=column, hue="label", ax=axis, legend=axis is axes[-1], **style)
        axis.set(title=title, ylabel="")
    axes[-1].legend(title=None)
    return figure


def gate_course(course: pd.DataFrame) -> Figure:
    """Mean gates over the epochs, a panel a sign: full lines weigh what was fused so far, dashed ones the level that comes in.

    course: long, with ``seed, epoch`` and columns as of `stages.epochs.mean_gates`.
    """
    figure, axes = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 1.9), sharey=True, dpi=SCREEN_DPI)
    for axis, sign in zip(axes, ("positive", "negative"), strict=True):
        means = course.groupby("epoch")[sorted(column for column in course if column.startswith(sign))].mean()
        for column in means:
            _, step, side = column.split("_")
            name, line = (f"step {step}", "-") if side == "first" else (None, "--")
            axis.plot(means.index, means[column], f"C{int(step) - 1}{line}", label=name, linewidth=1)
        axis.axhline(0.5, color="0.8", linewidth=0.6, zorder=0)
        axis.set(title=f"{sign} evidence", xlabel="epoch", ylabel="mean gate")
    axes[-1].legend()
    return figure


def erasing_paths(curves: pd.DataFrame) -> Figure:
    """How seeds move in recall and precision while they are erased: from the grey dot, the warm start, to the coloured end.

    curves: long, with ``label, seed, epoch, recall, precision`` (percent), at one threshold a seed.  Means over seeds.
    """
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH, 2.8), dpi=SCREEN_DPI)
    means = curves.groupby(["label", "epoch"], sort=False)[["recall", "precision"]].mean().reset_index()
    kinds = list(dict.fromkeys(label.rsplit(", ×", 1)[0] for label in means["label"]))
    for label, path in means.groupby("label", sort=False):
        kind, _, strength = label.rpartition(", ×")
        style = {"color": f"C{kinds.index(kind)}", "linewidth": 1, "linestyle": "-" if strength == "1" else "--"}
        axis.plot(path["recall"], path["precision"], label=label, **style)
        axis.plot(path["recall"].iloc[-1], path["precision"].iloc[-1], "o", color=style["color"], markersize=3.5)
    start = means[means["epoch"] == means["epoch"].min()]
    axis.plot(start["recall"].mean(), start["precision"].mean(), "o", color="0.5", markersize=6, zorder=0)
    axis.set(xlabel="recall (%)", ylabel="precision (%)")
    figure.legend(loc="outside right center")
    return figure


def by_size(binned: pd.DataFrame) -> Figure:
    """IoU, precision and recall by bin, a line a row of the study, mean ± sd over seeds.

    binned: long, of `condition_effects.by_bin`.
    """
    figure, axes = plt.subplots(1, 3, figsize=(TEXT_WIDTH, 2.0), dpi=SCREEN_DPI)
    for axis, (metric, title) in zip(axes, METRICS.items(), strict=True):
        style = {"errorbar": "sd", "dodge": 0.25, "linewidth": 1, "markersize": 2.5, "err_kws": {"linewidth": 0.8}}
        sns.pointplot(binned, x="bin", y=metric, hue="label", ax=axis, legend=axis is axes[-1], **style)
        axis.set(title=title, xlabel="", ylabel="")
        axis.tick_params(axis="x", rotation=45)
    handles, labels = axes[-1].get_legend_handles_labels()
    axes[-1].get_legend().remove()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure
