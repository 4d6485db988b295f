"""Effects with their uncertainty: paired differences over repeats, intervals, many p values."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95


class Effect(NamedTuple):
    """Mean of n paired differences, the ends of its interval, the p value of "it is 0"."""

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
        remedy = "run the study with --repeats 2 or more"
        raise ValueError(f"an interval needs at least two repeats, got {values.size}: {remedy}")
    if not np.isfinite(values).all():
        raise ValueError(f"differences must be finite, got {values.tolist()}")
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval must lie between 0 and 1, got {level}")
    n, mean, sd = len(values), float(values.mean()), float(values.std(ddof=1))
    half = half_width(sd, n, level)
    p = float(2 * stats.t.sf(abs(mean) / (sd / math.sqrt(n)), n - 1)) if sd else float(mean == 0)
    return Effect(mean, mean - half, mean + half, p, n)


def paired(table: pd.DataFrame, more: str, less: str, metric: str) -> pd.Series:
    """`metric` of row `more` minus that of `less`, for the repeats of both; may be empty.

    table: long, with ``row``, ``repeat`` and the metric.
    """
    empty = pd.Series(dtype=float)
    if metric not in table:
        return empty
    wide = table.pivot_table(index="repeat", columns="row", values=metric, sort=True)
    return (wide[more] - wide[less]).dropna() if {more, less} <= set(wide) else empty


def half_width(sd: float, n: int, level: float = LEVEL) -> float:
    """Half of the interval of a mean over n repeats with this sd."""
    return float(stats.t.ppf((1 + level) / 2, n - 1)) * sd / math.sqrt(n)


def adjusted(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for their number: of those below 0.05, 5 % are expected to be false.

    Benjamini and Hochberg's method.

    >>> adjusted([0.01, 0.04, 0.5])
    [0.03, 0.06, 0.5]
    """
    if not len(p_values):
        return []
    return [round(float(p), 6) for p in stats.false_discovery_control(list(p_values))]
