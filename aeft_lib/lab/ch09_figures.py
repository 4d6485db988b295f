"""Figures of chapter 9: the field as a map, the league, published against reproduced, failures."""

from collections.abc import Collection, Mapping, Sequence
from textwrap import fill
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aeft_lib.lab.ch08_figures import interval
from aeft_lib.lab.figures import (
    TEXT_WIDTH,
    class_colours,
    colour_legend,
    name_dots,
    outline,
    picture_grid,
    show,
)
from aeft_lib.studies.effects import REPEATS
from aeft_lib.studies.findings import ranks
from aeft_lib.studies.systems import ENDS, FAMILIES, NOT_RUN, PLACES, SYSTEMS

PICTURES_DPI = 85  # of many photos, in a notebook of 300 KB; files have the style's resolution
LETTERS = 17  # of a title in an inch of its column
GREY = "0.55"
IN_A_ROW = 3  # failures
HEADS = {"seed": "seeds", "pseudo": "pseudo-labels", "segmentation": "network"}
ROUND = "↺"


class Failure(NamedTuple):
    """The scene in which a system loses most against GAP.  loss: points of IoU, below 0 a loss.

    name, method: of the system, in code and in words.  key: of the row that was scored.
    image: (H, W, 3) uint8.  truth, base, own: label maps (H, W).
    """

    name: str
    method: str
    scene: int
    loss: float
    key: str
    image: np.ndarray
    truth: np.ndarray
    base: np.ndarray
    own: np.ndarray


def colour_of(family: str) -> str:
    """The colour of a family's methods in all figures."""
    return f"C{FAMILIES.index(family)}"


def _marker(family: str, *, is_paper: bool) -> dict[str, Any]:
    """How a system's dot looks; the paper's own is a star."""
    shape = {"marker": "*", "markersize": 8} if is_paper else {"marker": "o"}
    return shape | {"color": colour_of(family)}


def field_map(run: Collection[str] = ()) -> Figure:
    """The way of an image and which method changes what, a line a method, by family.

    A box is changed; a round arrow says that a later place labels an earlier one again.  Names of
    systems that are not in `run` are grey.  Families are named, in the colours of all figures.
    """
    ordered = [known for f in FAMILIES for known in SYSTEMS if known.family == f]
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH, 4.2))
    before = axis.text(-0.68, -1.6, "image + tags", ha="right", va="center", fontsize=6)
    for x, place in enumerate(PLACES):
        box = {"boxstyle": "round,pad=0.35", "facecolor": "0.92", "edgecolor": "0.4"}
        here = axis.text(x, -1.6, place, ha="center", va="center", fontsize=5, bbox=box)
        ends = {"patchA": before.get_bbox_patch(), "patchB": here.get_bbox_patch()}
        arrow = {"arrowstyle": "->", "color": "0.4", "linewidth": 0.8, "shrinkA": 2, "shrinkB": 1}
        axis.annotate("", (x, -1.6), before.get_position(), arrowprops=arrow | ends)
        before = here
    y = 0.0
    for i, known in enumerate(ordered):
        colour, first = colour_of(known.family), not i or known.family != ordered[i - 1].family
        y += 0.45 if i and first else 0
        if first:
            middle = y + (sum(other.family == known.family for other in ordered) - 1) / 2
            style = {"rotation": 90, "ha": "center", "va": "center", "fontsize": 5.5}
            axis.text(-2.75, middle, known.family, color=colour, **style)
        places = [PLACES.index(place) for place in known.changes]
        axis.plot(places, [y] * len(places), "s-", color=colour, markersize=6, linewidth=1.2)
        if known.rounds:
            axis.text(places[0] - 0.22, y, ROUND, color=colour, ha="right", va="center")
        name = "0.1" if known.name in run else GREY
        axis.text(-0.68, y, known.title, ha="right", va="center", fontsize=6, color=name)
        axis.text(3.35, y, known.idea, va="center", fontsize=5.5, color=colour)
        y += 1
    axis.set(xlim=(-2.85, 5.35), ylim=(y, -2.3))
    axis.axis("off")
    return figure


def idea_grid(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    labels: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> Figure:
    """`figures.picture_grid` at the screen's resolution, long titles in two lines."""
    width = int(LETTERS * TEXT_WIDTH / len(titles))
    figure = picture_grid(rows, [fill(title, width) for title in titles], labels, classes)
    figure.set_dpi(PICTURES_DPI)
    return figure


def league_forest(lines: pd.DataFrame) -> Figure:
    """Differences to the GAP base with 95 % intervals, a panel an end, a line a system.

    lines: of `league.lines`.  Filled dots have an adjusted p below 0.05; a dot without a line is a
    single repeat.
    """
    names = list(dict.fromkeys(lines["method"]))
    size = {"figsize": (TEXT_WIDTH, 0.9 + 0.17 * len(names))}
    figure, axes = plt.subplots(1, len(ENDS), sharey=True, **size)
    for axis, end in zip(axes, ENDS, strict=True):
        for line in lines[lines["end"] == end].itertuples():
            place, colour = names.index(line.method), colour_of(line.family)
            if not line.pairs or line.shared:
                word = f"as {line.shared}" if line.shared and line.repeats else line.verdict
                style = {"fontsize": 5, "color": GREY, "ha": "center", "va": "center"}
                axis.text(0.5, place, word, transform=axis.get_yaxis_transform(), **style)
                continue
            face = colour if line.p_adjusted < 0.05 else "white"
            ends = (line.difference_low, line.difference_high)
            interval(axis, line.difference, *ends, place, colour, face)
        axis.set(xlabel="mIoU − GAP (points)", title=HEADS[end])
        if axis.lines:
            axis.axvline(0, color="0.3", linewidth=0.6)
        else:
            axis.set_xticks([])
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def published_scatter(lines: pd.DataFrame) -> Figure:
    """Reproduced against published mIoU, a panel an end, a dot a system with both numbers.

    Published numbers of another task are left out.  Vertical lines are 95 % intervals over repeats.
    The title has Spearman's rank correlation over the filled dots, see `findings.ranks`; hollow
    ones have too few repeats for it.
    """
    figure, axes = plt.subplots(1, len(ENDS), figsize=(TEXT_WIDTH, 2.9))
    for axis, end in zip(axes, ENDS, strict=True):
        own = lines[(lines["end"] == end) & (lines["shared"] == "") & lines["comparable"]]
        both = own.dropna(subset=["published", "mean"])
        _dots(axis, [(line.published, line._asdict()) for line in both.itertuples()])
        rank = ranks(lines, end)
        told = f"n = {rank.n}"
        told = f"ρ {rank.rho:+.2f}, {told}" if np.isfinite(rank.rho) else told
        axis.set(title=f"{HEADS[end]}\n{told}", xlabel="published, VOC (%)")
    axes[0].set_ylabel("mIoU here (%)")
    return figure


def over_the_years(results: pd.DataFrame, lines: pd.DataFrame) -> Figure:
    """The poster's scatter, VOC test against the venue's date, and below it networks of here.

    results: ``method, date, voc_test``, a line a method.  lines: of `league.lines`.
    """
    size = {"figsize": (TEXT_WIDTH, 4.0), "height_ratios": (3, 2)}
    figure, (above, below) = plt.subplots(2, 1, sharex=True, **size)
    reproduced = []
    titles = dict(zip((s.method for s in SYSTEMS), SYSTEMS, strict=True))
    ours = lines[lines["end"] == "segmentation"].set_index("method")
    for line in results.itertuples():
        known = titles[line.method]
        style = _marker(known.family, is_paper=known.is_paper)
        above.plot(line.date, line.voc_test, linestyle="", **style)
        own = ours.loc[known.title]
        if own["repeats"] and not own["shared"]:
            reproduced.append((line.date, {**own, "method": known.title}))
    name_dots(above, results["date"], results["voc_test"], results["method"])
    _dots(below, reproduced)
    if not ours["repeats"].any():
        _empty(below)
    above.set(ylabel="VOC 2012 test (%)", title="the poster")
    below.set(ylabel="mIoU here (%)", xlabel="date of the venue", title="in this harness")
    above.xaxis.set_major_locator(plt.MultipleLocator(1))
    return figure


def _dots(axis: Axes, parts: Sequence[tuple[float, Mapping[str, Any]]]) -> None:
    """Means of systems with their intervals and names.  parts: x and a line of the league, each."""
    spans = []
    for x, part in parts:
        style = _marker(part["family"], is_paper=part["name"] == "aeft")
        face = style["color"] if part["repeats"] >= REPEATS else "white"
        if np.isfinite(part["low"]):
            spans.append(([x, x], [part["low"], part["high"]]))
            axis.plot(*spans[-1], color=style["color"], linewidth=0.8)
        axis.plot(x, part["mean"], linestyle="", markerfacecolor=face, **style)
    names = [short_title(part["method"]) for _, part in parts]
    name_dots(axis, [x for x, _ in parts], [part["mean"] for _, part in parts], names, spans)


def short_title(title: str) -> str:
    """A system's title where room is short: a reconstruction stays called one."""
    return title.removesuffix(" (the paper)")


def _empty(axis: Axes) -> None:
    """A panel that has nothing to show says so."""
    style = {"ha": "center", "va": "center", "transform": axis.transAxes, "color": GREY}
    axis.text(0.5, 0.5, NOT_RUN, **style)
    axis.set_yticks([])


def failure_grid(cases: Sequence[Failure], classes: Sequence[str] = ()) -> Figure:
    """GAP's labels and the system's own beside the scene where it loses most; three in a row.

    The truth is outlined in the scene.  classes: K names, for a legend of those that maps have.
    """
    lines = max(1, -(-len(cases) // IN_A_ROW))
    columns = 3 * IN_A_ROW
    size = (TEXT_WIDTH, lines * (TEXT_WIDTH / columns + 0.22) + (0.4 if classes else 0))
    figure, axes = plt.subplots(lines, columns, squeeze=False, figsize=size, dpi=PICTURES_DPI)
    for axis in axes.flat:
        axis.axis("off")
    if not cases:
        axes[0, 0].text(0, 0.5, "no system's maps are at hand: not run", fontsize=6)
    for i, case in enumerate(cases):
        row, start = i // IN_A_ROW, 3 * (i % IN_A_ROW)
        name, _, note = short_title(case.method).partition(" (")  # a note has a line of its own
        own = f"{name} {case.loss:+.0f}" + (f"\n({note}" if note else "")
        titles = ("scene, truth", "GAP", own)
        pictures = (case.image, case.base, case.own)
        for axis, picture, title in zip(axes[row, start:], pictures, titles, strict=False):
            show(axis, picture)
            axis.set_title(title, fontsize=4.2)
        outline(axes[row, start], case.truth)
    if classes:
        maps = [labels for case in cases for labels in (case.truth, case.base, case.own)]
        colour_legend(figure, class_colours(maps, classes))
    return figure
