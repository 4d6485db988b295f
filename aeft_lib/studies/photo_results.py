"""What was measured on real photos, as the report sets it beside the collages:

``docs/real_photos.csv``, repeat by repeat.
"""

from functools import cache

import numpy as np
import pandas as pd

from aeft_lib import paths
from aeft_lib.studies.effects import paired

FILE = paths.ROOT / "docs" / "real_photos.csv"


@cache
def table() -> pd.DataFrame:
    """``photos`` (how many were trained on), ``row, label, repeat`` and numbers in percent; empty where the file is not there."""
    return (
        pd.read_csv(FILE)
        if FILE.is_file()
        else pd.DataFrame(columns=["photos", "row", "label", "repeat"])
    )


def differences(more: str, less: str, metric: str) -> np.ndarray:
    """`metric` of row `more` minus that of `less`, by repeat, from the largest set of photos that has both; else empty."""
    for _, of_set in sorted(table().groupby("photos"), reverse=True):
        if len(found := paired(of_set, more, less, metric)):
            return found.to_numpy()
    return np.array([])
