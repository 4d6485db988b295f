"""Effects with their uncertainty:

paired differences over repeats, intervals, and what is left of them when there are many.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95


class Effect(NamedTuple):
    """A mean of paired differences, the ends of its interval, the p value of "it is 0", and over how many repeats."""

    mean: float
    low: float
    high: float
    p: float
    n: int

    @property
    def verdict(self) -> str:
        """holds: the whole interval is above 0; fails: below; else inconclusive."""
        return "holds" if self.low > 0 else "fails" if self.high < 0 else "inconclusive"


def effect(differences: Sequence[float], level: float = LEVEL) -> Effect:
    """Student's t over paired differences, one a repeat.

    Raises ValueError for fewer than two repeats, a difference that is not finite, or a level
    outside 0..1.

    >>> [round(x, 2) for x in effect([1.0, 2.0, 3.0])]
    [2.0, -0.48, 4.48, 0.07, 3]
    """
    values = np.asarray(differences, dtype=float)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(
            f"an interval needs at least two repeats, got {values.size}: run the study with --repeats 2 or more"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"differences must be finite, got {values.tolist()}")
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval must lie between 0 and 1, got {level}")
    n, mean, sd = len(values), float(values.mean()), float(values.std(ddof=1))
    half = half_width(sd, n, level)
    p = float(2 * stats.t.sf(abs(mean) / (sd / math.sqrt(n)), n - 1)) if sd else float(mean == 0)
    return Effect(mean, mean - half, mean + half, p, n)


def paired(table: pd.DataFrame, more: str, less: str, metric: str) -> pd.Series:
    """`metric` of row `more` minus that of row `less`, by repeat, for the repeats that both have;
    empty where a row is missing.

    table: long, with ``row``, ``repeat`` and the metric.
    """
    if metric not in table:
        return pd.Series(dtype=float)
    wide = table.pivot_table(index="repeat", columns="row", values=metric, sort=True)
    return (
        (wide[more] - wide[less]).dropna()
        if more in wide and less in wide
        else pd.Series(dtype=float)
    )


def half_width(sd: float, n: int, level: float = LEVEL) -> float:
    """Half of the interval of a mean over n repeats with this sd."""
    return float(stats.t.ppf((1 + level) / 2, n - 1)) * sd / math.sqrt(n)


def adjusted(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for their number: below 0.05 all, 5 % of them are expected to be false
    (Benjamini and Hochberg).

    >>> adjusted([0.01, 0.04, 0.5])
    [0.03, 0.06, 0.5]
    """
    return (
        [round(float(p), 6) for p in stats.false_discovery_control(list(p_values))]
        if len(p_values)
        else []
    )
