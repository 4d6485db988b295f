"""Conclusions as sentences that follow their table: nothing is concluded that was not computed.

Every function returns Markdown.  A sentence that needs repeats says how many there are.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from aeft_lib.studies.effects import REPEATS, WHERE, effect, paired, points, side

NAMES = {"miou": "mIoU", "precision": "precision", "recall": "recall"}


def bullets(sentences: Iterable[str]) -> str:
    """A list of sentences."""
    return "\n".join(f"- {sentence}" for sentence in sentences)


def differences(values: Sequence[float]) -> str:
    """Paired differences in words: mean with interval, each repeat, and where 0 lies.

    It is no verdict on a claim, which needs repeats of its own number.

    >>> differences([1.0, 2.0, 3.0])
    '+2.0 [-0.5, +4.5] points; by repeat +1.0, +2.0, +3.0: 0 is in the interval'
    >>> differences([0.4])
    '+0.4 points in the only repeat, which decides nothing'
    """
    each = ", ".join(f"{value:+.1f}" for value in values)
    if len(values) < 2:
        return f"{each} points in the only repeat, which decides nothing" if each else "not run"
    found = effect(values)
    where = WHERE[side(found.low, found.high)]
    few = "" if len(values) >= REPEATS else f", of {len(values)} repeats"
    return f"{points(found.mean, found.low, found.high)} points; by repeat {each}: {where}{few}"


def compared(
    table: pd.DataFrame, pairs: Iterable[tuple[str, str]], metrics: Sequence[str] = ("miou",)
) -> str:
    """Rows of a study against others, an item a pair and metric.

    table: long, with ``row, label, repeat`` and the metrics.  pairs: of rows, more and less; one
    that the table lacks is left out.
    """
    labels = table.drop_duplicates("row").set_index("row")["label"]
    sentences = []
    for more, less in pairs:
        if {more, less} <= set(labels.index):
            for metric in metrics:
                values = paired(table, more, less, metric).tolist()
                name = f"**{labels[more]} − {labels[less]}**, {_named(metric, metrics)}"
                sentences.append(f"{name}: {differences(values)}.")
    return bullets(sentences)


def _named(metric: str, among: Sequence[str]) -> str:
    """A metric in words; the threshold too where the same is given at two."""
    plain = metric.removesuffix("_maskless")
    apart = ", threshold without masks" if plain != metric and plain in among else ""
    return f"{NAMES.get(plain, plain)}{apart}"


def counted(values: pd.Series, of: str) -> str:
    """How many of some values lie above 0 and below: "3 of 5 rows above 0, 1 below".

    >>> counted(pd.Series([1.0, -2.0, 0.0]), "rows")
    '1 of 3 rows above 0, 1 below'
    """
    return f"{(values > 0).sum()} of {len(values)} {of} above 0, {(values < 0).sum()} below"


def extremes(values: pd.Series, unit: str = "points") -> str:
    """The smallest and the largest of some values, by their names.

    >>> extremes(pd.Series({"a": 1.0, "b": -2.0, "c": 0.5}))
    'from -2.0 points (b) to +1.0 points (a)'
    """
    low, high = values.idxmin(), values.idxmax()
    return f"from {values[low]:+.1f} {unit} ({low}) to {values[high]:+.1f} {unit} ({high})"


def on_one_side(table: pd.DataFrame, by: Sequence[str], value: str, middle: float) -> pd.Series:
    """Per group: "above", "below" where all values lie on that side of `middle`, else "both"."""

    def where(values: pd.Series) -> str:
        above = np.asarray(values) > middle
        return "above" if above.all() else "below" if not above.any() else "both"

    return table.groupby(list(by), sort=False)[value].agg(where)


def in_words(counts: Mapping[str, int]) -> str:
    """Counts by name: "4 above, 1 below".

    >>> in_words({"above": 4, "both": 0, "below": 1})
    '4 above, 1 below'
    """
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
