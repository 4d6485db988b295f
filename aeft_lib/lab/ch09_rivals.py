"""Chapter 9: the numbers of all systems, from store and committed tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from aeft_lib.lab.ch09_figures import HEADS
from aeft_lib.lab.session import Session
from aeft_lib.studies import catalogue, collected, findings, league, photo_results, run, shipped
from aeft_lib.studies.effects import REPEATS, Effect, by_repeat, interval, paired, points
from aeft_lib.studies.profiles import COMMITTED_REPEATS
from aeft_lib.studies.published import published
from aeft_lib.studies.rivals_grid import crossed, crossing
from aeft_lib.studies.rows import Row
from aeft_lib.studies.systems import (
    ENDS,
    GAP_ROWS,
    METRICS,
    NOT_RUN,
    PLACES,
    SYSTEMS,
    System,
    brief,
    ends,
    own_row,
)

STUDIES = ("rivals", "rivals_grid")
RIVALS = catalogue.get(STUDIES[0])
# Steps of a classifier: a training of no more takes seconds, so what is not in the store is trained
# here.  The laptop's has 120.
FEW_STEPS = 20
BASE = "GAP (base)"
GAINED = "− GAP (points)"
# What stands above the systems' label maps and networks: row, end, name in the table.
YARDSTICKS = (
    ("gap_crf", "pseudo", "GAP, one CRF"),
    (findings.TRUE_MASKS, "segmentation", "true masks"),
)
# Labels of seeds that the league has under another name.
SEEDS = {"AffinityNet, seeds": "GAP, scaled as AffinityNet's", "soft + repel": "AEFT"}


def results(lab: Session) -> pd.DataFrame:
    """The long table of all systems: ``row, label, repeat`` and numbers; what there is of it.

    Repeats come from the store; on the profile of the committed tables, those that the store lacks
    come from the study's own (`studies.collected`).  Rows that are not the study's, or of which it
    has too few repeats, come from the committed table with more.  Nothing is trained but, where
    that takes seconds, `systems.brief`.
    """
    if is_quick(lab):
        known = brief(catalogue.rows_by_name())
        rows = [row for row in known if _stored(lab, [row]).empty]
        if rows:
            run.run_study(catalogue.get("rivals"), lab.profile, range(lab.n_repeats), rows=rows)
    table = collected.with_committed(_stored(lab, wanted()), RIVALS, lab.profile, wanted())
    if lab.profile.name == shipped.PROFILE:
        others = _committed(lab, table["row"].value_counts().to_dict())
        replaced = {row for part in others for row in part["row"]}
        table = pd.concat([table[~table["row"].isin(replaced)], *others], ignore_index=True)
    return table


def is_quick(lab: Session) -> bool:
    """Whether a classifier of the session's profile is trained in seconds."""
    schedule, count = lab.profile.schedule, len(lab.training_scenes)
    return schedule.epochs * schedule.epoch_steps(count) <= FEW_STEPS


def wanted() -> list[Row]:
    """The rows of the league: of both studies, of the paper's own method, and of its refiners."""
    every = catalogue.rows_by_name()
    rows = [row for name in STUDIES for row in catalogue.get(name).rows]
    rows += [row for known in SYSTEMS for row in ends(known, every).values()]
    rows += crossing(every.values())
    return [every[name] for name in dict.fromkeys(row.name for row in rows)]


def _stored(lab: Session, rows: Sequence[Row]) -> pd.DataFrame:
    """Of the session's repeats, and of all that are committed where the profile's tables are."""
    repeats = max(lab.n_repeats, COMMITTED_REPEATS if lab.profile.name == shipped.PROFILE else 0)
    return collected.stored(lab.profile, rows, range(repeats))


def _committed(lab: Session, there: Mapping[str, int]) -> list[pd.DataFrame]:
    """Rows of the league in other studies' committed tables, each from one.

    there: repeats at hand, by row; of those, a row that has more of them in a table.  Rows of the
    study itself that have enough stay, with their mechanisms, which other tables have not.
    """
    own = {row.name for row in RIVALS.rows if there.get(row.name, 0) >= COMMITTED_REPEATS}
    names, parts = {row.name for row in wanted()} - own, []
    studies = [study for study in catalogue.STUDIES.values() if not study.needs]
    files = [run.committed_table(study) for study in studies if study.name not in STUDIES]
    for file in dict.fromkeys(file for file in files if file.is_file()):
        table = lab.committed(file.stem)
        if "repeat" in table:  # others have means alone
            counts = table["row"].value_counts().to_dict()
            more = {name for name in names if counts.get(name, 0) > there.get(name, 0)}
            parts.append(table[table["row"].isin(more)])
            names -= more
    return [part for part in parts if len(part)]


def map_table() -> pd.DataFrame:
    """The field as data: ``method, name, venue, family``, its places and ``rounds``.

    name: what ``aeft run rivals --row`` takes for its first row.  A place, ``classifier, reader,
    refiner, segmenter``, is True where the method changes it.
    """
    venues = {line["method"]: line["venue"] for line in published()["results"]}
    lines = []
    for known in SYSTEMS:
        line = {"method": known.title, "name": _first_row(known)}
        line |= {"venue": venues[known.method], "family": known.family}
        line |= {place: place in known.changes for place in PLACES}
        lines.append(line | {"rounds": known.rounds})
    return pd.DataFrame(lines)


def _first_row(known: System) -> str:
    """The row that a system begins with: its seeds, else its label maps."""
    rows = catalogue.rows_by_name()
    first = ends(known, rows).get("seed") if known.is_paper else own_row(known, rows)
    return first.name if first else ""


def origin(lab: Session, table: pd.DataFrame) -> str:
    """Where the rows come from, in a sentence."""
    total, there = len(wanted()), _stored(lab, wanted())["row"].nunique()
    committed = table["row"].nunique() - there
    rest = total - there - committed
    text = f"{total} rows: {there} in the store, {committed} in committed tables, {rest} not run"
    if old := collected.left_out(table, RIVALS, lab.profile):
        text += f"; {old} committed lines are of other code or data, and left out"
    return text


# --- tables of text -------------------------------------------------------------------------------


def league_lines(lab: Session, table: pd.DataFrame, *, costs: bool = True) -> pd.DataFrame:
    """`league.lines` of the session's rows, with what those that have numbers cost."""
    rows, known = catalogue.rows_by_name(), {}
    if costs:
        there = [row for name, row in rows.items() if name in set(table["row"]) and row.method]
        known = league.costs_of(lab.profile, there, rows["gap"])
    return league.lines(table, rows, known)


def seeds(lines: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The league of seeds as text: the base, then a line a system.

    A difference whose interval lies above zero, over enough repeats for a verdict, is bold.
    """
    rows = [{"method": BASE, **_base(table, "seed"), "cost (GAP trainings)": "1.0"}]
    for _, line in lines[lines["end"] == "seed"].iterrows():
        row = {"method": line["method"], "mIoU (%)": _cell(line), GAINED: _difference(line)}
        row["− GAP, threshold without masks"] = _difference(line, "maskless")
        row["repeats"] = 0 if line["shared"] else line["repeats"]
        rows.append(row | {"cost (GAP trainings)": _cost(line)})
    return _as_text(rows)


def precision_recall(lines: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Precision and recall of seeds against GAP's, as text: where a difference of mIoU comes from.

    At the threshold that is best on masks, then at one that no mask chose (``_maskless``); the base
    has its own numbers.  Bold as in `seeds`.
    """
    names = ("precision", "recall", "precision_maskless", "recall_maskless")
    heads = [name.replace("_maskless", ", without masks") for name in names]
    base = [by_repeat(table, "gap", name) for name in names]
    base = [f"{np.mean(values):.1f}" if values else NOT_RUN for values in base]
    rows = [{"method": BASE} | dict(zip(heads, base, strict=True))]
    own = lines[(lines["end"] == "seed") & (lines["shared"] == "") & (lines["repeats"] > 0)]
    for line in own.itertuples():
        gained = [interval(paired(table, line.row, "gap", name)) for name in names]
        texts = [_gain(gain) if gain.n else "—" for gain in gained]
        rows.append({"method": line.method} | dict(zip(heads, texts, strict=True)))
    return _as_text(rows)


def label_maps(lines: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The league of pseudo-labels and networks as text: what to compare with, then the systems.

    Above them stand the base, one CRF on GAP's seeds, and a network that learned from true masks,
    where they were run.  Bold as in `seeds`; the cost is that of all up to the last number.
    """
    rows = [{"method": BASE, **_of_end(table, "pseudo"), **_of_end(table, "segmentation")}]
    for name, end, label in YARDSTICKS:
        rows.append({"method": label} | _of_end(table, end, name))
    for known in SYSTEMS:
        of_system = lines[lines["name"] == known.name].set_index("end")
        row, cost = {"method": known.title}, "—"
        for end, line in of_system.loc[["pseudo", "segmentation"]].iterrows():
            row[f"{HEADS[end]} (mIoU, %)"] = _cell(line)
            row[f"{HEADS[end]} {GAINED}"] = _difference(line)
            row[f"{HEADS[end]}, repeats"] = line["repeats"]
            cost = _cost(line) if line["repeats"] else cost
        rows.append(row | {"cost (GAP trainings)": cost})
    return _as_text(rows)


def _as_text(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows with the columns of the last, "—" where one has nothing."""
    return pd.DataFrame(rows, columns=list(rows[-1]), dtype=object).fillna("—")


def mechanisms(table: pd.DataFrame) -> pd.DataFrame:
    """``method, mechanism``: what `findings.mechanism` says of every system."""
    every = catalogue.rows_by_name()
    told = [(known.title, findings.mechanism(table, known, every)) for known in SYSTEMS]
    return pd.DataFrame(told, columns=["method", "mechanism"])


def _base(table: pd.DataFrame, end: str, row: str = "") -> dict[str, Any]:
    """A row beside the systems': its mIoU, its difference to GAP where it is another, repeats."""
    name = row or GAP_ROWS[end]
    values = by_repeat(table, name, METRICS[end])
    mean = interval(values)
    line = {"mIoU (%)": _mean(*mean[:3]) if values else NOT_RUN, GAINED: "—"}
    if row and len(pairs := paired(table, row, GAP_ROWS[end], METRICS[end])):
        line[GAINED] = _gain(interval(pairs))
    return line | {"repeats": len(values)}


def _of_end(table: pd.DataFrame, end: str, row: str = "") -> dict[str, Any]:
    """`_base` under the heads of an end."""
    made = _base(table, end, row)
    heads = (f"{HEADS[end]} (mIoU, %)", f"{HEADS[end]} {GAINED}", f"{HEADS[end]}, repeats")
    return dict(zip(heads, made.values(), strict=True))


def _cell(line: pd.Series) -> str:
    if line["shared"]:
        return f"as {line['shared']}"
    return _mean(line["mean"], line["low"], line["high"]) if line["repeats"] else NOT_RUN


def _mean(mean: float, low: float, high: float) -> str:
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]" if np.isfinite(low) else f"{mean:.1f}"


def _gain(of: Effect) -> str:
    """A difference as text, bold where its interval lies above zero over enough repeats."""
    text = points(of.mean, of.low, of.high)
    return f"**{text}**" if of.low > 0 and of.n >= REPEATS else text


def _cost(line: pd.Series) -> str:
    return "—" if line["shared"] or not np.isfinite(line["cost"]) else f"{line['cost']:.1f}"


def _difference(line: pd.Series, name: str = "difference") -> str:
    if not line["pairs"] or line["shared"]:
        return "—"
    ends = (line[f"{name}_low"], line[f"{name}_high"])
    return _gain(Effect(line[name], *ends, math.nan, line["pairs"]))


def on_photos(lines: pd.DataFrame) -> pd.DataFrame:
    """Seeds on real photos beside those of the league, as text, a line a system that photos have.

    Differences are paired by repeat; fewer than a verdict needs stand one by one, without an
    interval.  The base is the first line.  lines: `league.lines`.
    """
    photos = photo_results.rivals()
    base = by_repeat(photos, "gap", "miou")

    def gained(row: str, metric: str) -> str:
        pairs = paired(photos, row, "gap", metric)
        if len(pairs) < REPEATS:
            return ", ".join(map(points, pairs))
        return _gain(interval(pairs))

    first = {"method": BASE, "photos (mIoU, %)": f"{np.mean(base):.1f}", "repeats": len(base)}
    systems = [
        {
            "method": line["method"],
            "photos (mIoU, %)": f"{np.mean(by_repeat(photos, line['row'], 'miou')):.1f}",
            "− GAP on photos (points)": gained(line["row"], "miou"),
            "the same without masks": gained(line["row"], "miou_maskless"),
            "repeats": len(paired(photos, line["row"], "gap", "miou")),
            "− GAP in the league (points)": _difference(line),
        }
        for _, line in findings.with_photos(lines, photos).iterrows()
    ]
    return _as_text([first, *systems])


def controls(table: pd.DataFrame) -> pd.DataFrame:
    """`league.controls` of the rows in a table, as text; empty where none was run."""
    lines = league.controls(table, catalogue.rows_by_name())
    return pd.DataFrame(
        {
            "method": line.method,
            "of": HEADS[line.end],
            "against": line.label,
            "its mIoU (%)": f"{line.mean:.1f}",
            "difference (points)": points(line.difference, line.low, line.high),
            "repeats": line.pairs,
        }
        for line in lines.itertuples()
    )


def beside(lines: pd.DataFrame) -> pd.DataFrame:
    """Published (VOC 2012) beside reproduced, a line a system; "—" without a number.

    A published number of another task than its end's has a dagger.
    """
    rows = []
    for known in SYSTEMS:
        line = {"method": known.title}
        for end in ENDS:
            of_end = lines[(lines["name"] == known.name) & (lines["end"] == end)].iloc[0]
            own = not of_end["shared"]
            there, here = of_end["published"], of_end["mean"] if own else np.nan
            mark = "" if of_end["comparable"] else "†"
            line[f"{HEADS[end]}, published"] = f"{there:.1f}{mark}" if np.isfinite(there) else "—"
            line[f"{HEADS[end]}, here"] = f"{here:.1f}" if np.isfinite(here) else "—"
        rows.append(line)
    return pd.DataFrame(rows)


def combinations(table: pd.DataFrame) -> pd.DataFrame:
    """Seeds × refiners in percent with their repeats, as text.

    "—" where there is no such row or it was not run.
    """
    known = list(catalogue.rows_by_name().values())
    means, counts = (crossed(table, known, statistic) for statistic in ("mean", "count"))
    text = means.map("{:.1f}".format) + counts.map(" ({:.0f})".format)
    text = text.where(means.notna(), "—").rename(index=SEEDS)
    return text.rename_axis("seeds").reset_index()


def crossings(table: pd.DataFrame) -> str:
    """How many combinations that are no method's own were run, in a sentence."""
    names = [row.name for row in catalogue.get(STUDIES[1]).rows]
    run = sorted(set(names) & set(table["row"]))
    told = f": {', '.join(run)}" if run else ""
    return f"{len(run)} of {len(names)} combinations of study {STUDIES[1]} were run{told}"


# --- where each fails -----------------------------------------------------------------------------
