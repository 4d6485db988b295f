"""Differences over steps, from a ledger that the test writes."""

import pytest
from ledger_curves import LABEL, write

from aeft_lib.lab import over_steps
from aeft_lib.studies import curves, ledger


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "home", lambda: tmp_path)
    return tmp_path


def test_an_empty_ledger_is_not_run(home):
    table = curves.kept()
    assert table.empty
    told = curves.sentences(table, "gated", "gap", LABEL)
    assert told == "- collages: *not run* yet.\n- photos: *not run* yet."
    assert over_steps.differences(table, "gated", "gap").empty
    assert curves.course(table, "gated", ["miou"]).empty


@pytest.mark.parametrize(
    ("repeats", "gains", "where"),
    [
        (2, [1.0, 1.2], "2 of 5 repeats, which decide nothing"),
        (5, [1.0, 1.2, 0.9, 1.1, 1.0], "the interval lies above 0"),
        (5, [-1.0, -1.2, -0.9, -1.1, -1.0], "the interval lies below 0"),
        (5, [1.0, -1.2, 0.9, -1.1, 1.0], "0 is in the interval"),
    ],
)
def test_the_interval_of_enough_repeats_is_read(home, repeats, gains, where):
    for repeat in range(repeats):
        write(home, "evening-voc", "gap", repeat, [40.0, 45.0, 48.0, 50.0])
        write(home, "evening-voc", "gated", repeat, [35.0, 45.0, 48.0, 50.0 + gains[repeat]])
    told = curves.sentences(curves.kept(), "gated", "gap", LABEL).splitlines()
    assert told[0] == "- collages: *not run* yet."
    ahead = f"ahead in {sum(gain > 0 for gain in gains)} of {repeats} repeats"
    assert f" ({where}; {ahead}), -5.0 [-5.0, -5.0] after 100. At the end, " in told[1]


def test_the_steps_at_which_a_difference_turns_are_told(home):
    for repeat, noise in enumerate((0.0, 0.1, -0.1, 0.05, -0.05)):
        write(home, "evening-voc", "gap", repeat, [40.0, 45.0, 48.0, 50.0])
        far = 10 * (-1) ** repeat  # no side of 0
        ends = [35.0 + noise, 45.0 + far, 48.0 - far, 52.0 + noise]
        write(home, "evening-voc", "gated", repeat, ends)
    told = curves.turns(curves.kept(), "gated", "gap", LABEL).splitlines()
    first = "below 0 at 100, 0 is in the interval at 200 to 300, above 0 at 400 steps"
    assert told[0] == f"- photos, {LABEL} in mIoU: {first}."
    assert len(told) == len(curves.METRICS)


def test_turns_of_too_few_repeats_or_none_say_so(home):
    assert curves.turns(curves.kept(), "gated", "gap", LABEL) == "- *not run* yet."
    for row in ("gap", "gated"):
        write(home, "evening", row, 0, [40.0, 45.0])
    told = curves.turns(curves.kept(), "gated", "gap", LABEL).splitlines()
    assert told[0] == f"- collages, {LABEL} in mIoU: 1 of 5 repeats."


def test_a_row_that_still_learns_its_tags_is_named(home):
    for row, tag_map in (("gap", [80.0, 88.0, 90.0, 90.4]), ("gated", [70.0, 80.0, 85.0, 88.0])):
        write(home, "evening", row, 0, [40.0] * 4, tag_map=tag_map)
    told = curves.sentences(curves.kept(), "gated", "gap", LABEL).splitlines()[0]
    assert told.endswith(
        " Not saturated: over the last quarter the tag mAP rose for `gated` by 3.0 points."
    )


def test_other_numbers_at_the_end_stand_beside_miou(home):
    for repeat, gain in enumerate((1.0, 2.0, 3.0)):
        write(home, "evening", "gap", repeat, [40.0] * 4)
        ends = {"precision": [0.0, 0.0, 0.0, 60.0 + gain], "half_area": [0.9, 0.9, 0.9, 0.1]}
        write(home, "evening", "gated", repeat, [40.0] * 4, **ends)
    told = curves.sentences(curves.kept(), "gated", "gap", LABEL).splitlines()[0]
    precision, area = "precision: +2.0 [-0.5, +4.5]", "area above half max: +0.0 [+0.0, +0.0]"
    assert told.endswith(f"At the end, {precision}; {area} points.")


def test_differences_are_paired_by_repeat_at_the_same_part(home):
    write(home, "evening", "gap", 0, [40.0, 50.0])
    write(home, "evening", "gap", 1, [41.0, 52.0])
    write(home, "evening", "gated", 0, [30.0, 51.0])
    write(home, "evening", "gated", 2, [0.0, 0.0])  # no partner
    table = curves.kept()
    shown = over_steps.differences(table, "gated", "gap")
    miou = shown[shown["metric"] == "miou"].sort_values("step")
    assert miou["mean"].tolist() == [-10.0, 1.0]
    assert miou["n"].tolist() == [1, 1]
    assert miou["low"].isna().all()
    assert table["half_area"].tolist() == [10.0] * len(table)  # percent of the picture


def test_a_course_has_what_the_row_has(home):
    write(home, "evening", "gap", 0, [40.0, 50.0])
    write(home, "evening", "gap", 1, [42.0, 52.0])
    found = curves.course(curves.kept(), "gap", ["miou", "positive_1_first"])
    assert found["name"].tolist() == ["miou", "miou"]
    assert found["mean"].tolist() == [41.0, 51.0]
    half = 12.706205 * 2**0.5 / 2**0.5  # of Student's t, one degree of freedom; sd over the root
    assert (found["high"] - found["mean"]).tolist() == pytest.approx([half, half])
