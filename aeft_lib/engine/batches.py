"""What goes through a network together in inference, and what is read while the network works."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

AHEAD = 8  # images that a thread reads while the network works


def together(size: tuple[int, int], pixels: int) -> int:
    """How many images of a size (H, W) make a batch of so many pixels: at least one."""
    return max(1, pixels // (size[0] * size[1]))


def batches(indices: range, size: tuple[int, int], pixels: int) -> Iterator[range]:
    """Scenes of one size (H, W), batch by batch; pixels: of a batch (`device.batch_pixels`)."""
    step = together(size, pixels)
    for start in range(indices.start, indices.stop, step):
        yield range(start, min(start + step, indices.stop))


def image_batches(
    read: Callable[[int], np.ndarray], indices: range, pixels: int
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Batches of images (H, W, 3) of one size, each with their indices; a thread reads ahead.

    read: the image of an index.  pixels: of a batch (`device.batch_pixels`).
    Images of several sizes come out of order, and are held until a batch is full: hand over few
    indices (a shard).
    """
    waiting: dict[tuple[int, int], tuple[list[int], list[np.ndarray]]] = {}
    with ThreadPoolExecutor(1) as pool:
        images = in_order(partial(pool.submit, read), indices, ahead=AHEAD)
        for index, image in zip(indices, images, strict=True):
            size = image.shape[:2]
            numbers, pictures = waiting.setdefault(size, ([], []))
            numbers.append(index)
            pictures.append(image)
            if len(numbers) == together(size, pixels):
                yield waiting.pop(size)
    yield from waiting.values()


def in_order(submit: Callable[[Any], Future], items: Iterable[Any], *, ahead: int) -> Iterator[Any]:
    """Results of submitted items in their order; at most `ahead` are under way or wait.

    So memory does not grow with the number of items, however slowly the results are used.
    """
    items = iter(items)
    waiting = deque(map(submit, islice(items, ahead)))
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(map(submit, islice(items, 1)))
        yield result
