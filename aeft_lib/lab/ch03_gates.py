"""Chapter 3: rows of the pooling layer against GAP, and what its gates learn."""

import itertools
from collections.abc import Iterator, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from scipy import stats

from aeft_lib.lab import told, untrained
from aeft_lib.lab.figures import DOTS, SD_BARS, TEXT_WIDTH
from aeft_lib.lab.session import Session
from aeft_lib.paper import gpp
from aeft_lib.studies import catalogue

FLOOR = -8.0  # points: a row that collapses would hide all other differences
SCENES = 40  # enough for a mean gate, and seconds


def gates(session: Session, row: str = "gated") -> pd.DataFrame:
    """Mean gate weights over the first 40 scored scenes: ``repeat, step, sign, side, weight``."""
    lines = []
    for repeat in range(session.n_repeats):
        network = session.network(row, repeat)
        indices = range(min(SCENES, len(session.scenes)))
        cams = [session.output(network, index).cam for index in indices]
        maps = [network.pooling.gate_maps(cam) for cam in cams]
        steps = enumerate(step_names(network.pooling))
        for (step, name), sign in itertools.product(steps, ("positive", "negative")):
            means = [getattr(m[step], sign).mean(dim=(0, 2, 3)) for m in maps]
            weights = torch.stack(means).mean(dim=0).tolist()
            names = {"repeat": repeat, "step": name, "sign": sign}
            for side, weight in zip(("first map", "next level"), weights, strict=True):
                lines.append(names | {"side": side, "weight": weight})
    return pd.DataFrame(lines)


def silence(session: Session, row: str) -> Iterator[str]:
    """What a row's classifier says of the first scored scene, a line a repeat."""
    if not session.has(row):
        yield untrained.left_out([catalogue.row(row)])
        return
    for repeat in range(session.n_repeats):
        output = session.output(session.network(row, repeat), 0)
        above, zero = bool(output.cam.max() > 0), bool((output.logits == 0).all())
        yield f"repeat {repeat}: CAM above zero somewhere: {above}, all logits zero: {zero}"


def gates_told(gates: pd.DataFrame) -> str:
    """Which gates are more open than one half, where training starts, in every repeat; Markdown."""
    where = told.on_one_side(gates, ("sign", "step", "side"), "weight", 0.5)
    repeats, sentences = gates["repeat"].nunique(), []
    for sign, of_sign in where.groupby("sign", sort=False):
        counts = {name: int((of_sign == name).sum()) for name in ("above", "below", "both")}
        counts[f"changing side between the {repeats} repeats"] = counts.pop("both")
        sentences.append(
            f"**{sign} evidence**, {len(of_sign)} mean gates against one half: "
            f"{told.in_words(counts)}."
        )
    return told.bullets(sentences)


def order_told(ours: pd.Series, published: pd.Series) -> str:
    """How far two orders of the same rows agree, in a sentence."""
    rank, p = stats.spearmanr(ours, published)
    kind = "neither agree nor are they opposed: chance gives such a value too"
    if p < 0.05:
        kind = "agree" if rank > 0 else "are opposed"
    return f"rank correlation {rank:.2f} over {len(ours)} rows (p = {p:.2f}): the two orders {kind}"


def step_names(pooling: gpp.PyramidPooling) -> list[str]:
    """What every fusion step joins: "1→2" for levels 1 and 2 of a coarse-to-fine layer."""
    levels = pooling.levels if pooling.fusion == "gated" else pooling.levels[::-1]
    return [f"{a}→{b}" for a, b in itertools.pairwise(levels)]


def ablation_bars(
    table: pd.DataFrame, published: Mapping[str, float], baseline: str = "GAP"
) -> Figure:
    """Rows of a study as bars of their difference to the baseline, paired by repeat.

    Bars are mean ± sd and start at a true zero, a dot is a repeat, mIoU stands at the edge.  The
    published values have a panel and scale of their own.
    table: long, with ``label, repeat, miou``; means over repeats, without ``repeat``, give bars
    alone.  published: label -> percent, of the baseline too.
    """
    has_repeats = "repeat" in table
    table = table if has_repeats else table.assign(repeat=0)
    wide = table.pivot_table(index="repeat", columns="label", values="miou", sort=False)
    order = [label for label in dict.fromkeys(table["label"]) if label != baseline]
    means, start = wide[order].mean(), wide[baseline].mean()
    gains = wide[order].sub(wide[baseline], axis=0).melt(var_name="label", value_name="gain")
    size = {"figsize": (TEXT_WIDTH, 2.6), "width_ratios": (3, 2)}
    figure, (ours, theirs) = plt.subplots(1, 2, sharey=True, **size)
    sns.barplot(gains, x="gain", y="label", order=order, ax=ours, **SD_BARS)
    if has_repeats:
        sns.stripplot(gains, x="gain", y="label", order=order, ax=ours, **DOTS)
    floor = max(gains["gain"].min() - 1, FLOOR)
    ours.set_xlim(floor, max(gains["gain"].max() + 1, 2))
    for label in wide[order].columns[means - start < floor]:
        ours.text(floor, order.index(label), " ◂ off the scale", fontsize=6, va="center")
    ours.set_title(f"ours, unseen scenes ({baseline} {start:.1f})")
    known = pd.Series({name: published[name] for name in order if name in published}, dtype=float)
    theirs_start = published.get(baseline, np.nan)
    bars = {"order": order, "ax": theirs, "color": "C1", "alpha": 0.6}
    sns.barplot(x=known - theirs_start, y=known.index, **bars)
    theirs.set_title(f"paper, VOC train ({baseline} {theirs_start:.1f})")
    for axis, values in ((ours, means), (theirs, known)):
        axis.set(xlabel=f"mIoU − {baseline} (points)", ylabel="")
        axis.axvline(0, color="0.3", linewidth=0.6)
        edge = {"transform": axis.get_yaxis_transform(), "fontsize": 6, "va": "center"}
        for label, value in values.items():
            axis.text(1.0, order.index(label), f"{value:.1f}", **edge)
    return figure


def gate_balance(gates: pd.DataFrame) -> Figure:
    """Mean weight of the coarser and the finer map in every fusion step, by sign: mean ± sd.

    gates: long, with ``step, sign, side, weight`` (0..1), one line per repeat.
    """
    figure, axes = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 1.9), sharey=True)
    style = {"errorbar": "sd", "linewidth": 1, "markersize": 3, "dodge": 0.1}
    for axis, (sign, rows) in zip(axes, gates.groupby("sign", sort=False), strict=True):
        sns.pointplot(rows, x="step", y="weight", hue="side", ax=axis, **style)
        axis.set(title=f"{sign} evidence", xlabel="fusion step (levels)", ylabel="mean gate")
        axis.legend(title=None)
        axis.axhline(0.5, color="0.8", linewidth=0.6, zorder=0)
    return figure
