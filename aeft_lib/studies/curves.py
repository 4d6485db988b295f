"""Curves over the steps of long trainings: what differs between two rows, and where it settles.

At few steps a difference measures how fast rows learn.  The small tables of the ledger are read,
for which neither photos nor a store are needed; `publish` refuses entries of other code.
"""

from collections.abc import Sequence

import pandas as pd

from aeft_lib import paths
from aeft_lib.stages.evaluate_steps import STEPS
from aeft_lib.studies import ledger, saturation
from aeft_lib.studies.effects import WHERE, half_width, paired, points, side

PICTURES = {"evening": "collages", "evening-voc": "photos"}  # of the profiles with curves
METRICS = {"miou": "mIoU", "precision": "precision", "half_area": "area above half max"}
NEEDS = 5  # repeats that a claim of the paper needs
BESIDE_ZERO = {"holds": "above 0", "fails": "below 0", "undecided": "0 is in the interval"}
ENDS = ["mean", "low", "high"]
COLUMNS = ("pictures", "row", "repeat", "step", "part")


def kept() -> pd.DataFrame:
    """Every curve of the ledger: ``pictures, row, repeat`` and the columns of `STEPS`.

    ``half_area`` in percent of the picture, as mIoU, precision, recall and tag mAP are.  Empty
    where the ledger holds none.  Raises ValueError for a file that is not the committed one.
    """
    tables = []
    for profile, pictures in PICTURES.items():
        for file in sorted((ledger.home() / profile).glob(f"*/*/curve/{STEPS}")):
            row, repeat = file.parts[-4:-2]
            names = {"pictures": pictures, "row": row, "repeat": int(repeat)}
            tables.append(paths.read_table(file).assign(**names))
    if not tables:
        return pd.DataFrame(columns=[*COLUMNS, *METRICS])
    together = pd.concat(tables, ignore_index=True)
    return together.assign(half_area=100 * together["half_area"])


def results() -> pd.DataFrame:
    """What rows with curves ended with: ``pictures``, and the columns of `ledger.results`."""
    ends = [ledger.results(profile).assign(pictures=name) for profile, name in PICTURES.items()]
    return pd.concat([end for end in ends if len(end)] or ends, ignore_index=True)


def profile_of(pictures: str) -> str:
    """The profile whose entries are of these pictures, a value of `PICTURES`."""
    return next(profile for profile, name in PICTURES.items() if name == pictures)


def differences(curves: pd.DataFrame, more: str, less: str, metric: str = "miou") -> pd.DataFrame:
    """`more` minus `less` at every point: ``step, mean, low, high, n``, paired by repeat.

    low, high: 95 % interval over repeats, NaN for one.  step: of `more`.
    """
    lines = []
    for (_, step), at in curves[curves["row"] == more].groupby(["part", "step"]):
        others = curves[(curves["row"] == less) & (curves["part"] == at["part"].iloc[0])]
        by_repeat = paired(pd.concat([at, others]), more, less, metric)
        if len(by_repeat):
            lines.append({"step": step} | _interval(by_repeat))
    return pd.DataFrame(lines, columns=["step", "mean", "low", "high", "n"])


def course(curves: pd.DataFrame, row: str, columns: Sequence[str]) -> pd.DataFrame:
    """Numbers of a row along its training: ``pictures, step, name, mean, low, high, n``.

    Over repeats, as `differences`.  columns: of the curves; those that the row lacks are left out.
    """
    lines = []
    own = curves[curves["row"] == row]
    for (pictures, step), at in own.groupby(["pictures", "step"], sort=False):
        for name in columns:
            if name in at and len(values := at[name].dropna()):
                lines.append({"pictures": pictures, "step": step, "name": name} | _interval(values))
    return pd.DataFrame(lines, columns=["pictures", "step", "name", "mean", "low", "high", "n"])


def _interval(values: pd.Series) -> dict[str, float]:
    n, mean = len(values), float(values.mean())
    half = half_width(values.std(), n) if n > 1 else float("nan")
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def sentences(kept: pd.DataFrame, more: str, less: str, label: str) -> str:
    """What the ledger's curves say, a line a kind of pictures, as Markdown; computed.

    Where 0 lies in the interval at the end, if there are `NEEDS` repeats; no verdict, which the
    report reads from seeds of all scales.  A row that has not learned its tags (`saturation`) is
    named.
    """
    lines = [_sentence(kept, pictures, more, less, label) for pictures in PICTURES.values()]
    return "\n".join(f"- {line}" for line in lines)


def turns(kept: pd.DataFrame, more: str, less: str, label: str) -> str:
    """From which step on a difference lies where, an item a kind of pictures and metric; computed.

    Where no point has `NEEDS` repeats nothing is decided, and an item says so.
    """
    items = []
    for pictures in PICTURES.values():
        rows = kept[kept["pictures"] == pictures]
        for metric, name in METRICS.items():
            along = differences(rows, more, less, metric)
            decided = along[along["n"] >= NEEDS]
            if along.empty:
                continue
            told = _runs(decided) if len(decided) else f"{int(along['n'].max())} of {NEEDS} repeats"
            items.append(f"- {pictures}, {label} in {name}: {told}.")
    return "\n".join(items) or "- *not run* yet."


def _runs(along: pd.DataFrame) -> str:
    """Steps in a row at which an interval lies on the same side of 0."""
    sides = [side(line.low, line.high) for line in along.itertuples()]
    steps, told, start = along["step"].astype(int).tolist(), [], 0
    for i, word in enumerate(sides):
        if i + 1 < len(sides) and sides[i + 1] == word:
            continue
        span = f"{steps[start]:,}" if start == i else f"{steps[start]:,} to {steps[i]:,}"
        told.append(f"{BESIDE_ZERO[word]} at {span}")
        start = i + 1
    return ", ".join(told) + " steps"


def _sentence(kept: pd.DataFrame, pictures: str, more: str, less: str, label: str) -> str:
    rows = kept[kept["pictures"] == pictures]
    both = differences(rows, more, less)
    if both.empty:
        return f"{pictures}: *not run* yet."
    first, last = both.iloc[0], both.iloc[-1]
    n = int(last["n"])
    few = f"{n} of {NEEDS} repeats, which decide nothing"
    where = WHERE[side(last["low"], last["high"])] if n >= NEEDS else few
    at_end = paired(rows[rows["part"] == 1], more, less, "miou")
    ahead = f"ahead in {int((at_end > 0).sum())} of {n} repeats"
    end = f"{points(*last[ENDS])} points of mIoU after {int(last['step']):,} steps"
    begun = f"{points(*first[ENDS])} after {int(first['step']):,}"
    text = f"{pictures}: {label} is {end} ({where}; {ahead}), {begun}."
    others = [_at_end(rows, more, less, metric) for metric in METRICS if metric != "miou"]
    beside = f" At the end, {'; '.join(others)} points." if all(others) else ""
    return f"{text}{beside}{_learning(rows, more, less)}"


def _at_end(rows: pd.DataFrame, more: str, less: str, metric: str) -> str:
    """A difference at the end of both trainings in words; "" where there is none."""
    ends = differences(rows[rows["part"] == 1], more, less, metric)
    return "" if ends.empty else f"{METRICS[metric]}: {points(*ends[ENDS].iloc[0])}"


def unsaturated(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, float]:
    """Those of the rows that were still learning their tags, with what they gained at the end.

    rows: of `kept`, of one kind of pictures.  Means over repeats, see `saturation`.
    """
    own = rows[rows["row"].isin(names)].groupby(["row", "repeat"])
    gains = pd.Series({key: saturation.gain(steps) for key, steps in own}, dtype=float)
    means = {name: gains[name].mean() for name in names if name in gains.index.get_level_values(0)}
    return {name: gain for name, gain in means.items() if gain >= saturation.MARGIN}


def _learning(rows: pd.DataFrame, *names: str) -> str:
    """`unsaturated` in words; "" where all have learned their tags."""
    told = [f"`{name}` by {gain:.1f}" for name, gain in unsaturated(rows, names).items()]
    if not told:
        return ""
    return f" Not saturated: over the last quarter the tag mAP rose for {', '.join(told)} points."
