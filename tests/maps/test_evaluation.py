"""Evaluation:

golden parity, the one-pass sweep against the literal loop, counts by hand, the maskless threshold,
refusals.
"""

import re

import numpy as np
import pytest
import torch

from aeft_lib.maps.evaluation import (
    VOID,
    Counts,
    check_counted,
    confusion,
    mean_average_precision,
    sweep,
)

GRID = np.arange(0.05, 1.0, 0.05)


def literal_counts(
    cams, masks, thresholds, num_classes
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The definition, read aloud: per threshold and image argmax over [t, cam_1 ..

    cam_K], then count.
    """
    tp, predicted, true = (np.zeros((len(thresholds), num_classes + 1), np.int64) for _ in range(3))
    for i, threshold in enumerate(thresholds):
        for (class_ids, cam), mask in zip(cams, masks, strict=True):
            scores = np.zeros((num_classes + 1, *mask.shape), np.float32)
            scores[0] = threshold
            scores[np.asarray(class_ids) + 1] = cam
            guess = scores.argmax(axis=0)
            for label in range(num_classes + 1):
                tp[i, label] += ((guess == label) & (mask == label)).sum()
                predicted[i, label] += ((guess == label) & (mask != VOID)).sum()
                true[i, label] += (mask == label).sum()
    return tp, predicted, true


def assert_counts(ours: Counts, tp, predicted, true) -> None:
    for array, theirs in ((ours.tp, tp), (ours.predicted, predicted), (ours.true, true)):
        assert array.dtype == np.int64
        np.testing.assert_array_equal(array, theirs)


def random_images(rng, *, num_classes: int, n: int, steps: int = 20):
    """Images with two to all classes in any order, scores in `steps` equal steps (so:

    many ties), and void pixels.
    """
    cams, masks = [], []
    for _ in range(n):
        class_ids = rng.permutation(num_classes)[: rng.integers(1, num_classes + 1)]
        shape = tuple(rng.integers(3, 20, size=2))
        cam = (rng.integers(0, steps + 1, size=(len(class_ids), *shape)) / steps).astype(np.float32)
        mask = rng.integers(0, num_classes + 1, size=shape).astype(np.uint8)
        mask[rng.random(shape) < 0.2] = VOID
        cams.append((class_ids, cam))
        masks.append(mask)
    return cams, masks


def as_tensors(cams, masks):
    return [tuple(torch.from_numpy(x) for x in cam) for cam in cams], [
        torch.from_numpy(mask) for mask in masks
    ]


# --- golden parity -------------------------------------------------------------------------------


def golden_images(vectors):
    names = sorted(key.removesuffix("/class_ids") for key in vectors if key.endswith("/class_ids"))
    assert names, "the golden file holds no image"
    return names


def golden_sweep(vectors):
    names = golden_images(vectors)
    cams = (
        (torch.from_numpy(vectors[f"{n}/class_ids"]), torch.from_numpy(vectors[f"{n}/cam"]))
        for n in names
    )
    masks = (torch.from_numpy(vectors[f"{n}/gt"]) for n in names)
    return sweep(cams, masks, vectors["thresholds_f64"], num_classes=vectors["TP"].shape[1] - 1)


@pytest.mark.exact
def test_golden_counts_and_miou_at_every_threshold(golden):
    vectors = golden("evaluation")
    ours = golden_sweep(vectors)
    assert_counts(ours, vectors["TP"], vectors["P"], vectors["T"])
    np.testing.assert_allclose(ours.iou, vectors["IoU_f64"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.miou, vectors["mIoU_percent_f64"], rtol=0, atol=1e-10)


def test_golden_best_thresholds(golden):
    vectors = golden("evaluation")
    ours = golden_sweep(vectors)
    ranges = {
        name: found
        for name in vectors
        if (found := re.fullmatch(r"best_threshold_(\d+)_(\d+)_f64", name))
    }
    assert ranges, "the golden file names no best threshold"
    for name, found in ranges.items():
        low, high = (int(percent) / 100 for percent in found.groups())
        kept = np.flatnonzero((ours.thresholds > low - 1e-9) & (ours.thresholds < high + 1e-9))
        assert ours.thresholds[kept[ours.miou[kept].argmax()]] == vectors[name]
        if len(kept) == len(ours.thresholds):
            assert ours.thresholds[ours.best] == vectors[name]


@pytest.mark.parametrize("kind", ["crf", "png"])
def test_golden_counts_of_label_maps(golden, kind):
    vectors = golden("evaluation")
    num_classes = vectors["TP"].shape[1] - 1
    predictions, masks = [], []
    for name in golden_images(vectors):
        stored = vectors[f"{name}/{kind}"]
        if (
            kind == "crf"
        ):  # posteriors of background and of the image's classes -> labels, the lower class first
            posterior = np.zeros((num_classes + 1, *stored.shape[1:]), np.float32)
            posterior[[0, *(vectors[f"{name}/class_ids"] + 1)]] = stored
            stored = posterior.argmax(axis=0)
        predictions.append(torch.from_numpy(stored))
        masks.append(torch.from_numpy(vectors[f"{name}/gt"]))
    ours = confusion(predictions, masks, num_classes=num_classes)
    assert_counts(ours, *(vectors[f"{kind}/{count}"] for count in ("TP", "P", "T")))
    np.testing.assert_allclose(ours.iou, vectors[f"{kind}/IoU_f64"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.miou, vectors[f"{kind}/mIoU_percent_f64"], rtol=0, atol=1e-10)


# --- two implementations agree -------------------------------------------------------------------


@pytest.mark.exact
@pytest.mark.parametrize("seed", range(20))
def test_one_pass_sweep_equals_the_literal_loop(seed):
    rng = np.random.default_rng(seed)
    num_classes = int(rng.integers(1, 8))
    cams, masks = random_images(rng, num_classes=num_classes, n=4)
    thresholds = np.unique(rng.choice([*GRID, *rng.random(10)], size=int(rng.integers(1, 25))))
    ours = sweep(*as_tensors(cams, masks), thresholds, num_classes=num_classes)
    assert_counts(ours, *literal_counts(cams, masks, thresholds, num_classes))
    assert ours.top.sum() == sum(mask.size for mask in masks)


@pytest.mark.exact
@pytest.mark.parametrize("seed", range(5))
def test_confusion_of_the_argmax_equals_the_sweep_at_that_threshold(seed):
    rng = np.random.default_rng(seed)
    cams, masks = random_images(rng, num_classes=4, n=3)
    swept = sweep(*as_tensors(cams, masks), GRID, num_classes=4)
    predictions = []
    for class_ids, cam in cams:
        scores = np.zeros((5, *cam.shape[1:]), np.float32)
        scores[0] = GRID[seed]
        scores[class_ids + 1] = cam
        predictions.append(torch.from_numpy(scores.argmax(axis=0)))
    at = swept.at(seed)
    assert_counts(
        confusion(predictions, as_tensors(cams, masks)[1], num_classes=4),
        at.tp,
        at.predicted,
        at.true,
    )


def test_ties_go_to_background_then_to_the_lower_class_in_float32():
    cam = np.full((2, 1, 1), np.float32(0.3))  # as float64 this is above 0.3
    for class_ids in ([0, 1], [1, 0]):
        swept = sweep(
            [(np.array(class_ids), cam)], [np.ones((1, 1), np.uint8)], [0.29, 0.3], num_classes=2
        )
        assert swept.predicted.tolist() == [[0, 1, 0], [1, 0, 0]]


def test_plain_cams_mean_all_classes_in_order(rng):
    cams, masks = [], []
    for _ in range(3):
        cams.append(torch.from_numpy(rng.random((4, 6, 5), dtype=np.float32)))
        masks.append(torch.from_numpy(rng.integers(0, 5, (6, 5))))
    plain = sweep(cams, masks, GRID)
    named = sweep([(torch.arange(4), cam) for cam in cams], masks, GRID, num_classes=4)
    assert_counts(plain, named.tp, named.predicted, named.true)


def test_the_order_of_images_does_not_matter_and_every_iterable_is_read_once(rng):
    cams, masks = as_tensors(*random_images(rng, num_classes=3, n=5))
    forward = sweep(iter(cams), iter(masks), GRID, num_classes=3)
    backward = sweep(reversed(cams), reversed(masks), GRID, num_classes=3)
    assert_counts(forward, backward.tp, backward.predicted, backward.true)


# --- hand-worked numbers -------------------------------------------------------------------------


def test_counts_iou_precision_and_recall_by_hand():
    prediction = torch.tensor([[0, 0, 1, 1], [2, 1, 1, 0]])
    mask = torch.tensor([[0, 1, 1, 1], [2, 2, VOID, 0]])
    counts = confusion([prediction], [mask], num_classes=3)
    assert_counts(counts, [2, 2, 1, 0], [3, 3, 1, 0], [2, 3, 2, 0])
    np.testing.assert_allclose(counts.iou, [2 / 3, 2 / 4, 1 / 2, 0], atol=1e-9)
    assert counts.miou == pytest.approx(
        100 * (2 / 3 + 1 / 2 + 1 / 2) / 4
    )  # the absent class counts as 0
    assert counts.precision == pytest.approx(100 * (2 / 3 + 2 / 3 + 1) / 4)
    assert counts.recall == pytest.approx(100 * (1 + 2 / 3 + 1 / 2) / 4)


def test_absent_classes_count_as_0_and_are_counted():
    """Of six classes and the background three photos show two: a perfect map scores 3 / 7."""
    masks = [torch.tensor([[0, 1], [1, 0]]), torch.tensor([[0, 4], [VOID, 4]]), torch.zeros(2, 2)]
    counts = confusion(masks[:1] + [masks[1].clamp(max=4)] + masks[2:], masks, num_classes=6)
    assert counts.absent == 4
    assert counts.miou == pytest.approx(100 * 3 / 7)
    assert counts.miou_present == pytest.approx(100)
    # A class that is predicted and absent has an IoU of 0 and counts, as in VOC's evaluation.
    wrong = confusion([torch.tensor([[0, 1], [6, 0]])], masks[:1], num_classes=6)
    assert wrong.absent == 5
    assert wrong.miou_present == pytest.approx(100 * (1 + 1 / 2 + 0) / 3)


def test_absent_classes_at_every_threshold():
    cam, mask = torch.tensor([[[0.2, 0.6]], [[0.1, 0.3]]]), torch.tensor([[0, 1]])
    swept = sweep([cam], [mask], [0.1, 0.4])
    assert swept.absent.tolist() == [1, 1]
    assert swept.miou_present.tolist() == pytest.approx([100 * (0 + 1 / 2) / 2, 100])
    void = confusion([mask], [torch.full_like(mask, VOID)], num_classes=2)
    assert (int(void.absent), void.miou_present) == (3, 0)


def test_a_perfect_prediction_scores_100_and_void_never_counts(rng):
    mask = torch.from_numpy(rng.integers(0, 4, (9, 9)))
    counts = confusion([mask], [mask], num_classes=3)
    assert [counts.miou, counts.precision, counts.recall] == pytest.approx([100, 100, 100])
    void = confusion([mask], [torch.full_like(mask, VOID)], num_classes=3)
    assert_counts(void, [0] * 4, [0] * 4, [0] * 4)
    assert void.miou == 0


def test_best_is_the_first_of_the_highest_and_at_reads_one_threshold():
    cam, mask = torch.tensor([[[0.2, 0.6, 0.9]]]), torch.tensor([[0, 1, 1]])
    swept = sweep([cam], [mask], [0.1, 0.3, 0.5, 0.7])
    assert swept.best == 1
    assert swept.miou.tolist() == pytest.approx([100 * (0 + 2 / 3) / 2, 100, 100, 50])
    assert_counts(swept.at(3), [1, 1], [2, 1], [1, 2])


# --- the threshold without masks -----------------------------------------------------------------


def otsu_by_definition(scores: np.ndarray, thresholds: np.ndarray) -> list[float]:
    """Between-group variance of every threshold, from the scores themselves."""
    variances = []
    for threshold in thresholds:
        low, high = scores[scores <= threshold], scores[scores > threshold]
        variances.append(
            len(low) * len(high) * (low.mean() - high.mean()) ** 2 if len(low) and len(high) else 0
        )
    return variances


def bimodal_scores(rng, share: float) -> np.ndarray:
    low, high = rng.normal(0.2, 0.05, 6000), rng.normal(0.75, 0.06, 6000)
    return np.clip(np.where(rng.random(6000) < share, low, high), 0, 1).astype(np.float32)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_maskless_threshold_separates_two_groups_of_scores(rng, share):
    scores = bimodal_scores(rng, share)
    thresholds = np.arange(1, 100) / 100
    swept = sweep([scores.reshape(1, 60, 100)], [np.zeros((60, 100), np.uint8)], thresholds)
    chosen = thresholds[swept.maskless]
    assert 0.35 < chosen < 0.55
    variances = otsu_by_definition(scores.astype(float), thresholds)
    assert variances[swept.maskless] == pytest.approx(max(variances), rel=2e-3)


def test_maskless_threshold_does_not_read_masks(rng):
    cam = bimodal_scores(rng, 0.6).reshape(1, 60, 100)
    masks = [
        np.zeros((60, 100)),
        np.ones((60, 100)),
        np.full((60, 100), VOID),
        rng.integers(0, 2, (60, 100)),
    ]
    swept = [sweep([cam], [mask.astype(np.uint8)], GRID) for mask in masks]
    assert len({s.maskless for s in swept}) == 1
    assert len({s.best for s in swept}) > 1
    assert all(np.array_equal(s.top, swept[0].top) for s in swept)


def test_top_scores_are_counted_between_thresholds_closed_above():
    cam = torch.tensor([[[0.0, 0.1, 0.2, 0.25, 0.3, 1.0]]])
    assert sweep([cam], [torch.zeros(1, 6)], [0.1, 0.2, 0.3]).top.tolist() == [2, 1, 2, 1]


# --- tags ----------------------------------------------------------------------------------------


def test_mean_average_precision_by_hand():
    logits = torch.tensor([[0.9, -1.0, 3.0], [0.8, 2.0, 2.0], [0.7, 1.0, 1.0]])
    tags = torch.tensor(
        [[1, 0, 0], [0, 1, 0], [1, 1, 0]]
    )  # precision at the hits: 1/1, 2/3; 1, 1; the last never occurs
    assert mean_average_precision(logits, tags) == pytest.approx(100 * ((1 + 2 / 3) / 2 + 1) / 2)


def test_mean_average_precision_reads_the_order_alone(rng):
    logits, tags = (
        torch.from_numpy(rng.normal(size=(30, 5))),
        torch.from_numpy(rng.integers(0, 2, (30, 5))),
    )
    assert mean_average_precision(logits.sigmoid(), tags) == pytest.approx(
        mean_average_precision(logits, tags)
    )
    assert mean_average_precision(tags.float(), tags) == pytest.approx(100)


def test_mean_average_precision_of_one_occurring_class():
    logits, tags = (
        torch.tensor([[0.1, 5.0], [0.2, 6.0]]),
        torch.tensor([[True, False], [False, False]]),
    )
    assert mean_average_precision(logits, tags) == pytest.approx(50)


@pytest.mark.parametrize(
    ("logits", "tags", "message"),
    [
        (torch.zeros(2, 2), torch.zeros(2, 2), "no image has a tag"),
        (torch.tensor([[float("nan")], [0.0]]), torch.tensor([[1], [0]]), "NaN"),
    ],
)
def test_mean_average_precision_refuses(logits, tags, message):
    with pytest.raises(ValueError, match=message):
        mean_average_precision(logits, tags)


# --- refusals ------------------------------------------------------------------------------------

CAM, MASK = torch.full((2, 3, 4), 0.5), torch.zeros(3, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("cam", "mask", "message"),
    [
        (CAM, MASK[:, :3], r"an image needs .*cam \(2, 3, 4\), mask \(3, 3\)"),
        (CAM, MASK.T, r"an image needs .*cam \(2, 3, 4\), mask \(4, 3\)"),
        (CAM[0], MASK, r"an image needs .*cam \(3, 4\)"),
        (CAM[:0, :2], MASK, r"an image needs .*cam \(1, 2, 4\)"),
        ((torch.tensor([0]), CAM), MASK, r"class_ids \(1,\), cam \(2, 3, 4\)"),
        ((torch.tensor([0, 2]), CAM), MASK, r"class ids must be different and lie in 0\.\.1"),
        ((torch.tensor([-1, 0]), CAM), MASK, r"class ids must be different and lie in 0\.\.1"),
        (CAM, MASK + 3, r"mask label 3 is outside 0\.\.2 and is not void \(255\)"),
        (CAM, MASK.long() - 1, r"mask labels -1\.\.-1 are outside 0\.\.255"),
        (CAM, MASK.long() + 256, r"mask labels 256\.\.256 are outside 0\.\.255"),
        (CAM.index_fill(0, torch.tensor(1), float("nan")), MASK, "cam holds NaN or infinity"),
        (CAM.index_fill(0, torch.tensor(0), float("inf")), MASK, "cam holds NaN or infinity"),
    ],
)
def test_sweep_refuses_images_that_do_not_fit(cam, mask, message):
    with pytest.raises(ValueError, match=message):
        sweep([cam], [mask], GRID, num_classes=2)


@pytest.mark.parametrize("thresholds", [[], [0.2, 0.1], [0.1, 0.1], [0.1, 0.1 + 1e-12]])
def test_sweep_refuses_thresholds_that_do_not_increase_in_float32(thresholds):
    with pytest.raises(ValueError, match="thresholds must be increasing, and at least one, got"):
        sweep([CAM], [MASK], thresholds)


@pytest.mark.parametrize(("n_cams", "n_masks"), [(2, 1), (1, 2), (0, 1)])
def test_sweep_refuses_other_numbers_of_cams_and_masks(n_cams, n_masks):
    with pytest.raises(ValueError, match="argument 2 is"):
        sweep([CAM] * n_cams, [MASK] * n_masks, GRID)


def test_sweep_refuses_no_images():
    with pytest.raises(ValueError, match="at least one image"):
        sweep([], [], GRID, num_classes=2)


@pytest.mark.parametrize(
    ("prediction", "mask", "message"),
    [
        (MASK + 3, MASK, r"label 3 is outside 0\.\.2"),
        (MASK + VOID, MASK, r"label 255 is outside 0\.\.2"),
        (MASK, MASK + 7, r"label 7 is outside 0\.\.2"),
        (MASK[:2], MASK, "prediction is .*, its mask "),
    ],
)
def test_confusion_refuses_other_labels_and_sizes(prediction, mask, message):
    with pytest.raises(ValueError, match=message):
        confusion([prediction], [mask], num_classes=2)


def test_confusion_refuses_other_numbers_of_predictions_and_masks():
    with pytest.raises(ValueError, match="argument 2 is"):
        confusion([MASK], [MASK, MASK], num_classes=2)


def test_an_image_without_classes_is_background_at_every_threshold_and_has_no_say_in_the_blind_one():
    empty, mask = (torch.zeros(0, dtype=torch.int64), CAM[:0]), MASK.clone()
    mask[0, 0] = 1
    both = sweep([(torch.tensor([0, 1]), CAM), empty], [MASK, mask], (0.3, 0.6), num_classes=2)
    alone = sweep([(torch.tensor([0, 1]), CAM)], [MASK], (0.3, 0.6), num_classes=2)
    assert (both.predicted - alone.predicted == [mask.numel(), 0, 0]).all()
    assert (both.true - alone.true == [mask.numel() - 1, 1, 0]).all()
    assert (both.tp - alone.tp == [mask.numel() - 1, 0, 0]).all()
    assert both.top.tolist() == alone.top.tolist()


def test_masks_that_are_void_alone_are_refused_and_not_scored_as_nothing():
    cam, void = torch.rand(2, 4, 5), torch.full((4, 5), VOID, dtype=torch.uint8)
    for counts in (sweep([cam], [void], GRID), confusion([void * 0], [void], num_classes=2)):
        with pytest.raises(ValueError, match=r"no pixel can be scored: every mask is void \(255\)"):
            check_counted(counts)
    void[0, 0] = 1
    check_counted(confusion([void * 0], [void], num_classes=2))
