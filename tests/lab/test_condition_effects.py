"""From tables of conditions to effects: known differences, levels, claims, figures."""

import json
from dataclasses import fields, replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from aeft_lib.data.controlled import KNOBS
from aeft_lib.lab import ch08_effects, ch08_figures, ch08_told
from aeft_lib.lab.figures import TEXT_WIDTH
from aeft_lib.lab.session import Session
from aeft_lib.paper.gpp import Gap
from aeft_lib.studies import catalogue, levels, photo_results, pipeline, report, report_page, run
from aeft_lib.studies.conditions import CONDITIONS, METHODS
from aeft_lib.studies.effects import effect, paired
from aeft_lib.studies.levels import BASE
from aeft_lib.studies.profiles import LAPTOP, SMOKE, VOC_LITE

TRUTH = {"gap": 0.0, "gated": 3.0, "average": 1.0, "aeft": 2.0}  # above a level's own height


def table(repeats=3, methods=METHODS, noise=0.1, **extra) -> pd.DataFrame:
    """A study of conditions with known effects; at context 1 G loses 5 points."""
    rng = np.random.default_rng(0)
    lines = []
    for repeat in range(repeats):
        for i, level in enumerate(CONDITIONS):
            for method in methods:
                lost = 5 * (level == "context_1" and method == "gated")
                value = 40 + i + 10 * repeat + TRUTH[method] - lost + rng.normal(0, noise)
                lines.append(
                    {
                        "row": f"{level}.{method}",
                        "label": f"{method}, {level}",
                        "repeat": repeat,
                        "miou": value,
                    }
                )
    return pd.DataFrame(lines).assign(**extra)


@pytest.fixture
def effects():
    return ch08_effects.level_effects(table())


# --- levels and studies ---------------------------------------------------------------------------


def test_every_knob_has_three_or_four_levels_in_order_with_the_base_among_them():
    table = pd.DataFrame(levels.levels())
    assert tuple(table["knob"].unique()) == KNOBS
    for _, of_knob in table.groupby("knob"):
        assert 3 <= len(of_knob) <= 4
        assert of_knob["value"].is_monotonic_increasing
        assert (of_knob["row"] == BASE).sum() == 1


def test_the_rows_of_a_level_turn_that_knob_alone():
    for level in levels.levels():
        knobs = dict(CONDITIONS[level.row].knobs)
        assert knobs == ({} if level.row == BASE else {level.knob: level.value})


def test_the_study_has_every_method_at_every_level_once():
    names = [row.name for row in catalogue.get("conditions").rows]
    assert sorted(names) == sorted(
        f"{level}.{method}" for level in CONDITIONS for method in METHODS
    )
    assert {row.name for row in catalogue.get("conditions_brief").rows} < set(names)


def test_every_row_of_a_name_is_the_same_row():
    known = {}
    for study in catalogue.STUDIES.values():
        for row in study.rows:
            assert known.setdefault(row.name, row) == row


def changes(ours, theirs) -> set[str]:
    """The fields in which two values of a class differ."""
    return {f.name for f in fields(ours) if getattr(ours, f.name) != getattr(theirs, f.name)}


def test_variants_differ_from_the_base_in_one_thing():
    base = catalogue.row(f"{BASE}.gated")
    for row in (*catalogue.get("mechanism").rows, *catalogue.get("settings").rows):
        pooling = row.method.pooling
        if pooling == Gap() or row == base:
            continue
        same = {"name": row.name, "label": row.label, "keep_epochs": row.keep_epochs}
        same |= {"method": row.method, "setting": row.setting}
        assert replace(base, **same) == row
        assert replace(row.method, pooling=base.method.pooling) == base.method
        changed = changes(pooling, base.method.pooling) | changes(row.setting, base.setting)
        assert len(changed - ({"levels"} if pooling.fusion == "single" else set())) == 1, row.name


def test_the_brief_study_is_small_and_long_ones_wait_for_their_repeats():
    assert len(catalogue.get("conditions_brief").rows) <= 8
    for name in ("conditions", "mechanism", "settings", "erasing_strength"):
        study = catalogue.get(name)
        assert all(run.left_out(study, profile, 1) for profile in (SMOKE, LAPTOP)), name
        assert not run.left_out(study, LAPTOP, 3)


def test_a_study_fits_the_pictures_it_needs():
    assert catalogue.get("conditions").fits(LAPTOP)
    assert not catalogue.get("conditions").fits(VOC_LITE)
    assert catalogue.get("photo_depth").fits(VOC_LITE)
    assert not catalogue.get("photo_depth").fits(SMOKE)
    assert catalogue.get("gap_vs_gpp").fits(LAPTOP)
    assert catalogue.get("gap_vs_gpp").fits(VOC_LITE)


@pytest.mark.parametrize("name", ["conditions", "conditions_brief"])
def test_photos_have_no_knobs_and_show_the_committed_table(name, capsys):
    assert run.left_out(catalogue.get(name), VOC_LITE, 3)
    shown = Session(VOC_LITE, 3).table(name)
    assert set(shown["row"]) == {row.name for row in catalogue.get(name).rows}
    assert "committed table" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"voc-lite: it has no collages.*laptop or smoke"):
        pipeline.artefacts(VOC_LITE, catalogue.row(f"{BASE}.gap"), 0, lambda *_: None)


# --- effects --------------------------------------------------------------------------------------


def test_known_effects_come_out_at_every_level(effects):
    assert len(effects) == 3 * len(list(levels.levels()))
    plain = effects[(effects["comparison"] == "gpp") & (effects["row"] != "context_1")]
    assert plain["mean"].to_numpy() == pytest.approx(3.0, abs=0.3)
    assert (plain["low"] > 0).all()
    lost = effects[(effects["comparison"] == "gpp") & (effects["row"] == "context_1")].iloc[0]
    assert lost["mean"] == pytest.approx(-2.0, abs=0.3)
    assert lost["shift"] == pytest.approx(-5.0, abs=0.4)
    assert lost["shift_high"] < 0


def test_the_base_has_no_shift_and_counts_once(effects):
    assert effects[effects["row"] == BASE]["shift"].isna().all()
    once = effects.drop_duplicates(["comparison", "row"])
    assert len(once) == 3 * len(CONDITIONS)
    assert (effects.groupby(["comparison", "row"])["p_adjusted"].nunique() == 1).all()
    assert (effects["p_adjusted"] >= effects["p"] - 1e-6).all()
    assert f"comparisons: {3 * len(CONDITIONS)}" in ch08_effects.tally(effects)


def test_a_single_repeat_has_no_interval_and_says_what_to_do():
    with pytest.raises(ValueError, match=r"at least two repeats, got 1.*--repeats 2"):
        ch08_effects.level_effects(table(repeats=1))


def test_methods_with_repeats_of_their_own_are_compared_by_those_they_share():
    both = pd.concat([table(repeats=5, methods=METHODS[:2]), table(repeats=2, methods=METHODS[2:])])
    by_level = ch08_effects.level_effects(both)
    assert by_level.groupby("comparison")["n"].unique().map(list).to_dict() == {
        "gates": [2],
        "gpp": [5],
        "triplet": [2],
    }


def test_advice_follows_the_interval(effects):
    uses = ch08_effects.advice(effects).set_index("condition")["use"]
    assert uses["context 1"] == "GAP"
    assert uses["base"] == "GPP"
    assert len(uses) == len(CONDITIONS)
    unsure = ch08_effects.level_effects(table(noise=20))
    assert "undecided" in set(ch08_effects.advice(unsure)["use"])
    few = ch08_effects.level_effects(table(repeats=2, noise=0.001))
    assert (few.query("comparison == 'gpp' and row == 'base'")["low"] > 0).all()
    assert set(ch08_effects.advice(few)["use"]) == {"undecided"}  # a verdict needs three


def test_conclusions_name_the_levels_that_are_decided(effects):
    gpp, gates, _ = ch08_effects.conclusions(effects).splitlines()
    assert gpp.startswith("- **GPP − GAP > 0** holds at object area 0.03, ")
    assert (
        "; fails at context 1; undecided at 0 of 12; adjusted for 36 comparisons 12 remain" in gpp
    )
    assert gpp.endswith("its mean is above 0 at 11 of 12.")
    assert "; fails at context 1; " in gates
    few = ch08_effects.conclusions(ch08_effects.level_effects(table(repeats=2)))
    assert few.count("holds at no level; fails at no level; undecided at 12 of 12") == 3
    assert few.count(" 0 remain decided") == 3


def test_overview_has_a_line_a_level_and_a_column_a_method():
    means = ch08_effects.overview(table(noise=0), "miou")
    assert list(means.index) == list(CONDITIONS)
    both = ch08_effects.overview(table(), "miou", spread=True)
    of_base = table().query("row == 'base.gap'")["miou"]
    assert both.loc["base", "GAP_sd"] == pytest.approx(of_base.std())
    assert both.loc["base", "GAP"] == pytest.approx(of_base.mean())
    named = ch08_effects.level_names(both)
    assert list(named.index[:2]) == ["base", "object area 0.03"]
    assert (means["G"] - means["GAP"]).drop("context_1").to_numpy() == pytest.approx(3.0)


def test_tables_for_readers_have_their_intervals_and_spreads():
    whole = table(repeats=3).assign(precision=1.0, recall=2.0, miou_maskless=3.0, tag_map=4.0)
    gains = ch08_effects.precision_recall(whole).loc["objects_2"]
    known = effect(paired(whole, "objects_2.gated", "objects_2.gap", "miou").tolist())
    assert gains[["miou", "miou_low", "miou_high"]].tolist() == pytest.approx(known[:3])
    of_rows = ch08_effects.settings_table(whole.assign(entropy=0.5, half_area=0.1))
    first = whole[whole["label"] == of_rows.index[0]]["miou"]
    assert of_rows.iloc[0]["miou_sd"] == pytest.approx(first.std())
    assert of_rows["n"].tolist() == [3] * len(of_rows)


def test_depths_as_a_table_have_a_line_a_depth_and_collages_first():
    keys = ["pictures", "stages", "metric", "mean", "low", "high", "n"]
    lines = [("photos", 2, "miou", 1.0, 0.0, 2.0, 3), ("collages", 4, "miou", 2.0, 1.0, 3.0, 2)]
    lines += [("photos", 2, "recall", 5.0, 4.0, 6.0, 3)]
    shown = ch08_effects.depth_table(pd.DataFrame(lines, columns=keys))
    assert shown[["pictures", "trained stages", "n"]].to_numpy().tolist() == [
        ["collages", 4, 2],
        ["photos", 2, 3],
    ]
    ends = shown.loc[1, ["miou", "miou_low", "miou_high", "recall", "recall_low"]]
    assert ends.tolist() == [1.0, 0.0, 2.0, 5.0, 4.0]


def test_causes_compare_each_setting_with_its_own_gap():
    lines = [
        {"row": name, "label": label, "repeat": n, "miou": value + n}
        for n in range(3)
        for name, label, value in (
            (f"{BASE}.gap", "GAP, base", 50.0),
            (f"{BASE}.gated", "G, base", 48.0),
            ("root.gated", "G, square root", 51.0),
            ("depth2.gap", "GAP, two stages trained", 60.0),
            ("depth2.gated", "G, two stages trained", 61.0),
        )
    ]
    causes = (
        ch08_effects.cause_effects(pd.DataFrame(lines))
        .set_index(["group", "label"])["mean"]
        .to_dict()
    )
    assert causes == {
        ("G − GAP", "base"): -2.0,
        ("G − GAP", "two stages trained"): 1.0,
        ("variant − G", "G, square root"): 3.0,
        ("variant − GAP", "G, square root"): 1.0,
    }


def test_depth_effects_set_photos_beside_collages(monkeypatch):
    rows = [
        (f"{name}.{m}", s, 50.0 + s + v)
        for s in range(3)
        for name, v in ((BASE, 0), ("depth4", 2))
        for m in ("gap", "gated")
    ]
    mechanism = pd.DataFrame(rows, columns=["row", "repeat", "miou"]).assign(
        precision=60.0, recall=60.0
    )
    mechanism.loc[mechanism["row"] == "depth4.gated", "miou"] += mechanism["repeat"]
    theirs = {"photos_depth4.gated": [1.0], "gated": [-1.0, -1.5]}
    monkeypatch.setattr(
        photo_results, "differences", lambda more, less, _: np.array(theirs.get(more, []))
    )
    depths = (
        ch08_effects.depth_effects(mechanism)
        .query("metric == 'miou'")
        .set_index(["pictures", "stages"])
    )
    assert depths["mean"].to_dict() == {
        ("collages", 1): 0.0,
        ("photos", 2): -1.25,
        ("collages", 4): 1.0,
        ("photos", 4): 1.0,
    }
    assert np.isnan(depths.loc[("photos", 4), "low"])
    assert depths.loc[("collages", 4), "low"] < 1 < depths.loc[("collages", 4), "high"]
    figure = ch08_figures.depth_curves(ch08_effects.depth_effects(mechanism))
    drawn = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    faces = [line.get_markerfacecolor() for line in figure.axes[0].lines if len(line.get_ydata())]
    assert "white" in faces  # a repeat or two have no interval
    assert drawn["collages"] == [0.0, 1.0]
    assert drawn["photos"] == [-1.25, 1.0]
    plt.close(figure)


def test_width_is_against_the_visible_object_and_narrowing_against_gap():
    values = {
        f"{BASE}.gap": 0.15,
        f"{BASE}.gated": 0.075,
        "occlusion_0.5.gap": 0.15,
        "occlusion_0.5.gated": 0.15,
    }
    values |= {"depth4.gap": 0.30, "depth4.gated": 0.15, "lonely.gap": 0.1}
    lines = [
        {
            "row": row,
            "repeat": n,
            "half_area": value,
            "miou": 50.0 + n,
            "precision": 60.0,
            "recall": 60.0,
        }
        for row, value in values.items()
        for n in range(2)
    ]
    widths = ch08_effects.width_effects(pd.DataFrame(lines)).set_index("setting")
    assert widths["width"].to_dict() == pytest.approx(
        {BASE: 1.0, "occlusion_0.5": 2.0, "depth4": 2.0}
    )
    assert widths["narrowing"].to_dict() == pytest.approx(
        {BASE: 0.5, "occlusion_0.5": 1.0, "depth4": 0.5}
    )
    assert (widths[["miou", "precision", "recall"]] == 0).all(axis=None)
    figure = ch08_figures.width_scatter(widths.reset_index())
    assert figure.axes[0].lines[0].get_xdata().tolist() == widths["width"].tolist()
    plt.close(figure)


def test_where_erasing_stops():
    curves = pd.DataFrame(
        {
            "label": ["soft, ×1"] * 6,
            "repeat": [0, 0, 0, 1, 1, 1],
            "epoch": [0, 1, 2] * 2,
            "recall": [60, 66, 64, 61, 67, 65],
            "precision": [70, 68, 67, 70, 69, 68],
            "miou_best": [50, 51, 50, 50, 52, 51],
        }
    )
    spreads = curves[["label", "repeat", "epoch"]].assign(tag_map=[90, 89, 88] * 2)
    line = ch08_effects.where_it_stops(curves, spreads).iloc[0]
    assert (line["recall"], line["precision"], line["tag_map"], line["stops"], line["n"]) == (
        4.0,
        -2.5,
        -2.0,
        1,
        2,
    )


# --- objects by bin -------------------------------------------------------------------------------


def objects():
    return pd.DataFrame(
        {
            "row": ["gap", "gap", "gated", "gated"],
            "label": ["GAP", "GAP", "G", "G"],
            "repeat": 0,
            "area": [0.05, 0.4, 0.05, 0.4],
            "tp": [30, 300, 40, 300],
            "predicted": [60, 400, 50, 300],
            "true": [50, 400, 50, 400],
            "entropy": 0.5,
            "half_area": 0.1,
        }
    )


def test_bins_add_pixels_up_and_are_in_order():
    measured = objects()
    binned = ch08_effects.by_bin(measured, ch08_effects.area_bins(measured["area"]))
    assert binned["bin"].astype(str).tolist() == ["0-6 %", "0-6 %", "32-100 %", "32-100 %"]
    first = binned.iloc[0]
    assert (first["iou"], first["precision"], first["recall"]) == pytest.approx(
        (100 * 30 / 80, 50.0, 60.0)
    )


def test_bin_effects_of_a_single_repeat_have_no_interval():
    measured = objects()
    binned = ch08_effects.by_bin(measured, ch08_effects.area_bins(measured["area"]))
    by_area = ch08_effects.bin_effects(binned, "gated", "gap").set_index("bin")
    assert by_area.loc["0-6 %", "mean"] == pytest.approx(100 * 40 / 60 - 100 * 30 / 80)
    assert "low" not in by_area or by_area["low"].isna().all()


@pytest.mark.parametrize("edges", [(0, 0.5), (0.1, 1), (0, 0.5, 0.5, 1), (0, 0.9, 0.2, 1)])
def test_edges_must_go_from_0_to_1(edges):
    with pytest.raises(ValueError, match="edges of areas must increase from 0 to 1"):
        ch08_effects.area_bins(pd.Series([0.1]), edges)


def test_every_area_has_a_bin():
    assert ch08_effects.area_bins(pd.Series([0.0, 0.06, 0.0601, 1.0])).astype(str).tolist() == [
        "0-6 %",
        "0-6 %",
        "6-15 %",
        "32-100 %",
    ]


# --- report ---------------------------------------------------------------------------------------


def test_the_report_has_a_line_a_level_with_its_interval():
    whole = table(repeats=3)
    built = report.build({"conditions": whole}, "laptop")
    lines = {line["id"]: line for line in built["claims"] if line["id"].startswith("condition.")}
    assert len(lines) == 3 * len(list(levels.levels())) + len(levels.DEPTHS)
    line = lines["condition.context.1"]
    assert (line["verdict"], line["n"], line["paper_scale"]) == ("fails", 3, "not run")
    assert line["low"] < line["reproduced_mean"] < line["high"] < 0
    assert lines["condition.object_area.0.15"]["verdict"] == "holds"
    assert (
        lines["condition.objects.1"]["reproduced_mean"]
        == lines["condition.object_area.0.15"]["reproduced_mean"]
    )


def test_depths_of_training_are_lines_of_both_kinds_of_pictures(monkeypatch):
    rows = [
        (f"{name}.{m}", s, 50.0 + s + v)
        for s in range(3)
        for name in (BASE, "depth4")
        for m, v in (("gap", 0), ("gated", 2 + s))
    ]
    tables = {"mechanism": pd.DataFrame(rows, columns=["row", "repeat", "miou"])}
    theirs = {
        ("photos_depth4.gated", "photos_depth4.gap"): np.array([1.0, 1.1, 1.2]),
        ("gated", "gap"): np.array([-1.0, -1.2]),
    }
    monkeypatch.setattr(
        photo_results, "differences", lambda more, less, _: theirs.get((more, less), np.array([]))
    )
    lines = {line["id"]: line for line in report.build(tables, "laptop")["claims"]}
    deep, own, frozen = (lines[f"condition.trained_stages.{n}"] for n in (4, 2, 0))
    assert (deep["reproduced_mean"], deep["photos_mean"], deep["photos_verdict"]) == (
        3.0,
        1.1,
        "holds",
    )
    assert deep["photos_low"] == pytest.approx(1.1 - 4.302653 * 0.1 / 3**0.5, abs=1e-5)
    assert (own["verdict"], own["photos_n"]) == ("not run", 2)
    assert (frozen["photos_verdict"], lines["condition.context.1"]["photos_verdict"]) == (
        "not run",
        "no such knob",
    )


def test_without_its_study_a_level_is_not_run():
    lines = [
        line for line in report.build({}, "laptop")["claims"] if line["id"].startswith("condition.")
    ]
    assert {line["verdict"] for line in lines} == {"not run"}


def test_claims_have_a_column_for_photos_from_the_committed_repeats():
    line = next(
        line for line in report.build({}, "laptop")["claims"] if line["id"] == "claim.gpp_beats_gap"
    )
    assert line["photos_n"] == len(photo_results.differences("gated", "gap", "miou")) >= 3
    interval = effect(photo_results.differences("gated", "gap", "miou"))
    assert (line["photos_low"], line["photos_high"]) == pytest.approx(interval[1:3], rel=1e-5)
    assert line["photos_verdict"] == "undecided"
    assert line["photos_reason"] == f"{line['photos_n']} of 5 repeats"
    assert "| on real photos | " in report_page.markdown({"claims": [line]})


def test_photo_differences_come_from_one_set_of_photos(tmp_path, monkeypatch):
    file = tmp_path / "photos.csv"
    file.write_text(
        "photos,row,label,repeat,miou\n640,gap,GAP,0,1\n640,gated,G,0,5\n"
        "1200,gap,GAP,0,2\n1200,gated,G,0,4\n640,a,A,0,7\n"
    )
    monkeypatch.setattr(photo_results, "FILE", file)
    photo_results.table.cache_clear()
    photo_results.differences.cache_clear()
    try:
        assert photo_results.differences("gated", "gap", "miou").tolist() == [2.0]  # the larger set
        assert photo_results.differences("a", "gap", "miou").tolist() == [
            6.0
        ]  # the set that has both
        assert len(photo_results.differences("a", "unknown", "miou")) == 0
        assert len(photo_results.differences("a", "gap", "recall")) == 0
    finally:
        photo_results.table.cache_clear()
        photo_results.differences.cache_clear()


def test_a_richer_committed_line_keeps_its_numbers_and_gets_the_new_columns(tmp_path):
    before = report.build({"conditions": table(repeats=5)}, "laptop")
    lacking = ("photos", "paper_scale")  # columns that an older report has not
    old = [
        {name: value for name, value in line.items() if not name.startswith(lacking)}
        for line in before["claims"]
    ]
    (tmp_path / "report.json").write_text(json.dumps({**before, "claims": old}))
    merged = report.carry_over(report.build({"conditions": table(repeats=2)}, "laptop"), tmp_path)
    line = next(line for line in merged["claims"] if line["id"] == "condition.context.1")
    first = next(line for line in before["claims"] if line["id"] == "condition.context.1")
    assert line["n"] == 5
    assert (line["low"], line["high"]) == (first["low"], first["high"])
    assert line["paper_scale"] == "not run"


# --- figures --------------------------------------------------------------------------------------


def test_the_forest_shows_every_effect_at_its_place_filled_where_it_survives(effects):
    figure = ch08_figures.effect_forest(effects)
    assert [axis.get_title() for axis in figure.axes] == [
        label for *_, label in ch08_effects.COMPARISONS.values()
    ]
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    of_panel = effects[effects["comparison"] == "gpp"].drop_duplicates("row")
    is_base = of_panel["row"] == "base"
    of_panel = pd.concat([of_panel[is_base], of_panel[~is_base]])  # the base once, on top
    places = [line.get_ydata()[0] for line in dots]
    assert places == sorted(set(places))
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == [row.replace("_", " ") for row in of_panel["row"]]
    assert [line.get_xdata()[0] for line in dots] == of_panel["mean"].tolist()
    ticks = [tuple(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() == "|"]
    assert ticks == of_panel["differences"].tolist()  # the repeats
    filled = [line.get_markerfacecolor() != "white" for line in dots]
    assert filled == (of_panel["p_adjusted"] < 0.05).tolist()
    plt.close(figure)


def test_paths_of_erasing_begin_together_and_end_at_the_last_epoch():
    curves = pd.DataFrame(
        {
            "label": ["soft, ×1"] * 2 + ["soft, ×4"] * 2,
            "repeat": 0,
            "epoch": [0, 1] * 2,
            "recall": [60, 62, 60, 70],
            "precision": [70, 70, 70, 60],
        }
    )
    figure = ch08_figures.erasing_paths(curves)
    once, four = figure.axes
    assert [axis.get_title() for axis in (once, four)] == ["weights ×1", "weights ×4"]
    paths = [{line.get_label(): line for line in axis.lines}["soft"] for axis in (once, four)]
    assert [path.get_xdata().tolist() for path in paths] == [[60, 62], [60, 70]]
    assert len({path.get_color() for path in paths}) == 1
    plt.close(figure)


def test_the_knob_grid_has_a_picture_a_level_over_the_texts_width():
    picture = np.zeros((4, 4, 3), np.uint8)
    names = ["base", "context 1", "clutter 6"]
    figure = ch08_figures.knob_grid(dict.fromkeys(names, picture), columns=2)
    assert [axis.get_title() for axis in figure.axes] == [*names, ""]
    assert [len(axis.images) for axis in figure.axes] == [1, 1, 1, 0]
    assert figure.get_figwidth() == TEXT_WIDTH
    plt.close(figure)


def photo_bins(width: dict[str, float], gain: dict[str, float]) -> pd.DataFrame:
    """Objects of photos in two bins of area, three repeats; G gains so much on GAP's 50."""
    lines = []
    for name, half_area in width.items():
        for repeat in range(3):
            line = {"kind": "area", "bin": name, "repeat": repeat, "half_area": half_area, "n": 9}
            lines.append(line | {"row": "gap", "iou": 50.0})
            lines.append(line | {"row": "gated", "iou": 50.0 + gain[name] + 0.1 * repeat})
    return pd.DataFrame(lines)


def test_bins_are_hints_and_the_hypothesis_on_widths_is_tested_bin_by_bin():
    width = {"0-6 %": 0.10, "6-15 %": 0.10, "32-100 %": 0.25}
    gain = {"0-6 %": -2.0, "6-15 %": 0.3, "32-100 %": -1.0}
    where, hint, widths = ch08_told.bins(photo_bins(width, gain)).splitlines()
    assert "above 0 in 6-15 %" in where
    assert "below 0 in 0-6 % -1.9 [" in where
    assert "32-100 % -0.9 [" in where
    assert "3 bins of 3 repeats" in hint
    assert "no verdicts" in hint
    assert (
        "fills 10 % of the photo in 0-6 %, more than its objects, so G should gain: -1.9" in widths
    )
    assert "fills 25 % of the photo in 32-100 %, less than its objects, so G should lose" in widths
    assert "6-15 %" not in widths  # neither wider nor narrower
    assert widths.endswith("The prediction is met in 1 of 2.")
    middle = photo_bins({"6-15 %": 0.1}, {"6-15 %": 0.0})
    assert "in no bin" in ch08_told.bins(middle).splitlines()[-1]


def test_ranks_with_the_width_are_told_for_planned_levels_apart():
    levels = [*CONDITIONS][:4]
    widths = pd.DataFrame({"setting": [*levels, "depth0"], "width": [1.0, 2.0, 3.0, 4.0, 9.0]})
    for metric in ch08_effects.METRICS:
        widths[metric] = [4.0, 3.0, 2.0, 1.0, 9.0]
    ranks = ch08_effects.width_ranks(widths)
    assert [*ranks.columns] == ["all settings (5)", "planned levels alone (4)"]
    assert ranks.loc["mIoU"].tolist() == pytest.approx([0.0, -1.0])


def test_advice_has_to_remain_after_the_adjustment(effects):
    unsure = effects.assign(p_adjusted=1.0)
    uses = ch08_effects.advice(unsure).set_index("condition")["use"]
    assert uses["base"] == "undecided (GPP before the adjustment)"
    assert uses["context 1"] == "undecided (GAP before the adjustment)"
