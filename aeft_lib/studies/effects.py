"""Effects with their uncertainty: paired differences over repeats, intervals, verdicts.

The one rule of verdicts: a claim holds or fails where the 95 % interval of its paired difference
over enough repeats lies on one side of 0; else it is undecided.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special

LEVEL = 0.95
WHERE = {  # 0, by the side of an interval
    "holds": "the interval lies above 0",
    "fails": "the interval lies below 0",
    "undecided": "0 is in the interval",
}
REPEATS = 3  # that a verdict needs where its claim names no other number


class Effect(NamedTuple):
    """Mean of n paired differences, the ends of its interval, the p value of "it is 0"."""

    mean: float
    low: float
    high: float
    p: float
    n: int

    @property
    def verdict(self) -> str:
        """`side` of its interval, whatever the number of repeats."""
        return side(self.low, self.high)


def side(low: float, high: float) -> str:
    """holds: the whole interval is above 0; fails: below; undecided: 0 is in it, or its end."""
    return "holds" if low > 0 else "fails" if high < 0 else "undecided"


def verdict(differences: Sequence[float], needs: int = REPEATS) -> str:
    """The verdict on paired differences, one a repeat, positive where they agree with the claim.

    Raises ValueError as `effect`, and for fewer repeats than a verdict needs.

    >>> [verdict(x) for x in ([2.0, 3.0, 2.5], [-2.0, -3.0, -2.5], [1.0, 2.0, 3.0])]
    ['holds', 'fails', 'undecided']
    """
    if len(differences) < needs:
        remedy = f"run the study with --repeats {needs}"
        raise ValueError(f"a verdict needs {needs} repeats, got {len(differences)}: {remedy}")
    return effect(differences).verdict


def effect(differences: Sequence[float], level: float = LEVEL) -> Effect:
    """Student's t over paired differences, one a repeat.

    Raises ValueError for fewer than two repeats, a difference that is not finite, or a level
    outside 0..1.

    >>> [round(x, 2) for x in effect([1.0, 2.0, 3.0])]
    [2.0, -0.48, 4.48, 0.07, 3]
    """
    values = np.asarray(differences, dtype=float)
    if values.ndim != 1 or len(values) < 2:
        remedy = "run the study with --repeats 2 or more"
        raise ValueError(f"an interval needs at least two repeats, got {values.size}: {remedy}")
    if not np.isfinite(values).all():
        raise ValueError(f"differences must be finite, got {values.tolist()}")
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval must lie between 0 and 1, got {level}")
    n, mean, sd = len(values), float(values.mean()), float(values.std(ddof=1))
    half = half_width(sd, n, level)
    t = abs(mean) / (sd / math.sqrt(n)) if sd else math.inf if mean else 0.0
    p = 2 * float(special.stdtr(n - 1, -t))
    return Effect(mean, mean - half, mean + half, p, n)


def paired(table: pd.DataFrame, more: str, less: str, metric: str) -> pd.Series:
    """`metric` of row `more` minus that of `less`, for the repeats of both; may be empty.

    table: long, with ``row``, ``repeat`` and the metric.
    """
    empty = pd.Series(dtype=float)
    if metric not in table or not {more, less} <= set(table["row"]):
        return empty
    wide = table.pivot_table(index="repeat", columns="row", values=metric, sort=True)
    return (wide[more] - wide[less]).dropna() if {more, less} <= set(wide) else empty


def by_repeat(table: pd.DataFrame, row: str, metric: str) -> list[float]:
    """A row's numbers in the order of its repeats; empty where the table has none."""
    if metric not in table:
        return []
    return table.loc[table["row"] == row].sort_values("repeat")[metric].dropna().tolist()


def interval(values: Iterable[float]) -> Effect:
    """As `effect`, of any number of values by repeat: NaN where one or none has no interval."""
    values = list(values)
    if len(values) > 1:
        return effect(values)
    mean = values[0] if values else math.nan
    return Effect(mean, math.nan, math.nan, math.nan, len(values))


def points(mean: float, low: float | None = None, high: float | None = None) -> str:
    """A difference and its interval, where it has one, in tenths of a point; -0.0 is below 0.

    >>> points(-1.24, -5.1, 2.8), points(0.4)
    ('-1.2 [-5.1, +2.8]', '+0.4')
    """
    mean, *ends = (f"{x:+.1f}" for x in (mean, low, high) if pd.notna(x))
    return f"{mean} [{', '.join(ends)}]" if ends else mean


def half_width(sd: float, n: int, level: float = LEVEL) -> float:
    """Half of the interval of a mean over n repeats with this sd."""
    return float(special.stdtrit(n - 1, (1 + level) / 2)) * sd / math.sqrt(n)


def adjusted(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for their number by Holm's method, in the order they came.

    The chance that *any* claim without an effect is decided stays below 5 % where those below 0.05
    are; the tests may depend on each other.

    >>> adjusted([0.01, 0.04, 0.5])
    [0.03, 0.08, 0.5]
    """
    values = np.array(p_values, dtype=float)  # a copy
    order = values.argsort(kind="stable")
    raised = values[order] * np.arange(len(values), 0, -1)
    values[order] = np.minimum(np.maximum.accumulate(raised), 1)
    return [round(p, 6) for p in values.tolist()]
