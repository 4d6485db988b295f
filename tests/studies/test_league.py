"""The league table: systems by their published ids, intervals, mechanisms, ranks, advice, costs."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from aeft_lib import paths
from aeft_lib.studies import (
    catalogue,
    collected,
    findings,
    league,
    pipeline,
    report,
    rivals_grid,
    run,
    systems,
    work,
)
from aeft_lib.studies.effects import adjusted, effect
from aeft_lib.studies.profiles import LAPTOP, SMOKE
from aeft_lib.studies.systems import ENDS, FAMILIES, PLACES, SYSTEMS

ROWS = catalogue.rows_by_name()
# PMM's label maps begin with GAP's seeds here, and its networks have no number of their own.
FEW_NAMES = ("gap", "gap_pseudo", "attract_soft_repel", "aeft_pseudo", "segment_aeft", "seam")
FEW_NAMES += ("psa_seed", "psa", "psa_segment", "pmm", "pmm_segment", "pmm_pus")
FEW = {
    name: replace(ROWS[name], published=None) if name.startswith("pmm_") else ROWS[name]
    for name in FEW_NAMES
}
T_3 = 4.302653  # of Student's t with two degrees of freedom, 97.5 %
NO_PHOTOS = pd.DataFrame(columns=["row", "repeat"])


def numbers(**rows: dict[str, list[float]]) -> pd.DataFrame:
    """A long table: row -> number -> its value in each repeat."""
    parts = [
        pd.DataFrame({"row": row, "label": row, "repeat": range(len(next(iter(of.values()))))} | of)
        for row, of in rows.items()
    ]
    return pd.concat(parts, ignore_index=True)


def line(lines: pd.DataFrame, name: str, end: str) -> pd.Series:
    return lines[(lines["name"] == name) & (lines["end"] == end)].iloc[0]


# --- controls -------------------------------------------------------------------------------------


def test_a_system_stands_beside_itself_with_a_part_otherwise_and_gap_at_its_cost():
    table = numbers(
        gap={"miou": [50.0, 51.0]},
        seam={"miou": [54.0, 55.0, 56.0]},
        seam_off={"miou": [52.0, 52.0, 52.0]},
        gap_as_seam={"miou": [55.0, 56.0]},
        cpn_off={"miou": [1.0]},  # without its system
        psa={"miou_maskless": [60.0, 61.0]},
        psa_crf={"miou_maskless": [58.0, 58.0]},
        pmm={"miou_maskless": [60.0, 61.0]},
        pmm_seam={"miou_maskless": [58.0, 58.0]},  # on other seeds
    )
    found = league.controls(table, ROWS).set_index("row")
    assert set(found.index) == {"seam_off", "gap_as_seam", "psa_crf"}
    assert found.loc["seam_off", ["difference", "mean", "pairs"]].tolist() == [3.0, 52.0, 3]
    assert found.loc["gap_as_seam", ["difference", "pairs"]].tolist() == [-1.0, 2]
    # ICD's seeds are label maps, GAP's are not; the comparison is the paper's.
    icd = numbers(icd={"miou": [40.0]}, gap_as_icd={"miou": [50.0]})
    assert league.controls(icd, ROWS)["row"].tolist() == ["gap_as_icd"]
    assert found.loc["psa_crf", ["end", "difference"]].tolist() == ["pseudo", 2.5]
    assert found.loc["seam_off", "low"] == pytest.approx(3 - T_3 / 3**0.5)
    # The baseline of a published number is what a method starts from.
    walks = numbers(irnet={"miou_maskless": [70.0, 71.0]}, psa={"miou_maskless": [60.0, 62.0]})
    (of_irnet,) = league.controls(walks, ROWS).to_dict("records")
    assert (of_irnet["method"], of_irnet["row"]) == ("IRNet", "psa")
    assert of_irnet["difference"] == 9.5
    # A part of networks that are no end of their system: PMM's ends with the second one.
    softened = numbers(
        pmm_pus={"miou_maskless": [48.0, 49.0]},
        pmm_segment={"miou_maskless": [46.0, 48.0]},
        truth_pus={"miou_maskless": [50.0]},
        segment_truth={"miou_maskless": [51.0]},
    )
    pus, truth = league.controls(softened, ROWS).to_dict("records")
    assert (pus["method"], pus["row"]) == ("PMM, network with PUS", "pmm_segment")
    assert (pus["end"], pus["difference"], pus["pairs"]) == ("segmentation", 1.5, 2)
    assert (truth["method"], truth["difference"]) == ("true masks, network with PUS", -1.0)
    assert league.controls(table.iloc[:0], ROWS).empty


# --- seconds --------------------------------------------------------------------------------------


def test_seconds_are_those_of_all_trainings_behind_a_row():
    rows = {name: ROWS[name] for name in ("gap", "sccam_round1")}
    made = {name: pipeline.artefacts(SMOKE, row, 0)["classifier"] for name, row in rows.items()}
    own = {name: artefact.record["seconds"] for name, artefact in made.items()}
    table = collected.stored(SMOKE, rows.values(), [0]).set_index("row")
    assert table.loc["gap", "seconds"] == own["gap"]
    assert table.loc["sccam_round1", "seconds"] == pytest.approx(own["gap"] + own["sccam_round1"])
    assert table.loc["gap", "key"] == collected.key(SMOKE, rows["gap"], 0)
    assert collected.stored(SMOKE, rows.values(), [77]).empty


# --- systems --------------------------------------------------------------------------------------


def test_systems_are_the_posters_seventeen_in_its_order():
    results = report.published()["results"]
    assert [known.method for known in SYSTEMS] == [result["method"] for result in results]
    assert len({known.name for known in SYSTEMS}) == len(SYSTEMS) == 17
    assert {known.family for known in SYSTEMS} == set(FAMILIES)
    for known in SYSTEMS:
        assert known.changes
        assert set(known.changes) <= set(PLACES)
        assert list(known.changes) == sorted(known.changes, key=PLACES.index)


def test_every_published_number_of_a_rival_is_of_a_system():
    names = [name.split(".") for name in report.published()["numbers"]]
    rivals = {name for kind, name, *_ in (parts for parts in names if parts[0] == "rival")}
    assert rivals <= {known.name for known in SYSTEMS}


def test_rows_are_found_by_their_ids():
    for known in SYSTEMS:
        found = systems.ends(known, ROWS)
        for row in catalogue.get("rivals").rows:
            for end, name in systems.ids(known).items():
                if row.published == name:
                    assert found[end].name == row.name
        assert list(found) == [end for end in ENDS if end in found]


def test_what_a_row_changes_is_what_the_map_says():
    gap, rows = catalogue.row("gap"), ROWS
    for known in SYSTEMS:
        found = systems.ends(known, ROWS)
        seed, pseudo = found.get("seed"), found.get("pseudo")
        own = seed is not None and seed.published in systems.ids(known).values()
        if own and systems.learned(seed, "reader") != systems.learned(gap, "reader"):
            assert "classifier" in known.changes, known.name
        if pseudo and known.family == "refiners":
            assert "refiner" in known.changes, known.name
            assert pseudo.refiner != rows["gap_pseudo"].refiner


def test_the_papers_own_ends_and_those_without_an_id():
    names = {
        n: {e: r.name for e, r in systems.ends(systems.system(n), FEW).items()}
        for n in ("AEFT (the paper)", "psa", "pmm")
    }
    assert names["AEFT (the paper)"] == {
        "seed": "attract_soft_repel",
        "pseudo": "aeft_pseudo",
        "segmentation": "segment_aeft",
    }
    assert names["psa"] == {"seed": "psa_seed", "pseudo": "psa", "segmentation": "psa_segment"}
    assert names["pmm"]["seed"] == "gap"
    assert names["pmm"]["segmentation"] == "pmm_pus"  # a segmenter of its own comes first


def test_an_unknown_system_is_refused_with_all_names():
    with pytest.raises(ValueError, match=r"no system is called 'CAM'; there are psa, icd.*aeft"):
        systems.system("CAM")


def test_a_brief_look_has_gap_and_seeds_of_every_family_that_has_some():
    gap, *others = systems.brief(ROWS)
    assert gap.name == "gap"
    assert len({row.name for row in others}) == len(others) <= len(FAMILIES)
    assert not any(row.refiner or row.segmenter for row in others)
    assert {"seam", "sccam"} <= {row.name for row in others}


# --- the table ------------------------------------------------------------------------------------


@pytest.fixture
def table() -> pd.DataFrame:
    """GAP and SEAM in three repeats, SEAM's labels in one; OC-CSE without a GAP of its repeat."""
    return numbers(
        gap={
            "miou": [50.0, 51.0, 52.0],
            "miou_maskless": [49.0, 50.0, 51.0],
            "equivariance_error": [0.20, 0.21, 0.22],
        },
        seam={
            "miou": [53.0, 55.0, 54.0],
            "miou_maskless": [50.0, 52.0, 52.5],
            "equivariance_error": [0.10, 0.12, 0.11],
        },
        gap_pseudo={"miou_maskless": [60.0]},
        seam_pseudo={"miou_maskless": [62.5]},
    )


def test_means_and_differences_have_students_interval(table):
    seam = line(league.lines(table, ROWS), "seam", "seed")
    assert (seam["mean"], seam["repeats"], seam["row"]) == (54.0, 3, "seam")
    assert seam["low"] == pytest.approx(54 - T_3 * 1 / 3**0.5, abs=1e-4)
    differences = np.array([3.0, 4.0, 2.0])
    assert seam["difference"] == pytest.approx(3.0)
    assert seam["difference_high"] == pytest.approx(3 + T_3 * differences.std(ddof=1) / 3**0.5)
    assert (seam["verdict"], seam["pairs"]) == ("holds", 3)


def test_seeds_are_compared_without_masks_too(table):
    seam = line(league.lines(table, ROWS), "seam", "seed")
    mean, low, high, *_ = effect([1.0, 2.0, 1.5])
    assert seam[["maskless", "maskless_low", "maskless_high"]].tolist() == [mean, low, high]
    pseudo = line(league.lines(table, ROWS), "seam", "pseudo")
    assert pseudo["maskless"] == pseudo["difference"] == 2.5


def test_published_numbers_of_another_task_are_not_comparable(table):
    lines = league.lines(table, ROWS)
    others = lines[~lines["comparable"] & lines["published"].notna()]
    assert set(zip(others["name"], others["end"], strict=True)) == {
        ("icd", "seed"),
        ("icd", "pseudo"),
        ("pmm", "seed"),
        ("pmm", "pseudo"),
    }


def test_a_single_repeat_has_no_interval_and_no_verdict(table):
    pseudo = line(league.lines(table, ROWS), "seam", "pseudo")
    assert (pseudo["mean"], pseudo["difference"], pseudo["repeats"]) == (62.5, 2.5, 1)
    assert pseudo[["low", "high", "difference_low", "p"]].isna().all()
    assert pseudo["verdict"] == "1 of 3 repeats"


def test_what_has_no_numbers_is_not_run_and_keeps_its_published_number(table):
    lines = league.lines(table, ROWS)
    assert len(lines) == len(SYSTEMS) * len(ENDS)
    icd = line(lines, "icd", "segmentation")
    assert (icd["verdict"], icd["repeats"], icd["published"]) == ("not run", 0, 64.1)
    assert line(lines, "seam", "seed")["published"] == 55.41
    alone = league.lines(numbers(seam={"miou": [50.0, 51.0]}), ROWS)
    assert line(alone, "seam", "seed")["verdict"] == "no GAP to compare"
    nothing = league.lines(pd.DataFrame(columns=["row", "label", "repeat"]), ROWS)
    assert set(nothing["verdict"]) == {"not run"}


def test_shared_seeds_are_told_and_are_no_comparison(table):
    lines = league.lines(table, FEW)
    assert (line(lines, "pmm", "seed")["shared"], line(lines, "seam", "seed")["shared"]) == (
        "GAP",
        "",
    )
    assert np.isnan(line(lines, "pmm", "seed")["p_adjusted"])


def test_seeds_of_a_system_that_changes_no_classifier_and_no_reader_are_gaps(table):
    more = numbers(psa_seed={"miou": [50.1, 51.1, 52.1]}, irnet_seed={"miou": [50.1, 51.1, 52.1]})
    lines = league.lines(pd.concat([table, more]), ROWS)
    seeds = lines[lines["end"] == "seed"].set_index("name")["shared"]
    assert {name for name, whose in seeds.items() if whose == "GAP"} >= {"psa", "irnet", "ssdd"}
    assert seeds[["seam", "bes", "advcam"]].tolist() == ["", "", ""]
    assert "1 of 17 systems" in findings.conclusions(lines, more, NO_PHOTOS).splitlines()[0]


def test_p_values_are_adjusted_for_all_comparisons_of_the_league(table):
    more = numbers(cpn={"miou": [50.5, 51.0, 52.7]}, bes_seed={"miou": [49.0, 49.5, 51.5]})
    lines = league.lines(pd.concat([table, more]), ROWS)
    tested = lines.dropna(subset="p_adjusted")
    assert set(tested["name"]) == {"seam", "cpn", "bes"}
    assert tested["p_adjusted"].tolist() == adjusted(tested["p"].tolist())


# --- mechanisms -----------------------------------------------------------------------------------


def test_a_mechanism_that_moved_as_claimed_or_the_other_way(table):
    seam = systems.system("seam")
    assert findings.mechanism(table, seam, ROWS).startswith(
        "moved: equivariance error -0.100 [-0.1"
    )
    reverse = table.assign(equivariance_error=-table["equivariance_error"])
    assert findings.mechanism(reverse, seam, ROWS).startswith(
        "moved the other way: equivariance error"
    )


def test_a_mechanism_within_its_interval_or_of_few_repeats_did_not_move(table):
    seam, same = systems.system("seam"), table.copy()
    same.loc[same["row"] == "seam", "equivariance_error"] = [0.19, 0.23, 0.21]
    assert findings.mechanism(same, seam, ROWS).startswith("not seen to move: equivariance error")
    few = table[table["repeat"] < 2]
    assert findings.mechanism(few, seam, ROWS).endswith("(2 of 3 repeats)")


def test_two_numbers_of_one_row_are_told_and_are_no_comparison():
    rounds = {"miou": [50.0] * 3, "context_share": [0.2, 0.3, 0.25], "context_spread": [0.8] * 3}
    told = findings.mechanism(numbers(conta=rounds), systems.system("conta"), ROWS)
    assert told == "context share 0.25, context spread 0.8"


def test_what_a_judge_sees_is_compared_with_a_learner_that_does_not_hear_it():
    judged = {"p_erased": [0.2, 0.3, 0.25], "p_kept": [0.8, 0.85, 0.9]}
    unheard = {"p_erased": [0.6, 0.7, 0.66], "p_kept": [0.8, 0.86, 0.89]}
    system = systems.system("occse")
    told = findings.mechanism(numbers(occse=judged, occse_off=unheard), system, ROWS)
    erased, kept = told.split("; ")
    assert erased.startswith("moved: p of the erased class -0.403 [-0.")
    assert kept.startswith("not seen to move: p of the kept classes +0.000")
    told = findings.mechanism(numbers(occse=judged), system, ROWS)
    assert told == "p of the erased class 0.25, p of the kept classes 0.85, nothing to compare"


def test_what_parts_log_stands_beside_a_systems_own_mechanism():
    labels = {"miou_maskless": [60.0], "outweighed": [0.01], "overlap": [0.02]}
    network = {"miou_maskless": [50.0], "pus_acted": [0.9], "pus_pixels": [0.1]}
    told = findings.mechanism(numbers(pmm=labels, pmm_pus=network), systems.system("pmm"), ROWS)
    assert "; PMM, network with PUS: share of steps in which PUS acted 0.9" in told


def test_mechanisms_without_comparison_numbers_or_log_say_so(table):
    assert findings.mechanism(table, systems.system("cpn"), ROWS) == "not run"
    labelled = numbers(psa={"miou_maskless": [50.0]})  # scored before its mechanism was logged
    assert findings.mechanism(labelled, systems.system("psa"), ROWS) == "not logged"
    assert findings.mechanism(table, systems.system("psa"), {}) == "not logged"
    alone = numbers(cpn={"miou": [50.0], "complementarity_error": [0.125]})
    told = findings.mechanism(alone, systems.system("cpn"), ROWS)
    assert told == "complementarity error 0.125, nothing to compare"
    names = [
        n
        for part in systems.ends(systems.system("sccam"), ROWS)["seed"].mechanisms
        for n in part.names
    ]
    logged = numbers(sccam={"miou": [50.0], **{name: [0.5] for name in names}})
    assert findings.mechanism(logged, systems.system("sccam"), ROWS).count("0.5") == len(names)


def test_a_mechanism_against_a_level():
    climbed = {"amplification_ratio": [1.4, 1.5, 1.45]}
    told = findings._moved(numbers(advcam=climbed), "advcam", findings.SIGNS["advcam"][0])
    assert told.startswith("moved: amplification of what was weak +0.450 [+0.")
    shrunk = {"amplification_ratio": [0.9, 0.91, 0.92]}
    told = findings._moved(numbers(advcam=shrunk), "advcam", findings.SIGNS["advcam"][0])
    assert told.startswith("moved the other way")


# --- ranks ----------------------------------------------------------------------------------------


def test_ranks_are_spearmans_and_their_interval_holds_them():
    random = np.random.default_rng(1)
    for n in (4, 7, 17):
        pairs = random.integers(0, 9, size=(2, n)).astype(float)  # with ties
        ranks = findings.rank_correlation(*pairs)
        assert ranks.rho == pytest.approx(stats.spearmanr(*pairs).statistic)
        assert -1 <= ranks.low <= ranks.high <= 1
        assert ranks.n == n


def test_ranks_of_a_monotone_relation_are_one_whatever_the_scale():
    published = [48.0, 50.9, 55.4, 56.0, 57.4]
    ranks = findings.rank_correlation(published, np.exp(published))
    assert (ranks.rho, ranks.high) == pytest.approx((1.0, 1.0))
    assert findings.rank_correlation(published, [-x for x in published]).rho == pytest.approx(-1)


def test_pairs_with_a_gap_are_left_out_and_few_have_no_ranks():
    missing = [1.0, 2.0, np.nan, 4.0, 5.0]
    assert findings.rank_correlation(missing, [1.0, 2.0, 3.0, 4.0, np.nan]).n == 3
    assert (
        str(findings.rank_correlation([], [])) == "Too few systems have both numbers (0) for ranks"
    )
    assert str(findings.rank_correlation(missing, missing)).startswith("Spearman's rho +1.00 [")
    with pytest.raises(ValueError, match="2 published and 1 reproduced"):
        findings.rank_correlation([1.0, 2.0], [1.0])


def test_ranks_leave_out_other_tasks_shared_seeds_and_few_repeats():
    named = ("icd", "psa_seed", "seam", "cpn", "sccam", "occse")
    values = {name: {"miou": [50.0 + i, 50.5 + i, 51.0 + i]} for i, name in enumerate(named)}
    lines = league.lines(numbers(advcam={"miou": [60.0]}, **values), ROWS)
    assert findings.ranks(lines, "seed").n == 4
    assert str(findings.ranks(lines, "seed")).endswith("n = 4: so few systems decide nothing")


# --- advice ---------------------------------------------------------------------------------------


def test_a_system_is_recommended_only_where_its_interval_lies_above_zero(table):
    lines = league.lines(table, ROWS, {"seam": 1.25})
    (told,) = findings.advice(lines, table)
    mean, low, high, *_ = effect([3.0, 4.0, 2.0])
    assert told.startswith(f"Use SEAM when you want seeds: {mean:+.1f} [{low:+.1f}, {high:+.1f}]")
    assert "points over GAP, +1.5 [" in told
    assert "without masks, for 1.2 GAP trainings; GAP trained for as long was not run" in told
    wide = numbers(gap={"miou": [50.0, 51.0, 52.0]}, seam={"miou": [56.0, 50.0, 55.0]})
    assert findings.advice(league.lines(wide, ROWS), wide) == []
    told = findings.conclusions(league.lines(wide, ROWS), wide, NO_PHOTOS)
    assert "collages recommend none" in told


def test_conclusions_name_who_is_better_and_what_remains_after_the_adjustment(table):
    more = numbers(cpn={"miou": [20.0, 21.2, 22.0]}, occse={"miou": [50.5, 50.5, 52.0]})
    both = pd.concat([table, more])
    seeds = findings.conclusions(league.lines(both, ROWS), both, NO_PHOTOS).splitlines()[0]
    assert "1 better (SEAM; after adjustment none), 1 worse (CPN; after adjustment CPN)" in seeds
    assert ", 1 undecided, " in seeds


@pytest.mark.parametrize(
    ("truth", "told"),
    [([49.0, 52.0, 51.0], "do not tell better labels from worse"), ([60.0, 61.0, 62.5], "teach a")],
)
def test_conclusions_say_whether_a_network_tells_true_masks_from_labels(table, truth, told):
    networks = numbers(
        gap_segmentation={"miou_maskless": [50.0, 51.0, 52.0]},
        segment_truth={"miou_maskless": truth},
    )
    of_network = findings.conclusions(league.lines(table, ROWS), networks, NO_PHOTOS).splitlines()[
        2
    ]
    assert "true masks is" in of_network
    assert told in of_network
    alone = findings.conclusions(league.lines(table, ROWS), table, NO_PHOTOS)
    assert "true masks" not in alone


def test_a_system_that_is_ahead_with_masks_alone_is_not_recommended(table):
    table.loc[table["row"] == "seam", "miou_maskless"] = [48.0, 51.0, 50.0]
    (told,) = findings.advice(league.lines(table, ROWS), table)
    assert told.startswith("SEAM is ahead of GAP at the best threshold on masks alone (+3.0 [")
    assert told.endswith("so collages do not recommend it.")


@pytest.mark.parametrize(
    ("gap", "told"),
    [([50.0, 52.0, 51.0], "; ahead"), ([54.0, 54.0, 54.0], "; not seen to be ahead")],
)
def test_advice_says_what_is_left_against_gap_of_the_same_cost(table, gap, told):
    longer = pd.concat([table, numbers(gap_as_seam={"miou": gap})])
    (sentence,) = findings.advice(league.lines(longer, ROWS), longer)
    assert f"{told} of GAP trained for as long (+" in sentence


def test_conclusions_say_what_length_alone_does_to_gap(table):
    length = [41.0, 43.0, 42.0]
    longer = pd.concat([table, numbers(gap_as_seam={"miou_maskless": length})])
    told = findings.conclusions(league.lines(longer, ROWS), longer, NO_PHOTOS).splitlines()
    (line,) = [item for item in told if item.startswith("- **GAP trained for as long**")]
    own = longer.loc[longer["row"] == "gap", "miou_maskless"].to_numpy()
    mean, low, high, *_ = effect(np.array(length) - own)
    assert line.endswith(f": as SEAM {mean:+.1f} [{low:+.1f}, {high:+.1f}].")
    few = pd.concat([table, numbers(gap_as_seam={"miou_maskless": length[:2]})])
    told = findings.conclusions(league.lines(few, ROWS), few, NO_PHOTOS)
    assert "trained for as long** as" not in told


def test_photos_say_which_seeds_are_ahead_there_and_how_many_have_too_few_repeats(table):
    maskless = {"gap": [50.0, 51.0, 52.0], "seam": [58.0, 60.0, 59.0], "cpn": [36.0]}
    photos = numbers(**{name: {"miou_maskless": values} for name, values in maskless.items()})
    mean, low, high, *_ = effect([8.0, 9.0, 7.0])
    assert (
        f"SEAM {mean:+.1f} [{low:+.1f}, {high:+.1f}] (the interval lies above 0), "
        "1 with too few repeats to compare."
    ) in findings.conclusions(league.lines(table, ROWS), table, photos)


def test_conclusions_count_what_the_table_has(table):
    text = findings.conclusions(league.lines(table, ROWS), table, NO_PHOTOS)
    assert (
        "**seeds**: 1 of 17 systems have numbers of their own. "
        "Against GAP: 1 better (SEAM; after adjustment SEAM), 0 worse, 0 undecided" in text
    )
    assert "**pseudo-labels**: 1 of 17 systems have" in text
    assert "1 with too few repeats to compare" in text
    assert "**a network**: 0 of 17 systems have" in text


# --- costs ----------------------------------------------------------------------------------------


def test_costs_are_trainings_of_gap(monkeypatch):
    # Images count; what one costs is `work`'s.
    monkeypatch.setattr(work, "forward", lambda *_: work.Forward(1, 1, 1, 1, 1))
    rows = ROWS
    names = ("gap", "seam", "cpn", "occse", "sccam", "psa_seed", "pmm", "attract_soft_repel")
    names += ("seam_pseudo", "aeft_pseudo", "segment_aeft", "advcam", "conta", "cda")
    costs = league.costs_of(LAPTOP, [rows[name] for name in names], rows["gap"])
    assert [costs[n] for n in ("gap", "psa_seed", "pmm")] == pytest.approx([1, 1, 1])
    # OC-CSE's judge is a GAP classifier of its own, and is asked in every step.
    assert [costs[n] for n in ("seam", "cpn", "occse", "sccam")] == pytest.approx([1.25, 3, 3, 4])
    phase, first = LAPTOP.erasing, LAPTOP.schedule
    second = 2 * phase.epochs * phase.steps_per_epoch * phase.batch_size  # and masked images
    images = first.epochs * LAPTOP.train.count
    assert costs["attract_soft_repel"] == pytest.approx(1 + second / images)
    affinity, network = LAPTOP.refinement.schedule, LAPTOP.segmentation.schedule
    affinity, network = (s.epochs * s.epoch_steps(640) * s.batch_size for s in (affinity, network))
    assert costs["seam_pseudo"] == pytest.approx(1.25 + affinity / images)
    assert costs["segment_aeft"] == pytest.approx(costs["aeft_pseudo"] + network / images)
    # Three trainings, and between two of them AffinityNet and a network make the masks.
    assert costs["conta"] == pytest.approx(3 + 2 * (affinity + network) / images)
    assert costs["cda"] == pytest.approx(1 + affinity / images + 2)  # each scene and one beside it
    assert costs["advcam"] > 1  # its reading is optimisation


def test_scenes_that_fill_no_batch_have_no_costs(monkeypatch):
    # As of a folder of few photos, whose number a profile does not know.
    monkeypatch.setattr(work, "forward", lambda *_: work.Forward(0, 1, 1, 1, 1))
    assert league.costs_of(LAPTOP, [ROWS["seam"]], ROWS["gap"]) == {}


# --- combinations ---------------------------------------------------------------------------------


def test_a_combination_shares_the_training_of_its_seeds():
    rows, known = {row.name: row for row in catalogue.get("rivals_grid").rows}, ROWS
    pairs = {"aeft_ppmg": "attract_soft_repel", "occse_ppmg": "occse", "seam_long_walk": "seam"}
    for name, seed in pairs.items():
        row = rows[name]
        alone = replace(row, refiner=None, scored_on="scored")
        keys = [pipeline.laid_out(SMOKE, r, 0)["classifier"].key for r in (alone, known[seed])]
        assert keys[0] == keys[1]
        assert (row.scored_on, row.published, row.mechanisms) == ("train", None, ())


def test_no_combination_is_there_already():
    def parts(row):
        return (systems.learned(row), row.refiner, row.segmenter, row.scored_on)

    grid = catalogue.get("rivals_grid").rows
    others = [parts(row) for name, row in ROWS.items() if row not in grid]
    assert len({row.name for row in grid}) == len({parts(row) for row in grid}) == len(grid)
    assert not set(map(parts, grid)) & set(others)


def test_crossed_rows_stand_in_their_cells():
    metric = rivals_grid.METRIC
    made = numbers(
        gap_pseudo={metric: [60.0, 62.0]}, pmm_seam={metric: [64.0]}, aeft_ppmg={metric: [63.0]}
    )
    crossed = rivals_grid.crossed(made, ROWS.values())
    assert crossed.loc["GAP", "walk + CRF"] == 61.0
    assert crossed.loc["SEAM", "PPMG"] == 64.0
    assert crossed.loc["soft + repel", "PPMG"] == 63.0
    assert np.isnan(crossed.loc["GAP", "PPMG"])
    assert list(crossed) == list(rivals_grid.refiners(ROWS.values()))
    assert rivals_grid.crossed(made, ROWS.values(), "count").loc["GAP", "walk + CRF"] == 2


# --- how the studies run --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rivals", "rivals_grid"])
def test_no_reproduction_computes_them_whatever_its_repeats(name, tmp_path, monkeypatch):
    study = catalogue.get(name)
    for folder in (paths.FIGURES, tmp_path):
        monkeypatch.setattr(paths, "FIGURES", folder)
        assert all(run.left_out(study, p, n) for p in (SMOKE, LAPTOP) for n in (1, 3, 5))
    assert run.committed_table(study).name == "rivals.csv"


def test_no_published_number_is_from_memory():
    entries = report.published()["numbers"]
    assert [name for name, entry in entries.items() if "memory" in entry.get("place", "")] == []
