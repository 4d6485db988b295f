"""Running studies: rows that are in the stage store are read, the others are computed, side by side on the cores at hand.

Every computation runs in a process of its own with one thread, so results do not depend on how many run at once.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from aeft_lib import paths
from aeft_lib.engine import ranks, shards
from aeft_lib.engine.device import device
from aeft_lib.stages import store
from aeft_lib.studies import preflight
from aeft_lib.studies.catalogue import STUDIES, Study, get, row, study_of
from aeft_lib.studies.rows import AnyRow, Found, Obtain, features
from aeft_lib.studies.settings import Profile

__all__ = ["STUDIES", "Study", "artefacts", "features", "get", "row", "run", "stored", "study_of", "summarise"]


def artefacts(profile: Profile, row: AnyRow, seed: int, obtain: Obtain = store.obtain) -> Found:
    """One row with one seed from tags to numbers: its artefacts by name, ``evaluation`` among them."""
    return row.artefacts(profile, seed, obtain)


def numbers(found: Found) -> dict[str, float]:
    """The numbers of a row's artefacts: of its evaluation, and where objects were measured the spread of their CAMs."""
    return found["evaluation"].summary | (found["objects"].summary if "objects" in found else {})


def run(study: Study, profile: Profile, seeds: Sequence[int], *, rows: Sequence[AnyRow] = (), workers: int = 0) -> pd.DataFrame:
    """The study's table: one line per row and seed, ``row, label, seed`` and the numbers of `evaluate_seeds` (percent).

    rows: only these.  workers: processes; 0 is one per core, and a single one on a GPU.
    What is finished stays in the store whatever happens to the rest; errors of a row carry its name and seed.
    Raises ValueError for seeds that are none, before anything runs.
    """
    jobs = [(row, seed) for seed in check_seeds(seeds) for row in (rows or study.rows)]
    found = {job: stored(profile, *job) for job in jobs}
    if missing := [job for job in _in_order(study, jobs) if found[job] is None]:
        found |= _compute(f"{study.name} on {profile.name}", profile, missing, workers or default_workers())
    lines = [{"row": row.name, "label": row.label, "seed": seed, **found[row, seed]} for row, seed in jobs]
    return at_common_threshold(study, profile, pd.DataFrame(lines))


def prepare(chosen: Sequence[tuple[Study, Sequence[int]]], profile: Profile, *, workers: int = 0) -> None:
    """Compute what the store lacks of several studies, each with its seeds, in one go: no core waits between two of them.

    Rows that stand in more than one study are computed once.  Errors and their rows as in `run`.
    """
    jobs: list[tuple[AnyRow, int]] = []
    for study, seeds in chosen:
        jobs += _in_order(study, [(row, seed) for seed in check_seeds(seeds) for row in study.rows])
    if missing := [job for job in dict.fromkeys(jobs) if stored(profile, *job) is None]:
        _compute(f"{len(chosen)} studies on {profile.name}", profile, missing, workers or default_workers())


def _in_order(study: Study, jobs: Sequence[tuple[AnyRow, int]]) -> list[tuple[AnyRow, int]]:
    """Jobs as they should begin: the study's first rows, then the others as they stand."""
    return sorted(jobs, key=lambda job: job[0].name not in study.first)


def at_common_threshold(study: Study, profile: Profile, table: pd.DataFrame) -> pd.DataFrame:
    """The table with ``miou_common, precision_common, recall_common``: every row at its seed's best threshold of row `common`.

    Unchanged for a study without such a row; seeds that lack it get NaN.
    """
    if study.common is None or table.empty:
        return table
    best = table[table["row"] == study.common].set_index("seed")["threshold"]
    at_threshold = []
    for line in table.itertuples():
        found = artefacts(profile, study.row(line.row), line.seed, obtain=_lookup)["evaluation"]
        curve = pd.read_csv(found.folder / "curve.csv").set_index("threshold")
        at = curve.index[np.abs(curve.index - best.get(line.seed, np.nan)).argmin()] if line.seed in best else None
        at_threshold.append(curve.loc[at].to_dict() if at is not None else {})
    at_common = pd.DataFrame(at_threshold, index=table.index, columns=["miou", "precision", "recall"])
    return table.join(at_common.add_suffix("_common"))


def left_out(study: Study, profile: Profile, n_seeds: int) -> bool:
    """Whether a study is not for such scenes, or too long for so few seeds while there is a committed table to show."""
    return not study.fits(profile) or (study.long and n_seeds < profile.long_from and committed_table(study).is_file())


def committed_table(study: Study) -> Path:
    """The file of a study's committed table."""
    return paths.FIGURES / f"{study.committed or study.name}.csv"


def check_seeds(seeds: Iterable[int]) -> list[int]:
    """The seeds as a list.  Raises ValueError where one is no whole number from 0 to 2^32 - 1, or stands twice."""
    checked = list(seeds)
    if any(not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32 for seed in checked):
        raise ValueError(f"seeds must be whole numbers from 0 to {2**32 - 1}, got {checked}")
    if len(set(checked)) < len(checked):
        raise ValueError(f"every seed counts once, got {checked}")
    return checked


def default_workers() -> int:
    """How many processes work side by side unless told otherwise: one per core; on a GPU, whose memory it needs, one."""
    return 1 if device().type == "cuda" else cores()


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stored(profile: Profile, row: AnyRow, seed: int) -> dict[str, Any] | None:
    """The numbers of a row and seed where the store has them, else None; computes nothing."""
    try:
        return numbers(artefacts(profile, row, seed, obtain=_lookup))
    except LookupError:
        return None


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and sd over seeds of every number, one line per row in the study's order, and ``n``.  sd of one seed is NaN."""
    columns = [column for column in table.columns if column not in ("row", "label", "seed")]
    grouped = table.groupby(["row", "label"], sort=False)[columns]
    summary = grouped.mean().join(grouped.std().add_suffix("_sd"))
    return summary.assign(n=grouped.size()).reset_index()


def track(items: Iterable[Any], total: int, title: str) -> Iterable[Any]:
    """A progress bar for people; silent under ``AEFT_QUIET`` (papermill, tests), where it would land in stored outputs."""
    return tqdm(items, total=total, desc=title, leave=False, disable=bool(os.environ.get("AEFT_QUIET")))


def _lookup(stage: store.Stage, spec: Any, inputs: dict[str, store.Artefact] | None = None) -> store.Artefact:
    key = store.key_of(stage, spec, {name: artefact.key for name, artefact in (inputs or {}).items()})
    artefact = store.find(stage.__name__, key)
    if artefact is None:
        raise LookupError(f"{stage.__name__} {key}")
    return artefact


def _compute(title: str, profile: Profile, jobs: list[tuple[AnyRow, int]], workers: int) -> dict[tuple[AnyRow, int], dict]:
    """Run jobs in processes of one thread each; shared features first.  Nothing is begun after an error or Ctrl-C."""
    if workers < 1:
        raise ValueError(f"workers must be a whole number, at least 1, got {workers}")
    preflight.check(profile)
    if ranks.world() > 1:  # the ranks work together on one job after the other
        return {job: _job(profile, *job) for job in jobs}
    store.check_writable()
    found: dict[tuple[AnyRow, int], dict] = {}
    context = multiprocessing.get_context("spawn")
    workers = min(workers, len(jobs))
    # Of the cores, for work image by image within a job; on a GPU a second process would need the memory again.
    share = (1 if device().type == "cuda" else max(1, cores() // workers),)
    with ProcessPoolExecutor(max_workers=workers, mp_context=context, initializer=_start_worker, initargs=share) as pool:
        try:
            shared = profile.cached and any(getattr(row, "condition", None) is None for row, _ in jobs)
            for future in [pool.submit(features, profile, split) for split in ("train", "val") if shared]:
                future.result()
            for job, future in track(_in_turn(pool, profile, jobs, workers), len(jobs), title):
                found[job] = future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process died: out of memory, or a script without `if __name__ == '__main__':`; "
                "finished rows are kept, run again to go on"
            ) from error
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
    return found


def _in_turn(
    pool: ProcessPoolExecutor, profile: Profile, jobs: list[tuple[AnyRow, int]], workers: int
) -> Iterator[tuple[tuple[AnyRow, int], Future]]:
    """Finished jobs as they come; a job is handed over only when a worker is free for it."""
    waiting: dict[Future, tuple[AnyRow, int]] = {}
    left = list(jobs)
    while left or waiting:
        while left and len(waiting) < workers:
            job = left.pop(0)
            waiting[pool.submit(_job, profile, *job)] = job
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            yield waiting.pop(future), future


def _start_worker(processes: int) -> None:
    """One thread for the arithmetic, and an end as soon as the parent's: an orphan would hold a gigabyte for nothing."""
    torch.set_num_threads(1)
    os.environ[shards.VARIABLE] = str(processes)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _job(profile: Profile, row: AnyRow, seed: int) -> dict[str, Any]:
    try:
        return numbers(artefacts(profile, row, seed))
    except Exception as error:
        if hasattr(error, "add_note"):  # Python 3.10 has no notes
            error.add_note(f"in row {row.name}, seed {seed}, profile {profile.name}")
        raise
