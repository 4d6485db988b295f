"""The rows of the triplet's studies as specs and keys, and the common threshold by hand."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from laid_out import laid_out, named

from aeft_lib.paper.triplet import CORRECTED, LOSS_QUIRKS, REFERENCE
from aeft_lib.stages import store
from aeft_lib.studies import catalogue, run
from aeft_lib.studies.catalogue import AEFT, GAP, GATED, STUDIES
from aeft_lib.studies.profiles import LAPTOP, SMOKE
from aeft_lib.studies.rows import Row, Study
from aeft_lib.studies.settings import OPTIMISER_QUIRKS

TRIPLET, QUIRKS = (STUDIES[name] for name in ("triplet_ablation", "quirks"))


def ends_in_seeds(row: Row) -> bool:
    return row.refiner is None and row.segmenter is None


SECOND_PHASES = tuple(
    dict.fromkeys(
        row
        for study in STUDIES.values()
        for row in study.rows
        if row.starts_from and ends_in_seeds(row)
    )
)


def artefacts(row, profile=SMOKE, repeat=0) -> dict[str, SimpleNamespace]:
    return laid_out(profile, row, repeat)


def schedule(row: Row, profile=SMOKE):
    """Of the row's second phase."""
    return row.setting.second_phase(profile.erasing).schedule()


def quirks(row: Row) -> tuple[str, ...]:
    """Of the row's optimiser."""
    return dict(row.setting.phase)["quirks"]


# --- which row, which study -----------------------------------------------------------------------


def test_a_row_is_found_whatever_study_it_is_in_and_the_largest_study_wins():
    assert catalogue.row("gated") is GATED
    assert catalogue.study_of("gated").name == catalogue.study_of("gap").name == "pyramid_ablation"
    assert catalogue.study_of("ours") is TRIPLET
    assert catalogue.study_of("gpp_only") is STUDIES["erasing_settings"]
    assert catalogue.study_of("reference") is catalogue.study_of("detached") is QUIRKS
    assert catalogue.row("with_head_lr").name == "with_head_lr"


@pytest.mark.parametrize("name", ["", "G", "soft", "quirks", "with_missing_negative"])
def test_a_row_that_no_study_has_is_refused(name):
    for find in (catalogue.row, catalogue.study_of):
        with pytest.raises(ValueError, match=f"no study has a row '{name}'"):
            find(name)


def test_a_name_is_one_row_and_a_label_one_name_in_a_study():
    for study in STUDIES.values():
        assert (
            len({row.name for row in study.rows})
            == len({row.label for row in study.rows})
            == len(study.rows)
        )
        assert study.common is None or study.row(study.common)
    rows = {row for study in STUDIES.values() for row in study.rows}
    assert len({row.name for row in rows}) == len(rows)


# --- warm start and keys --------------------------------------------------------------------------


@pytest.mark.parametrize("profile", [SMOKE, LAPTOP], ids=lambda profile: profile.name)
def test_second_phases_start_from_the_gated_row_of_the_same_repeat(profile):
    gated = {
        (scale, repeat): artefacts(GATED, profile.scaled(scale), repeat)["classifier"].key
        for scale in (1, 1.5)
        for repeat in (0, 1)
    }
    assert len(set(gated.values())) == 4
    for row in [row for row in SECOND_PHASES if row.setting.condition is None]:
        for repeat in (0, 1):
            made, warm_start = artefacts(row, profile, repeat), gated[row.setting.scale, repeat]
            classifier = made["classifier"]
            assert classifier.stage == "train_classifier"
            assert classifier.inputs["warm_start"].key == warm_start, row.name
            first = classifier.inputs["warm_start"]
            assert classifier.inputs["features"].key == first.inputs["features"].key
            assert made["seeds"].inputs["classifier"] is classifier
            if row.keep_epochs:
                assert made["epochs"].inputs["warm_start"].key == warm_start
                assert made["epochs"].inputs["classifier"] is classifier


def test_what_is_refined_or_taught_are_the_seeds_of_the_whole_method():
    """One row class: a refiner and a segmenter change the end, and nothing before it."""
    plain = artefacts(AEFT)["classifier"].key
    studies = [study for study in STUDIES.values() if not study.name.startswith("rivals")]
    rows = {row for study in studies for row in study.rows if not ends_in_seeds(row)}
    assert len(rows) == 10
    for row in [row for row in rows if row.method is not None]:
        asked = []

        def obtain(stage, spec, inputs=None, asked=asked):
            asked.append(named(stage, spec, inputs))
            return asked[-1]

        made = run.artefacts(SMOKE, row, 0, obtain=obtain)
        ends = {"segmenter", "teacher", "labels"} if row.segmenter else {"scores", "labels"}
        assert ends < made.keys(), row.name
        trained = {item.key for item in asked if item.stage == "train_classifier"}
        assert trained == {plain, artefacts(GATED)["classifier"].key}, row.name
    truth = artefacts(catalogue.row("segment_truth"))
    assert truth["teacher"].stage == "true_labels"
    assert set(truth) == {"teacher", "segmenter", "labels", "evaluation", "images"}


def test_rows_without_a_second_phase_have_none():
    assert artefacts(GATED)["classifier"].stage == "train_classifier"
    assert set(artefacts(GATED)["classifier"].inputs) == {"features"}
    assert set(artefacts(GATED)) == {"classifier", "seeds", "evaluation", "images"}


def test_epochs_are_kept_for_the_rows_of_the_curves_over_steps():
    kept = [row.name for row in TRIPLET.rows if "epochs" in artefacts(row)]
    assert kept == ["gpp_only", "attract_rigid", "attract_soft", "attract_soft_repel", "ours"]


def test_the_detached_row_is_soft_repel_and_the_reference_without_mask_gradient():
    detached, soft_repel = QUIRKS.row("detached"), TRIPLET.row("attract_soft_repel")
    as_quirks = catalogue._with_quirks("detached", "", set(catalogue.QUIRKS) - {"mask_gradient"})
    assert detached.method == as_quirks.method
    # The same quirks, whatever their order: keys have the schedule alone.
    assert set(quirks(detached)) == set(quirks(as_quirks))
    assert schedule(detached) == schedule(as_quirks)
    ours, theirs = artefacts(detached), artefacts(soft_repel)
    assert {name: a.key for name, a in ours.items()} == {name: a.key for name, a in theirs.items()}


def test_other_rows_share_no_classifier():
    keys = [artefacts(row)["classifier"].key for row in SECOND_PHASES if row.name != "detached"]
    assert len(set(keys)) == len(keys) == len(SECOND_PHASES) - 1


# --- quirks ---------------------------------------------------------------------------------------

# What a quirk changes: of the loss its own field, of the optimiser these.
OF_SCHEDULE = {
    "sgd_momentum": {"momentum", "lr", "head_lr"},
    "schedule_length": {"decay_steps"},
    "head_lr": {"head_lr"},
}


def differences(first, second) -> set[str]:
    names = [field.name for field in dataclasses.fields(first)]
    return {name for name in names if getattr(first, name) != getattr(second, name)}


def pairs() -> list[tuple[str, str, str]]:
    """Quirk, the row that has it, the row that has not."""
    taken_away = [(q, "detached", f"without_{q}") for q in catalogue.TAKEN_AWAY]
    return [("mask_gradient", "reference", "detached"), *taken_away] + [
        (q, f"with_{q}", "corrected") for q in catalogue.MEASURED_QUIRKS
    ]


@pytest.mark.parametrize(("quirk", "having", "lacking"), pairs(), ids=lambda value: value)
def test_a_row_differs_from_its_partner_in_one_quirk(quirk, having, lacking):
    having, lacking = QUIRKS.row(having), QUIRKS.row(lacking)
    with_it, without = schedule(having), schedule(lacking)
    if quirk in LOSS_QUIRKS:
        assert differences(having.method, lacking.method) == {quirk}
        assert getattr(having.method, quirk) == getattr(REFERENCE, quirk)
        assert getattr(lacking.method, quirk) == getattr(CORRECTED, quirk)
        assert with_it == without
    else:
        assert having.method == lacking.method
        assert set(quirks(having)) - set(quirks(lacking)) == {quirk}
        assert set(quirks(lacking)) < set(quirks(having))
        assert differences(with_it, without) == OF_SCHEDULE[quirk]
    others = differences(having, lacking) - {"name", "label", "keep_epochs", "published"}
    assert others == {"method" if quirk in LOSS_QUIRKS else "setting"}


def test_momentum_as_the_reference_passes_it_changes_no_effective_rate():
    with_it, without = (schedule(QUIRKS.row(name)) for name in ("with_sgd_momentum", "corrected"))
    for rate in ("lr", "head_lr"):
        effective = [getattr(s, rate) / (1 - s.momentum) for s in (with_it, without)]
        assert effective[0] == pytest.approx(effective[1], rel=1e-3)


def test_reference_and_corrected_are_the_ends():
    reference, corrected = QUIRKS.row("reference"), QUIRKS.row("corrected")
    assert (reference.method, quirks(reference)) == (REFERENCE, OPTIMISER_QUIRKS)
    assert (corrected.method, quirks(corrected)) == (CORRECTED, ())
    assert len(QUIRKS.rows) == 2 * len(catalogue.MEASURED_QUIRKS) + 2


# --- erasing settings -----------------------------------------------------------------------------


def test_rigid_and_soft_erasing_differ_from_the_plain_rows_in_one_setting():
    plain = {
        "gpp_only": TRIPLET.row("gpp_only"),
        "rigid": TRIPLET.row("attract_rigid"),
        "soft": TRIPLET.row("attract_soft"),
    }
    others = {
        "low": {"erase_threshold"},
        "high": {"erase_threshold"},
        "slow": {"lr", "head_lr"},
        "long": {"epochs", "decay_steps"},
        "fine": {"pooling"},  # the bins of a finer map, and the scenes
    }
    for row in STUDIES["erasing_settings"].rows[3:]:
        kind, tag = row.name.rsplit("_", 1)
        specs = [artefacts(r, LAPTOP)["classifier"].spec for r in (row, plain[kind])]
        changed = differences(*(spec.method for spec in specs))
        changed |= differences(*(spec.schedule for spec in specs))
        assert changed == others[tag], row.name
        assert specs[0].scenes.size == (384 if tag == "fine" else LAPTOP.train.size), row.name


def test_settings_are_what_their_labels_say():
    rows = {
        tag: STUDIES["erasing_settings"].row(f"soft_{tag}")
        for tag in ("low", "high", "slow", "long")
    }
    specs = {tag: artefacts(row, LAPTOP)["classifier"].spec for tag, row in rows.items()}
    assert specs["low"].method.erase_threshold == 0.4
    assert specs["high"].method.erase_threshold == 0.8
    assert specs["slow"].schedule.lr == pytest.approx(LAPTOP.erasing.rate / 3)
    assert specs["long"].schedule.epochs * specs["long"].schedule.steps_per_epoch == 60
    assert [row.label for row in rows.values()] == [
        "soft, t_H 0.4",
        "soft, t_H 0.8",
        "soft, rate / 3",
        "soft, 60 steps",
    ]


# --- the common threshold -------------------------------------------------------------------------

TWO = Study("two", "?", (GAP, GATED), common="gap")
COMMON = ["miou_common", "precision_common", "recall_common"]


@pytest.fixture
def curves(tmp_path, monkeypatch):
    """Curves at t = 0.1, 0.2, 0.3: mIoU 11, 12, 13, precision 21..., recall 31....

    100 more for gated, 1000 more a repeat.
    """

    def made(profile, row, repeat, obtain):
        assert (profile, obtain) == (SMOKE, store.lookup)
        folder = tmp_path / f"{row.name} {repeat}"
        folder.mkdir()
        base = 100 * (row == GATED) + 1000 * repeat + np.array([1, 2, 3])
        lines = {
            "threshold": [0.1, 0.2, 0.3],
            "miou": base + 10,
            "precision": base + 20,
            "recall": base + 30,
        }
        pd.DataFrame(lines).to_csv(folder / "curve.csv", index=False)
        return {"evaluation": SimpleNamespace(folder=folder)}

    monkeypatch.setattr(run, "artefacts", made)


def table(*lines: tuple[str, int, float]) -> pd.DataFrame:
    return pd.DataFrame(lines, columns=["row", "repeat", "threshold"])


def test_every_row_stands_at_its_repeats_best_threshold_of_the_common_row(curves):
    plain = table(("gated", 1, 0.3), ("gap", 0, 0.2), ("gap", 1, 0.1), ("gated", 0, 0.1))
    common = run.at_common_threshold(TWO, SMOKE, plain)
    assert common[COMMON].to_numpy().tolist() == [
        [1111, 1121, 1131],
        [12, 22, 32],
        [1011, 1021, 1031],
        [112, 122, 132],
    ]
    pd.testing.assert_frame_equal(common[list(plain)], plain)


def test_a_threshold_between_two_is_the_nearest(curves):
    common = run.at_common_threshold(TWO, SMOKE, table(("gap", 0, 0.26), ("gated", 0, 0.1)))
    assert common["miou_common"].tolist() == [13, 113]


def test_a_repeat_without_the_common_row_has_no_common_numbers(curves):
    common = run.at_common_threshold(
        TWO, SMOKE, table(("gated", 0, 0.3), ("gated", 1, 0.3), ("gap", 1, 0.3))
    )
    assert common.loc[0, COMMON].isna().all()
    assert common.loc[1, COMMON].tolist() == [1113, 1123, 1133]


def test_a_study_without_a_common_row_keeps_its_table():
    plain = table(("gated", 0, 0.3))
    assert run.at_common_threshold(dataclasses.replace(TWO, common=None), SMOKE, plain) is plain
    assert run.at_common_threshold(TWO, SMOKE, table()).empty
