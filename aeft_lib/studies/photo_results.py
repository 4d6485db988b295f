"""Results on real photos beside those on collages, repeat by repeat: of ``docs``, of the ledger."""

from functools import cache

import numpy as np
import pandas as pd

from aeft_lib import paths
from aeft_lib.studies import ledger
from aeft_lib.studies.effects import paired

STEPS = 225  # of classification behind the table, at most: 1,200 photos, three epochs
FILE = paths.ROOT / "docs" / "real_photos.csv"
RIVALS = "voc-lite"  # the profile whose entries of the ledger are theirs


@cache
def table() -> pd.DataFrame:
    """``photos`` (training images), ``row, label, repeat``, numbers in percent; may be empty."""
    if FILE.is_file():
        return paths.read_table(FILE)
    return pd.DataFrame(columns=["photos", "row", "label", "repeat"])


def rivals() -> pd.DataFrame:
    """GAP and other methods on 1,200 photos, see `ledger.results`."""
    return ledger.results(RIVALS)


@cache
def differences(more: str, less: str, metric: str) -> np.ndarray:
    """`effects.paired` on the largest set of photos that has both rows, else among `rivals`.

    Empty where neither has them.
    """
    of_sets = [of_set for _, of_set in sorted(table().groupby("photos"), reverse=True)]
    for of_set in (*of_sets, rivals()):
        if len(by_repeat := paired(of_set, more, less, metric)):
            return by_repeat.to_numpy()
    return np.array([])
