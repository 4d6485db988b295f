"""From the long tables of the studies of conditions to effects with intervals: at every level of a knob, by cause, by size."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from aeft_lib.studies import photo_results
from aeft_lib.studies.conditions import BASE, BASE_LEVELS, CONDITIONS, LEVELS
from aeft_lib.studies.effects import adjusted, effect, paired

# The claims that are asked at every level: which method should beat which.
COMPARISONS = {
    "gpp": ("gated", "gap", "GPP − GAP"),
    "gates": ("gated", "average", "G − A"),
    "triplet": ("aeft", "gated", "soft + repel − GPP"),
}
TEXTS = {
    "gpp": "GPP gives better seeds than GAP",
    "gates": "the gates give better seeds than the plain average",
    "triplet": "soft + repel gives better seeds than GPP alone",
}
OWN_DEPTH = "profile"  # photos at the depth of their profile: the rows of other studies
# Trained stages -> what rows begin with on collages, and on photos.
DEPTHS = {
    0: ("depth0", ""),
    1: (BASE, "photos_depth1"),
    2: ("depth2", OWN_DEPTH),
    4: ("depth4", "photos_depth4"),
    7: ("depth7", ""),
}
# Edges of the bins that tables use, by VOC's quartiles of the area of a class in its image (6, 15 and 32 %).
AREA_EDGES = (0.0, 0.06, 0.15, 0.32, 1.0)
COUNTS = ("tp", "predicted", "true")


class Level(NamedTuple):
    """A level of a knob; the base is a level of every knob.  row: what its rows' names begin with."""

    knob: str
    value: float
    row: str


class Claim(NamedTuple):
    """A line of the report: the study and its rows that should be more and less; on photos, rows of ``real_photos.csv``."""

    id: str
    text: str
    study: str
    more: str
    less: str
    photos_more: str = ""
    photos_less: str = ""


def levels() -> Iterator[Level]:
    """All levels, knob by knob, in the order of their values."""
    for knob, values in LEVELS.items():
        for value in sorted((*values, BASE_LEVELS[knob])):
            yield Level(knob, value, BASE if value == BASE_LEVELS[knob] else f"{knob}_{value:g}")


def level_effects(table: pd.DataFrame, metric: str = "miou") -> pd.DataFrame:
    """Comparisons at every level: ``comparison, label, knob, value, row, mean, low, high, p, p_adjusted, n, differences``.

    table: long, of study `conditions`; what it lacks is left out.
    ``shift, shift_low, shift_high``: how much more it is than at the base level, by the same seeds; NaN at the base.
    ``p_adjusted`` is over all lines together, the base of a comparison counted once.
    Raises ValueError where there are fewer than two seeds for an interval.
    """
    lines = []
    for name, (more, less, label) in COMPARISONS.items():
        at_base = paired(table, f"{BASE}.{more}", f"{BASE}.{less}", metric)
        for level in levels():
            found = paired(table, f"{level.row}.{more}", f"{level.row}.{less}", metric)
            if len(found) == 0:
                continue
            line = {"comparison": name, "label": label, "knob": level.knob, "value": level.value, "row": level.row}
            line |= effect(found.to_numpy())._asdict() | dict.fromkeys(("shift", "shift_low", "shift_high"), np.nan)
            if level.row != BASE:
                shift = effect((found - at_base).dropna().to_numpy())
                line |= {"shift": shift.mean, "shift_low": shift.low, "shift_high": shift.high}
            lines.append(line | {"differences": tuple(found.round(4))})
    found = pd.DataFrame(lines)
    once = found.drop_duplicates(["comparison", "row"])
    p_adjusted = once[["comparison", "row"]].assign(p_adjusted=adjusted(once["p"]))
    return found.merge(p_adjusted, on=["comparison", "row"], how="left")


def tally(effects: pd.DataFrame) -> str:
    """How many comparisons there are, how many intervals leave 0 out, how many would by chance, and what adjusting leaves."""
    once = effects.drop_duplicates(["comparison", "row"])
    lines = [f"comparisons: {len(once)}; by chance alone {0.05 * len(once):.1f} of their intervals would leave 0 out"]
    for label, of_label in once.groupby("label", sort=False):
        above, below, left = (of_label["low"] > 0).sum(), (of_label["high"] < 0).sum(), (of_label["p_adjusted"] < 0.05).sum()
        lines.append(f"{label}: {len(of_label)} levels, {above} above 0, {below} below; {left} with an adjusted p below 0.05")
    return "\n".join(lines)


def overview(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Mean over seeds of a number, a line a level and a column a method."""
    parts = table["row"].str.rsplit(".", n=1, expand=True)
    wide = table.assign(level=parts[0], method=parts[1]).pivot_table(
        index="level", columns="method", values=metric, aggfunc="mean", sort=False
    )
    return wide.rename(columns={"gap": "GAP", "gated": "G", "average": "A", "aeft": "soft + repel"}).rename_axis(None, axis=1)


def precision_recall(table: pd.DataFrame) -> pd.DataFrame:
    """GPP − GAP in mIoU, precision, recall, mIoU without masks and tag mAP, mean over seeds, a line a level."""
    columns = ["miou", "precision", "recall", "miou_maskless", "tag_map"]
    lines = {
        level.row: {m: paired(table, f"{level.row}.gated", f"{level.row}.gap", m).mean() for m in columns} for level in levels()
    }
    return pd.DataFrame(lines).T


def knob_table() -> pd.DataFrame:
    """Every level of every knob, and whether it is the base's."""
    return pd.DataFrame([{"knob": level.knob, "value": level.value, "base": level.row == BASE} for level in levels()])


def cause_effects(*tables: pd.DataFrame, metric: str = "miou") -> pd.DataFrame:
    """The studies `mechanism` and `settings` as differences: ``group, label, mean, low, high, p, n``; one seed has no interval.

    group "G − GAP": in every setting of training, its own GAP and G.  group "variant − G": variants of the layer at the base.
    """
    lines, table = [], pd.concat(tables).drop_duplicates(["row", "seed"])
    names = dict(zip(table["row"], table["label"], strict=True))
    settings = [name.removesuffix(".gap") for name in names if name.endswith(".gap")]
    for setting in settings:
        label = "base" if setting == BASE else names[f"{setting}.gap"].removeprefix("GAP, ")
        found = paired(table, f"{setting}.gated", f"{setting}.gap", metric)
        if len(found):
            lines.append({"group": "G − GAP", "label": label, **_mean_and_ends(found.to_numpy())})
    for name in [n for n in names if n.endswith(".gated") and n.removesuffix(".gated") not in settings]:
        for group, other in (("variant − G", "gated"), ("variant − GAP", "gap")):
            found = paired(table, name, f"{BASE}.{other}", metric)
            if len(found):
                lines.append({"group": group, "label": names[name], **_mean_and_ends(found.to_numpy())})
    return pd.DataFrame(lines)


def settings_table(*tables: pd.DataFrame) -> pd.DataFrame:
    """Numbers of the rows of several studies, each row once: means over seeds, and how many."""
    shown = ["miou", "precision", "recall", "tag_map", "entropy", "half_area"]
    grouped = pd.concat(tables).drop_duplicates(["row", "seed"]).groupby("label", sort=False)
    return grouped[shown].mean().assign(n=grouped.size())


def depth_effects(*tables: pd.DataFrame) -> pd.DataFrame:
    """G − GAP by depth of training, on collages and on photos: ``pictures, stages, metric, mean, low, high, n``.

    tables: long, of `mechanism` and `settings`.  Photos: `photo_results`.  One seed has a mean and no interval.
    """
    lines, mechanism = [], pd.concat(tables).drop_duplicates(["row", "seed"])
    for stages, (collages, photos) in DEPTHS.items():
        own = ("gated", "gap") if photos == OWN_DEPTH else (f"{photos}.gated", f"{photos}.gap")
        for metric in ("miou", "precision", "recall"):
            found = {
                "collages": paired(mechanism, f"{collages}.gated", f"{collages}.gap", metric).to_numpy(),
                "photos": photo_results.differences(*own, metric),
            }
            for pictures, differences in found.items():
                if len(differences):
                    lines.append({"pictures": pictures, "stages": stages, "metric": metric, **_mean_and_ends(differences)})
    return pd.DataFrame(lines)


def width_effects(*tables: pd.DataFrame) -> pd.DataFrame:
    """How wide CAMs are against the object, and what G makes of it: a line a setting, means over seeds.

    tables: long, of the studies `conditions` and `mechanism`.  ``setting``, and of its GAP and G:
    width: area above half the maximum of GAP's CAMs over the visible area that an object is drawn with; 1 is as wide as it.
    narrowing: that area of G over GAP's.  miou, precision, recall: G − GAP, points.
    """
    table = pd.concat(tables).drop_duplicates(["row", "seed"])
    wide = table.pivot_table(index="seed", columns="row", values=["half_area", "miou", "precision", "recall"])
    lines = []
    for row in dict.fromkeys(table["row"]):
        setting, _, method = row.rpartition(".")
        if method != "gap" or f"{setting}.gated" not in wide["miou"]:
            continue
        knobs = dict(CONDITIONS[setting].knobs) if setting in CONDITIONS else {}
        area = knobs.get("object_area", BASE_LEVELS["object_area"]) * (1 - knobs.get("occlusion", 0.0))
        gap, gated = (wide.xs(f"{setting}.{name}", axis=1, level=1).dropna() for name in ("gap", "gated"))
        line = {"setting": setting, "width": gap["half_area"].mean() / area}
        line["narrowing"] = (gated["half_area"] / gap["half_area"]).mean()
        lines.append(line | {metric: (gated[metric] - gap[metric]).mean() for metric in ("miou", "precision", "recall")})
    return pd.DataFrame(lines)


def _mean_and_ends(differences: np.ndarray) -> dict[str, float]:
    """``mean, low, high, p, n`` of differences by seed; of a single one the mean, and NaN."""
    if len(differences) > 1:
        return effect(differences)._asdict()
    return {"mean": float(differences[0]), "low": np.nan, "high": np.nan, "p": np.nan, "n": 1}


def claims() -> Iterator[Claim]:
    """Every level of every knob, and every depth of training, as a claim of the report."""
    for name, (more, less, _) in COMPARISONS.items():
        for level in levels():
            suffix = "" if name == "gpp" else f".{name}"
            text = f"{level.knob.replace('_', ' ')} {level.value:g}: {TEXTS[name]}"
            name_of_level = f"condition.{level.knob}.{level.value:g}{suffix}"
            yield Claim(name_of_level, text, "conditions", f"{level.row}.{more}", f"{level.row}.{less}")
    for stages, (collages, photos) in DEPTHS.items():
        text = f"trained stages {stages}: {TEXTS['gpp']}"
        rows = [f"{prefix}.{method}" if prefix else "" for prefix in (collages, photos) for method in ("gated", "gap")]
        rows[2:] = ["gated", "gap"] if photos == OWN_DEPTH else rows[2:]
        study = "settings" if collages == "depth7" else "mechanism"
        yield Claim(f"condition.trained_stages.{stages}", text, study, *rows)


def advice(effects: pd.DataFrame) -> pd.DataFrame:
    """Which pooling to use, level by level, by the interval of GPP − GAP alone: ``condition, use, points``.

    An interval on one side of 0 decides; else the data do not, and GAP is the simpler one.
    """
    lines = []
    for line in effects[effects["comparison"] == "gpp"].drop_duplicates("row").itertuples():
        use = "GPP" if line.low > 0 else "GAP" if line.high < 0 else "no difference seen"
        where = "base" if line.row == BASE else f"{line.knob.replace('_', ' ')} {line.value:g}"
        lines.append({"condition": where, "use": use, "points": f"{line.mean:+.1f} [{line.low:+.1f}, {line.high:+.1f}]"})
    return pd.DataFrame(lines)


def where_it_stops(curves: pd.DataFrame, course: pd.DataFrame) -> pd.DataFrame:
    """Per row, over seeds: change of recall, precision, best mIoU and tag mAP from first to last look, in points.

    stops: the epoch of the most recall; the last one means that it has not stopped.
    """
    both = curves.merge(course[["label", "seed", "epoch", "tag_map"]], on=["label", "seed", "epoch"])
    metrics, lines = ["recall", "precision", "miou_best", "tag_map"], []
    for label, of_row in both.groupby("label", sort=False):
        wide = of_row.pivot_table(index="seed", columns="epoch", values=metrics)
        line = {"label": label}
        for metric in metrics:
            change = wide[metric].iloc[:, -1] - wide[metric].iloc[:, 0]
            line |= {metric: change.mean(), f"{metric}_sd": change.std()}
        lines.append(line | {"stops": int(wide["recall"].mean().idxmax()), "n": len(wide)})
    return pd.DataFrame(lines)


def as_markdown(table: pd.DataFrame) -> str:
    """A table of text as Markdown."""
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, line)) + " |" for line in table.itertuples(index=False))])


def area_bins(areas: pd.Series, edges: Sequence[float] = AREA_EDGES) -> pd.Series:
    """The bin of each area (0..1), as in "6-15 %".  Raises ValueError for edges that do not increase from 0 to 1."""
    if list(edges) != sorted(set(edges)) or edges[0] != 0 or edges[-1] != 1:
        raise ValueError(f"edges of areas must increase from 0 to 1, got {tuple(edges)}")
    names = [f"{100 * low:g}-{100 * high:g} %" for low, high in pairwise(edges)]
    return pd.cut(areas, list(edges), labels=names, include_lowest=True)


def by_bin(measured: pd.DataFrame, bins: pd.Series) -> pd.DataFrame:
    """IoU, precision and recall (percent) of all objects in a bin, by ``row, label, seed, bin``; pixels are added up.

    measured: lines of `objects`.  bins: the bin of each line.
    A predicted pixel counts in the bin of the object whose class it was given, in its image: what is taken for another class
    of the image counts against both.  ``n``: objects.  entropy and half_area are means.
    """
    grouped = measured.assign(bin=bins).groupby(["row", "label", "seed", "bin"], observed=True, sort=False)
    sums, means = grouped[list(COUNTS)].sum(), grouped[["entropy", "half_area"]].mean()
    table = pd.DataFrame(
        {
            "iou": 100 * sums["tp"] / (sums["true"] + sums["predicted"] - sums["tp"]).clip(lower=1),
            "precision": 100 * sums["tp"] / sums["predicted"].clip(lower=1),
            "recall": 100 * sums["tp"] / sums["true"].clip(lower=1),
        }
    )
    return table.join(means).assign(n=grouped.size()).reset_index().sort_values("bin", kind="stable", ignore_index=True)


def bin_effects(binned: pd.DataFrame, more: str, less: str, metric: str = "iou") -> pd.DataFrame:
    """`metric` of row `more` minus that of `less` in every bin, paired by seed: ``bin, mean, low, high, p, n, objects``.

    One seed has no interval: low, high and p are NaN then.
    """
    lines = []
    for name, of_bin in binned.groupby("bin", sort=False, observed=True):
        differences = paired(of_bin, more, less, metric).to_numpy()
        lines.append({"bin": str(name), **_mean_and_ends(differences), "objects": int(of_bin["n"].iloc[0])})
    return pd.DataFrame(lines)
