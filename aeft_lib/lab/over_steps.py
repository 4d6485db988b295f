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
    """A panel a metric, a line a kind of pictures, its interval shaded.  shown: `differences`.

    Means fill a third of a panel's height, so the wide intervals of two repeats leave it.
    """
    figure, axes = plt.subplots(1, len(METRICS), figsize=(TEXT_WIDTH, 1.7), layout="constrained")
    there = [pictures for pictures in PICTURES.values() if pictures in set(shown["pictures"])]
    for axis, (metric, title) in zip(axes, METRICS.items(), strict=True):
        for pictures in there:
            part = shown[(shown["pictures"] == pictures) & (shown["metric"] == metric)]
            _line(axis, part, f"C{[*PICTURES.values()].index(pictures)}", label=pictures)
        axis.axhline(0, color="0.8", linewidth=0.6, zorder=0)
        axis.set(xlabel="steps", title=title)
        ends = [0.0, *shown.loc[shown["metric"] == metric, "mean"]]
        low, high = min(ends), max(ends)
        if high > low:
            axis.set_ylim(low - (high - low), high + (high - low))
    axes[0].set_ylabel(f"{label} (points)")
    if there:
        axes[-1].legend(title=None)
    return figure


def gates(kept: pd.DataFrame, row: str) -> pd.DataFrame:
    """Gates of a row along its training: ``pictures, repeat, step, sign, fusion, side, weight``.

    Means over scenes.  fusion: the gated step, from 1.  side: "first", of what was fused so far, or
    "next", of the level that comes in.
    """
    names = [n for n in kept.columns if n.startswith(SIGNS) and n.endswith(("_first", "_next"))]
    own = kept[kept["row"] == row].melt(["pictures", "repeat", "step"], names, value_name="weight")
    parts = own["variable"].astype(str).str.split("_", expand=True).reindex(columns=range(3))
    own = own.assign(**dict(zip(("sign", "fusion", "side"), parts.T.values, strict=True)))
    return own.drop(columns="variable").dropna(subset="weight")


def gate_figure(shown: pd.DataFrame) -> Figure:
    """A panel a sign and fusion step, a line a gate and repeat.  shown: `gates`.

    Colours are kinds of pictures; full lines weigh what was fused so far, dashed ones the level
    that comes in.
    """
    fusions = sorted(shown["fusion"].unique()) or ["1"]
    options = {"sharey": True, "sharex": True, "squeeze": False, "layout": "constrained"}
    size = (TEXT_WIDTH, 1.6 * len(SIGNS))
    figure, axes = plt.subplots(len(SIGNS), len(fusions), figsize=size, **options)
    colours = {pictures: f"C{i}" for i, pictures in enumerate(PICTURES.values())}
    named = set()
    for sign, line in zip(SIGNS, axes, strict=True):
        for fusion, axis in zip(fusions, line, strict=True):
            panel = shown[(shown["sign"] == sign) & (shown["fusion"] == fusion)]
            for (pictures, side, _), part in panel.groupby(["pictures", "side", "repeat"]):
                label = f"{pictures}, {'fused so far' if side == 'first' else 'next level'}"
                style = {"label": None if label in named else label, "linewidth": 0.9}
                named.add(label)
                style |= {"color": colours[pictures], "linestyle": "-" if side == "first" else "--"}
                axis.plot(part["step"], part["weight"], **style)
            axis.axhline(0.5, color="0.8", linewidth=0.6, zorder=0)
            axis.set(title=f"{sign}, step {fusion}", ylim=(0, 1))
        line[0].set_ylabel("mean gate")
    for axis in axes[-1]:
        axis.set_xlabel("steps of training")
    if named:
        figure.legend(title=None, loc="outside lower center", ncols=len(named))
    return figure


def gates_told(shown: pd.DataFrame) -> str:
    """Where the gates of a row end, against one half and between repeats; computed."""
    lines = []
    for pictures in PICTURES.values():
        own = shown[shown["pictures"] == pictures]
        if own.empty:
            lines.append(f"- {pictures}: *not run* yet.")
            continue
        end = own[own["step"] == own["step"].max()]
        steps, repeats = int(end["step"].iloc[0]), end["repeat"].nunique()
        told = [_sides(end[end["sign"] == sign], sign) for sign in SIGNS]
        begun = f"{pictures}, {steps:,} steps, {repeats} repeat{'s' if repeats > 1 else ''}"
        lines.append(f"- {begun}. {' '.join(told)}")
    return "\n".join(lines)


def _sides(end: pd.DataFrame, sign: str) -> str:
    """How many gates of a sign end above or below one half in all repeats, and their spread."""
    wide = end.pivot(index=["fusion", "side"], columns="repeat", values="weight")
    above, below = ((side.all(axis=1)).sum() for side in (wide > 0.5, wide < 0.5))
    text = f"{sign.capitalize()} evidence: of {len(wide)} gates"
    if wide.shape[1] < 2:
        return f"{text} {above} end above one half, {below} below."
    spread = (wide.max(axis=1) - wide.min(axis=1)).max()
    text += f" {above} end above one half in every repeat, {below} below it in every repeat"
    return f"{text}; the same gate differs by up to {spread:.2f} between repeats."


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


def embeddings(kept: pd.DataFrame, rows: Sequence[str]) -> pd.DataFrame:
    """Both embeddings of rows along their trainings: ``row`` and the columns of `curves.course`."""
    parts = [curves.course(kept, row, EMBEDDINGS).assign(row=row) for row in rows]
    there = [part for part in parts if len(part)]
    return pd.concat(there or parts, ignore_index=True)


def embedding_figure(shown: pd.DataFrame) -> Figure:
    """A panel a kind of pictures, a colour a row: e_A full, e_P dashed, intervals shaded.

    shown: `embeddings`, not empty.  Steps count from the beginning of a row's own phase.
    """
    there = [pictures for pictures in PICTURES.values() if pictures in set(shown["pictures"])]
    size, options = (2.6 * len(there) + 1.2, 1.9), {"squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(1, len(there), figsize=size, **options)
    rows = list(shown["row"].unique())
    for axis, pictures in zip(axes[0], there, strict=True):
        of_pictures = shown[shown["pictures"] == pictures]
        for (row, name), part in of_pictures.groupby(["row", "name"], sort=False):
            style = {"linestyle": "-" if name == "e_anchor" else "--"}
            label = f"{row}, ${EMBEDDINGS[name]}$"
            _line(axis, part, f"C{rows.index(row)}", label=label, **style)
        axis.set(xlabel="steps of training", title=pictures, ylim=(0, None))
    axes[0][0].set_ylabel("mean embedding")
    figure.legend(title=None, loc="outside right center", handles=axes[0][-1].lines)
    return figure


def _line(axis: Axes, part: pd.DataFrame, colour: str, **style: str | None) -> None:
    """A mean along the steps, its interval shaded."""
    axis.plot(part["step"], part["mean"], marker="o", color=colour, markersize=2.5, **style)
    axis.fill_between(part["step"], part["low"], part["high"], color=colour, alpha=0.15)
