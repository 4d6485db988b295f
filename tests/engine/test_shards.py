"""Work spread over processes:

the same results in the same order, errors that come through, bad values of the variable.
"""

import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import psutil
import pytest
import torch

from aeft_lib import paths
from aeft_lib.engine import shards
from aeft_lib.engine.shards import SHARD, VARIABLE, over_images, processes


def squares(indices: range, offset: int = 0) -> list[int]:
    return [index**2 + offset for index in indices]


def shards_and_processes(indices: range) -> list[tuple[range, int, int]]:
    return [(indices, os.getpid(), torch.get_num_threads())] * len(indices)


def fails_late(indices: range) -> list[int]:
    if 5 in indices:
        raise LookupError(f"scene 5 of {indices.start}..{indices.stop - 1}")
    return list(indices)


def leaves_a_file(indices: range, folder: Path) -> list[int]:
    (folder / str(indices.start)).touch()
    return list(indices)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 2)


def with_processes(monkeypatch, count: int) -> None:
    monkeypatch.setenv(VARIABLE, str(count))


# --- how many ------------------------------------------------------------------------------------


def test_one_process_where_nothing_is_asked(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert processes() == 1
    monkeypatch.setenv(VARIABLE, "")
    assert processes() == 1


def test_the_variable_is_read_when_it_is_needed(monkeypatch):
    for count in (1, 3, 12):
        with_processes(monkeypatch, count)
        assert processes() == count


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "two", " 2", "1e3"])
def test_anything_but_a_count_is_refused(monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    for ask in (processes, lambda: list(over_images(squares, 3))):
        with pytest.raises(
            ValueError, match=f"AEFT_PROCESSES must be a whole number, at least 1, got '{value}'"
        ):
            ask()


# --- results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, SHARD, SHARD + 1, 3 * SHARD - 1])
def test_every_image_once_in_order_in_this_process(monkeypatch, count):
    with_processes(monkeypatch, 1)
    assert list(over_images(squares, count, 7)) == [index**2 + 7 for index in range(count)]


def test_two_processes_give_what_one_gives(monkeypatch, small_shards):
    found = []
    for asked in (1, 2):
        with_processes(monkeypatch, asked)
        found.append(list(over_images(squares, 5, 7)))
    assert found[0] == found[1] == [7, 8, 11, 16, 23]


def test_shards_go_to_other_processes_of_one_thread_each(monkeypatch, small_shards):
    with_processes(monkeypatch, 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # what they would start with
    found = list(over_images(shards_and_processes, 5))
    assert [shard for shard, *_ in found] == [range(0, 2)] * 2 + [range(2, 4)] * 2 + [range(4, 5)]
    assert os.getpid() not in {pid for _, pid, _ in found}
    assert {threads for *_, threads in found} == {1}


def test_one_shard_starts_no_process(monkeypatch):
    with_processes(monkeypatch, 2)
    assert {pid for _, pid, _ in over_images(shards_and_processes, SHARD)} == {os.getpid()}


def test_a_shard_is_not_begun_before_it_is_asked_for(monkeypatch, small_shards):
    with_processes(monkeypatch, 1)
    results = over_images(fails_late, 9)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]


def test_no_more_shards_are_begun_than_are_used_soon(monkeypatch, small_shards, tmp_path):
    """Results that nobody takes yet would pile up in this process."""
    with_processes(monkeypatch, 2)
    results = over_images(leaves_a_file, 20, tmp_path)
    assert next(results) == 0
    results.close()
    # Four under way at first, and one more for the shard that was taken.
    assert len(list(tmp_path.iterdir())) <= 5


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [1, 2])
def test_an_error_comes_through_after_the_results_before_it(monkeypatch, small_shards, asked):
    with_processes(monkeypatch, asked)
    results = over_images(fails_late, 9)
    assert list(islice(results, 4)) == [0, 1, 2, 3]
    with pytest.raises(LookupError, match=r"scene 5 of 4\.\.5"):
        next(results)


def test_whoever_stops_listening_ends_the_pool(monkeypatch, small_shards):
    with_processes(monkeypatch, 2)
    results = over_images(squares, 8)
    assert next(results) == 0
    results.close()
    assert list(results) == []


# --- the end of the parent -------------------------------------------------------------------------

TREE = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor

from aeft_lib.engine import shards

def wait(indices):
    print(os.getpid(), flush=True)
    time.sleep(3600)

def stage():
    shards.SHARD = 1
    return list(shards.over_images(wait, 2))

if __name__ == "__main__":
    options = {"initializer": shards.start_worker, "initargs": (2,)}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, **options) as pool:
        pool.submit(stage).result()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_children_and_theirs_end_with_their_parent(tmp_path, sent):
    """A parent, its worker, and two processes of that worker, all in the middle of work."""
    (tmp_path / "tree.py").write_text(TREE)
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT)}
    command = [sys.executable, tmp_path / "tree.py"]
    parent = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    working = {int(parent.stdout.readline()) for _ in range(2)}  # both have begun
    children = psutil.Process(parent.pid).children(recursive=True)
    assert working < {child.pid for child in children}
    parent.send_signal(sent)
    parent.wait()
    assert left_of(children) == []


def left_of(children: list[psutil.Process], seconds: float = 120) -> list[psutil.Process]:
    """Those that do not end; nobody may be there to collect what has ended."""
    deadline, alive = time.monotonic() + seconds, children
    while alive and time.monotonic() < deadline:
        _, alive = psutil.wait_procs(alive, timeout=0.1)
        alive = [child for child in alive if running(child)]
    return alive


def running(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
