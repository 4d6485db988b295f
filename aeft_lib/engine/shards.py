"""Work on many images, spread over processes or ranks; results do not depend on their number."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from typing import Any

import torch

from aeft_lib.engine import ranks
from aeft_lib.engine.batches import in_order

SHARD = 32  # images a process takes at a time
VARIABLE = "AEFT_PROCESSES"


def processes() -> int:
    """How many processes a stage may start: ``AEFT_PROCESSES``, which a study sets, else 1.

    Raises ValueError for anything but a whole number from 1 on.
    """
    asked = os.environ.get(VARIABLE) or "1"
    if not asked.isdecimal() or int(asked) < 1:
        raise ValueError(f"{VARIABLE} must be a whole number, at least 1, got {asked!r}")
    return int(asked)


def over_images(
    function: Callable[..., list], count: int, *arguments: Any, at_most: int = 0
) -> Iterator[Any]:
    """Results of ``function(range, *arguments)`` for shards of 0..count-1, image by image in order.

    function: of a module, since other processes import it; returns one result an image.
    arguments: what can be pickled.  at_most: so many processes; 0 is no bound.
    Under torchrun every rank calls it and takes its share of the shards; rank 0 gets all results,
    the others none.  Raises what the function raises; shards that are under way end first.
    """
    shards = [range(start, min(start + SHARD, count)) for start in range(0, count, SHARD)]
    if ranks.world() > 1:
        yield from _over_ranks(function, shards, *arguments)
        return
    workers = min(processes(), len(shards), at_most or len(shards))
    if workers <= 1:
        for shard in shards:
            yield from function(shard, *arguments)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker) as pool:
        submit = partial(_submitted, pool, function, arguments)
        try:
            for results in in_order(submit, shards, ahead=2 * workers):
                yield from results
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _submitted(
    pool: ProcessPoolExecutor, function: Callable[..., list], arguments: tuple, shard: range
) -> Future:
    return pool.submit(function, shard, *arguments)


def start_worker(processes: int = 1) -> None:
    """Begin a process of a pool: one thread for arithmetic, and so many processes for its stages.

    It ends with its parent, however that ends: an orphan would hold a gigabyte for ever.
    """
    torch.set_num_threads(1)
    os.environ[VARIABLE] = str(processes)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _over_ranks(
    function: Callable[..., list], shards: list[range], *arguments: Any
) -> Iterator[Any]:
    """In rounds of one shard a rank; rank 0 holds the results of one round at a time."""
    world = ranks.world()
    for start in range(0, len(shards), world):
        mine = shards[start + ranks.rank()] if start + ranks.rank() < len(shards) else range(0)
        for results in ranks.together(function(mine, *arguments) if mine else []):
            yield from results
