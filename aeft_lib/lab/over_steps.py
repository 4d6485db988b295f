"""Differences against the number of training steps, from the ledger's long trainings.

At few steps a difference between two rows measures how fast they learn; the curve shows where its
sign settles.  Only small committed tables are read (`studies.ledger`), so no photo and no store is
needed; ``aeft report`` says which entries today's code no longer makes.
"""

from io import BytesIO

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from aeft_lib import paths
from aeft_lib.lab.figures import TEXT_WIDTH
from aeft_lib.stages.evaluate_steps import STEPS
from aeft_lib.studies import curves, ledger
from aeft_lib.studies.effects import paired, points, side

PROFILES = {"evening": "collages", "evening-voc": "photos"}
METRICS = {"miou": "mIoU", "precision": "precision", "half_area": "area above half max"}
NEEDS = 5  # repeats that a claim of the paper needs
COLUMNS = ("pictures", "row", "repeat", "step", "part")


def kept() -> pd.DataFrame:
    """Every curve of the ledger: ``pictures, row, repeat`` and the columns of ``steps.csv``.

    ``half_area`` in percent of the picture, as mIoU, precision, recall and tag mAP are.  Empty
    where the ledger holds none.  Raises ValueError for a file that is not the committed one.
    """
    tables = []
    for profile, pictures in PROFILES.items():
        for file in sorted((ledger.home() / profile).glob(f"*/*/curve/{STEPS}")):
            row, repeat = file.parts[-4:-2]
            names = {"pictures": pictures, "row": row, "repeat": int(repeat)}
            tables.append(pd.read_csv(BytesIO(paths.read_committed(file))).assign(**names))
    if not tables:
        return pd.DataFrame(columns=[*COLUMNS, *METRICS])
    table = pd.concat(tables, ignore_index=True)
    return table.assign(half_area=100 * table["half_area"])


def differences(table: pd.DataFrame, more: str, less: str) -> pd.DataFrame:
    """`more` minus `less`: ``pictures, metric, step, mean, low, high, n``, paired by repeat.

    low, high: the 95 % interval over repeats, NaN for one.
    """
    parts = []
    for pictures, rows in table.groupby("pictures", sort=False):
        for metric in METRICS:
            line = curves.differences(rows, more, less, metric)
            parts.append(line.assign(pictures=pictures, metric=metric))
    empty = pd.DataFrame(columns=["pictures", "metric", "step", "mean", "low", "high", "n"])
    return pd.concat(parts, ignore_index=True)[[*empty]] if parts else empty


def figure(shown: pd.DataFrame, label: str) -> Figure:
    """A panel a metric, a line a kind of pictures, its interval shaded.  shown: `differences`."""
    figure, axes = plt.subplots(1, len(METRICS), figsize=(TEXT_WIDTH, 1.7), layout="constrained")
    for axis, (metric, title) in zip(axes, METRICS.items(), strict=True):
        for i, pictures in enumerate(PROFILES.values()):
            part = shown[(shown["pictures"] == pictures) & (shown["metric"] == metric)]
            axis.plot(part["step"], part["mean"], f"C{i}o-", label=pictures, markersize=2.5)
            axis.fill_between(part["step"], part["low"], part["high"], color=f"C{i}", alpha=0.15)
        axis.axhline(0, color="0.8", linewidth=0.6, zorder=0)
        axis.set(xlabel="steps", title=title)
    axes[0].set_ylabel(f"{label} (points)")
    axes[-1].legend(title=None)
    return figure


def sentences(table: pd.DataFrame, more: str, less: str, label: str) -> str:
    """What the curves say of mIoU, a line a kind of pictures, as Markdown; computed.

    A claim is decided by the 95 % interval of at least `NEEDS` repeats, else it is undecided.
    """
    lines = [_sentence(table, pictures, more, less, label) for pictures in PROFILES.values()]
    return "\n".join(f"- {line}" for line in lines)


def _sentence(table: pd.DataFrame, pictures: str, more: str, less: str, label: str) -> str:
    rows = table[table["pictures"] == pictures]
    both = differences(rows, more, less)
    both = both[both["metric"] == "miou"].sort_values("step")
    if both.empty:
        return f"{pictures}: *not run* yet."
    first, last = both.iloc[0], both.iloc[-1]
    n = int(last["n"])
    verdict = side(last["low"], last["high"]) if n >= NEEDS else f"undecided ({n} of {NEEDS})"
    at_end = paired(rows[rows["part"] == 1], more, less, "miou")
    ahead = f"ahead in {int((at_end > 0).sum())} of {n} repeats"
    end = f"{points(*last[['mean', 'low', 'high']])} points of mIoU"
    return (
        f"{pictures}: {label} is {end} after {int(last['step'])} steps ({ahead}), "
        f"{points(first['mean'])} after {int(first['step'])}. *{verdict}*"
    )
