"""Chapter 4 in sentences, computed from its tables.  All return Markdown."""

import math

import pandas as pd

from aeft_lib.lab import told
from aeft_lib.studies.effects import REPEATS, Effect, interval, paired

BASELINE = "gpp_only"
PARTS = ("gpp_only_corrected", "corrected", "ours_anchor_moves", "ours_ring", "ours_own_tags")
METRICS = ("recall", "precision")
BASES = {  # what a row's embeddings are compared with: classification by its own optimiser
    "attract_soft": BASELINE,
    "attract_soft_repel": BASELINE,
    "corrected": "gpp_only_corrected",
    "ours": "gpp_only_corrected",
}


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
    """*Ours* against itself with one part taken back, the paper's triplet, and classification.

    The paper's, its quirks corrected, against classification too.  table: of the study
    `ours_ablation`.
    """
    own = told.compared(table, [("ours", row) for row in PARTS])
    papers = told.compared(table, [("corrected", "gpp_only_corrected")], ("miou", *METRICS))
    return "\n".join(filter(None, (own, papers)))


def embeddings(sizes: pd.DataFrame) -> str:
    """Whether an anchor shrinks or its positive grows, against classification alone.

    sizes: of `ch04_triplet.embedding_sizes`.
    """
    labels = sizes.drop_duplicates("row").set_index("row")["label"]
    sentences = []
    for row, base in BASES.items():
        if not {row, base} <= set(labels.index):
            continue
        anchor, positive = (interval(paired(sizes, row, base, name)) for name in ("e_A", "e_P"))
        changes = f"e_A {_change(anchor)}, e_P {_change(positive)}"
        sentences.append(
            f"**{labels[row]} − {labels[base]}**: {changes}: {_word(anchor, positive)}."
        )
    return told.bullets(sentences)


def _change(of: Effect) -> str:
    spread = "" if math.isnan(of.low) else f" [{of.low:+.2f}, {of.high:+.2f}]"
    return f"{of.mean:+.2f}{spread}"


def _word(anchor: Effect, positive: Effect) -> str:
    """In words, by their 95 % intervals."""
    if anchor.n < REPEATS:
        return f"{anchor.n} of {REPEATS} repeats"
    if positive.low > 0:
        return "both grow" if anchor.low > 0 else "the positive grows"
    if anchor.high < 0:
        return "both shrink" if positive.high < 0 else "the anchor shrinks"
    return "undecided"


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
