"""The report: verdicts, the poster's numbers, and what a table becomes."""

import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ledger_curves import counted, evaluated, write
from scipy import stats

from aeft_lib import paths
from aeft_lib.studies import (
    catalogue,
    ledger,
    levels,
    photo_results,
    profiles,
    report,
    report_page,
    verdicts,
)
from aeft_lib.studies import published as published_module
from aeft_lib.studies.effects import effect, paired
from aeft_lib.studies.objects import Interval
from aeft_lib.studies.published import published

# The two ablation tables of the poster, typed off a second time.
TABLE_1 = {"2x2": 49.9, "4x4": 51.6, "8x8": 52.9, "16x16": 53.1, "A": 53.3, "G_I": 51.3, "G": 54.2}
TABLE_2 = {  # precision, recall, mIoU
    "gpp_only": (66.5, 75.6, 54.2),
    "attract_rigid": (65.1, 76.1, 53.4),
    "attract_soft": (66.6, 77.2, 55.0),
    "attract_soft_repel": (68.4, 76.3, 56.0),
}
RESULTS = """
AffinityNet  CVPR18    ResNet38  61.7 63.7 -
ICD          CVPR20    ResNet101 64.1 64.3 -
IRNet        CVPR19    ResNet50  63.5 64.8 32.6
SSDD         ICCV19    ResNet38  64.9 65.5 -
SEAM         CVPR20    ResNet38  64.5 65.7 31.9
Sub-category CVPR20    ResNet101 66.1 65.9 -
CONTA        NIPS20    ResNet38  66.1 66.7 33.4
RRM          AAAI20    ResNet101 66.3 66.5 -
BES          ECCV20    ResNet101 65.7 66.6 -
CDA          ICCV21    ResNet38  66.1 66.8 -
ECS          ICCV21    ResNet38  66.6 67.6 -
AdvCAM       CVPR21    ResNet101 68.1 68.0 -
OC-CSE       ICCV21    ResNet38  68.4 68.2 36.4
CPN          ICCV21    ResNet38  67.8 68.5 -
RIB          NeurIPS21 ResNet101 68.3 68.6 43.8
PMM          ICCV21    ResNet38  68.5 69.0 36.7
AEFT         ECCV22    ResNet38  70.9 71.7 44.8
"""
KEYS = {
    "id",
    "claim",
    "published",
    "reproduced_mean",
    "sd",
    "n",
    "profile",
    "verdict",
    "command",
    "commit",
    "machine",
}


@pytest.fixture(scope="module", autouse=True)
def empty_ledger(tmp_path_factory):
    """No long trainings, whatever is committed."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("ledger")
        patch.setattr(ledger, "home", lambda: folder)
        yield


# --- published.toml -------------------------------------------------------------------------------


def test_published_ablation_tables_equal_the_posters():
    numbers = published()["numbers"]
    table_1 = {
        name.removeprefix("table1."): n["value"]
        for name, n in numbers.items()
        if name.startswith("table1.")
    }
    assert table_1 == TABLE_1
    assert list(table_1) == list(TABLE_1)
    columns = ("precision", "recall", "value")
    table_2 = {
        name.removeprefix("table2."): n for name, n in numbers.items() if name.startswith("table2.")
    }
    assert {name: tuple(n[column] for column in columns) for name, n in table_2.items()} == TABLE_2


def test_published_results_are_the_posters_seventeen_rows():
    columns = ("voc_val", "voc_test", "coco_val")
    rows = [
        (
            r["method"].split(" (")[0],
            r["venue"],
            r["backbone"],
            *(str(r[column]) if column in r else "-" for column in columns),
        )
        for r in published()["results"]
    ]
    assert rows == [tuple(line.split()) for line in RESULTS.strip().splitlines()]
    assert len(rows) == 17


def test_every_published_number_and_claim_has_its_place():
    claims = published()["claims"]
    assert all(entry["place"] for entry in (*published()["numbers"].values(), *claims))
    ids = [claim["id"] for claim in claims]
    assert len(set(ids)) == len(ids)


def existing_claims() -> list[dict]:
    return [claim for claim in published()["claims"] if claim["study"] in catalogue.STUDIES]


def test_rows_of_claims_and_numbers_exist_in_their_studies():
    # Long studies are not the poster's, but one has claims of our own; levels of the brief one are
    # claims of the long; rivals have numbers of their own papers.
    others = {"conditions_brief", "rivals"}
    studies = [study for study in catalogue.STUDIES.values() if study.needs != "curves"]
    short = {study.name for study in studies if not study.long}
    assert {claim["study"] for claim in existing_claims()} == short - others | {"ours_ablation"}
    for claim in existing_claims():
        study = catalogue.get(claim["study"])
        assert {claim["more"], claim["less"]} <= {row.name for row in study.rows}, claim["id"]
        assert claim["metric"] in ("miou", "precision", "recall", "miou_maskless"), claim["id"]
    numbers = published()["numbers"]
    rows = {row.name: row for study in catalogue.STUDIES.values() for row in study.rows}
    for name in {number["row"] for number in numbers.values() if "row" in number}:
        about = [told for told, number in numbers.items() if number.get("row") == name]
        assert rows[name].published in about
    assert {row.published for row in rows.values()} - {None} <= set(numbers)


def test_published_differences_follow_from_the_published_numbers():
    numbers = published()["numbers"]
    value_of = {n["row"]: {"miou": n.get("value")} for n in numbers.values() if "row" in n}
    value_of["gated_unscaled"] = value_of[
        "gated"
    ]  # the paper's G has both names: its bins as printed are its bins
    value_of |= {
        name: dict(zip(("precision", "recall", "miou"), row, strict=True))
        for name, row in TABLE_2.items()
    }
    # The same seeds, on the scenes that are refined.
    value_of["aeft_seed"] = value_of["attract_soft_repel"]
    checked = 0
    for claim in published()["claims"]:
        if "published" in claim:
            metric = claim["metric"].removesuffix("_maskless")  # the paper has one number a row
            difference = value_of[claim["more"]][metric] - value_of[claim["less"]][metric]
            assert claim["published"] == pytest.approx(difference), claim["id"]
            checked += 1
    assert checked >= 9


# --- verdicts -------------------------------------------------------------------------------------


def table(**rows: list[float]) -> pd.DataFrame:
    """A study's table of mIoU and precision (mIoU + 10) for repeats 0, 1, ..."""
    lines = [
        (row, repeat, value, value + 10)
        for row, values in rows.items()
        for repeat, value in enumerate(values)
    ]
    return pd.DataFrame(lines, columns=["row", "repeat", "miou", "precision"])


def test_differences_are_paired_by_repeat_whatever_the_order_of_lines():
    shuffled = table(gap=[40.0, 44.0, 42.0], gated=[45.0, 46.0, 48.0]).sample(
        frac=1, random_state=1
    )
    assert paired(shuffled, "gated", "gap", "miou").tolist() == [5, 2, 6]
    assert paired(shuffled, "gap", "gated", "precision").tolist() == [-5, -2, -6]


def test_differences_take_only_repeats_that_both_rows_have():
    few = table(gap=[40.0], gated=[45.0, 99.0])
    assert paired(few, "gated", "gap", "miou").tolist() == [5]
    assert paired(table(gap=[40.0]), "gated", "gap", "miou").tolist() == []


def judged_line(differences: list[float], name: str = "claim.gpp_beats_gap", **options) -> dict:
    """The line of a claim whose differences are these."""
    rows = {"gap": [40.0] * len(differences), "gated": [40.0 + d for d in differences]}
    lines = report.build({"gap_vs_gpp": table(**rows)}, "tiny", **options)["claims"]
    return next(line for line in lines if line["id"] == name)


@pytest.mark.parametrize(
    ("differences", "word", "reason"),
    [
        ([9.0], "undecided", "1 of 5 repeats"),
        ([9.0, 9.0], "undecided", "2 of 5 repeats"),
        ([9.0] * 4, "undecided", "4 of 5 repeats"),
        ([2.0] * 5, "holds", ""),  # no spread at all
        ([-2.0] * 5, "fails", ""),
        ([0.0] * 5, "undecided", ""),
        # mean 1, sd 1.58: 2.776 * 0.707 is 1.96; the standard error alone would say holds
        ([-1.0, 0.0, 1.0, 2.0, 3.0], "undecided", ""),
        ([1.0, 2.0, 3.0, 4.0, 5.0], "holds", ""),  # mean 3 above 1.96
    ],
)
def test_the_interval_over_enough_repeats_decides(differences, word, reason):
    line = judged_line(differences)
    assert (line["verdict"], line["reason"], line["needs"]) == (word, reason, 5)
    assert (line["pairs"], line["n"]) == (len(differences), len(differences))
    if len(differences) > 1:
        assert (line["low"], line["high"]) == pytest.approx(effect(differences)[1:3], rel=1e-5)
    else:
        assert (line["low"], line["high"], line["p"]) == (None, None, None)


def test_an_end_next_to_zero_stays_on_its_side():
    """Rounded to four decimals it would be 0, and the claim undecided."""
    edge = stats.t.ppf(0.975, 4) * 2.5**0.5 / 5**0.5  # of differences m - 2 .. m + 2
    line = judged_line([edge + 1e-6 + step for step in (-2, -1, 0, 1, 2)])
    assert 0 < line["low"] < 1e-4
    assert line["verdict"] == "holds"


def test_p_values_are_adjusted_within_the_claims_and_both_verdicts_stand():
    rows = {"gap": [40.0] * 5, "gated": [41.0, 42.0, 43.0, 44.0, 45.0]}  # p = 0.0132
    one = judged_line([1.0, 2.0, 3.0, 4.0, 5.0])
    assert one["tests"] == 2  # mIoU and precision, whose differences are the same
    assert one["p_adjusted"] == pytest.approx(2 * one["p"], abs=1e-6)
    assert (one["verdict"], one["verdict_adjusted"]) == ("holds", "holds")
    many = {"average": rows["gap"], "inverse": rows["gap"], "level16": rows["gap"]} | rows
    tables = {"gap_vs_gpp": table(**rows), "pyramid_ablation": table(**many)}
    lines = {line["id"]: line for line in report.build(tables, "tiny")["claims"]}
    line = lines["claim.gpp_beats_gap"]
    # Four have this p value; average - inverse and average - level16 are 0 each time.
    assert line["tests"] == 6
    assert line["p_adjusted"] == pytest.approx(6 * line["p"], abs=1e-6)  # it is rounded there
    assert line["p_adjusted"] > 0.05
    assert (line["verdict"], line["verdict_adjusted"]) == ("holds", "undecided")


def test_equal_comparisons_count_once():
    """The base is a level of every knob."""
    rows = {"base.gap": [40.0, 41.0, 42.0], "base.gated": [41.0, 43.0, 45.0]}
    lines = report.build({"conditions": table(**rows)}, "tiny")["claims"]
    of_base = [line for line in lines if line["id"].startswith("condition.") and line["pairs"]]
    assert len(of_base) == 5
    assert {line["tests"] for line in of_base} == {1}
    p = of_base[0]["p"]
    assert all(line["p_adjusted"] == pytest.approx(p, abs=1e-6) for line in of_base)
    assert {line["needs"] for line in of_base} == {3}


def test_the_papers_claims_need_five_repeats_and_others_three():
    for claim in published()["claims"]:
        assert claim["repeats"] == (5 if claim["id"].startswith("claim.") else 3)
    lines = report.build({}, "tiny")["claims"]
    assert {line["needs"] for line in lines if line["id"].startswith(("table", "known"))} == {5}


@pytest.mark.parametrize(("n", "word"), [(3, "undecided"), (4, "undecided"), (5, "fails")])
def test_no_line_decides_on_photos_what_the_same_comparison_of_a_claim_leaves_open(
    n, word, monkeypatch
):
    """At two trained stages the photos' rows are those of the claim about GPP and GAP."""
    differences = np.array([-1.0, -1.2, -1.1, -0.9, -1.3])[:n]
    monkeypatch.setattr(report.photo_results, "differences", lambda *_: differences)
    lines = {line["id"]: line for line in report.build({}, "tiny")["claims"]}
    of_claim, of_depth = lines["claim.gpp_beats_gap"], lines["condition.trained_stages.2"]
    assert of_claim["photos_mean"] == of_depth["photos_mean"]
    assert (of_claim["photos_verdict"], of_depth["photos_verdict"]) == (word, word)
    assert of_claim["photos_reason"] == of_depth["photos_reason"]
    assert (of_depth["needs"], of_depth["photos_needs"]) == (3, 5)
    # No claim is about these rows: three repeats decide, as on collages.
    other = lines["condition.trained_stages.4"]
    assert (other["photos_verdict"], other["photos_needs"]) == ("fails", 3)


def test_committed_verdicts_on_photos_agree_where_the_comparison_is_the_same():
    claims = {claim["id"]: claim for claim in published()["claims"]}
    pairs = {name: (c["more"], c["less"], c["metric"]) for name, c in claims.items()}
    conditions = (claim for claim in levels.claims() if claim.photos_more)
    pairs |= {claim.id: (claim.photos_more, claim.photos_less, "miou") for claim in conditions}
    words: dict[tuple, set[str]] = {}
    for line in report.load()["claims"]:
        if line["id"] in pairs and line["photos_n"]:
            words.setdefault(pairs[line["id"]], set()).add(line["photos_verdict"])
    assert len(words) >= 15
    assert {pair: found for pair, found in words.items() if len(found) > 1} == {}


def test_a_user_who_asks_for_verdicts_is_told_which_claim_lacks_repeats():
    with pytest.raises(
        ValueError, match=r"gpp_beats_gap has 2 .*needs 5 \(and 1 more.*--repeats 5"
    ):
        verdicts.check_repeats({"claims": [judged_line([1.0, 2.0]), judged_line([1.0])]})
    verdicts.check_repeats(report.build({}, "tiny"))  # what was not run is said as that
    verdicts.check_repeats({"claims": [judged_line([1.0] * 5)]})


def test_cda_s_claim_is_a_difference_of_differences():
    rows = {
        "context_1.cda": [60.0, 62.0, 61.0],
        "context_1.gap": [50.0, 51.0, 51.0],
        "base.cda": [55.0, 55.0, 56.0],
        "base.gap": [54.0, 55.0, 55.0, 99.0],
    }
    made = report.build({"pasting": table(**rows)}, "laptop")["claims"]
    (line,) = [line for line in made if line["id"] == verdicts.INTERACTION]
    assert (line["difference"], line["pairs"], line["verdict"]) == (
        pytest.approx(29 / 3, abs=1e-3),
        3,
        "holds",
    )
    assert report_page.markdown({"claims": [line]}).count("+9.7 [+") == 1
    (line,) = [x for x in report.build({}, "laptop")["claims"] if x["id"] == verdicts.INTERACTION]
    assert (line["verdict"], line["n"]) == ("not run", 0)


def test_the_interval_over_objects_is_asked_for_the_repeats_that_are_compared():
    asked = []

    def over_objects(*arguments):
        asked.append(arguments)
        return Interval(-0.5, 2.0, 43)

    line = judged_line([1.0] * 5, over_objects=over_objects)
    assert ("gated", "gap", "miou", [0, 1, 2, 3, 4]) in asked
    assert (line["objects_low"], line["objects_high"], line["objects"]) == (-0.5, 2.0, 43)
    assert line["verdict"] == "holds"  # repeats decide
    assert "| [-0.5, +2.0] (43) | holds | holds |" in report_page.markdown({"claims": [line]})
    assert "[-0.5, +2.0] (43) over objects" in report_page.conclusions(
        {"claims": [line]}, [line["id"]]
    )


def test_short_trainings_are_said_beside_every_verdict():
    assert [report.is_short(profile) for profile in (profiles.LAPTOP, profiles.SMOKE)] == [True] * 2
    long = replace(profiles.LAPTOP, schedule=replace(profiles.LAPTOP.schedule, epochs=45))
    assert not report.is_short(long)  # 45 x 40 steps
    line = judged_line([1.0] * 5, short=True)
    assert "| holds, short |" in report_page.markdown({"claims": [line]})
    told = report_page.conclusions({"claims": [line]}, [line["id"]])
    assert told.startswith(f"- {line['claim']}: **holds, short**; ")
    assert "short" not in report_page.markdown(report.build({}, "tiny", short=True), "rival.conta")


def test_a_tally_counts_every_word_before_and_after_adjustment():
    lines = [judged_line([1.0] * 5), judged_line([-1.0] * 5), judged_line([1.0]), judged_line([])]
    told = report_page.tally({"claims": lines}, "claim.")
    words = "1 holds, 1 fails, 1 undecided, 1 not run"
    assert told == f"of 4 claims {words}; adjusted for all 2 comparisons tested together: {words}."


# --- build ----------------------------------------------------------------------------------------


@pytest.fixture
def built() -> dict[str, dict]:
    """The report of made-up numbers, by id."""
    gap, gated = [40.0, 41.0, 42.0], [45.0, 47.0, 46.0]
    tables = {
        "gap_vs_gpp": table(gap=gap, gated=gated),
        "pyramid_ablation": table(
            gap=gap, gated=gated, inverse=[50.0, 50.0, 50.0], level2=[38.0, 43.0, 40.0]
        ),
    }
    whole = report.build(tables, "tiny")
    assert whole["profile"] == "tiny"
    rows = {row["id"]: row for row in whole["claims"]}
    assert len(rows) == len(whole["claims"])
    return rows


def test_the_report_has_a_line_for_every_number_result_and_claim(built):
    numbers = set(published()["numbers"]) - {"known.gap_seed"}
    results = {"results.voc_val", "results.voc_test", "results.coco_val"}
    of_levels = {claim.id for claim in levels.claims()}
    assert set(built) == numbers | results | of_levels | {verdicts.INTERACTION} | {
        claim["id"] for claim in published()["claims"]
    }
    for row in built.values():
        assert set(row) >= KEYS
        assert row["verdict"] in verdicts.VERDICTS
        assert row["profile"] == "tiny"
        assert row["commit"]
        assert row["machine"]


def test_a_claim_becomes_mean_sd_and_n_of_its_paired_differences(built):
    row = built["claim.gpp_beats_gap"]  # 5, 6, 4
    assert (row["reproduced_mean"], row["sd"], row["n"]) == (5, 1, 3)
    assert (row["published"], row["verdict"]) == (6.2, "undecided")
    assert row["reason"] == "3 of 5 repeats"
    assert row["command"] == "aeft run gap_vs_gpp --repeats 5"  # the least that can decide
    assert built["claim.gpp_is_more_precise"]["reproduced_mean"] == 5
    reverse = built["claim.coarse_to_fine"]  # -5, -3, -4
    assert (reverse["reproduced_mean"], reverse["sd"], reverse["difference"]) == (-4, 1, -4)
    assert built["claim.average_beats_inverse"]["verdict"] == "not run"  # no row "average"


def test_a_number_becomes_mean_sd_and_n_of_its_row_and_a_verdict_against_gap(built):
    row = built["table1.G"]
    assert (row["published"], row["reproduced_mean"], row["sd"], row["n"], row["verdict"]) == (
        54.2,
        46,
        1,
        3,
        "undecided",
    )
    assert (row["difference"], row["pairs"]) == (5, 3)  # against GAP: 5, 6, 4
    assert row["low"] == pytest.approx(5 - 4.302653 / 3**0.5, abs=1e-5)
    coarse = built["table1.2x2"]  # -2, +2, -2 against GAP
    assert coarse["reproduced_mean"] == pytest.approx(121 / 3, abs=1e-4)
    assert coarse["difference"] == pytest.approx(-2 / 3, abs=1e-4)
    assert coarse["sd"] == pytest.approx(
        math.sqrt((7 / 3) ** 2 / 2 + (8 / 3) ** 2 / 2 + (1 / 3) ** 2 / 2), abs=1e-4
    )
    assert built["table1.A"]["verdict"] == "not run"


def test_what_was_not_run_says_so_and_has_no_numbers():
    rows = report.build({}, "tiny")["claims"]
    assert {row["verdict"] for row in rows} == {"not run"}
    assert {(row["reproduced_mean"], row["sd"], row["n"]) for row in rows} == {(None, None, 0)}


def test_one_repeat_has_a_mean_no_sd_and_no_verdict():
    rows = report.build({"gap_vs_gpp": table(gap=[40.0], gated=[47.0])}, "tiny")["claims"]
    (row,) = [row for row in rows if row["id"] == "claim.gpp_beats_gap"]
    assert (row["reproduced_mean"], row["sd"], row["n"], row["verdict"]) == (
        7,
        None,
        1,
        "undecided",
    )


def test_a_line_about_another_baseline_has_its_difference_to_gap_too():
    numbers = {"gap_pseudo": [70.0, 71.0, 72.0], "gap_crf": [73.0, 74.5, 75.0]}
    long = [
        pd.DataFrame({"row": row, "label": row, "repeat": range(3), "miou_maskless": values})
        for row, values in (numbers | {"pmm": [65.0, 65.5, 66.5]}).items()
    ]
    lines = report.build({"rivals": pd.concat(long)}, "laptop")["claims"]
    (line,) = [line for line in lines if line["id"] == "rival.pmm.pseudo"]
    assert line["difference"] == pytest.approx(-8.5, abs=0.01)
    assert line["gap_mean"] == pytest.approx(-5.3333, abs=0.01)
    assert line["gap_low"] < line["gap_mean"] < line["gap_high"] < 0
    assert "; to GAP -5.3 [" in report_page.markdown({"claims": [line]})
    assert all(line["gap_mean"] is None for line in lines if line["id"] != "rival.pmm.pseudo")


def test_seeds_of_other_methods_have_their_photos_whether_collages_have_them_or_not(monkeypatch):
    photos = table(gap=[40.0, 41.0, 42.0], seam=[49.0, 50.0, 51.5])
    monkeypatch.setattr(photo_results, "rivals", lambda: photos)
    monkeypatch.setattr(photo_results, "differences", photo_results.differences.__wrapped__)
    for tables in ({}, {"rivals": table(gap=[50.0, 51.0], seam=[54.0, 55.0])}):
        (line,) = [
            line
            for line in report.build(tables, "laptop")["claims"]
            if line["id"] == "rival.seam.seed"
        ]
        assert (line["photos_n"], line["photos_needs"]) == (3, 3)
        assert line["photos_verdict"] == "holds"


def test_written_files_say_the_same(built, tmp_path):
    whole = {"profile": "tiny", "claims": list(built.values())}
    files = report_page.write(whole, tmp_path / "new")
    assert [file.name for file in files] == ["report.json", "report.csv", "report.md"]
    assert report.load(tmp_path / "new") == whole
    assert "NaN" not in files[0].read_text(encoding="utf-8")
    stored = pd.read_csv(files[1]).set_index("id")
    assert stored.loc[
        "claim.gpp_beats_gap", ["reproduced_mean", "sd", "n", "verdict"]
    ].tolist() == [5, 1, 3, "undecided"]
    assert list(stored.index) == list(built)
    text = files[2].read_text(encoding="utf-8")
    assert text.startswith(report_page.RULE)
    assert f"- `claim.`: {report_page.tally(whole, 'claim.')}" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(built)
    head = "G (gated, coarse to fine) gives better seeds than GAP | 54.2 | 46.0; +5.0 [+2.5, +7.5]"
    verdict = "undecided (3 of 5 repeats) | undecided"
    cell = report_page.place_cell(built["table1.G"], "photos_")
    assert f"| `table1.G` | {head} (3) | {verdict} | {cell} | not run |" in lines
    claim = "The GPP layer gives better seeds than global average pooling | +6.2"
    photos = report_page.place_cell(built["claim.gpp_beats_gap"], "photos_")
    assert photos.startswith("-1.2 [-1.8, -0.5] (3) undecided (3 of 5 repeats), short")
    assert cell == photos
    cells = f"{claim} | +5.0 [+2.5, +7.5] (3) | {verdict} | {photos} | not run |"
    assert f"| `claim.gpp_beats_gap` | {cells}" in lines


def test_a_missing_report_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*report\.json: write it with `aeft report`"):
        report.load(tmp_path)


@pytest.mark.parametrize("damage", ["{", "[" * 100_000, "\xff"], ids=["half", "nested", "bytes"])
def test_a_damaged_report_names_the_remedy(tmp_path, damage):
    (tmp_path / "report.json").write_text(damage, encoding="latin-1")
    with pytest.raises(ValueError, match=r"report\.json is damaged .*run `aeft report`"):
        report.load(tmp_path)


def test_long_trainings_have_a_column_where_the_ledger_has_them(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "home", lambda: tmp_path)
    without = report.build({}, "tiny")
    assert "1,800 steps" not in report_page.markdown(without, "claim.")
    for repeat in range(5):
        rising = [70.0, 80.0, 85.0, 88.0] if repeat == 0 else [90.0] * 4
        for row, miou, tag_map in (("gap", 50.0, rising), ("gated", 51.0 + 0.1 * repeat, rising)):
            evaluated(tmp_path, "evening-voc", row, repeat, miou=miou)
            write(tmp_path, "evening-voc", row, repeat, [miou] * 4, tag_map=tag_map)
    built = report.build({}, "tiny")
    line_id = "claim.gpp_beats_gap"
    line = next(line for line in built["claims"] if line["id"] == line_id)
    assert (line["long_photos_n"], line["long_photos_mean"]) == (5, pytest.approx(1.2))
    assert (line["long_photos_verdict"], line["long_n"], line["verdict"]) == ("holds", 0, "not run")
    assert line["long_photos_unsaturated"] == "gated, gap"  # 3 points in one repeat of five
    assert line["long_photos_objects"] == 0
    told = report_page.markdown(built, "claim.").splitlines()
    assert "| on photos, after 1,800 steps |" in told[0]
    assert "| +1.2 [+1.0, +1.4] (5) holds, not saturated: gated, gap |" in told[2]
    for repeat, (row, right) in product(range(5), [("gap", 50), ("gated", 60)]):
        of_image = [[0, right], [100 - right, right], [0, 100]]
        counted(tmp_path, "evening-voc", row, repeat, np.array([of_image] * 4).transpose(1, 0, 2))
    line = next(line for line in report.build({}, "tiny")["claims"] if line["id"] == line_id)
    # Every photo alike: an IoU of half or 0.6 of the class, 0 of background.
    ends = (line["long_photos_objects_low"], line["long_photos_objects_high"])
    assert (*ends, line["long_photos_objects"]) == (5.0, 5.0, 4)
    cell = report_page.place_cell(line, "long_photos_")
    assert cell.startswith("+1.2 [+1.0, +1.4] (5), [+5.0, +5.0] (4) over photos, holds")
    assert told[0].count("|") == told[1].count("|") == told[2].count("|")


def test_lines_of_other_methods_have_their_cost_whether_they_ran_or_not():
    table = pd.DataFrame({"row": ["gap", "seam"], "repeat": 0, "miou": [50.0, 52.0]})
    built = report.build({"rivals": table}, "laptop", costs={"seam": 1.25, "cpn": 3.0})
    lines = {line["id"]: line for line in built["claims"]}
    costs = {name: line["cost"] for name, line in lines.items() if line["cost"]}
    both = ("rival.cpn.seed", "rival.cpn.over_seam")
    assert costs == {"rival.seam.seed": 1.25} | dict.fromkeys(both, 3.0)
    assert lines["rival.seam.seed"]["claim"].endswith(", at the cost of 1.25 GAP trainings")
    assert lines["rival.cpn.seed"]["verdict"] == "not run"


def test_an_edited_digit_of_the_published_numbers_is_refused(tmp_path, monkeypatch):
    """It would still be a table, and no schema sees it."""
    folder = tmp_path / "aeft_lib" / "studies"
    folder.mkdir(parents=True)
    for file in (paths.SUMS, Path(published_module.__file__).with_name("published.toml")):
        target = tmp_path / file.relative_to(paths.ROOT)
        target.write_bytes(file.read_bytes().replace(b"54.2", b"54.3"))
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "SUMS", tmp_path / paths.SUMS.name)
    monkeypatch.setattr(published_module, "__file__", str(folder / "published.py"))
    with pytest.raises(
        ValueError, match=r"published\.toml is damaged or was edited.*python -m aeft_lib.paths"
    ):
        published.__wrapped__()
