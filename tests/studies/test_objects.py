"""Intervals over objects: by hand, by their coverage of clusters, and what they refuse."""

import numpy as np
import pytest
from ledger_curves import counted

from aeft_lib.data.controlled import ControlledSpec
from aeft_lib.maps.evaluation import Counts
from aeft_lib.studies import catalogue, ledger, objects, profiles, run


def counts(right: list[int], pixels: int = 100) -> Counts:
    """Images of one class alone: of so many pixels the right ones, the others are background."""
    right = np.array(right)
    wrong, none = pixels - right, np.zeros_like(right)
    return Counts(
        np.stack([none, right], 1), np.stack([wrong, right], 1), np.stack([none, none + pixels], 1)
    )


def test_the_difference_is_that_of_the_summed_counts_mean_over_repeats():
    """Recall of the class, mean with background's 0: half of right pixels."""
    pairs = [(counts([60, 80]), counts([50, 50])), (counts([70, 90]), counts([50, 70]))]
    assert objects.difference(pairs, "recall") == pytest.approx([(20 + 20) / 2 / 2])
    weights = np.array([[1, 0], [0, 2]])
    assert objects.difference(pairs, "recall_maskless", weights) == pytest.approx([7.5, 12.5])


def test_two_photos_by_hand():
    """Drawn twice: both the first, both the second, or one of each: 1/4, 1/4, 1/2 of draws."""
    pairs = [(counts([60, 80]), counts([50, 50]))]
    low, high, n = objects.interval(pairs, [("a",), ("b",)], "recall")
    assert (low, high, n) == (pytest.approx(5), pytest.approx(15), 2)


def test_images_of_one_object_are_drawn_together():
    """Four images of two cut-outs are as uncertain as two images."""
    few = objects.interval([(counts([60, 80]), counts([50, 50]))], [("a",), ("b",)], "recall")
    more, less = counts([60, 60, 80, 80]), counts([50] * 4)
    names = [("a",), ("a",), ("b",), ("b",)]
    assert objects.interval([(more, less)], names, "recall") == few
    apart = objects.interval([(more, less)], [(str(i),) for i in range(4)], "recall")
    assert apart.high - apart.low <= few.high - few.low
    assert apart.objects == 4


def test_a_scene_with_several_objects_counts_as_often_as_the_product_of_their_draws():
    """The third scene shows both: it is there only where each of two cut-outs is drawn."""
    pairs = [(counts([100, 100, 0]), counts([0, 0, 0]))]
    names = [("a",), ("b",), ("a", "b")]
    # a twice: 2 x the first; b twice: 2 x the second; one of each: all three once.
    expected = (objects.difference(pairs, "recall")[0], 50.0)
    assert objects.interval(pairs, names, "recall")[:2] == pytest.approx(expected)


def test_an_interval_over_many_photos_is_about_the_normal_one():
    """Recall is the mean over photos here, whose standard error is known."""
    rng = np.random.default_rng(0)
    gains = rng.integers(-10, 20, size=400)
    pairs = [(counts(list(50 + gains)), counts([50] * 400))]
    low, high, _ = objects.interval(pairs, [(str(i),) for i in range(400)], "recall")
    half = 1.96 * gains.std() / 20 / 2
    # An end is a quantile of 2,000 draws: its own standard error is 0.06 of a standard deviation.
    bound = 5 * 0.06 * gains.std() / 20 / 2
    assert (low, high) == pytest.approx(
        (gains.mean() / 2 - half, gains.mean() / 2 + half), abs=bound
    )


def test_rows_that_agree_on_every_image_differ_nowhere():
    same = counts([60, 70, 80])
    interval = objects.interval([(same, same)], [("a",), ("b",), ("a", "b")], "miou")
    assert interval == (0.0, 0.0, 2)


@pytest.mark.parametrize("names", [[("a",), ("a",)], [(), ()]])
def test_one_object_has_no_interval(names):
    with pytest.raises(ValueError, match=r"at least two, got \["):
        objects.interval([(counts([1, 2]), counts([1, 2]))], names, "miou")


def test_counts_of_other_images_are_refused():
    with pytest.raises(ValueError, match=r"3 images have objects, counts are of \[2\]"):
        objects.interval([(counts([1, 2]), counts([1, 2]))], [("a",), ("b",), ("c",)], "miou")


def test_photos_are_their_own_objects_and_repeats_of_controlled_scenes_have_none():
    spec = ControlledSpec("val", 3, 64)
    assert objects.shown(spec) == [(name,) for name in spec.open().names]
    rows = (catalogue.row("base.gated"), catalogue.row("base.gap"))
    assert objects.of_rows(profiles.SMOKE, *rows, "miou", [0], lambda *_: {"objects": None}) is None


def test_a_store_without_the_rows_has_no_interval(tmp_path, monkeypatch):
    monkeypatch.setenv("AEFT_RUNS", str(tmp_path))
    rows = (catalogue.row("gated"), catalogue.row("gap"))
    assert objects.of_rows(profiles.SMOKE, *rows, "miou", [0], run.read) is None


def test_committed_counts_of_photos_have_an_interval_without_the_photos(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "home", lambda: tmp_path)
    asked = ("gated", "gap", "recall", [0])
    assert objects.of_photos("evening-voc", *asked) is None  # nothing is committed
    pair = counts([60, 80]), counts([50, 50])
    for row, of_row in zip(asked, pair, strict=False):
        table = np.stack([of_row.tp, of_row.predicted, of_row.true])
        counted(tmp_path, "evening-voc", row, 0, table)
        counted(tmp_path, "evening", row, 0, table, scenes="SceneSpec")
    assert objects.of_photos("evening-voc", *asked) == objects.interval(
        [pair], [("a",), ("b",)], "recall"
    )
    assert objects.of_photos("evening-voc", "gated", "gap", "recall_maskless", [0]) is None
    assert objects.of_photos("evening", *asked) is None  # of collages, which share cut-outs
    assert objects.of_photos("evening-voc", "gated", "gap", "recall", [0, 1]) is None
