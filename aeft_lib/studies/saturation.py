"""Has a training saturated?  The rule was written down before anything was trained with it.

A row counts as trained where the tag mAP on held-out scenes rises by less than `MARGIN` over the
last quarter of its training, as a mean over repeats.  It reads tags, no mask.  A row that does not
is kept and reported: what it shows is the speed of learning.
"""

import pandas as pd

from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.evaluate_steps import STEPS

LAST = 0.75  # the part of the training after which nothing may be gained
MARGIN = 0.5  # points of tag mAP


def curve(made: Artefact) -> pd.DataFrame:
    """The table of an `evaluate_steps` artefact, a line a point."""
    return pd.read_csv(made.folder / STEPS)


def gain(steps: pd.DataFrame) -> float:
    """Points of tag mAP that the last quarter gave.  Raises ValueError without its ends."""
    at = steps.set_index("part")["tag_map"]
    if missing := [part for part in (LAST, 1.0) if part not in at.index]:
        raise ValueError(f"a curve has no point at {missing[0]} of the training: {list(at.index)}")
    return float(at[1.0] - at[LAST])


def marked(table: pd.DataFrame) -> pd.DataFrame:
    """A study's long table with ``saturated``, by row, where it has ``tag_gain``."""
    if "tag_gain" not in table:
        return table
    gains = table.groupby("row")["tag_gain"].transform("mean")
    return table.assign(saturated=gains < MARGIN)


def remarks(table: pd.DataFrame) -> list[str]:
    """A line for every row of a marked table whose training has not saturated."""
    if "saturated" not in table:
        return []
    return [
        f"{row}: not saturated, its held-out tag mAP rose by {part['tag_gain'].mean():.1f} points "
        f"over the last quarter of the training ({len(part)} repeat(s); below {MARGIN} counts as "
        "trained): its numbers show how fast it learns"
        for row, part in table[~table["saturated"]].groupby("row", sort=False)
    ]
