"""What notebook 4 asks: curves, logs and tables over repeats, quirks by hand, the report.

The file's store has three rows of the smoke profile, computed by whichever test comes first.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from aeft_lib import paths
from aeft_lib.lab import ch04_triplet
from aeft_lib.lab.session import Session
from aeft_lib.studies import catalogue, pipeline, report, run
from aeft_lib.studies.profiles import EVENING, LAPTOP, SMOKE

pytestmark = pytest.mark.usefixtures("stored")


# --- quirks ---------------------------------------------------------------------------------------


def quirk_table(**rows: dict[int, float]) -> pd.DataFrame:
    """mIoU of rows by repeat; precision is twice, recall minus that."""
    lines = [(row, n, v, 2 * v, -v) for row, values in rows.items() for n, v in values.items()]
    return pd.DataFrame(lines, columns=["row", "repeat", "miou", "precision", "recall"])


def effects(table: pd.DataFrame) -> dict[tuple[str, str, int], float]:
    return table.set_index(["quirk", "start", "repeat"])["miou"].to_dict()


def test_quirk_effects_are_what_correcting_one_quirk_adds_from_both_starts():
    rows = {
        "reference": 30,
        "detached": 32,
        "without_min_hard": 37,
        "corrected": 50,
        "with_min_hard": 44,
    }
    rows |= {"with_mask_gradient": 53}
    table = ch04_triplet.quirk_effects(
        quirk_table(**{row: {0: v, 1: v + 1} for row, v in rows.items()})
    )
    assert effects(table) == {
        (quirk, start, repeat): points
        for (quirk, start), points in {
            ("min_hard", "reference"): 5,  # the detached reference is where it is taken away
            ("min_hard", "corrected"): 6,
            ("mask_gradient", "reference"): 2,
            ("mask_gradient", "corrected"): -3,
        }.items()
        for repeat in (0, 1)
    }
    assert (table["precision"] == 2 * table["miou"]).all()
    assert (table["recall"] == -table["miou"]).all()


def test_quirk_effects_are_paired_by_repeat_and_drop_repeats_of_a_single_row():
    table = quirk_table(
        corrected={0: 40, 1: 44, 2: 50},
        with_head_lr={
            2: 41,
            0: 39,
            3: 10,
        },  # in another order, repeat 1 is missing, 3 has no partner
        reference={0: 30},
        detached={1: 30},  # no repeat in common
    )
    assert effects(ch04_triplet.quirk_effects(table)) == {
        ("head_lr", "corrected", 0): 1,
        ("head_lr", "corrected", 2): 9,
    }


def test_every_row_of_the_quirks_has_its_effect():
    table = ch04_triplet.quirk_effects(
        quirk_table(**{row.name: {0: 1.0} for row in catalogue.get("quirks").rows})
    )
    assert set(effects(table)) == {
        (q, start, 0) for q in catalogue.MEASURED_QUIRKS for start in ("reference", "corrected")
    }


def test_setting_effects_are_against_classification_of_the_same_rate_and_steps():
    means = {
        "gpp_only": 40,
        "attract_rigid": 41,
        "soft_low": 43,
        "gpp_only_slow": 50,
        "rigid_slow": 45,
        "soft_slow": 52,
    }
    table = quirk_table(**{row: {0: v - 1, 1: v + 1} for row, v in means.items()})
    table = ch04_triplet.setting_effects(table)
    labels = ["attract (rigid)", "soft, t_H 0.4", "rigid, rate / 3", "soft, rate / 3"]
    assert table["miou"].to_dict() == dict(zip(labels, (1, 3, -5, 2), strict=True))
    assert table["recall"].to_dict() == dict(zip(labels, (-1, -3, 5, -2), strict=True))


# --- progress and log -----------------------------------------------------------------------------

# Per epoch: mIoU, precision and recall at t = 0.2, 0.4, 0.6.
EPOCHS = {
    0: [(30, 31, 32), (40, 41, 42), (20, 21, 22)],  # best at 0.4
    1: [(50, 51, 52), (45, 46, 47), (10, 11, 12)],
    2: [(33, 34, 35), (35, 36, 37), (60, 61, 62)],
}


def test_progress_is_at_the_best_threshold_of_the_warm_start_and_at_each_epochs_own(
    tmp_path, monkeypatch
):
    lines = [
        (t, *numbers, epoch)
        for epoch, curve in EPOCHS.items()
        for t, numbers in zip((0.2, 0.4, 0.6), curve, strict=True)
    ]
    plain = pd.DataFrame(lines, columns=["threshold", "miou", "precision", "recall", "epoch"])

    def artefacts(_, row, repeat):
        folder = tmp_path / f"{row} {repeat}"
        folder.mkdir()
        curves = plain.copy()
        if repeat == 1:  # every number 5 higher, the warm start best at 0.2
            curves[["miou", "precision", "recall"]] += 5
            curves.loc[0, "miou"] = 80
        curves.to_csv(folder / "epochs.csv", index=False)
        return {"epochs": SimpleNamespace(folder=folder)}

    monkeypatch.setattr(Session, "artefacts", artefacts)
    profile = replace(
        SMOKE,
        train=replace(SMOKE.train, count=112),
        erasing=replace(SMOKE.erasing, steps_per_epoch=7),
    )
    progress = ch04_triplet.progress(Session(profile, 2), ["gpp_only", "ours"])
    assert set(progress) == {"row", "label", "repeat", "step", "precision", "recall", "miou_best"}
    names = progress[["row", "label", "repeat"]].drop_duplicates().to_numpy().tolist()
    assert names == [
        [r, label, s] for r, label in (("gpp_only", "GPP only"), ("ours", "ours")) for s in (0, 1)
    ]
    by_hand = {
        0: [(0, 41, 42, 40), (7, 46, 47, 50), (14, 36, 37, 60)],
        1: [(0, 36, 37, 80), (7, 56, 57, 55), (14, 39, 40, 65)],
    }
    for (_, repeat), lines in progress.groupby(["row", "repeat"]):
        assert [
            tuple(line) for line in lines[["step", "precision", "recall", "miou_best"]].to_numpy()
        ] == by_hand[repeat]


@pytest.fixture
def smoke(stored) -> Session:
    """A repeat of the smoke profile with the warm start and two rows of the second phase."""
    for name in ("gated", "gpp_only", "attract_soft"):
        pipeline.artefacts(SMOKE, catalogue.row(name), 0)
    return Session(SMOKE, 1)


def test_rows_of_a_second_phase_begin_at_the_same_warm_start(smoke):
    progress = ch04_triplet.progress(smoke, ["gpp_only", "attract_soft"])
    assert progress["step"].tolist() == [0, 1, 2] * 2
    first = progress[progress["step"] == 0][["precision", "recall", "miou_best"]].to_numpy()
    assert (first[0] == first[1]).all()
    assert progress["miou_best"].nunique() > 2


def test_log_is_that_of_the_last_phase(smoke):
    assert {"classification", "attract"} <= set(ch04_triplet.log(smoke, "attract_soft"))
    assert "attract" not in ch04_triplet.log(smoke, "gpp_only")
    assert len(ch04_triplet.log(smoke, "gpp_only")) == SMOKE.erasing.epochs
    assert len(ch04_triplet.log(smoke, "gated")) == SMOKE.schedule.epochs


def test_the_stored_table_sets_every_row_at_the_threshold_of_the_common_one(smoke):
    table = smoke.stored_table("triplet_ablation").set_index("row")
    assert list(table.index) == ["gpp_only", "attract_soft"]
    plain, common = (
        ["miou", "precision", "recall"],
        ["miou_common", "precision_common", "recall_common"],
    )
    assert table.loc["gpp_only", common].tolist() == pytest.approx(
        table.loc["gpp_only", plain].tolist()
    )
    curve = (
        smoke.curves(["attract_soft"])
        .set_index("threshold")
        .loc[table.loc["gpp_only", "threshold"]]
    )
    assert table.loc["attract_soft", common].tolist() == pytest.approx(curve[plain].tolist())


def test_a_session_draws_two_of_its_scenes_as_a_triplet(smoke):
    tags = [smoke.scenes[i].tags for i in range(len(smoke.scenes))]
    anchor, negative = next(
        (i, j) for i in range(8) for j in range(8) if not (tags[i] & tags[j]).any()
    )
    case = ch04_triplet.triplet(smoke, anchor, negative)
    assert (case.anchor.name, case.negative.name) == (
        smoke.scenes[anchor].name,
        smoke.scenes[negative].name,
    )
    torch.testing.assert_close(
        case.output.cam, smoke.output(smoke.network("gated"), anchor).cam, rtol=1e-4, atol=1e-4
    )


# --- long studies and the report ------------------------------------------------------------------


@pytest.fixture
def committed(tmp_path, monkeypatch):
    """A folder of committed figures; `run_study` returns what it was asked for."""
    monkeypatch.setattr(paths, "FIGURES", tmp_path)
    monkeypatch.setattr(run, "run_study", lambda study, _, repeats: f"{study.name} {list(repeats)}")
    return tmp_path


LONG = replace(SMOKE, long_from=3)


def test_a_long_study_on_few_repeats_is_its_committed_table(committed, capsys):
    table = quirk_table(reference={0: 30.0, 1: 31.0, 2: 32.0}, detached={0: 33.0, 1: 34.0, 2: 35.0})
    table.to_csv(committed / "quirks.csv", index=False)
    pd.testing.assert_frame_equal(Session(LONG, 2).table("quirks"), table)
    assert (
        capsys.readouterr().out
        == "committed table quirks.csv, 3 repeats (aeft run quirks computes it)\n"
    )


def test_long_studies_are_computed_with_enough_repeats_or_without_a_committed_table(
    committed, capsys
):
    assert Session(LONG, 2).table("quirks") == "quirks [0, 1]"
    for name in ("quirks", "gap_vs_gpp"):
        (committed / f"{name}.csv").write_text("row,repeat\n")
    assert Session(LONG, 3).table("quirks") == "quirks [0, 1]"  # its own bound
    assert Session(LONG, 2).table("gap_vs_gpp") == "gap_vs_gpp [0, 1]"
    assert capsys.readouterr().out == ""


def test_a_profile_with_curves_is_reported_by_the_studies_that_have_them():
    claims = Session(EVENING, 1).report(costs=True)["claims"]
    assert {line["cost"] for line in claims} == {None}
    assert {line["verdict"] for line in claims} == {"not run"}


def test_a_report_that_may_replace_the_committed_one_keeps_lines_this_store_cannot_make(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(paths, "FIGURES", tmp_path)
    table = quirk_table(gap={0: 40.0, 1: 41.0, 2: 42.0}, gated={0: 41.0, 1: 43.0, 2: 42.0})
    for profile in ("laptop", "smoke"):
        (tmp_path / "report.json").write_text(
            json.dumps(report.build({"gap_vs_gpp": table}, profile)), encoding="utf-8"
        )
        kept = {
            (chosen.name, n): next(
                c for c in Session(chosen, n).report()["claims"] if c["id"] == "claim.gpp_beats_gap"
            )["n"]
            for chosen, n in ((LAPTOP, 3), (LAPTOP, 2), (SMOKE, 3))
        }
        assert kept == {
            ("laptop", 3): 3 if profile == "laptop" else 0,
            ("laptop", 2): 0,
            ("smoke", 3): 0,
        }
