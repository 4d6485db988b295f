"""Chapter 4 in sentences, computed from its tables.  All return Markdown."""

import pandas as pd

from aeft_lib.lab import told
from aeft_lib.studies.effects import interval, paired

BASELINE = "gpp_only"
PARTS = ("gpp_only_corrected", "ours_anchor_moves", "ours_ring", "ours_own_tags")
METRICS = ("recall", "precision")


def progress(table: pd.DataFrame) -> str:
    """Where every row ends at the common threshold, against the baseline at the same step.

    table: of `ch04_triplet.progress`.
    """
    last = table[table["step"] == table["step"].max()]
    rows = [row for row in last["row"].unique() if row != BASELINE]
    compared = told.compared(last, [(row, BASELINE) for row in rows], METRICS)
    labels = last.drop_duplicates("row").set_index("row")["label"]
    means: list[str] = []
    decided: list[str] = []
    for row in rows:
        recall, precision = (interval(paired(last, row, BASELINE, metric)) for metric in METRICS)
        means += [labels[row]] if recall.mean > 0 > precision.mean else []
        decided += [labels[row]] if recall.low > 0 > precision.high else []
    told_of = [", ".join(names) or "no row" for names in (means, decided)]
    over = f"Recall rises and precision falls, in the mean: {told_of[0]}"
    return f"{compared}\n- {over}; with both intervals on one side of zero: {told_of[1]}."


def settings(effects: pd.DataFrame) -> str:
    """How often rigid and soft erasing end above their baseline, over all settings.

    effects: of `ch04_triplet.setting_effects`.
    """
    sentences = []
    for kind in ("rigid", "soft"):
        of_kind = effects[effects.index.str.contains(kind)]
        for metric, values in of_kind.items():
            name = f"**{kind}**, {told.NAMES[metric]}"
            where = told.counted(values, "settings")
            sentences.append(f"{name}: {where}, {told.extremes(values)}.")
    return told.bullets(sentences)


def parts(table: pd.DataFrame) -> str:
    """*Ours* against itself with one part taken back, and against classification alone.

    table: of the study `ours_ablation`.
    """
    return told.compared(table, [("ours", row) for row in PARTS])


def quirks(effects: pd.DataFrame) -> str:
    """The largest mean effects of a correction, and those whose sign never changes.

    effects: of `ch04_triplet.quirk_effects`.
    """
    means = effects.groupby(["quirk", "start"], sort=False)["miou"].mean()
    means.index = [f"{quirk}, {start}" for quirk, start in means.index]
    sides = effects.groupby("quirk", sort=False)["miou"].agg(_sign)
    steady = [f"{quirk} ({side})" for quirk, side in sides.items() if side]
    zero = [quirk for quirk, values in effects.groupby("quirk")["miou"] if (values == 0).all()]
    of = f"in the mean of {effects['repeat'].nunique()} repeats"
    sentences = [
        f"Correcting one quirk changes mIoU {told.extremes(means)} {of}.",
        f"Of one sign in every repeat and from both starts: {', '.join(steady) or 'none'}.",
    ]
    if zero:
        sentences.append(f"Exactly without effect: {', '.join(zero)}.")
    return told.bullets(sentences)


def _sign(values: pd.Series) -> str:
    return "+" if (values > 0).all() else "−" if (values < 0).all() else ""
