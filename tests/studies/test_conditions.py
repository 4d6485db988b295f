"""What of a profile is other for a row: conditions, scale, depth, phase; and the rows of them."""

from dataclasses import replace

import numpy as np
import pytest
from laid_out import laid_out
from photo_profile import photo_profile

from aeft_lib.data.controlled import ControlledSpec
from aeft_lib.networks.resnet38d import ResNet38dSpec
from aeft_lib.paper.gpp import Pyramid, scaled_levels
from aeft_lib.studies import catalogue
from aeft_lib.studies.conditions import BASE, CONDITION_STUDIES, CONDITIONS, METHODS, condition_row
from aeft_lib.studies.profiles import LAPTOP, PROFILES, SMOKE
from aeft_lib.studies.rows import Row
from aeft_lib.studies.settings import AS_PROFILED, Condition, Setting

ON_COLLAGES = pytest.mark.parametrize("profile", [SMOKE, LAPTOP], ids=lambda profile: profile.name)


def layer(row: Row, profile=LAPTOP):
    """The pooling layer of a row's network."""
    return laid_out(profile, row)["classifier"].spec.method.pooling.build(9)


# --- the profile ----------------------------------------------------------------------------------


@ON_COLLAGES
def test_without_a_knob_turned_it_is_the_base_level_with_the_numbers_of_controlled_training(
    profile,
):
    under, numbers = profile.under(Condition(), 3), profile.controlled
    assert under.train == replace(numbers.train, seed=3)
    assert under.val == under.scenes("scored") == replace(numbers.val, seed=3)
    assert (numbers.train.split, numbers.val.split) == ("train", "val")
    for base in (numbers.train, numbers.val):  # no knob is turned
        assert base == ControlledSpec(base.split, base.count, base.size)
    assert under.backbone == replace(profile.backbone, trained_stages=numbers.trained_stages)
    assert under.schedule == numbers.schedule
    assert under.seed_scales == (1.0,)


@ON_COLLAGES
def test_everything_else_of_the_profile_stays(profile):
    under = profile.under(CONDITIONS["clutter_6"], 0)
    changed = {name for name in vars(profile) if getattr(under, name) != getattr(profile, name)}
    assert changed <= {"train", "val", "backbone", "schedule", "seed_scales"}
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


def test_every_repeat_draws_scenes_of_its_own_and_the_same_ones_again():
    sets = [SMOKE.under(Condition(), repeat).val.open() for repeat in (0, 1, 0)]
    for index in range(3):
        first, other, again = (scenes[index] for scenes in sets)
        assert not np.array_equal(first.mask, other.mask)
        assert not np.array_equal(first.image, other.image)
        assert np.array_equal(first.image, again.image)


# --- a row's setting ------------------------------------------------------------------------------


@ON_COLLAGES
def test_without_a_setting_the_profile_is_itself(profile):
    assert AS_PROFILED.applied(profile, 3) is profile
    assert AS_PROFILED.second_phase(profile.erasing) == profile.erasing


@pytest.mark.parametrize("stages", [0, 4])
def test_a_row_may_train_another_depth_and_0_is_one(stages):
    row = catalogue.row(f"depth{stages}.gap")
    assert LAPTOP.controlled.trained_stages not in (0, 4)
    backbone = replace(LAPTOP.backbone, trained_stages=stages)
    assert row.setting.applied(LAPTOP, 0).backbone == backbone
    assert laid_out(LAPTOP, row)["classifier"].spec.backbone == backbone
    bare = Setting(trained_stages=stages)  # on the profile's own scenes as well
    features = laid_out(SMOKE, replace(row, setting=bare))["classifier"].inputs["features"]
    assert features.spec.backbone.trained_stages == stages
    assert bare.applied(SMOKE, 0) == replace(SMOKE, backbone=features.spec.backbone)


def test_a_backbone_without_stages_has_no_depth_to_set():
    profile = photo_profile(backbone=ResNet38dSpec(weights="none"))
    with pytest.raises(ValueError, match="profile photos: ResNet38dSpec has no trained_stages"):
        Setting(trained_stages=1).applied(profile, 0)


@ON_COLLAGES
def test_a_scale_is_of_all_scenes_and_of_the_levels_with_them(profile):
    larger, size = Setting(scale=1.5).applied(profile, 0), round(1.5 * profile.train.size)
    sets = {name: replace(getattr(profile, name), size=size) for name in ("train", "val")}
    assert larger == replace(profile, **sets)
    assert larger.levels == scaled_levels(size // 16)


def test_photos_of_sizes_of_their_own_have_no_scale():
    with pytest.raises(ValueError, match="profile photos: its scenes have sizes of their own"):
        Setting(scale=1.5).applied(photo_profile(), 0)


def test_condition_scale_and_depth_of_a_setting_come_together():
    row = condition_row("occlusion_0.5", "gated")
    profile = replace(row.setting, scale=1.5, trained_stages=3).applied(LAPTOP, 2)
    count = LAPTOP.controlled.train.count
    assert profile.train == ControlledSpec("train", count, 288, 2, occlusion=0.5)
    assert profile.levels == scaled_levels(18)
    assert profile.backbone.trained_stages == 3


def test_a_setting_of_the_second_phase_is_of_its_schedule_alone():
    setting = Setting(phase=(("rate", 0.02), ("quirks", ("head_lr",))))
    phase = setting.second_phase(LAPTOP.erasing)
    assert phase == replace(LAPTOP.erasing, rate=0.02, quirks=("head_lr",))
    assert setting.applied(LAPTOP, 0) is LAPTOP
    row = replace(catalogue.AEFT, setting=setting)
    classifier = laid_out(LAPTOP, row)["classifier"]
    assert classifier.spec.schedule == phase.schedule()
    first = laid_out(LAPTOP, catalogue.GATED)["classifier"]
    assert classifier.inputs["warm_start"].key == first.key


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
    row = replace(condition_row(BASE, "gap"), setting=Setting(Condition(knobs)))
    for attempt in (lambda: SMOKE.under(Condition(knobs), 0), lambda: laid_out(SMOKE, row)):
        with pytest.raises(ValueError, match=message):
            attempt()


@pytest.mark.parametrize(
    "numbers", [{"epochs": 0}, {"size": 0}, {"epochs": 2.0}, {"size": True}], ids=str
)
def test_a_course_or_a_map_that_is_none_is_refused(numbers):
    ((name, value),) = numbers.items()
    with pytest.raises(ValueError, match=f"{name} must be a whole number, at least 1, got {value}"):
        Condition(**numbers)


@pytest.mark.parametrize("name", [name for name in PROFILES if name not in ("smoke", "laptop")])
def test_photos_have_no_knobs(name):
    profile = PROFILES[name]
    for attempt in (
        lambda: profile.under(Condition(), 0),
        lambda: laid_out(profile, condition_row(BASE, "gap")),
    ):
        with pytest.raises(
            ValueError, match=f"profile {name}: it has no collages to turn knobs of"
        ):
            attempt()


@pytest.mark.parametrize("repeat", [-1, 1.0, True])
def test_a_repeat_that_draws_no_scenes_is_refused(repeat):
    with pytest.raises(ValueError, match=f"seed must be a whole number, at least 0, got {repeat}"):
        SMOKE.under(Condition(), repeat)


# --- rows -----------------------------------------------------------------------------------------


@ON_COLLAGES
def test_methods_of_a_level_and_repeat_share_scenes_and_schedule_and_measure_objects(profile):
    for level in (BASE, "objects_2"):
        for repeat in (0, 4):
            under = profile.under(CONDITIONS[level], repeat)
            rows = [laid_out(profile, condition_row(level, m), repeat) for m in METHODS]
            for made in rows:
                classifier, seeds = made["classifier"], made["seeds"]
                first = classifier.inputs.get("warm_start", classifier)
                assert first.spec.schedule == under.schedule
                assert first.spec.scenes == classifier.spec.scenes == under.train
                assert first.spec.seed == classifier.spec.seed == repeat
                assert classifier.inputs["features"].spec.scenes == under.train
                assert seeds.inputs["features"].spec == rows[0]["seeds"].inputs["features"].spec
                assert made["evaluation"].spec.scenes == made["objects"].spec.scenes == under.val
                assert made["objects"].inputs == {"seeds": seeds, "evaluation": made["evaluation"]}


def test_objects_are_measured_under_a_condition_alone():
    made = laid_out(SMOKE, catalogue.GAP)
    assert "objects" not in made
    assert made["evaluation"].spec.scenes == SMOKE.val
    assert "objects" in laid_out(SMOKE, replace(catalogue.GAP, setting=Setting(Condition())))


@pytest.mark.parametrize(
    ("name", "prediction"), [("root", "square_root"), ("normalised", "normalised")]
)
def test_rows_of_the_mechanism_have_the_predictions_they_name(name, prediction):
    built = layer(catalogue.row(f"{name}.gated"))
    assert (built.prediction, built.fusion, built.levels) == (prediction, "gated", (1, 2, 3, 5))
    assert {gate.gain for gate in built.gates} == {1}


def test_the_row_whose_gates_begin_open_has_a_gain_of_two_and_the_others_the_papers():
    for row in (*catalogue.get("mechanism").rows, *catalogue.get("settings").rows):
        gains = {gate.gain for gate in getattr(layer(row), "gates", ())}
        assert gains <= ({2.0} if row.name == "open.gated" else {1.0}), row.name
        gated = isinstance(row.method.pooling, Pyramid) and row.method.pooling.fusion == "gated"
        assert bool(gains) == gated, row.name


def test_bins_as_printed_are_those_that_fit_the_map():
    assert layer(catalogue.row("printed.gated")).levels == (2, 4, 8)  # 16 do not fit 12 cells
    finest, coarsest = (layer(catalogue.row(f"{name}.gated")) for name in ("finest", "coarsest"))
    assert (coarsest.levels, finest.levels) == ((1,), (5,))


@ON_COLLAGES
def test_every_row_of_the_studies_can_be_laid_out(profile):
    for study in (study for study in CONDITION_STUDIES if study.fits(profile)):
        for row in study.rows:
            made = laid_out(profile, row)
            assert isinstance(made["evaluation"].spec.scenes, ControlledSpec), row.name
            assert ("epochs" in made) == row.keep_epochs, row.name
