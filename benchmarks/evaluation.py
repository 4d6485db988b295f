"""``aeft bench evaluation``: all thresholds from one read, against the literal loop over
thresholds, in one process.

The peer is written from the definition: for every threshold, stack [t, cam_1 .. cam_K] over all K
classes, take the argmax, and count every class with comparisons, as the reference implementation
does.  Both must give equal counts.  Time: CPU seconds of one thread, both in turn.  Memory: what a
process of its own needs at most beyond its inputs, from /proc (null where there is none).
"""

import sys
from collections.abc import Callable

import numpy as np
import torch
from measure import in_turn, peak_of, print_peak

from aeft_lib.maps import evaluation

# VOC's usual photo, its 20 classes, three tags.
IMAGES, HEIGHT, WIDTH, CLASSES, PRESENT = 6, 375, 500, 20, 3
THRESHOLDS = [round(0.10 + 0.01 * i, 2) for i in range(25)]  # the reference's sweep


def benchmarks() -> list[dict]:
    """One row:

    CPU seconds of both (medians), their ratio, the largest difference of any count, megabytes at
    most of both.
    """
    torch.set_num_threads(1)
    ours, peer = _sweeps()
    seconds, results = in_turn({"ours": ours, "peer": peer})
    difference = np.abs(results["ours"] - results["peer"]).max()
    return [
        {
            "name": "sweep",
            "peer": f"loop over {len(THRESHOLDS)} thresholds",
            "images": IMAGES,
            "ours_s": seconds["ours"],
            "peer_s": seconds["peer"],
            "ratio": seconds["peer"] / seconds["ours"],
            "max_abs_diff": int(difference),
            "ours_peak_mb": peak_of(__file__, "ours"),
            "peer_peak_mb": peak_of(__file__, "peer"),
        }
    ]


def _sweeps() -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
    """Two functions that make tp, predicted and true pixels, (3, T, K+1)."""
    rng = np.random.default_rng(0)
    ids = [np.sort(rng.choice(CLASSES, PRESENT, replace=False)) for _ in range(IMAGES)]
    cams = [rng.random((PRESENT, HEIGHT, WIDTH), dtype=np.float32) for _ in range(IMAGES)]
    masks = [rng.integers(0, CLASSES + 1, (HEIGHT, WIDTH)).astype(np.uint8) for _ in range(IMAGES)]

    def ours() -> np.ndarray:
        seeds = zip(ids, cams, strict=True)
        swept = evaluation.sweep(seeds, masks, THRESHOLDS, num_classes=CLASSES)
        return np.stack([swept.tp, swept.predicted, swept.true])

    return ours, lambda: literal_sweep(ids, cams, masks)


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


if __name__ == "__main__":
    print_peak(dict(zip(("ours", "peer"), _sweeps(), strict=True))[sys.argv[1]])
