"""Intervals, verdicts, adjusted p values: by hand, against scipy, coverage, what is refused."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from aeft_lib.studies.effects import LEVEL, adjusted, effect, half_width, points, side, verdict


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
        ([2.0, -1.0, 0.5], "undecided"),
        ([0.0, 0.0], "undecided"),
        ([0.0, 4.0, 4.0], "undecided"),  # 2.67 ± 4.30 * 2.31 / 1.73: the old rule said holds
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


def test_an_end_at_zero_decides_nothing_and_the_next_number_does():
    least = np.nextafter(0, 1)
    assert [side(*ends) for ends in ((0.0, 1.0), (-1.0, 0.0), (0.0, 0.0))] == ["undecided"] * 3
    assert (side(least, 1.0), side(-1.0, -least)) == ("holds", "fails")


def test_a_claim_at_the_edge_turns_where_the_interval_leaves_zero():
    """Differences m - 1, m, m + 1: sd 1, so the edge is m = t / sqrt(3)."""
    edge = stats.t.ppf(0.975, 2) / 3**0.5
    at = {m: np.array([-1.0, 0.0, 1.0]) + m for m in (edge - 1e-6, edge + 1e-6)}
    assert [verdict(values) for values in at.values()] == ["undecided", "holds"]
    assert [verdict(-values) for values in at.values()] == ["undecided", "fails"]


@pytest.mark.parametrize(("n", "needs"), [(0, 3), (1, 3), (2, 3), (4, 5)])
def test_fewer_repeats_than_a_verdict_needs_are_refused_with_the_remedy(n, needs):
    with pytest.raises(ValueError, match=rf"needs {needs} repeats, got {n}: .*--repeats {needs}"):
        verdict([1.0] * n, needs)
    assert verdict([1.0] * needs, needs) == "holds"


def test_chance_decides_a_claim_without_effect_as_often_as_the_level_says():
    rng = np.random.default_rng(1)
    words = [verdict(rng.normal(0, 1, size=3)) for _ in range(2000)]
    # Four binomial standard deviations of 2,000 draws.
    bound = 4 * (LEVEL * (1 - LEVEL) / 2000) ** 0.5
    assert np.mean([word != "undecided" for word in words]) == pytest.approx(1 - LEVEL, abs=bound)


def test_adjusted_p_values_by_hand_and_in_any_order():
    assert adjusted([0.01, 0.04, 0.5]) == [0.03, 0.08, 0.5]  # times 3, times 2, times 1
    assert adjusted([0.5, 0.01, 0.04]) == [0.5, 0.03, 0.08]
    assert adjusted([0.02, 0.021]) == [0.04, 0.04]  # never below a smaller one's
    assert adjusted([0.6, 0.7, 0.0]) == [1.0, 1.0, 0.0]
    assert adjusted([]) == []
    assert adjusted([0.2]) == [0.2]


def test_adjusting_leaves_the_p_values_of_a_table_as_they_are():
    column = pd.Series([0.04, 0.01])
    assert adjusted(column) == [0.04, 0.02]
    assert column.tolist() == [0.04, 0.01]


def test_points_keep_the_sign_that_decides_and_have_an_interval_where_there_is_one():
    assert points(-8.6, -17.2, -0.04) == "-8.6 [-17.2, -0.0]"
    assert points(-1.24, None, None) == points(-1.24, np.nan, np.nan) == "-1.2"
