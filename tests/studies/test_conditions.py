"""Conditions: the profile on controlled collages, its scenes by seed, its map and levels, and the rows that stand on it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from aeft_lib.data.controlled import ControlledSpec
from aeft_lib.paper.gpp import scaled_levels
from aeft_lib.stages.train_classifier import build_pooling
from aeft_lib.studies import run
from aeft_lib.studies.conditions import BASE, CONDITION_STUDIES, CONDITIONS, METHODS, condition_row
from aeft_lib.studies.profiles import LAPTOP, PROFILES, SMOKE
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import Condition

ON_COLLAGES = pytest.mark.parametrize("profile", [SMOKE, LAPTOP], ids=lambda profile: profile.name)


def named(stage, spec, inputs=None) -> SimpleNamespace:
    """In place of `runs.obtain`: what an artefact is made of."""
    return SimpleNamespace(stage=stage.__name__, spec=spec, inputs=inputs or {})


# --- the profile ----------------------------------------------------------------------------------


@ON_COLLAGES
def test_without_a_knob_turned_it_is_the_base_level_with_the_numbers_of_controlled_training(
    profile,
):
    under, numbers = profile.under(Condition(), 3), profile.controlled
    assert under.train == ControlledSpec("train", numbers.train, numbers.size, 3)
    assert (
        under.val == under.scenes("scored") == ControlledSpec("val", numbers.val, numbers.size, 3)
    )
    assert under.backbone == replace(profile.backbone, trained_stages=numbers.trained_stages)
    assert under.schedule == numbers.schedule
    assert under.seed_scales == (1.0,)


@ON_COLLAGES
def test_everything_else_of_the_profile_stays(profile):
    under = profile.under(CONDITIONS["clutter_6"], 0)
    changed = {name for name in vars(profile) if getattr(under, name) != getattr(profile, name)}
    assert changed <= {"train", "val", "backbone", "schedule", "levels", "seed_scales"}
    assert under.name == profile.name


def test_knobs_are_handed_to_both_splits():
    knobs = {"object_area": 0.05, "objects": 2, "context": 0.5, "clutter": 3, "occlusion": 0.25}
    under = SMOKE.under(Condition(tuple(knobs.items())), 0)
    for scenes in (under.train, under.val):
        assert {name: getattr(scenes, name) for name in knobs} == knobs


def test_a_condition_may_change_course_and_map():
    under = LAPTOP.under(Condition(epochs=7, size=256), 0)
    assert under.schedule == replace(LAPTOP.controlled.schedule, epochs=7)
    assert under.train.size == under.val.size == 256


OF_SIZE = {None: (1, 2, 3, 5), 96: (1, 2, 3, 4), 256: (1, 2, 3, 6), 320: (1, 2, 4, 8)}


@pytest.mark.parametrize(("size", "levels"), OF_SIZE.items())
def test_levels_are_scaled_to_the_map(size, levels):
    under = LAPTOP.under(Condition(size=size), 0)
    assert under.map_side == (size or 192) // 16
    assert under.levels == levels == scaled_levels(under.map_side)


def test_every_seed_draws_scenes_of_its_own_and_the_same_ones_again():
    sets = [(SMOKE.under(Condition(), seed).val).open() for seed in (0, 1, 0)]
    for index in range(3):
        one, two, again = (scenes[index] for scenes in sets)
        assert not np.array_equal(one.mask, two.mask)
        assert not np.array_equal(one.image, two.image)
        assert np.array_equal(one.image, again.image)


@pytest.mark.parametrize("stages", [0, 4])
def test_a_row_may_train_another_depth_and_0_is_one(stages):
    row = catalogue.row(f"depth{stages}.gap")
    assert LAPTOP.controlled.trained_stages not in (0, 4)
    assert row.profile(LAPTOP, 0).backbone == replace(LAPTOP.backbone, trained_stages=stages)
    assert (
        row.artefacts(LAPTOP, 0, named)["classifier"].spec.network.backbone.trained_stages == stages
    )
    bare = replace(row, condition=None)  # on the profile's own scenes as well
    assert (
        bare.artefacts(SMOKE, 0, named)["classifier"]
        .inputs["features"]
        .spec.backbone.trained_stages
        == stages
    )
    assert bare.profile(SMOKE, 0).train == SMOKE.train


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (
            (("size", 1.0),),
            "unknown knob size; there are object_area, objects, context, clutter, occlusion",
        ),
        (
            (("objects", 2), ("scale", 2), ("colour", 1)),
            "unknown knob colour, scale; there are object_area",
        ),
        ((("split", "val"),), "unknown knob split"),
        ((("context", 2.0),), r"context must lie in 0\.\.1, got 2\.0"),
        ((("objects", 2.0),), r"objects must be a whole number, 1 to 9, got 2\.0"),
        (
            (("object_area", 0.01), ("occlusion", 0.9)),
            r"object_area=0\.01 with occlusion=0\.9 leaves no visible object",
        ),
        (
            (("object_area", 0.4), ("objects", 3)),
            r"3 objects of object_area=0\.4 do not fit into one scene",
        ),
    ],
    ids=str,
)
def test_a_condition_that_cannot_be_is_refused_before_anything_runs(knobs, message):
    with pytest.raises(ValueError, match=message):
        Condition(knobs)


@pytest.mark.parametrize(
    "numbers", [{"epochs": 0}, {"size": 0}, {"epochs": 2.0}, {"size": True}], ids=str
)
def test_a_course_or_a_map_that_is_none_is_refused(numbers):
    ((name, value),) = numbers.items()
    with pytest.raises(
        ValueError,
        match=f"{name} must be a whole number, at least 1, or None for the profile's; got {value}",
    ):
        Condition(**numbers)


@pytest.mark.parametrize("name", [name for name in PROFILES if name not in ("smoke", "laptop")])
def test_photos_have_no_knobs(name):
    profile = PROFILES[name]
    for attempt in (
        lambda: profile.under(Condition(), 0),
        lambda: condition_row(BASE, "gap").artefacts(profile, 0, named),
    ):
        with pytest.raises(
            ValueError,
            match=f"profile {name} has no collages, whose knobs could be turned: choose laptop",
        ):
            attempt()


@pytest.mark.parametrize("seed", [-1, 1.0, True])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(ValueError, match=f"seed must be a whole number, at least 0, got {seed}"):
        SMOKE.under(Condition(), seed)


# --- rows -----------------------------------------------------------------------------------------


@ON_COLLAGES
def test_methods_of_a_level_and_seed_share_scenes_and_course_and_measure_objects(profile):
    for level in (BASE, "objects_2"):
        for seed in (0, 4):
            condition = profile.under(CONDITIONS[level], seed)
            rows = [
                condition_row(level, method).artefacts(profile, seed, named) for method in METHODS
            ]
            for found in rows:
                first = getattr(found["classifier"].spec, "warm_start", found["classifier"].spec)
                assert (first.scenes, first.schedule, first.seed) == (
                    condition.train,
                    condition.schedule,
                    seed,
                )
                assert found["classifier"].inputs["features"].spec.scenes == condition.train
                assert (
                    found["seeds"].inputs["features"].spec
                    == rows[0]["seeds"].inputs["features"].spec
                )
                assert (
                    found["evaluation"].spec.scenes == found["objects"].spec.scenes == condition.val
                )
                assert found["objects"].inputs == {
                    name: found[name] for name in ("seeds", "evaluation")
                }


def test_objects_are_measured_under_a_condition_alone():
    row = Row("gap", "GAP", "gap", levels=())
    assert "objects" not in row.artefacts(SMOKE, 0, named)
    assert row.artefacts(SMOKE, 0, named)["evaluation"].spec.scenes == SMOKE.val
    assert "objects" in replace(row, condition=Condition()).artefacts(SMOKE, 0, named)


def test_a_row_on_a_finer_map_has_the_same_condition():
    row = replace(condition_row("occlusion_0.5", "gated"), scale=1.5)
    profile = row.profile(LAPTOP, 2)
    assert profile.train == ControlledSpec("train", LAPTOP.controlled.train, 288, 2, occlusion=0.5)
    assert profile.levels == scaled_levels(18)


@pytest.mark.parametrize(
    ("name", "prediction", "gain"), [("root", "square_root", 1), ("normalised", "normalised", 1)]
)
def test_rows_of_the_mechanism_have_the_predictions_they_name(name, prediction, gain):
    row = catalogue.row(f"{name}.gated")
    layer = build_pooling(row.pooling(row.profile(LAPTOP, 0)), 9)
    assert (layer.prediction, layer.fusion, layer.levels) == (prediction, "gated", (1, 2, 3, 5))
    assert {gate.gain for gate in layer.gates} == {gain}


def test_the_row_whose_gates_begin_open_has_a_gain_of_two_and_the_others_the_papers():
    for row in (*catalogue.get("mechanism").rows, *catalogue.get("settings").rows):
        layer = build_pooling(row.pooling(row.profile(LAPTOP, 0)), 9)
        gains = {gate.gain for gate in getattr(layer, "gates", ())}
        assert gains <= ({2.0} if row.name == "open.gated" else {1.0}), row.name
        assert bool(gains) == (row.fusion == "gated"), row.name


def test_bins_as_printed_are_those_that_fit_the_map():
    row = catalogue.row("printed.gated")
    assert row.pooling(row.profile(LAPTOP, 0)).levels == (2, 4, 8)  # 16 do not fit 12 cells
    finest, coarsest = (
        catalogue.row(f"{name}.gated").pooling(LAPTOP.under(Condition(), 0))
        for name in ("finest", "coarsest")
    )
    assert (coarsest.levels, finest.levels) == ((1,), (5,))


@ON_COLLAGES
def test_every_row_of_the_studies_can_be_laid_out(profile):
    for study in (study for study in CONDITION_STUDIES if study.fits(profile)):
        for row in study.rows:
            found = row.artefacts(profile, 0, named)
            assert isinstance(found["evaluation"].spec.scenes, ControlledSpec), row.name
            assert ("epochs" in found) == row.keep_epochs, row.name
