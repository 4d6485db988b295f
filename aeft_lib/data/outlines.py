"""Outlines of COCO's objects: polygons, or run lengths by column, plain or packed as text.

Dependency choice: ``pycocotools`` paints polygons as COCO's own tools do; only masks need it.  Its
C code believes every number: a point far outside, or runs over the image, is the end of the process
(cocoapi issue 380).  So it gets polygons that `outline_problem` has passed, and nothing else.
"""

import math
from typing import Any

import numpy as np

FARTHEST = 1e6  # pixels: the largest coordinate
MAX_LENGTH = 2e6  # pixels of a polygon: COCO's code takes about 100 bytes for each


def outline_problem(outline: Any, size: tuple[int, int]) -> str:
    """Why an outline cannot be painted into an image of this (H, W); empty where it can."""
    if isinstance(outline, list):
        return next(filter(None, (_polygon_problem(part, size) for part in outline)), "")
    if not isinstance(outline, dict):
        return f"{type(outline).__name__} in place of polygons or runs"
    if not isinstance(sides := outline.get("size"), list) or sides != list(size):
        return f"its runs are of {str(sides)[:40]}, its image of {list(size)}"
    try:
        runs = _runs(outline.get("counts"))
    except ValueError as error:
        return str(error)
    if sum(runs) != math.prod(size):
        return f"its runs have {sum(runs)} pixels, the image {math.prod(size)}"
    return ""


def _polygon_problem(points: Any, size: tuple[int, int]) -> str:
    if not isinstance(points, list) or not set(map(type, points)) <= {int, float}:
        return "a polygon must be a list of numbers"
    if len(points) < 6 or len(points) % 2:
        return f"a polygon of {len(points)} numbers: x and y of at least three points are needed"
    far = next((v for v in points if not -FARTHEST <= v <= FARTHEST), None)  # NaN is far too
    if far is not None:
        return f"a polygon with the coordinate {far!r:.40}"
    ends = np.array(points, float).reshape(-1, 2)
    sides, (low, high) = np.array(size[::-1]), (ends.min(axis=0), ends.max(axis=0))
    if (low < -sides).any() or (high > 2 * sides).any():
        return f"a polygon from {low.tolist()} to {high.tolist()} in an image of {sides.tolist()}"
    length = np.abs(ends - np.roll(ends, 1, axis=0)).max(axis=1).sum()
    return f"a polygon {length:.0f} pixels long" if length > MAX_LENGTH else ""


def _runs(counts: Any) -> list[int]:
    """Run lengths, plain or in COCO's packed text.  Raises ValueError for what is neither."""
    if isinstance(counts, str):
        counts = _unpacked(counts)
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        raise ValueError("its runs are no whole numbers")
    return counts


def _unpacked(text: str) -> list[int]:
    """Run lengths of packed text: 5 bits a letter, the low ones first, bit 5 where more follow.

    From the third on, a run is stored as its difference to the run before the last one.
    """
    counts, value, shift = [], 0, 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 35:
            raise ValueError(f"its runs have the letter {letter!r} at a wrong place")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) and 1 << shift  # the sign
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise ValueError("its runs are cut off")
    return counts


def painted(outline: list | dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """The pixels of an outline without a problem as (H, W) bool; an empty list is no pixel."""
    from pycocotools import mask as masks  # only evaluation needs it

    if isinstance(outline, dict):
        runs = _runs(outline["counts"])
        inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)  # by columns, outside first
        return inside.reshape(size[::-1]).T
    if not outline:
        return np.zeros(size, bool)
    return masks.decode(masks.merge(masks.frPyObjects(outline, *size))).astype(bool)
