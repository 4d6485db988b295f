"""Batches of inference: images of one size together, read ahead, in bounded memory."""

import threading
from concurrent.futures import Future

import numpy as np
import pytest

from aeft_lib.engine.batches import batches, image_batches, in_order, together

SIZES = [(4, 6), (6, 4), (4, 6), (4, 6), (6, 4), (2, 2), (4, 6)]


PIXELS = 48  # two images of 24


def image(index: int) -> np.ndarray:
    return np.full((*SIZES[index], 3), index, np.uint8)


def test_images_of_one_size_go_together_each_once_with_its_index():
    made = [
        (part, [int(x.max()) for x in images])
        for part, images in image_batches(image, range(7), PIXELS)
    ]
    assert [part for part, _ in made] == [[0, 2], [1, 4], [3, 6], [5]]
    assert all(part == values for part, values in made)


def test_images_are_read_in_another_thread():
    readers = set()

    def read(index: int) -> np.ndarray:
        readers.add(threading.get_ident())
        return image(index)

    assert len(list(image_batches(read, range(7), PIXELS))) == 4
    assert len(readers) == 1
    assert threading.get_ident() not in readers


def test_an_image_that_cannot_be_read_is_an_error():
    def read(index: int) -> np.ndarray:
        if index == 3:
            raise LookupError("image 3")
        return image(index)

    with pytest.raises(LookupError, match="image 3"):
        list(image_batches(read, range(7), PIXELS))


def test_a_large_image_goes_alone():
    assert together((4, 6), PIXELS) == 2
    assert together((100, 100), PIXELS) == 1
    assert list(batches(range(3, 8), (4, 6), PIXELS)) == [range(3, 5), range(5, 7), range(7, 8)]
    assert list(batches(range(3, 5), (100, 100), PIXELS)) == [range(3, 4), range(4, 5)]


def test_no_more_than_ahead_is_submitted_before_its_turn():
    submitted: list[int] = []

    def submit(item: int) -> Future:
        submitted.append(item)
        future = Future()
        future.set_result(10 * item)
        return future

    results = in_order(submit, range(6), ahead=2)
    for item in range(6):
        assert next(results) == 10 * item
        assert submitted == list(range(min(item + 3, 6)))
    assert list(results) == []
