"""Curves over steps: what differs between two rows at the same part of their trainings."""

from collections.abc import Sequence

import pandas as pd

from aeft_lib.studies import run, saturation
from aeft_lib.studies.effects import half_width, paired
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import Profile


def table(profile: Profile, rows: Sequence[Row], repeats: Sequence[int]) -> pd.DataFrame:
    """The curves of rows and repeats that are finished: ``row, label, repeat``, and `STEPS`'.

    Computes nothing; empty where nothing is finished.
    """
    parts = []
    for row in rows:
        for repeat in repeats:
            try:
                steps = saturation.curve(run.read(profile, row, repeat)["curve"])
            except LookupError:
                continue
            parts.append(steps.assign(row=row.name, label=row.label, repeat=repeat))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def differences(curves: pd.DataFrame, more: str, less: str, metric: str = "miou") -> pd.DataFrame:
    """`more` minus `less` at every point: ``step, mean, low, high, n``, paired by repeat.

    low, high: 95 % interval over repeats, NaN for one.  step: of `more`.
    """
    lines = []
    for (_, step), at in curves[curves["row"] == more].groupby(["part", "step"]):
        others = curves[(curves["row"] == less) & (curves["part"] == at["part"].iloc[0])]
        by_repeat = paired(pd.concat([at, others]), more, less, metric)
        if n := len(by_repeat):
            half = half_width(by_repeat.std(), n) if n > 1 else float("nan")
            mean = by_repeat.mean()
            ends = {"low": mean - half, "high": mean + half}
            lines.append({"step": step, "mean": mean, **ends, "n": n})
    return pd.DataFrame(lines, columns=["step", "mean", "low", "high", "n"])
