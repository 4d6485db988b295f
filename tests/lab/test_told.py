"""Sentences and tables that follow their numbers: by hand on a few lines."""

import pandas as pd
import pytest

from aeft_lib.lab import ch03_gates, ch04_told, ch08_told, tables, told


def long(**rows: list[float]) -> pd.DataFrame:
    """mIoU of rows by repeat; recall is twice, the threshold without masks a point below."""
    lines = [
        {"row": row, "label": row.upper(), "repeat": n, "miou": v, "recall": 2 * v}
        | {"miou_maskless": v - 1}
        for row, values in rows.items()
        for n, v in enumerate(values)
    ]
    return pd.DataFrame(lines)


# --- tables ---------------------------------------------------------------------------------------


def test_a_table_has_the_best_of_each_column_in_bold_and_sd_where_there_is_one():
    summary = pd.DataFrame(
        {"label": ["A", "B"], "n": [3, 1], "miou": [40.04, 41.26], "miou_sd": [1.0, float("nan")]}
    )
    assert tables.as_text(summary, ["n", "miou"]).splitlines() == [
        "| row | repeats | mIoU (%) |",
        "| --- | ---: | ---: |",
        "| A | 3 | 40.0 ± 1.0 |",
        "| B | 1 | **41.3** |",
    ]


def test_heads_name_the_threshold():
    summary = pd.DataFrame({"label": ["A"], "recall_common": [1.0], "miou_maskless": [2.0]})
    head = tables.as_text(summary, ["recall_common", "miou_maskless"]).splitlines()[0]
    assert head == "| row | recall, common threshold (%) | mIoU, threshold without masks (%) |"


def test_a_grid_has_index_units_intervals_and_gaps():
    table = pd.DataFrame(
        {"miou": [1.25, float("nan")], "miou_low": [-1.0, 0.0], "miou_high": [2.0, 1.0]}
        | {"stages": [4, 0], "use": ["GPP", "GAP"], "share": [0.125, 0.5]},
        index=pd.Index(["base", "large"], name="level"),
    )
    options = {"unit": {"miou": "points"}, "decimals": {"share": 2}, "signed": True}
    assert tables.grid_text(table, **options).splitlines() == [
        "| level | mIoU (points) | stages | use | share |",
        "| --- | ---: | ---: | --- | ---: |",
        "| base | +1.2 [-1.0, +2.0] | 4 | GPP | +0.12 |",
        "| large | — | 0 | GAP | +0.50 |",
    ]


def test_the_best_of_a_row_or_column_is_bold_as_it_is_printed():
    table = pd.DataFrame({"row": ["a", "b"], "GAP": [40.04, 42.0], "G": [40.01, 41.0], "n": [3, 9]})
    by_row = tables.grid_text(table, best="row").splitlines()[2:]
    assert by_row == ["| a | **40.0** | **40.0** | 3 |", "| b | **42.0** | 41.0 | 9 |"]
    by_column = tables.grid_text(table, best="column").splitlines()[2:]
    assert by_column == ["| a | 40.0 | 40.0 | 3 |", "| b | **42.0** | **41.0** | 9 |"]
    assert "**" not in tables.grid_text(table)
    with pytest.raises(ValueError, match="'row' or 'column', got 'columns'"):
        tables.grid_text(table, best="columns")


# --- differences ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([2.0, 3.0, 2.5], "the interval lies above 0"),
        ([-2.0, -3.0, -2.5], "the interval lies below 0"),
        ([1.0, 2.0, 3.0], "0 is in the interval"),
        ([1.0, 9.0], "0 is in the interval, of 2 repeats"),
    ],
)
def test_differences_say_where_0_lies(values, words):
    assert told.differences(values).endswith(f": {words}")


def test_no_repeat_and_one_repeat_decide_nothing():
    assert told.differences([]) == "not run"
    assert told.differences([0.4]) == "+0.4 points in the only repeat, which decides nothing"


def test_rows_are_compared_by_repeat_and_lacking_ones_left_out():
    table = long(a=[3.0, 4.0, 5.0], b=[1.0, 1.0, 1.0])
    text = told.compared(table, [("a", "b"), ("a", "c")])
    assert text == f"- **A − B**, mIoU: {told.differences([2.0, 3.0, 4.0])}."
    both = told.compared(table, [("a", "b")], ("miou", "miou_maskless"))
    assert [line.split(":")[0] for line in both.splitlines()] == [
        "- **A − B**, mIoU",
        "- **A − B**, mIoU, threshold without masks",
    ]
    assert "mIoU: " in told.compared(table, [("a", "b")], ("miou_maskless",))


# --- chapters -------------------------------------------------------------------------------------


def sizes(**rows: tuple[list[float], list[float]]) -> pd.DataFrame:
    """Embeddings e_A and e_P of rows by repeat."""
    parts = [
        pd.DataFrame({"row": row, "label": row, "repeat": range(len(e_a)), "e_A": e_a, "e_P": e_p})
        for row, (e_a, e_p) in rows.items()
    ]
    return pd.concat(parts, ignore_index=True)


def test_an_anchor_that_falls_shrinks_and_a_positive_that_rises_grows():
    base = ([1.2, 1.21, 1.22], [0.8, 0.81, 0.82])
    text = ch04_told.embeddings(
        sizes(
            gpp_only=base,
            attract_soft=([0.9, 0.92, 0.91], [0.8, 0.82, 0.81]),
            attract_soft_repel=([1.2, 1.25, 1.18], [0.8, 0.82, 0.81]),
            gpp_only_corrected=base,
            corrected=([1.2, 1.22, 1.21], [1.0, 1.02, 1.01]),
            ours=([2.2, 2.22, 2.21], [1.8, 1.82, 1.81]),
        )
    )
    words = [line.rsplit(": ", 1)[1] for line in text.splitlines()]
    assert words == ["the anchor shrinks.", "undecided.", "the positive grows.", "both grow."]
    assert "**attract_soft − gpp_only**: e_A -0.30 [" in text
    few = ch04_told.embeddings(sizes(gpp_only=([1.2], [0.8]), attract_soft=([0.9], [0.8])))
    assert few == "- **attract_soft − gpp_only**: e_A -0.30, e_P +0.00: 1 of 3 repeats."


def test_gates_are_counted_by_the_side_of_one_half_that_all_repeats_share():
    sides = {"1→2": (0.6, 0.7), "2→3": (0.4, 0.6), "3→6": (0.2, 0.3)}
    gates = pd.DataFrame(
        {"repeat": n, "step": step, "sign": "positive", "side": "first map", "weight": w}
        for step, weights in sides.items()
        for n, w in enumerate(weights)
    )
    counts = "1 above, 1 below, 1 changing side between the 2 repeats"
    text = f"- **positive evidence**, 3 mean gates against one half: {counts}."
    assert ch03_gates.gates_told(gates) == text


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        ([1, 2, 3, 4, 5, 6], "(p = 0.00): the two orders agree"),
        ([6, 5, 4, 3, 2, 1], "(p = 0.00): the two orders are opposed"),
        ([2, 1, 2, 5, 1, 4], "the two orders neither agree nor"),
        ([5, 3, 6, 2, 4, 1], "the two orders neither agree nor"),  # -0.66 over six
    ],
)
def test_two_orders_are_alike_where_chance_seldom_makes_them_so(ours, words):
    text = ch03_gates.order_told(pd.Series(ours), pd.Series(range(6)))
    assert "over 6 rows (p = " in text
    assert words in text


def test_progress_compares_the_last_step_with_the_baseline():
    last = long(gpp_only=[10.0, 10.0, 10.0], ours=[12.0, 12.0, 12.0]).assign(precision=1.0, step=5)
    first = last.assign(recall=0.0, step=0)
    text = ch04_told.progress(pd.concat([first, last]))
    assert "**OURS − GPP_ONLY**, recall: +4.0" in text
    assert "precision: +0.0" in text
    assert text.endswith("on one side of zero: no row.")
    falls = last["row"].eq("ours") * -3.0 + 50 + 0.1 * last["repeat"]
    grows = last.assign(precision=falls, recall=last["recall"] + 0.1 * last["repeat"])
    assert ch04_told.progress(grows).endswith("on one side of zero: OURS.")


def test_quirks_with_one_sign_and_without_effect_are_named():
    values = {"up": [1.0, 2.0], "zero": [0.0, 0.0], "mixed": [-1.0, 1.0]}
    effects = pd.DataFrame(
        {"quirk": quirk, "start": start, "repeat": 0, "miou": v}
        for quirk, both in values.items()
        for start, v in zip(("reference", "corrected"), both, strict=True)
    )
    text = ch04_told.quirks(effects)
    assert "from -1.0 points (mixed, reference) to +2.0 points (up, corrected)" in text
    assert "from both starts: up (+)." in text
    assert "Exactly without effect: zero." in text


def test_erasing_that_gains_and_erasing_that_loses():
    table = pd.DataFrame(
        {
            "label": ["rigid", "soft"],
            "recall": [3.0, -2.0],
            "recall_sd": [0.5, 0.5],
            "precision": [0.1, 1.0],
            "stops": [4, 0],
            "n": [2, 2],
        }
    )
    text = ch08_told.stops(table)
    assert "gain recall**: rigid (+3.0 ± 0.5, precision +0.1)." in text
    assert "lose recall**: soft (-2.0 ± 0.5, precision +1.0)." in text
    assert "in the last epoch: rigid." in text
    assert "2 repeats are too few" in text


def test_widths_are_relative_to_gap():
    spread = pd.DataFrame(
        {"GAP": [0.1, 0.2], "G": [0.09, 0.1], "A": [0.2, 0.1]}, index=["base", "objects_2"]
    )
    first, second = ch08_told.widths(spread).splitlines()
    assert first.endswith("at 2 of 2 levels: from -50.0 % (objects 2) to -10.0 % (base).")
    assert second.endswith("at 1 of 2 levels: from -50.0 % (objects 2) to +100.0 % (base).")


def test_the_epoch_after_which_tag_map_is_saturated():
    def course(*tag_map: float) -> str:
        lines = [{"label": "G", "epoch": n, "tag_map": v} for n, v in enumerate(tag_map, start=1)]
        return ch08_told.course(pd.DataFrame(lines))

    assert "an epoch after epoch 3." in course(50, 60, 70, 70.5)
    assert "in no epoch up to the last." in course(50, 60)
    assert "in every epoch after the first (1)." in course(50, 50.5)


def test_causes_are_judged_with_enough_repeats_alone():
    lines = [
        ("variant − G", "root", 2.3, 1.2, 3.4, 3),
        ("variant − G", "finest", -0.1, -4.8, 4.6, 3),
        ("variant − G", "open", 0.7, None, None, 1),
    ]
    effects = pd.DataFrame(lines, columns=["group", "label", "mean", "low", "high", "n"])
    text = ch08_told.causes(effects)
    assert "holds for root +2.3 [+1.2, +3.4]; undecided for finest -0.1 [-4.8, +4.6]" in text
    assert "with fewer than 3 repeats 1 of 1 settings above 0, 0 below" in text
