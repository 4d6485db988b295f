"""Differences over steps, from a ledger that the test writes."""

import matplotlib

matplotlib.use("agg")

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from aeft_lib.lab import over_steps
from aeft_lib.studies import ledger

LABEL = "G − GAP"


def write(home, profile: str, row: str, repeat: int, miou: list[float]) -> None:
    """A curve with so many points, 100 steps apart."""
    n = len(miou)
    folder = home / profile / row / str(repeat) / "curve"
    folder.mkdir(parents=True)
    points = np.arange(1, n + 1)
    table = pd.DataFrame({"point": points, "step": 100 * points, "part": points / n, "miou": miou})
    table = table.assign(precision=60.0, recall=70.0, half_area=0.1, tag_map=90.0)
    table.to_csv(folder / "steps.csv", index=False)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "home", lambda: tmp_path)
    return tmp_path


def test_an_empty_ledger_is_not_run(home):
    table = over_steps.kept()
    assert table.empty
    told = over_steps.sentences(table, "gated", "gap", LABEL)
    assert told == "- collages: *not run* yet.\n- photos: *not run* yet."
    assert over_steps.differences(table, "gated", "gap").empty


@pytest.mark.parametrize(
    ("repeats", "gains", "verdict"),
    [
        (2, [1.0, 1.2], "undecided (2 of 5)"),
        (5, [1.0, 1.2, 0.9, 1.1, 1.0], "holds"),
        (5, [-1.0, -1.2, -0.9, -1.1, -1.0], "fails"),
        (5, [1.0, -1.2, 0.9, -1.1, 1.0], "undecided"),
    ],
)
def test_the_interval_of_enough_repeats_decides(home, repeats, gains, verdict):
    for repeat in range(repeats):
        write(home, "evening-voc", "gap", repeat, [40.0, 50.0])
        write(home, "evening-voc", "gated", repeat, [35.0, 50.0 + gains[repeat]])
    told = over_steps.sentences(over_steps.kept(), "gated", "gap", LABEL).splitlines()
    assert told[0] == "- collages: *not run* yet."
    assert told[1].endswith(f"-5.0 after 100. *{verdict}*")
    assert f"ahead in {sum(gain > 0 for gain in gains)} of {repeats} repeats" in told[1]


def test_differences_are_paired_by_repeat_at_the_same_part(home):
    write(home, "evening", "gap", 0, [40.0, 50.0])
    write(home, "evening", "gap", 1, [41.0, 52.0])
    write(home, "evening", "gated", 0, [30.0, 51.0])
    write(home, "evening", "gated", 2, [0.0, 0.0])  # no partner
    table = over_steps.kept()
    shown = over_steps.differences(table, "gated", "gap")
    miou = shown[shown["metric"] == "miou"].sort_values("step")
    assert miou["mean"].tolist() == [-10.0, 1.0]
    assert miou["n"].tolist() == [1, 1]
    assert miou["low"].isna().all()
    assert table["half_area"].tolist() == [10.0] * len(table)  # percent of the picture


def test_the_figure_has_a_line_a_kind_of_pictures(home):
    for profile in over_steps.PROFILES:
        write(home, profile, "gap", 0, [40.0, 50.0])
        write(home, profile, "gated", 0, [38.0, 51.0])
    figure = over_steps.figure(over_steps.differences(over_steps.kept(), "gated", "gap"), LABEL)
    first = figure.axes[0]
    named = {line.get_label(): line.get_ydata().tolist() for line in first.lines[:2]}
    assert named == {"collages": [-2.0, 1.0], "photos": [-2.0, 1.0]}
    assert [axis.get_title() for axis in figure.axes] == [*over_steps.METRICS.values()]
    plt.close(figure)
