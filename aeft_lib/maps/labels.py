"""Label maps: how scores become labels, and palette PNGs as VOC has them.

A label map is (H, W) uint8: 0 background, class + 1, 255 void.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aeft_lib.maps.foreign import picture

VOID = 255


def voc_palette(n: int = 256) -> np.ndarray:
    """VOC's colours (n, 3) uint8: a label's bits, spread over the high bits of each channel."""
    labels = np.arange(n)
    palette = np.zeros((n, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            bits = ((labels >> (3 * bit + channel)) & 1) << (7 - bit)
            palette[:, channel] |= bits.astype(np.uint8)
    return palette


def with_rest(scores: Tensor) -> Tensor:
    """Posteriors (1 + K', H, W) from those of the classes: the rest of 1 is the background's."""
    return torch.cat([1 - scores.sum(dim=0, keepdim=True), scores])


def label_map(class_ids: Tensor, scores: Tensor, threshold: float | None = None) -> np.ndarray:
    """The labels (H, W) of an image's scores; a tie goes to the background, then the first class.

    class_ids: (K',) int64.  scores: (K', H, W) in 0..1, of these classes; K' may be 0.
    threshold: the background's score; None for posteriors, where the rest of 1 is its score.
    Raises ValueError where ids and scores differ in number, or scores hold NaN or infinity.
    """
    if not bool(scores.isfinite().all()):
        raise ValueError("scores hold NaN or infinity")
    if scores.ndim != 3 or len(class_ids) != len(scores):
        rule = f"(K', H, W) with K' = {len(class_ids)} classes"
        raise ValueError(f"scores must be {rule}, got {tuple(scores.shape)}")
    rows = with_rest(scores)
    if threshold is not None:
        rows[0] = threshold
    labels = torch.cat([torch.zeros(1, dtype=torch.int64), class_ids + 1])
    return labels[rows.argmax(dim=0)].to(torch.uint8).numpy()


def write_label_map(file: Path | BinaryIO, labels: np.ndarray, **options: Any) -> None:
    """Write a palette PNG in VOC's colours, without a date, so the same labels are the same bytes.

    options: Pillow's further ones.
    Raises ValueError where labels are no (H, W) uint8.
    """
    if labels.ndim != 2 or labels.dtype != np.uint8 or not labels.size:
        kind = f"{labels.dtype} {labels.shape}"
        raise ValueError(f"a label map must be (H, W) uint8, got {kind}; it was to go to {file}")
    drawn = Image.fromarray(labels)
    drawn.putpalette(voc_palette().tobytes())
    drawn.save(file, format="PNG", optimize=True, **options)


def read_label_map(
    file: Path, *, num_classes: int, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Read a palette or grey PNG of labels, (H, W) uint8.

    num_classes: K.  size: (H, W) that the map must have.
    Raises ValueError naming the file and the problem: cut off or no picture, colours or 16 bits
    instead of labels, another size, a label beyond K that is not void.
    """
    with picture(file, "not a readable label map", remedy="write or fetch it again") as opened:
        kind, mode = opened.format, opened.mode
        opened.load()  # where this fails, np.array would make an array of objects
        labels = np.array(opened)
    if kind != "PNG":  # others lose labels or number them anew
        raise ValueError(f"{file}: a label map must be a PNG, this is {kind}")
    if mode not in ("P", "L"):
        rule = "a label map must have one 8-bit channel (palette or grey)"
        raise ValueError(f"{file}: {rule}, this one has mode {mode}")
    if size is not None and labels.shape != tuple(size):
        raise ValueError(f"{file}: the label map is {labels.shape}, its image {tuple(size)}")
    check_labels(file, present_labels(labels), num_classes=num_classes)
    return labels


def present_labels(labels: np.ndarray) -> list[int]:
    """The different values of a label map (H, W) uint8, ascending."""
    return np.bincount(labels.ravel(), minlength=1).nonzero()[0].tolist()


def check_labels(file: Path, present: Iterable[int], *, num_classes: int) -> None:
    """Raises ValueError naming the file for a label beyond K that is not void."""
    if foreign := [label for label in present if label > num_classes and label != VOID]:
        rule = f"is outside 0..{num_classes} and is not void ({VOID})"
        raise ValueError(f"{file}: label {foreign[0]} {rule}")


def statistics(labels: np.ndarray) -> dict[str, float | str]:
    """``classes`` of a label map (apart by spaces), and its parts 0..1 of foreground and void."""
    classes = [str(label) for label in np.unique(labels) if label not in (0, VOID)]
    foreground = float(((labels != 0) & (labels != VOID)).mean())
    void = float((labels == VOID).mean())
    return {"classes": " ".join(classes), "foreground": foreground, "void": void}
