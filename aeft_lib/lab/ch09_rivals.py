"""Chapter 9: the numbers of all systems, from store and committed tables."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from aeft_lib.lab.ch09_figures import HEADS
from aeft_lib.lab.session import Session
from aeft_lib.studies import catalogue, collected, findings, league, photo_results, run, shipped
from aeft_lib.studies.effects import by_repeat, interval, paired, points
from aeft_lib.studies.profiles import COMMITTED_REPEATS
from aeft_lib.studies.published import published
from aeft_lib.studies.rivals_grid import crossed, crossing
from aeft_lib.studies.rows import Row
from aeft_lib.studies.systems import ENDS, NOT_RUN, PLACES, SYSTEMS, brief, ends

STUDIES = ("rivals", "rivals_grid")
RIVALS = catalogue.get(STUDIES[0])
# Steps of a classifier: a training of no more takes seconds, so what is not in the store is trained
# here.  The laptop's has 120.
FEW_STEPS = 20


def results(lab: Session) -> pd.DataFrame:
    """The long table of all systems: ``row, label, repeat`` and numbers; what there is of it.

    Repeats come from the store; on the profile of the committed tables, those that the store lacks
    come from the study's own (`studies.collected`), rows that this lacks too from others.  Nothing
    is trained but, where that takes seconds, `systems.brief`.
    """
    if is_quick(lab):
        known = brief(catalogue.rows_by_name())
        rows = [row for row in known if _stored(lab, [row]).empty]
        if rows:
            run.run_study(catalogue.get("rivals"), lab.profile, range(lab.n_repeats), rows=rows)
    table = collected.with_committed(_stored(lab, wanted()), RIVALS, lab.profile, wanted())
    if lab.profile.name == shipped.PROFILE:
        table = pd.concat([table, *_committed(lab, set(table["row"]))], ignore_index=True)
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


def _committed(lab: Session, there: set[str]) -> list[pd.DataFrame]:
    """Rows of the league in other studies' committed tables, without `there`, each from one."""
    names, parts = {row.name for row in wanted()} - there, []
    studies = [study for study in catalogue.STUDIES.values() if not study.needs]
    files = [run.committed_table(study) for study in studies if study.name not in STUDIES]
    for file in dict.fromkeys(file for file in files if file.is_file()):
        table = lab.committed(file.stem)
        if "repeat" in table:  # others have means alone
            parts.append(table[table["row"].isin(names)])
            names -= set(parts[-1]["row"])
    return [part for part in parts if len(part)]


def map_table() -> pd.DataFrame:
    """The field as data: ``method, venue, family, classifier, reader, refiner, segmenter, rounds``.

    A place is True where the method changes it.
    """
    venues = {line["method"]: line["venue"] for line in published()["results"]}
    lines = []
    for known in SYSTEMS:
        line = {"method": known.title, "venue": venues[known.method], "family": known.family}
        line |= {place: place in known.changes for place in PLACES}
        lines.append(line | {"rounds": known.rounds})
    return pd.DataFrame(lines)


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


def overview(lines: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The league as text, a line a system: numbers with intervals, differences, cost, mechanism.

    The best own mean of each end is bold.
    """
    best = lines[lines["shared"] == ""].groupby("end")["mean"].max()
    rows, every = [], catalogue.rows_by_name()
    for known in SYSTEMS:
        of_system = lines[lines["name"] == known.name].set_index("end")
        line = {"method": known.title}
        for end in ENDS:
            text = _cell(of_system.loc[end])
            is_best = of_system.loc[end, "mean"] == best[end] and not of_system.loc[end, "shared"]
            line[f"{HEADS[end]} (mIoU, %)"] = f"**{text}**" if is_best else text
            line[f"{HEADS[end]} − GAP (points)"] = _difference(of_system.loc[end])
            if end == "seed":
                line["the same without masks"] = _difference(of_system.loc[end], "maskless")
        own = of_system[of_system["shared"] == ""]
        line["cost (GAP trainings)"] = _range(own["cost"])
        line["time (of GAP's)"] = _range(own["time"])
        line["repeats"] = int(own["repeats"].max())
        line["mechanism"] = findings.mechanism(table, known, every)
        rows.append(line)
    return pd.DataFrame(rows)


def _cell(line: pd.Series) -> str:
    if not line["repeats"]:
        return NOT_RUN
    interval = f" [{line['low']:.1f}, {line['high']:.1f}]" if np.isfinite(line["low"]) else ""
    text = f"{line['mean']:.1f}{interval}"
    return f"({text}, of {line['shared']})" if line["shared"] else text


def _difference(line: pd.Series, name: str = "difference") -> str:
    if not line["pairs"] or line["shared"]:
        return "—"
    return points(line[name], line[f"{name}_low"], line[f"{name}_high"])


def on_photos(lines: pd.DataFrame) -> pd.DataFrame:
    """Seeds on real photos beside those of the league, as text, a line a system that photos have.

    Differences are paired by repeat; of one repeat they have no interval.  lines: `league.lines`.
    """
    photos = photo_results.rivals()

    def gained(row: str, metric: str) -> str:
        return points(*interval(paired(photos, row, "gap", metric))[:3])

    return pd.DataFrame(
        {
            "method": line["method"],
            "photos (mIoU, %)": f"{np.mean(by_repeat(photos, line['row'], 'miou')):.1f}",
            "− GAP on photos (points)": gained(line["row"], "miou"),
            "the same without masks": gained(line["row"], "miou_maskless"),
            "repeats": len(paired(photos, line["row"], "gap", "miou")),
            "− GAP in the league (points)": _difference(line),
        }
        for _, line in findings.with_photos(lines, photos).iterrows()
    )


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


def _range(costs: pd.Series) -> str:
    """Of seeds and of the whole way, in GAP trainings."""
    shown = [f"{cost:.1f}" for cost in costs.dropna()]
    return " … ".join(dict.fromkeys((shown[0], shown[-1]))) if shown else "—"


def beside(lines: pd.DataFrame) -> pd.DataFrame:
    """Published (VOC 2012) beside reproduced, a line a system; "—" without a number."""
    rows = []
    for known in SYSTEMS:
        line = {"method": known.title}
        for end in ENDS:
            of_end = lines[(lines["name"] == known.name) & (lines["end"] == end)].iloc[0]
            own = not of_end["shared"]
            numbers = {"published": of_end["published"], "here": of_end["mean"] if own else np.nan}
            for kind, value in numbers.items():
                line[f"{HEADS[end]}, {kind}"] = f"{value:.1f}" if np.isfinite(value) else "—"
        rows.append(line)
    return pd.DataFrame(rows)


def combinations(table: pd.DataFrame) -> pd.DataFrame:
    """Seeds × refiners in percent, as text; "—" where there is no such row or it was not run."""
    cells = crossed(table, catalogue.rows_by_name().values())
    text = cells.map(lambda value: f"{value:.1f}" if np.isfinite(value) else "—")
    return text.rename_axis("seeds").reset_index()


# --- where each fails -----------------------------------------------------------------------------
