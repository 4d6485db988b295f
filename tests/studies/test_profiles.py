"""The second phase of a profile: its schedule with every quirk of the reference, all, none.

And where it shares its decay with the first.
"""

import re
from dataclasses import replace

import pytest

from aeft_lib.data import coco, voc
from aeft_lib.engine.schedule import Schedule
from aeft_lib.studies.profiles import PROFILES, SMOKE
from aeft_lib.studies.settings import OPTIMISER_QUIRKS, SecondPhase

PHASE = SecondPhase(epochs=3, steps_per_epoch=5, batch_size=8, rate=0.1)
CORRECTED = Schedule(
    epochs=3,
    batch_size=8,
    lr=0.01,
    head_lr=0.1,
    weight_decay=5e-4,
    warmup_steps=0,
    optimiser="sgd",
    momentum=0.9,
    decay_steps=0,
    steps_per_epoch=5,
)


def nearly(schedule: Schedule) -> dict:
    """Its fields, floats to twelve digits: a tenth of 0.1, times ten, need not be 0.1."""
    return {
        name: float(f"{value:.12g}") if isinstance(value, float) else value
        for name, value in vars(schedule).items()
    }


@pytest.mark.parametrize(
    ("quirks", "changes"),
    [
        ((), {}),
        (("sgd_momentum",), {"momentum": 5e-4, "lr": 0.1, "head_lr": 1.0}),
        (("head_lr",), {"head_lr": 0.01}),
        (("schedule_length",), {"decay_steps": 60}),
        (OPTIMISER_QUIRKS, {"momentum": 5e-4, "lr": 0.1, "head_lr": 0.1, "decay_steps": 60}),
    ],
    ids=str,
)
def test_schedule_of_the_second_phase(quirks, changes):
    assert nearly(replace(PHASE, quirks=quirks).schedule()) == nearly(replace(CORRECTED, **changes))
    assert nearly(replace(PHASE, quirks=quirks[::-1]).schedule()) == nearly(
        replace(CORRECTED, **changes)
    )


def test_the_long_schedule_ends_at_three_quarters_and_the_right_one_near_0():
    long, right = (
        replace(PHASE, quirks=quirks).schedule().factor(14, 15)
        for quirks in (("schedule_length",), ())
    )
    assert long == pytest.approx((46 / 60) ** 0.9)
    assert right == pytest.approx((1 / 15) ** 0.9)


@pytest.mark.parametrize(
    "quirks", [("momentum",), ("sgd_momentum", "mask_gradient"), ("",)], ids=str
)
def test_unknown_quirks_are_refused(quirks):
    unknown = re.escape(str(sorted(set(quirks) - set(OPTIMISER_QUIRKS))))
    with pytest.raises(
        ValueError,
        match=f"unknown quirks {unknown}; there are sgd_momentum, schedule_length, head_lr",
    ):
        replace(PHASE, quirks=quirks).schedule()


def test_second_phase_needs_a_full_batch_of_scenes():
    with pytest.raises(ValueError, match="profile smoke: 32 scenes cannot fill a batch of 33"):
        replace(SMOKE, erasing=replace(SMOKE.erasing, batch_size=33))


def training_scenes(profile) -> int:
    """How many scenes a profile trains on; of VOC and COCO what their lists have."""
    return profile.train.count or (voc.SPLITS | coco.SPLITS)[profile.train.split]


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_an_epoch_of_the_second_phase_fits_the_scenes(profile):
    """Else it would end earlier, and the schedule be another than the profile says."""
    assert (
        profile.erasing.schedule().epoch_steps(training_scenes(profile))
        == profile.erasing.steps_per_epoch
    )


@pytest.mark.parametrize(
    "profile",
    [p for p in PROFILES.values() if p.erasing.decay_from],
    ids=lambda profile: profile.name,
)
def test_a_second_phase_that_shares_its_decay_begins_where_the_first_ends(profile):
    n, first = training_scenes(profile), profile.schedule
    before = first.epochs * first.epoch_steps(n)
    for quirks in ((), OPTIMISER_QUIRKS):
        second = replace(profile.erasing, quirks=quirks).schedule()
        after = second.epochs * second.epoch_steps(n)
        assert (second.decay_from, second.warmup_steps) == (before, 0)
        length = 40 * first.epoch_steps(n) if quirks else before + after
        assert second.factor(0, after) == pytest.approx((1 - before / length) ** 0.9)
        assert second.factor(after - 1, after) == pytest.approx(
            (1 - (before + after - 1) / length) ** 0.9
        )
