"""Freed memory stays with a process and is used again."""

import os
import platform
import subprocess
import sys

import pytest

from aeft_lib.engine import memory

# A step writes 64 blocks of 4 MB one after another, then 64 together, and frees them.  Printed are
# the pages that the last of a few steps asks of the kernel.
STEPS = """
import resource, sys
import torch
from aeft_lib.engine import memory
if sys.argv[1] == "keep":
    memory.keep_freed()
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = torch.ones(2**20)
    for _ in range(64):
        block = block + 1
    blocks = [torch.ones(2**20) for _ in range(64)]
    del block, blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 64 * 2**22 // 4096
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


@pytest.fixture
def bare(monkeypatch):
    for name, *_ in (memory.HEAP_BLOCK, memory.FREE_END):
        monkeypatch.delenv(name, raising=False)


def last_step(*words: str) -> int:
    command = [sys.executable, "-c", STEPS, *words]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


@glibc
@pytest.mark.usefixtures("bare")
def test_a_step_asks_for_no_page_that_the_one_before_had():
    assert last_step("plain") > PAGES / 2
    assert last_step("keep") < PAGES / 100


@glibc
@pytest.mark.usefixtures("bare")
def test_processes_that_are_started_keep_it_too():
    memory.keep_freed()
    assert last_step("plain") < PAGES / 100


@pytest.mark.usefixtures("bare")
def test_what_the_variables_say_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")
    called = []
    monkeypatch.setattr(memory, "set_option", lambda *words: called.append(words))
    memory.keep_freed()
    assert os.environ["MALLOC_TRIM_THRESHOLD_"] == "1000"
    assert called == [memory.HEAP_BLOCK[1:]]


def test_a_c_library_without_it_is_no_error(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    memory.set_option(*memory.FREE_END[1:])
