"""How far the trainings of a study are, step by step, while worker processes take them.

A stage that trains writes a line to ``steps.jsonl`` in its folder in the store at every check of
its loss.  The bar reads the last one: nothing is sent between processes, and trainings that other
processes of the same store take are seen as well.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from aeft_lib import paths
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.fitting import STEPS

QUIET = "AEFT_QUIET"
EVERY = 1.0  # seconds between two looks at the store
LAST = 4096  # bytes in which the last line of a log stands
FORMAT = "{desc}: {percentage:3.0f}%|{bar}| "
FORMAT += "{n_fmt}/{total_fmt} {unit}s [{elapsed}<{remaining}{postfix}]"


def quiet() -> bool:
    """Whether ``AEFT_QUIET`` is set (papermill, tests, workers)."""
    return bool(os.environ.get(QUIET))


@dataclass
class Trainings:
    """The trainings that some rows need, each once: its folder in the store, its steps.

    counted: folder -> steps by schedule and scenes; a log that says another number is right.
    """

    counted: dict[Path, int] = field(default_factory=dict)

    def steps(self) -> tuple[int, int]:
        """Steps that are taken and steps in all, of all trainings together."""
        pairs = [_taken(folder, steps) for folder, steps in self.counted.items()]
        return sum(done for done, _ in pairs), sum(steps for _, steps in pairs)


def missing(parts: Iterable[Artefact]) -> Trainings:
    """What a bar counts: the trainings among what rows are made of that are not in the store."""
    counted = {}
    for part in parts:
        schedule, scenes = (getattr(part.spec, name, None) for name in ("schedule", "scenes"))
        folder = paths.runs() / part.folder
        if schedule and scenes and folder not in counted and not folder.is_dir():
            counted[folder] = schedule.epochs * schedule.epoch_steps(len(scenes.open()))
    return Trainings(counted)


def _taken(folder: Path, counted: int) -> tuple[int, int]:
    """Steps of one training: taken, and in all.  Its log may be missing, or half a line long."""
    whole = folder.is_dir()
    log = (folder if whole else folder.with_name(f"{folder.name}.partial")) / STEPS
    for line in reversed(_last_lines(log)):
        try:
            last = json.loads(line)
            steps = int(last["steps"])
            return steps if whole else min(int(last["step"]), steps), steps
        except (ValueError, KeyError, TypeError):
            continue
    return counted if whole else 0, counted


def _last_lines(log: Path) -> list[bytes]:
    """The whole lines at a log's end; none where it cannot be read."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - LAST))
            return stream.read().splitlines(keepends=True)
    except OSError:
        return []


class Bar:
    """Steps of all trainings with the time that is left, and how many rows are finished.

    Rows alone are counted where there is nothing to train.  Time is at the mean speed since the
    bar began; what an earlier run has taken does not count for it.  Silent where `quiet`.
    """

    def __init__(self, trainings: Trainings, rows: int, title: str) -> None:
        self.trainings, self.rows, self.finished = trainings, rows, 0
        self.before = "features first"
        done, steps = trainings.steps()
        self.by_step = steps > 0
        counted = {"total": steps, "initial": done, "unit": "step"}
        counted = counted if self.by_step else {"total": rows, "unit": "row"}
        shown = {"smoothing": 0, "leave": False, "bar_format": FORMAT, "disable": quiet()}
        self.tqdm = tqdm(desc=title, **counted, **shown)
        self.show()

    def show(self) -> None:
        """Read the store and redraw."""
        if self.tqdm.disable:
            return
        if self.by_step:
            self.tqdm.n, self.tqdm.total = self.trainings.steps()
            # A killed run's log may be ahead of the checkpoint from which the training resumes.
            self.tqdm.initial = min(self.tqdm.initial, self.tqdm.n)
        else:
            self.tqdm.n = self.finished
        self.tqdm.set_postfix_str(self.before or f"rows {self.finished}/{self.rows}")

    def begin(self) -> None:
        """Say that rows begin: the clock by which the time left is estimated starts anew."""
        self.before, done = "", self.tqdm.n
        self.tqdm.reset()
        self.tqdm.n = self.tqdm.initial = done
        self.show()

    def row(self) -> None:
        """Count a finished row."""
        self.finished += 1
        self.show()


@contextmanager
def bar(trainings: Trainings, rows: int, title: str) -> Iterator[Bar]:
    """A bar that is closed at the end.  rows: that are computed."""
    shown = Bar(trainings, rows, title)
    try:
        yield shown
    finally:
        shown.tqdm.close()
