"""Intervals and adjusted p values: by hand, against scipy, their coverage, and what they refuse."""

import numpy as np
import pytest
from scipy import stats

from aeft_lib.studies.effects import LEVEL, adjusted, effect, half_width


def test_three_differences_by_hand():
    by_hand = effect([1.0, 2.0, 3.0])
    assert by_hand.mean == 2.0
    assert by_hand.n == 3
    assert by_hand.high - by_hand.mean == pytest.approx(4.302653 / 3**0.5, abs=1e-6)
    assert by_hand.mean - by_hand.low == pytest.approx(by_hand.high - by_hand.mean)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_one_sample_t_test(seed):
    values = np.random.default_rng(seed).normal(0.5, 1, size=3 + seed)
    ours, theirs = effect(values), stats.ttest_1samp(values, 0)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval(LEVEL)))


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    effects = [effect(rng.normal(1.0, 2.0, size=3)) for _ in range(2000)]
    assert np.mean([e.low <= 1.0 <= e.high for e in effects]) == pytest.approx(LEVEL, abs=0.015)


def test_a_wider_level_is_a_wider_interval_and_more_repeats_a_narrower_one():
    values = [0.5, 1.0, 2.0]
    assert effect(values, 0.99).high > effect(values, 0.9).high
    assert half_width(1.0, 5) < half_width(1.0, 3)


@pytest.mark.parametrize(
    ("differences", "word"),
    [
        ([2.0, 2.1, 1.9], "holds"),
        ([-2.0, -2.1, -1.9], "fails"),
        ([2.0, -1.0, 0.5], "inconclusive"),
        ([1.0, 1.0], "holds"),
    ],
)
def test_the_whole_interval_decides(differences, word):
    assert effect(differences).verdict == word


def test_equal_differences_have_no_width():
    assert effect([0.5, 0.5]) == (0.5, 0.5, 0.5, 0.0, 2)
    assert effect([0.0, 0.0]).p == 1.0


@pytest.mark.parametrize("differences", [[], [1.0], np.zeros((2, 2))])
def test_fewer_than_two_repeats_have_no_interval(differences):
    with pytest.raises(
        ValueError,
        match=r"at least two repeats, got \d.*--repeats 2"
        if np.ndim(differences) == 1
        else "two repeats",
    ):
        effect(differences)


def test_bad_numbers_are_named():
    with pytest.raises(ValueError, match=r"finite, got \[1.0, nan\]"):
        effect([1.0, float("nan")])
    for level in (0, 1, 95):
        with pytest.raises(ValueError, match=f"between 0 and 1, got {level}"):
            effect([1.0, 2.0], level)


def test_adjusted_p_values_by_hand_and_in_any_order():
    assert adjusted([0.01, 0.04, 0.5]) == [0.03, 0.06, 0.5]
    assert adjusted([0.5, 0.01, 0.04]) == [0.5, 0.03, 0.06]
    assert adjusted([]) == []
    assert adjusted([0.2]) == [0.2]
