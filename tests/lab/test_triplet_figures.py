"""Figures of the second phase, tested as data like those of `test_figures`."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import numpy as np
import pandas as pd
import pytest

from aeft_lib import paths
from aeft_lib.lab import ch04_figures, figures
from aeft_lib.maps.labels import voc_palette

pytestmark = pytest.mark.usefixtures("close_figures")
SD_2 = 2 * 2**0.5  # of two values that are 4 apart


def texts(legend) -> list[str]:
    return [text.get_text() for text in legend.get_texts()]


# --- stretched ------------------------------------------------------------------------------------


def test_stretched_repeats_the_nearest_cell_rows_and_columns_apart():
    small = np.array([[1, 2, 3], [4, 5, 6]])
    wide = figures.stretched(small, np.zeros((4, 6, 3)))
    assert wide.tolist() == [[1, 1, 2, 2, 3, 3]] * 2 + [[4, 4, 5, 5, 6, 6]] * 2
    tall = figures.stretched(small, np.zeros((5, 3)))  # 5 rows of 2 cells: 0, 0.4, 0.8, 1.2, 1.6
    assert tall.tolist() == [[1, 2, 3]] * 3 + [[4, 5, 6]] * 2


def test_stretched_leaves_a_map_of_the_same_size_alone_and_refuses_what_is_no_map():
    full = np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(figures.stretched(full, np.zeros((3, 4, 3))), full)
    with pytest.raises(ValueError, match="zip"):
        figures.stretched(full[None], np.zeros((3, 4, 3)))


# --- triplet_diagram ------------------------------------------------------------------------------


def test_triplet_diagram_shows_four_pictures_a_row_and_the_pair_of_each():
    drawn = {f"picture {i}": np.full((2, 2, 3), i / 10) for i in range(7)} | {
        "labels": np.array([[0, 15], [1, 255]])
    }
    values = {
        "attract": {"e_A": [0.5, 0.0], "e_P": [0.2, -0.1]},
        "repel": {"a": [0.3, 0.0], "n": [0.0, -0.4]},
    }
    lines = [
        (p, e, c, v)
        for p, pair in values.items()
        for e, both in pair.items()
        for c, v in enumerate(both)
    ]
    figure = ch04_figures.triplet_diagram(
        drawn, pd.DataFrame(lines, columns=["pair", "embedding", "class", "value"])
    )
    rows = np.array(figure.axes).reshape(2, 5)
    shown = {
        axis.get_title(): np.asarray(axis.get_images()[0].get_array()) for axis in rows[:, :4].flat
    }
    assert list(shown) == list(drawn)
    for title in list(drawn)[:7]:
        np.testing.assert_array_equal(shown[title], drawn[title])
    np.testing.assert_array_equal(shown["labels"], voc_palette()[drawn["labels"]] / 255)
    for axis, (pair, embeddings) in zip(rows[:, 4], values.items(), strict=True):
        assert axis.get_title() == pair
        assert texts(axis.get_legend()) == list(embeddings)
        heights = [[bar.get_height() for bar in bars] for bars in axis.containers]
        np.testing.assert_allclose(heights, list(embeddings.values()))
        assert [text.get_text() for text in axis.get_xticklabels()] == ["0", "1"]


# --- over_expansion -------------------------------------------------------------------------------


def progress(repeats=(0, 1)) -> pd.DataFrame:
    """Two rows that start alike; repeats are 4 apart.  Rigid loses precision, gains recall."""
    metrics = {
        "rigid": {"precision": (60, 50, 40), "recall": (30, 35, 45), "miou_best": (40, 41, 39)},
        "soft": {"precision": (60, 61, 62), "recall": (30, 31, 32), "miou_best": (40, 42, 43)},
    }
    return pd.DataFrame(
        {
            "label": label,
            "repeat": n,
            "step": 5 * i,
            **{metric: values[i] + 4 * n for metric, values in row.items()},
        }
        for label, row in metrics.items()
        for n in repeats
        for i in range(3)
    )


def curves(axis) -> list[list[float]]:
    return [line.get_ydata().tolist() for line in axis.lines if len(line.get_xdata())]


def test_over_expansion_draws_means_over_repeats_with_their_sd_at_the_steps():
    figure = ch04_figures.over_expansion(progress())
    precision, recall, miou = figure.axes
    assert [axis.get_title() for axis in figure.axes] == [
        "precision (%), one t",
        "recall (%), one t",
        "mIoU (%), best t",
    ]
    assert curves(precision) == [[62, 52, 42], [62, 63, 64]]
    assert curves(recall) == [[32, 37, 47], [32, 33, 34]]
    assert curves(miou) == [[42, 43, 41], [42, 44, 45]]
    assert precision.lines[0].get_xdata().tolist() == list(miou.get_xticks()) == [0, 5, 10]
    band = precision.collections[0].get_paths()[0].vertices
    last = band[band[:, 0] == 10, 1]
    assert (last.min(), last.max()) == pytest.approx((42 - SD_2, 42 + SD_2))


def test_over_expansion_names_its_lines_once_below_the_panels():
    figure = ch04_figures.over_expansion(progress())
    assert [axis.get_legend() for axis in figure.axes] == [None, None, None]
    assert texts(figure.legends[0]) == ["rigid", "soft"]


def test_over_expansion_of_one_repeat_is_that_repeat():
    figure = ch04_figures.over_expansion(progress(repeats=[1]))
    assert curves(figure.axes[0]) == [[64, 54, 44], [64, 65, 66]]


# --- triplet_bars ---------------------------------------------------------------------------------

PUBLISHED = {
    "base": {"precision": 66.5, "recall": 75.6, "miou": 54.2},
    "rigid": {"precision": 65.1, "recall": 76.1, "miou": 53.4},
    "never run": {"precision": 1.0, "recall": 1.0, "miou": 1.0},
}


def ablation() -> pd.DataFrame:
    """mIoU minus "base": rigid -1, -5, ours +2, +6; precision mIoU + 10, recall 90 - mIoU."""
    values = {"rigid": (39.0, 37.0), "base": (40.0, 42.0), "ours": (42.0, 48.0)}
    lines = [
        (label, n, v + 10, 90 - v, v) for label, both in values.items() for n, v in enumerate(both)
    ]
    return pd.DataFrame(lines, columns=["label", "repeat", "precision", "recall", "miou"]).sample(
        frac=1, random_state=0
    )


def bars(axis, labels) -> dict[str, float]:
    return {
        labels[round(bar.get_y() + bar.get_height() / 2)]: bar.get_width() for bar in axis.patches
    }


def diamonds(axis) -> list[tuple[float, float]]:
    return [tuple(np.ravel(line.get_data())) for line in axis.lines if line.get_marker() == "D"]


def test_triplet_bars_are_mean_paired_differences_with_sd_and_a_dot_a_repeat():
    figure = ch04_figures.triplet_bars(ablation(), PUBLISHED, baseline="base")
    precision, recall, miou = figure.axes
    labels = [text.get_text() for text in precision.get_yticklabels()]
    assert sorted(labels) == ["ours", "rigid"]
    assert [axis.get_title() for axis in figure.axes] == ["precision", "recall", "mIoU"]
    for axis, sign in ((precision, 1), (recall, -1), (miou, 1)):
        assert bars(axis, labels) == pytest.approx({"rigid": -3.0 * sign, "ours": 4.0 * sign})
        dots = sorted(x for collection in axis.collections for x in collection.get_offsets()[:, 0])
        assert dots == sorted(sign * x for x in (-5, -1, 2, 6))
        whiskers = [
            line.get_xdata()
            for line in axis.lines
            if len(line.get_xdata()) == 2 and np.ptp(line.get_xdata())
        ]
        assert sorted(map(min, whiskers)) == pytest.approx(sorted(sign * x - SD_2 for x in (-3, 4)))
    assert [axis.get_xlabel() for axis in figure.axes] == [
        f"points from {x}" for x in ("51.0", "49.0", "41.0")
    ]


def test_triplet_bars_set_hollow_diamonds_at_the_papers_differences():
    figure = ch04_figures.triplet_bars(ablation(), PUBLISHED, baseline="base")
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    for axis, difference in zip(figure.axes, (-1.4, 0.5, -0.8), strict=True):
        assert diamonds(axis) == [pytest.approx((difference, labels.index("rigid")))]
    assert all(
        line.get_markerfacecolor() == "none"
        for a in figure.axes
        for line in a.lines
        if line.get_marker() == "D"
    )
    assert texts(figure.legends[0]) == ["ours, a repeat", "paper (VOC train: another task)"]


def test_triplet_bars_pair_only_repeats_that_the_baseline_has():
    table = ablation().query("label != 'base' or repeat == 0")
    figure = ch04_figures.triplet_bars(table, PUBLISHED, baseline="base")
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert bars(figure.axes[2], labels) == pytest.approx({"rigid": -1.0, "ours": 2.0})


# --- quirk_effects --------------------------------------------------------------------------------


def test_quirk_effects_are_means_with_sd_from_both_starts():
    means = {
        ("momentum", "reference"): 1.0,
        ("samples", "reference"): -3.0,
        ("momentum", "corrected"): 5.0,
    }
    effects = pd.DataFrame(
        {
            "quirk": quirk,
            "start": start,
            "repeat": n,
            "miou": m - 2 + 4 * n,
            "precision": 2 * m,
            "recall": -m,
        }
        for (quirk, start), m in means.items()
        for n in (0, 1)
    )
    figure = ch04_figures.quirk_effects(effects)
    assert [axis.get_title() for axis in figure.axes] == ["mIoU", "precision", "recall"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["momentum", "samples"]
    for axis, factor in zip(figure.axes, (1, 2, -1), strict=True):
        dots = [
            line.get_xydata()
            for line in axis.lines
            if line.get_marker() == "o" and len(line.get_xdata())
        ]
        drawn = {(round(y), y > round(y), x) for line in dots for x, y in line if np.isfinite(x)}
        assert drawn == {
            (0, False, factor),
            (1, False, -3 * factor),
            (0, True, 5 * factor),
        }  # quirk, is corrected, mean
    spreads = [line.get_xdata() for line in figure.axes[0].lines if line.get_marker() == "None"]
    ends = sorted((min(x), max(x)) for x in spreads if np.ptp(x) > 0)
    assert ends == [pytest.approx((m - SD_2, m + SD_2)) for m in (-3, 1, 5)]
    assert texts(figure.legends[0]) == ["reference", "corrected"]
    assert all(axis.get_legend() is None for axis in figure.axes)


DRAW = """
import sys
from pathlib import Path

import test_triplet_figures as t
from aeft_lib.lab import ch04_figures, figures

figure = ch04_figures.triplet_bars(t.ablation(), t.PUBLISHED, "base")
figures.save(figure, "triplet_ablation", t.ablation(), Path(sys.argv[1]))
"""


def test_two_draws_in_two_processes_are_the_same_bytes(tmp_path):
    """Whatever the order of sets, which hangs on the process."""
    where = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    where = os.pathsep.join([where, str(paths.ROOT)])
    for number in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": number, "PYTHONPATH": where}
        command = [sys.executable, "-c", DRAW, tmp_path / number]
        subprocess.run(command, env=environment, check=True)
    for suffix in ("csv", "png", "pdf"):
        one, two = (tmp_path / n / f"triplet_ablation.{suffix}" for n in ("1", "2"))
        assert one.read_bytes() == two.read_bytes(), suffix
