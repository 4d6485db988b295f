"""Chapter 8 in sentences, computed from its tables.  All return Markdown."""

from itertools import pairwise

import pandas as pd

from aeft_lib.lab import told
from aeft_lib.lab.ch08_effects import bin_effects
from aeft_lib.studies.effects import REPEATS, points, side
from aeft_lib.studies.levels import BASE

SATURATED = 1.0  # points of tag mAP an epoch, the rule of `studies.conditions`


def shifts(by_level: pd.DataFrame) -> str:
    """Whether a level moves GPP − GAP away from the base's.

    by_level: of `ch08_effects.level_effects`.
    """
    gpp = by_level[by_level["comparison"] == "gpp"]
    base = gpp[gpp["row"] == BASE].iloc[0]
    moved = gpp.dropna(subset="shift")
    named = moved.set_index(moved["row"].str.replace("_", " "))
    apart = named[(named["shift_low"] > 0) | (named["shift_high"] < 0)]
    names = ", ".join(apart.index) or "none"
    return told.bullets(
        [
            f"**GPP − GAP at the base**: {told.differences(base['differences'])}.",
            f"**Shifts from the base**: {told.extremes(named['shift'])}; "
            f"of {len(named)} intervals {len(apart)} leave 0 out ({names}).",
        ]
    )


def widths(spread: pd.DataFrame) -> str:
    """How much narrower than GAP's the CAMs of G and of A are.

    spread: of `ch08_effects.overview` with ``half_area``, a line a level.
    """
    sentences = []
    for name in ("G", "A"):
        change = 100 * (spread[name] / spread["GAP"] - 1)
        change.index = change.index.str.replace("_", " ")
        narrower = f"narrower than GAP's at {(change < 0).sum()} of {len(change)} levels"
        sentences.append(f"**{name}**'s CAMs are {narrower}: {told.extremes(change, '%')}.")
    return told.bullets(sentences)


def causes(effects: pd.DataFrame) -> str:
    """Which settings and variants turn or move the difference.

    effects: of `ch08_effects.cause_effects`.
    """
    sentences = []
    for group, lines in effects.groupby("group", sort=False):
        judged = lines[lines["n"] >= REPEATS]
        ends = {"holds": [], "fails": [], "undecided": []}
        for line in judged.itertuples():
            told_points = points(line.mean, line.low, line.high)
            ends[side(line.low, line.high)].append(f"{line.label} {told_points}")
        parts = [f"{word} for {', '.join(names)}" for word, names in ends.items() if names]
        alone = lines[lines["n"] < REPEATS]
        if len(alone):
            means = alone.set_index("label")["mean"]
            parts.append(f"with fewer than {REPEATS} repeats {told.counted(means, 'settings')}")
        sentences.append(f"**{group} > 0**: {'; '.join(parts)}.")
    return told.bullets(sentences)


def depths(effects: pd.DataFrame) -> str:
    """G − GAP by how many stages are trained, on collages and photos, in mIoU and precision.

    effects: of `ch08_effects.depth_effects`.
    """
    sentences = []
    for keys, lines in effects.groupby(["pictures", "metric"], sort=False):
        pictures, metric = keys
        if metric == "recall":
            continue
        by_stage = [
            f"{line.stages}: {points(line.mean, line.low, line.high)} ({line.n})"
            for line in lines.sort_values("stages").itertuples()
        ]
        name = f"**{pictures}, {told.NAMES[metric]}**"
        sentences.append(f"{name}, by trained stages (repeats): {'; '.join(by_stage)}.")
    return told.bullets(sentences)


def course(spreads: pd.DataFrame) -> str:
    """From which epoch tag mAP is saturated, and how far gates are from one half at the end.

    spreads: of `ch08_conditions.over_epochs`.
    """
    sentences = []
    for label, lines in spreads.groupby("label", sort=False):
        by_epoch = lines.groupby("epoch")["tag_map"].mean()
        sentences.append(f"**{label}**: tag mAP rises by less than a point {_saturated(by_epoch)}.")
        last = lines[lines["epoch"] == lines["epoch"].max()]
        for sign in ("positive", "negative"):
            gates = last.filter(regex=f"^{sign}_").mean().dropna()
            if len(gates):
                sentences.append(
                    f"**{label}**, gates of {sign} evidence at the end: "
                    f"{gates.min():.2f} to {gates.max():.2f}; they begin at one half."
                )
    return told.bullets(sentences)


def _saturated(by_epoch: pd.Series) -> str:
    """After which epoch every later one adds less than `SATURATED`."""
    late = [after for before, after in pairwise(by_epoch.index) if _adds(by_epoch, before, after)]
    if not late:
        return f"in every epoch after the first ({by_epoch.index[0]})"
    if late[-1] == by_epoch.index[-1]:
        return "in no epoch up to the last"
    return f"an epoch after epoch {late[-1]}"


def _adds(by_epoch: pd.Series, before: int, after: int) -> bool:
    return by_epoch[after] - by_epoch[before] >= SATURATED


def stops(table: pd.DataFrame) -> str:
    """Which kinds of erasing shrink and which expand, in recall.

    table: of `ch08_effects.where_it_stops`.
    """
    last = table["stops"].max()
    sentences = []
    for word, part in (("gain", table[table["recall"] > 0]), ("lose", table[table["recall"] <= 0])):
        lines = [
            f"{line.label} ({line.recall:+.1f} ± {line.recall_sd:.1f}, "
            f"precision {line.precision:+.1f})"
            for line in part.itertuples()
        ]
        sentences.append(f"**These {word} recall**: {'; '.join(lines) or 'none'}.")
    rising = ", ".join(table.loc[table["stops"] == last, "label"]) or "none"
    sentences.append(f"Still at their largest recall in the last epoch: {rising}.")
    few = int(table["n"].min())
    if few < REPEATS:
        sentences.append(f"{few} repeats are too few for a verdict.")
    return told.bullets(sentences)


def bins(photos: pd.DataFrame) -> str:
    """Where among objects of photos the interval of G − GAP leaves 0, and whether widths say why.

    A part of the photos decides nothing that all of them leave open, so no verdict is given.
    photos: of `ch08_conditions.photo_objects`.
    """
    sentences, effects = [], {}
    for kind, of_kind in photos.groupby("kind", sort=False):
        effects[kind] = bin_effects(of_kind, "gated", "gap")
        places: dict[str, list[str]] = {"holds": [], "fails": [], "undecided": []}
        for line in effects[kind].itertuples():
            name = f"{line.bin} {points(line.mean, line.low, line.high)}"
            places[side(line.low, line.high)].append(name)
        where = zip(("above", "below", "on both sides of"), places.values(), strict=True)
        parts = [f"{word} 0 in {', '.join(names)}" for word, names in where if names]
        sentences.append(f"**by {kind}**, the interval of G − GAP lies {'; '.join(parts)}.")
    together = pd.concat(effects.values())
    sentences.append(
        f"These are {len(together)} bins of {together['n'].min()} repeats, not adjusted for their "
        "number: hints, and no verdicts."
    )
    if "area" in effects:
        sentences.append(_width_by_area(photos[photos["kind"] == "area"], effects["area"]))
    return told.bullets(sentences)


def _width_by_area(photos: pd.DataFrame, effects: pd.DataFrame) -> str:
    """What the hypothesis on widths predicts in bins of area, and what is seen there."""
    width = 100 * photos[photos["row"] == "gap"].groupby("bin", sort=False)["half_area"].mean()
    parts, met = [], 0
    for line in effects.itertuples():
        low, high = (float(edge) for edge in line.bin.removesuffix(" %").split("-"))
        predicted = 1 if width[line.bin] > high else -1 if width[line.bin] < low else 0
        if not predicted:
            continue
        met += predicted * line.mean > 0
        fills = f"GAP's CAM fills {width[line.bin]:.0f} % of the photo in {line.bin}"
        than, then = ("more", "gain") if predicted > 0 else ("less", "lose")
        seen = points(line.mean, line.low, line.high)
        parts.append(f"{fills}, {than} than its objects, so G should {then}: {seen}")
    if not parts:
        return "**Width**: in no bin is GAP's CAM wider or narrower than all its objects."
    return f"**Width**: {'; '.join(parts)}. The prediction is met in {met} of {len(parts)}."
