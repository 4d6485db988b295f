"""Chapter 8: from long tables to effects with intervals, at every level of a knob, by cause, size.

Tables are long, of studies of conditions: ``row, label, repeat`` and numbers in percent.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from aeft_lib.studies import photo_results
from aeft_lib.studies.conditions import CONDITIONS
from aeft_lib.studies.effects import REPEATS, adjusted, effect, interval, paired, points, side
from aeft_lib.studies.levels import BASE, BASE_LEVELS, COMPARISONS, DEPTHS, OWN_DEPTH, levels

# Edges of the bins that tables use: VOC's quartiles of the area of a class in its image (%).
AREA_EDGES = (0.0, 0.06, 0.15, 0.32, 1.0)
COUNTS = ("tp", "predicted", "true")
METRICS = ("miou", "precision", "recall")
METHOD_NAMES = {"gap": "GAP", "gated": "G", "average": "A", "aeft": "soft + repel"}


def level_effects(table: pd.DataFrame, metric: str = "miou") -> pd.DataFrame:
    """Comparisons at every level, of study `conditions`; what the table lacks is left out.

    ``comparison, label, knob, value, row, mean, low, high, p, p_adjusted, n, differences``.
    ``shift, shift_low, shift_high``: how much more it is than at the base level, by the same
    repeats; NaN at the base.
    ``p_adjusted``: over all lines together, the base of a comparison counted once.
    Raises ValueError where there are fewer than two repeats for an interval.
    """
    lines = []
    for name, (more, less, label) in COMPARISONS.items():
        at_base = paired(table, f"{BASE}.{more}", f"{BASE}.{less}", metric)
        for level in levels():
            differences = paired(table, f"{level.row}.{more}", f"{level.row}.{less}", metric)
            if len(differences) == 0:
                continue
            line = {"comparison": name, "label": label, **level._asdict()}
            line |= effect(differences.to_numpy())._asdict()
            line |= dict.fromkeys(("shift", "shift_low", "shift_high"), np.nan)
            if level.row != BASE:
                shift = effect((differences - at_base).dropna().to_numpy())
                line |= {"shift": shift.mean, "shift_low": shift.low, "shift_high": shift.high}
            lines.append(line | {"differences": tuple(differences.round(4))})
    effects = pd.DataFrame(lines)
    once = effects.drop_duplicates(["comparison", "row"])
    p_adjusted = once[["comparison", "row"]].assign(p_adjusted=adjusted(once["p"]))
    return effects.merge(p_adjusted, on=["comparison", "row"], how="left")


def tally(effects: pd.DataFrame) -> str:
    """How many comparisons there are, how many intervals leave 0 out, and what adjusting leaves."""
    once = effects.drop_duplicates(["comparison", "row"])
    chance = f"by chance alone {0.05 * len(once):.1f} of their intervals would leave 0 out"
    lines = [f"comparisons: {len(once)}; {chance}"]
    for label, part in once.groupby("label", sort=False):
        above, below = (part["low"] > 0).sum(), (part["high"] < 0).sum()
        left = f"{(part['p_adjusted'] < 0.05).sum()} with an adjusted p below 0.05"
        lines.append(f"{label}: {len(part)} levels, {above} above 0, {below} below; {left}")
    return "\n".join(lines)


def overview(table: pd.DataFrame, metric: str, *, spread: bool = False) -> pd.DataFrame:
    """Mean over repeats of a number, a line a level and a column a method.

    spread: with columns ``<method>_sd`` too.
    """
    parts = table["row"].str.rsplit(".", n=1, expand=True)
    table = table.assign(level=parts[0], method=parts[1])
    axes = {"index": "level", "columns": "method"}
    wide = table.pivot_table(values=metric, aggfunc="mean", sort=False, **axes)
    wide = wide.rename(columns=METHOD_NAMES).rename_axis(None, axis=1)
    if not spread:
        return wide
    sd = table.pivot_table(values=metric, aggfunc="std", sort=False, dropna=False, **axes)
    return wide.join(sd.rename(columns=METHOD_NAMES).add_suffix("_sd"))


def level_names(table: pd.DataFrame) -> pd.DataFrame:
    """A table by level, with the levels' names in words in its first column."""
    names = [str(level).replace("_", " ") for level in table.index]
    return table.set_axis(pd.Index(names, name="level"))


def precision_recall(table: pd.DataFrame) -> pd.DataFrame:
    """GPP − GAP in mIoU, precision, recall, mIoU without masks and tag mAP, a line a level.

    Means over repeats, and the ends of their 95 % intervals as ``<metric>_low, <metric>_high``.
    """
    columns, lines = [*METRICS, "miou_maskless", "tag_map"], {}
    for level in levels():
        line = lines.setdefault(level.row, {})
        for metric in columns:
            values = paired(table, f"{level.row}.gated", f"{level.row}.gap", metric)
            mean, low, high, _, _ = interval(values)
            line |= {metric: mean, f"{metric}_low": low, f"{metric}_high": high}
    return pd.DataFrame(lines).T


def knob_table() -> pd.DataFrame:
    """Every level of every knob, and whether it is the base's."""
    lines = [(level.knob, level.value, level.row == BASE) for level in levels()]
    return pd.DataFrame(lines, columns=["knob", "value", "base"])


def cause_effects(*tables: pd.DataFrame, metric: str = "miou") -> pd.DataFrame:
    """Studies `mechanism` and `settings` as differences: ``group, label, mean, low, high, p, n``.

    group "G − GAP": in every setting of training, its own GAP and G.
    groups "variant − G", "variant − GAP": variants of the layer at the base.
    A single repeat has no interval.
    """
    lines, table = [], _together(tables)
    names = dict(zip(table["row"], table["label"], strict=True))

    def add(group: str, label: str, more: str, less: str) -> None:
        differences = paired(table, more, less, metric).to_numpy()
        if len(differences):
            lines.append({"group": group, "label": label, **_mean_and_ends(differences)})

    settings = [name.removesuffix(".gap") for name in names if name.endswith(".gap")]
    for setting in settings:
        label = "base" if setting == BASE else names[f"{setting}.gap"].removeprefix("GAP, ")
        add("G − GAP", label, f"{setting}.gated", f"{setting}.gap")
    for name in [name for name in names if name.endswith(".gated")]:
        if name.removesuffix(".gated") not in settings:
            add("variant − G", names[name], name, f"{BASE}.gated")
            add("variant − GAP", names[name], name, f"{BASE}.gap")
    return pd.DataFrame(lines)


def settings_table(*tables: pd.DataFrame) -> pd.DataFrame:
    """Numbers of the rows of several studies, each row once: means over repeats, and how many.

    ``<number>_sd`` of several repeats; NaN of one.
    """
    shown = [*METRICS, "tag_map", "entropy", "half_area"]
    grouped = _together(tables).groupby("label", sort=False)
    summary = grouped[shown].mean().join(grouped[shown].std().add_suffix("_sd"))
    return summary.assign(n=grouped.size()).rename_axis("row")


def depth_effects(*tables: pd.DataFrame) -> pd.DataFrame:
    """G − GAP by depth of training: ``pictures, stages, metric, mean, low, high, p, n``.

    tables: of `mechanism` and `settings`, on collages.  Photos: `photo_results`.
    A single repeat has a mean and no interval.
    """
    lines, mechanism = [], _together(tables)
    for stages, (collages, photos) in DEPTHS.items():
        prefix = "" if photos == OWN_DEPTH else f"{photos}."
        for metric in METRICS:
            ours = paired(mechanism, f"{collages}.gated", f"{collages}.gap", metric).to_numpy()
            theirs = photo_results.differences(f"{prefix}gated", f"{prefix}gap", metric)
            for pictures, differences in (("collages", ours), ("photos", theirs)):
                if len(differences):
                    names = {"pictures": pictures, "stages": stages, "metric": metric}
                    lines.append(names | _mean_and_ends(differences))
    return pd.DataFrame(lines)


def depth_table(effects: pd.DataFrame) -> pd.DataFrame:
    """`depth_effects` with a column a metric: ``pictures, stages``, metrics with ends, ``n``."""
    lines = []
    for (pictures, stages), of_depth in effects.groupby(["pictures", "stages"], sort=False):
        line = {"pictures": pictures, "trained stages": int(stages)}
        for one in of_depth.itertuples():
            metric = one.metric
            line |= {metric: one.mean, f"{metric}_low": one.low, f"{metric}_high": one.high}
        lines.append(line | {"n": int(of_depth["n"].iloc[0])})
    table = pd.DataFrame(lines)
    return table.sort_values("pictures", kind="stable", ignore_index=True)


def width_effects(*tables: pd.DataFrame) -> pd.DataFrame:
    """How wide CAMs are against the object, and what G makes of it: a line a setting, means.

    tables: of the studies `conditions` and `mechanism`.  ``setting``, and of its GAP and G:
    width: area above half the maximum of GAP's CAMs over the visible area that an object is drawn
    with; 1 is as wide as the object.
    narrowing: that area of G over GAP's.  miou, precision, recall: G − GAP, points.
    """
    table = _together(tables)
    wide = table.pivot_table(index="repeat", columns="row", values=["half_area", *METRICS])
    lines = []
    for row in dict.fromkeys(table["row"]):
        setting, _, method = row.rpartition(".")
        if method != "gap" or f"{setting}.gated" not in wide["miou"]:
            continue
        knobs = BASE_LEVELS | dict(CONDITIONS[setting].knobs if setting in CONDITIONS else ())
        area = knobs["object_area"] * (1 - knobs["occlusion"])
        sides = (wide.xs(f"{setting}.{name}", axis=1, level=1) for name in ("gap", "gated"))
        gap, gated = (side.dropna() for side in sides)
        line = {"setting": setting, "width": gap["half_area"].mean() / area}
        line["narrowing"] = (gated["half_area"] / gap["half_area"]).mean()
        lines.append(line | {metric: (gated[metric] - gap[metric]).mean() for metric in METRICS})
    return pd.DataFrame(lines)


def width_ranks(widths: pd.DataFrame) -> pd.DataFrame:
    """Rank correlations of G − GAP with the width of GAP's CAM: a line a metric.

    Over all settings, and over the levels of the knobs alone, which were planned.  No interval:
    settings share scenes and a base.  widths: of `width_effects`.
    """
    planned = widths[widths["setting"].isin(CONDITIONS)]
    parts = {"all settings": widths, "planned levels alone": planned}
    ranks = {
        f"{name} ({len(part)})": part[["width", *METRICS]].corr("spearman")["width"].drop("width")
        for name, part in parts.items()
    }
    return pd.DataFrame(ranks).rename({"miou": "mIoU"}).rename_axis("G − GAP in")


def advice(effects: pd.DataFrame) -> pd.DataFrame:
    """Which pooling to use at a level, by the verdict on GPP − GAP: ``condition, use, points``.

    It has to remain once all comparisons are counted, as the filled dots of the figure do.  Where
    the data do not decide, GAP is the simpler layer.
    """
    lines = []
    for line in effects[effects["comparison"] == "gpp"].drop_duplicates("row").itertuples():
        use = {"holds": "GPP", "fails": "GAP"}.get(_verdict(line), "undecided")
        if use != "undecided" and not line.p_adjusted < 0.05:
            use = f"undecided ({use} before the adjustment)"
        told = points(line.mean, line.low, line.high)
        lines.append({"condition": _where(line), "use": use, "points": told})
    return pd.DataFrame(lines)


def conclusions(effects: pd.DataFrame) -> str:
    """Per comparison the levels at which it holds and fails, plain and adjusted, as Markdown.

    effects: of `level_effects`.  A level needs `REPEATS` repeats.
    """
    once = effects.drop_duplicates(["comparison", "row"])
    items = []
    for label, part in once.groupby("label", sort=False):
        levels_of: dict[str, list[str]] = {"holds": [], "fails": [], "undecided": []}
        for line in part.itertuples():
            levels_of[_verdict(line)].append(_where(line))
        decided = (part["n"] >= REPEATS) & (part["p_adjusted"] < 0.05)
        names = {word: ", ".join(names) or "no level" for word, names in levels_of.items()}
        undecided = f"undecided at {len(levels_of['undecided'])} of {len(part)}"
        remains = f"adjusted for {len(once)} comparisons {decided.sum()} remain decided"
        ahead = f"its mean is above 0 at {(part['mean'] > 0).sum()} of {len(part)}"
        text = f"holds at {names['holds']}; fails at {names['fails']}; {undecided}; {remains}"
        items.append(f"- **{label} > 0** {text}; {ahead}.")
    return "\n".join(items)


def _verdict(line: Any) -> str:
    return side(line.low, line.high) if line.n >= REPEATS else "undecided"


def _where(line: Any) -> str:
    return "base" if line.row == BASE else f"{line.knob.replace('_', ' ')} {line.value:g}"


def where_it_stops(curves: pd.DataFrame, spreads: pd.DataFrame) -> pd.DataFrame:
    """Per row: change of recall, precision, best mIoU and tag mAP from first to last epoch, points.

    curves, spreads: of `ch08_conditions.over_epochs`.
    stops: the epoch of the most recall; the last epoch means that it has not stopped.
    """
    keys = ["label", "repeat", "epoch"]
    both = curves.merge(spreads[[*keys, "tag_map"]], on=keys)
    metrics, lines = ["recall", "precision", "miou_best", "tag_map"], []
    for label, of_row in both.groupby("label", sort=False):
        wide = of_row.pivot_table(index="repeat", columns="epoch", values=metrics)
        line = {"label": label}
        for metric in metrics:
            change = wide[metric].iloc[:, -1] - wide[metric].iloc[:, 0]
            line |= {metric: change.mean(), f"{metric}_sd": change.std()}
        lines.append(line | {"stops": int(wide["recall"].mean().idxmax()), "n": len(wide)})
    return pd.DataFrame(lines)


def as_markdown(table: pd.DataFrame) -> str:
    """A table of text as Markdown."""
    head, *lines = (
        "| " + " | ".join(map(str, row)) + " |"
        for row in (table.columns, *table.itertuples(index=False))
    )
    return "\n".join([head, "|" + "---|" * len(table.columns), *lines])


def area_bins(areas: pd.Series, edges: Sequence[float] = AREA_EDGES) -> pd.Series:
    """The bin of each area (0..1), as in "6-15 %".

    Raises ValueError for edges that do not increase from 0 to 1.
    """
    if list(edges) != sorted(set(edges)) or edges[0] != 0 or edges[-1] != 1:
        raise ValueError(f"edges of areas must increase from 0 to 1, got {tuple(edges)}")
    names = [f"{100 * low:g}-{100 * high:g} %" for low, high in pairwise(edges)]
    return pd.cut(areas, list(edges), labels=names, include_lowest=True)


def by_bin(measured: pd.DataFrame, bins: pd.Series) -> pd.DataFrame:
    """IoU, precision, recall (percent) of all objects in a bin, by ``row, label, repeat, bin``.

    measured: lines of `ch08_conditions.objects`.  bins: the bin of each line.
    Pixels are added up.  A predicted pixel counts in the bin of the object whose class it was
    given, in its image: what is taken for another class of the image counts against both.
    ``n``: objects.  entropy and half_area are means.
    """
    keys = ["row", "label", "repeat", "bin"]
    grouped = measured.assign(bin=bins).groupby(keys, observed=True, sort=False)
    sums, means = grouped[list(COUNTS)].sum(), grouped[["entropy", "half_area"]].mean()
    either = sums["true"] + sums["predicted"] - sums["tp"]
    of = {"iou": either, "precision": sums["predicted"], "recall": sums["true"]}
    shares = {name: 100 * sums["tp"] / pixels.clip(lower=1) for name, pixels in of.items()}
    table = pd.DataFrame(shares).join(means).assign(n=grouped.size()).reset_index()
    return table.sort_values("bin", kind="stable", ignore_index=True)


def bin_effects(binned: pd.DataFrame, more: str, less: str, metric: str = "iou") -> pd.DataFrame:
    """`metric` of row `more` minus that of `less` in every bin, paired by repeat.

    ``bin, mean, low, high, p, n, objects``; for a single repeat low, high and p are NaN.
    """
    lines = []
    for name, of_bin in binned.groupby("bin", sort=False, observed=True):
        line = {"bin": str(name), **_mean_and_ends(paired(of_bin, more, less, metric).to_numpy())}
        lines.append(line | {"objects": int(of_bin["n"].iloc[0])})
    return pd.DataFrame(lines)


def _together(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Several studies as one table, each row and repeat once."""
    return pd.concat(tables).drop_duplicates(["row", "repeat"])


def _mean_and_ends(differences: np.ndarray) -> dict[str, float]:
    """``mean, low, high, p, n`` of differences by repeat; of a single one the mean, and NaN."""
    if len(differences) > 1:
        return effect(differences)._asdict()
    return {"mean": float(differences[0]), "low": np.nan, "high": np.nan, "p": np.nan, "n": 1}
