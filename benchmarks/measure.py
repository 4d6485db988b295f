"""What the benchmarks share: time in turn, and the peak memory of a process of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def in_turn(
    runs: dict[str, Callable], rounds: int = 3, clock: Callable[[], float] = time.process_time
) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each run, and its last result; in turn, so that all see the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results = {}
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            results[name] = run()
            seconds[name].append(clock() - start)
    return {name: float(np.median(times)) for name, times in seconds.items()}, results


def peak_of(file: str, *words: str) -> float | None:
    """Megabytes that a benchmark's file, as a program with these words, reports with `print_peak`."""
    child = subprocess.run(
        [sys.executable, file, *words], capture_output=True, text=True, check=True
    )
    return json.loads(child.stdout)


def print_peak(run: Callable, warm: Callable = lambda: None) -> None:
    """Print what this process needs at most for a run beyond what it has, in MB; null without /proc.

    warm: runs first, to load the code.  Read from /proc, since getrusage counts the parent's peak
    before the exec.
    """
    torch.set_num_threads(1)
    if not STATUS.exists():
        print("null")
        return
    warm()
    with suppress(OSError):  # the peak so far counts no more, where Linux can forget it
        RESET.write_text("5")
    before = _kilobytes("VmRSS")
    run()
    print((_kilobytes("VmHWM") - before) / 1e3)


def _kilobytes(field: str) -> int:
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))
