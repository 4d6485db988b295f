"""Evaluation: a threshold sweep in one pass, confusion counts, mIoU, precision, recall, tag mAP.

Prediction at threshold t is the argmax over [t, cam_1 .. cam_K], first maximum wins, compared in
float32.  So the winner among the classes does not depend on t, and background wins wherever t >=
the top score: one histogram of (truth, winner, bin of the top score) gives the counts at every
threshold, from one read of every seed.

mIoU is the mean over all K+1 classes, background included; a class that never occurs counts as 0,
as in the reference, where VOC's own evaluation has no number (0 / 0); so `Counts.absent` says how
many there are, and `Counts.miou_present` leaves them out.  Pixels labelled 255 are ignored.
Precision and recall are means over all K+1 classes.  All counts are int64.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from aeft_lib.maps.labels import VOID

LABELS = 256  # all values of a mask; those that are neither class nor void are refused at the end
EPS = 1e-10


@dataclass(frozen=True)
class Counts:
    """Pixel counts per class, background first, int64, on the last axis; void pixels are in none.

    tp: predicted and true.  predicted: all predicted.  true: all of the truth.
    """

    tp: np.ndarray
    predicted: np.ndarray
    true: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union per class, 0..1."""
        return self.tp / (self.true + self.predicted - self.tp + EPS)

    @property
    def miou(self) -> np.ndarray:
        """Mean IoU over all classes, in percent."""
        return 100 * self.iou.mean(axis=-1)

    @property
    def absent(self) -> np.ndarray:
        """How many classes, background among them, have no true pixel."""
        return (self.true == 0).sum(axis=-1)

    @property
    def miou_present(self) -> np.ndarray:
        """Mean IoU over the classes that masks or predictions have, in percent; 0 without any."""
        occurring = (self.true + self.predicted > 0).sum(axis=-1)
        return 100 * self.iou.sum(axis=-1) / np.maximum(occurring, 1)

    @property
    def precision(self) -> np.ndarray:
        """Mean over classes of tp / predicted, in percent; a class never predicted counts as 0."""
        return 100 * (self.tp / np.maximum(self.predicted, 1)).mean(axis=-1)

    @property
    def recall(self) -> np.ndarray:
        """Mean over classes of tp / true, in percent; a class that never occurs counts as 0."""
        return 100 * (self.tp / np.maximum(self.true, 1)).mean(axis=-1)


@dataclass(frozen=True)
class Sweep(Counts):
    """Counts (T, K+1) at T increasing thresholds.

    top: (T+1,) int64, pixels (void included) by the bin of their top score; bin i holds
        thresholds[i-1] < top score <= thresholds[i], the ends are open.
    """

    thresholds: np.ndarray
    top: np.ndarray

    def at(self, index: int) -> Counts:
        """The counts at one threshold."""
        return Counts(self.tp[index], self.predicted[index], self.true[index])

    def table(self) -> pd.DataFrame:
        """One line a threshold: ``threshold, miou, precision, recall`` (percent)."""
        names = ("miou", "precision", "recall")
        columns = {name: getattr(self, name) for name in names}
        return pd.DataFrame({"threshold": self.thresholds, **columns})

    @property
    def best(self) -> int:
        """Index of the threshold with the highest mIoU: chosen on masks, as the reference does."""
        return int(self.miou.argmax())

    @property
    def maskless(self) -> int:
        """Index of the threshold chosen without masks, see `otsu`."""
        return otsu(self.top, self.thresholds)


def otsu(top: np.ndarray, thresholds: Sequence[float]) -> int:
    """Index of Otsu's threshold: the largest variance between the two groups it separates.

    It reads the seeds alone.  top: (T + 1,) pixels per bin of their top score, see `Sweep`.
    thresholds: T, increasing.
    """
    weights = top.astype(float)
    edges = np.concatenate([[0.0], thresholds, [1.0]])
    scores = weights * (edges[:-1] + edges[1:]) / 2
    below, score_below = weights.cumsum()[:-1], scores.cumsum()[:-1]
    above, score_above = weights.sum() - below, scores.sum() - score_below
    difference = score_below / np.maximum(below, 1) - score_above / np.maximum(above, 1)
    return int((below * above * difference**2).argmax())


def top_histogram(cams: Iterable[Tensor], thresholds: Sequence[float]) -> np.ndarray:
    """`Sweep.top` without masks.  cams: per image (K', H, W) in 0..1; K' may be 0."""
    grid = torch.as_tensor(np.asarray(thresholds, dtype=np.float32))
    counts = torch.zeros(len(grid) + 1, dtype=torch.int64)
    for cam in cams:
        if len(cam):
            bins = torch.bucketize(cam.amax(dim=0).flatten(), grid)
            counts += torch.bincount(bins, minlength=len(counts))
    return counts.numpy()


def sweep(
    cams: Iterable[tuple[Tensor, Tensor] | Tensor],
    masks: Iterable[Tensor],
    thresholds: Sequence[float],
    *,
    num_classes: int | None = None,
) -> Sweep:
    """Counts at every threshold from one read of every image.

    cams: per image (class_ids (K',), cam (K', H, W) in 0..1); or a plain (K, H, W) with all
        classes.
    masks: per image (H, W), 0 background, class + 1, 255 void.  thresholds: increasing.
    num_classes: K, without background; may be left out where the first cam is a plain (K, H, W).
    An image without classes is background, and its pixels are not in `Sweep.top`.
    Raises ValueError where shapes, classes or lengths do not fit.
    """
    grid = torch.as_tensor(np.asarray(thresholds, dtype=np.float32))
    if len(grid) == 0 or not (grid.diff() > 0).all() or not grid.isfinite().all():
        raise ValueError(f"thresholds must be increasing, and at least one, got {list(thresholds)}")
    n_bins = len(grid) + 1
    histogram: Tensor | None = None
    untagged = 0  # pixels
    for item, mask in zip(cams, masks, strict=True):
        class_ids, cam = _classes_and_cam(item)
        num_classes = len(cam) if num_classes is None else num_classes
        mask = torch.as_tensor(mask)
        if num_classes and len(class_ids) == len(cam) == 0:
            untagged += mask.numel()
            class_ids, cam = torch.zeros(1, dtype=torch.int64), cam.new_zeros(1, *cam.shape[1:])
        _check_image(class_ids, cam, mask, num_classes)
        if histogram is None:
            histogram = torch.zeros(LABELS * num_classes * n_bins, dtype=torch.int64)
        top, winner = _first_maximum(cam.reshape(len(cam), -1), class_ids)
        bins = torch.bucketize(top, grid.to(top.device), out_int32=True)
        truth = mask.reshape(-1).to(top.device, torch.int32)
        places = (truth * num_classes + winner) * n_bins + bins
        histogram += torch.bincount(places, minlength=len(histogram)).cpu()
    if histogram is None:
        raise ValueError("sweep needs at least one image")
    shaped = histogram.view(LABELS, num_classes, n_bins).numpy()
    foreign = shaped[num_classes + 1 : VOID].sum(axis=(1, 2)).nonzero()[0]
    if len(foreign):
        label = foreign[0] + num_classes + 1
        rule = f"is outside 0..{num_classes} and is not void ({VOID})"
        raise ValueError(f"mask label {label} {rule}")
    counts = _counts_by_threshold(shaped[: num_classes + 1])
    top = shaped.sum(axis=(0, 1))
    top[0] -= untagged
    return Sweep(*counts, np.asarray(thresholds, dtype=float), top=top)


def confusion(
    predictions: Iterable[Tensor], masks: Iterable[Tensor], *, num_classes: int
) -> Counts:
    """Counts (K+1,) of label maps (H, W) in 0..K against masks with 255 void.

    Raises ValueError for other labels or shapes.
    """
    n = num_classes + 1
    matrix = torch.zeros(n * n, dtype=torch.int64)
    for prediction, mask in zip(predictions, masks, strict=True):
        truth, guess = (torch.as_tensor(x).to(torch.int64) for x in (mask, prediction))
        if truth.shape != guess.shape:
            raise ValueError(f"prediction is {tuple(guess.shape)}, its mask {tuple(truth.shape)}")
        kept = truth != VOID
        truth, guess = truth[kept], guess[kept]
        for label in {int(x) for labels in (truth, guess) if len(labels) for x in labels.aminmax()}:
            if not 0 <= label < n:
                rule = f"is outside 0..{num_classes} and is not void ({VOID})"
                raise ValueError(f"label {label} {rule}")
        matrix += torch.bincount(truth * n + guess, minlength=n * n)
    square = matrix.view(n, n).numpy()
    return Counts(square.diagonal().copy(), square.sum(axis=0), square.sum(axis=1))


def check_counted(counts: Counts) -> None:
    """Raises ValueError where no pixel counts: the numbers would be 0 whatever is scored."""
    if not counts.true.any():
        raise ValueError(f"no pixel can be scored: every mask is void ({VOID}); 0 is background")


def mean_average_precision(logits: Tensor, tags: Tensor) -> float:
    """mAP of the tags in percent: average precision per class, mean over the classes that occur.

    logits: (N, K), any monotone score.  tags: (N, K), 0 or 1.
    Raises ValueError for NaN or where no class occurs.
    """
    from sklearn.metrics import average_precision_score  # slow to import, so not with the module

    occurring = tags.bool().any(dim=0)
    if not occurring.any():
        raise ValueError("no image has a tag: the mean average precision is not defined")
    truth, scores = (values[:, occurring].numpy() for values in (tags, logits))
    return 100 * float(average_precision_score(truth, scores, average="macro"))


def _first_maximum(cam: Tensor, class_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Top score and its class per pixel; the first of equals wins (`torch.max` promises none)."""
    top = cam[0].clone()
    winner = torch.full(top.shape, int(class_ids[0]), dtype=torch.int32, device=top.device)
    for class_id, scores in zip(class_ids[1:].tolist(), cam[1:], strict=True):
        winner += (scores > top) * (class_id - winner)  # torch.where is slower than arithmetic here
        torch.maximum(top, scores, out=top)
    return top, winner


def _classes_and_cam(item: tuple[Tensor, Tensor] | Tensor) -> tuple[Tensor, Tensor]:
    class_ids, cam = item if isinstance(item, tuple) else (None, item)
    cam = torch.as_tensor(cam, dtype=torch.float32)
    if class_ids is None:
        return torch.arange(len(cam)), cam
    class_ids = torch.as_tensor(class_ids, dtype=torch.int64)
    if (class_ids.diff() > 0).all() or len(class_ids) != len(cam):
        return class_ids, cam
    order = class_ids.argsort()  # of equal scores the lower class wins, whatever order the file has
    return class_ids[order], cam[order]


def _check_image(class_ids: Tensor, cam: Tensor, mask: Tensor, num_classes: int) -> None:
    if cam.ndim != 3 or len(cam) == 0 or len(cam) != len(class_ids) or cam.shape[1:] != mask.shape:
        parts = {"class_ids": class_ids, "cam": cam, "mask": mask}.items()
        shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in parts)
        rule = "class_ids (K',), cam (K', H, W), K' >= 1, and mask (H, W)"
        raise ValueError(f"an image needs {rule}; got {shapes}")
    ids = class_ids.tolist()
    if max(ids) >= num_classes or min(ids) < 0 or len(set(ids)) < len(ids):
        rule = f"be different and lie in 0..{num_classes - 1}"
        raise ValueError(f"class ids must {rule}, got {ids}")
    if mask.dtype != torch.uint8 and (int(mask.min()) < 0 or int(mask.max()) > VOID):
        raise ValueError(f"mask labels {int(mask.min())}..{int(mask.max())} are outside 0..{VOID}")
    if not all(map(math.isfinite, cam.aminmax())):
        raise ValueError("cam holds NaN or infinity")


def _counts_by_threshold(histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(truth, winner, bin) pixel counts -> tp, predicted, true, each (T, K+1).

    At threshold i a pixel is foreground where its bin is above i, so foreground counts are reversed
    cumulative sums.
    """
    foreground = histogram[..., ::-1].cumsum(axis=-1)[..., ::-1][..., 1:]
    n_thresholds, num_classes = foreground.shape[-1], histogram.shape[1]
    true = np.tile(histogram.sum(axis=(1, 2)), (n_thresholds, 1))
    tp = np.zeros_like(true)
    predicted = np.zeros_like(true)
    tp[:, 1:] = foreground[np.arange(1, num_classes + 1), np.arange(num_classes)].T
    predicted[:, 1:] = foreground.sum(axis=0).T
    predicted[:, 0] = histogram.sum() - predicted[:, 1:].sum(axis=1)
    tp[:, 0] = true[:, 0] - foreground[0].sum(axis=0)
    return tp, predicted, true
