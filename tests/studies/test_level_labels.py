"""Rows are named by what they are on the map at hand and in the paper; names enter no key."""

from dataclasses import replace

import pytest

from aeft_lib.studies import catalogue, labels, pipeline, report
from aeft_lib.studies.profiles import LAPTOP, SMOKE, VOC, VOC_LITE
from aeft_lib.studies.rows import Row


@pytest.mark.parametrize(
    ("side", "named"),
    [
        (40, "16×16 beats 2×2"),
        (20, "8×8 (paper 16×16) beats 1×1 (paper 2×2)"),
        (16, "6×6 (paper 16×16) beats 1×1 (paper 2×2)"),
        (12, "5×5 (paper 16×16) beats 1×1 (paper 2×2)"),
    ],
)
def test_the_papers_bins_stand_beside_those_of_the_map(side, named):
    assert labels.on_map("16×16 beats 2×2", side) == named
    assert labels.on_map("a 3×1 filter, GAP", side) == "a 3×1 filter, GAP"


@pytest.mark.parametrize("profile", [SMOKE, LAPTOP, VOC_LITE, VOC], ids=lambda p: p.name)
def test_a_single_level_is_named_by_the_bins_that_its_layer_has(profile):
    singles = [row for row in catalogue.get("pyramid_ablation").rows if "level" in row.name]
    assert len(singles) == 4
    for row in singles:
        (bins,) = row.method.fitted(profile.map_side).pooling.levels
        paper = row.name.removeprefix("level")
        own, printed = f"{bins}×{bins}", f"{paper}×{paper}"
        expected = own if own == printed else f"{own} (paper {printed})"
        assert labels.of_row(row, profile) == expected


def test_a_row_with_its_own_scenes_is_named_by_their_map():
    named = {row.name: labels.of_row(row, LAPTOP) for row in catalogue.get("mechanism").rows}
    assert named["coarsest.gated"] == "1×1 (paper 2×2)"
    assert named["finest.gated"] == "5×5 (paper 16×16)"  # on 12x12 cells, not the laptop's 16x16
    assert named["base.gated"] == catalogue.row("base.gated").label


def test_other_rows_keep_their_labels():
    for row in (*catalogue.get("settings").rows, *catalogue.get("triplet_ablation").rows):
        assert labels.of_row(row, LAPTOP) == row.label


def keys(row: Row) -> dict[str, str]:
    return {name: made.key for name, made in pipeline.laid_out(SMOKE, row, 0).items()}


@pytest.mark.parametrize("name", ["level2", "coarsest.gated"])
def test_a_label_enters_no_key(name):
    row = catalogue.row(name)
    assert keys(row)
    assert keys(replace(row, label="another name")) == keys(row)


def test_the_report_names_levels_by_its_profiles_map():
    def claim(profile: str) -> str:
        lines = report.build({}, profile)["claims"]
        return next(line["claim"] for line in lines if line["id"] == "claim.finer_levels_help")

    assert claim("laptop").endswith("6×6 (paper 16×16) beats 1×1 (paper 2×2)")
    assert claim("voc").endswith("16×16 beats 2×2")
