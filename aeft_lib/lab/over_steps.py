"""Figures and sentences along the steps of long trainings, from the ledger's curves."""

from collections.abc import Sequence

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aeft_lib.lab.figures import TEXT_WIDTH
from aeft_lib.studies import curves
from aeft_lib.studies.curves import METRICS, PICTURES

SIGNS = ("positive", "negative")
EMBEDDINGS = {"e_anchor": "e_A", "e_positive": "e_P"}


def differences(kept: pd.DataFrame, more: str, less: str) -> pd.DataFrame:
    """`more` minus `less`: ``pictures, metric, step, mean, low, high, n``, paired by repeat.

    kept: of `curves.kept`.  low, high: the 95 % interval over repeats, NaN for one.
    """
    parts = []
    for pictures, rows in kept.groupby("pictures", sort=False):
        for metric in METRICS:
            line = curves.differences(rows, more, less, metric)
            parts.append(line.assign(pictures=pictures, metric=metric))
    empty = pd.DataFrame(columns=["pictures", "metric", "step", "mean", "low", "high", "n"])
    return pd.concat(parts, ignore_index=True)[[*empty]] if parts else empty


def figure(shown: pd.DataFrame, label: str) -> Figure:
    """A panel a metric, a line a kind of pictures, its interval shaded.  shown: `differences`."""
    figure, axes = plt.subplots(1, len(METRICS), figsize=(TEXT_WIDTH, 1.7), layout="constrained")
    there = [pictures for pictures in PICTURES.values() if pictures in set(shown["pictures"])]
    for axis, (metric, title) in zip(axes, METRICS.items(), strict=True):
        for pictures in there:
            part = shown[(shown["pictures"] == pictures) & (shown["metric"] == metric)]
            _line(axis, part, f"C{[*PICTURES.values()].index(pictures)}", label=pictures)
        axis.axhline(0, color="0.8", linewidth=0.6, zorder=0)
        axis.set(xlabel="steps", title=title)
    axes[0].set_ylabel(f"{label} (points)")
    if there:
        axes[-1].legend(title=None)
    return figure


def gates(kept: pd.DataFrame, row: str) -> pd.DataFrame:
    """Mean gates of a row along its training: `curves.course` with ``sign, fusion, side``.

    fusion: the gated step, from 1.  side: "first", of what was fused so far, or "next", of the
    level that comes in.
    """
    names = [n for n in kept.columns if n.startswith(SIGNS) and n.endswith(("_first", "_next"))]
    table = curves.course(kept, row, names)
    parts = table["name"].str.split("_", expand=True).reindex(columns=range(3))
    return table.assign(**dict(zip(("sign", "fusion", "side"), parts.T.values, strict=True)))


def gate_figure(shown: pd.DataFrame) -> Figure:
    """A panel a sign and kind of pictures, a line a gate, its interval shaded.  shown: `gates`."""
    there = [pictures for pictures in PICTURES.values() if pictures in set(shown["pictures"])]
    size = (TEXT_WIDTH, 1.7 * max(1, len(there)))
    options = {"sharey": True, "sharex": True, "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(max(1, len(there)), len(SIGNS), figsize=size, **options)
    for pictures, line in zip(there, axes, strict=False):
        for axis, sign in zip(line, SIGNS, strict=True):
            panel = shown[(shown["pictures"] == pictures) & (shown["sign"] == sign)]
            for (fusion, side), part in panel.groupby(["fusion", "side"]):
                name = f"step {fusion}" if side == "first" else None
                style = {"label": name, "linestyle": "-" if side == "first" else "--"}
                _line(axis, part, f"C{int(fusion) - 1}", **style)
            axis.axhline(0.5, color="0.8", linewidth=0.6, zorder=0)
            axis.set(title=f"{pictures}: {sign} evidence", xlabel="steps")
        line[0].set_ylabel("mean gate")
    if there:
        axes[0, 0].legend(title=None)
    return figure


def gates_told(shown: pd.DataFrame) -> str:
    """How far the gates of a row have gone from one half, a line a kind of pictures; computed."""
    lines = []
    for pictures in PICTURES.values():
        own = shown[shown["pictures"] == pictures]
        if own.empty:
            lines.append(f"- {pictures}: *not run* yet.")
            continue
        end = own[own["step"] == own["step"].max()]
        text = f"- {pictures}: after {int(end['step'].iloc[0]):,} steps {_ranges(end)}"
        few = end["n"].min()
        if few < 2:
            lines.append(f"{text}; one repeat has no interval.")
            continue
        sides = [int((end["low"] > 0.5).sum()), int((end["high"] < 0.5).sum())]
        rest = len(end) - sum(sides)
        text += f"; the interval of {few} repeats lies above one half for {sides[0]} of {len(end)}"
        lines.append(f"{text} gates, below it for {sides[1]}, and holds it for {rest}.")
    return "\n".join(lines)


def _ranges(end: pd.DataFrame) -> str:
    means = end.groupby("sign", sort=False)["mean"].agg(["min", "max"])
    told = [
        f"{low:.2f} to {high:.2f} for {sign} evidence" for sign, low, high in means.itertuples()
    ]
    return f"mean gates are {', '.join(told)}"


def embeddings_told(kept: pd.DataFrame, rows: Sequence[str]) -> str:
    """Where the embeddings of an image and of the same image erased go, a line a row; computed.

    kept: of `curves.kept`, whose ``e_anchor`` and ``e_positive`` are means over tagged classes.
    """
    lines = []
    for pictures in PICTURES.values():
        for row in rows:
            own = curves.course(kept[kept["pictures"] == pictures], row, EMBEDDINGS)
            if own.empty:
                lines.append(f"- {pictures}, `{row}`: *not run* yet.")
                continue
            wide = own.pivot(index="step", columns="name", values="mean").sort_index()
            told = [
                f"{EMBEDDINGS[n]} from {v.iloc[0]:.2f} to {v.iloc[-1]:.2f}" for n, v in wide.items()
            ]
            ratio = (wide["e_positive"] / wide["e_anchor"]).iloc[[0, -1]].tolist()
            told.append(f"e_P/e_A from {ratio[0]:.2f} to {ratio[1]:.2f}")
            repeats = f"{int(own['n'].min())} repeat(s)"
            steps = f"{wide.index[-1] - wide.index[0]:,} steps"
            lines.append(f"- {pictures}, `{row}`: {', '.join(told)}, in {steps}, {repeats}.")
    return "\n".join(lines)


def _line(axis: Axes, part: pd.DataFrame, colour: str, **style: str | None) -> None:
    """A mean along the steps, its interval shaded."""
    steps: Sequence[float] = part["step"]
    axis.plot(steps, part["mean"], marker="o", color=colour, markersize=2.5, **style)
    axis.fill_between(steps, part["low"], part["high"], color=colour, alpha=0.15)
