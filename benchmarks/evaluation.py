"""``aeft bench evaluation``: all thresholds from one read, against the literal loop over
thresholds, in one process.

The peer is written from the definition: for every threshold, stack [t, cam_1 .. cam_K] over all K
    classes, take the argmax, and
count every class with comparisons, as the reference implementation does.  Both must give equal
counts.
"""

import time
from collections.abc import Callable

import numpy as np
import torch

from aeft_lib.maps import evaluation

IMAGES, HEIGHT, WIDTH, CLASSES, PRESENT = (
    6,
    375,
    500,
    20,
    3,
)  # VOC's usual photo, its 20 classes, three tags
THRESHOLDS = [round(0.10 + 0.01 * i, 2) for i in range(25)]  # the reference's sweep
ROUNDS = 3


def benchmarks() -> list[dict]:
    """One row:

    seconds of both (median of the rounds), their ratio, and the largest difference of any count.
    """
    rng = np.random.default_rng(0)
    ids = [np.sort(rng.choice(CLASSES, PRESENT, replace=False)) for _ in range(IMAGES)]
    cams = [rng.random((PRESENT, HEIGHT, WIDTH), dtype=np.float32) for _ in range(IMAGES)]
    masks = [rng.integers(0, CLASSES + 1, (HEIGHT, WIDTH)).astype(np.uint8) for _ in range(IMAGES)]
    torch.set_num_threads(1)
    ours_s, ours = _median_time(
        lambda: evaluation.sweep(
            zip(ids, cams, strict=True), masks, THRESHOLDS, num_classes=CLASSES
        )
    )
    peer_s, peer = _median_time(lambda: literal_sweep(ids, cams, masks))
    difference = np.abs(np.stack([ours.tp, ours.predicted, ours.true]) - peer).max()
    row = {
        "name": "evaluation",
        "peer": f"loop over {len(THRESHOLDS)} thresholds",
        "ours_s": ours_s,
        "peer_s": peer_s,
    }
    return [row | {"ratio": peer_s / ours_s, "max_abs_diff": int(difference)}]


def literal_sweep(
    ids: list[np.ndarray], cams: list[np.ndarray], masks: list[np.ndarray]
) -> np.ndarray:
    """tp, predicted and true pixels, (3, T, K+1), threshold by threshold and class by class."""
    counts = np.zeros((3, len(THRESHOLDS), CLASSES + 1), dtype=np.int64)
    for t, threshold in enumerate(THRESHOLDS):
        for class_ids, cam, mask in zip(ids, cams, masks, strict=True):
            scores = np.zeros((CLASSES + 1, *mask.shape), dtype=np.float32)
            scores[0], scores[class_ids + 1] = threshold, cam
            predicted, known = scores.argmax(axis=0), mask < 255
            for label in range(CLASSES + 1):
                guess, truth = (predicted == label) & known, (mask == label) & known
                counts[:, t, label] += (guess & truth).sum(), guess.sum(), truth.sum()
    return counts


def _median_time(run: Callable) -> tuple[float, object]:
    seconds, result = [], None
    for _ in range(ROUNDS):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds)), result
