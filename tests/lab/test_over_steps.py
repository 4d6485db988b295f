"""Figures along the steps of long trainings, from a ledger that the test writes."""

import matplotlib

matplotlib.use("agg")

import numpy as np
import pytest
from ledger_curves import LABEL, write
from matplotlib import pyplot as plt

from aeft_lib.lab import over_steps
from aeft_lib.studies import curves, ledger


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "home", lambda: tmp_path)
    return tmp_path


def test_the_figure_has_a_line_for_the_pictures_that_were_run(home):
    for there in (["collages"], ["collages", "photos"]):
        profile = {name: key for key, name in curves.PICTURES.items()}[there[-1]]
        write(home, profile, "gap", 0, [40.0, 50.0, 50.0, 50.0])
        write(home, profile, "gated", 0, [38.0, 51.0, 51.0, 52.0])
        shown = over_steps.differences(curves.kept(), "gated", "gap")
        figure = over_steps.figure(shown, LABEL)
        lines = figure.axes[0].lines[:-1]
        named = {line.get_label(): line.get_ydata().tolist() for line in lines}
        assert named == {pictures: [-2.0, 1.0, 1.0, 2.0] for pictures in there}
        assert [axis.get_title() for axis in figure.axes] == [*curves.METRICS.values()]
        plt.close(figure)


def test_an_empty_ledger_has_no_line(home):
    table = curves.kept()
    figure = over_steps.figure(over_steps.differences(table, "gated", "gap"), LABEL)
    assert [len(axis.lines) for axis in figure.axes] == [1, 1, 1]  # zero
    gates = over_steps.gates(table, "gated")
    assert over_steps.gates_told(gates) == "- collages: *not run* yet.\n- photos: *not run* yet."
    assert [len(axis.lines) for axis in over_steps.gate_figure(gates).axes] == [1, 1]  # one half
    plt.close("all")


def test_embeddings_have_a_line_each_and_a_panel_for_the_pictures_that_were_run(home):
    columns = {"e_anchor": [0.4, 0.6, 0.8, 1.0], "e_positive": [0.1, 0.15, 0.2, 0.25]}
    for repeat in range(2):
        write(home, "evening-voc", "gated", repeat, [50.0] * 4, **columns)
    shown = over_steps.embeddings(curves.kept(), ["gated", "attract_soft"])
    (axis,) = (figure := over_steps.embedding_figure(shown)).axes
    assert axis.get_title() == "photos"
    named = {line.get_label(): line.get_ydata().tolist() for line in axis.lines}
    drawn = {"gated, $e_A$": columns["e_anchor"], "gated, $e_P$": columns["e_positive"]}
    assert named == {label: pytest.approx(values) for label, values in drawn.items()}
    plt.close(figure)
    assert over_steps.embeddings(curves.kept(), ["attract_soft"]).empty


def gated(home, repeat: int, ends: dict[str, float]) -> None:
    """A curve of G on photos whose gates go from one half to these ends, straight."""
    columns = {name: np.linspace(0.5, end, 4) for name, end in ends.items()}
    write(home, "evening-voc", "gated", repeat, [50.0] * 4, **columns)


def test_gates_are_told_by_their_sides_and_their_spread(home):
    for repeat, shift in enumerate((-0.01, 0.0, 0.01)):
        ends = {"positive_1_first": 0.7, "positive_1_next": 0.5, "negative_1_first": 0.3}
        gated(home, repeat, {name: end + shift for name, end in ends.items()})
    shown = over_steps.gates(curves.kept(), "gated")
    assert set(zip(shown["sign"], shown["fusion"], shown["side"], strict=True)) == {
        ("positive", "1", "first"),
        ("positive", "1", "next"),
        ("negative", "1", "first"),
    }
    told = over_steps.gates_told(shown).splitlines()[1]
    assert told == (
        "- photos, 400 steps, 3 repeats. Positive evidence: of 2 gates 1 end above one half in every "
        "repeat, 0 below it in every repeat; the same gate differs by up to 0.02 between repeats. "
        "Negative evidence: of 1 gates 0 end above one half in every repeat, 1 below it in every "
        "repeat; the same gate differs by up to 0.02 between repeats."
    )
    figure = over_steps.gate_figure(shown)
    assert [axis.get_title() for axis in figure.axes] == ["positive, step 1", "negative, step 1"]
    (legend,) = figure.legends
    named = [text.get_text() for text in legend.get_texts()]
    assert named == ["photos, fused so far", "photos, next level"]
    assert [line.get_ydata()[-1] for line in figure.axes[1].lines[:3]] == pytest.approx(
        [0.29, 0.3, 0.31]
    )
    plt.close(figure)


def test_gates_of_one_repeat_have_no_spread(home):
    gated(home, 0, {"positive_1_first": 0.7, "negative_1_first": 0.2})
    told = over_steps.gates_told(over_steps.gates(curves.kept(), "gated")).splitlines()[1]
    assert told == (
        "- photos, 400 steps, 1 repeat. Positive evidence: of 1 gates 1 end above one half, 0 below. "
        "Negative evidence: of 1 gates 0 end above one half, 1 below."
    )


def test_embeddings_are_told_from_the_first_step_to_the_last(home):
    columns = {"e_anchor": [1.0, 0.9, 0.8, 0.8], "e_positive": [0.5, 0.5, 0.5, 0.6]}
    write(home, "evening", "attract_soft", 0, [50.0] * 4, **columns)
    told = over_steps.embeddings_told(curves.kept(), ["attract_soft", "gpp_only"]).splitlines()
    assert told[0] == (
        "- collages, `attract_soft`: e_A from 1.00 to 0.80, e_P from 0.50 to 0.60, "
        "e_P/e_A from 0.50 to 0.75, in 300 steps, 1 repeat(s)."
    )
    assert told[1:] == [
        f"- {place}: *not run* yet."
        for place in ("collages, `gpp_only`", "photos, `attract_soft`", "photos, `gpp_only`")
    ]
