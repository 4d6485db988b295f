"""Running studies: rows in the store are read, the others computed side by side on the cores.

Every computation runs with one thread, so results do not depend on how many run at once; in
processes of their own, but for a single one that nobody watches.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from aeft_lib import paths
from aeft_lib.engine import memory, ranks, shards
from aeft_lib.engine.device import device
from aeft_lib.maps.evaluation import mean_average_precision
from aeft_lib.maps.labels import VOID
from aeft_lib.stages import store
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.reading import load_logits
from aeft_lib.studies import labels, ledger, preflight, progress, saturation
from aeft_lib.studies.ledger import MECHANISM
from aeft_lib.studies.pipeline import (
    Artefacts,
    artefacts,
    features,
    keyed,
    masks_to_learn,
    masks_to_score,
    parts,
    products,
)
from aeft_lib.studies.rows import Row, Study
from aeft_lib.studies.settings import Profile

Job = tuple[Row, int]
WORKERS = "AEFT_WORKERS"
METRICS = ("miou", "precision", "recall")
# What a row's artefacts are to a reader who has no scores of it.
PRODUCTS = {
    "classifier": "classifier",
    "seeds": "seeds",
    "teacher": "pseudo-labels",
    "segmenter": "network",
    "labels": "label maps",
}


def numbers(made: Artefacts) -> dict[str, float]:
    """The numbers of a row's artefacts: its evaluation, its objects' spread, its mechanism.

    ``tag_gain`` too, where there is a curve over its steps (see `saturation`).
    Without masks there is no evaluation: the tag mAP is left where the row ends in seeds.
    """
    named = {n.removeprefix(MECHANISM): a for n, a in made.items() if n.startswith(MECHANISM)}
    mechanism = {name: a.summary[name] for name, a in named.items() if name in a.summary}
    if "evaluation" not in made:
        if "classifier" not in made:
            return {}
        return {"tag_map": mean_average_precision(*load_logits(made["seeds"]))} | mechanism
    spread = made["objects"].summary if "objects" in made else {}
    if "curve" in made:
        spread = spread | {"tag_gain": saturation.gain(saturation.curve(made["curve"]))}
    return made["evaluation"].summary | spread | mechanism


def run_study(
    study: Study,
    profile: Profile,
    repeats: Sequence[int],
    *,
    rows: Sequence[Row] = (),
    workers: int = 0,
) -> pd.DataFrame:
    """The study's table: one line per row and repeat, ``row, label, repeat`` and its numbers.

    Numbers that need masks are NaN where a scene has none (`left_unscored`).
    rows: only these.  workers: jobs at once; 0 is `default_workers`.
    Finished rows stay in the store whatever happens to the rest; errors carry row and repeat.
    Raises ValueError for repeats that are none, before anything runs.
    """
    jobs = [(row, repeat) for repeat in check_repeats(repeats) for row in (rows or study.rows)]
    values = {job: stored(profile, *job) for job in jobs}
    if missing := [job for job in jobs if values[job] is None]:
        title = f"{study.name} on {profile.name}"
        values |= _compute(title, profile, missing, workers or default_workers())
    lines = [
        {"row": row.name, "label": labels.of_row(row, profile), "repeat": repeat}
        | values[row, repeat]
        for row, repeat in jobs
    ]
    table = pd.DataFrame(lines)
    table[[name for name in METRICS if name not in table]] = np.nan
    return saturation.marked(at_common_threshold(study, profile, table))


def prepare(
    chosen: Sequence[tuple[Study, Sequence[int]]], profile: Profile, *, workers: int = 0
) -> None:
    """Compute the missing rows of several studies together: no core waits between two.

    chosen: studies, each with its repeats.  Rows of more than one study are computed once.
    """
    jobs: list[Job] = []
    for study, repeats in chosen:
        jobs += [(row, repeat) for repeat in check_repeats(repeats) for row in study.rows]
    if missing := [job for job in dict.fromkeys(jobs) if stored(profile, *job) is None]:
        title = f"{len(chosen)} studies on {profile.name}"
        _compute(title, profile, missing, workers or default_workers())


def at_common_threshold(
    study: Study, profile: Profile, table: pd.DataFrame, *, evidence: bool = False
) -> pd.DataFrame:
    """The table with ``miou_common, precision_common, recall_common``.

    Every row at its repeat's best threshold of row `common`.  Unchanged for a study without such a
    row, or where nothing is scored; repeats that lack it get NaN.  evidence: see `read`.
    """
    if study.common is None or "threshold" not in table:
        return table
    best = table[table["row"] == study.common].set_index("repeat")["threshold"]
    at_threshold = []
    for line in table.itertuples():
        made = read(profile, study.row(line.row), line.repeat, evidence=evidence)
        curve = pd.read_csv(made["evaluation"].folder / "curve.csv").set_index("threshold")
        threshold = best.get(line.repeat)
        if threshold is None:
            at_threshold.append({})
        else:
            nearest = curve.index[np.abs(curve.index - threshold).argmin()]
            at_threshold.append(curve.loc[nearest].to_dict())
    columns = ["miou", "precision", "recall"]
    at_common = pd.DataFrame(at_threshold, index=table.index, columns=columns)
    return table.join(at_common.add_suffix("_common"))


def left_out(study: Study, profile: Profile, n_repeats: int) -> bool:
    """Whether a reproduction leaves a study out.

    It is apart, does not fit the scenes, or is long and has a committed table to show.
    """
    is_long = study.long and n_repeats < profile.long_from and committed_table(study).is_file()
    return study.apart or is_long or not study.fits(profile)


def committed_table(study: Study) -> Path:
    """The file of a study's committed table."""
    return paths.FIGURES / f"{study.committed or study.name}.csv"


def check_repeats(repeats: Iterable[int]) -> list[int]:
    """The repeats as a list.

    Raises ValueError where one is no whole number from 0 to 2^32 - 1, or stands twice.
    """
    checked = list(repeats)
    whole = [isinstance(r, int) and not isinstance(r, bool) for r in checked]
    if not all(whole) or any(not 0 <= repeat < 2**32 for repeat in checked):
        raise ValueError(f"repeats must be whole numbers from 0 to {2**32 - 1}, got {checked}")
    if len(set(checked)) < len(checked):
        raise ValueError(f"every repeat counts once, got {checked}")
    return checked


def default_workers() -> int:
    """How many jobs run at once by default: one per core, and a single one on a GPU.

    ``AEFT_WORKERS`` where that is set.  Raises ValueError where it is no whole number from 1 on.
    """
    asked = os.environ.get(WORKERS)
    if asked and (not asked.isdecimal() or int(asked) < 1):
        raise ValueError(f"{WORKERS} must be a whole number, at least 1, got {asked!r}")
    if asked:
        return int(asked)
    return 1 if device().type == "cuda" else cores()


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stored(
    profile: Profile, row: Row, repeat: int, *, evidence: bool = False
) -> dict[str, Any] | None:
    """The numbers of a row and repeat where store or ledger have them, else None.

    It computes nothing.  evidence: see `read`.

    None of them where the row learns from masks that are missing: there is nothing to compute.
    """
    if masks_to_learn(profile, row, repeat):
        return {}
    try:
        return numbers(read(profile, row, repeat, evidence=evidence))
    except LookupError:
        return None


def read(profile: Profile, row: Row, repeat: int, *, evidence: bool = False) -> Artefacts:
    """What a row has made, from the store; else what measured it, from the ledger.

    evidence: whether entries count of a profile that everybody computes (`ledger.COMPUTED`).
    Raises LookupError where neither has it, ValueError for an entry that is damaged.
    """
    try:
        return artefacts(profile, row, repeat, store.lookup)
    except LookupError:
        if profile.name in ledger.COMPUTED and not evidence:
            raise
        folder = ledger.place(profile.name, row.name, repeat)
        if not folder.is_dir():
            raise
        for wanted in _measures(profile, row, repeat):
            with suppress(LookupError):
                return ledger.read(folder, wanted)
        raise


def keep(profile: Profile, row: Row, repeat: int) -> Path:
    """Write what measured a finished row to the ledger; returns its folder there.

    Raises LookupError where the row is not finished.
    """
    folder = ledger.place(profile.name, row.name, repeat)
    ledger.keep(folder, ledger.measures(read(profile, row, repeat)))
    return folder


def stale(profile: Profile, jobs: Iterable[Job]) -> list[str]:
    """A line for every entry of the ledger of these jobs that is not of today's code and data."""
    lines = []
    for row, repeat in jobs:
        if (folder := ledger.place(profile.name, row.name, repeat)).is_dir():
            wanted = _measures(profile, row, repeat) or [{}]
            lines += min((ledger.stale(folder, measures) for measures in wanted), key=len)
    return lines


def _measures(profile: Profile, row: Row, repeat: int) -> list[Artefacts]:
    """What may measure a row: in this machine's precision, then as others read networks."""
    machines = (profile, *profile.on_other_machines)
    made = [ledger.measures(keyed(machine, row, repeat)) for machine in machines]
    return [measures for measures in made if measures]


def remarks(profile: Profile, jobs: Sequence[Job], table: pd.DataFrame) -> list[str]:
    """What a reader of a study's table has to know.

    Scores left out, trainings that have not saturated, entries of the ledger that are out of date,
    classes that no mask has.
    """
    lines = left_unscored(profile, jobs) + saturation.remarks(table) + stale(profile, jobs)
    for count, rows in table.groupby("absent") if "absent" in table else ():
        total = profile.num_classes + 1
        names, best = ", ".join(rows["row"].unique()), 100 * (1 - count / total)
        lines.append(
            f"{names}: {count:.0f} of {total} classes (background is one) are in no scored mask "
            f"and count as 0: a perfect map has an mIoU of {best:.1f}; miou_present leaves out "
            "classes that neither masks nor maps have"
        )
    if "no_background" in table:
        names = ", ".join(table.dropna(subset="no_background")["row"].unique())
        lines.append(
            f"{names}: no pixel of the scored masks is background (0): is it painted {VOID}, which "
            "is void? `aeft data check` says more"
        )
    return lines


def left_unscored(profile: Profile, jobs: Sequence[Job]) -> list[str]:
    """A line for every finished job that masks are missing for: which, and where its products are.

    Raises LookupError where a job is not in the store.
    """
    lines = []
    for row, repeat in jobs:
        if missing := masks_to_learn(profile, row, repeat):
            lines.append(f"{row.name}: not computed, it learns from true masks, and {missing}")
        elif missing := masks_to_score(profile, row, repeat):
            made = products(profile, row, repeat, store.lookup)
            places = [f"{PRODUCTS[n]} in {made[n].folder}" for n in PRODUCTS if n in made]
            rest = f"not scored, since {missing}; {', '.join(places)}"
            lines.append(f"{row.name}, repeat {repeat}: {rest}")
    return lines


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and sd over repeats of every number, one line per row in the study's order, and ``n``.

    The sd of one repeat is NaN.
    """
    names = ("row", "label", "repeat", "saturated")
    columns = [column for column in table.columns if column not in names]
    grouped = table.groupby(["row", "label"], sort=False)[columns]
    summary = grouped.mean().join(grouped.std().add_suffix("_sd"))
    return saturation.marked(summary.assign(n=grouped.size()).reset_index())


def quiet_tracker() -> None:
    """Let the processes that are started from now on clean up after a Ctrl-C without a warning.

    Workers that are ended leave semaphores, which Python's tracker of them unlinks in any case.
    """
    rule, rules = "ignore:resource_tracker:UserWarning", os.environ.get("PYTHONWARNINGS", "")
    if rule not in rules:
        os.environ["PYTHONWARNINGS"] = f"{rules},{rule}" if rules else rule


def _compute(
    title: str, profile: Profile, jobs: list[Job], workers: int
) -> dict[Job, dict[str, Any]]:
    """Run jobs with one thread each; nothing begins after an error or Ctrl-C.

    Shared features come first.  They run in processes of their own; where one job runs at a time
    and no bar is shown, in this one, which has loaded everything.
    """
    if workers < 1:
        raise ValueError(f"workers must be a whole number, at least 1, got {workers}")
    preflight.check(profile)
    memory.keep_freed()
    if ranks.world() > 1:  # the ranks work together on one job after the other
        return {job: _job(profile, *job) for job in jobs}
    store.check_writable()
    values: dict[Job, dict[str, Any]] = {}
    workers = min(workers, len(jobs))
    share = _share(workers)
    if workers == 1 and progress.quiet():
        with _as_worker(share):
            return {job: _job(profile, *job) for job in jobs}
    made_of = {job: _parts(profile, *job) for job in jobs}
    trainings = progress.missing(chain.from_iterable(made_of.values()))
    with progress.bar(trainings, len(jobs), title) as bar, pool(workers, share) as processes:
        if profile.cached and any(row.setting.condition is None for row, _ in jobs):
            for future in [processes.submit(features, profile, s) for s in ("train", "val")]:
                future.result()
        bar.begin()
        look = None if progress.quiet() else bar.show
        for job, future in _in_turn(processes, profile, made_of, workers, look):
            values[job] = future.result()
            bar.row()
    return values


@contextmanager
def pool(workers: int, share: int) -> Iterator[ProcessPoolExecutor]:
    """So many processes of one thread, each of which may start `share` for work image by image.

    They end at once where the one who asked raises, by Ctrl-C for example.
    Raises RuntimeError where one of them dies.
    """
    quiet_tracker()
    context = multiprocessing.get_context("spawn")
    options = {"mp_context": context, "initializer": _start_worker, "initargs": (share,)}
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(max_workers=workers, **options) as processes:
        try:
            yield processes
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process died: out of memory, or a script without "
                "`if __name__ == '__main__':`; what is finished is kept, run again to resume"
            ) from error
        except BaseException:
            for worker in multiprocessing.active_children():
                if worker not in others:
                    worker.terminate()  # its own children end with it
            raise


def _share(workers: int) -> int:
    """Processes that a job may start for work image by image: ``AEFT_PROCESSES``, else its cores.

    On a GPU a second process would need memory again.
    """
    if os.environ.get(shards.VARIABLE):
        return shards.processes()
    return 1 if device().type == "cuda" else max(1, cores() // workers)


@contextmanager
def _as_worker(share: int) -> Iterator[None]:
    """This process as one of a pool: one thread, so many processes for its stages."""
    threads, before = torch.get_num_threads(), os.environ.get(shards.VARIABLE)
    torch.set_num_threads(1)
    os.environ[shards.VARIABLE] = str(share)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        os.environ.pop(shards.VARIABLE)
        if before is not None:
            os.environ[shards.VARIABLE] = before


def _start_worker(processes: int) -> None:
    """As `shards.start_worker`; the bar of the process that waits is the only one."""
    os.environ[progress.QUIET] = "1"
    shards.start_worker(processes)


def _in_turn(
    pool: ProcessPoolExecutor,
    profile: Profile,
    made_of: Mapping[Job, Sequence[Artefact]],
    workers: int,
    look: Callable[[], None] | None = None,
) -> Iterator[tuple[Job, Future]]:
    """Finished jobs as they come; a job is handed over only when a worker is free for it.

    made_of: the parts of every job.  look: called now and then while they are waited for.
    """
    every = progress.EVERY if look else None
    waiting: dict[Future, Job] = {}
    left = list(made_of)
    while left or waiting:
        while left and len(waiting) < workers:
            job = _next(left, waiting.values(), made_of)
            left.remove(job)
            waiting[pool.submit(_job, profile, *job)] = job
        for future in wait(waiting, timeout=every, return_when=FIRST_COMPLETED).done:
            yield waiting.pop(future), future
        if look:
            look()


def _next(
    left: Sequence[Job], running: Iterable[Job], made_of: Mapping[Job, Sequence[Artefact]]
) -> Job:
    """Of the jobs that need nothing that a running one has yet to make, that with most to make.

    Of all, where there is no such job.  Rows share classifiers, label maps and networks.  The store
    builds each once and lets the second wait, so a worker that took just any job might do nothing
    for minutes; and a long chain that begins last is waited for alone.
    """
    ahead = {part.folder for job in running for part in made_of[job] if not _is_made(part)}
    free = [j for j in left if ahead.isdisjoint(part.folder for part in made_of[j])]
    return max(free or left, key=lambda j: sum(not _is_made(part) for part in made_of[j]))


def _is_made(part: Artefact) -> bool:
    return (paths.runs() / part.folder).is_dir()


def _parts(profile: Profile, row: Row, repeat: int) -> list[Artefact]:
    """`pipeline.parts`; none for a row that is wrong, which its own job reports."""
    with suppress(Exception):
        return parts(profile, row, repeat)
    return []


def _job(profile: Profile, row: Row, repeat: int) -> dict[str, Any]:
    try:
        return numbers(artefacts(profile, row, repeat))
    except Exception as error:
        if hasattr(error, "add_note"):  # Python 3.10 has no notes
            error.add_note(f"in row {row.name}, repeat {repeat}, profile {profile.name}")
        raise
