"""Curves over the steps of long trainings: what differs between two rows, and where it settles.

At few steps a difference measures how fast rows learn.  `table` reads finished rows of a profile,
`kept` the small tables of the ledger, for which neither photos nor a store are needed;
``aeft report`` says which entries of it today's code no longer makes.
"""

from collections.abc import Sequence
from io import BytesIO

import pandas as pd

from aeft_lib import paths
from aeft_lib.stages.evaluate_steps import STEPS
from aeft_lib.studies import ledger, run, saturation
from aeft_lib.studies.effects import half_width, paired, points, side
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import Profile

PICTURES = {"evening": "collages", "evening-voc": "photos"}  # of the profiles with curves
METRICS = {"miou": "mIoU", "precision": "precision", "half_area": "area above half max"}
NEEDS = 5  # repeats that a claim of the paper needs
COLUMNS = ("pictures", "row", "repeat", "step", "part")


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
            tables.append(pd.read_csv(BytesIO(paths.read_committed(file))).assign(**names))
    if not tables:
        return pd.DataFrame(columns=[*COLUMNS, *METRICS])
    together = pd.concat(tables, ignore_index=True)
    return together.assign(half_area=100 * together["half_area"])


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
    """What the ledger's curves say of mIoU, a line a kind of pictures, as Markdown; computed.

    A claim is decided by the 95 % interval of at least `NEEDS` repeats, else it is undecided; a row
    that has not learned its tags (`saturation`) is named.
    """
    lines = [_sentence(kept, pictures, more, less, label) for pictures in PICTURES.values()]
    return "\n".join(f"- {line}" for line in lines)


def _sentence(kept: pd.DataFrame, pictures: str, more: str, less: str, label: str) -> str:
    rows = kept[kept["pictures"] == pictures]
    both = differences(rows, more, less)
    if both.empty:
        return f"{pictures}: *not run* yet."
    first, last = both.iloc[0], both.iloc[-1]
    n = int(last["n"])
    verdict = side(last["low"], last["high"]) if n >= NEEDS else f"undecided ({n} of {NEEDS})"
    at_end = paired(rows[rows["part"] == 1], more, less, "miou")
    ahead = f"ahead in {int((at_end > 0).sum())} of {n} repeats"
    end = f"{points(*last[['mean', 'low', 'high']])} points of mIoU"
    begun = f"{points(first['mean'])} after {int(first['step'])}"
    text = f"{pictures}: {label} is {end} after {int(last['step'])} steps ({ahead}), {begun}."
    return f"{text} *{verdict}*.{_learning(rows, more, less)}"


def _learning(rows: pd.DataFrame, *names: str) -> str:
    """Which of the rows were still learning their tags, in words; "" where none was."""
    gains = {}
    for name in names:
        of_repeats = rows[rows["row"] == name].groupby("repeat")
        gains[name] = sum(saturation.gain(steps) for _, steps in of_repeats) / len(of_repeats)
    told = [f"`{n}` by {gain:.1f}" for n, gain in gains.items() if gain >= saturation.MARGIN]
    if not told:
        return ""
    return f" Not saturated: over the last quarter the tag mAP rose for {', '.join(told)} points."
