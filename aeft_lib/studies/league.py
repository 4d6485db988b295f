"""The league table: every system's numbers beside the published ones, from tables of rows.

Seeds count at the best threshold on masks, as papers report them; label maps and networks as they
are.  The base is GAP with AffinityNet's refinement and the same network.  Differences are paired by
repeat and decided by the one rule of `studies.effects`; what has no rows or no numbers is *not
run*.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from aeft_lib.studies import plan
from aeft_lib.studies.effects import REPEATS, adjusted, by_repeat, interval, paired, side
from aeft_lib.studies.published import published
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import Profile
from aeft_lib.studies.systems import (
    ENDS,
    GAP_ROWS,
    METRICS,
    NOT_RUN,
    SYSTEMS,
    System,
    end_of,
    ends,
    ids,
    learned,
)

# What a published number has to be of, that it may be ranked with the others of its end.
TASKS = {
    "seed": "seed mIoU, VOC 2012 train",
    "pseudo": "pseudo-label mIoU, VOC 2012 train",
    "segmentation": "segmentation mIoU, VOC 2012 val",
}
OPTIMISING = ("train_", "read_each")  # stages that step, and not only pass


def lines(
    table: pd.DataFrame, rows: Mapping[str, Row], costs: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """A line for every system and end, in the poster's order.

    ``method, name, family, venue, end, row, published``; ``mean, low, high, repeats`` of its mIoU
    (percent, 95 % interval over repeats, NaN below two); ``difference, difference_low,
    difference_high, p, p_adjusted, pairs`` to the GAP base, and ``maskless, maskless_low,
    maskless_high`` at thresholds that no mask chose; ``verdict``; ``shared``: the system whose
    seeds they are, where they are not its own; ``comparable``: whether the published number is of
    the end's `TASKS`; ``cost``, see `costs_of`.
    table: long, with ``row, repeat`` and numbers.  rows: all there are, by name.
    """
    results = {line["method"]: line for line in published()["results"]}
    made = []
    for known in SYSTEMS:
        found = ends(known, rows)
        for end in ENDS:
            row = found.get(end)
            line = {"method": known.title, "name": known.name, "family": known.family}
            line |= {"venue": results[known.method]["venue"], "end": end}
            line |= {"row": row.name if row else None, "shared": _shared(known, row)}
            value, task = _published(known, end, results[known.method])
            line |= {"published": value, "comparable": task == TASKS[end]}
            line |= _numbers(table, end, row)
            line["cost"] = (costs or {}).get(line["row"], np.nan)
            made.append(line)
    league = pd.DataFrame(made)
    tested = league["p"].notna() & (league["shared"] == "")
    league["p_adjusted"] = np.nan
    league.loc[tested, "p_adjusted"] = adjusted(league.loc[tested, "p"].tolist())
    return league


def _published(known: System, end: str, result: Mapping[str, Any]) -> tuple[float, str]:
    """What its paper reports for an end, NaN where no number is known, and of which task."""
    if end == "segmentation":
        return result["voc_val"], TASKS[end]
    number = published()["numbers"].get(ids(known)[end], {})
    return number.get("value", np.nan), number.get("task", "")


def _shared(known: System, row: Row | None) -> str:
    """Whose seeds a row is, where it is another system's or the base's; "" for its own.

    A system that changes neither classifier nor reader has GAP's, however it scales them.
    """
    if row is None or row.refiner or row.segmenter:
        return ""
    if not {"classifier", "reader"} & set(known.changes):
        return "GAP"
    own = row.published in ids(known).values()
    return "" if own else row.label.removesuffix(", seeds")


def _numbers(table: pd.DataFrame, end: str, row: Row | None) -> dict[str, Any]:
    """Mean and difference of an end, with their intervals."""
    values = by_repeat(table, row.name, METRICS[end]) if row else []
    mean, low, high, _, n = interval(values)
    line = {"mean": mean, "low": low, "high": high, "repeats": n}
    pairs = paired(table, row.name, GAP_ROWS[end], METRICS[end]) if n else []
    difference, low, high, p, pairs = interval(pairs)
    line |= {"difference": difference, "difference_low": low, "difference_high": high}
    line |= {"p": p, "pairs": pairs, "verdict": _verdict(n, pairs, low, high)}
    without = paired(table, row.name, GAP_ROWS[end], "miou_maskless") if n else []
    names = ("maskless", "maskless_low", "maskless_high")
    return line | dict(zip(names, interval(without)[:3], strict=True))


def _verdict(n: int, pairs: int, low: float, high: float) -> str:
    """`effects.side` of a difference; why there is none."""
    if n == 0:
        return NOT_RUN
    if pairs == 0:
        return "no GAP to compare"
    return side(low, high) if pairs >= REPEATS else f"{pairs} of {REPEATS} repeats"


def controls(table: pd.DataFrame, rows: Mapping[str, Row]) -> pd.DataFrame:
    """Each system against itself with a part otherwise, and against what it starts from.

    Seeds also against GAP at their cost, and rows with and without a system's part.  A line for
    every such row that was run with it: ``method, end, row, label``, method being the other row's
    label where that is no end of a system; ``mean`` of that row; ``difference, low, high, pairs``:
    the system minus it, in percent, paired by repeat.
    """
    made = []
    for known in SYSTEMS:
        for end, own in ends(known, rows).items():
            for other in _variants(known, end, own, rows):
                made += _control(table, known.title, end, own, other)
        for more, less in known.parts:
            made += _control(table, rows[more].label, end_of(rows[more]), rows[more], rows[less])
    columns = ["method", "end", "row", "label", "mean", "difference", "low", "high", "p", "pairs"]
    return pd.DataFrame(made, columns=columns)


def _control(table: pd.DataFrame, method: str, end: str, own: Row, other: Row) -> list[dict]:
    """The line of `controls` for two rows; none where they were not run together."""
    pairs = paired(table, own.name, other.name, METRICS[end])
    if not len(pairs):
        return []
    mean = float(np.mean(by_repeat(table, other.name, METRICS[end])))
    line = {"method": method, "end": end, "row": other.name, "label": other.label, "mean": mean}
    return [
        line | dict(zip(("difference", "low", "high", "p", "pairs"), interval(pairs), strict=True))
    ]


def _variants(known: System, end: str, own: Row, rows: Mapping[str, Row]) -> list[Row]:
    """Rows of a system's end with a part otherwise, by their names; later parts on its seeds.

    The baseline of the end's published number is the first, where that is not the league's own.
    """

    def same_end(other: Row) -> bool:
        kinds = [(bool(r.refiner), bool(r.segmenter), r.prediction) for r in (own, other)]
        return kinds[0] == kinds[1] and (not own.refiner or learned(other) == learned(own))

    if own.name in GAP_ROWS.values():
        return []  # the base's, which a system shares
    numbered = ids(known).values()
    others = [row for name, row in rows.items() if name.startswith(f"{own.name}_")]
    others = [r for r in others if r.method and r.published not in numbered and same_end(r)]
    longer = rows.get(f"gap_as_{known.name}") if end == "seed" else None
    start = rows.get(published()["numbers"].get(ids(known)[end], {}).get("baseline"))
    first = [start] if start and start.name not in GAP_ROWS.values() else []
    return [*dict.fromkeys([*first, *others]), *([longer] if longer else [])]


def costs_of(profile: Profile, rows: Iterable[Row], gap: Row) -> dict[str, float]:
    """What is behind each row, by name, in trainings of a GAP classifier, row `gap`.

    Operations of all trainings count, those of judges and earlier rounds too, and of readers that
    optimise for every image, on the scenes that the row reads.  One pass over them counts nothing.
    Empty where the profile trains nothing: its scenes do not fill a batch.
    Raises ValueError where the profile's data is missing.
    """
    base = _work(profile, gap)
    return {row.name: _work(profile, row) / base for row in rows} if base else {}


def _work(profile: Profile, row: Row) -> float:
    """PFLOP of all trainings behind a row, and of readers that optimise for every image."""
    planned = plan.plan(profile, [row], [0])
    return sum(item.pflop or 0.0 for item in planned if item.stage.startswith(OPTIMISING))
