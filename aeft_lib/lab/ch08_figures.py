"""Figures of chapter 8: controlled scenes, effects with their intervals, trainings over time."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aeft_lib.lab.figures import TEXT_WIDTH, metric_name
from aeft_lib.studies.effects import REPEATS
from aeft_lib.studies.levels import BASE

KNOBS_DPI = 130  # of 13 photos, in a notebook of 300 KB; files have the style's resolution
METRICS = {"iou": "IoU (%)", "precision": "precision (%)", "recall": "recall (%)"}


def knob_grid(pictures: Mapping[str, np.ndarray], columns: int = 4) -> Figure:
    """One scene at the base level, and at every other level of every knob.

    pictures: (H, W, 3) by the level's name.
    """
    lines = -(-len(pictures) // columns)
    size = (TEXT_WIDTH, 1.13 * TEXT_WIDTH / columns * lines)
    figure, axes = plt.subplots(lines, columns, squeeze=False, figsize=size, dpi=KNOBS_DPI)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, picture) in zip(axes.flat, pictures.items(), strict=False):
        axis.imshow(picture)
        axis.set_title(name, fontsize=6)
    return figure


def effect_forest(effects: pd.DataFrame) -> Figure:
    """Paired differences at every level with 95 % intervals, a panel a comparison.

    effects: of `ch08_effects.level_effects`.  The base, a level of every knob, stands once, on top;
    the grey band is its interval.  Filled dots are effects
    after adjustment for the number of comparisons, ticks are repeats.  Intervals may end outside
    the frame, which is twice as wide as the repeats.
    """
    panels = list(dict.fromkeys(effects["label"]))
    effects = effects.drop_duplicates(["label", "row"])
    is_base = effects["row"] == BASE
    effects = pd.concat([effects[is_base].assign(knob=BASE), effects[~is_base]])
    lines = effects.drop_duplicates("row").reset_index(drop=True)
    gap = (lines["knob"].ne(lines["knob"].shift()).cumsum() - 1) * 0.7
    places = dict(zip(lines["row"], lines.index + gap, strict=True))
    figure, axes = _panels(len(panels), 3.9, sharey=True)
    for i, (axis, label) in enumerate(zip(axes, panels, strict=True)):
        of_panel = effects[effects["label"] == label]
        base = of_panel[of_panel["row"] == BASE].head(1)
        axis.axvspan(base["low"].item(), base["high"].item(), color="0.92", linewidth=0)
        for line in of_panel.itertuples():
            place = places[line.row]
            face = f"C{i}" if line.p_adjusted < 0.05 else "white"
            gains = line.differences
            axis.plot(gains, [place] * len(gains), "|", color="0.2", markersize=4, zorder=3)
            interval(axis, line.mean, line.low, line.high, place, f"C{i}", face)
        reach = 2 * max(abs(gain) for gains in of_panel["differences"] for gain in gains)
        axis.axvline(0, color="0.3", linewidth=0.6)
        axis.set(xlabel="mIoU points", title=label, xlim=(-reach, reach))
    names = [row.replace("_", " ") for row in places]
    axes[0].set_yticks(list(places.values()), names)
    axes[0].invert_yaxis()
    return figure


def depth_curves(effects: pd.DataFrame) -> Figure:
    """G − GAP against how many stages of the backbone are trained, with 95 % intervals.

    Of fewer repeats than a verdict needs a hollow dot stands alone: an interval of two is so wide
    that it hides all others.
    effects: of `ch08_effects.depth_effects`; collages and photos are lines.
    """
    metrics = list(dict.fromkeys(effects["metric"]))
    figure, axes = _panels(len(metrics), 2.0, sharey=True)
    for axis, metric in zip(axes, metrics, strict=True):
        of_metric = effects[effects["metric"] == metric].groupby("pictures", sort=False)
        for i, (pictures, line) in enumerate(of_metric):
            places = line["stages"] + 0.12 * i
            enough, dots = line["n"] >= REPEATS, {"color": f"C{i}", "linewidth": 1}
            axis.plot(places, line["mean"], label=pictures, **dots)
            axis.vlines(places[enough], line["low"][enough], line["high"][enough], **dots)
            for which, face in ((enough, f"C{i}"), (~enough, "white")):
                style = {"markersize": 3.5, "markerfacecolor": face, "linestyle": ""}
                axis.plot(places[which], line["mean"][which], "o", color=f"C{i}", **style)
        axis.axhline(0, color="0.3", linewidth=0.6)
        axis.set(xlabel="trained stages", title=metric_name(metric))
    axes[0].set_ylabel("G − GAP (points)")
    axes[-1].legend()
    return figure


def width_scatter(widths: pd.DataFrame, names: Sequence[str] = ()) -> Figure:
    """G − GAP in precision and mIoU against how wide GAP's CAMs are, a dot a setting.

    widths: of `ch08_effects.width_effects`.  names: settings whose dots are named.
    The dashed line is an object's width.
    """
    figure, axes = _panels(2, 2.3)
    least, most = widths["width"].min() / 2, 2 * widths["width"].max()
    ticks = [tick for tick in (0.125, 0.25, 0.5, 1, 2, 4) if least < tick < most]
    beside = {"fontsize": 5, "xytext": (3, 2), "textcoords": "offset points"}
    for axis, metric in zip(axes, ("precision", "miou"), strict=True):
        axis.plot(widths["width"], widths[metric], "o", color="C0", markersize=3)
        for line in widths[widths["setting"].isin(names)].itertuples():
            where = (line.width, getattr(line, metric))
            axis.annotate(line.setting.replace("_", " "), where, **beside)
        axis.axhline(0, color="0.3", linewidth=0.6)
        axis.axvline(1, color="0.3", linewidth=0.6, linestyle="--")
        axis.set(xscale="log", xlabel="area of GAP's CAM / object")
        axis.set_title(f"{metric_name(metric)}, G − GAP (points)")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    return figure


def forest(effects: pd.DataFrame, groups: Sequence[str], xlabel: str = "mIoU points") -> Figure:
    """Effects with 95 % intervals, a panel a group.

    effects: long, with ``group, label, mean, low, high``.
    """
    parts = [effects[effects["group"] == group] for group in groups]
    height = 0.5 + 0.17 * max(map(len, parts))
    figure, axes = _panels(len(groups), height)
    for i, (axis, group, part) in enumerate(zip(axes, groups, parts, strict=True)):
        for place, line in enumerate(part.itertuples()):
            interval(axis, line.mean, line.low, line.high, place, f"C{i}", f"C{i}")
        axis.axvline(0, color="0.3", linewidth=0.6)
        same = i > 0 and part["label"].tolist() == parts[i - 1]["label"].tolist()
        axis.set_yticks(range(len(part)), [""] * len(part) if same else part["label"])
        axis.set(xlabel=xlabel, title=group, ylim=(len(part) - 0.5, -0.5))
    return figure


def interval(
    axis: Axes, mean: float, low: float, high: float, place: float, colour: str, face: str
) -> None:
    """A mean as a dot at height `place`, its interval as a line; NaN ends draw the dot alone."""
    axis.plot([low, high], [place, place], color=colour, linewidth=1)
    axis.plot(mean, place, "o", color=colour, markerfacecolor=face, markersize=3.5)


def training_curves(spreads: pd.DataFrame) -> Figure:
    """Tag mAP, entropy and area above half the maximum over the epochs, mean ± sd over repeats.

    spreads: long, with ``label, repeat, epoch, tag_map, entropy, half_area``.
    """
    figure, axes = _panels(3, 1.9)
    titles = {"tag_map": "tag mAP (%)", "entropy": "entropy of the CAM"}
    titles |= {"half_area": "area above half max"}
    style = {"errorbar": "sd", "linewidth": 1, "err_kws": {"alpha": 0.15}}
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        last = axis is axes[-1]
        sns.lineplot(spreads, x="epoch", y=column, hue="label", ax=axis, legend=last, **style)
        axis.set(title=title, ylabel="")
    axes[-1].legend(title=None)
    return figure


def gate_curves(spreads: pd.DataFrame) -> Figure:
    """Mean gates over the epochs, a panel a sign.

    Full lines weigh what was fused so far, dashed lines the level that comes in.
    spreads: long, with ``repeat, epoch`` and columns of `stages.evaluate_epochs.mean_gates`.
    """
    figure, axes = _panels(2, 1.9, sharey=True)
    for axis, sign in zip(axes, ("positive", "negative"), strict=True):
        columns = sorted(column for column in spreads if column.startswith(sign))
        means = spreads.groupby("epoch")[columns].mean()
        for column in columns:
            _, step, side = column.split("_")
            name, line = (f"step {step}", "-") if side == "first" else (None, "--")
            style = {"label": name, "linewidth": 1}
            axis.plot(means.index, means[column], f"C{int(step) - 1}{line}", **style)
        axis.axhline(0.5, color="0.8", linewidth=0.6, zorder=0)
        axis.set(title=f"{sign} evidence", xlabel="epoch", ylabel="mean gate")
    axes[-1].legend()
    return figure


def erasing_paths(curves: pd.DataFrame) -> Figure:
    """How seeds move in recall and precision while objects are erased, means over repeats.

    A panel a strength of the loss, each with axes of its own; from the grey dot, the warm start, to
    the coloured end.
    curves: long, with ``label, repeat, epoch, recall, precision`` (percent), at one threshold a
    repeat; a label is "kind, ×strength".
    """
    grouped = curves.groupby(["label", "epoch"], sort=False)[["recall", "precision"]]
    means = grouped.mean().reset_index()
    parts = means["label"].str.rpartition(", ×")
    means = means.assign(kind=parts[0], strength=parts[2])
    kinds = {kind: f"C{i}" for i, kind in enumerate(dict.fromkeys(means["kind"]))}
    panels = list(means.groupby("strength"))
    size = (TEXT_WIDTH, 2.6)
    figure, axes = plt.subplots(1, len(panels), squeeze=False, figsize=size, layout="constrained")
    for axis, (strength, panel) in zip(axes[0], panels, strict=True):
        start = panel[panel["epoch"] == panel["epoch"].min()]
        origin = (start["recall"].mean(), start["precision"].mean())
        axis.plot(*origin, "o", color="0.5", markersize=6, zorder=0)
        for kind, path in panel.groupby("kind", sort=False):
            recall, precision, colour = path["recall"], path["precision"], kinds[kind]
            axis.plot(recall, precision, color=colour, linewidth=1, label=kind)
            axis.plot(recall.iloc[-1], precision.iloc[-1], "o", color=colour, markersize=3.5)
        axis.set(xlabel="recall (%)", title=f"weights ×{strength}")
    axes[0, 0].set_ylabel("precision (%)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def by_size(binned: pd.DataFrame) -> Figure:
    """IoU, precision and recall by bin, a line a row of the study, mean ± sd over repeats.

    binned: long, of `ch08_effects.by_bin`.
    """
    figure, axes = _panels(3, 2.0)
    style = {"errorbar": "sd", "dodge": 0.25, "linewidth": 1, "markersize": 2.5}
    style |= {"err_kws": {"linewidth": 0.8}}
    for axis, (metric, title) in zip(axes, METRICS.items(), strict=True):
        last = axis is axes[-1]
        sns.pointplot(binned, x="bin", y=metric, hue="label", ax=axis, legend=last, **style)
        axis.set(title=title, xlabel="area of the object", ylabel="")
        axis.tick_params(axis="x", rotation=45)
    handles, labels = axes[-1].get_legend_handles_labels()
    axes[-1].get_legend().remove()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _panels(columns: int, height: float, **options: bool) -> tuple[Figure, np.ndarray]:
    """A row of panels over the text's width, at the screen's resolution."""
    size = {"figsize": (TEXT_WIDTH, height)}
    figure, axes = plt.subplots(1, columns, squeeze=False, **size, **options)
    return figure, axes[0]
