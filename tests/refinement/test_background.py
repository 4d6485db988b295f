"""Background powers and the thresholds they stand for:

by hand, there and back, the rule around a threshold, refusals.
"""

import math

import pytest
import torch

from aeft_lib.refinement.background import (
    REFERENCE,
    REFERENCE_SPREAD,
    crossing,
    power_at,
    powers_around,
)
from aeft_lib.refinement.dense_crf import with_background

THRESHOLDS = (0.01, 0.1, 0.25, 0.5, 0.75, 0.99)


def logit(t: float) -> float:
    return math.log(t / (1 - t))


def test_power_by_hand():
    assert power_at(0.5) == pytest.approx(1)  # 1/2 = (1 - 1/2)^1
    assert power_at(1 / 4) == pytest.approx(math.log(4) / math.log(4 / 3))
    assert power_at((3 - math.sqrt(5)) / 2) == pytest.approx(2)  # t = (1 - t)^2


def test_crossings_of_the_reference():
    assert [round(crossing(alpha), 3) for alpha in REFERENCE] == [0.382, 0.11, 0.103]
    assert REFERENCE._asdict() == {"low": 2, "middle": 19, "high": 21}


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_crossing_undoes_power_and_the_two_scores_are_equal_there(threshold):
    alpha = power_at(threshold)
    assert (1 - threshold) ** alpha == pytest.approx(threshold)
    assert crossing(alpha) == pytest.approx(threshold)


@pytest.mark.parametrize("alpha", [1e-3, 0.5, 2, 21, 1e6])
def test_power_undoes_crossing(alpha):
    assert power_at(crossing(alpha)) == pytest.approx(alpha, rel=1e-6)


def test_scores_above_the_crossing_beat_the_background_and_those_below_do_not():
    threshold = crossing(19)
    cam = torch.tensor([[[threshold - 0.001, threshold + 0.001]]], dtype=torch.float64)
    assert with_background(cam, 19).argmax(dim=0).tolist() == [[0, 1]]


def test_a_larger_power_crosses_lower():
    assert list(map(power_at, THRESHOLDS)) == sorted(map(power_at, THRESHOLDS), reverse=True)


# --- the rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("spread", [0.1, REFERENCE_SPREAD, 2])
def test_powers_cross_at_equal_distances_in_logits(threshold, spread):
    low, middle, high = map(crossing, powers_around(threshold, spread))
    assert middle == pytest.approx(threshold)
    assert logit(low) == pytest.approx(logit(threshold) + spread)
    assert logit(high) == pytest.approx(logit(threshold) - spread)


def test_low_is_sure_of_the_foreground_and_high_of_the_background():
    powers = powers_around(0.35)
    assert powers.low < powers.middle < powers.high
    assert [round(alpha, 2) for alpha in powers] == [0.72, 2.44, 8.09]


def test_without_a_spread_all_are_one():
    assert powers_around(0.3, 0) == pytest.approx([power_at(0.3)] * 3)


def test_the_reference_lies_within_its_own_rule():
    distance = logit(crossing(REFERENCE.low)) - logit(crossing(REFERENCE.high))
    assert pytest.approx(distance / 2, abs=0.01) == REFERENCE_SPREAD


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 1.5, math.nan, math.inf])
def test_a_threshold_lies_between_0_and_1(threshold):
    for take in (power_at, powers_around):
        with pytest.raises(
            ValueError, match=f"a threshold must lie between 0 and 1, got {threshold}"
        ):
            take(threshold)


@pytest.mark.parametrize("alpha", [0, -2, math.nan, math.inf])
def test_a_power_is_positive(alpha):
    with pytest.raises(ValueError, match=f"alpha must be positive and finite, got {alpha}"):
        crossing(alpha)


@pytest.mark.parametrize("spread", [-0.1, math.nan, math.inf])
def test_a_spread_is_not_negative(spread):
    with pytest.raises(ValueError, match=f"spread must be finite and not negative, got {spread}"):
        powers_around(0.3, spread)


@pytest.mark.parametrize("spread", [40, 1000])
def test_a_spread_that_leaves_no_threshold_is_refused(spread):
    with pytest.raises(ValueError, match=r"a threshold must lie between 0 and 1, got 1\.0"):
        powers_around(0.9, spread)
